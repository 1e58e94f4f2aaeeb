//! The cache on a real Redis, which dies, hangs and comes back; and what must never be shared.

use std::time::Duration;

use sensorium_tests::{Ask, Authority, Client, Cluster, Node, Outside, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::steady::{Steady, models, with_jobs};

async fn cluster(gateways: usize) -> Cluster {
    Cluster::new(models()).await.with_redis().await.of(gateways, 1).await
}

/// Rows that the workers have embedded.
async fn computed(client: &Client) -> u64 {
    client.statistics("minilm").await.inference_count
}

async fn looked_up(gateway: &Node, outcome: &str) -> f64 {
    gateway.metric("sensorium_cache_lookups_total", &[&format!("outcome=\"{outcome}\"")]).await
}

async fn redis_is(client: &Client, wanted: &str) {
    eventually("the state of Redis", async || {
        let told = client.cluster().await.ok()?;
        told.dependencies.iter().any(|of| of.name == "redis" && of.state == wanted).then_some(())
    })
    .await;
}

fn texts(texts: &[&str]) -> Ask {
    Ask::of("minilm").bytes("text", texts).deadline(20_000)
}

#[tokio::test]
async fn what_one_gateway_has_computed_the_other_finds() {
    let cluster = cluster(2).await;
    let clients = [cluster.gateways[0].client().await, cluster.gateways[1].client().await];
    for client in &clients {
        redis_is(client, "ok").await;
    }
    let first = clients[0].infer(texts(&["one", "two"])).await.unwrap().fp32("embedding");
    let before = computed(&clients[0]).await;
    // written behind the answer's back
    let redis = cluster.redis.as_ref().unwrap();
    eventually("both are in Redis", async || (stored(redis).await == 2).then_some(())).await;
    let swapped = clients[1].infer(texts(&["two", "one"])).await.unwrap().fp32("embedding");
    assert_eq!(computed(&clients[0]).await, before);
    assert_eq!((&swapped[..384], &swapped[384..]), (&first[384..], &first[..384]));
    assert!(looked_up(&cluster.gateways[1], "redis").await >= 2.0);

    // of a batch only what is new is computed, and the order is kept
    let mixed = clients[1].infer(texts(&["three", "two", "three", "one"])).await.unwrap().fp32("embedding");
    assert_eq!(computed(&clients[0]).await, before + 1);
    assert_eq!((&mixed[384..768], &mixed[1152..]), (&first[384..], &first[..384]));
    assert_eq!(mixed[..384], mixed[768..1152]);

    // past the cache on request, and to the very same
    let past = clients[1].infer(texts(&["one"]).set("cache", false)).await.unwrap().fp32("embedding");
    assert_eq!(computed(&clients[0]).await, before + 2);
    assert!(sensorium_tests::cosine(&past, &first[..384]) > 0.9999);
    let told = clients[1].cluster().await.unwrap();
    assert!(told.cache_hits >= 4 && told.cache_lookups > told.cache_hits, "{told:?}");
}

#[tokio::test]
async fn a_redis_that_dies_or_hangs_fails_nobody() {
    let mut cluster = with_jobs(Cluster::new(models()).await).await.with_redis().await.of(1, 1).await;
    let client = cluster.gateways[0].client().await;
    redis_is(&client, "ok").await;
    let load = Steady::at(&client);
    load.answers(50).await;
    load.recovered("quiet");
    cluster.redis.as_ref().unwrap().process().signal("STOP");
    redis_is(&client, "down").await;
    let errors = async |reason: &str| {
        let reason = format!("reason=\"{reason}\"");
        cluster.gateways[0].metric("sensorium_cache_errors_total", &[&reason]).await
    };
    // how many of the answers looked anything up, and so how many it takes to open the circuit, is chance
    eventually("look-ups time out, and then are not even tried", async || {
        load.answers(10).await;
        (errors("timeout").await >= 1.0 && errors("circuit_open").await >= 1.0).then_some(())
    })
    .await;
    load.recovered("Redis hangs");
    cluster.redis.as_ref().unwrap().process().signal("CONT");
    redis_is(&client, "ok").await;
    load.recovered("Redis goes on");

    cluster.redis.as_mut().unwrap().stop().await;
    redis_is(&client, "down").await;
    load.answers(100).await;
    load.recovered("Redis killed");
    cluster.redis.as_mut().unwrap().resume().await;
    redis_is(&client, "ok").await;
    load.none_lost().await;
    let mut turn = 0;
    eventually("answers are written again", async || {
        turn += 1;
        client.infer(texts(&[&format!("after all that, {turn}")])).await.unwrap();
        (stored(cluster.redis.as_ref().unwrap()).await > 0).then_some(())
    })
    .await;
}

/// A Redis that is full, or a replica whose master is dead, goes on answering what it holds.
#[tokio::test]
async fn a_redis_that_takes_no_writes_is_read_on() {
    let redis = Outside::redis(None).await;
    let cluster = with(&format!("redis://{}", redis.address()), &FAR).await;
    let client = cluster.gateways[0].client().await;
    redis_is(&client, "ok").await;
    client.infer(texts(&TEXTS)).await.unwrap();
    eventually("all answers are in Redis", async || (stored(&redis).await == TEXTS.len() as u64).then_some(())).await;
    let reason = async || {
        let told = client.cluster().await.unwrap();
        told.dependencies.into_iter().find(|of| of.name == "redis").unwrap().reason
    };
    let troubles = [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "OOM"),
        // nobody listens there
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "read only replica"),
    ];
    let mut turn = 0;
    for (begins, ends, named) in troubles {
        assert_eq!(say(&redis, begins).await, "+OK");
        eventually("refused writes show", async || {
            turn += 1;
            client.infer(texts(&[&format!("a miss, {turn}")])).await.unwrap();
            let told = client.cluster().await.ok()?;
            told.dependencies.iter().any(|of| of.name == "redis" && of.state == "degraded").then_some(())
        })
        .await;
        assert!(reason().await.contains(named), "{}", reason().await);
        // more misses than hits, each of which is to be written
        for row in TEXTS {
            let before = computed(&client).await;
            turn += 3;
            let misses = [turn, turn + 1, turn + 2].map(|miss| format!("another miss, {miss}"));
            let asked: Vec<&str> = misses.iter().map(String::as_str).chain([row]).collect();
            client.infer(texts(&asked)).await.unwrap();
            assert_eq!(computed(&client).await - before, 3, "{named}: '{row}' is there");
        }
        assert_eq!(say(&redis, ends).await, "+OK");
        redis_is(&client, "ok").await;
        assert_eq!(reason().await, "");
        let held = stored(&redis).await;
        client.infer(texts(&[&format!("written again after {named}")])).await.unwrap();
        eventually("what comes is written again", async || (stored(&redis).await > held).then_some(())).await;
    }
    let log = cluster.gateways[0].process.log();
    assert_eq!(log.matches("redis takes no writes").count(), troubles.len(), "each is said once: {log}");
}

