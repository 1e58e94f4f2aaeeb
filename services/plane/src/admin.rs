//! `sensorium.admin.v1.Admin`: the supervision trees, and a hand on them. The same at a gateway, for all workers, and at
//! a worker, for itself.

use std::sync::Arc;

use sensorium_actors::error::Error;
use sensorium_proto::admin::admin_server::Admin;
use sensorium_proto::admin::*;
use tonic::{Request, Response, Status};

use crate::convert;
use crate::error::status;
use crate::fleet::Fleet;
use crate::operator::Act;

/// Tells of the cluster, as a gateway sees it.
pub type Cluster = Arc<dyn Fn() -> GetClusterResponse + Send + Sync>;

/// See the module.
pub struct AdminService {
    fleet: Fleet,
    cluster: Option<Cluster>,
}

impl AdminService {
    /// The service over these workers; only a gateway knows the cluster.
    pub fn new(fleet: Fleet, cluster: Option<Cluster>) -> Self {
        Self { fleet, cluster }
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn get_actor_tree(
        &self,
        request: Request<GetActorTreeRequest>,
    ) -> Result<Response<GetActorTreeResponse>, Status> {
        let path = request.into_inner().path;
        let actors = self.fleet.actors(&path).await;
        if actors.is_empty() {
            return Err(status(&self.fleet.unknown_actor(&path).await));
        }
        Ok(Response::new(GetActorTreeResponse { actors }))
    }

    async fn restart_actor(
        &self,
        request: Request<RestartActorRequest>,
    ) -> Result<Response<RestartActorResponse>, Status> {
        let act = Act::begin(&request, "restart", &request.get_ref().path);
        let restarted = self.fleet.restart(&request.into_inner().path).await;
        act.end(restarted.map_err(|error| status(&error)))?;
        Ok(Response::new(RestartActorResponse {}))
    }

    async fn get_model_card(
        &self,
        request: Request<GetModelCardRequest>,
    ) -> Result<Response<GetModelCardResponse>, Status> {
        let GetModelCardRequest { name, version } = request.into_inner();
        let version = convert::version(&version, "version").map_err(|error| status(&error))?;
        let card = self.fleet.card(&name, version).await.map_err(|error| status(&error))?;
        Ok(Response::new(card))
    }

    async fn get_cluster(&self, _: Request<GetClusterRequest>) -> Result<Response<GetClusterResponse>, Status> {
        match &self.cluster {
            Some(cluster) => Ok(Response::new(cluster())),
            None => Err(status(&Error::Unimplemented("a worker does not know the cluster: ask a gateway".to_owned()))),
        }
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let act = Act::begin(&request, "drain", &request.get_ref().node);
        let drained = async { self.fleet.get(&request.get_ref().node)?.drain().await };
        act.end(drained.await.map_err(|error| status(&error)))?;
        Ok(Response::new(DrainResponse {}))
    }
}
