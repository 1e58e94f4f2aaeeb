//! Overload: quotas, fair shares, priorities, deadlines that cannot be met, and limits that follow what a model bears.

use std::sync::Arc;
use std::time::Duration;

use sensorium_tests::{Ask, Client, Load, Refusal, Repository, Server, ServerOptions, chaos, eventually};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::keys::{infer, key};

/// One row at a time, so that the rest waits.
const SINGLE: (&str, &str) = ("batching.max_batch_size", "1");

/// A server with `chaos`, and the keys of these tenants.
async fn server(tenants: &[&str], settings: &[(&str, &str)]) -> (Server, Vec<Arc<str>>) {
    let mut options = ServerOptions::new(Repository::new().chaos("chaos", &[SINGLE]));
    let (mut entries, mut keys) = (String::new(), Vec::new());
    for tenant in tenants {
        let (entry, secret) = key(&[tenant, "--tenant", tenant]).await;
        entries.push_str(&entry);
        entries.push('\n');
        keys.push(secret.into());
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    if !tenants.is_empty() {
        std::fs::write(file.path(), entries).unwrap();
        options = options.set("auth.keys", &file.path().display().to_string());
    }
    let options = settings.iter().fold(options, |options, (key, value)| options.set(key, value));
    (Server::start(options).await, keys)
}

/// Takes so many milliseconds.
fn ask(milliseconds: u16) -> Ask {
    chaos("chaos", -f32::from(milliseconds), 0.0)
}

/// Callers of a tenant that heed no refusal for long.
fn load(client: &Client, key: Option<&Arc<str>>, callers: usize, milliseconds: u16) -> Load {
    let (client, key) = (client.clone(), key.cloned());
    Load::of(callers, move |_, _| {
        let (client, key) = (client.clone(), key.clone());
        async move {
            let answer = infer(&client, key.as_deref(), ask(milliseconds)).await;
            if answer.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            answer
        }
    })
}

fn reasons(failures: Vec<Status>) -> Vec<String> {
    failures.into_iter().map(|status| Refusal::from(status).reason.unwrap_or_default()).collect()
}

#[tokio::test]
async fn a_quota_is_kept_and_says_when_the_next_may_come() {
    let quota = [("tenants.acme.requests_per_second", "0.5"), ("tenants.acme.burst", "3")];
    let (server, keys) = server(&["acme", "other"], &quota).await;
    let client = server.client().await;
    let mut passed = 0;
    let refusal = loop {
        match infer(&client, Some(&keys[0]), ask(0)).await {
            Ok(()) => passed += 1,
            Err(status) => break Refusal::from(status),
        }
        assert!(passed < 1000, "there is no quota");
    };
    assert!(passed >= 3, "{passed}");
    refusal.is_retriable(Code::ResourceExhausted, "QUOTA");
    assert!(refusal.message.contains("acme"), "{refusal:?}");
    let wait = refusal.retry.unwrap();
    assert!(wait <= Duration::from_secs(2), "{wait:?}");
    // others have nothing to do with it
    for _ in 0..10 {
        infer(&client, Some(&keys[1]), ask(0)).await.unwrap();
    }
    tokio::time::sleep(wait).await;
    infer(&client, Some(&keys[0]), ask(0)).await.unwrap();
    assert!(server.metric("sensorium_admission_refused_total", &["reason=\"quota\""]).await >= 1.0);
}

#[tokio::test]
async fn a_tenant_has_so_many_requests_in_work() {
    let (server, keys) = server(&["acme", "other"], &[("tenants.acme.max_inflight", "2")]).await;
    let client = server.client().await;
    let mut inside = JoinSet::new();
    for _ in 0..2 {
        let (client, key) = (client.clone(), keys[0].clone());
        inside.spawn(async move { infer(&client, Some(&key), ask(60_000)).await });
    }
    in_flight(&server, 2.0).await;
    let refusal = Refusal::of(infer(&client, Some(&keys[0]), ask(0)).await);
    refusal.is_retriable(Code::ResourceExhausted, "QUOTA");
    inside.shutdown().await;
    infer(&client, Some(&keys[1]), ask(0)).await.unwrap();
    eventually("those inside have left", async || infer(&client, Some(&keys[0]), ask(0)).await.ok()).await;
}

async fn in_flight(server: &Server, count: f64) {
    server.metric_becomes("sensorium_inflight_requests", &[], count).await;
}

/// The gateway is full of a tenant's requests, and another one notices nothing of it.
#[tokio::test]
async fn a_greedy_tenant_is_refused_and_a_small_one_is_not() {
    let (server, keys) = server(&["greedy", "small"], &[("limits.max_inflight", "16")]).await;
    let client = server.client().await;
    let small = async || infer(&client, Some(&keys[1]), ask(0)).await;
    small().await.unwrap();
    let greedy = load(&client, Some(&keys[0]), 40, 10);
    greedy.answers(20).await;
    for turn in 0..40 {
        small().await.unwrap_or_else(|status| panic!("turn {turn}: {:?}", Refusal::from(status)));
    }
    greedy.answers(20).await;
    let (answered, failures) = greedy.stop().await;
    let reasons = reasons(failures);
    assert!(answered > 40 && reasons.iter().any(|reason| reason == "FAIR_SHARE"), "{answered}: {reasons:?}");
    assert!(reasons.iter().all(|reason| reason == "FAIR_SHARE" || reason == "CONCURRENCY_LIMIT"), "{reasons:?}");
}

#[tokio::test]
async fn low_priorities_are_refused_first() {
    let (server, _) = server(&[], &[("limits.max_inflight", "16")]).await;
    let client = server.client().await;
    let ask = |priority: i64| ask(60_000).set("priority", priority);
    let mut inside = JoinSet::new();
    let mut count = 0.0;
    // three quarters are for all, the last sixteenth is for the highest alone
    for (priority, most) in [(3, 12), (0, 15), (1, 16)] {
        while inside.len() < most {
            let (client, ask) = (client.clone(), ask(priority));
            inside.spawn(async move { client.infer(ask).await });
            count += 1.0;
            in_flight(&server, count).await;
        }
        let refusal = Refusal::of(client.infer(ask(priority)).await);
        let reason = if most < 15 { "LOW_PRIORITY" } else { "CONCURRENCY_LIMIT" };
        refusal.is_retriable(Code::ResourceExhausted, reason);
    }
    inside.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_in_time_is_refused_at_once() {
    let (server, _) = server(&[], &[("capacity", "1")]).await;
    let client = server.client().await;
    let blocked = || {
        let client = client.clone();
        tokio::spawn(async move { client.infer(ask(60_000)).await })
    };
    // what is known is forgotten after ten seconds: a machine that stalls may need another try
    let (refusal, executed) = eventually("a refusal at once", async || {
        client.infer(ask(5000)).await.unwrap();
        let executed = client.statistics("chaos").await.execution_count;
        let blocker = blocked();
        client.in_work("chaos", 1).await;
        let refusal = Refusal::of(client.infer(chaos("chaos", 0.0, 0.0).deadline(4000)).await);
        blocker.abort();
        client.in_work("chaos", 0).await;
        (refusal.code == Code::ResourceExhausted).then_some((refusal, executed))
    })
    .await;
    refusal.is_retriable(Code::ResourceExhausted, "DEADLINE_UNMEETABLE");
    assert_eq!(client.statistics("chaos").await.execution_count, executed, "neither of the two was executed");
    // nobody is at work: it is tried, however slow it was
    client.infer(chaos("chaos", 0.0, 0.0).deadline(4000)).await.unwrap();
    assert!(server.metric("sensorium_admission_refused_total", &["reason=\"deadline\""]).await >= 1.0);
}

#[tokio::test]
async fn the_limit_of_a_model_follows_what_it_bears() {
    let settings = [("capacity", "1"), ("limits.min_inflight", "2"), ("limits.patience_ms", "300")];
    let (server, _) = server(&[], &settings).await;
    let client = server.client().await;
    let limit = async || server.metric("sensorium_admission_limit", &["model=\"chaos\""]).await;
    let quick = load(&client, None, 2, 0);
    quick.answers(200).await;
    quick.stop().await;
    let before = limit().await;
    assert!(before > 24.0, "{before}");

    // a request takes a fortieth of a second by itself, and a whole one in company
    let crowd = load(&client, None, 40, 25);
    eventually("a limit below what comes", async || (limit().await < 24.0).then_some(())).await;
    crowd.answers(20).await;
    let (_, failures) = crowd.stop().await;
    let reasons = reasons(failures);
    assert!(!reasons.is_empty() && reasons.iter().all(|reason| reason == "CONCURRENCY_LIMIT"), "{reasons:?}");

    let quick = load(&client, None, 2, 0);
    eventually("a limit above what comes", async || (limit().await > 40.0).then_some(())).await;
    let (_, failures) = quick.stop().await;
    assert!(failures.is_empty(), "{failures:?}");
}
