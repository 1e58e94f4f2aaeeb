//! Reports for people.

use std::fmt::Write;
use std::io::IsTerminal;

use sensorium_loadtest::bench::row::Row;
use sensorium_loadtest::record::{Latency, Report};

/// Whether the terminal wants colours.
pub(crate) fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// One row, while the others are still to come.
pub(crate) fn progress(row: &Row) -> String {
    let figure = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.3} {}", row.unit));
    let ratio = row.ratio.map_or(String::new(), |ratio| format!(", ratio {ratio:.2} (goal {})", row.goal));
    let added = row.added.map_or(String::new(), |added| format!(", adds {added:.3} {} (goal {})", row.unit, row.goal));
    let note = if row.note.is_empty() { String::new() } else { format!(" [{}]", row.note) };
    format!("{}: {} against {}{ratio}{added}{note}", row.work, figure(row.ours), figure(row.baseline))
}

/// A run.
pub(crate) fn report(report: &Report) -> String {
    let mut text = format!(
        "{}: {} requests in {:.1} s, {:.1}/s\n",
        report.work, report.finished, report.seconds, report.requests_per_s
    );
    // writing to a string cannot fail
    if let Some(latency) = &report.latency_ms {
        let _ = writeln!(text, "latency      {}", line(latency));
    }
    if let Some(first) = &report.first_token_ms {
        let _ = writeln!(text, "first token  {}", line(first));
    }
    if let Some(tokens) = report.tokens_per_s {
        let _ = write!(text, "tokens       {tokens:.1}/s");
        let decode = report.decode_tokens_per_s.map_or(String::new(), |rate| format!(", {rate:.1}/s of one stream"));
        let _ = writeln!(text, "{decode}");
    }
    for (code, count) in &report.errors {
        let _ = writeln!(text, "failed       {code}: {count}");
    }
    text
}

fn line(latency: &Latency) -> String {
    let Latency { mean, p50, p90, p99, p999, max } = latency;
    format!("mean {mean:.2}  p50 {p50:.2}  p90 {p90:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.2} ms")
}
