//! Routing at the size of docs/SCALING.md, whose figures these are: 1,000 workers and 100 gateways, each with the view
//! that it would have. To get them again: `cargo test --release -p sensorium-actors --test scale -- --nocapture`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and these tell figures")]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sensorium_actors::admission::{self, Admission};
use sensorium_actors::error::{Error, Result};
use sensorium_actors::request::{Context, Reply, ReplyStream, Request};
use sensorium_actors::route::candidate::Candidate;
use sensorium_actors::route::client::Client;
use sensorium_actors::route::subset::Subset;
use sensorium_actors::route::table::{Table, Wish};
use sensorium_actors::route::{Options, Router};
use sensorium_actors::supervision::tree::Tree;
use sensorium_cluster::bus::Bus;
use sensorium_cluster::membership::{Held, Lease, Membership, Registration, Role, View};

const WORKERS: usize = 1000;
const GATEWAYS: usize = 100;
const SIZE: usize = 64;
/// Requests in work at each worker, on average.
const BUSY: usize = 3;

struct Nobody(String);

impl Client for Nobody {
    fn name(&self) -> &str {
        &self.0
    }

    fn infer<'a>(&'a self, _: &'a Request, _: &'a Context) -> BoxFuture<'a, Result<Reply>> {
        Box::pin(async { Err(Error::Cancelled) })
    }

    fn stream(&self, _: Request, _: Context) -> BoxFuture<'_, Result<ReplyStream>> {
        Box::pin(async { Err(Error::Cancelled) })
    }
}

fn node(name: String, role: Role, zone: &str) -> Registration {
    let held = Held { name: "m".into(), version: 1, state: "READY".into(), ..Held::default() };
    let models = if role == Role::Worker { vec![held] } else { Vec::new() };
    Registration { node: name, role, zone: zone.into(), capacity: 1, models, ..Registration::default() }
}

/// A cluster whose nodes stand in these zones by turns.
fn view(workers: usize, gateways: usize, zones: &[&str]) -> View {
    let workers = (0..workers).map(|n| node(format!("worker-{n:04}"), Role::Worker, zones[n % zones.len()]));
    let gateways = (0..gateways).map(|n| node(format!("gateway-{n:03}"), Role::Gateway, zones[n % zones.len()]));
    Arc::new(workers.chain(gateways).map(|node| (node.node.clone(), node)).collect())
}

fn of_role(view: &View, role: Role) -> Vec<&Registration> {
    view.values().filter(|node| node.role == role).collect()
}

/// Whom each gateway calls.
type Calls<'a> = BTreeMap<&'a str, Vec<&'a str>>;

fn names<'a>(nodes: &[&'a Registration]) -> Vec<&'a str> {
    nodes.iter().map(|node| node.node.as_str()).collect()
}

fn ours(view: &View) -> Calls<'_> {
    let workers = of_role(view, Role::Worker);
    let called = |gateway: &&Registration| {
        let subset = Subset::new(&gateway.node, &gateway.zone, SIZE, view);
        names(&subset.of("m", workers.clone()))
    };
    of_role(view, Role::Gateway).iter().map(|gateway| (gateway.node.as_str(), called(gateway))).collect()
}

fn hash(of: &[&str]) -> [u8; 32] {
    *blake3::hash(of.join("/").as_bytes()).as_bytes()
}

/// The highest random weights of a gateway (Thaler and Ravishankar, 1996), as in gRPC's random subsetting.
fn rendezvous(view: &View) -> Calls<'_> {
    let called = |gateway: &str| {
        let mut workers = names(&of_role(view, Role::Worker));
        workers.sort_by_cached_key(|worker| hash(&[gateway, worker]));
        workers.truncate(SIZE);
        workers
    };
    names(&of_role(view, Role::Gateway)).into_iter().map(|gateway| (gateway, called(gateway))).collect()
}

/// Rounds of disjoint subsets, workers shuffled anew in each ("Site Reliability Engineering", chapter 20).
fn rounds(view: &View) -> Calls<'_> {
    let called = |place: usize| {
        let mut workers = names(&of_role(view, Role::Worker));
        let subsets = workers.len() / SIZE;
        let round = (place / subsets).to_string();
        workers.sort_by_cached_key(|worker| hash(&[&round, worker]));
        workers[place % subsets * SIZE..][..SIZE].to_vec()
    };
    let gateways = names(&of_role(view, Role::Gateway));
    gateways.into_iter().enumerate().map(|(place, gateway)| (gateway, called(place))).collect()
}

