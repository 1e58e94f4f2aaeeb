//! Baselines that run as processes of their own and print their figures as one line of JSON.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use super::Options;
use crate::error::{Error, Result};

/// Loading a model and a few transcriptions; hung is what takes longer.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs a program and reads the figure `key` of the JSON in its last line.
pub(super) async fn figure(program: &Path, arguments: &[String], key: &str) -> Result<f64> {
    let name = program.display();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await;
    let output = output.map_err(|_| Error::Child(format!("{name} takes longer than {LIMIT:?}")))?;
    let output = output.map_err(Error::io(format!("cannot run {name}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        return Err(Error::Child(format!("{name} ended with {}: {last}", output.status)));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    read(&said, key).ok_or_else(|| Error::Child(format!("{name} printed no figure '{key}': {}", said.trim_end())))
}

fn read(said: &str, key: &str) -> Option<f64> {
    let line = said.lines().rev().find(|line| line.starts_with('{'))?;
    serde_json::from_str::<Value>(line).ok()?.get(key)?.as_f64().filter(|figure| figure.is_finite() && *figure > 0.0)
}

/// A Python baseline, or why it cannot run.
pub(super) struct Script {
    python: PathBuf,
    arguments: Vec<String>,
}

impl Script {
    /// `script` with the model of this name among the original files.
    pub(super) fn new(options: &Options, script: &str, model: &str) -> Result<Self, String> {
        let python = options.python.clone().ok_or("no --python was given")?;
        let source = options.models_source.as_ref().ok_or("no --models-source was given")?;
        let model = source.join(model);
        if !model.exists() {
            return Err(format!("{} is missing; baselines/unpack.py makes it", model.display()));
        }
        let script = options.baselines.join(script);
        if !script.exists() {
            return Err(format!("{} is missing; see --baselines", script.display()));
        }
        let arguments = [script, model].map(|path| path.display().to_string()).to_vec();
        Ok(Self { python, arguments })
    }

    /// With a further argument.
    pub(super) fn with(mut self, argument: &Path) -> Self {
        self.arguments.push(argument.display().to_string());
        self
    }

    /// Runs it.
    pub(super) async fn figure(&self, key: &str) -> Result<f64> {
        figure(&self.python, &self.arguments, key).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_json_counts() {
        assert_eq!(read("loading\n{\"seconds\": 1.5}\n", "seconds"), Some(1.5));
        assert_eq!(read("{\"seconds\": 0}", "seconds"), None);
        assert_eq!(read("1.5", "seconds"), None);
    }

    #[tokio::test]
    async fn a_baseline_that_fails_says_why() {
        let arguments = ["-c".to_owned(), "echo no such model >&2; exit 3".to_owned()];
        let error = figure(Path::new("/bin/sh"), &arguments, "seconds").await.unwrap_err().to_string();
        assert!(error.contains("no such model"), "{error}");
    }
}
