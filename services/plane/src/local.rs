//! The worker of this process.

use std::collections::BTreeMap;

use futures::FutureExt;
use futures::future::BoxFuture;
use sensorium_actors::error::{Error, Result};
use sensorium_actors::manifest::Manifest;
use sensorium_actors::pipeline::Assets;
use sensorium_actors::request::{Context, Reply, ReplyStream, Request};
use sensorium_actors::route::client::Client;
use sensorium_actors::supervision::tree::{Snapshot, Tree};
use sensorium_actors::worker::Worker;
use sensorium_actors::worker::registrar::Registrar;
use sensorium_actors::worker::served::Served;
use sensorium_proto::admin::{Actor, GetModelCardResponse};
use sensorium_proto::inference::repository_index_response::ModelIndex;
use sensorium_proto::inference::{ModelStatistics, RepositoryModelLoadRequest};
use tokio::sync::watch;

use crate::member::{Description, Member};
use crate::overriding::overriding;
use crate::statistics;

/// A worker and its place in the register.
#[derive(Clone)]
pub struct LocalMember {
    worker: Worker,
    registrar: Registrar,
    draining: watch::Sender<bool>,
}

impl LocalMember {
    /// The worker behind `registrar`.
    pub fn new(worker: Worker, registrar: Registrar) -> Self {
        Self { worker, registrar, draining: watch::Sender::new(false) }
    }

    /// The worker.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Its place in the register.
    pub fn registrar(&self) -> &Registrar {
        &self.registrar
    }

    /// Resolves when somebody has asked for a drain.
    pub async fn asked_to_drain(&self) {
        // we hold a sender ourselves: this cannot end otherwise
        let _ = self.draining.subscribe().wait_for(|draining| *draining).await;
    }

    /// Loads a model and announces it.
    pub async fn load_model(&self, model: &str, overriding: Option<Manifest>) -> Result<()> {
        let loaded = self.worker.load(model, overriding).await;
        self.registrar.announce(&self.worker).await;
        loaded
    }
}

impl LocalMember {
    /// The same for a model that is to be served from the start: if it cannot be, the worker remembers why, says so, and
    /// tries again.
    pub async fn load_from_the_start(&self, model: &str) -> Result<()> {
        let loaded = self.worker.load_from_the_start(model).await;
        self.registrar.announce(&self.worker).await;
        loaded
    }
}

impl Client for LocalMember {
    fn name(&self) -> &str {
        self.worker.name()
    }

    fn may_fall_silent(&self) -> bool {
        false
    }

    fn infer<'a>(&'a self, request: &'a Request, context: &'a Context) -> BoxFuture<'a, Result<Reply>> {
        self.worker.infer(request, context).boxed()
    }

    fn stream(&self, request: Request, context: Context) -> BoxFuture<'_, Result<ReplyStream>> {
        self.worker.stream(request, context).boxed()
    }
}

impl Member for LocalMember {
    fn describe<'a>(&'a self, model: &'a str, version: Option<u64>) -> BoxFuture<'a, Result<Description>> {
        async move {
            let served = self.worker.served(model, version)?;
            let labels = match &served.assets {
                Assets::Image { labels } => labels.clone(),
                _ => Vec::new(),
            };
            Ok(Description { manifest: (*served.manifest).clone(), version: served.version, labels })
        }
        .boxed()
    }

    fn statistics<'a>(&'a self, model: &'a str, version: Option<u64>) -> BoxFuture<'a, Result<Vec<ModelStatistics>>> {
        async move { statistics::of(&self.worker, model, version) }.boxed()
    }

    fn index(&self) -> BoxFuture<'_, Result<Vec<ModelIndex>>> {
        async move { index(&self.worker) }.boxed()
    }

    fn load(&self, request: RepositoryModelLoadRequest) -> BoxFuture<'_, Result<()>> {
        async move {
            let base = || {
                let entry = self.worker.repository().get(&request.model_name)?;
                entry.manifest.map_err(|error| Error::invalid("model_name", error))
            };
            let overriding = overriding(&request, base)?;
            self.load_model(&request.model_name, overriding).await
        }
        .boxed()
    }

    fn unload<'a>(&'a self, model: &'a str) -> BoxFuture<'a, Result<()>> {
        async move {
            self.worker.unload(model).await?;
            self.registrar.announce(&self.worker).await;
            Ok(())
        }
        .boxed()
    }

    fn actors<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Vec<Actor>>> {
        let listed = self.worker.tree().list(path).into_iter().map(actor).collect();
        async move { Ok(listed) }.boxed()
    }

    fn restart<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<()>> {
        async move { restart(self.worker.tree(), path) }.boxed()
    }

    fn card<'a>(&'a self, model: &'a str, version: Option<u64>) -> BoxFuture<'a, Result<GetModelCardResponse>> {
        async move {
            let served = self.worker.served(model, version)?;
            card(&served).await
        }
        .boxed()
    }

    fn drain(&self) -> BoxFuture<'_, Result<()>> {
        async move {
            self.draining.send_replace(true);
            Ok(())
        }
        .boxed()
    }
}

