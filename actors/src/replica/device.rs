//! The device thread: what it holds in its hands, and the pulse by which it is watched.
//!
//! A hung call cannot be killed, so the entries of a batch never live on the thread's own stack: they lie in its
//! [`Hands`], from where the watchdog can take them and give them to another replica. A thread that comes back from the
//! dead finds its hands empty and leaves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::cores::{Hold, Turn};
use crate::batching::batcher::Batch;
use crate::engine::{Interrupted, Pulse};

/// The entries that the thread works on, and its heartbeat.
pub struct Hands {
    held: Mutex<Option<Batch>>,
    /// The turn of the call in work.
    turn: Mutex<Option<Hold>>,
    /// Milliseconds after `born` of the last beat, plus one; 0 while idle.
    beat: AtomicU64,
    born: Instant,
}

impl Default for Hands {
    fn default() -> Self {
        Self {
            held: Mutex::new(Some(Vec::new())),
            turn: Mutex::new(None),
            beat: AtomicU64::new(0),
            born: Instant::now(),
        }
    }
}

impl Hands {
    /// Takes everything for good, also the turn on the cores: the thread is written off. `None` if that has been done
    /// before.
    pub fn write_off(&self) -> Option<Batch> {
        let held = self.held.lock().take();
        if let Some(turn) = self.turn.lock().take() {
            turn.release();
        }
        held
    }

    /// The thread ends and takes nothing more: it cannot be written off from now on. Whether it had been before.
    pub fn close(&self) -> bool {
        self.held.lock().take().is_none()
    }

    /// Works on what is held; `None` if the thread has been written off.
    pub fn with<R>(&self, work: impl FnOnce(&mut Batch) -> R) -> Option<R> {
        self.held.lock().as_mut().map(work)
    }

    /// Takes what is held, leaving the hands open; `None` if the thread has been written off.
    pub fn empty(&self) -> Option<Batch> {
        self.with(std::mem::take)
    }

    /// The device is alive and busy.
    pub fn beat(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat.store(now + 1, Ordering::Relaxed);
    }

    /// The device is idle; it owes no beats.
    pub fn rest(&self) {
        self.beat.store(0, Ordering::Relaxed);
    }

    /// How long the device has been silent in the middle of a call.
    pub fn silence(&self) -> Duration {
        match self.beat.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            beat => self.born.elapsed().saturating_sub(Duration::from_millis(beat - 1)),
        }
    }
}

/// The pulse of one call.
pub struct Heart<'a> {
    hands: &'a Hands,
    turn: Option<&'a Turn>,
    /// Whether the call is pointless once nobody waits for anything it holds.
    interruptible: bool,
}

impl<'a> Heart<'a> {
    /// A pulse for a call that holds `turn`, if it needs the cores at all.
    pub fn new(hands: &'a Hands, turn: Option<&'a Turn>, interruptible: bool) -> Self {
        *hands.turn.lock() = turn.map(Turn::hold);
        hands.beat();
        Self { hands, turn, interruptible }
    }
}

impl Drop for Heart<'_> {
    fn drop(&mut self) {
        self.hands.turn.lock().take();
    }
}

impl Pulse for Heart<'_> {
    fn beat(&self) -> Result<(), Interrupted> {
        self.hands.rest(); // waiting for a turn is not hanging
        if let Some(turn) = self.turn {
            turn.hand_over();
        }
        self.hands.beat();
        let waited_for = self.hands.with(|held| held.iter().any(|(_, entry)| !entry.abandoned()));
        match waited_for {
            Some(true) => Ok(()),
            Some(false) if !self.interruptible => Ok(()),
            _ => Err(Interrupted),
        }
    }
}
