//! Who takes the next request: power of two choices (Mitzenmacher, 2001) over load, among those who are well.
//!
//! Pure, so that it can be tried with a thousand workers.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use sensorium_cluster::membership::Held;

use super::candidate::{Candidate, Seen};
use super::versions::{Tier, Versions};
use crate::error::{Error, Result};

/// A worker of another zone has to be less loaded by this factor to be preferred…
const ZONE_PENALTY: f64 = 2.0;
/// …and by so many seconds: one call that had to connect first sends no others away.
const ZONE_SECONDS: f64 = 0.01;

/// All workers of one model.
#[derive(Default)]
pub struct Table {
    candidates: Vec<Arc<Candidate>>,
    versions: Versions,
    /// Requests that all who take more work on side by side.
    capacity: u32,
}

/// What is looked for.
#[derive(Clone, Copy, Default)]
pub struct Wish<'a> {
    /// Only workers that hold this version.
    pub version: u64,
    /// Where the caller stands.
    pub zone: &'a str,
    /// Workers that have been tried.
    pub tried: &'a [String],
    /// Seconds in which a request of `size` units is to be answered.
    pub budget: Option<f64>,
    /// See `budget`.
    pub size: f64,
    /// Only workers that hold these files of the version.
    pub namespace: Option<&'a str>,
}

impl Wish<'_> {
    /// What is wished for, if the candidate holds it.
    fn held_by<'c>(&self, candidate: &'c Candidate) -> Option<&'c Held> {
        candidate.holds(self.version).filter(|held| self.namespace.is_none_or(|wanted| wanted == held.namespace))
    }
}

impl Table {
    /// A table of these workers.
    pub fn new(candidates: Vec<Arc<Candidate>>) -> Self {
        let known: Vec<_> = candidates.iter().filter(|candidate| candidate.seen.latency_seconds() > 0.0).collect();
        if !known.is_empty() {
            #[allow(clippy::cast_precision_loss)]
            let count = known.len() as f64;
            let mean = |of: fn(&Seen) -> f64| known.iter().map(|candidate| of(&candidate.seen)).sum::<f64>() / count;
            let (latency, round) = (mean(Seen::latency_seconds), mean(Seen::round_seconds));
            let pace = mean(Seen::pace_seconds);
            candidates.iter().for_each(|candidate| candidate.seen.assume(latency, round, pace));
        }
        let versions = Versions::of(&candidates);
        let takers = candidates.iter().filter(|candidate| candidate.takes_more());
        let capacity = takers.fold(0u32, |sum, candidate| sum.saturating_add(candidate.capacity));
        Self { candidates, versions, capacity }
    }

    /// Requests that they work on side by side, when the table was made.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// All of them.
    pub fn candidates(&self) -> &[Arc<Candidate>] {
        &self.candidates
    }

    /// Versions that anybody who takes more holds.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// Whether nobody who holds the version can be reached, as far as is known.
    pub fn is_silent(&self, version: u64) -> bool {
        let mut holders = self.candidates.iter().filter(|candidate| candidate.holds(version).is_some());
        holders.all(|candidate| !candidate.client.is_reachable())
    }

    /// The version as its best holder has it.
    pub fn held(&self, version: u64) -> Option<&Held> {
        let holders = self.candidates.iter().filter_map(|candidate| candidate.holds(version));
        holders.max_by_key(|held| Tier::of(held))
    }

