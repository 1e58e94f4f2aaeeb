//! The HTTP side: `/metrics`, `/livez`, `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::health::Readiness;

/// Renders the metrics of the process.
pub type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// The metrics of the process, and where they are shown.
pub struct Metrics {
    /// Path on the HTTP side; empty: nowhere.
    pub path: String,
    /// Renders them.
    pub render: Render,
}

/// Serves until `shutdown` resolves.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let mut app = Router::new().route("/livez", get(async || "live\n")).route("/readyz", get(ready));
    if !metrics.path.is_empty() {
        app = app.route(&metrics.path, get(async move || (metrics.render)()));
    }
    let app = app.with_state(readiness);
    axum::serve(listener, app).with_graceful_shutdown(shutdown).await
}

async fn ready(State(readiness): State<Readiness>) -> impl IntoResponse {
    if readiness.is_ready() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let why = readiness.why_not();
    let why = if why.is_empty() { String::new() } else { format!("{why}\n") };
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{why}"))
}
