//! Reloading over and over: others leak a gigabyte in fifty cycles.

use sensorium_tests::{Ask, Load, Repository, Server, ServerOptions, chaos};

#[tokio::test]
async fn fifty_cycles_leave_memory_flat() {
    let server = Server::start(ServerOptions::new(Repository::new().with(&["identity", "minilm"]))).await;
    let client = server.client().await;
    let load = Load::start(&client, 1, |_, _| chaos("identity", 1.0, 1.0));
    let mut resident = Vec::new();
    for _ in 0..50 {
        client.unload("minilm").await.unwrap();
        client.load("minilm").await.unwrap();
        client.infer(Ask::text("what was loaded answers")).await.unwrap();
        resident.push(server.resident_bytes() >> 20);
    }
    let (_, failures) = load.stop().await;
    assert!(failures.is_empty(), "a neighbour noticed: {:?}", failures[0]);
    println!("resident MiB after each cycle: {resident:?}");
    // the allocator opens an arena of some 22 MiB for a new device thread now and then, until it has as many as it wants
    // and gives one back now and then: the most of ten cycles tells more than one of them
    let most = |cycles: &[u64]| cycles.iter().copied().max().unwrap();
    let (early, late) = (most(&resident[10..20]), most(&resident[40..]));
    assert!(late < early + 60, "{early} MiB after 20 cycles, {late} MiB after 50");
    assert!(late < resident[0] + 150, "{} MiB after the first cycle, {late} MiB after 50", resident[0]);
}
