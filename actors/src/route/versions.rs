//! Which version answers a request that asks for none.

use std::sync::Arc;

use rand::Rng;
use sensorium_cluster::membership::Held;

use super::candidate::Candidate;

/// How well a version is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    /// Quarantined or cannot be loaded; who holds it says why.
    Down,
    /// Being loaded, or loaded again; who holds it lets requests wait.
    Loading,
    /// Answers.
    Ready,
}

impl Tier {
    pub(super) fn of(held: &Held) -> Self {
        match held.state.as_str() {
            "READY" => Self::Ready,
            "LOADING" => Self::Loading,
            _ => Self::Down,
        }
    }
}

/// Versions of a model, as those hold them who take more work.
#[derive(Default)]
pub struct Versions {
    /// The best state of each; ascending.
    held: Vec<(u64, Tier)>,
    /// By version, requests that those work on side by side of whom it is the newest that is ready; empty where that is one
    /// version.
    rolling: Vec<(u64, u64)>,
}

impl Versions {
    /// Versions that these workers hold.
    pub(super) fn of(candidates: &[Arc<Candidate>]) -> Self {
        let mut versions = Self::default();
        for candidate in candidates.iter().filter(|candidate| candidate.takes_more()) {
            for held in &candidate.held {
                match versions.held.iter_mut().find(|(version, _)| *version == held.version) {
                    Some((_, tier)) => *tier = (*tier).max(Tier::of(held)),
                    None => versions.held.push((held.version, Tier::of(held))),
                }
            }
            let ready = candidate.held.iter().filter(|held| held.is_ready()).map(|held| held.version);
            let Some(newest) = ready.max() else { continue };
            match versions.rolling.iter_mut().find(|(version, _)| *version == newest) {
                Some((_, capacity)) => *capacity += u64::from(candidate.capacity),
                None => versions.rolling.push((newest, u64::from(candidate.capacity))),
            }
        }
        versions.held.sort_unstable();
        if versions.rolling.len() == 1 {
            versions.rolling.clear();
        }
        versions
    }

    /// The newest of those that are held best, so that one that is down does not hide an older one that answers.
    pub fn newest(&self) -> Option<u64> {
        self.held.iter().max_by_key(|(version, tier)| (*tier, *version)).map(|(version, _)| *version)
    }

    /// The version of a request that names none: the newest, or in a roll, where others hold only older ones ready, one
    /// of theirs, each by how much its workers can do. A single worker of a new version does not get what all get.
    pub fn choose(&self, rng: &mut impl Rng) -> Option<u64> {
        let newest = self.newest()?;
        if self.rolling.is_empty() {
            return Some(newest);
        }
        let mut at = rng.random_range(0..self.rolling.iter().map(|(_, capacity)| capacity).sum::<u64>().max(1));
        for &(version, capacity) in &self.rolling {
            if at < capacity {
                return Some(version);
            }
            at -= capacity;
        }
        Some(newest)
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.held.iter().map(|(version, _)| *version)
    }

    /// Those that answer beside this one, the newest first.
    pub fn others(&self, version: u64) -> impl Iterator<Item = u64> {
        let ready = self.held.iter().rev().filter(move |(other, tier)| *other != version && *tier == Tier::Ready);
        ready.map(|(other, _)| *other)
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::{held, rng, worker};
    use super::*;

    #[test]
    fn in_a_roll_each_version_gets_its_part() {
        let share = |versions: &Versions, wanted: u64| {
            let mut rng = rng();
            (0..10_000).filter(|_| versions.choose(&mut rng) == Some(wanted)).count()
        };
        let old = |name: &str| worker(name, "", vec![held(1, "READY")]);
        let new = |name: &str| worker(name, "", vec![held(2, "READY")]);
        // one of ten does not take what all of them take
        let mut all: Vec<_> = (0..9).map(|n| old(&format!("old-{n}"))).collect();
        all.push(new("new"));
        let versions = Versions::of(&all);
        assert_eq!(versions.newest(), Some(2), "it is the newest none the less");
        assert!((800..1200).contains(&share(&versions, 2)), "{}", share(&versions, 2));
        // who holds both answers with the newer one; who does not answer yet, or takes no more, has no part
        let both = worker("both", "", vec![held(1, "READY"), held(2, "READY")]);
        assert_eq!(share(&Versions::of(&[both.clone(), new("b")]), 2), 10_000);
        assert!((4000..6000).contains(&share(&Versions::of(&[both, old("a")]), 2)));
        assert_eq!(share(&Versions::of(&[worker("loading", "", vec![held(2, "LOADING")]), old("a")]), 1), 10_000);
        all[9].seen.refuses();
        assert_eq!(share(&Versions::of(&all), 1), 10_000);
        assert_eq!(Versions::default().choose(&mut rng()), None);
    }

    #[tokio::test]
    async fn the_newest_version_that_answers_is_served() {
        let versions = Versions::of(&[
            worker("a", "", vec![held(1, "READY"), held(3, "UNAVAILABLE")]),
            worker("b", "", vec![held(2, "READY"), held(1, "READY")]),
        ]);
        assert_eq!(versions.newest(), Some(2));
        assert_eq!(Versions::of(&[worker("a", "", vec![held(3, "UNAVAILABLE")])]).newest(), Some(3));
        assert_eq!(Versions::default().newest(), None);
    }
}
