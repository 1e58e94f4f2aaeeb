//! The worker's place in the register, kept true: what it holds and how each version fares.

use std::sync::Arc;
use std::time::Duration;

use sensorium_cluster::membership::{Held, Lease, Policy};
use tokio::sync::Mutex;
use tokio::task::AbortHandle;

use super::Worker;
use super::loading::Broken;
use super::served::Served;
use crate::manifest::Pipeline;
use crate::shapes;

/// How often versions are looked at: their states change without anybody's asking.
const LOOK: Duration = Duration::from_millis(50);

/// A cheap handle.
#[derive(Clone)]
pub struct Registrar {
    lease: Arc<Mutex<Option<Lease>>>,
    _looking: Arc<Looking>,
}

struct Looking(AbortHandle);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Registrar {
    /// Keeps `lease` true to what `worker` holds.
    pub fn start(worker: &Worker, lease: Lease) -> Self {
        let lease = Arc::new(Mutex::new(Some(lease)));
        let (kept, watched) = (lease.clone(), worker.clone());
        let looking = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(lease) = &*kept.lock().await else { return };
                announce(&watched, lease);
            }
        });
        Self { lease, _looking: Arc::new(Looking(looking.abort_handle())) }
    }

    /// Tells the register now.
    pub async fn announce(&self, worker: &Worker) {
        if let Some(lease) = &*self.lease.lock().await {
            announce(worker, lease);
        }
    }

    /// Tells the register that the worker has loaded what it was to load.
    pub async fn loaded(&self) {
        if let Some(lease) = &*self.lease.lock().await {
            lease.update(|registration| registration.expects.clear());
        }
    }

    /// Returns when the register knows what it was told, or cannot be reached.
    pub async fn settled(&self) {
        if let Some(lease) = &*self.lease.lock().await {
            lease.settled().await;
        }
    }

    /// Tells the register that the worker takes no more.
    pub async fn draining(&self) {
        if let Some(lease) = &*self.lease.lock().await {
            lease.update(|registration| registration.draining = true);
        }
    }

    /// Leaves the register.
    pub async fn withdraw(&self) {
        if let Some(lease) = self.lease.lock().await.take() {
            lease.withdraw().await;
        }
    }
}

fn announce(worker: &Worker, lease: &Lease) {
    let served = worker.versions();
    let broken = worker.broken();
    let held =
        served.iter().map(|served| held(served)).chain(broken.iter().map(|(name, broken)| missing(name, broken)));
    let held = held.collect();
    lease.update(|registration| registration.models = held);
}

fn held(served: &Served) -> Held {
    let (state, reason) = served.index();
    let (manifest, routing) = (&served.manifest, &served.manifest.routing);
    Held {
        name: manifest.name.clone(),
        version: served.version,
        modality: manifest.modality.to_string(),
        state: state.to_owned(),
        reason,
        namespace: served.namespace().into_owned(),
        policy: Policy {
            idempotent: routing.idempotent,
            resume: routing.resume && manifest.pipeline == Pipeline::TextGeneration,
            hedge_percentile: routing.hedge_percentile,
            fallback: routing.fallback.clone(),
            budget_ms: routing.budget_ms,
            cached: manifest.cache,
            decoupled: manifest.pipeline == Pipeline::TextGeneration,
        },
        accepts: Some(shapes::accepts(manifest)),
    }
}

/// A model of which no version could be begun: those who ask for it are told why.
fn missing(name: &str, broken: &Broken) -> Held {
    Held {
        name: name.to_owned(),
        version: broken.version,
        modality: broken.modality.map_or_else(String::new, |modality| modality.to_string()),
        state: "UNAVAILABLE".to_owned(),
        reason: broken.why.to_string(),
        ..Held::default()
    }
}
