//! The cluster as this gateway sees it, for operators.

use sensorium_actors::jobs::Jobs;
use sensorium_actors::route::Router;
use sensorium_cluster::health::Health;
use sensorium_cluster::membership::{Registration, Role};
use sensorium_proto::admin::{Dependency, GetClusterResponse, HeldVersion, Node, Route, RouteWorker};

pub fn describe(node: &str, router: &Router, jobs: Option<&Jobs>) -> GetClusterResponse {
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
    let cache = router.cache();
    let outside = [
        ("etcd", Some(membership.health()), membership.trouble()),
        ("nats", jobs.map(|jobs| jobs.store().health()), String::new()),
        ("redis", cache.map(|cache| cache.health()), String::new()),
    ];
    let outside = outside.into_iter().filter_map(|(name, health, reason)| Some(dependency(name, health?, reason)));
    let counts = cache.map(|cache| cache.counts()).unwrap_or_default();
    GetClusterResponse {
        node: node.to_owned(),
        nodes: view.values().map(describe_node).collect(),
        routes: routes.collect(),
        dependencies: outside.collect(),
        in_flight: router.admission().in_flight() as u64,
        cache_hits: counts.hits,
        cache_lookups: counts.lookups,
    }
}

fn dependency(name: &str, health: Health, reason: String) -> Dependency {
    let seconds = health.unwell_for().as_secs_f64();
    Dependency { name: name.to_owned(), state: health.as_str().to_owned(), seconds, reason }
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
