//! Faults in random order under a steady load, for as long as one likes: `make chaos`.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use sensorium_tests::jobs::header;
use sensorium_tests::{Cluster, Doors, Link, Network, Repository, eventually};
use tokio::time::Instant;

use super::{load_at, none_failed};

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Fault {
    WorkerKilled,
    WorkerFrozen,
    WorkerRestarted,
    GatewayKilled,
    GatewayRestarted,
    EtcdOut,
    EtcdEmptied,
    EtcdFrozen,
    Parted,
    CutOff,
    PartedFromEtcd,
    Slow,
    Lossy,
}

use Fault::*;

const ANYWHERE: [Fault; 8] =
    [WorkerKilled, WorkerFrozen, WorkerRestarted, GatewayKilled, GatewayRestarted, EtcdOut, EtcdEmptied, EtcdFrozen];
const BETWEEN_HOSTS: [Fault; 5] = [Parted, CutOff, PartedFromEtcd, Slow, Lossy];
const WORKERS: usize = 3;
const GATEWAYS: usize = 2;

/// A number from the environment.
fn chosen(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} = '{text}', expected a whole number")))
}

async fn sleep(random: &mut SmallRng, seconds: std::ops::Range<f64>) {
    tokio::time::sleep(Duration::from_secs_f64(random.random_range(seconds))).await;
}

/// What can happen to jobs.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Nats,
    NatsHangs,
    Redis,
    RedisHangs,
    Etcd,
    Worker,
    Gateway,
}

const LOSSES: [Loss; 7] =
    [Loss::Nats, Loss::NatsHangs, Loss::Redis, Loss::RedisHangs, Loss::Etcd, Loss::Worker, Loss::Gateway];

/// Lets something be lost for a while.
async fn lose(loss: Loss, cluster: &mut Cluster, random: &mut SmallRng) {
    let (worker, gateway) = (random.random_range(0..WORKERS), random.random_range(0..GATEWAYS));
    match loss {
        Loss::Nats | Loss::Redis => {
            let lost = if matches!(loss, Loss::Nats) { &mut cluster.nats } else { &mut cluster.redis };
            let lost = lost.as_mut().unwrap();
            lost.stop().await;
            sleep(random, 0.0..6.0).await;
            lost.resume().await;
        }
        Loss::NatsHangs | Loss::RedisHangs => {
            let hangs = if matches!(loss, Loss::NatsHangs) { &cluster.nats } else { &cluster.redis };
            let process = hangs.as_ref().unwrap().process();
            process.signal("STOP");
            sleep(random, 0.5..6.0).await;
            process.signal("CONT");
        }
        Loss::Etcd => {
            cluster.etcd.stop().await;
            sleep(random, 0.0..6.0).await;
            cluster.etcd.resume().await;
        }
        Loss::Worker => {
            cluster.workers[worker].process.signal("KILL");
            sleep(random, 0.0..3.0).await;
            cluster.workers[worker].resurrect();
        }
        Loss::Gateway => {
            cluster.gateways[gateway].process.signal("KILL");
            sleep(random, 0.0..3.0).await;
            cluster.gateways[gateway].resurrect();
        }
    }
}

/// Lets a fault happen, and end.
async fn happen(fault: Fault, cluster: &mut Cluster, random: &mut SmallRng) {
    let (worker, gateway) = (random.random_range(0..WORKERS), random.random_range(0..GATEWAYS));
    let (host, door) = (format!("worker-{worker}"), format!("gateway-{gateway}"));
    match fault {
        WorkerKilled => {
            cluster.workers[worker].process.signal("KILL");
            sleep(random, 0.0..5.0).await;
            cluster.workers[worker].resurrect();
        }
        WorkerFrozen => {
            cluster.workers[worker].process.signal("STOP");
            sleep(random, 0.5..8.0).await;
            cluster.workers[worker].process.signal("CONT");
        }
        WorkerRestarted => assert_eq!(cluster.workers[worker].restart().await.code, Some(0)),
        GatewayKilled => {
            cluster.gateways[gateway].process.signal("KILL");
            sleep(random, 0.0..5.0).await;
            cluster.gateways[gateway].resurrect();
        }
        GatewayRestarted => assert_eq!(cluster.gateways[gateway].restart().await.code, Some(0)),
        EtcdOut | EtcdEmptied => {
            cluster.etcd.stop().await;
            sleep(random, 0.0..8.0).await;
            if matches!(fault, EtcdEmptied) {
                cluster.etcd.forget();
            }
            cluster.etcd.resume().await;
        }
        EtcdFrozen => {
            cluster.etcd.process().signal("STOP");
            sleep(random, 0.5..8.0).await;
            cluster.etcd.process().signal("CONT");
        }
        Parted => cluster.network().part(&door, &host),
        CutOff => cluster.network().cut_off(&host),
        PartedFromEtcd => cluster.network().part(&door, "etcd"),
        Slow => {
            let delay = Duration::from_millis(random.random_range(20..400));
            cluster.network().set(&host, Link { delay, ..Link::default() });
        }
        Lossy => cluster.network().set(&host, Link { loss: random.random_range(0.01..0.1), ..Link::default() }),
    }
    if matches!(fault, Parted | CutOff | PartedFromEtcd | Slow | Lossy) {
        sleep(random, 2.0..10.0).await;
        cluster.network().heal();
        if matches!(fault, Slow | Lossy) {
            cluster.network().set(&host, Link::default());
        }
    }
}

