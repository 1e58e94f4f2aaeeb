//! The permit at the door: a bounded number of requests inside, the rest refused at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// Hands out permits; a cheap handle.
#[derive(Clone)]
pub struct Admission {
    permits: Arc<Semaphore>,
    limit: u32,
    draining: Arc<AtomicBool>,
    in_flight: metrics::Gauge,
}

/// The right to be inside, given back when dropped.
pub struct Permit {
    _permit: OwnedSemaphorePermit,
    in_flight: metrics::Gauge,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_flight.decrement(1);
    }
}

impl Admission {
    /// At most `limit` requests inside.
    pub fn new(limit: u32) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limit as usize)),
            limit,
            draining: Arc::default(),
            in_flight: metrics::gauge!("sensorium_inflight_requests"),
        }
    }

    /// Lets a request in, or says when to come again. Never waits: a queue at the door would only hide the overload.
    pub fn enter(&self) -> Result<Permit> {
        if self.is_draining() {
            metrics::counter!("sensorium_admission_refused_total", "reason" => "draining").increment(1);
            return Err(Error::Unavailable {
                reason: "DRAINING",
                message: "the server is draining".to_owned(),
                retry_after: Duration::from_secs(1),
            });
        }
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            metrics::counter!("sensorium_admission_refused_total", "reason" => "concurrency").increment(1);
            return Err(Error::Exhausted {
                reason: "CONCURRENCY_LIMIT",
                message: format!("{} requests are in work, the limit", self.limit),
                retry_after: Duration::from_millis(100),
            });
        };
        self.in_flight.increment(1);
        Ok(Permit { _permit: permit, in_flight: self.in_flight.clone() })
    }

    /// Requests inside.
    pub fn in_flight(&self) -> usize {
        self.limit as usize - self.permits.available_permits()
    }

    /// Whether new requests are refused.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Refuses all that come from now on, and waits for those inside.
    pub async fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        // all permits together are ours once nobody is inside; the semaphore is never closed
        let _ = self.permits.acquire_many(self.limit).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_limit_holds_and_a_drain_waits_for_those_inside() {
        let admission = Admission::new(2);
        let one = admission.enter().unwrap();
        let two = admission.enter().unwrap();
        assert_eq!(admission.enter().err().unwrap().code(), "resource_exhausted");
        drop(one);
        let three = admission.enter().unwrap();
        let draining = tokio::spawn({
            let admission = admission.clone();
            async move { admission.drain().await }
        });
        tokio::task::yield_now().await;
        assert_eq!(admission.enter().err().unwrap().code(), "unavailable");
        assert!(!draining.is_finished());
        drop((two, three));
        draining.await.unwrap();
    }
}
