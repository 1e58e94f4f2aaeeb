//! A worker as the gateway sees it.

use futures::future::BoxFuture;
use sensorium_actors::error::Result;
use sensorium_actors::manifest::Manifest;
use sensorium_actors::route::client::Client;
use sensorium_proto::admin::{Actor, GetModelCardResponse};
use sensorium_proto::inference::repository_index_response::ModelIndex;
use sensorium_proto::inference::{ModelStatistics, RepositoryModelLoadRequest};

/// What a model version is.
#[derive(Clone, Debug)]
pub struct Description {
    /// How it is served.
    pub manifest: Manifest,
    /// Which version.
    pub version: u64,
    /// One name per class; empty for models without.
    pub labels: Vec<String>,
}

/// A worker: requests go to it ([`Client`]), and it can be asked and told.
pub trait Member: Client {
    /// What a version is; `None` leaves the choice to the worker.
    fn describe<'a>(&'a self, model: &'a str, version: Option<u64>) -> BoxFuture<'a, Result<Description>>;

    /// Figures of a version, of all versions of a model, or of everything.
    fn statistics<'a>(&'a self, model: &'a str, version: Option<u64>) -> BoxFuture<'a, Result<Vec<ModelStatistics>>>;

    /// What lies in its repository, and how each version fares.
    fn index(&self) -> BoxFuture<'_, Result<Vec<ModelIndex>>>;

    /// Loads a model; returns when it is warm.
    fn load(&self, request: RepositoryModelLoadRequest) -> BoxFuture<'_, Result<()>>;

    /// Unloads a model.
    fn unload<'a>(&'a self, model: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Its actors at and below a path; empty: all.
    fn actors<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Vec<Actor>>>;

    /// Restarts the actor at a path.
    fn restart<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<()>>;

    /// The model card of a version.
    fn card<'a>(&'a self, model: &'a str, version: Option<u64>) -> BoxFuture<'a, Result<GetModelCardResponse>>;

    /// Starts its drain.
    fn drain(&self) -> BoxFuture<'_, Result<()>>;
}
