//! Bytes of messages and answers that a process holds at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use sensorium_actors::error::{Error, Result};
use sensorium_plane::inbound::Share;

/// When to come again: what is held is given back as soon as it is answered and taken.
const SOON: Duration = Duration::from_millis(500);

/// The part that the calls of one connection may hold together.
const OF_ONE_CONNECTION: usize = 4;

/// A cheap handle.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    limit: usize,
    of_one_connection: usize,
    used: AtomicUsize,
    gauge: metrics::Gauge,
}

/// A part of the budget, given back when dropped.
pub struct Charge {
    budget: Budget,
    share: Share,
    bytes: usize,
}

impl Budget {
    /// So many bytes at a time, and a message of `message_bytes` in any case.
    pub fn new(limit: usize, message_bytes: usize) -> Self {
        let gauge = metrics::gauge!("sensorium_buffered_bytes");
        // the answer may be as large as the message, and is there twice while it is written
        let least = message_bytes.saturating_mul(3);
        let of_one_connection = (limit / OF_ONE_CONNECTION).max(least);
        Self(Arc::new(Inner { limit: limit.max(least), of_one_connection, used: AtomicUsize::new(0), gauge }))
    }

    /// A charge that can grow, to a connection's account.
    pub fn nothing(&self, share: Share) -> Charge {
        Charge { budget: self.clone(), share, bytes: 0 }
    }

    /// A part of so many bytes, to a connection's account.
    ///
    /// # Errors
    /// `Exhausted` if there are not so many left.
    pub fn take(&self, share: Share, bytes: usize) -> Result<Charge> {
        let mut charge = self.nothing(share);
        charge.become_of(bytes)?;
        Ok(charge)
    }
}

/// Adds to `used` unless that would pass the limit; then what is used is the error.
fn add(used: &AtomicUsize, more: usize, limit: usize) -> Result<(), usize> {
    let before = used.fetch_add(more, Relaxed);
    if before.saturating_add(more) <= limit {
        return Ok(());
    }
    used.fetch_sub(more, Relaxed);
    Err(before)
}

fn exhausted(held: usize, by: &str, limit: usize) -> Error {
    metrics::counter!("sensorium_admission_refused_total", "reason" => "bytes").increment(1);
    let message = format!("messages and answers of {by} hold {held} bytes, the limit is {limit}");
    Error::Exhausted { reason: "BYTES_LIMIT", message, retry_after: SOON }
}

impl Charge {
    /// Makes it so many bytes.
    ///
    /// # Errors
    /// `Exhausted` if there are not so many left; it stays as it was.
    pub fn become_of(&mut self, bytes: usize) -> Result<()> {
        if bytes == self.bytes {
            return Ok(());
        }
        let Inner { limit, of_one_connection, used, gauge } = &*self.budget.0;
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            add(&self.share.0, more, *of_one_connection)
                .map_err(|held| exhausted(held, "this connection", *of_one_connection))?;
            if let Err(held) = add(used, more, *limit) {
                self.share.0.fetch_sub(more, Relaxed);
                return Err(exhausted(held, "this gateway", *limit));
            }
        } else {
            self.share.0.fetch_sub(self.bytes - bytes, Relaxed);
            used.fetch_sub(self.bytes - bytes, Relaxed);
        }
        self.bytes = bytes;
        #[allow(clippy::cast_precision_loss)]
        gauge.set(used.load(Relaxed) as f64);
        Ok(())
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        // to give back does not fail
        let _ = self.become_of(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_back_and_never_more_than_there_is() {
        let budget = Budget::new(100, 8);
        let one = Share::default();
        let mut first = budget.take(one.clone(), 20).unwrap();
        let refused = budget.take(one.clone(), 6).err().unwrap();
        assert!(refused.to_string().contains("this connection hold 20 bytes, the limit is 25"), "{refused}");
        let others: Vec<_> = (0..3).map(|_| budget.take(Share::default(), 25).unwrap()).collect();
        let refused = budget.take(Share::default(), 6).err().unwrap();
        assert!(refused.to_string().contains("this gateway hold 95 bytes, the limit is 100"), "{refused}");
        first.become_of(25).unwrap();
        assert!(first.become_of(26).is_err());
        assert_eq!(first.bytes(), 25);
        first.become_of(1).unwrap();
        drop((first, others));
        assert_eq!((budget.0.used.load(Relaxed), one.0.load(Relaxed)), (0, 0));
    }
}
