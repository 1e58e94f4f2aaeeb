//! What cannot be loaded is tried again, at growing pauses: files come back, and memory is short for a while only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::ActorStatus;
use tokio::time::Instant;

use super::Worker;
use super::served::Served;
use crate::error::Error;

/// How often the worker looks what is to be tried.
const LOOK: Duration = Duration::from_millis(500);
/// The first pause; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What is to be tried.
enum Wanted {
    /// A model of which no version could be begun.
    Model(String),
    /// A version whose weights could not be loaded.
    Version(Arc<Served>),
}

impl Wanted {
    fn name(&self) -> String {
        match self {
            Self::Model(model) => model.clone(),
            Self::Version(served) => format!("{}/{}", served.manifest.name, served.version),
        }
    }
}

struct Pause {
    length: Duration,
    until: Instant,
}

/// Tries what cannot be loaded until the worker's root is gone.
pub(super) async fn keep_trying(worker: Worker) {
    let mut pauses: BTreeMap<String, Pause> = BTreeMap::new();
    while worker.root.get_status() != ActorStatus::Stopped {
        tokio::time::sleep(LOOK).await;
        let wanted = wanted(&worker);
        pauses.retain(|name, _| wanted.iter().any(|wanted| wanted.name() == *name));
        for one in wanted {
            let name = one.name();
            let now = Instant::now();
            let pause = pauses.entry(name.clone()).or_insert(Pause { length: FIRST_PAUSE, until: now + FIRST_PAUSE });
            if now < pause.until {
                continue;
            }
            match attempt(&worker, &one).await {
                Ok(()) => tracing::info!(model = name, "loaded after all"),
                Err(error) => {
                    pause.length = (pause.length * 2).min(LONGEST_PAUSE);
                    let again_after_s = pause.length.as_secs();
                    tracing::warn!(model = name, %error, again_after_s, "still cannot be loaded");
                    pause.until = Instant::now() + pause.length;
                }
            }
        }
    }
}

fn wanted(worker: &Worker) -> Vec<Wanted> {
    let models = worker.broken().into_keys().map(Wanted::Model);
    let versions = worker.versions().into_iter().filter(|served| served.is_to_be_tried_again()).map(Wanted::Version);
    models.chain(versions).collect()
}

async fn attempt(worker: &Worker, wanted: &Wanted) -> Result<(), Error> {
    match wanted {
        Wanted::Model(model) if worker.broken.read().contains_key(model) => worker.load_from_the_start(model).await,
        Wanted::Model(_) => Ok(()), // unloaded meanwhile
        Wanted::Version(served) => worker.replace_version(served).await,
    }
}
