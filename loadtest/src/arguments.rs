//! Flags. Their doc comments are the help.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use sensorium_loadtest::work::{Work, picture};

/// Load generator and benchmarks of Sensorium.
#[derive(Parser)]
#[command(version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Makes load on a running server and reports latencies and throughput.
    Run(Run),
    /// Measures the table of the benchmark, against its baselines, turn by turn. Starts the server itself.
    Bench(Bench),
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    /// Sixteen numbers there and back.
    Identity,
    /// Sentence embeddings of --tokens tokens.
    Minilm,
    /// Sentence embeddings of 8 to 256 tokens.
    MinilmMixed,
    /// Labels of --image.
    Efficientnet,
    /// Transcript of --clip.
    Whisper,
    /// --max-tokens tokens of greedy text.
    Generate,
    /// All of these in turn; whisper only with --clip.
    Mixed,
}

#[derive(Args)]
pub(crate) struct Run {
    /// gRPC address of the server; of several gateways with commas between them, whoever is refused by one turns to the
    /// next.
    #[arg(long, env = "SENSORIUM_SERVER", default_value = "http://127.0.0.1:8001")]
    pub(crate) target: String,
    /// What to ask.
    #[arg(long, value_enum, default_value = "identity")]
    pub(crate) work: Kind,
    /// HTTP/2 connections.
    #[arg(long, default_value_t = 4)]
    pub(crate) connections: usize,
    /// Closed loop: requests in flight on each connection.
    #[arg(long, default_value_t = 16)]
    pub(crate) streams: usize,
    /// Seconds before the measurement.
    #[arg(long, default_value_t = 2.0)]
    pub(crate) warm_up: f64,
    /// Seconds to measure.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// Open loop: requests per second, as a Poisson process; latency counts from when a request was due. Left out:
    /// closed loop.
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Open loop: requests at most, warm-up included; 0: as many as the time brings.
    #[arg(long, default_value_t = 0)]
    pub(crate) count: u64,
    /// Open loop: requests unanswered at once at most; those beyond are counted as NotSent.
    #[arg(long, default_value_t = 4096)]
    pub(crate) outstanding: usize,
    /// Open loop: seed of the arrivals.
    #[arg(long, default_value_t = 7)]
    pub(crate) seed: u64,
    /// Tokens of a text of `minilm`, `[CLS]` and `[SEP]` included.
    #[arg(long, default_value_t = 23)]
    pub(crate) tokens: usize,
    /// Tokens to write at most.
    #[arg(long, default_value_t = 64)]
    pub(crate) max_tokens: u32,
    /// Picture of `efficientnet`. Left out: a small one made here.
    #[arg(long)]
    pub(crate) image: Option<PathBuf>,
    /// Clip of `whisper`.
    #[arg(long)]
    pub(crate) clip: Option<PathBuf>,
    /// How to report.
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

impl Run {
    /// The work that the flags describe.
    pub(crate) fn work(&self) -> Result<Work> {
        let read = |path: &Path| {
            std::fs::read(path).map(Bytes::from).with_context(|| format!("cannot read {}", path.display()))
        };
        let image = || self.image.as_deref().map_or_else(|| Ok(picture()), read);
        let clip = || self.clip.as_deref().map(read).transpose();
        Ok(match self.work {
            Kind::Identity => Work::Identity,
            Kind::Minilm => Work::Minilm(self.tokens),
            Kind::MinilmMixed => Work::MinilmMixed,
            Kind::Efficientnet => Work::Image(image()?),
            Kind::Whisper => Work::Audio("whisper-base", clip()?.context("--work whisper needs --clip")?),
            Kind::Generate => Work::Generate(self.max_tokens),
            Kind::Mixed => {
                let mut kinds = vec![Work::Identity, Work::MinilmMixed, Work::Image(image()?)];
                kinds.push(Work::Generate(self.max_tokens));
                kinds.extend(clip()?.map(|clip| Work::Audio("whisper-base", clip)));
                Work::Mixed(kinds.into())
            }
        })
    }
}

#[derive(Args)]
pub(crate) struct Bench {
    /// Only rows whose work holds one of these words, separated by commas, such as `redis,kill -9`.
    #[arg(long, value_delimiter = ',')]
    pub(crate) rows: Vec<String>,
    /// gRPC address of a server that runs, for the rows of one process. Left out: --server is started, weighed and
    /// stopped. Clusters are always started here.
    #[arg(long)]
    pub(crate) target: Option<String>,
    /// The binary to start.
    #[arg(long, default_value = "target/release/sensorium")]
    pub(crate) server: PathBuf,
    /// A further argument of its `serve`; may be repeated.
    #[arg(long = "server-argument", allow_hyphen_values = true)]
    pub(crate) server_arguments: Vec<String>,
    /// The example `forward_loop` of services/worker, the baseline of the embeddings.
    #[arg(long)]
    pub(crate) forward_loop: Option<PathBuf>,
    /// Ten seconds of speech.
    #[arg(long)]
    pub(crate) clip: Option<PathBuf>,
    /// A Python with baselines/requirements.txt installed.
    #[arg(long)]
    pub(crate) python: Option<PathBuf>,
    /// Folder of the Python baselines.
    #[arg(long, default_value = "loadtest/baselines")]
    pub(crate) baselines: PathBuf,
    /// Folder of the original model files, as baselines/unpack.py lays them out.
    #[arg(long)]
    pub(crate) models_source: Option<PathBuf>,
    /// Turns of baseline and ours.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// Seconds before each measurement.
    #[arg(long, default_value_t = 3.0)]
    pub(crate) warm_up: f64,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// Also writes the table to this file.
    #[arg(long)]
    pub(crate) markdown: Option<PathBuf>,
    /// How to report.
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}
