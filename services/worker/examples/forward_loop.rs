//! The baseline of the benchmarks: an engine in a plain loop, with the numeric type and threads of serving, and
//! nothing around it. Prints one line of JSON.
//!
//! ```text
//! forward_loop --model minilm --batch 64 --tokens 23
//! forward_loop --model minilm --lengths mixed
//! forward_loop --model smollm2-135m --sequences 8
//! forward_loop --model whisper-base --mel-seconds 10
//! forward_loop --model silero-vad --mel-seconds 10
//! forward_loop --model efficientnet-lite0 --batch 8
//! ```
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../tests/engines/support/mod.rs"]
#[allow(dead_code)]
mod support;

use std::time::{Duration, Instant};

use clap::Parser;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sensorium_actors::engine::{Batch, Decoder, Engine, Feed, Loader, Model};
use sensorium_actors::manifest::{Dtype, Manifest};
use sensorium_actors::tensor::Tensor;
use sensorium_worker::{Options, TchLoader};
use serde_json::json;
use support::{Calm, speech};

#[derive(Parser)]
struct Args {
    /// Model of the repository.
    #[arg(long)]
    model: String,
    /// Rows of a batch.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Tokens of a text.
    #[arg(long, default_value_t = 23)]
    tokens: usize,
    /// `fixed`, or `mixed`: 8 to 256 tokens, sorted into ideal batches under the manifest's limits.
    #[arg(long, default_value = "fixed")]
    lengths: String,
    /// Sequences decoded together.
    #[arg(long, default_value_t = 1)]
    sequences: usize,
    /// Tokens of each sequence's prompt.
    #[arg(long, default_value_t = 64)]
    prompt: usize,
    /// Seconds of speech in a window.
    #[arg(long, default_value_t = 10.0)]
    mel_seconds: f64,
    /// Seconds to measure.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// `auto`, `f32` or `bf16`; left out, the manifest's.
    #[arg(long)]
    dtype: Option<String>,
    /// Threads of an operation; 0: all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Rows up to which a generator uses int8 weights; left out, the manifest's.
    #[arg(long)]
    int8: Option<usize>,
}

fn main() {
    let args = Args::parse();
    let (mut manifest, directory) = support::manifest(&args.model);
    if let Some(dtype) = &args.dtype {
        manifest.dtype = serde_json::from_value::<Dtype>(json!(dtype)).unwrap();
    }
    if let Some(int8) = args.int8 {
        manifest.generation.int8_max_sequences = int8;
    }
    let loader = TchLoader::new(Options { intra_op_threads: args.threads });
    let model = loader.load(&manifest, &directory).unwrap();
    let mut result = match model {
        Model::Forward(mut engine) => forward(&args, &manifest, engine.as_mut()),
        Model::Decode(mut decoder) => decode(&args, decoder.as_mut()),
    };
    result["model"] = json!(args.model);
    println!("{result}");
}

/// Seconds that this thread has spent on a core: with one thread, a measure that neighbours do not disturb.
fn core_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).map_or(f64::NAN, |ns| ns / 1e9)
}

/// Runs `batches` over and over. Returns calls per second and the fastest pass over all, in core seconds of this
/// thread.
fn measure(args: &Args, engine: &mut dyn Engine, batches: &[Vec<Tensor>]) -> (f64, f64) {
    let mut pass = || {
        for tensors in batches {
            let batch = Batch { tensors: tensors.clone(), rows: tensors[0].rows() };
            engine.forward(batch, &Calm).unwrap();
        }
    };
    pass();
    let (start, mut calls, mut best) = (Instant::now(), 0, f64::INFINITY);
    while start.elapsed() < Duration::from_secs_f64(args.seconds) {
        let begin = core_seconds();
        pass();
        best = best.min(core_seconds() - begin);
        calls += batches.len();
    }
    (calls as f64 / start.elapsed().as_secs_f64(), best)
}

fn forward(args: &Args, manifest: &Manifest, engine: &mut dyn Engine) -> serde_json::Value {
    let mut random = SmallRng::seed_from_u64(7);
    let rows = args.batch as i64;
    match manifest.architecture.as_str() {
        "bert" => texts(args, manifest, engine, &mut random),
        "whisper" => {
            let clip = clip(args.mel_seconds);
            let mels: Vec<Tensor> = vec![speech::log_mel(&clip, 80); args.batch];
            let mel: Vec<f32> = mels.iter().flat_map(|mel| mel.to_f32().unwrap()).collect();
            let mel = Tensor::from_f32(vec![rows, 80, 3000], &mel).unwrap();
            let language = Tensor::from_i64(vec![rows], &vec![-1; args.batch]).unwrap();
            let greedy = Tensor::from_f32(vec![rows], &vec![0.0; args.batch]).unwrap();
            let input = vec![mel, language, greedy];
            let tokens = support::call(engine, input.clone()).tensors.remove(0);
            let decoded = tokens.to_i64().unwrap().iter().filter(|&&token| token >= 0).count();
            let (calls, best) = measure(args, engine, &[input]);
            let audio = calls * args.mel_seconds * args.batch as f64;
            json!({"clips_per_s": calls * args.batch as f64, "audio_s_per_s": audio, "best_core_s": best, "tokens": decoded})
        }
        "silero-vad" => {
            let length = (args.mel_seconds * 16_000.0) as usize / 512 * 512;
            let samples: Vec<f32> = clip(args.mel_seconds)[..length].repeat(args.batch);
            let samples = Tensor::from_f32(vec![rows, length as i64], &samples).unwrap();
            let (calls, best) = measure(args, engine, &[vec![samples]]);
            json!({"clips_per_s": calls * args.batch as f64, "best_core_s": best})
        }
        "mlp" => {
            let features: Vec<f32> = (0..args.batch * 384).map(|_| random.random_range(-0.1..0.1)).collect();
            let features = Tensor::from_f32(vec![rows, 384], &features).unwrap();
            json!({"rows_per_s": measure(args, engine, &[vec![features]]).0 * args.batch as f64})
        }
        _ => {
            let pixels: Vec<f32> = (0..args.batch * 3 * 224 * 224).map(|_| random.random_range(-1.0..1.0)).collect();
            let pixels = Tensor::from_f32(vec![rows, 3, 224, 224], &pixels).unwrap();
            let (calls, best) = measure(args, engine, &[vec![pixels]]);
            json!({"images_per_s": calls * args.batch as f64, "best_core_s": best})
        }
    }
}

