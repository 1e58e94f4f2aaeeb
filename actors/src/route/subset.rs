//! Which workers of a model this gateway calls, where there are many: a hundred gateways that all call a thousand workers
//! would keep 200,000 connections, and each pick would look at all of them.
//!
//! Workers and gateways stand on a ring, each in the order of a hash of its name; gateway `i` of `G` takes the workers
//! from place `i·W/G` on. So it needs no word from the others beyond the register, and:
//!
//! - every worker is called by the same number of gateways, give or take one. Taking the first of a rendezvous hash, the
//!   usual way, leaves some workers to twice as many gateways as others, and some to none;
//! - a node that comes or goes moves each window by a few places at most. With the deterministic subsets of "Site
//!   Reliability Engineering" (Beyer et al., 2016, chapter 20) nearly all connections change, which is why Google gave
//!   them up (Ward et al., "Reinventing Backend Subsetting at Google", ACM Queue 20(5), 2022);
//! - models that the same workers hold have the same window, and so share connections.
//!
//! Gateways that see the register a moment apart have windows a place apart, which harms nobody.

use std::collections::BTreeSet;

use sensorium_cluster::membership::{Held, Registration, Role, View};

/// Gateways that call a worker at least, however small the subsets: what one gateway loses the others still carry, and
/// each worker's load is the mean over several.
const COVERAGE: usize = 4;
/// One in so many of a subset stands in another zone, to turn to when the own zone is busy or lost.
const STRANGERS: usize = 4;

/// Where a gateway stands among the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    size: usize,
    zone: String,
    /// Its place among the gateways of its zone…
    place: usize,
    /// …and how many those are.
    gateways: usize,
}

impl Subset {
    /// The place of gateway `own` in `zone`. `size` is how many workers of a model it is to call; 0: all.
    pub fn new(own: &str, zone: &str, size: usize, view: &View) -> Self {
        let rivals = view.values().filter(|node| node.role == Role::Gateway && node.zone == zone && node.node != own);
        let own = order(own);
        let (mut place, mut gateways) = (0, 1);
        for rival in rivals {
            gateways += 1;
            place += usize::from(order(&rival.node) < own);
        }
        Self { size, zone: zone.to_owned(), place, gateways }
    }

    /// Which of the holders of `model` are called, for each version that any of them holds. All of them, where there are
    /// no more than the size of a subset.
    pub fn of<'a>(&self, model: &str, mut holders: Vec<&'a Registration>) -> Vec<&'a Registration> {
        if self.size == 0 || holders.len() <= self.size {
            return holders;
        }
        holders.sort_by_cached_key(|holder| order(&holder.node));
        let held = |holder: &Registration| -> Vec<(u64, bool)> {
            let versions = holder.models.iter().filter(|held| held.name == model);
            versions.map(|held| (held.version, held.is_ready() && !holder.draining)).collect()
        };
        let versions: BTreeSet<u64> =
            holders.iter().flat_map(|holder| held(holder)).map(|(version, _)| version).collect();
        let mut called = BTreeSet::new();
        for version in versions {
            let with = |wanted: &dyn Fn(bool) -> bool| -> Vec<usize> {
                let holds =
                    |holder: &Registration| held(holder).iter().any(|(v, ready)| *v == version && wanted(*ready));
                (0..holders.len()).filter(|&at| holds(holders[at])).collect()
            };
            // who does not answer yet, or no more, takes no place from one that does
            let mut answering = with(&|ready| ready);
            if answering.is_empty() {
                answering = with(&|_| true);
            }
            self.choose(&holders, answering, &mut called);
        }
        called.into_iter().map(|at| holders[at]).collect()
    }

    /// Most from the own zone, some from others.
    fn choose(&self, holders: &[&Registration], answering: Vec<usize>, called: &mut BTreeSet<usize>) {
        let (near, far): (Vec<usize>, Vec<usize>) =
            answering.into_iter().partition(|&at| holders[at].zone == self.zone);
        let strangers = far.len().min((self.size / STRANGERS).max(self.size.saturating_sub(near.len())));
        called.extend(self.window(&near, self.size - strangers, COVERAGE));
        // a zone without workers of its own has to reach all of the others'
        called.extend(self.window(&far, strangers, if near.is_empty() { COVERAGE } else { 1 }));
    }

    /// `wanted` places of a ring or some more: as many as let each place be in the same number of windows, and in
    /// `coverage` at least.
    fn window<'a>(&self, ring: &'a [usize], wanted: usize, coverage: usize) -> impl Iterator<Item = usize> + 'a {
        let (places, gateways) = (ring.len(), self.gateways);
        let coverage = (wanted * gateways).div_ceil(places.max(1)).max(coverage);
        let length = if wanted == 0 { 0 } else { (coverage * places).div_ceil(gateways).min(places) };
        let start = self.place * places / gateways;
        (start..start + length).map(move |at| ring[at % places])
    }
}

