//! Where decoding, resampling and tokenising happen: on blocking threads, as many at once as there are cores.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::error::{Error, Result};

/// A bounded share of the runtime's blocking threads.
#[derive(Clone)]
pub struct Pool {
    permits: Arc<Semaphore>,
}

impl Pool {
    /// At most `threads` jobs at once; more wait in order.
    pub fn new(threads: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(threads.max(1))) }
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