    /// Picks a worker.
    ///
    /// # Errors
    /// `Unavailable` if nobody is left, `Exhausted` if all who are left are full: the pool, not a worker; `NotFound` if
    /// those who are left hold other files of the version.
    pub fn pick(&self, model: &str, wish: &Wish<'_>, rng: &mut impl Rng) -> Result<Arc<Candidate>> {
        // of those who take more now: the table does not know of who has refused since it was made
        let takers = self.candidates.iter().filter(|candidate| candidate.takes_more());
        let tiers = takers.filter_map(|candidate| wish.held_by(candidate)).map(Tier::of);
        let best = tiers.filter(|tier| *tier > Tier::Down).max();
        let tier = best.or_else(|| self.held(wish.version).map(Tier::of)).unwrap_or(Tier::Down);
        let holds = |candidate: &&Arc<Candidate>| {
            wish.held_by(candidate).is_some_and(|held| Tier::of(held) == tier)
                && !wish.tried.iter().any(|tried| tried == candidate.client.name())
        };
        let mut left: Vec<&Arc<Candidate>> =
            self.candidates.iter().filter(holds).filter(|candidate| candidate.is_healthy()).collect();
        if left.is_empty() {
            // all are ejected or out of reach: rather one of them than none
            left = self.candidates.iter().filter(holds).filter(|candidate| candidate.takes_more()).collect();
        }
        if left.is_empty() {
            // all have refused: one may have started anew while the register is away
            left = self.candidates.iter().filter(holds).filter(|candidate| !candidate.draining).collect();
        }
        if left.is_empty() {
            let other = |candidate: &&Arc<Candidate>| wish.held_by(candidate).is_none() && candidate.takes_more();
            let ready = |other: &'_ Arc<Candidate>| other.held.iter().find(|held| held.is_ready()).cloned();
            if let Some(namespace) = wish.namespace
                && let Some(other) = self.candidates.iter().filter(other).find_map(ready)
            {
                return Err(Error::NotFound {
                    what: format!("'{namespace}'"),
                    known: format!("loaded is {}", other.namespace),
                });
            }
            return Err(Error::Unavailable {
                reason: "NO_WORKER",
                message: format!("no worker is left for {model} version {}", wish.version),
                retry_after: Duration::from_secs(1),
            });
        }
        let full: Vec<Duration> = left.iter().filter_map(|candidate| candidate.seen.overloaded_for()).collect();
        // the only worker there is may say itself whether it has room again
        if full.len() == left.len() && full.len() > 1 {
            return Err(Error::Exhausted {
                reason: "POOL_EXHAUSTED",
                message: format!("all {} workers of {model} are full", left.len()),
                retry_after: full.into_iter().min().unwrap_or_default().max(Duration::from_millis(10)),
            });
        }
        if full.len() < left.len() {
            left.retain(|candidate| candidate.seen.overloaded_for().is_none());
        }
        if let Some(budget) = wish.budget
            && left.iter().any(|candidate| candidate.expected_seconds(wish.size) <= budget)
        {
            left.retain(|candidate| candidate.expected_seconds(wish.size) <= budget);
        }
        Ok(choose(&left, wish.zone, rng).clone())
    }

    /// Seconds in which somebody can be expected to answer a request of `size` units; nothing if nobody has yet.
    pub fn expected_seconds(&self, version: u64, size: f64) -> Option<f64> {
        let holders = self.candidates.iter().filter(|candidate| {
            candidate.is_healthy()
                && candidate.seen.is_measured()
                && candidate.holds(version).is_some_and(Held::is_ready)
        });
        holders.map(|candidate| candidate.expected_seconds(size)).min_by(f64::total_cmp)
    }

    /// The same where it is sure enough to refuse a request by it: everybody has answered of late, and is at work.
    /// Otherwise there is somebody to try.
    pub fn certain_seconds(&self, version: u64, size: f64) -> Option<f64> {
        // who says nothing tells nothing of how long it takes: that it is away is no overload
        let takers =
            self.candidates.iter().filter(|candidate| candidate.takes_more() && candidate.client.is_reachable());
        let mut holders = takers.filter(|candidate| candidate.holds(version).is_some()).peekable();
        holders.peek()?;
        holders.try_fold(f64::INFINITY, |soonest, candidate| {
            let known = candidate.seen.is_measured() && candidate.seen.in_flight() > 0 && candidate.seen.is_talking();
            known.then(|| soonest.min(candidate.expected_seconds(size)))
        })
    }
}

/// Two of the caller's zone, or one and one of elsewhere; the less loaded wins.
fn choose<'a>(left: &[&'a Arc<Candidate>], zone: &str, rng: &mut impl Rng) -> &'a Arc<Candidate> {
    if let [only] = left {
        return only;
    }
    let (near, far): (Vec<_>, Vec<_>) = left.iter().copied().partition(|candidate| candidate.zone == zone);
    if near.is_empty() || far.is_empty() {
        return two(left, rng);
    }
    let (near, far) = (two(&near, rng), two(&far, rng));
    if far.load() * ZONE_PENALTY + ZONE_SECONDS < near.load() { far } else { near }
}

fn two<'a>(of: &[&'a Arc<Candidate>], rng: &mut impl Rng) -> &'a Arc<Candidate> {
    let first = rng.random_range(0..of.len());
    if of.len() == 1 {
        return of[first];
    }
    let mut second = rng.random_range(0..of.len() - 1);
    second += usize::from(second >= first);
    let (a, b) = (of[first], of[second]);
    if b.load() < a.load() { b } else { a }
}

