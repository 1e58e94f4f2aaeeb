//! Bars, durations, trees and colours of the terminal.

use std::fmt::Display;

use comfy_table::{Table, presets};
use owo_colors::{OwoColorize, Stream, Style};

use super::output::clean;

/// In colour, if stdout is a terminal that wants it (`NO_COLOR` is honoured). The text may be others': it is [`clean`]
/// afterwards.
pub(super) fn paint(text: impl Display, style: Style) -> String {
    clean(&text.to_string()).if_supports_color(Stream::Stdout, |text| text.style(style)).to_string()
}

/// As [`paint`], for stderr.
pub(super) fn paint_errors(text: impl Display, style: Style) -> String {
    clean(&text.to_string()).if_supports_color(Stream::Stderr, |text| text.style(style)).to_string()
}

/// A table without lines.
pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.iter().copied());
    table
}

/// What stands back behind the rest.
pub(super) fn dim(text: impl Display) -> String {
    paint(text, Style::new().dimmed())
}

/// What leads the eye.
pub(super) fn bold(text: impl Display) -> String {
    paint(text, Style::new().bold())
}

/// `share` of `width` cells, drawn to an eighth of a cell. Shares outside 0 to 1 are drawn as the nearer end.
pub(super) fn bar(share: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (share * width as f64 * 8.0).round() as usize;
    let (full, rest) = (eighths / 8, eighths % 8);
    let drawn = full + usize::from(rest > 0);
    format!("{}{}{}", "█".repeat(full), EIGHTHS[rest], " ".repeat(width.saturating_sub(drawn)))
}

/// A measured time: `850 µs`, `12 ms`, `1.25 s`, `3 min 20 s`.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.000_999_5 => format!("{:.0} µs", s * 1e6),
        s if s < 0.999_5 => format!("{:.0} ms", s * 1e3),
        s if s < 59.995 => format!("{s:.2} s"),
        s => format!("{:.0} min {:.0} s", (s / 60.0).floor(), (s % 60.0).floor()),
    }
}

/// How long something runs: two units are enough.
pub(super) fn uptime(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{whole}s"),
        (0, 0, _) => format!("{minutes}m {}s", whole % 60),
        (0, ..) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Branches before each node of a tree given as paths, parents before children: `├── `, `└── ` and their stems.
pub(super) fn branches(paths: &[&str]) -> Vec<String> {
    let parent =
        |path: &str| paths.iter().copied().filter(|other| is_under(path, other)).max_by_key(|other| other.len());
    let parents: Vec<Option<&str>> = paths.iter().map(|path| parent(path)).collect();
    let last = |at: usize| !parents[at + 1..].contains(&parents[at]);
    let mut drawn: Vec<String> = Vec::with_capacity(paths.len());
    let mut stems: Vec<String> = Vec::with_capacity(paths.len());
    for at in 0..paths.len() {
        // a node whose parent does not come before it stands as a root
        let above = parents[at].and_then(|parent| paths[..at].iter().position(|path| *path == parent));
        let (branch, stem) = match above {
            None => (String::new(), String::new()),
            Some(above) if last(at) => (format!("{}└── ", stems[above]), format!("{}    ", stems[above])),
            Some(above) => (format!("{}├── ", stems[above]), format!("{}│   ", stems[above])),
        };
        drawn.push(branch);
        stems.push(stem);
    }
    drawn
}

fn is_under(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_keep_their_width() {
        assert_eq!(bar(0.5, 4), "██  ");
        assert_eq!(bar(1.0 / 32.0, 4), "▏   ");
        assert_eq!(bar(7.0, 2), "██");
        for share in [-0.3, 0.0, 0.01, 0.33, 0.999, 1.0, f64::NAN] {
            assert_eq!(bar(share, 10).chars().count(), 10, "{share}");
        }
    }

    #[test]
    fn times_have_their_unit() {
        let told = [0.000_85, 0.0123, 0.9999, 1.25, 200.0].map(seconds);
        assert_eq!(told, ["850 µs", "12 ms", "1.00 s", "1.25 s", "3 min 20 s"]);
    }

    #[test]
    fn uptimes_have_two_units() {
        let told = [3.9, 75.0, 3660.0, 90_000.0].map(uptime);
        assert_eq!(told, ["3s", "1m 15s", "1h 1m", "1d 1h"]);
    }

    #[test]
    fn trees_join_siblings() {
        let paths = ["w", "w/text", "w/text/m", "w/text/m/1", "w/image", "g"];
        assert_eq!(branches(&paths), ["", "├── ", "│   └── ", "│       └── ", "└── ", ""]);
    }

    #[test]
    fn a_subtree_starts_at_its_own_root() {
        assert_eq!(branches(&["w/text", "w/text/m", "w/text/n"]), ["", "├── ", "└── "]);
    }
}
