//! Where decoding, resampling and tokenising happen: on blocking threads, as many at once as there are cores.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::room::{Room, Share};
use crate::error::{Error, Result};
use crate::request::Context;

/// A bounded share of the runtime's blocking threads.
#[derive(Clone)]
pub struct Pool {
    permits: Arc<Semaphore>,
    room: Room,
}

impl Pool {
    /// At most `threads` jobs at once; more wait in order. What they decode to is at most `decoded_bytes` at a time.
    pub fn new(threads: usize, decoded_bytes: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(threads.max(1))), room: Room::new(decoded_bytes) }
    }

    /// Waits for room for what `field` decodes to. To be had before a thread is: nobody who has one waits for the other.
    pub(super) async fn room(&self, bytes: u64, field: &str, context: &Context) -> Result<Share> {
        self.room.take(bytes, field, context).await
    }

    /// Runs `job` on the pool. A job whose caller has gone before its turn is never run; a panic is an internal error
    /// of this request alone.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| Error::lost("the decoding pool"))?;
        tokio::task::spawn_blocking(move || {
            let done = job();
            drop(permit);
            done
        })
        .await
        .map_err(|error| Error::Internal(format!("decoding failed: {error}")))
    }
}
