//! Metrics that nobody ever scrapes.

use futures::StreamExt;
use sensorium_tests::{Ask, Repository, Server, ServerOptions};

/// Rows of a request, each of which is a batch of its own: three samples each.
const ROWS: usize = 64;
const REQUESTS: usize = 12_000;
/// Requests before memory is measured first: pools, caches and the allocator's own pages grow to their size.
const WARM_UP: usize = REQUESTS / 3;
/// What those samples would take at least, if they were kept.
const KEPT: usize = REQUESTS * ROWS * 3 * 8;

#[tokio::test]
async fn many_requests_without_a_scrape_leave_nothing_behind() {
    let repository = Repository::new().copy(
        "identity",
        "rows",
        &[("batching.max_batch_size", "1"), ("batching.max_queue_size", "100000")],
    );
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    let ask = async || {
        let rows = i64::try_from(ROWS).unwrap();
        client.infer(Ask::of("rows").fp32("INPUT0", &[rows, 16], &vec![1.0; ROWS * 16])).await.unwrap();
    };
    let many = async |count: usize| {
        futures::stream::iter(0..count).for_each_concurrent(4, |_| ask()).await;
    };
    many(WARM_UP).await;
    let before = server.resident_bytes();
    many(REQUESTS).await;
    let grown = usize::try_from(server.resident_bytes().saturating_sub(before)).unwrap();
    assert!(grown < KEPT / 2, "{} kB more after {REQUESTS} requests", grown >> 10);
}
