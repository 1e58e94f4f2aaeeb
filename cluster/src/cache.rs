//! Answers that have been computed before.
//!
//! The embedded twin is the near-cache alone. Equal look-ups that run at the same time compute once (single-flight).
//! Keys are the caller's: a 128-bit hash of content, model version and preprocessing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use moka::future::Cache as Moka;

/// Content hash of everything that the answer depends on.
pub type Key = u128;

/// How much is kept, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of values at most.
    pub max_bytes: u64,
    /// A value is forgotten after this long.
    pub time_to_live: Duration,
}

/// A cheap handle to the cache.
#[derive(Clone)]
pub struct Cache {
    near: Moka<Key, Bytes>,
}

impl Cache {
    /// A cache within this process.
    pub fn embedded(options: &Options) -> Self {
        let near = Moka::builder()
            .max_capacity(options.max_bytes)
            // an entry costs more than its value: key, hash and queue nodes
            .weigher(|_, value: &Bytes| u32::try_from(value.len() + 128).unwrap_or(u32::MAX))
            .time_to_live(options.time_to_live)
            .build();
        Self { near }
    }

    /// The value, computed at most once at a time. Says whether it was there. An error is not kept.
    pub async fn get_or_try<E: Clone + Send + Sync + 'static>(
        &self,
        key: Key,
        compute: impl Future<Output = Result<Bytes, E>>,
    ) -> Result<(Bytes, bool), E> {
        let entry = self.near.entry(key).or_try_insert_with(compute).await;
        let entry = entry.map_err(|error: Arc<E>| (*error).clone())?;
        let hit = !entry.is_fresh();
        Ok((entry.into_value(), hit))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn equal_look_ups_compute_once_and_errors_are_not_kept() {
        let cache = Cache::embedded(&Options { max_bytes: 1 << 20, time_to_live: Duration::from_secs(60) });
        let calls = AtomicUsize::new(0);
        let compute = || async {
            calls.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok::<_, String>(Bytes::from_static(b"value"))
        };
        let (one, two) = tokio::join!(cache.get_or_try(7, compute()), cache.get_or_try(7, compute()));
        assert_eq!(one.unwrap().0, two.unwrap().0);
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        let failed = cache.get_or_try(8, async { Err::<Bytes, _>("no".to_owned()) }).await;
        assert_eq!(failed.unwrap_err(), "no");
        assert_eq!(cache.get_or_try(8, compute()).await.unwrap(), (Bytes::from_static(b"value"), false));
        assert_eq!(cache.get_or_try(8, compute()).await.unwrap(), (Bytes::from_static(b"value"), true));
    }
}
