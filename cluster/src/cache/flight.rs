//! Values that are being computed, and who waits for them.

use std::sync::Arc;

use bytes::Bytes;
use dashmap::{DashMap, Entry};
use futures::FutureExt;
use futures::future::Shared;
use tokio::sync::oneshot;

use super::Key;

type Landing = Shared<oneshot::Receiver<Bytes>>;

/// All that are under way; a cheap handle.
#[derive(Clone, Default)]
pub(super) struct Flights {
    under_way: Arc<DashMap<Key, Landing>>,
}

/// Where an asker stands.
pub(super) enum Place {
    First(Claim),
    Behind(Waiter),
}

impl Flights {
    pub(super) fn enter(&self, key: Key) -> Place {
        match self.under_way.entry(key) {
            Entry::Occupied(flight) => Place::Behind(Waiter(flight.get().clone())),
            Entry::Vacant(vacant) => {
                let (landing, landed) = oneshot::channel();
                vacant.insert(landed.shared());
                Place::First(Claim { key, landing: Some(landing), flights: self.clone() })
            }
        }
    }
}

/// The duty to compute a value. Dropped, it is given up, and those who wait are told.
pub struct Claim {
    key: Key,
    landing: Option<oneshot::Sender<Bytes>>,
    flights: Flights,
}

impl Claim {
    /// Of which value.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Gives the value to those who wait.
    pub(super) fn land(mut self, value: Bytes) {
        if let Some(landing) = self.landing.take() {
            // nobody waiting is the usual case
            let _ = landing.send(value);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.flights.under_way.remove(&self.key);
    }
}

/// Waits for a value that somebody else computes.
pub struct Waiter(Landing);

impl Waiter {
    /// The value; nothing if whoever computed it has failed or gone.
    pub async fn wait(self) -> Option<Bytes> {
        self.0.await.ok()
    }
}