/// Speech of about this length: recordings one after the other.
fn clip(seconds: f64) -> Vec<f32> {
    let mut samples: Vec<f32> =
        ["0870", "0880", "0890", "0920", "0930"].iter().flat_map(|n| speech::recording(n)).collect();
    let length = (seconds * 16_000.0) as usize;
    samples.resize(length, 0.0);
    samples
}

fn texts(args: &Args, manifest: &Manifest, engine: &mut dyn Engine, random: &mut SmallRng) -> serde_json::Value {
    let lengths: Vec<usize> = if args.lengths == "mixed" {
        let mut lengths: Vec<usize> = (0..512).map(|_| random.random_range(8..=256)).collect();
        lengths.sort_unstable();
        lengths
    } else {
        vec![args.tokens; args.batch]
    };
    let limits = &manifest.batching;
    let mut batches: Vec<Vec<usize>> = vec![Vec::new()];
    for length in lengths {
        let last = batches.last_mut().unwrap();
        // sorted: this length is the longest so far
        let tokens = (last.len() + 1) * length;
        let full = args.lengths == "mixed"
            && (last.len() == limits.max_batch_size
                || (limits.max_batch_tokens > 0 && tokens > limits.max_batch_tokens));
        if full { batches.push(vec![length]) } else { last.push(length) }
    }
    let rows: usize = batches.iter().map(Vec::len).sum();
    let tokens: usize = batches.iter().flatten().sum();
    let tensors: Vec<Vec<Tensor>> = batches
        .iter()
        .map(|batch| {
            let (n, width) = (batch.len(), *batch.iter().max().unwrap());
            let ids: Vec<i64> = (0..n * width).map(|_| random.random_range(1000..30_000)).collect();
            let mask: Vec<i64> = batch.iter().flat_map(|&l| (0..width).map(move |at| i64::from(at < l))).collect();
            let shape = vec![n as i64, width as i64];
            vec![Tensor::from_i64(shape.clone(), &ids).unwrap(), Tensor::from_i64(shape, &mask).unwrap()]
        })
        .collect();
    let (calls, best) = measure(args, engine, &tensors);
    let passes = calls / batches.len() as f64;
    json!({
        "texts_per_s": passes * rows as f64, "tokens_per_s": passes * tokens as f64,
        "batches": batches.len(), "best_core_s": best,
    })
}

fn decode(args: &Args, decoder: &mut dyn Decoder) -> serde_json::Value {
    let mut random = SmallRng::seed_from_u64(7);
    let sequences: Vec<_> = (0..args.sequences).map(|_| decoder.open().unwrap()).collect();
    let begin = Instant::now();
    let mut next: Vec<[u32; 1]> = Vec::new();
    for &sequence in &sequences {
        let prompt: Vec<u32> = (0..args.prompt).map(|_| random.random_range(100..40_000)).collect();
        let logits = decoder.advance(&[Feed { sequence, tokens: &prompt, logits: true }], &Calm).unwrap();
        next.push([argmax(&logits[0])]);
    }
    let prefill = (args.prompt * args.sequences) as f64 / begin.elapsed().as_secs_f64();
    let (start, mut steps, mut best) = (Instant::now(), 0, f64::INFINITY);
    let room = decoder.context_length() - args.prompt - 1;
    while start.elapsed() < Duration::from_secs_f64(args.seconds) && steps < room {
        let feeds: Vec<Feed<'_>> = sequences
            .iter()
            .zip(&next)
            .map(|(&sequence, token)| Feed { sequence, tokens: token, logits: true })
            .collect();
        let begin = core_seconds();
        let logits = decoder.advance(&feeds, &Calm).unwrap();
        best = best.min(core_seconds() - begin);
        next = logits.iter().map(|row| [argmax(row)]).collect();
        steps += 1;
    }
    let rate = (steps * args.sequences) as f64 / start.elapsed().as_secs_f64();
    json!({"tokens_per_s": rate, "best_core_ms": best * 1e3, "steps": steps, "prefill_tokens_per_s": prefill})
}

fn argmax(row: &[f32]) -> u32 {
    let at = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    u32::try_from(at).unwrap()
}
