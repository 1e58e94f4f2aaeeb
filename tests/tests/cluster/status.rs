//! What an operator sees of a cluster, by whichever gateway.

use sensorium_tests::{Cluster, Repository, Server, chaos, eventually};
use serde_json::Value;

use super::steady::{cluster, models};

/// `sensorium status` at a gateway.
async fn status(cluster: &Cluster, gateway: usize) -> Value {
    let server = format!("http://{}", cluster.gateways[gateway].grpc);
    let (code, out, err) = Server::verb(&["status", "--server", &server, "-o", "json"]).await;
    assert_eq!(code, Some(0), "{err}");
    serde_json::from_str(&out).unwrap()
}

/// A node of it, by its name.
fn node<'a>(status: &'a Value, name: &str) -> &'a Value {
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["name"] == name).unwrap_or_else(|| panic!("no {name} in {status}"))
}

#[tokio::test]
async fn an_operator_sees_the_cluster() {
    let cluster = cluster(2, 2).await;
    let told = status(&cluster, 1).await;
    let names: Vec<&str> =
        told["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["gateway-0", "gateway-1", "worker-0", "worker-1"]);
    let minilm = told["models"].as_array().unwrap().iter().find(|model| model["name"] == "minilm").unwrap();
    assert_eq!((&minilm["replicas"], &minilm["replicas_running"]), (&2.into(), &2.into()), "one at each worker");
    assert_eq!(told["dependencies"][0]["state"], "ok", "{told}");
    let server = format!("http://{}", cluster.gateways[1].grpc);
    let (code, text, err) = Server::verb(&["status", "--server", &server]).await;
    assert!(code == Some(0) && text.contains("worker-0") && text.contains("minilm"), "{text}{err}");
}

#[tokio::test]
async fn every_gateway_has_its_say_whichever_is_asked() {
    let repository = models().chaos("chaos", &[("batching.max_batch_size", "1")]);
    let cluster = Cluster::new(repository).await.with_redis().await.of(2, 1).await;
    let (first, second) = (cluster.gateways[0].client().await, cluster.gateways[1].client().await);
    for client in [&first, &second, &first] {
        client.infer(sensorium_tests::Ask::text("looked up at both")).await.unwrap();
    }
    let calls: Vec<_> = [(&first, 2), (&second, 1)]
        .into_iter()
        .flat_map(|(client, count)| vec![client.clone(); count])
        .map(|client| tokio::spawn(async move { client.infer(chaos("chaos", -250_000.0, 0.0)).await }))
        .collect();
    let told = eventually("all three calls", async || {
        let told = status(&cluster, 1).await;
        (told["in_flight"] == 3).then_some(told)
    })
    .await;
    let of = ["gateway-0", "gateway-1", "worker-0"].map(|name| node(&told, name)["in_flight"].as_u64());
    assert_eq!(of, [Some(2), Some(1), Some(3)], "{told}");
    // a look-up of each gateway was in vain at most
    assert!(told["cache_hit_rate"].as_f64().unwrap() >= 0.3, "{told}");
    assert_eq!(told["gateways_silent"], serde_json::json!([]));
    calls.iter().for_each(tokio::task::JoinHandle::abort);

    cluster.gateways[0].process.signal("STOP");
    // both before its lease ends
    let server = format!("http://{}", cluster.gateways[1].grpc);
    let arguments = ["status", "--server", &server];
    let (told, (_, text, _)) = tokio::join!(status(&cluster, 1), Server::verb(&arguments));
    assert_eq!(told["gateways_silent"], serde_json::json!(["gateway-0"]), "{told}");
    assert_eq!(node(&told, "gateway-0")["in_flight"], Value::Null);
    assert!(text.contains("without gateway-0"), "{text}");
    cluster.gateways[0].process.signal("CONT");
}

#[tokio::test]
async fn an_ejection_is_told_with_the_gateway_that_made_it() {
    let repository = models().chaos("chaos", &[]);
    let cluster = Cluster::start(repository, 2, 1).await;
    let client = cluster.gateways[0].client().await;
    let failing = || chaos("chaos", f32::NEG_INFINITY, 0.0).deadline(20_000);
    let ejected = eventually("the worker is ejected", async || {
        let _ = client.infer(failing()).await;
        let told = status(&cluster, 1).await;
        let ejected = node(&told, "worker-0")["ejected"].clone();
        (ejected != serde_json::json!([])).then_some(ejected)
    })
    .await;
    assert_eq!(ejected, serde_json::json!([{ "model": "chaos", "gateways": ["gateway-0"] }]));
}

#[tokio::test]
async fn whoever_watches_sees_a_gateway_come_back() {
    let mut cluster = Cluster::start(Repository::new().with(&["identity"]), 1, 1).await;
    let server = format!("http://{}", cluster.gateways[0].grpc);
    let watching = Server::verb_that_goes_on(&["status", "--watch", "-o", "json", "--server", &server]);
    // each line is a whole document; those of the log are none
    let seen = || -> Vec<Value> {
        let log = watching.log();
        let lines = log.lines().filter(|line| line.starts_with("{\"name\""));
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    };
    eventually("two looks", async || (seen().len() >= 2).then_some(())).await;
    cluster.gateways[0].process.signal("KILL");
    eventually("it says that nobody answers", async || watching.log().contains("trying again").then_some(())).await;
    cluster.gateways[0].resurrect();
    cluster.ready().await;
    let before = seen().len();
    eventually("it sees it again", async || (seen().len() >= before + 2).then_some(())).await;

    // times are those since the look before
    let client = cluster.gateways[0].client().await;
    let of_identity = |told: &Value| -> Value {
        let models = told["models"].as_array().unwrap();
        models.iter().find(|model| model["name"] == "identity").unwrap().clone()
    };
    client.infer(chaos("identity", 0.0, 0.0)).await.unwrap();
    let quiet = eventually("a look after which nobody asked", async || {
        let seen = seen();
        let last = of_identity(seen.last()?);
        (last["requests"] == 1 && last["mean_compute_seconds"].is_null()).then_some(seen.len())
    })
    .await;
    assert!(seen()[..quiet].iter().any(|told| of_identity(told)["mean_compute_seconds"].is_number()));
}