/// The fewest and the most gateways of a worker.
fn spread(calls: &Calls<'_>, view: &View) -> (usize, usize) {
    let mut counts: HashMap<&str, usize> = names(&of_role(view, Role::Worker)).iter().map(|&name| (name, 0)).collect();
    calls.values().flatten().for_each(|worker| *counts.get_mut(worker).unwrap() += 1);
    (*counts.values().min().unwrap(), *counts.values().max().unwrap())
}

fn pairs<'a>(calls: &Calls<'a>) -> BTreeSet<(&'a str, &'a str)> {
    calls.iter().flat_map(|(gateway, called)| called.iter().map(move |worker| (*gateway, *worker))).collect()
}

/// Pairs that are called after a change and were not before: connections to make.
fn moved(before: &Calls<'_>, after: &Calls<'_>) -> usize {
    pairs(after).difference(&pairs(before)).count()
}

#[test]
fn who_calls_whom() {
    type Way = (&'static str, for<'a> fn(&'a View) -> Calls<'a>);
    let ways: [Way; 3] = [("windows of a ring (ours)", ours), ("rendezvous", rendezvous), ("rounds (SRE)", rounds)];
    let all = view(WORKERS, GATEWAYS, &[""]);
    println!("way: pairs, gateways of a worker, new pairs when a worker leaves / a gateway comes / 100 workers come");
    let mut figures = Vec::new();
    for (name, way) in ways {
        let calls = way(&all);
        let (fewest, most) = spread(&calls, &all);
        let total = pairs(&calls).len();
        // any worker may be the one that leaves
        let leaves = (0..10).map(|n| {
            let mut without = (*all).clone();
            without.remove(&format!("worker-{:04}", n * 97));
            moved(&calls, &way(&Arc::new(without)))
        });
        let leaves = leaves.sum::<usize>() / 10;
        let (gateway, grown) = (view(WORKERS, GATEWAYS + 1, &[""]), view(WORKERS + 100, GATEWAYS, &[""]));
        let (comes, grows) = (moved(&calls, &way(&gateway)), moved(&calls, &way(&grown)));
        println!("{name}: {total}, {fewest} to {most}, {leaves} / {comes} / {grows}");
        figures.push((total, fewest, most, leaves, comes));
    }
    let (total, fewest, most, leaves, comes) = figures[0];
    assert!(total <= GATEWAYS * SIZE * 12 / 10, "{total}");
    assert!(most - fewest <= 1 && most * WORKERS <= total * 11 / 10, "{fewest} to {most}");
    assert!(leaves * 100 <= total && comes * 10 <= total, "{leaves}, {comes} of {total}");
}

/// What a way of spreading requests came to.
struct Load {
    /// Requests of the worker with the most, against the mean.
    total: f64,
    /// The most requests that a worker had at once.
    at_once: u64,
    /// Of requests.
    strangers: f64,
    pick: Duration,
}

/// A steady load, `BUSY` requests in work at each worker on average: each gateway picks from its own table, by what it
/// has itself seen. `share` is how much of the load a gateway gets.
fn simulate(view: &View, size: usize, turns: usize, share: impl Fn(usize) -> f64) -> Load {
    let workers = of_role(view, Role::Worker);
    let mut served: HashMap<String, (u64, AtomicU64)> = HashMap::new();
    for worker in &workers {
        served.insert(worker.node.clone(), (0, AtomicU64::new(0)));
    }
    let gateways = of_role(view, Role::Gateway);
    let tables = gateways.iter().map(|gateway| {
        let called = Subset::new(&gateway.node, &gateway.zone, size, view).of("m", workers.clone());
        let candidate = |worker: &&Registration| {
            let candidate = Candidate::new(worker, "m", Arc::new(Nobody(worker.node.clone())), None);
            candidate.seen.answered(Duration::from_millis(10), 1.0, 0.0);
            Arc::new(candidate)
        };
        Table::new(called.iter().map(candidate).collect())
    });
    let tables: Vec<Table> = tables.collect();
    let shares: Vec<f64> = (0..gateways.len()).map(share).collect();
    let sum: f64 = shares.iter().sum();
    let mut rng = SmallRng::seed_from_u64(1);
    let mut running: VecDeque<Arc<Candidate>> = VecDeque::new();
    let (mut strangers, mut pick, mut at_once) = (0, Duration::ZERO, 0);
    for _ in 0..turns {
        let mut drawn = rng.random_range(0.0..sum);
        let gateway = shares.iter().position(|share| {
            drawn -= share;
            drawn < 0.0
        });
        let gateway = gateway.unwrap_or(shares.len() - 1);
        let wish = Wish { version: 1, zone: &gateways[gateway].zone, ..Wish::default() };
        let began = Instant::now();
        let picked = tables[gateway].pick("m", &wish, &mut rng).unwrap();
        pick += began.elapsed();
        picked.seen.started();
        strangers += usize::from(picked.zone != wish.zone);
        let (total, now) = served.get_mut(picked.client.name()).unwrap();
        *total += 1;
        at_once = at_once.max(now.fetch_add(1, Relaxed) + 1);
        running.push_back(picked);
        if running.len() > BUSY * workers.len() {
            // the longest in work ends: requests of one length
            let ended = running.pop_front().unwrap();
            ended.seen.ended();
            served[ended.client.name()].1.fetch_sub(1, Relaxed);
        }
    }
    #[allow(clippy::cast_precision_loss)]
    let (most, mean) = (served.values().map(|(total, _)| *total).max().unwrap() as f64, turns as f64 / WORKERS as f64);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    Load {
        total: most / mean,
        at_once,
        strangers: f64::from(strangers as u32) / turns as f64,
        pick: pick / u32::try_from(turns).unwrap(),
    }
}

// time stands still: a worker that is idle for long is thought quick again
#[tokio::test(start_paused = true)]
async fn load_is_spread_as_evenly_as_with_all_workers() {
    println!("cluster: most requests of a worker against the mean, most at once, share of strangers, time of a pick");
    let tell = |name: &str, load: &Load| {
        let Load { total, at_once, strangers, pick } = load;
        println!("{name}: {total:.2}, {at_once}, {:.1} %, {:.1} µs", strangers * 100.0, pick.as_secs_f64() * 1e6);
    };
    let even = |_: usize| 1.0;
    // some gateways are given more than others: one in ten three times as much
    let uneven = |gateway: usize| if gateway.is_multiple_of(10) { 3.0 } else { 1.0 };
    let (flat, zones) = (view(WORKERS, GATEWAYS, &[""]), view(WORKERS, GATEWAYS, &["a", "b", "c"]));
    let all = simulate(&flat, 0, 60_000, even);
    tell("all workers", &all);
    let subset = simulate(&flat, SIZE, 300_000, even);
    tell("subsets", &subset);
    let three = simulate(&zones, SIZE, 300_000, even);
    tell("subsets, three zones", &three);
    let lopsided = simulate(&flat, SIZE, 300_000, uneven);
    tell("subsets, one gateway in ten with three times the load", &lopsided);
    for load in [&subset, &three] {
        assert!(load.total < 1.5, "{} times the mean", load.total);
        assert!(load.at_once <= 16, "{} at once, {BUSY} on average", load.at_once);
    }
    assert!(three.strangers < 0.1, "{} left their zone", three.strangers);
    assert!(lopsided.total < 2.0, "{} times the mean", lopsided.total);
}

#[tokio::test]
async fn a_front_door_calls_its_subset_of_the_register() {
    let membership = Membership::embedded();
    let all = view(WORKERS, GATEWAYS, &[""]);
    let mut leases: HashMap<&str, Lease> =
        all.values().map(|node| (node.node.as_str(), membership.register(node.clone()))).collect();
    let connect =
        |registration: &Registration| -> Option<Arc<dyn Client>> { Some(Arc::new(Nobody(registration.node.clone()))) };
    let options = Options { name: "gateway-007".to_owned(), zone: String::new(), cache: None, subset: SIZE };
    let admission = Admission::new(admission::Options::bound(8));
    let router = Router::start(options, &membership, Arc::new(connect), admission, Bus::new("here"), Tree::default())
        .await
        .unwrap();
    let called = async || -> BTreeSet<String> {
        router.refresh().await;
        router.workers("m").into_iter().map(|seen| seen.worker).collect()
    };
    let before = called().await;
    assert!((SIZE..=SIZE * 12 / 10).contains(&before.len()), "{}", before.len());
    let gone = before.first().unwrap().clone();
    drop(leases.remove(gone.as_str()));
    let after = called().await;
    assert!(!after.contains(&gone) && after.len() >= SIZE, "{}", after.len());
    assert!(after.difference(&before).count() <= 2, "a window moves by a place");
}
