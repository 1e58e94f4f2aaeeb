//! The rows that need a cluster: gateways and workers as processes of their own, beside a real etcd, NATS and Redis.

use std::cell::RefCell;

use super::Options;
use super::row::{Goal, Row, median};
use super::rows::{fill, finish, interleave, latency, load, rate};
use crate::cluster::{Cluster, Node, Outside, sees};
use crate::echo::Echo;
use crate::error::{Error, Result};
use crate::open;
use crate::work::Work;

const DOOR: &str = "identity, gateway → worker, 4 connections × 16 streams";
const ADDED: &str = "identity, gateway → worker at half load, p99";
const FAR_HIT: &str = "minilm, hit in Redis";
const NO_HIT: &str = "minilm, cache that never hits";
const TWO: &str = "minilm, two workers, a core each";

/// Texts that are asked for again and again: more than one, so that equal requests in flight are not all there is.
pub(super) const TEXTS: u64 = 256;

/// Measures them, one after the other.
pub(super) async fn run(options: &Options, keep: &mut impl FnMut(Row)) {
    let all = [DOOR, ADDED, FAR_HIT, NO_HIT, TWO, super::loss::KILLED];
    if !all.iter().any(|row| options.wants(row)) {
        return;
    }
    let door = Row::against(DOOR, "bare tonic echo", "req/s", Goal::AtLeast(0.35));
    let added = Row::against(ADDED, "direct call to the worker", "ms", Goal::AtMost(0.5));
    let far = Row::against(FAR_HIT, "its own miss", "req/s", Goal::AtLeast(5.0));
    let no_hit = Row::against(NO_HIT, "cache switched off", "req/s", Goal::AtLeast(0.97));
    let two = Row::against(TWO, "one worker", "req/s", Goal::AtLeast(1.8));
    let killed = super::loss::row();
    let outside = match Outside::start().await {
        Ok(outside) => outside,
        Err(error) => {
            for row in [door, added, far, no_hit, two, killed].into_iter().filter(|row| options.wants(&row.work)) {
                keep(row.note(format!("not measured: {error}")));
            }
            return;
        }
    };
    // each has its own cluster, so that no row's processes run beside another's
    if options.wants(DOOR) {
        keep(measured(door.clone(), throughput(options, &outside, door).await));
    }
    if options.wants(ADDED) {
        keep(measured(added.clone(), added_latency(options, &outside, added).await));
    }
    if options.wants(FAR_HIT) {
        keep(measured(far.clone(), hit_in_redis(options, &outside, far).await));
    }
    if options.wants(NO_HIT) {
        keep(measured(no_hit.clone(), never_hits(options, &outside, no_hit).await));
    }
    if options.wants(TWO) {
        keep(measured(two.clone(), two_workers(options, &outside, two).await));
    }
    if options.wants(super::loss::KILLED) {
        keep(measured(killed.clone(), super::loss::one_of_two(options, &outside, killed).await));
    }
}

/// A row whose cluster came up, or why it did not.
fn measured(row: Row, outcome: Result<Row>) -> Row {
    outcome.unwrap_or_else(|error| row.note(format!("not measured: {error}")))
}

/// A gateway that is ready and sees these workers.
pub(super) async fn gateway(
    cluster: &Cluster<'_>,
    name: &str,
    settings: &[(&str, &str)],
    workers: &[&Node],
) -> Result<Node> {
    let mut gateway = cluster.gateway(name, settings)?;
    gateway.ready().await?;
    sees(&gateway, workers).await?;
    Ok(gateway)
}

/// Nodes leave in turn, gateways first; one that does not is an error of its own.
pub(super) async fn leave(nodes: impl IntoIterator<Item = Node>) -> Result<()> {
    for node in nodes {
        node.stop().await?;
    }
    Ok(())
}

async fn throughput(options: &Options, outside: &Outside, row: Row) -> Result<Row> {
    let cluster = Cluster::new(&options.server, outside, "throughput");
    let worker = cluster.worker("worker", "identity", None).await?;
    let gateway = gateway(&cluster, "gateway", &[], &[&worker]).await?;
    let echo = Echo::start().await?;
    let (theirs, ours) = (echo.target(), gateway.target());
    let row = finish(
        row,
        interleave(
            options,
            async || rate(options, &theirs, &Work::Identity, 4, 16).await,
            async || rate(options, &ours, &Work::Identity, 4, 16).await,
        )
        .await,
    );
    leave([gateway, worker]).await?;
    Ok(row)
}

