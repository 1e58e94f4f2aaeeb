//! `sensorium.admin.v1.Admin`: the supervision tree, and a hand on it.

use std::sync::Arc;

use sensorium_actors::error::Error;
use sensorium_proto::admin::admin_server::Admin;
use sensorium_proto::admin::*;
use tonic::{Request, Response, Status};

use crate::server::Door;
use crate::status::from_error;

/// See the module.
pub struct AdminService {
    door: Arc<Door>,
}

impl AdminService {
    /// The service behind `door`.
    pub fn new(door: Arc<Door>) -> Self {
        Self { door }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_actor_tree(
        &self,
        request: Request<GetActorTreeRequest>,
    ) -> Result<Response<GetActorTreeResponse>, Status> {
        let path = request.into_inner().path;
        let listed = self.door.worker.tree().list(&path);
        if listed.is_empty() {
            return Err(unknown(&self.door, &path));
        }
        let actors = listed.into_iter().map(|actor| Actor {
            path: actor.path,
            kind: actor.kind.to_owned(),
            state: actor.state.as_str().to_owned(),
            restarts: actor.restarts,
            queue_depth: actor.queue_depth,
            uptime_seconds: actor.uptime.as_secs_f64(),
            last_failure: actor.last_failure,
        });
        Ok(Response::new(GetActorTreeResponse { actors: actors.collect() }))
    }

    async fn restart_actor(
        &self,
        request: Request<RestartActorRequest>,
    ) -> Result<Response<RestartActorResponse>, Status> {
        let path = request.into_inner().path;
        let tree = self.door.worker.tree();
        let Some(actor) = tree.list(&path).into_iter().find(|actor| actor.path == path) else {
            return Err(unknown(&self.door, &path));
        };
        if !path.contains('/') {
            let message = format!("'{path}' is a root: it goes with its process");
            return Err(from_error(&Error::FailedPrecondition { reason: "ROOT", message }));
        }
        if !tree.restart(&path) {
            let message = format!("'{path}' does not run: it is {}", actor.state.as_str());
            return Err(from_error(&Error::FailedPrecondition { reason: "NOT_RUNNING", message }));
        }
        tracing::info!(path, "actor restarted by an operator");
        Ok(Response::new(RestartActorResponse {}))
    }

    async fn get_model_card(
        &self,
        request: Request<GetModelCardRequest>,
    ) -> Result<Response<GetModelCardResponse>, Status> {
        let GetModelCardRequest { name, version } = request.into_inner();
        let version = if version.is_empty() { None } else { Some(version.parse()) };
        let version = version.transpose().map_err(|error| crate::status::invalid("version", error))?;
        let served = self.door.worker.served(&name, version).map_err(|error| from_error(&error))?;
        let path = served.directory.join("CARD.md");
        let markdown = tokio::fs::read_to_string(&path).await;
        let markdown = markdown.map_err(|error| {
            let (what, known) = (format!("card of {name}"), format!("{}: {error}", path.display()));
            from_error(&Error::NotFound { what, known })
        })?;
        Ok(Response::new(GetModelCardResponse { version: served.version.to_string(), markdown }))
    }
}

fn unknown(door: &Door, path: &str) -> Status {
    let paths: Vec<String> = door.worker.tree().list("").into_iter().map(|actor| actor.path).collect();
    from_error(&Error::NotFound { what: format!("actor '{path}'"), known: format!("there are {}", paths.join(", ")) })
}
