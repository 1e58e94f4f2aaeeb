//! Faults in random order under a steady load, for as long as one likes: `make chaos`.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use sensorium_tests::{Cluster, Doors, Link, Network};
use tokio::time::Instant;

use super::load_at;
use super::steady::{Steady, models, with_jobs};

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
    NatsOut,
    NatsFrozen,
    RedisOut,
    RedisFrozen,
    Parted,
    CutOff,
    PartedFromEtcd,
    PartedFromNatsAndRedis,
    Slow,
    Lossy,
}

use Fault::*;

const ANYWHERE: [Fault; 12] = [
    WorkerKilled,
    WorkerFrozen,
    WorkerRestarted,
    GatewayKilled,
    GatewayRestarted,
    EtcdOut,
    EtcdEmptied,
    EtcdFrozen,
    NatsOut,
    NatsFrozen,
    RedisOut,
    RedisFrozen,
];
const BETWEEN_HOSTS: [Fault; 6] = [Parted, CutOff, PartedFromEtcd, PartedFromNatsAndRedis, Slow, Lossy];
const WORKERS: usize = 3;
const GATEWAYS: usize = 2;
/// Of each job: enough that most jobs meet a fault.
const ITEMS: usize = 300;

/// A number from the environment.
fn chosen(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} = '{text}', expected a whole number")))
}

async fn sleep(random: &mut SmallRng, seconds: std::ops::Range<f64>) {
    tokio::time::sleep(Duration::from_secs_f64(random.random_range(seconds))).await;
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
        NatsOut | RedisOut => {
            let out = if matches!(fault, NatsOut) { &mut cluster.nats } else { &mut cluster.redis };
            let out = out.as_mut().unwrap();
            out.stop().await;
            sleep(random, 0.0..6.0).await;
            out.resume().await;
        }
        NatsFrozen | RedisFrozen => {
            let frozen = if matches!(fault, NatsFrozen) { &cluster.nats } else { &cluster.redis };
            let process = frozen.as_ref().unwrap().process();
            process.signal("STOP");
            sleep(random, 0.5..6.0).await;
            process.signal("CONT");
        }
        Parted => cluster.network().part(&door, &host),
        CutOff => cluster.network().cut_off(&host),
        PartedFromEtcd => cluster.network().part(&door, "etcd"),
        PartedFromNatsAndRedis => cluster.network().scatter(&[&door, "nats", "redis"]),
        Slow => {
            let delay = Duration::from_millis(random.random_range(20..400));
            cluster.network().set(&host, Link { delay, ..Link::default() });
        }
        Lossy => cluster.network().set(&host, Link { loss: random.random_range(0.01..0.1), ..Link::default() }),
    }
    if matches!(fault, Parted | CutOff | PartedFromEtcd | PartedFromNatsAndRedis | Slow | Lossy) {
        sleep(random, 2.0..10.0).await;
        cluster.network().heal();
        if matches!(fault, Slow | Lossy) {
            cluster.network().set(&host, Link::default());
        }
    }
}

#[tokio::test]
#[ignore = "takes minutes; `make chaos` runs it"]
async fn whatever_happens_no_request_fails_and_no_job_is_lost() {
    let seconds = chosen("SENSORIUM_CHAOS_SECONDS").unwrap_or(180);
    let seed = chosen("SENSORIUM_CHAOS_SEED").unwrap_or_else(rand::random);
    println!("{seconds} s of faults; SENSORIUM_CHAOS_SEED={seed} repeats their order");
    let mut random = SmallRng::seed_from_u64(seed);
    let names = |role: &str, count| (0..count).map(|at| format!("{role}-{at}")).collect::<Vec<_>>();
    let (workers, gateways) = (names("worker", WORKERS), names("gateway", GATEWAYS));
    let hosts: Vec<&str> =
        ["etcd", "nats", "redis"].into_iter().chain(workers.iter().chain(&gateways).map(String::as_str)).collect();
    let mut faults = ANYWHERE.to_vec();
    let cluster = match Network::start(&hosts, &hosts[3..3 + WORKERS]) {
        Some(network) => {
            faults.extend(BETWEEN_HOSTS);
            Cluster::within(network, models()).await
        }
        None => Cluster::new(models()).await,
    };
    let cluster = with_jobs(cluster).await.set("jobs.tasks.concurrency", "2").with_redis().await;
    let mut cluster = cluster.of(GATEWAYS, WORKERS).await;

    let doors = Doors::of(&cluster.gateways).await;
    let load = Steady::beside(load_at(&doors), doors, ITEMS);
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
    load.none_lost().await;
}
