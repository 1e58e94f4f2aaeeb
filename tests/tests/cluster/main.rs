//! A cluster of real processes on a real etcd, and what happens to requests when parts of it are lost: nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "measured figures belong to the output of a test")]

mod balanced;
mod cache;
mod chaos;
mod drains;
mod elsewhere;
mod events;
mod forms;
mod jobs;
mod local;
mod losses;
mod nospace;
mod outages;
mod overload;
mod partitions;
mod quotas;
mod register;
mod replicas;
mod secure;
mod status;
mod steady;
mod subsets;
mod tasks;
mod travels;
mod unknown;

use sensorium_tests::{Ask, Client, Doors, Load};

/// What a steady load asks: both models; each request may take 20 s.
fn ask(caller: usize, turn: usize) -> Ask {
    match caller % 2 {
        0 => Ask::of("identity").fp32("INPUT0", &[1, 16], &[turn as f32; 16]).deadline(20_000),
        _ => Ask::of("minilm").bytes("text", &[format!("caller {caller} in turn {turn}")]).deadline(20_000),
    }
}

/// A steady load at one gateway.
fn load(client: &Client) -> Load {
    Load::start(client, 6, ask)
}

/// The same of callers that turn to another gateway when one is not to be had.
fn load_at(doors: &Doors) -> Load {
    let doors = doors.clone();
    Load::of(6, move |caller, turn| {
        let doors = doors.clone();
        async move { doors.infer(ask(caller, turn)).await.map(drop) }
    })
}

/// Ends a load in which nothing may have failed.
async fn none_failed(load: Load) {
    let (answered, failures) = load.stop().await;
    assert!(failures.is_empty(), "{} of {answered} requests failed: {:?}", failures.len(), failures[0]);
    println!("{answered} requests, none failed");
}
