//! Events: what happened, for whoever wants to know.
//!
//! Within the process they are a broadcast; where there is NATS, [`Jobs::announce`](crate::jobs::Jobs::announce) passes
//! them on to it. As with core NATS, a subject has no memory: who is not subscribed, or too slow, misses events.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::broadcast;

/// Events that a slow subscriber may be behind before it misses some.
const CAPACITY: usize = 1024;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Dot-separated, such as `worker.ejected`.
    pub subject: &'static str,
    /// The node that tells it.
    pub node: String,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What is to be said of it.
    #[serde(flatten)]
    pub details: Value,
}

/// A cheap handle to the bus.
#[derive(Clone)]
pub struct Bus {
    node: Arc<str>,
    events: broadcast::Sender<Event>,
}

impl Bus {
    /// The bus of a process, the node of this name.
    pub fn new(node: &str) -> Self {
        Self { node: node.into(), events: broadcast::Sender::new(CAPACITY) }
    }

    /// Tells everybody who is subscribed. `details` is an object.
    pub fn publish(&self, subject: &'static str, details: Value) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        // nobody being subscribed is the usual case, not an error
        let _ = self.events.send(Event { subject, node: self.node.to_string(), at_ms, details });
    }

    /// All events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}
