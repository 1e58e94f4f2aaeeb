//! True figures of one model version: what ModelStatistics and the metrics tell.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// How often, and how long altogether.
#[derive(Debug, Default)]
pub struct Tally {
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Tally {
    /// Adds one event.
    pub fn add(&self, took: Duration) {
        self.add_many(1, took);
    }

    /// Adds `count` events that took this long altogether.
    pub fn add_many(&self, count: u64, took: Duration) {
        self.count.fetch_add(count, Relaxed);
        self.nanoseconds.fetch_add(nanoseconds(took), Relaxed);
    }

    /// (count, nanoseconds).
    pub fn get(&self) -> (u64, u64) {
        (self.count.load(Relaxed), self.nanoseconds.load(Relaxed))
    }
}

/// Figures of all batches of one size.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchTally {
    /// Batches executed.
    pub count: u64,
    /// Nanoseconds of stacking and padding.
    pub input_ns: u64,
    /// Nanoseconds on the device.
    pub infer_ns: u64,
    /// Nanoseconds of splitting the outputs.
    pub output_ns: u64,
}

/// How one batch went.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchTiming {
    /// Stacking and padding.
    pub input: Duration,
    /// On the device.
    pub infer: Duration,
    /// Splitting the outputs.
    pub output: Duration,
}

/// Counters of one model version since it was loaded.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests answered, over their whole time in the worker.
    pub success: Tally,
    /// Requests failed.
    pub fail: Tally,
    /// Requests cancelled by their caller.
    pub cancel: Tally,
    /// Rows' time in the queue.
    pub queue: Tally,
    /// Stacking and padding; each row of a batch counts the whole batch's time, as it waited for it.
    pub compute_input: Tally,
    /// On the device; likewise.
    pub compute_infer: Tally,
    /// Splitting outputs; likewise.
    pub compute_output: Tally,
    /// Answers from the cache.
    pub cache_hit: Tally,
    /// Look-ups in vain.
    pub cache_miss: Tally,
    /// Milliseconds since the epoch of the last inference.
    pub last_inference_ms: AtomicU64,
    /// Rows inferred.
    pub inference_count: AtomicU64,
    /// Batches executed.
    pub execution_count: AtomicU64,
    /// Tokens, or rows, that were computed for real.
    pub useful_tokens: AtomicU64,
    /// Tokens, or rows, that were computed as padding.
    pub padding_tokens: AtomicU64,
    /// Pieces of generated text, and their time between.
    pub pieces: Tally,
    /// Bytes that the loaded replicas hold.
    pub memory_bytes: AtomicU64,
    batches: Mutex<BTreeMap<u64, BatchTally>>,
}

impl Stats {
    /// Notes an executed batch of `rows`, of which `inferences` end with it: all of a call's, few of a decoding step's.
    pub fn batch(&self, rows: u64, inferences: u64, timing: BatchTiming) {
        self.inference_count.fetch_add(inferences, Relaxed);
        self.execution_count.fetch_add(1, Relaxed);
        let each = u32::try_from(rows).unwrap_or(u32::MAX);
        self.compute_input.add_many(inferences, timing.input * each);
        self.compute_infer.add_many(inferences, timing.infer * each);
        self.compute_output.add_many(inferences, timing.output * each);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_inference_ms.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
        let mut batches = self.batches.lock();
        let tally = batches.entry(rows).or_default();
        tally.count += 1;
        tally.input_ns += nanoseconds(timing.input);
        tally.infer_ns += nanoseconds(timing.infer);
        tally.output_ns += nanoseconds(timing.output);
    }

    /// Figures by batch size, smallest first.
    pub fn batches(&self) -> Vec<(u64, BatchTally)> {
        self.batches.lock().iter().map(|(&size, &tally)| (size, tally)).collect()
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
