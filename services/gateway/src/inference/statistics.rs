//! ModelStatistics from the figures that the worker keeps.

use std::sync::atomic::{AtomicU64, Ordering};

use sensorium_actors::error::Result;
use sensorium_actors::stats::{Stats, Tally};
use sensorium_actors::worker::Worker;
use sensorium_proto::inference::{
    InferBatchStatistics, InferStatistics, MemoryUsage, ModelStatistics, StatisticDuration,
};

use super::codec;

/// Figures of one version, of all versions of a model, or of everything.
pub fn statistics(worker: &Worker, name: &str, version: &str) -> Result<Vec<ModelStatistics>> {
    let version = codec::version(version, "version")?;
    if !name.is_empty() {
        worker.served(name, version)?;
    }
    let asked = worker.versions().into_iter().filter(|served| {
        (name.is_empty() || served.manifest.name == name) && version.is_none_or(|version| served.version == version)
    });
    Ok(asked.map(|served| describe(&served.manifest.name, served.version, &served.metrics.stats)).collect())
}

fn describe(name: &str, version: u64, stats: &Stats) -> ModelStatistics {
    let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
    let batches = stats.batches().into_iter().map(|(size, tally)| {
        let duration = |ns| Some(StatisticDuration { count: tally.count, ns });
        InferBatchStatistics {
            batch_size: size,
            compute_input: duration(tally.input_ns),
            compute_infer: duration(tally.infer_ns),
            compute_output: duration(tally.output_ns),
        }
    });
    ModelStatistics {
        name: name.to_owned(),
        version: version.to_string(),
        last_inference: load(&stats.last_inference_ms),
        inference_count: load(&stats.inference_count),
        execution_count: load(&stats.execution_count),
        inference_stats: Some(InferStatistics {
            success: duration(&stats.success),
            fail: duration(&stats.fail),
            queue: duration(&stats.queue),
            compute_input: duration(&stats.compute_input),
            compute_infer: duration(&stats.compute_infer),
            compute_output: duration(&stats.compute_output),
            cache_hit: duration(&stats.cache_hit),
            cache_miss: duration(&stats.cache_miss),
        }),
        batch_stats: batches.collect(),
        memory_usage: vec![MemoryUsage { r#type: "CPU".to_owned(), id: 0, byte_size: load(&stats.memory_bytes) }],
        ..Default::default()
    }
}

fn duration(tally: &Tally) -> Option<StatisticDuration> {
    let (count, ns) = tally.get();
    Some(StatisticDuration { count, ns })
}
