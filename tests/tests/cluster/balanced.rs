//! Gateways hold no state that another lacks: three of them behind a TCP balancer are one.

use std::sync::Arc;

use sensorium_proto::inference::{ModelConfigRequest, RepositoryIndexRequest, RepositoryModelLoadRequest};
use sensorium_tests::{Ask, Balancer, Client, Cluster, Doors, Load, Repository, eventually, within};
use tonic::Code;

use super::steady::{ITEMS, Steady, cluster};

fn ask(turn: usize) -> Ask {
    Ask::of("identity").fp32("INPUT0", &[1, 16], &[turn as f32; 16]).deadline(20_000)
}

/// What a gateway says of models, nodes and figures, without what differs from moment to moment.
async fn told(client: &Client) -> (Vec<String>, Vec<String>, Vec<(String, String, String)>, u64) {
    let status = client.cluster().await.unwrap();
    let nodes = status.nodes.iter().map(|node| format!("{} {} {}", node.name, node.role, node.models.len())).collect();
    let routes = status.routes.iter().map(|route| format!("{} {}", route.model, route.workers.len())).collect();
    let index = within(client.inference.clone().repository_index(RepositoryIndexRequest::default())).await.unwrap();
    let index = index.into_inner().models.into_iter().map(|model| (model.name, model.version, model.state)).collect();
    (nodes, routes, index, client.statistics("identity").await.inference_count)
}

/// What a gateway says that a model's largest batch is.
async fn largest_batch(client: &Client) -> i32 {
    let request = ModelConfigRequest { name: "chaos".to_owned(), version: String::new() };
    let answer = within(client.inference.clone().model_config(request)).await.unwrap().into_inner();
    answer.config.unwrap().max_batch_size
}

#[tokio::test]
async fn what_one_gateway_does_the_others_know() {
    let repository = Repository::new().with(&["identity"]).chaos("chaos", &[("batching.max_batch_size", "4")]);
    let altered = repository.manifest("chaos", &[("batching.max_batch_size", "7")]);
    let cluster = Cluster::start(repository, 3, 2).await;
    let mut clients = Vec::new();
    for gateway in &cluster.gateways {
        clients.push(gateway.client().await);
    }
    for (at, client) in clients.iter().enumerate() {
        for turn in 0..=at {
            client.infer(ask(turn)).await.unwrap();
        }
    }
    let first = told(&clients[0]).await;
    assert_eq!(first.3, 6, "the requests of all gateways");
    for client in &clients {
        assert_eq!(told(client).await, first);
        assert_eq!(largest_batch(client).await, 4);
    }

    let mut request = RepositoryModelLoadRequest { model_name: "chaos".to_owned(), ..Default::default() };
    let text = sensorium_proto::inference::model_repository_parameter::ParameterChoice::StringParam(altered);
    let parameter = sensorium_proto::inference::ModelRepositoryParameter { parameter_choice: Some(text) };
    request.parameters.insert("config".to_owned(), parameter);
    within(clients[0].inference.clone().repository_model_load(request)).await.unwrap();
    let loaded = tokio::time::Instant::now();
    for client in &clients {
        eventually("what was loaded is described", async || (largest_batch(client).await == 7).then_some(())).await;
    }
    assert!(loaded.elapsed().as_secs() < 30, "another gateway described what was replaced for {:?}", loaded.elapsed());

    clients[1].unload("identity").await.unwrap();
    for client in &clients {
        eventually("unloaded", async || client.infer(ask(0)).await.err().filter(|no| no.code() == Code::NotFound))
            .await;
    }
    clients[2].load("identity").await.unwrap();
    for client in &clients {
        eventually("loaded", async || client.infer(ask(0)).await.ok()).await;
    }
}

#[tokio::test]
async fn the_loss_of_a_gateway_behind_a_balancer_costs_a_retry() {
    let mut cluster = cluster(3, 2).await;
    let balancer = Balancer::start(&cluster.gateways).await;
    let address = balancer.address;
    // three callers stay on their connections, three open one for each request
    let mut stay = Vec::new();
    for _ in 0..3 {
        stay.push(Doors::new(vec![Client::connect(address).await]));
    }
    let stay = Arc::new(stay);
    let load = Load::of(6, move |caller, turn| {
        let stay = stay.clone();
        async move {
            match stay.get(caller) {
                Some(doors) => doors.infer(ask(turn)).await.map(drop),
                None => Doors::new(vec![Client::connect(address).await]).infer(ask(turn)).await.map(drop),
            }
        }
    });
    let load = Steady::beside(load, Doors::new(vec![Client::connect(address).await]), ITEMS);
    load.answers(100).await;
    assert!(balancer.connections().iter().all(|&connections| connections > 0), "{:?}", balancer.connections());
    load.recovered("start");
    cluster.gateways[2].process.signal("KILL");
    load.answers(200).await;
    load.recovered("kill -9 of a gateway");
    cluster.gateways[2].resurrect();
    cluster.ready().await;
    let before = balancer.connections()[2];
    eventually("it is used again", async || (balancer.connections()[2] > before).then_some(())).await;
    let exit = cluster.gateways[0].restart().await;
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    cluster.ready().await;
    load.answers(100).await;
    load.recovered("restart of a gateway");
    load.none_lost().await;
}