#[cfg(test)]
pub(super) mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use sensorium_cluster::membership::Registration;

    use super::*;
    use crate::route::client::tests::Nobody;

    pub(in super::super) fn held(version: u64, state: &str) -> Held {
        Held { name: "m".into(), version, state: state.into(), ..Held::default() }
    }

    pub(in super::super) fn worker(name: &str, zone: &str, held: Vec<Held>) -> Arc<Candidate> {
        let registration = Registration { zone: zone.into(), capacity: 1, models: held, ..Registration::default() };
        Arc::new(Candidate::new(&registration, "m", Arc::new(Nobody(name.into())), None))
    }

    pub(in super::super) fn rng() -> SmallRng {
        SmallRng::seed_from_u64(1)
    }

    fn wish<'a>(zone: &'a str, tried: &'a [String]) -> Wish<'a> {
        Wish { version: 1, zone, tried, ..Wish::default() }
    }

    #[test]
    fn of_files_that_differ_those_that_are_wished_for_answer() {
        let files = |namespace: &str| vec![Held { namespace: namespace.into(), ..held(1, "READY") }];
        let all = vec![worker("a", "", files("old")), worker("b", "", files("new"))];
        let table = Table::new(all.clone());
        let tried = ["a".to_owned()];
        let old = Wish { namespace: Some("old"), ..wish("", &[]) };
        for _ in 0..20 {
            assert_eq!(table.pick("m", &old, &mut rng()).unwrap().client.name(), "a");
        }
        let others = table.pick("m", &Wish { tried: &tried, ..old }, &mut rng()).err().unwrap();
        assert_eq!(others.code(), "not_found", "others are there");
        let alone = Table::new(all[..1].to_vec());
        assert_eq!(alone.pick("m", &Wish { tried: &tried, ..old }, &mut rng()).err().unwrap().code(), "unavailable");
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_tried_is_ejected_or_draining_is_left_out() {
        let all: Vec<_> = ["a", "b", "c"].map(|name| worker(name, "", vec![held(1, "READY")])).into();
        let table = Table::new(all.clone());
        all[0].seen.eject(Duration::from_secs(30));
        let tried = ["b".to_owned()];
        for _ in 0..50 {
            assert_eq!(table.pick("m", &wish("", &tried), &mut rng()).unwrap().client.name(), "c");
        }
        all[2].seen.refuses();
        let last = table.pick("m", &wish("", &tried), &mut rng()).unwrap();
        assert_eq!(last.client.name(), "a", "rather an ejected one than none");
        let tried = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let last = table.pick("m", &wish("", &tried[..2]), &mut rng()).unwrap();
        assert_eq!(last.client.name(), "c", "rather one that has refused than none");
        assert_eq!(table.pick("m", &wish("", &tried), &mut rng()).err().unwrap().code(), "unavailable");
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(!all[0].seen.is_ejected());
    }

    #[tokio::test(start_paused = true)]
    async fn one_full_worker_is_not_a_full_pool() {
        let all: Vec<_> = ["a", "b"].map(|name| worker(name, "", vec![held(1, "READY")])).into();
        let table = Table::new(all.clone());
        all[0].seen.overloaded(Duration::from_millis(100));
        assert_eq!(table.pick("m", &wish("", &[]), &mut rng()).unwrap().client.name(), "b");
        all[1].seen.overloaded(Duration::from_millis(50));
        let refused = table.pick("m", &wish("", &[]), &mut rng()).err().unwrap();
        assert!(
            matches!(refused, Error::Exhausted { reason: "POOL_EXHAUSTED", retry_after, .. } if retry_after <= Duration::from_millis(50))
        );
        tokio::time::advance(Duration::from_millis(60)).await;
        assert_eq!(table.pick("m", &wish("", &[]), &mut rng()).unwrap().client.name(), "b");
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_slow_is_tried_again() {
        let all: Vec<_> = ["slow", "quick"].map(|name| worker(name, "", vec![held(1, "READY")])).into();
        let table = Table::new(all.clone());
        all[0].seen.answered(Duration::from_millis(400), 1.0, 0.0);
        let name = |table: &Table| table.pick("m", &wish("", &[]), &mut rng()).unwrap().client.name().to_owned();
        for _ in 0..20 {
            all[1].seen.answered(Duration::from_millis(5), 1.0, 0.0);
            assert_eq!(name(&table), "quick");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        tokio::time::advance(Duration::from_secs(30)).await;
        all[1].seen.answered(Duration::from_millis(5), 1.0, 0.0);
        assert_eq!(name(&table), "slow");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_refused_is_asked_when_nobody_else_is_left() {
        let all: Vec<_> = ["a", "b"].map(|name| worker(name, "", vec![held(1, "READY")])).into();
        let table = Table::new(all.clone());
        all.iter().for_each(|candidate| candidate.seen.refuses());
        let tried = ["b".to_owned()];
        assert_eq!(table.pick("m", &wish("", &tried), &mut rng()).unwrap().client.name(), "a");
        tokio::time::advance(Duration::from_secs(2)).await;
        all[0].seen.answered(Duration::from_secs(3), 1.0, 0.0);
        assert!(!all[0].takes_more(), "that one was asked before it refused");
        all[0].seen.answered(Duration::from_secs(1), 1.0, 0.0);
        assert!(all[0].takes_more() && !all[1].takes_more());
    }

    #[tokio::test]
    async fn who_is_loading_is_asked_when_all_who_are_ready_have_refused() {
        let all = [("a", "READY"), ("b", "LOADING"), ("c", "UNAVAILABLE")]
            .map(|(name, state)| worker(name, "", vec![held(1, state)]));
        let table = Table::new(all.to_vec());
        let name = || table.pick("m", &wish("", &[]), &mut rng()).unwrap().client.name().to_owned();
        assert_eq!(name(), "a");
        all[0].seen.refuses();
        assert_eq!(name(), "b", "it may be ready by now, or lets the request wait");
        all[1].seen.refuses();
        assert_ne!(name(), "c");
    }

    #[tokio::test]
    async fn the_own_zone_comes_first_until_it_is_much_busier() {
        let near = worker("near", "z1", vec![held(1, "READY")]);
        let far = worker("far", "z2", vec![held(1, "READY")]);
        let table = Table::new(vec![near.clone(), far.clone()]);
        let picked = || table.pick("m", &wish("z1", &[]), &mut rng()).unwrap().client.name().to_owned();
        near.seen.answered(Duration::from_millis(8), 1.0, 0.0);
        assert_eq!(picked(), "near", "its first call was slow");
        far.seen.answered(Duration::from_millis(1), 1.0, 0.0);
        assert_eq!(picked(), "near", "and the other quick");
        near.seen.answered(Duration::from_millis(28), 1.0, 0.0);
        (0..20).for_each(|_| far.seen.answered(Duration::from_millis(9), 1.0, 0.0));
        assert_eq!(picked(), "near", "no slower");
        (0..3).for_each(|_| near.seen.started());
        assert_eq!(picked(), "far");
    }

    #[tokio::test]
    async fn a_budget_prefers_who_is_expected_to_meet_it() {
        let all: Vec<_> = ["quick", "slow"].map(|name| worker(name, "", vec![held(1, "READY")])).into();
        let table = Table::new(all.clone());
        all[0].seen.answered(Duration::from_millis(100), 10.0, 0.0);
        all[1].seen.answered(Duration::from_millis(400), 10.0, 0.0);
        (0..2).for_each(|_| all[0].seen.started());
        // load: 0.3 against 0.4; expected of 20 units: 0.2 + 0.2 against 0.8
        let wish = Wish { budget: Some(0.5), size: 20.0, ..wish("", &[]) };
        assert_eq!(table.pick("m", &wish, &mut rng()).unwrap().client.name(), "quick");
        assert!((table.expected_seconds(1, 20.0).unwrap() - 0.4).abs() < 1e-6);
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_measured_and_at_work_is_sure_to_be_late() {
        let all: Vec<_> = ["a", "b"].map(|name| worker(name, "", vec![held(1, "READY")])).into();
        let table = Table::new(all.clone());
        assert_eq!(table.capacity(), 2);
        // four were before it: five rounds of a second
        all[0].seen.answered(Duration::from_secs(5), 1.0, 4.0);
        all[0].seen.started();
        assert_eq!(table.certain_seconds(1, 1.0), None, "nobody knows of b");
        all[1].seen.answered(Duration::from_secs(3), 1.0, 0.0);
        assert_eq!(table.certain_seconds(1, 1.0), None, "b has nothing to do");
        all[1].seen.started();
        assert_eq!(table.certain_seconds(1, 1.0), Some(2.0));
        assert_eq!(table.certain_seconds(2, 1.0), None, "nobody holds it");
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(table.certain_seconds(1, 1.0), None, "long ago");
    }

    /// A thousand workers of three zones under a steady load: nobody is flooded, and little leaves its zone.
    #[tokio::test]
    async fn a_thousand_workers_share_the_load() {
        let zones = ["a", "b", "c"];
        let all: Vec<_> = (0..1000).map(|n| worker(&format!("w{n}"), zones[n % 3], vec![held(1, "READY")])).collect();
        all.iter().for_each(|candidate| candidate.seen.answered(Duration::from_millis(10), 1.0, 0.0));
        let table = Table::new(all.clone());
        let mut rng = rng();
        let mut running = std::collections::VecDeque::new();
        let mut strangers = 0;
        for turn in 0..60_000 {
            let zone = zones[turn % 3];
            let picked = table.pick("m", &wish(zone, &[]), &mut rng).unwrap();
            picked.seen.started();
            strangers += usize::from(picked.zone != zone);
            running.push_back(picked);
            if running.len() > 3000 {
                running.pop_front().unwrap().seen.ended();
            }
        }
        let most = all.iter().map(|candidate| candidate.seen.in_flight()).max().unwrap();
        assert!(most <= 8, "{most} requests at one worker, three on average");
        assert!(strangers < 3000, "{strangers} of 60,000 left their zone");
    }
}
