//! ModelStatistics from the figures that the worker keeps.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};

use sensorium_actors::error::Result;
use sensorium_actors::stats::{Stats, Tally};
use sensorium_actors::worker::Worker;
use sensorium_proto::inference::{
    InferBatchStatistics, InferStatistics, MemoryUsage, ModelStatistics, StatisticDuration,
};

/// Figures of one version, of all versions of a model, or of everything.
pub fn of(worker: &Worker, name: &str, version: Option<u64>) -> Result<Vec<ModelStatistics>> {
    if !name.is_empty() {
        worker.served(name, version)?;
    }
    let asked = worker.versions().into_iter().filter(|served| {
        (name.is_empty() || served.manifest.name == name) && version.is_none_or(|version| served.version == version)
    });
    Ok(asked.map(|served| describe(&served.manifest.name, served.version, &served.metrics.stats)).collect())
}

/// The figures of all workers together.
pub fn sum(told: Vec<Vec<ModelStatistics>>) -> Vec<ModelStatistics> {
    let mut all: BTreeMap<(String, String), ModelStatistics> = BTreeMap::new();
    for stats in told.into_iter().flatten() {
        match all.entry((stats.name.clone(), stats.version.clone())) {
            Entry::Vacant(place) => drop(place.insert(stats)),
            Entry::Occupied(known) => add(known.into_mut(), stats),
        }
    }
    all.into_values().collect()
}

fn add(to: &mut ModelStatistics, more: ModelStatistics) {
    to.last_inference = to.last_inference.max(more.last_inference);
    to.inference_count += more.inference_count;
    to.execution_count += more.execution_count;
    let (ours, theirs) = (to.inference_stats.get_or_insert_default(), more.inference_stats.unwrap_or_default());
    plus(&mut ours.success, theirs.success);
    plus(&mut ours.fail, theirs.fail);
    plus(&mut ours.queue, theirs.queue);
    plus(&mut ours.compute_input, theirs.compute_input);
    plus(&mut ours.compute_infer, theirs.compute_infer);
    plus(&mut ours.compute_output, theirs.compute_output);
    plus(&mut ours.cache_hit, theirs.cache_hit);
    plus(&mut ours.cache_miss, theirs.cache_miss);
    for batch in more.batch_stats {
        match to.batch_stats.iter_mut().find(|known| known.batch_size == batch.batch_size) {
            None => to.batch_stats.push(batch),
            Some(known) => {
                plus(&mut known.compute_input, batch.compute_input);
                plus(&mut known.compute_infer, batch.compute_infer);
                plus(&mut known.compute_output, batch.compute_output);
            }
        }
    }
    to.batch_stats.sort_by_key(|batch| batch.batch_size);
    for memory in more.memory_usage {
        match to.memory_usage.iter_mut().find(|known| (&known.r#type, known.id) == (&memory.r#type, memory.id)) {
            None => to.memory_usage.push(memory),
            Some(known) => known.byte_size += memory.byte_size,
        }
    }
}

fn plus(to: &mut Option<StatisticDuration>, more: Option<StatisticDuration>) {
    let (to, more) = (to.get_or_insert_default(), more.unwrap_or_default());
    to.count += more.count;
    to.ns += more.ns;
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
