//! Who is missing from the register, and may come back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::{Registration, View};

/// Nodes that were in the view and are not in a fresh list. They are given the time of a lease to come back: etcd may
/// have lost its data, or they may be registering again just now. A node that is really gone is noticed by its route.
#[derive(Default)]
pub(super) struct Missing {
    until: BTreeMap<String, Instant>,
}

impl Missing {
    /// A node has been heard of.
    pub(super) fn heard(&mut self, node: &str) {
        self.until.remove(node);
    }

    pub(super) fn merge(&mut self, before: &View, listed: BTreeMap<String, Registration>, grace: Duration) -> View {
        let now = Instant::now();
        let mut merged = listed;
        self.until.retain(|node, _| !merged.contains_key(node));
        for (node, registration) in before.iter() {
            if !merged.contains_key(node) {
                // etcd has been away meanwhile: its time begins anew, as there was nowhere to come back to
                self.until.insert(node.clone(), now + grace);
                merged.insert(node.clone(), registration.clone());
            }
        }
        Arc::new(merged)
    }

    /// The watch goes on after a pause, in which nobody could come back.
    pub(super) fn renew(&mut self, grace: Duration) {
        let until = Instant::now() + grace;
        self.until.values_mut().for_each(|of| *of = until);
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }

    pub(super) fn take_due(&mut self) -> Vec<String> {
        let now = Instant::now();
        let due = self.until.iter().filter(|(_, until)| **until <= now).map(|(node, _)| node.clone()).collect();
        self.until.retain(|_, until| *until > now);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> BTreeMap<String, Registration> {
        let node = |name: &str| Registration { node: name.to_owned(), ..Registration::default() };
        names.iter().map(|name| ((*name).to_owned(), node(name))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_missing_from_a_list_is_given_the_time_of_a_lease() {
        let grace = Duration::from_secs(5);
        let mut missing = Missing::default();
        let before = Arc::new(nodes(&["a", "b"]));
        let view = missing.merge(&before, nodes(&[]), grace);
        assert_eq!(view.len(), 2, "etcd without its data does not empty the view");
        tokio::time::advance(Duration::from_secs(3)).await;
        let view = missing.merge(&view, nodes(&["a"]), grace);
        assert_eq!(view.len(), 2);
        tokio::time::advance(Duration::from_secs(3)).await;
        missing.renew(grace);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(missing.take_due().is_empty(), "etcd was away: the time begins anew");
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(missing.take_due(), ["b"], "`a` has come back, `b` has not");
        assert_eq!(missing.next(), None);
    }
}
