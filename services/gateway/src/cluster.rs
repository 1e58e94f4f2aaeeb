//! The cluster as this gateway sees it, for operators.

use sensorium_actors::route::Router;
use sensorium_cluster::membership::{Link, Registration, Role};
use sensorium_proto::admin::{Dependency, GetClusterResponse, HeldVersion, Node, Route, RouteWorker};

pub fn describe(node: &str, router: &Router) -> GetClusterResponse {
    let membership = router.membership();
    let view = membership.watch().borrow().clone();
    let routes = router.models().into_iter().map(|model| Route {
        workers: router
            .workers(&model)
            .into_iter()
            .map(|seen| RouteWorker {
                worker: seen.worker,
                in_flight: seen.in_flight,
                latency_seconds: seen.latency_seconds,
                ejected: seen.ejected,
                reachable: seen.reachable,
            })
            .collect(),
        model,
    });
    let link: Link = *membership.link().borrow();
    let register = Dependency {
        name: "etcd".to_owned(),
        state: match link {
            _ if membership.is_embedded() => "embedded",
            Link::Current => "ok",
            Link::Stale { .. } => "stale",
        }
        .to_owned(),
        seconds: link.stale_for().unwrap_or_default().as_secs_f64(),
    };
    GetClusterResponse {
        node: node.to_owned(),
        nodes: view.values().map(describe_node).collect(),
        routes: routes.collect(),
        dependencies: vec![register],
        in_flight: router.admission().in_flight() as u64,
        ..GetClusterResponse::default()
    }
}

fn describe_node(registration: &Registration) -> Node {
    let role = match registration.role {
        Role::Gateway => "gateway",
        Role::Worker => "worker",
    };
    let models = registration.models.iter().map(|held| HeldVersion {
        name: held.name.clone(),
        version: held.version.to_string(),
        modality: held.modality.clone(),
        state: held.state.clone(),
        reason: held.reason.clone(),
    });
    Node {
        name: registration.node.clone(),
        role: role.to_owned(),
        address: registration.address.clone(),
        http: registration.http.clone(),
        zone: registration.zone.clone(),
        build: registration.build.clone(),
        draining: registration.draining,
        capacity: registration.capacity,
        models: models.collect(),
    }
}
