//! The metrics of a model version, by the names that operators know. Handles are made once: looking a metric up costs
//! more than counting.

use std::sync::Arc;
use std::time::Instant;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::manifest::{Manifest, Modality};
use crate::stats::{BatchTiming, Stats};

/// Handles to one version's metrics, and its statistics.
pub struct VersionMetrics {
    /// What ModelStatistics tells.
    pub stats: Stats,
    /// Rows that wait.
    pub queue_depth: Gauge,
    /// Rows refused since the queue was full.
    pub refused: Counter,
    /// Rows whose deadline or timeout passed in the queue.
    pub expired: Counter,
    /// Rows that nobody waited for any more.
    pub abandoned: Counter,
    /// Rows or sequences for which the model computed NaN or infinity.
    pub non_finite: Counter,
    /// Seconds in the queue.
    pub queue: Histogram,
    /// Seconds on the device.
    pub compute: Histogram,
    /// Rows of a batch.
    pub batch_size: Histogram,
    /// Tokens computed for real.
    pub useful_tokens: Counter,
    /// Tokens computed as padding.
    pub padding_tokens: Counter,
    /// Tokens generated.
    pub generated_tokens: Counter,
    /// Seconds from the queue to the first token.
    pub first_token: Histogram,
    /// Seconds of a decoding step.
    pub step: Histogram,
    /// Replicas that are ready.
    pub replicas_ready: Gauge,
    /// Seconds of a request in the worker.
    pub request: Histogram,
    answered: Counter,
    model: String,
    version: String,
    modality: Modality,
}

impl VersionMetrics {
    /// Registers the metrics of a version.
    pub fn new(manifest: &Manifest, version: u64) -> Self {
        let (model, version, modality) = (manifest.name.clone(), version.to_string(), manifest.modality);
        let labels =
            [("model", model.clone()), ("version", version.clone()), ("modality", modality.as_str().to_owned())];
        Self {
            stats: Stats::default(),
            queue_depth: gauge!("sensorium_queue_depth", &labels),
            refused: counter!("sensorium_queue_refused_total", &labels),
            expired: counter!("sensorium_queue_expired_total", &labels),
            abandoned: counter!("sensorium_queue_abandoned_total", &labels),
            non_finite: counter!("sensorium_non_finite_outputs_total", &labels),
            queue: histogram!("sensorium_queue_duration_seconds", &labels),
            compute: histogram!("sensorium_compute_duration_seconds", &labels),
            batch_size: histogram!("sensorium_batch_size", &labels),
            useful_tokens: counter!("sensorium_batch_useful_tokens_total", &labels),
            padding_tokens: counter!("sensorium_batch_padding_tokens_total", &labels),
            generated_tokens: counter!("sensorium_generated_tokens_total", &labels),
            first_token: histogram!("sensorium_time_to_first_token_seconds", &labels),
            step: histogram!("sensorium_decode_step_duration_seconds", &labels),
            replicas_ready: gauge!("sensorium_replicas_ready", &labels),
            request: histogram!("sensorium_request_duration_seconds", &labels),
            answered: requests(&model, &version, modality, "ok"),
            model,
            version,
            modality,
        }
    }

    /// Notes an executed batch; lengths 0 count as 1.
    #[allow(clippy::cast_precision_loss)]
    pub fn batch(&self, rows: usize, useful: usize, padded: usize, timing: BatchTiming) {
        use std::sync::atomic::Ordering::Relaxed;
        self.stats.batch(rows as u64, rows as u64, timing);
        self.stats.useful_tokens.fetch_add(useful as u64, Relaxed);
        self.stats.padding_tokens.fetch_add((padded - useful) as u64, Relaxed);
        self.useful_tokens.increment(useful as u64);
        self.padding_tokens.increment((padded - useful) as u64);
        self.batch_size.record(rows as f64);
        self.compute.record(timing.infer);
    }

    /// Notes a step of `rows` sequences, of which `finished` end with it.
    #[allow(clippy::cast_precision_loss)]
    pub fn step(&self, rows: usize, finished: usize, timing: BatchTiming) {
        self.stats.batch(rows as u64, finished as u64, timing);
        self.batch_size.record(rows as f64);
        self.compute.record(timing.infer);
        self.step.record(timing.infer);
    }

    /// Notes a finished request.
    pub fn request_done(&self, code: &'static str, took: std::time::Duration) {
        self.request.record(took);
        if code == "ok" {
            self.stats.success.add(took);
            self.answered.increment(1);
            return;
        }
        let tally = if code == "cancelled" { &self.stats.cancel } else { &self.stats.fail };
        tally.add(took);
        requests(&self.model, &self.version, self.modality, code).increment(1);
    }
}

fn requests(model: &str, version: &str, modality: Modality, code: &'static str) -> Counter {
    let (model, version) = (model.to_owned(), version.to_owned());
    let modality = modality.as_str();
    counter!("sensorium_requests_total", "model" => model, "version" => version, "modality" => modality, "code" => code)
}

