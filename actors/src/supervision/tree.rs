//! The live supervision tree: every actor has a path under which it is listed, inspected and restarted.
//!
//! ractor's own registry is process-global and forgets an actor the moment it dies; operators want to see that it is
//! being restarted, how often, and why. So each supervisor keeps its children's seats here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use ractor::ActorCell;
use tokio::time::Instant;

use super::RESTART;

/// What an actor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum State {
    Starting,
    Running,
    Restarting,
    Hung,
    Quarantined,
}

impl State {
    /// Lower-case, as operators read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Hung => "hung",
            Self::Quarantined => "quarantined",
        }
    }
}

/// One actor as an operator sees it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Such as `worker-1/audio/whisper-base/3/replica-0`.
    pub path: String,
    /// `supervisor`, `route`, `batcher`, `replica`.
    pub kind: &'static str,
    /// What it is doing.
    pub state: State,
    /// How often it was started again.
    pub restarts: u32,
    /// Messages or rows that wait.
    pub queue_depth: u64,
    /// Since its last start.
    pub uptime: std::time::Duration,
    /// Why it last failed.
    pub last_failure: String,
}

struct Node {
    kind: &'static str,
    state: State,
    restarts: u32,
    depth: Arc<AtomicU64>,
    since: Instant,
    last_failure: String,
    cell: Option<ActorCell>,
}

/// A cheap handle to the tree of one process.
#[derive(Clone, Default)]
pub struct Tree {
    nodes: Arc<Mutex<BTreeMap<String, Node>>>,
    aliases: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Tree {
    /// Enters an actor that is about to start, or start again. Returns its queue gauge.
    pub fn starting(&self, path: &str, kind: &'static str) -> Arc<AtomicU64> {
        let mut nodes = self.nodes.lock();
        let node = nodes.entry(path.to_owned()).or_insert_with(|| Node {
            kind,
            state: State::Starting,
            restarts: 0,
            depth: Arc::default(),
            since: Instant::now(),
            last_failure: String::new(),
            cell: None,
        });
        node.depth.store(0, Ordering::Relaxed);
        node.cell = None;
        if node.state != State::Starting {
            node.state = State::Starting;
            node.restarts += 1;
            metrics::counter!("sensorium_actor_restarts_total", "kind" => kind).increment(1);
        }
        node.depth.clone()
    }

    /// The actor at `path` has been spawned; `cell` is for restarts.
    pub fn spawned(&self, path: &str, cell: ActorCell) {
        self.update(path, |node| {
            node.cell = Some(cell);
            node.since = Instant::now();
        });
    }

    /// The same for one that is ready as soon as it has been spawned.
    pub fn running(&self, path: &str, cell: ActorCell) {
        self.spawned(path, cell);
        self.set(path, State::Running);
    }

    /// Changes the state of the actor at `path`.
    pub fn set(&self, path: &str, state: State) {
        self.update(path, |node| node.state = state);
    }

    /// Notes that the actor at `path` has failed; what comes of it is its supervisor's.
    pub fn failed(&self, path: &str, state: State, reason: &str) {
        self.update(path, |node| {
            node.state = state;
            node.cell = None;
            reason.clone_into(&mut node.last_failure);
        });
    }

    /// Removes `path` and all below it.
    pub fn remove(&self, path: &str) {
        self.aliases.lock().remove(path);
        self.nodes.lock().retain(|other, _| !is_within(other, path));
    }

    /// From now on operators see `path`, and all below it, as `alias`. An actor keeps the path that it was born with,
    /// since it stood beside its predecessor then; the place that it has taken is what operators know it by.
    pub fn alias(&self, path: &str, alias: &str) {
        self.aliases.lock().insert(path.to_owned(), alias.to_owned());
    }

    /// The path under which operators see the actor at `path`.
    pub fn shown(&self, path: &str) -> String {
        let aliases = self.aliases.lock();
        let alias = aliases.iter().find(|(from, _)| is_within(path, from));
        alias.map_or_else(|| path.to_owned(), |(from, to)| format!("{to}{}", &path[from.len()..]))
    }

    /// Everything at and below `path` (empty: all), parents before children.
    pub fn list(&self, path: &str) -> Vec<Snapshot> {
        let nodes = self.nodes.lock();
        let mut listed: Vec<Snapshot> = nodes
            .iter()
            .map(|(own, node)| (self.shown(own), node))
            .filter(|(shown, _)| path.is_empty() || is_within(shown, path))
            .map(|(path, node)| Snapshot {
                path,
                kind: node.kind,
                state: node.state,
                restarts: node.restarts,
                queue_depth: node.depth.load(Ordering::Relaxed),
                uptime: node.since.elapsed(),
                last_failure: node.last_failure.clone(),
            })
            .collect();
        listed.sort_by(|a, b| a.path.cmp(&b.path));
        listed
    }

    /// Stops the actor at `path`, so that its supervisor starts it again. False if there is none that runs.
    pub fn restart(&self, path: &str) -> bool {
        let nodes = self.nodes.lock();
        let found = nodes.iter().find(|(own, _)| self.shown(own) == path);
        let cell = found.and_then(|(_, node)| node.cell.clone());
        drop(nodes);
        match cell {
            Some(cell) => {
                cell.stop(Some(RESTART.to_owned()));
                true
            }
            None => false,
        }
    }

    fn update(&self, path: &str, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.lock().get_mut(path) {
            change(node);
        }
    }
}

fn is_within(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_is_seen_in_the_place_that_it_has_taken() {
        let tree = Tree::default();
        for path in ["w/text/x/1.2", "w/text/x/1.2/replica-0", "w/text/x/1.20"] {
            tree.starting(path, "version");
        }
        tree.alias("w/text/x/1.2", "w/text/x/1");
        tree.starting("w/text/x/1.2/batcher", "batcher");
        let seen = |path: &str| tree.list(path).into_iter().map(|actor| actor.path).collect::<Vec<_>>();
        let own = ["w/text/x/1", "w/text/x/1/batcher", "w/text/x/1/replica-0"];
        assert_eq!(seen("w/text/x/1"), own);
        assert_eq!(seen(""), [own[0], "w/text/x/1.20", own[1], own[2]]);
        assert!(seen("w/text/x/1.2").is_empty());
        tree.remove("w/text/x/1.2");
        assert_eq!(seen(""), ["w/text/x/1.20"]);
    }
}