#[tokio::test]
#[ignore = "takes minutes; `make chaos` runs it"]
async fn whatever_happens_no_request_fails() {
    let seconds = chosen("SENSORIUM_CHAOS_SECONDS").unwrap_or(180);
    let seed = chosen("SENSORIUM_CHAOS_SEED").unwrap_or_else(rand::random);
    println!("{seconds} s of faults; SENSORIUM_CHAOS_SEED={seed} repeats their order");
    let mut random = SmallRng::seed_from_u64(seed);
    let names = |role: &str, count| (0..count).map(|at| format!("{role}-{at}")).collect::<Vec<_>>();
    let (workers, gateways) = (names("worker", WORKERS), names("gateway", GATEWAYS));
    let hosts: Vec<&str> = ["etcd"].into_iter().chain(workers.iter().chain(&gateways).map(String::as_str)).collect();
    let repository = Repository::new().with(&["identity", "minilm"]);
    let mut faults = ANYWHERE.to_vec();
    let mut cluster = match Network::start(&hosts, &hosts[1..=WORKERS]) {
        Some(network) => {
            faults.extend(BETWEEN_HOSTS);
            Cluster::within(network, repository).await
        }
        None => Cluster::new(repository).await,
    };
    workers.iter().for_each(|_| cluster.add_worker(&[]));
    gateways.iter().for_each(|_| cluster.add_gateway());
    cluster.ready().await;

    let doors = Doors::of(&cluster.gateways).await;
    let load = load_at(&doors);
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        load.answers(100).await;
        load.recovered("quiet");
        let fault = *faults.choose(&mut random).unwrap();
        println!("{fault:?}");
        happen(fault, &mut cluster, &mut random).await;
        cluster.ready().await;
        load.recovered(&format!("{fault:?}"));
    }
    none_failed(load).await;
}

#[tokio::test]
#[ignore = "takes minutes; `make chaos` runs it"]
async fn whatever_is_lost_no_job_is() {
    const ITEMS: usize = 300;
    let seconds = chosen("SENSORIUM_CHAOS_SECONDS").unwrap_or(180);
    let seed = chosen("SENSORIUM_CHAOS_SEED").unwrap_or_else(rand::random);
    println!("{seconds} s of losses; SENSORIUM_CHAOS_SEED={seed} repeats their order");
    let mut random = SmallRng::seed_from_u64(seed);
    let repository = Repository::new().with(&["identity", "minilm"]);
    let cluster = Cluster::new(repository).await.set("understand.text_guard", "").set("jobs.tasks.concurrency", "2");
    let mut cluster = cluster.with_nats().await.with_redis().await.of(GATEWAYS, WORKERS).await;
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut jobs = 0;
    while Instant::now() < until {
        let loss = *LOSSES.choose(&mut random).unwrap();
        let (key, items) = (format!("job-{jobs}"), super::jobs::texts(&format!("job-{jobs}"), ITEMS));
        jobs += 1;
        // whoever hears nothing asks again, at whichever gateway there is
        let doors = Doors::of(&cluster.gateways).await;
        let submitting = tokio::spawn(async move {
            loop {
                if let Ok(job) = doors.any().submit(header(&key), items.clone()).await {
                    return job;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        println!("{loss:?}");
        sleep(&mut random, 0.0..1.0).await;
        lose(loss, &mut cluster, &mut random).await;
        cluster.ready().await;
        let job = submitting.await.unwrap();
        let client = cluster.gateways[0].client().await;
        let over = eventually("the job is over", async || client.finish(&job.id).await.ok()).await;
        super::jobs::complete(&client, &over, ITEMS).await;
    }
    println!("{jobs} jobs of {ITEMS} items, none lost, none doubled");
}