/// Notes a request as finished when dropped; one that is dropped before its code is set was cancelled.
pub struct Finished {
    /// How it ended.
    pub code: &'static str,
    metrics: Arc<VersionMetrics>,
    started: Instant,
}

impl Finished {
    /// A request starts.
    pub fn new(metrics: Arc<VersionMetrics>) -> Self {
        Self { code: "cancelled", metrics, started: Instant::now() }
    }
}

impl Drop for Finished {
    fn drop(&mut self) {
        self.metrics.request_done(self.code, self.started.elapsed());
    }
}

/// Says what each metric means, for `/metrics`.
pub fn describe() {
    use metrics::{Unit, describe_counter as count, describe_gauge as level, describe_histogram as spread};
    level!("sensorium_queue_depth", "Rows that wait for a replica");
    count!("sensorium_queue_refused_total", "Rows refused since the queue was full");
    count!("sensorium_queue_expired_total", "Rows whose deadline or timeout passed in the queue");
    count!("sensorium_queue_abandoned_total", "Rows that nobody waited for any more when their turn came");
    count!("sensorium_non_finite_outputs_total", "Rows or sequences for which the model computed NaN or infinity");
    spread!("sensorium_queue_duration_seconds", Unit::Seconds, "Time of a row in the queue");
    spread!("sensorium_compute_duration_seconds", Unit::Seconds, "Time of a batch on the device");
    spread!("sensorium_batch_size", "Rows of a batch");
    count!("sensorium_batch_useful_tokens_total", "Tokens, or rows without length, that were computed");
    count!("sensorium_batch_padding_tokens_total", "Tokens that were computed as padding");
    count!("sensorium_generated_tokens_total", "Tokens generated");
    spread!("sensorium_time_to_first_token_seconds", Unit::Seconds, "From the queue to the first generated token");
    spread!("sensorium_decode_step_duration_seconds", Unit::Seconds, "Time of one decoding step of all sequences");
    level!("sensorium_replicas_ready", "Replicas that are loaded and warm");
    spread!("sensorium_request_duration_seconds", Unit::Seconds, "Time of a request in the worker");
    count!("sensorium_requests_total", "Requests by their status code");
    count!("sensorium_actor_restarts_total", "Actors started again, by kind");
    count!("sensorium_retries_total", "Calls that were tried again, by what had become of the one before");
    count!("sensorium_retry_budget_exhausted_total", "Calls that were not tried again, to spare the workers");
    count!("sensorium_hedges_total", "Calls made beside one that took long");
    count!("sensorium_ejections_total", "Workers that nobody called for a while, after failures in a row");
    level!("sensorium_ejected_workers", "Workers that nobody calls at the moment");
    level!("sensorium_route_workers", "Workers of a model that this gateway calls");
    level!("sensorium_dependency_up", "1 if etcd, NATS or Redis answers, 0 if it is stale or down");
    level!("sensorium_dependency_unwell_seconds", Unit::Seconds, "For how long it has been stale or down");
    level!("sensorium_inflight_requests", "Requests admitted and not yet answered");
    count!("sensorium_admission_refused_total", "Requests refused at the door or on the way to a model, by why");
    level!("sensorium_admission_limit", "Requests for a model that may be in work at the moment");
    count!("sensorium_quarantines_total", "Versions given up after failing too often, by model");
    count!("sensorium_guard_triggered_total", "Answers of an upstream model that a guard kept from the next, by model");
    count!("sensorium_hung_device_threads_total", "Device threads left behind in a call that did not end in time");
    level!("sensorium_hung_device_threads", "Device threads left behind in such a call that has not ended yet");
    count!(
        "sensorium_guard_failures_total",
        "Times that a guard could not judge, by model: away, or its score no number"
    );
    count!("sensorium_auth_refused_total", "Requests refused for who made them, by why");
    count!("sensorium_operator_acts_total", "Operators' acts, such as `load` and `drain`, by their status code");
    count!(
        "sensorium_cache_lookups_total",
        "Rows looked up, by where the answer came from; `shared`: from an equal row"
    );
    count!("sensorium_cache_errors_total", "Trips to Redis that failed, by why");
    count!("sensorium_jobs_submitted_total", "Jobs accepted");
    count!("sensorium_jobs_dead_total", "Tasks of jobs given up and put among the dead letters, by modality");
    count!("sensorium_job_tasks_total", "Deliveries of tasks that were worked on, by what became of them");
    level!("sensorium_job_queue_depth", "Tasks of jobs that wait, by modality");
    spread!("sensorium_door_duration_seconds", Unit::Seconds, "Time of a request from the door to its answer");
    spread!("sensorium_call_duration_seconds", Unit::Seconds, "Time of an answered call to a worker, by model");
    spread!("sensorium_redis_duration_seconds", Unit::Seconds, "Time of a trip to Redis, in vain or not");
    spread!("sensorium_job_task_duration_seconds", Unit::Seconds, "Time of a task in work, by modality");
    spread!("sensorium_job_duration_seconds", Unit::Seconds, "Time of a job from its submission to its end");
}