/// Where a name stands on its ring.
fn order(name: &str) -> [u8; 32] {
    *blake3::hash(name.as_bytes()).as_bytes()
}

/// Whether a registration holds a model.
pub fn holds(registration: &Registration, model: &str) -> bool {
    registration.is_worker() && registration.models.iter().any(|held: &Held| held.name == model)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn node(name: String, role: Role, zone: &str, versions: &[(u64, &str)]) -> Registration {
        let held = versions.iter().map(|&(version, state)| Held {
            name: "m".into(),
            version,
            state: state.into(),
            ..Held::default()
        });
        Registration { node: name, role, zone: zone.into(), models: held.collect(), ..Registration::default() }
    }

    fn workers(count: usize, zones: &[&str], versions: &[(u64, &str)]) -> Vec<Registration> {
        (0..count).map(|n| node(format!("w{n}"), Role::Worker, zones[n % zones.len()], versions)).collect()
    }

    fn gateways(count: usize, zones: &[&str]) -> View {
        let nodes = (0..count).map(|n| node(format!("g{n}"), Role::Gateway, zones[n % zones.len()], &[]));
        Arc::new(nodes.map(|node| (node.node.clone(), node)).collect())
    }

    fn of<'a>(own: &str, zone: &str, view: &View, workers: &'a [Registration]) -> Vec<&'a Registration> {
        Subset::new(own, zone, 64, view).of("m", workers.iter().collect())
    }

    /// How many gateways call each worker: the fewest and the most.
    fn coverage(view: &View, workers: &[Registration]) -> (usize, usize) {
        let mut calls: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
        for gateway in view.values() {
            for worker in of(&gateway.node, &gateway.zone, view, workers) {
                *calls.entry(&worker.node).or_default() += 1;
            }
        }
        let count = |worker: &Registration| calls.get(worker.node.as_str()).copied().unwrap_or(0);
        let counts: Vec<usize> = workers.iter().map(count).collect();
        (counts.iter().copied().min().unwrap(), counts.iter().copied().max().unwrap())
    }

    #[test]
    fn few_workers_are_all_called() {
        let all = workers(64, &[""], &[(1, "READY")]);
        assert_eq!(of("g0", "", &gateways(100, &[""]), &all).len(), 64);
        let many = workers(1000, &[""], &[(1, "READY")]);
        assert_eq!(Subset::new("g0", "", 0, &gateways(100, &[""])).of("m", many.iter().collect()).len(), 1000);
        assert_eq!(of("g0", "", &gateways(1, &[""]), &many).len(), 1000, "nobody else would call the others");
    }

    #[test]
    fn every_worker_is_called_by_as_many_gateways_as_any_other() {
        for (count, others) in [(1000, 100), (777, 31), (65, 3), (1000, 7)] {
            let (fewest, most) = coverage(&gateways(others, &[""]), &workers(count, &[""], &[(1, "READY")]));
            assert!(most - fewest <= 1 && fewest >= COVERAGE.min(others), "{fewest} to {most} of {others} at {count}");
        }
    }

    #[test]
    fn a_subset_is_hardly_larger_than_it_should_be() {
        let all = workers(1000, &[""], &[(1, "READY")]);
        let view = gateways(100, &[""]);
        for gateway in view.values() {
            let size = of(&gateway.node, "", &view, &all).len();
            assert!((64..=75).contains(&size), "{size}");
        }
    }

    #[test]
    fn most_of_a_subset_stands_in_the_own_zone_and_all_zones_are_reached() {
        let zones = ["a", "b", "c"];
        let (view, all) = (gateways(90, &zones), workers(999, &zones, &[(1, "READY")]));
        for gateway in view.values() {
            let called = of(&gateway.node, &gateway.zone, &view, &all);
            let near = called.iter().filter(|worker| worker.zone == gateway.zone).count();
            assert!(near >= 48 && called.len() - near >= 16 && called.len() <= 80, "{near} of {}", called.len());
        }
        let (fewest, most) = coverage(&view, &all);
        assert!(fewest >= COVERAGE && most - fewest <= 3, "{fewest} to {most}");
        // workers of a zone without a gateway, and gateways of a zone without a worker
        let (fewest, _) = coverage(&gateways(4, &["a"]), &all);
        assert!(fewest >= 1, "{fewest}");
        let (fewest, most) = coverage(&gateways(50, &[""]), &all);
        assert!(fewest >= COVERAGE && most - fewest <= 1, "{fewest} to {most}");
    }

    #[test]
    fn a_version_that_few_hold_is_called_where_it_is() {
        let mut all = workers(500, &[""], &[(1, "READY")]);
        for canary in &mut all[100..103] {
            canary.models.push(Held { name: "m".into(), version: 2, state: "READY".into(), ..Held::default() });
        }
        let view = gateways(50, &[""]);
        for gateway in view.values() {
            let called = of(&gateway.node, "", &view, &all);
            let canaries = called.iter().filter(|worker| worker.models.len() == 2).count();
            assert_eq!(canaries, 3, "a version that hardly anybody holds");
        }
    }

    #[test]
    fn who_is_loading_or_leaving_takes_no_place_from_one_that_answers() {
        let mut all = workers(200, &[""], &[(1, "LOADING")]);
        let view = gateways(20, &[""]);
        assert!(of("g3", "", &view, &all).len() >= 64, "rather ones that will answer than none");
        all[..100].iter_mut().for_each(|worker| worker.models[0].state = "READY".into());
        all[..20].iter_mut().for_each(|worker| worker.draining = true);
        let called = of("g3", "", &view, &all);
        assert!(called.len() >= 64, "{}", called.len());
        assert!(called.iter().all(|worker| worker.models[0].is_ready() && !worker.draining));
    }

    #[test]
    fn a_node_that_comes_moves_few() {
        let (view, all) = (gateways(100, &[""]), workers(1000, &[""], &[(1, "READY")]));
        let names = |view: &View, all: &[Registration]| -> BTreeSet<(String, String)> {
            let pairs = (0..100).flat_map(|n| {
                let own = format!("g{n}");
                let called = of(&own, "", view, all);
                called.into_iter().map(|worker| (own.clone(), worker.node.clone())).collect::<Vec<_>>()
            });
            pairs.collect()
        };
        let before = names(&view, &all);
        let more = workers(1001, &[""], &[(1, "READY")]);
        let moved = names(&view, &more).difference(&before).count();
        assert!(moved <= 100, "{moved} of {} connections are new for one worker", before.len());
        let moved = names(&gateways(101, &[""]), &all).difference(&before).count();
        assert!(moved <= before.len() / 10, "{moved} of {} connections are new for one gateway", before.len());
    }
}
