//! The cluster as this gateway sees it, for operators.

use std::time::Duration;

use sensorium_actors::jobs::Jobs;
use sensorium_actors::route::Router;
use sensorium_cluster::health::Health;
use sensorium_cluster::membership::{Registration, Role};
use sensorium_proto::admin::{Dependency, GetClusterResponse, HeldVersion, Node, Route, RouteWorker};

pub(crate) fn describe(node: &str, router: &Router, jobs: Option<&Jobs>) -> GetClusterResponse {
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
    let outside = outside(router, jobs).into_iter().map(|(name, health)| {
        let reason = match name {
            "etcd" => membership.trouble(),
            "nats" => jobs.map(|jobs| jobs.store().trouble()).unwrap_or_default(),
            "redis" => router.cache().map(|cache| cache.trouble()).unwrap_or_default(),
            _ => String::new(),
        };
        dependency(name, health, reason)
    });
    let cache = router.cache();
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

/// How etcd, NATS and Redis fare, those of them that are used.
fn outside(router: &Router, jobs: Option<&Jobs>) -> Vec<(&'static str, Health)> {
    let states = [
        ("etcd", Some(router.membership().health())),
        ("nats", jobs.map(|jobs| jobs.store().health())),
        ("redis", router.cache().map(|cache| cache.health())),
    ];
    states.into_iter().filter_map(|(name, health)| Some((name, health?))).collect()
}

/// Tells metrics, once a second, how etcd, NATS and Redis fare. Never returns.
pub async fn observe(router: Router, jobs: Option<Jobs>) {
    let mut turns = tokio::time::interval(Duration::from_secs(1));
    loop {
        turns.tick().await;
        for (name, health) in outside(&router, jobs.as_ref()) {
            let well = if matches!(health, Health::Embedded | Health::Ok) { 1.0 } else { 0.0 };
            metrics::gauge!("sensorium_dependency_up", "dependency" => name).set(well);
            let seconds = health.unwell_for().as_secs_f64();
            metrics::gauge!("sensorium_dependency_unwell_seconds", "dependency" => name).set(seconds);
        }
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
