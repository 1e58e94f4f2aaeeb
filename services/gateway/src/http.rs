//! The HTTP side: `/metrics`, `/livez`, `/readyz`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

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

/// Connections at most: those who scrape, probe and look. Apart from the door's, so that a gateway full of clients can
/// still tell how it is.
const MAX_CONNECTIONS: usize = 1024;

/// Serves until `shutdown` resolves; a client has `silence` to say what it wants.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    silence: Duration,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let mut app = Router::new().route("/livez", get(async || "live\n")).route("/readyz", get(ready));
    if !metrics.path.is_empty() {
        app = app.route(&metrics.path, get(async move || (metrics.render)()));
    }
    let service = TowerToHyperService::new(app.with_state(readiness));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(silence);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                    let serving = http.serve_connection(TokioIo::new(stream), service.clone());
                    connections.spawn(async move {
                        if let Err(error) = serving.await {
                            tracing::debug!(%error, "a connection of the HTTP side has ended");
                        }
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of the HTTP side");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// How long accepting pauses after an error, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);

async fn ready(State(readiness): State<Readiness>) -> impl IntoResponse {
    if readiness.is_ready() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let why = readiness.why_not();
    let why = if why.is_empty() { String::new() } else { format!("{why}\n") };
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{why}"))
}
