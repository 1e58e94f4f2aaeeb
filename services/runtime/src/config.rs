//! Configuration: one TOML file, every key also an environment variable and a flag; flag over environment over file.
//!
//! `limits.max_inflight` is the key, `SENSORIUM_LIMITS__MAX_INFLIGHT` the variable (two underscores are a dot), and
//! `--set limits.max_inflight=100` the flag. Unknown or bad values fail the start with key, value and what was
//! expected; nothing falls back to a default silently.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

/// Variables that belong to a tool beside the server, not to its configuration.
const NOT_OURS: [&str; 10] = [
    "SENSORIUM_BINARY",
    "SENSORIUM_CA",
    "SENSORIUM_CACHE",
    "SENSORIUM_CERTIFICATE",
    "SENSORIUM_CLIENT_KEY",
    "SENSORIUM_CONFIG",
    "SENSORIUM_KEY",
    "SENSORIUM_SAMPLES",
    "SENSORIUM_SERVER",
    "SENSORIUM_TEST_PYTHON",
];

/// Why a configuration cannot be used.
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
    /// The file is not TOML.
    #[error("{path}: {message}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// The parser's message, with line and column.
        message: String,
    },
    /// A key is unknown, or its value is not what it must be.
    #[error("{key}: {message} (from {origin})")]
    Value {
        /// The key, dotted.
        key: String,
        /// What is wrong with it.
        message: String,
        /// Where it was set.
        origin: String,
    },
    /// Keys that do not go together.
    #[error("{0}")]
    Combination(String),
}

/// Reads `T` from file, environment and flags, each over the one before.
pub fn read<T: DeserializeOwned>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &[(String, String)],
) -> Result<T, Error> {
    let mut layers: Vec<(String, String)> = Vec::new();
    let mut table = match file {
        None => Table::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
            toml::from_str(&text)
                .map_err(|error| Error::Syntax { path: path.to_owned(), message: error.to_string() })?
        }
    };
    let mut variables: Vec<_> = environment.into_iter().collect();
    variables.sort();
    for (name, value) in variables {
        if let Some(key) = name.strip_prefix("SENSORIUM_")
            && !NOT_OURS.contains(&name.as_str())
        {
            let key = key.to_lowercase().replace("__", ".");
            put(&mut table, &key, &value, &name)?;
            layers.push((key, name));
        }
    }
    for (key, value) in flags {
        put(&mut table, key, value, "the command line")?;
        layers.push((key.clone(), "the command line".to_owned()));
    }
    let given = Value::Table(table);
    serde_path_to_error::deserialize(given.clone()).map_err(|error| {
        let key = error.path().to_string();
        let mut message = error.inner().message().to_owned();
        let value = key.split('.').try_fold(&given, |at, part| at.get(part));
        if let Some(value) = value.filter(|value| !value.is_table()) {
            message = format!("{value}: {message}");
        }
        let origin = layers.iter().rev().find(|(set, _)| set.starts_with(&key) || message.contains(set.as_str()));
        let file = || file.map_or_else(|| "the defaults".to_owned(), |path| path.display().to_string());
        Error::Value { key, message, origin: origin.map_or_else(file, |(_, origin)| origin.clone()) }
    })
}

/// A list of strings, or one string with commas: an environment variable holds no list.
///
/// # Errors
/// If it is neither.
pub fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a list of strings, or one string with commas")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(text) => {
            text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
        }
        OneOrMany::Many(items) => items,
    })
}

/// A value as TOML would read it; what is not TOML is a string.
fn parse(text: &str) -> Value {
    toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

fn put(table: &mut Table, key: &str, value: &str, origin: &str) -> Result<(), Error> {
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().unwrap_or(key);
    let mut at = table;
    for part in parts {
        let entry = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        at = match entry {
            Value::Table(table) => table,
            other => {
                let message = format!("'{part}' is {other}, expected a section");
                return Err(Error::Value { key: key.to_owned(), message, origin: origin.to_owned() });
            }
        };
    }
    at.insert(last.to_owned(), parse(value));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Config {
        name: String,
        limits: Limits,
    }

    #[derive(Debug, Deserialize, PartialEq, Default)]
    #[serde(deny_unknown_fields, default)]
    struct Limits {
        max_inflight: u32,
    }

    impl Default for Config {
        fn default() -> Self {
            Self { name: "n".into(), limits: Limits::default() }
        }
    }

    fn with(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sensorium.toml");
        std::fs::write(&path, file).unwrap();
        let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        read(Some(&path), own(environment), &own(flags))
    }

    #[test]
    fn flag_over_environment_over_file() {
        let file = "name = 'file'\n[limits]\nmax_inflight = 1";
        let variable = [("SENSORIUM_LIMITS__MAX_INFLIGHT", "2"), ("SENSORIUM_SERVER", "x"), ("HOME", "/")];
        assert_eq!(with(file, &[], &[]).unwrap().limits.max_inflight, 1);
        assert_eq!(with(file, &variable, &[]).unwrap().limits.max_inflight, 2);
        assert_eq!(with(file, &variable, &[("limits.max_inflight", "3")]).unwrap().limits.max_inflight, 3);
        assert_eq!(with(file, &[("SENSORIUM_NAME", "my name")], &[]).unwrap().name, "my name");
    }

    #[test]
    fn mistakes_are_named_with_their_origin() {
        let unknown = with("[limits]\nmax_inflght = 1", &[], &[]).unwrap_err().to_string();
        assert!(unknown.contains("max_inflght") && unknown.contains("sensorium.toml"), "{unknown}");
        let mistyped = with("", &[("SENSORIUM_LIMITS__MAX_INFLIGHT", "many")], &[]).unwrap_err().to_string();
        assert!(mistyped.contains("limits.max_inflight") && mistyped.contains("SENSORIUM_LIMITS"), "{mistyped}");
        assert!(with("limits = 3", &[], &[("limits.max_inflight", "3")]).is_err());
        assert!(with("name = ", &[], &[]).is_err());
    }
}