#[tokio::test]
async fn redis_may_speak_tls_and_ask_for_a_certificate() {
    let authority = Authority::new("ours");
    let (redis, secure) = Outside::redis_with_tls(&authority.issue("redis"), &authority.file()).await;
    let own = authority.issue("gateway");
    let [ca, certificate, key] = [authority.file(), own.certificate, own.key].map(|file| file.display().to_string());
    let settings = [("ca", &ca), ("certificate", &certificate), ("key", &key)];
    let mut settings: Vec<_> = settings.map(|(key, file)| (format!("cache.{key}"), file.clone())).to_vec();
    settings.push(("cache.near_bytes".to_owned(), "0".to_owned()));
    settings.push(("cache.timeout_ms".to_owned(), "1000".to_owned()));
    let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    uses(&redis, &format!("rediss://{secure}"), &settings, async || stored(&redis).await).await;
}

/// Says a word to Redis, and gives its answer. A Redis that is promoted ends its connections: it is asked again.
async fn say(redis: &Outside, words: &str) -> String {
    eventually("redis answers", async || {
        let mut stream = TcpStream::connect(redis.address()).await.ok()?;
        stream.write_all(format!("{words}\r\n").as_bytes()).await.ok()?;
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await.ok().filter(|length| *length > 0)?;
        Some(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
    })
    .await
}

async fn stored(redis: &Outside) -> u64 {
    say(redis, "DBSIZE").await.trim_start_matches(':').parse().unwrap()
}

const TEXTS: [&str; 12] = ["one", "two", "three", "4", "5", "6", "7", "8", "9", "10", "11", "12"];

/// A cluster that uses such a Redis.
async fn with(url: &str, settings: &[(&str, &str)]) -> Cluster {
    let mut cluster = with_jobs(Cluster::new(models()).await).await.set("redis", url);
    for (key, value) in settings {
        cluster = cluster.set(key, value);
    }
    cluster.of(1, 1).await
}

/// A gateway with such a Redis, whose answers it must find there.
async fn uses(redis: &Outside, url: &str, settings: &[(&str, &str)], count: impl AsyncFn() -> u64) {
    let cluster = with(url, settings).await;
    let client = cluster.gateways[0].client().await;
    redis_is(&client, "ok").await;
    client.infer(texts(&TEXTS)).await.unwrap();
    eventually("all answers are in Redis", async || (count().await == TEXTS.len() as u64).then_some(())).await;
    // without a near-cache every answer comes from Redis
    let before = computed(&client).await;
    client.infer(texts(&["three", "one"])).await.unwrap();
    assert_eq!(computed(&client).await, before, "{url} of {}", redis.address());
}

/// Every answer has to come from Redis, and a busy machine may take its time for it.
const FAR: [(&str, &str); 2] = [("cache.near_bytes", "0"), ("cache.timeout_ms", "1000")];

#[tokio::test]
async fn redis_may_ask_for_a_password() {
    let secret = Outside::redis_with(&["--requirepass", "secret"]).await;
    let url = format!("redis://{}/1", secret.address());
    uses(&secret, &url, &[FAR[0], FAR[1], ("cache.password", "secret")], async || {
        let mut stream = TcpStream::connect(secret.address()).await.unwrap();
        stream.write_all(b"AUTH secret\r\nSELECT 1\r\nDBSIZE\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await.unwrap();
        let said = String::from_utf8_lossy(&answer[..length]).into_owned();
        said.lines().last().and_then(|line| line.trim_start_matches(':').parse().ok()).unwrap_or(0)
    })
    .await;
}

#[tokio::test]
async fn redis_may_be_a_cluster() {
    let masters = [Outside::redis_cluster().await, Outside::redis_cluster().await];
    for (master, slots) in masters.iter().zip(["0 8191", "8192 16383"]) {
        assert_eq!(say(master, &format!("CLUSTER ADDSLOTSRANGE {slots}")).await, "+OK");
    }
    let second = masters[1].address();
    let itself = say(&masters[1], "CLUSTER NODES").await;
    let bus = itself.split_once('@').and_then(|(_, rest)| rest.split([' ', ',']).next()).unwrap();
    let meet = format!("CLUSTER MEET {} {} {bus}", second.ip(), second.port());
    assert_eq!(say(&masters[0], &meet).await, "+OK");
    for master in &masters {
        eventually("the cluster is whole", async || {
            let told = say(master, "CLUSTER INFO").await;
            (told.contains("state:ok") && told.contains("cluster_size:2")).then_some(())
        })
        .await;
    }
    let url = format!("redis+cluster://{}", masters[0].address());
    uses(&masters[0], &url, &FAR, async || stored(&masters[0]).await + stored(&masters[1]).await).await;
    for master in &masters {
        assert!(stored(master).await > 0, "each has its share");
    }
}

/// The sentinels make another one the master when it dies: the cache moves over, and nobody fails meanwhile.
#[tokio::test]
async fn redis_may_stand_behind_sentinels() {
    let mut master = Outside::redis(None).await;
    let replica = Outside::redis_replica(&master).await;
    eventually("the replica follows", async || {
        say(&replica, "INFO replication").await.contains("master_link_status:up").then_some(())
    })
    .await;
    let sentinel = Outside::sentinel(&master, "answers").await;
    let url = format!("redis+sentinel://{}/answers", sentinel.address());
    uses(&master, &url, &FAR, async || stored(&master).await).await;

    let cluster = with(&url, &FAR).await;
    let client = cluster.gateways[0].client().await;
    redis_is(&client, "ok").await;
    let load = Steady::at(&client);
    load.answers(50).await;
    // it tells what it knows every ten seconds: nobody can be promoted whom it does not know
    eventually("the sentinel knows the replica", async || {
        say(&sentinel, "INFO sentinel").await.contains("slaves=1").then_some(())
    })
    .await;
    master.stop().await;
    eventually("the replica is promoted", async || {
        say(&replica, "INFO replication").await.contains("role:master").then_some(())
    })
    .await;
    redis_is(&client, "ok").await;
    load.recovered("a failover of Redis");
    load.none_lost().await;
    let before = stored(&replica).await;
    let mut turn = 0;
    eventually("answers are written to it", async || {
        turn += 1;
        client.infer(texts(&[&format!("after the failover, {turn}")])).await.unwrap();
        (stored(&replica).await > before).then_some(())
    })
    .await;
    let before = computed(&client).await;
    client.infer(texts(&["three", "one"])).await.unwrap();
    assert_eq!(computed(&client).await, before, "what the old master held is found at the new one");
}
