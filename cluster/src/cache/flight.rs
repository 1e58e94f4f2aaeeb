//! Values that are being computed, and who waits for them.
//!
//! Whoever asks first holds the [`Claim`] to compute a value. If it turns away, because its caller has or its deadline has
//! passed, the next in the line takes the claim over: a value is computed by one at a time, and lost by nobody's leaving.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use dashmap::{DashMap, Entry};
use tokio::sync::oneshot;

use super::Key;

/// Failures of a value's computation after which all who wait are told: if it is the value that fails, one after the other
/// would only wait for the same.
const FAILURES: u32 = 2;

/// What becomes of a wait.
pub enum Landed {
    /// The value.
    Value(Bytes),
    /// Whoever computed it has gone: it is up to the one that waited.
    Claim(Claim),
    /// It could not be computed.
    Failed,
}

/// A value that is being computed.
#[derive(Default)]
struct Flight {
    failures: u32,
    waiting: VecDeque<oneshot::Sender<Landed>>,
}

/// All that are under way; a cheap handle.
#[derive(Clone, Default)]
pub(super) struct Flights {
    under_way: Arc<DashMap<Key, Flight>>,
}

/// Where an asker stands.
pub(super) enum Place {
    First(Claim),
    Behind(Waiter),
}

impl Flights {
    pub(super) fn enter(&self, key: Key) -> Place {
        match self.under_way.entry(key) {
            Entry::Occupied(mut flight) => {
                let waiting = &mut flight.get_mut().waiting;
                // those who have turned away leave no place behind, however long the flight is
                if waiting.len() == waiting.capacity() {
                    waiting.retain(|waiter| !waiter.is_closed());
                }
                let (landing, landed) = oneshot::channel();
                waiting.push_back(landing);
                Place::Behind(Waiter(landed))
            }
            Entry::Vacant(vacant) => {
                vacant.insert(Flight::default());
                Place::First(Claim { key, flights: self.clone(), is_over: false })
            }
        }
    }

    /// Ends a flight; gives who waited for it.
    fn end(&self, key: Key) -> VecDeque<oneshot::Sender<Landed>> {
        self.under_way.remove(&key).map(|(_, flight)| flight.waiting).unwrap_or_default()
    }

    /// Gives the claim of a flight to the next who still waits, or ends it if nobody does.
    fn hand_over(&self, key: Key) {
        loop {
            let next = match self.under_way.entry(key) {
                Entry::Vacant(_) => return,
                Entry::Occupied(mut flight) => match flight.get_mut().waiting.pop_front() {
                    Some(next) => next,
                    None => {
                        flight.remove();
                        return;
                    }
                },
            };
            let claim = Claim { key, flights: self.clone(), is_over: false };
            match next.send(Landed::Claim(claim)) {
                Ok(()) => return,
                // it has turned away; its claim is not dropped, or it would be handed over twice
                Err(Landed::Claim(mut claim)) => claim.is_over = true,
                Err(_) => {}
            }
        }
    }
}

/// The duty to compute a value. Dropped, it goes to the next who waits.
pub struct Claim {
    key: Key,
    flights: Flights,
    is_over: bool,
}

impl Claim {
    /// Of which value.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Gives the value to those who wait, and to nobody after them.
    pub fn land(mut self, value: &Bytes) {
        self.is_over = true;
        for waiter in self.flights.end(self.key) {
            // one that has turned away needs it no more
            let _ = waiter.send(Landed::Value(value.clone()));
        }
    }

    /// Says that the value could not be computed. The next who waits tries, and if that has been so before, each for itself.
    pub fn fail(mut self) {
        let failed_again = match self.flights.under_way.get_mut(&self.key) {
            Some(mut flight) => {
                flight.failures += 1;
                flight.failures >= FAILURES
            }
            None => false,
        };
        if failed_again {
            self.is_over = true;
            for waiter in self.flights.end(self.key) {
                // one that has turned away need not know
                let _ = waiter.send(Landed::Failed);
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_over {
            self.flights.hand_over(self.key);
        }
    }
}

/// Waits for a value that somebody else computes.
pub struct Waiter(oneshot::Receiver<Landed>);

impl Waiter {
    /// What becomes of it.
    pub async fn wait(self) -> Landed {
        // a flight ends by saying something to each
        self.0.await.unwrap_or(Landed::Failed)
    }
}
