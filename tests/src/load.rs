//! Requests that keep coming while something else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tonic::Status;

use crate::{Ask, Client, PATIENCE};

/// Waits until `look` gives something: conditions that announce themselves to nobody.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Callers that send one request after the other until they are told to stop.
pub struct Load {
    callers: JoinSet<Vec<Status>>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
}

impl Load {
    /// Starts `callers`; `ask` makes the request of a caller and its turn.
    pub fn start(client: &Client, callers: usize, ask: impl Fn(usize, usize) -> Ask + Send + Sync + 'static) -> Self {
        let (stop, answered, ask) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(ask));
        let mut set = JoinSet::new();
        for caller in 0..callers {
            let (client, stop, answered, ask) = (client.clone(), stop.clone(), answered.clone(), ask.clone());
            set.spawn(async move {
                let mut failures = Vec::new();
                let mut turn = 0;
                while !stop.load(Ordering::Relaxed) {
                    match client.infer(ask(caller, turn)).await {
                        Ok(_) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(status) => failures.push(status),
                    }
                    turn += 1;
                }
                failures
            });
        }
        Self { callers: set, stop, answered }
    }

    /// Waits until so many more requests were answered.
    pub async fn answers(&self, more: usize) {
        let wanted = self.answered.load(Ordering::Relaxed) + more;
        eventually("answers under load", async || (self.answered.load(Ordering::Relaxed) >= wanted).then_some(()))
            .await;
    }

    /// Stops; gives the number of answers, and all failures.
    pub async fn stop(mut self) -> (usize, Vec<Status>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        while let Some(caller) = crate::within(self.callers.join_next()).await {
            failures.extend(caller.expect("a caller"));
        }
        (self.answered.load(Ordering::Relaxed), failures)
    }
}
