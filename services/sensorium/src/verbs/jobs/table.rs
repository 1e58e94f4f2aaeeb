//! Jobs on the terminal.

use comfy_table::{CellAlignment, Table};
use owo_colors::Style;
use sensorium_proto::v1::{Job, job};

use super::super::draw::{bold, paint, seconds, table};
use super::super::infer::report::short;
use super::super::output::clean;

/// Lower-case, without what the protocol puts before it.
pub(super) fn state(job: &Job) -> String {
    short(job.state().as_str_name()).to_lowercase()
}

fn painted(job: &Job) -> String {
    let style = match job.state() {
        job::State::Succeeded => Style::new().green(),
        job::State::Failed => Style::new().red().bold(),
        job::State::Partial | job::State::Cancelled => Style::new().yellow(),
        job::State::Running | job::State::Unspecified => Style::new(),
    };
    paint(state(job), style)
}

/// How long it took, or takes.
fn took(job: &Job) -> Option<f64> {
    let submitted = job.submitted?;
    let now = prost_types::Timestamp::from(std::time::SystemTime::now());
    let until = job.finished.unwrap_or(now);
    #[allow(clippy::cast_precision_loss)]
    let whole = (until.seconds - submitted.seconds) as f64;
    Some((whole + f64::from(until.nanos - submitted.nanos) / 1e9).max(0.0))
}

/// A line per job.
pub(super) fn of(jobs: &[Job]) -> Table {
    let mut table = table(&["job", "state", "done", "failed", "items", "took", "submitted", "label"]);
    for column in table.column_iter_mut().skip(2).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for job in jobs {
        table.add_row([
            clean(&job.id),
            painted(job),
            job.done.to_string(),
            job.failed.to_string(),
            job.total.to_string(),
            took(job).map(seconds).unwrap_or_default(),
            job.submitted.map(|time| time.to_string()).unwrap_or_default(),
            clean(&job.label),
        ]);
    }
    table
}

/// What is to be said when a job is over.
pub(super) fn summary(job: &Job) -> String {
    let failed = if job.failed > 0 { format!(", {} failed", job.failed) } else { String::new() };
    let took = took(job).map(|took| format!(" in {}", seconds(took))).unwrap_or_default();
    format!("{} {}: {} of {} items{took}{failed}", bold(&job.id), painted(job), job.done, job.total)
}
