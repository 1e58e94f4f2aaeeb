//! A device's cores, shared in turns.
//!
//! Each call of an engine uses a fixed number of intra-op threads. When more replicas than fit would compute at once,
//! they take turns, first come first served, handing over at every beat: between two layers or decoding steps. So the
//! cores are never oversubscribed, and a long transcription does not hold up an embedding.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How long a turn lasts at least, if its call does. Long enough for an embedding, short enough to wait for.
const QUANTUM: Duration = Duration::from_millis(20);

/// The turns of one device.
pub struct Cores {
    turns: Mutex<Turns>,
    changed: Condvar,
    waiting: AtomicUsize,
}

struct Turns {
    free: usize,
    next_ticket: u64,
    serving: u64,
}

impl Cores {
    /// As many calls at once as `concurrent` says, at least one.
    pub fn new(concurrent: usize) -> Self {
        Self {
            turns: Mutex::new(Turns { free: concurrent.max(1), next_ticket: 0, serving: 0 }),
            changed: Condvar::new(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for a turn. Blocks: for device threads only.
    pub fn take(self: &Arc<Self>) -> Turn {
        self.enter();
        let hold = Hold { cores: self.clone(), released: Arc::default() };
        Turn { hold, since: Cell::new(Instant::now()) }
    }

    fn enter(&self) {
        let mut turns = self.turns.lock();
        let ticket = turns.next_ticket;
        turns.next_ticket += 1;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        while turns.serving != ticket || turns.free == 0 {
            self.changed.wait(&mut turns);
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        turns.serving += 1;
        turns.free -= 1;
        // more may be free for the next in line
        self.changed.notify_all();
    }

    fn leave(&self) {
        self.turns.lock().free += 1;
        self.changed.notify_all();
    }
}

/// What a turn holds, for whoever has to take it away from a thread that hangs.
#[derive(Clone)]
pub struct Hold {
    cores: Arc<Cores>,
    released: Arc<AtomicBool>,
}

impl Hold {
    /// Gives the turn back, once.
    pub fn release(&self) {
        if !self.released.swap(true, Ordering::AcqRel) {
            self.cores.leave();
        }
    }
}

/// The right to compute; given back when dropped.
pub struct Turn {
    hold: Hold,
    since: Cell<Instant>,
}

impl Turn {
    /// Lets others have their turn, if any wait and this one has lasted long enough.
    pub fn hand_over(&self) {
        let cores = &self.hold.cores;
        let waited_for = cores.waiting.load(Ordering::Relaxed) > 0 && self.since.get().elapsed() >= QUANTUM;
        // a turn that was taken away is no longer ours to give
        if waited_for && !self.hold.released.load(Ordering::Acquire) {
            cores.leave();
            cores.enter();
            self.since.set(Instant::now());
        }
    }

    /// For whoever has to take it away.
    pub fn hold(&self) -> Hold {
        self.hold.clone()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.hold.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_that_is_taken_away_is_given_back_once() {
        let cores = Arc::new(Cores::new(1));
        let hung = cores.take();
        hung.hold().release();
        let next = cores.take();
        drop(hung);
        assert_eq!(cores.turns.lock().free, 0, "the next one still has it");
        drop(next);
        assert_eq!(cores.turns.lock().free, 1);
    }

    #[test]
    fn never_more_at_once_than_allowed_and_everyone_gets_a_turn() {
        let cores = Arc::new(Cores::new(2));
        let inside = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..6)
            .map(|_| {
                let (cores, inside) = (cores.clone(), inside.clone());
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        let turn = cores.take();
                        for round in 0..3 {
                            if round == 1 {
                                turn.since.set(Instant::now() - QUANTUM);
                            }
                            let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                            assert!(now <= 2, "{now} at once");
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            turn.hand_over();
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(inside.load(Ordering::SeqCst), 0);
    }
}
