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

#[derive(Clone)]
struct Side {
    readiness: Readiness,
    metrics: Render,
}

/// Serves until `shutdown` resolves.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Render,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/metrics", get(async |State(side): State<Side>| (side.metrics)()))
        .route("/livez", get(async || "live\n"))
        .route("/readyz", get(ready))
        .with_state(Side { readiness, metrics });
    axum::serve(listener, app).with_graceful_shutdown(shutdown).await
}

async fn ready(State(side): State<Side>) -> impl IntoResponse {
    if side.readiness.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
