//! Threads that carry requests, each with an event loop of its own.
//!
//! On a runtime whose threads take work from each other, every request wakes several of them to ask whether there is
//! something to take; for requests of microseconds that costs more than the work. A connection stays on its lane, and so
//! does all that is done for it here; what takes long belongs elsewhere: models on device threads, decoding on a pool,
//! big copies on [`tokio::task::spawn_blocking`].

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

/// More than this many carry what any pool of workers could take.
const MOST: usize = 8;

thread_local! {
    static LANE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The lanes of a process; they end with the last clone.
#[derive(Clone)]
pub struct Lanes(Arc<Inner>);

struct Inner {
    lanes: Vec<Handle>,
    /// Gone, it ends the threads.
    _open: watch::Sender<()>,
}

impl Lanes {
    /// Starts `count` lanes; 0: one for each core, up to eight.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(count: usize) -> io::Result<Self> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from).min(MOST);
        let count = if count == 0 { cores() } else { count };
        let (_open, open) = watch::channel(());
        let lane = |index: usize| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (handle, mut open) = (runtime.handle().clone(), open.clone());
            std::thread::Builder::new().name(format!("lane-{index}")).spawn(move || {
                LANE.set(Some(index));
                // an error: the last clone is gone
                runtime.block_on(async { while open.changed().await.is_ok() {} });
                runtime.shutdown_background();
            })?;
            Ok(handle)
        };
        let lanes = (0..count).map(lane).collect::<io::Result<Vec<_>>>()?;
        Ok(Self(Arc::new(Inner { lanes, _open })))
    }

    /// One for each lane.
    pub fn handles(&self) -> &[Handle] {
        &self.0.lanes
    }

    /// The lane that this is called on.
    pub fn current() -> Option<usize> {
        LANE.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_lane_is_a_thread_that_ends_with_the_last_clone() {
        let lanes = Lanes::start(3).unwrap();
        assert_eq!(Lanes::current(), None);
        let mut seen = Vec::new();
        for handle in lanes.clone().handles() {
            seen.push(handle.spawn(async { (Lanes::current(), std::thread::current().id()) }).await.unwrap());
        }
        let indices: Vec<_> = seen.iter().map(|(lane, _)| *lane).collect();
        assert_eq!(indices, [Some(0), Some(1), Some(2)]);
        let threads: std::collections::HashSet<_> = seen.iter().map(|(_, thread)| thread).collect();
        assert_eq!(threads.len(), 3);

        let unending = lanes.handles()[0].spawn(std::future::pending::<()>());
        drop(lanes);
        assert!(unending.await.unwrap_err().is_cancelled());
    }
}
