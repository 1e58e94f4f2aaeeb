//! Room for decoded images and clips: a few small files can decode to more than the machine has.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::request::Context;

/// What a permit stands for.
const UNIT: usize = 1 << 10;
/// How long a request without a deadline waits for room.
const PATIENCE: Duration = Duration::from_secs(120);
/// When to come again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Bytes that all requests of the process share.
#[derive(Clone)]
pub(super) struct Room {
    units: Arc<Semaphore>,
    all: usize,
}

/// A share of them, given back when it is dropped.
pub(super) struct Share {
    permit: OwnedSemaphorePermit,
}

impl Share {
    /// Gives back what is beyond `bytes`.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let units = usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(UNIT);
        drop(self.permit.split(self.permit.num_permits().saturating_sub(units)));
    }
}

impl Room {
    /// Room for `bytes`.
    pub(super) fn new(bytes: usize) -> Self {
        let all = (bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self { units: Arc::new(Semaphore::new(all)), all }
    }

    /// Waits for room for `bytes`, which are to hold what `field` decodes to.
    ///
    /// # Errors
    /// `InvalidArgument` if there will never be so much; `Exhausted` if others hold it for nearly as long as the request's
    /// deadline allows: what would be decoded after that would be too late.
    pub(super) async fn take(&self, bytes: u64, field: &str, context: &Context) -> Result<Share> {
        let units = usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil(UNIT);
        let Some(units) = u32::try_from(units).ok().filter(|_| units <= self.all) else {
            let limit = self.all * UNIT;
            let why = format!("decodes to about {bytes} bytes, the limit for all requests together is {limit}");
            return Err(Error::invalid(field, why));
        };
        let now = Instant::now();
        let patience = context.deadline.map_or(PATIENCE, |deadline| deadline.saturating_duration_since(now) * 9 / 10);
        let waiting = self.units.clone().acquire_many_owned(units);
        match Box::pin(tokio::time::timeout(patience, waiting)).await {
            Ok(permit) => Ok(Share { permit: permit.map_err(|_| Error::lost("the decoding pool"))? }),
            Err(_) => Err(Error::Exhausted {
                reason: "DECODING_FULL",
                message: format!("{field} decodes to about {bytes} bytes, and other requests hold the room for them"),
                retry_after: RETRY_AFTER,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_never_fits_is_refused_and_what_does_not_fit_now_waits() {
        let room = Room::new(10 << 10);
        let hurry = Context { deadline: Some(Instant::now() + Duration::from_secs(10)), ..Context::default() };
        let refused = |taken: Result<Share>| taken.err().unwrap();
        let code = refused(room.take(11 << 10, "image", &hurry).await);
        assert_eq!(code.code(), "invalid_argument", "{code}");
        assert_eq!(refused(room.take(u64::MAX, "image", &hurry).await).code(), "invalid_argument");

        let held = room.take(8 << 10, "image", &hurry).await.unwrap();
        let small = room.take(1, "image", &hurry).await.unwrap();
        let full = refused(room.take(2 << 10, "image", &hurry).await);
        assert_eq!(full.code(), "resource_exhausted", "{full}");
        assert!(hurry.deadline.unwrap() > Instant::now(), "it is told before the deadline");
        let waiting = tokio::spawn({
            let room = room.clone();
            async move { room.take(10 << 10, "image", &Context::default()).await.map(drop) }
        });
        tokio::task::yield_now().await;
        drop(small);
        assert_eq!(room.units.available_permits(), 0, "kept for the one that waits");
        let mut held = held;
        held.shrink(1 << 10);
        held.shrink(5 << 10);
        assert_eq!(held.permit.num_permits(), 1);
        drop(held);
        waiting.await.unwrap().unwrap();
    }
}
