//! The configuration of `sensorium serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use sensorium_actors::understand;
use sensorium_gateway::server::Limits;
use sensorium_runtime::config;
use serde::{Deserialize, Serialize};

/// Everything that can be set. Each key is also `SENSORIUM_<KEY>` (a dot is two underscores) and `--set <key>=<value>`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The server's name, the root of its actors' paths. Default: `sensorium-1`.
    pub name: String,
    /// The model repository. Default: `models` in the cache folder, where the set-up put the default pack.
    pub repository: PathBuf,
    /// Models to load at the start. Default: all of the repository.
    pub models: Vec<String>,
    /// Where gRPC listens. Default: `127.0.0.1:8001`.
    pub grpc: SocketAddr,
    /// Where HTTP (`/metrics`, `/livez`, `/readyz`) listens. Default: `127.0.0.1:8002`.
    pub http: SocketAddr,
    /// Path of the metrics on the HTTP side; empty: none. Default: `/metrics`.
    pub metrics_path: String,
    /// Seconds that requests in flight are given when the process is asked to stop. Default: 30.
    pub drain_seconds: u64,
    /// Threads and devices.
    pub compute: Compute,
    /// What one connection and one message may cost.
    pub limits: Limits,
    /// Which models understand text, image and audio together.
    pub understand: understand::Options,
}

/// Threads and devices.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compute {
    /// Threads of one model call. 0: all cores. Calls that would need more cores than there are take turns.
    pub intra_op_threads: usize,
    /// Decoding, resampling and tokenising jobs at once. 0: as many as cores.
    pub decode_threads: usize,
    /// Device threads that may hang before the process ends, so that its supervisor starts a sound one. A hung call
    /// cannot be ended otherwise. Default: 0.
    pub max_hung_threads: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "sensorium-1".to_owned(),
            repository: cache().join("models"),
            models: Vec::new(),
            grpc: SocketAddr::from(([127, 0, 0, 1], 8001)),
            http: SocketAddr::from(([127, 0, 0, 1], 8002)),
            metrics_path: "/metrics".to_owned(),
            drain_seconds: 30,
            compute: Compute::default(),
            limits: Limits::default(),
            understand: understand::Options::default(),
        }
    }
}

/// Where the set-up puts what it downloads.
pub fn cache() -> PathBuf {
    let chosen = std::env::var_os("SENSORIUM_CACHE").map(PathBuf::from);
    let home = || std::env::home_dir().unwrap_or_default().join(".cache/sensorium");
    chosen.unwrap_or_else(home)
}

/// Flags of `serve`.
#[derive(Args)]
pub struct ConfigArgs {
    /// A TOML file; environment and flags go over it.
    #[arg(long, env = "SENSORIUM_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The model repository.
    #[arg(long, value_name = "FOLDER")]
    repository: Option<String>,
    /// Models to load at the start, separated by commas. Default: all.
    #[arg(long, value_delimiter = ',', value_name = "MODELS")]
    models: Vec<String>,
    /// Where gRPC listens.
    #[arg(long, value_name = "ADDRESS")]
    grpc: Option<String>,
    /// Where HTTP listens.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
    /// Runs the server as a child process and starts it anew when a device call hangs.
    #[arg(long)]
    pub supervised: bool,
    /// Sets any key: `--set limits.max_inflight=100`.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("'{text}', expected KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl ConfigArgs {
    /// Reads the configuration.
    pub fn read(self) -> Result<Config, config::Error> {
        let mut flags = self.set;
        let named = [("repository", self.repository), ("grpc", self.grpc), ("http", self.http)];
        flags.extend(named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), quoted(&value?)))));
        if !self.models.is_empty() {
            let quoted: Vec<String> = self.models.iter().map(|model| quoted(model)).collect();
            flags.push(("models".to_owned(), format!("[{}]", quoted.join(","))));
        }
        config::read(self.config.as_deref(), std::env::vars(), &flags)
    }
}

/// A TOML string, so that a folder called `1` stays one.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Verbs on configuration files.
#[derive(Subcommand)]
pub enum ConfigVerb {
    /// Says whether a file is a valid configuration, and names what is wrong.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Prints the defaults as TOML.
    Default,
}

/// Runs a verb.
#[allow(clippy::print_stdout, clippy::print_stderr)]
pub fn run(verb: &ConfigVerb) -> anyhow::Result<ExitCode> {
    match verb {
        ConfigVerb::Check { file } => match config::read::<Config>(Some(file), std::iter::empty(), &[]) {
            Ok(_) => println!("{}: ok", file.display()),
            Err(error) => {
                eprintln!("{error}");
                return Ok(ExitCode::from(1));
            }
        },
        ConfigVerb::Default => print!("{}", toml::to_string_pretty(&Config::default())?),
    }
    Ok(ExitCode::SUCCESS)
}
