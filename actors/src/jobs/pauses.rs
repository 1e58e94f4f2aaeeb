//! Whose tasks are left alone for a while: tenants over their quota, and those of whose tasks none succeeds here.
//!
//! A gateway that fails tasks is quicker than one that does them, and would draw most of a queue. So after a few failures
//! in a row of a flow it takes that flow's tasks one at a time, and ever more rarely, until one succeeds.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Failures in a row that are nobody's fault but the tasks'.
const FEW: u32 = 4;
/// The first pause after them; doubled each time…
const FIRST: Duration = Duration::from_millis(500);
/// …up to this.
const LONGEST: Duration = Duration::from_secs(5);
/// A pause for a quota is no longer: what the quota says may change.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// A flow of which the last word was not a success.
#[derive(Default)]
struct Flow {
    failures: u32,
    /// Its tasks are not taken before.
    until: Option<Instant>,
    /// One task of it is on its way, to see how it goes.
    tried: bool,
}

impl Flow {
    fn is_held(&self, now: Instant) -> bool {
        self.tried || self.until.is_some_and(|until| until > now)
    }

    /// Whether its tasks are taken one at a time.
    fn is_careful(&self) -> bool {
        self.failures >= FEW || self.until.is_some()
    }
}

/// By queue and flow.
#[derive(Default)]
pub(super) struct Pauses(Mutex<HashMap<(&'static str, String), Flow>>);

impl Pauses {
    /// Flows of a queue that are to be left alone now, and how many tasks may be taken of the others.
    pub(super) fn held(&self, queue: &'static str, room: usize) -> (HashSet<String>, usize) {
        let now = Instant::now();
        let flows = self.0.lock();
        let of_queue = || flows.iter().filter(|((of, _), _)| *of == queue);
        let held = of_queue().filter(|(_, flow)| flow.is_held(now)).map(|((_, name), _)| name.clone()).collect();
        let careful = of_queue().any(|(_, flow)| flow.is_careful() && !flow.is_held(now));
        (held, if careful { 1 } else { room })
    }

    /// A task was taken.
    pub(super) fn taken(&self, queue: &'static str, flow: &str) {
        if let Some(flow) = self.0.lock().get_mut(&(queue, flow.to_owned()))
            && flow.is_careful()
        {
            flow.tried = true;
        }
    }

    /// A task is over, whatever came of it; what did is told before.
    pub(super) fn ended(&self, queue: &'static str, flow: &str) {
        if let Some(flow) = self.0.lock().get_mut(&(queue, flow.to_owned())) {
            flow.tried = false;
        }
    }

    /// A task has succeeded.
    pub(super) fn succeeded(&self, queue: &'static str, flow: &str) {
        self.0.lock().remove(&(queue, flow.to_owned()));
    }

    /// A task has failed.
    pub(super) fn failed(&self, queue: &'static str, name: &str) {
        let mut flows = self.0.lock();
        let flow = flows.entry((queue, name.to_owned())).or_default();
        flow.failures = flow.failures.saturating_add(1);
        if flow.failures >= FEW {
            let pause = LONGEST.min(FIRST * (1 << (flow.failures - FEW).min(8)));
            flow.until = Some(Instant::now() + pause);
        }
        if flow.failures == FEW {
            tracing::warn!(
                queue,
                flow = name,
                "tasks keep failing here, they are taken one at a time until one succeeds"
            );
        }
    }

    /// A tenant may do no more before this long.
    pub(super) fn hold(&self, queues: &[&'static str], name: &str, pause: Duration) {
        let until = Instant::now() + pause.min(LONGEST_HOLD);
        let mut flows = self.0.lock();
        for &queue in queues {
            let flow = flows.entry((queue, name.to_owned())).or_default();
            flow.until = flow.until.max(Some(until));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_keeps_failing_is_taken_one_at_a_time_and_others_as_they_are() {
        let pauses = Pauses::default();
        for _ in 0..FEW - 1 {
            pauses.failed("text", "bad");
        }
        assert_eq!(pauses.held("text", 4), (HashSet::new(), 4), "a few are nothing");
        pauses.failed("text", "bad");
        let bad = HashSet::from(["bad".to_owned()]);
        assert_eq!(pauses.held("text", 4), (bad.clone(), 4));
        assert_eq!(pauses.held("image", 4), (HashSet::new(), 4));
        tokio::time::advance(FIRST).await;
        assert_eq!(pauses.held("text", 4), (HashSet::new(), 1), "one, to see how it goes");
        pauses.taken("text", "bad");
        assert_eq!(pauses.held("text", 4), (bad.clone(), 4), "and no second one beside it");
        pauses.failed("text", "bad");
        pauses.ended("text", "bad");
        tokio::time::advance(FIRST).await;
        assert_eq!(pauses.held("text", 4), (bad, 4), "longer than before");
        tokio::time::advance(FIRST).await;
        pauses.taken("text", "bad");
        pauses.succeeded("text", "bad");
        pauses.ended("text", "bad");
        assert_eq!(pauses.held("text", 4), (HashSet::new(), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_over_its_quota_is_left_alone_in_all_queues() {
        let pauses = Pauses::default();
        pauses.hold(&["text", "image"], "acme", Duration::from_secs(10));
        for queue in ["text", "image"] {
            assert_eq!(pauses.held(queue, 4), (HashSet::from(["acme".to_owned()]), 4));
        }
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(pauses.held("text", 4), (HashSet::new(), 1));
        pauses.succeeded("text", "acme");
        assert_eq!(pauses.held("text", 4), (HashSet::new(), 4));
        pauses.hold(&["text"], "acme", Duration::MAX);
        tokio::time::advance(LONGEST_HOLD).await;
        assert!(pauses.held("text", 4).0.is_empty());
    }
}
