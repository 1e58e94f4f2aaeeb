//! Health: `grpc.health.v1` per service and per model, and the readiness behind `/readyz`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::Stream;
use sensorium_actors::error::Error;
use sensorium_plane::status::from_error;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::server::Door;

/// How often a watched status is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Services that health is asked for by name.
const SERVICES: [&str; 5] =
    ["", "inference.GRPCInferenceService", "sensorium.v1.Sensorium", "sensorium.v1.Jobs", "sensorium.admin.v1.Admin"];

/// Whether the required models are warm and nobody is draining.
#[derive(Clone)]
pub struct Readiness {
    ready: Arc<AtomicBool>,
    changed: Arc<watch::Sender<()>>,
    unsound: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

impl Readiness {
    /// Not ready yet. Once it is, it stays so for as long as `sound` says yes.
    pub fn new(sound: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self::unless(move || (!sound()).then(String::new))
    }

    /// The same for what can say why it is not: it stays ready for as long as `unsound` gives no reason.
    pub fn unless(unsound: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        Self { ready: Arc::default(), changed: Arc::default(), unsound: Arc::new(unsound) }
    }

    /// Ready, or not any more.
    pub fn set(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
        self.changed.send_replace(());
    }

    /// Whether it is.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && (self.unsound)().is_none()
    }

    /// Why it is not, as far as that can be said; may be of several lines.
    pub fn why_not(&self) -> String {
        (self.unsound)().unwrap_or_default()
    }
}

/// The service; a name is a gRPC service or a model.
pub fn service(door: Arc<Door>) -> HealthServer<impl Health> {
    HealthServer::new(HealthService { door })
}

struct HealthService {
    door: Arc<Door>,
}

/// The status of a service or model; `None` if there is none of this name.
fn status(door: &Door, name: &str) -> Option<ServingStatus> {
    let serving = |ready| if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    if SERVICES.contains(&name) || door.understanding.named(name).is_some() {
        return Some(serving(door.readiness.is_ready()));
    }
    let ready = match door.router.held(name, None) {
        Ok(held) => held.is_ready(),
        // known, but nobody holds it at the moment
        Err(Error::Unavailable { .. }) => false,
        Err(_) => return None,
    };
    Some(serving(ready && !door.router.admission().is_draining()))
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        let status = status(&self.door, &name).ok_or_else(|| {
            let what = format!("service or model '{name}'");
            from_error(&Error::NotFound { what, known: "expected '' for the server as a whole".to_owned() })
        })?;
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Tells the status now and at every change; a name that is not known yet is SERVICE_UNKNOWN, as the protocol asks.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let name = request.into_inner().service;
        let door = self.door.clone();
        Ok(Response::new(Box::pin(async_stream::stream! {
            let mut told = None;
            let mut changed = door.readiness.changed.subscribe();
            loop {
                let now = status(&door, &name).unwrap_or(ServingStatus::ServiceUnknown);
                if told != Some(now) {
                    told = Some(now);
                    yield Ok(HealthCheckResponse { status: now.into() });
                }
                // models have no signal of their own: they are looked at
                let _ = tokio::time::timeout(LOOK, changed.changed()).await;
            }
        })))
    }
}
