//! `sensorium config`: what can be set, and whether a file sets it well.

use std::path::PathBuf;

use sensorium_runtime::config;
use serde_json::json;

use super::failure::Failure;
use super::output::{self, Output, Sink, clean};
use crate::config::Config;

/// Verbs on configuration files.
#[derive(clap::Subcommand)]
pub enum ConfigVerb {
    /// Says whether a file is a valid configuration, and names each mistake. Files that it names are not looked for, as
    /// they may be another host's.
    Check {
        /// The file.
        file: PathBuf,
        /// How to print.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Prints the defaults, as TOML.
    Default {
        /// How to print; as JSON, the same keys.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
}

/// Runs the verb.
///
/// # Errors
/// If the file has mistakes, or it cannot be printed.
pub fn run(verb: &ConfigVerb) -> Result<(), Failure> {
    match verb {
        ConfigVerb::Check { file, output } => {
            config::read(Some(file), std::iter::empty(), &[], Config::check).map_err(Failure::Config)?;
            match output {
                Output::Json => output::json_line(&json!({ "file": file.display().to_string(), "valid": true })),
                Output::Text => output::line(format!("{}: ok", clean(&file.display().to_string()))),
            }
        }
        ConfigVerb::Default { output: Output::Json } => output::json(&Config::default()),
        ConfigVerb::Default { output: Output::Text } => {
            let mut stdout = Sink::stdout();
            stdout.text(&toml::to_string_pretty(&Config::default()).map_err(anyhow::Error::from)?)?;
            stdout.flush()
        }
    }
}
