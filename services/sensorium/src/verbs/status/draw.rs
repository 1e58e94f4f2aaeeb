//! What people see of it.

use comfy_table::{CellAlignment, Table};
use owo_colors::Style;

use super::super::draw::{bold, dim, paint, seconds, table};
use super::super::output::clean;
use super::{Node, Status};

/// All of it.
pub(super) fn draw(address: &str, status: &Status) -> String {
    let (good, bad) = (Style::new().green(), Style::new().red().bold());
    let mark = |on: bool, yes: &str, no: &str| if on { paint(yes, good) } else { paint(no, bad) };
    let (live, ready) = (mark(status.live, "live", "not live"), mark(status.ready, "ready", "not ready"));
    let mut table =
        table(&["model", "version", "state", "replicas", "requests", "failed", "queue", "compute", "batch", "memory"]);
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let time = |value: Option<f64>| value.map_or("–".to_owned(), seconds);
    for model in &status.models {
        let reason = if model.reason.is_empty() { String::new() } else { format!(" ({})", model.reason) };
        table.add_row([
            clean(&model.name),
            clean(&model.version),
            clean(&format!("{}{reason}", model.state)),
            match model.replicas_running {
                running if running == model.replicas => running.to_string(),
                running => paint(format!("{running} of {}", model.replicas), bad),
            },
            model.requests.to_string(),
            model.failed.to_string(),
            time(model.mean_queue_seconds),
            time(model.mean_compute_seconds),
            model.average_batch_size.map_or("–".to_owned(), |size| format!("{size:.1}")),
            format!("{:.0} MB", model.memory_bytes as f64 / 1e6),
        ]);
    }
    let server = format!("{} {}", bold(&status.name), dim(format!("{} at {address}", status.version)));
    let dependencies = status.dependencies.iter().map(|of| match of.state.as_str() {
        "embedded" => dim(format!("{} embedded", of.name)),
        "ok" => paint(format!("{} ok", of.name), good),
        state => {
            let reason = if of.reason.is_empty() { String::new() } else { format!(" ({})", of.reason) };
            paint(format!("{} {state} for {}{reason}", of.name, seconds(of.seconds)), bad)
        }
    });
    let dependencies = dependencies.collect::<Vec<_>>().join("  ");
    let cache = status.cache_hit_rate.map(|rate| format!("  {:.0} % cache hits", rate * 100.0)).unwrap_or_default();
    let silent = match status.gateways_silent.len() {
        0 => String::new(),
        _ => paint(format!("  without {}, which do not answer", status.gateways_silent.join(", ")), bad),
    };
    format!(
        "{server}  {live}  {ready}  {} in flight{cache}{silent}  {dependencies}\n{}\n{table}",
        status.in_flight,
        draw_nodes(&status.nodes)
    )
}

fn draw_nodes(nodes: &[Node]) -> Table {
    let mut table = table(&["node", "role", "zone", "state", "in flight", "latency", "models"]);
    for node in nodes {
        let mut state = Vec::new();
        state.extend(node.draining.then(|| "draining".to_owned()));
        state.extend((!node.reachable).then(|| "out of reach".to_owned()));
        state.extend(node.ejected.iter().map(|of| format!("ejected from {} by {}", of.model, of.gateways.join(", "))));
        table.add_row([
            clean(&node.name),
            clean(&node.role),
            clean(&node.zone),
            if state.is_empty() { "ok".to_owned() } else { clean(&state.join(", ")) },
            node.in_flight.map_or("–".to_owned(), |calls| calls.to_string()),
            if node.latency_seconds > 0.0 { seconds(node.latency_seconds) } else { "–".to_owned() },
            clean(&node.models.join(" ")),
        ]);
    }
    table
}
