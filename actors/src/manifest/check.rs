//! What a manifest may say.

use std::path::{Path, PathBuf};

use super::{Manifest, Pipeline};

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or a key is unknown, missing or of the wrong type.
    #[error("{path}: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// The parser's message, with line and key.
        message: String,
    },
    /// A value is out of its range.
    #[error("{path}: {key} = {value}, expected {expected}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
}

impl Manifest {
    pub(super) fn check(&self, path: &Path) -> Result<(), Error> {
        let bad = |key, value: String, expected| Err(Error::Value { path: path.to_owned(), key, value, expected });
        if self.name.is_empty() || !self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            return bad("name", format!("\"{}\"", self.name), "letters, digits, '-', '_' and '.'");
        }
        if self.batching.max_batch_size == 0 {
            return bad("batching.max_batch_size", "0".into(), "at least 1");
        }
        if !(0.0..1.0).contains(&self.batching.max_padding) {
            return bad("batching.max_padding", self.batching.max_padding.to_string(), "a share from 0 to below 1");
        }
        if self.batching.max_queue_size == 0 {
            return bad("batching.max_queue_size", "0".into(), "at least 1");
        }
        let levels = self.batching.priority_levels;
        if levels == 0 || !(1..=levels).contains(&self.batching.default_priority_level) {
            return bad(
                "batching.default_priority_level",
                self.batching.default_priority_level.to_string(),
                "a level from 1 to batching.priority_levels",
            );
        }
        if !(0.0..100.0).contains(&self.routing.hedge_percentile) {
            return bad(
                "routing.hedge_percentile",
                self.routing.hedge_percentile.to_string(),
                "a percentile from 0 to below 100",
            );
        }
        if self.routing.fallback == self.name {
            return bad("routing.fallback", format!("\"{}\"", self.name), "another model");
        }
        let reads = matches!(self.pipeline, Pipeline::TextGuard | Pipeline::SpeechRecognition);
        match &self.upstream {
            None if reads => return bad("upstream", "missing".into(), "the model that this pipeline reads from"),
            Some(upstream) if *upstream == self.name => {
                return bad("upstream", format!("\"{upstream}\""), "another model");
            }
            _ => {}
        }
        if self.replicas.count == 0 {
            return bad("replicas.count", "0".into(), "at least 1");
        }
        let device = self.replicas.device.as_str();
        let cuda = device.strip_prefix("cuda:").is_some_and(|n| n.parse::<usize>().is_ok());
        if !(device == "auto" || device == "cpu" || cuda) {
            return bad("replicas.device", format!("\"{device}\""), "auto, cpu or cuda:N");
        }
        let images = matches!(self.pipeline, Pipeline::ImageClassification | Pipeline::ImageGuard);
        if images && self.image.is_none() {
            return bad("image", "missing".into(), "the preprocessing of an image pipeline");
        }
        if self.inputs.is_empty() || self.outputs.is_empty() {
            return bad("inputs, outputs", "empty".into(), "at least one tensor each");
        }
        Ok(())
    }
}