/// Both at the same rate, half of what the gateway does for four callers, each of whom waits for an answer: what a hop
/// costs is a difference, not a ratio. More callers share the work of a wake-up, as arrivals at random do not: half of
/// what they get would be nearly all that the machine can do.
async fn added_latency(options: &Options, outside: &Outside, row: Row) -> Result<Row> {
    let cluster = Cluster::new(&options.server, outside, "latency");
    let worker = cluster.worker("worker", "identity", None).await?;
    let gateway = gateway(&cluster, "gateway", &[], &[&worker]).await?;
    let half = load(options, &gateway.target(), &Work::Identity, 4, 1).await?.requests_per_s / 2.0;
    // of baseline and ours by turns
    let p50 = RefCell::new(Vec::new());
    let p99 = async |target: &str, work: &Work| -> Result<f64> {
        let load = open::Load {
            connections: 4,
            rate: half,
            warm_up: options.warm_up,
            time: options.time,
            count: 0,
            outstanding: 4096,
            seed: 7,
        };
        let report = open::run_quietly(target, work, load).await?;
        if !report.errors.is_empty() {
            return Err(Error::Child(format!("{}: failed: {:?}", report.work, report.errors)));
        }
        p50.borrow_mut().push(latency(&report, |latency| latency.p50)?);
        latency(&report, |latency| latency.p99)
    };
    let (direct, through) = (worker.target(), gateway.target());
    let rounds =
        interleave(options, async || p99(&direct, &Work::Direct).await, async || p99(&through, &Work::Identity).await);
    let row = match rounds.await {
        Ok(rounds) => {
            let added = median(p50.borrow().chunks_exact(2).map(|turn| turn[1] - turn[0])).unwrap_or_default();
            row.added(rounds).note(format!(
                "both at {half:.0} requests/s, half of what the gateway does for 4 callers; {added:+.2} ms at p50"
            ))
        }
        Err(error) => row.note(format!("not measured: {error}")),
    };
    leave([gateway, worker]).await?;
    Ok(row)
}

async fn hit_in_redis(options: &Options, outside: &Outside, row: Row) -> Result<Row> {
    let cluster = Cluster::new(&options.server, outside, "redis");
    let worker = cluster.worker("worker", "minilm", None).await?;
    let gateway = gateway(&cluster, "gateway", &[("cache.near_bytes", "0")], &[&worker]).await?;
    let target = gateway.target();
    let again = Work::MinilmAgain(23, TEXTS);
    fill(&target, &again).await?;
    let row = finish(
        row,
        interleave(
            options,
            async || rate(options, &target, &Work::Minilm(23), 4, 16).await,
            async || rate(options, &target, &again, 4, 16).await,
        )
        .await,
    );
    leave([gateway, worker]).await?;
    Ok(row.note(format!("{TEXTS} texts of 23 tokens again and again, against texts that never come again")))
}

/// Two gateways before the same worker; the one that is not asked idles.
async fn never_hits(options: &Options, outside: &Outside, row: Row) -> Result<Row> {
    let cluster = Cluster::new(&options.server, outside, "misses");
    let worker = cluster.worker("worker", "minilm", None).await?;
    let without = gateway(&cluster, "without", &[("cache.enabled", "false")], &[&worker]).await?;
    let with = gateway(&cluster, "with", &[], &[&worker]).await?;
    let (theirs, ours) = (without.target(), with.target());
    let row = finish(
        row,
        interleave(
            options,
            async || rate(options, &theirs, &Work::Minilm(23), 4, 16).await,
            async || rate(options, &ours, &Work::Minilm(23), 4, 16).await,
        )
        .await,
    );
    leave([with, without, worker]).await?;
    Ok(row.note("near-cache and Redis, asked for texts that never come again".to_owned()))
}

/// Tokens of a text that keeps a core busy for long: beside it, callers and gateway cost little of either core.
const LONG: usize = 200;

async fn two_workers(options: &Options, outside: &Outside, row: Row) -> Result<Row> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        return Err(Error::Child("there is one core".to_owned()));
    }
    let uncached = [("cache.enabled", "false")];
    let (single, pair) = (Cluster::new(&options.server, outside, "one"), Cluster::new(&options.server, outside, "two"));
    let alone = single.worker("alone", "minilm", Some(0)).await?;
    let before_one = gateway(&single, "before-one", &uncached, &[&alone]).await?;
    let (first, second) =
        (pair.worker("first", "minilm", Some(0)).await?, pair.worker("second", "minilm", Some(1)).await?);
    let before_two = gateway(&pair, "before-two", &uncached, &[&first, &second]).await?;
    let (theirs, ours) = (before_one.target(), before_two.target());
    let row = finish(
        row,
        interleave(
            options,
            async || rate(options, &theirs, &Work::Minilm(LONG), 4, 8).await,
            async || rate(options, &ours, &Work::Minilm(LONG), 4, 8).await,
        )
        .await,
    );
    leave([before_one, before_two, alone, first, second]).await?;
    let shared = if cores == 2 { "; callers and gateway share the two cores" } else { "" };
    Ok(row.note(format!("texts of {LONG} tokens, one thread each, no cache{shared}")))
}