/// An actor in the protocol's terms.
pub(crate) fn actor(actor: Snapshot) -> Actor {
    Actor {
        path: actor.path,
        kind: actor.kind.to_owned(),
        state: actor.state.as_str().to_owned(),
        restarts: actor.restarts,
        queue_depth: actor.queue_depth,
        uptime_seconds: actor.uptime.as_secs_f64(),
        last_failure: actor.last_failure,
    }
}

/// There is no actor at this path; which there are.
pub(crate) fn unknown_actor(path: &str, paths: impl Iterator<Item = String>) -> Error {
    let paths: Vec<String> = paths.collect();
    Error::NotFound {
        what: format!("actor '{path}'"),
        known: format!("there are {}", sensorium_actors::error::names(&paths)),
    }
}

/// Restarts an actor of this process.
pub(crate) fn restart(tree: &Tree, path: &str) -> Result<()> {
    let Some(actor) = tree.list(path).into_iter().find(|actor| actor.path == path) else {
        return Err(unknown_actor(path, tree.list("").into_iter().map(|actor| actor.path)));
    };
    if !path.contains('/') {
        let message = format!("'{path}' is a root: it goes with its process");
        return Err(Error::FailedPrecondition { reason: "ROOT", message });
    }
    if !tree.restart(path) {
        let message = format!("'{path}' does not run: it is {}", actor.state.as_str());
        return Err(Error::FailedPrecondition { reason: "NOT_RUNNING", message });
    }
    tracing::info!(path, "actor restarted by an operator");
    Ok(())
}

async fn card(served: &Served) -> Result<GetModelCardResponse> {
    let path = served.directory.join("CARD.md");
    let markdown = tokio::fs::read_to_string(&path).await.map_err(|error| Error::NotFound {
        what: format!("card of {}", served.manifest.name),
        known: format!("{}: {error}", path.display()),
    })?;
    Ok(GetModelCardResponse { version: served.version.to_string(), markdown })
}

/// What lies in the repository, and how each version fares.
fn index(worker: &Worker) -> Result<Vec<ModelIndex>> {
    let (versions, broken) = (worker.versions(), worker.broken());
    let mut models = Vec::new();
    for entry in worker.repository().list()? {
        let loaded: Vec<_> = versions.iter().filter(|served| served.manifest.name == entry.name).collect();
        if loaded.is_empty() {
            let cannot = broken.get(&entry.name).map(|broken| broken.why.to_string());
            let unread = || entry.manifest.as_ref().err().map(ToString::to_string);
            let reason = cannot.or_else(unread).unwrap_or_else(|| "unloaded".to_owned());
            let version = entry.versions.last().map_or(String::new(), u64::to_string);
            models.push(ModelIndex { name: entry.name, version, state: "UNAVAILABLE".to_owned(), reason });
            continue;
        }
        for served in loaded {
            let (state, reason) = served.index();
            let (name, version) = (entry.name.clone(), served.version.to_string());
            models.push(ModelIndex { name, version, state: state.to_owned(), reason });
        }
    }
    Ok(models)
}

/// The best that is said of each version: one worker that answers is enough.
pub(crate) fn best(indices: Vec<Vec<ModelIndex>>) -> Vec<ModelIndex> {
    let rank = |state: &str| ["UNAVAILABLE", "UNLOADING", "LOADING", "READY"].iter().position(|known| *known == state);
    let mut merged: BTreeMap<(String, String), ModelIndex> = BTreeMap::new();
    for model in indices.into_iter().flatten() {
        let key = (model.name.clone(), model.version.clone());
        let known = merged.entry(key).or_insert_with(|| model.clone());
        if rank(&model.state) > rank(&known.state) {
            *known = model;
        }
    }
    merged.into_values().collect()
}
