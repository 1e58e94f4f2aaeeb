//! A cluster of real processes on a real etcd, and what happens to requests when parts of it are lost: nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "measured figures belong to the output of a test")]

mod drains;
mod forms;
mod losses;
mod outages;

use sensorium_tests::{Ask, Client, Cluster, Load, Repository};

/// `identity` and `minilm` on two workers, behind as many gateways as asked for.
async fn cluster(gateways: usize, workers: usize) -> Cluster {
    Cluster::start(Repository::new().with(&["identity", "minilm"]), gateways, workers).await
}

/// A steady load of both models; each request may take 20 s.
fn load(client: &Client) -> Load {
    Load::start(client, 6, |caller, turn| match caller % 2 {
        0 => Ask::of("identity").fp32("INPUT0", &[1, 16], &[turn as f32; 16]).deadline(20_000),
        _ => Ask::of("minilm").bytes("text", &[format!("caller {caller} in turn {turn}")]).deadline(20_000),
    })
}

/// Ends a load in which nothing may have failed.
async fn none_failed(load: Load) {
    let (answered, failures) = load.stop().await;
    assert!(failures.is_empty(), "{} of {answered} requests failed: {:?}", failures.len(), failures[0]);
    println!("{answered} requests, none failed");
}
