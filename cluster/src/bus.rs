//! Events: what happened, for whoever wants to know.
//!
//! The embedded twin is a broadcast within the process. As with core NATS, a subject has no memory: who is not
//! subscribed, or too slow, misses events.

use tokio::sync::broadcast;

/// Events that a slow subscriber may be behind before it misses some.
const CAPACITY: usize = 1024;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Dot-separated, such as `version.quarantined`.
    pub subject: String,
    /// For people and programs: a line of text.
    pub text: String,
}

/// A cheap handle to the bus.
#[derive(Clone)]
pub struct Bus {
    events: broadcast::Sender<Event>,
}

impl Bus {
    /// A bus within this process.
    pub fn embedded() -> Self {
        Self { events: broadcast::Sender::new(CAPACITY) }
    }

    /// Tells everybody who is subscribed.
    pub fn publish(&self, subject: &str, text: impl Into<String>) {
        // nobody being subscribed is the usual case, not an error
        let _ = self.events.send(Event { subject: subject.to_owned(), text: text.into() });
    }

    /// All events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}
