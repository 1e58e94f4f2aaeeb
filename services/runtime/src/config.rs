//! Configuration: one TOML file, every key also an environment variable and a flag; flag over environment over file.
//!
//! `limits.max_inflight` is the key, `SENSORIUM_LIMITS__MAX_INFLIGHT` the variable (two underscores are a dot), and
//! `--set limits.max_inflight=100` the flag. Unknown or bad values fail the start with key, value and what was
//! expected; nothing falls back to a default silently.

mod layers;
mod mistake;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_path_to_error::Segment;
use toml::{Table, Value};

use self::layers::Layers;
pub use self::mistake::{Mistake, Objection, Origin};

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
    /// All that is wrong with it.
    #[error("{}", lines(.0))]
    Mistakes(Vec<Mistake>),
}

impl Error {
    fn mistakes(mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort();
        Self::Mistakes(mistakes)
    }
}

fn lines(mistakes: &[Mistake]) -> String {
    if let [only] = mistakes {
        return only.to_string();
    }
    let lines: String = mistakes.iter().map(|mistake| format!("\n  {mistake}")).collect();
    format!("{} mistakes in the configuration:{lines}", mistakes.len())
}

/// Reads `T` from file, environment and flags, each over the one before. `check` says what does not make sense although
/// it is of the right kind.
///
/// # Errors
/// If the file cannot be read, or with every mistake that there is.
pub fn read<T: DeserializeOwned + Serialize + Default>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &[(String, String)],
    check: impl FnOnce(&T) -> Vec<Objection>,
) -> Result<T, Error> {
    let mut layers = file.map_or_else(|| Ok(Layers::default()), Layers::of_file)?;
    let mut variables: Vec<_> = environment.into_iter().collect();
    variables.sort();
    for (name, value) in variables {
        if let Some(key) = name.strip_prefix("SENSORIUM_")
            && !NOT_OURS.contains(&name.as_str())
        {
            layers.put(&key.to_lowercase().replace("__", "."), &value, Origin::Variable(name.clone()));
        }
    }
    for (key, value) in flags {
        layers.put(key, value, Origin::Flag);
    }
    let mut mistakes = std::mem::take(&mut layers.mistakes);
    let (parsed, wrong) = parse::<T>(&layers, &mut mistakes);
    if let Some(parsed) = &parsed {
        // a value that was left out because it is wrong is at odds with nothing
        let stands = |key: &String| !wrong.iter().any(|wrong| key.starts_with(wrong.as_str()));
        let objections = check(parsed).into_iter().filter(|objection| objection.keys.iter().all(stands));
        mistakes.extend(objections.map(|Objection { keys, message }| {
            let key = keys.into_iter().next().unwrap_or_default();
            let value = layers.get(&key).map_or(String::new(), |value| mistake::shown(&key, value));
            Mistake { origin: layers.origin(&key), key, value, message }
        }));
    }
    match parsed {
        Some(parsed) if mistakes.is_empty() => Ok(parsed),
        _ => Err(Error::mistakes(mistakes)),
    }
}

/// What the table says, without the keys that say nothing: those are named, and returned.
fn parse<T: DeserializeOwned + Serialize + Default>(
    layers: &Layers,
    mistakes: &mut Vec<Mistake>,
) -> (Option<T>, Vec<String>) {
    let defaults = Table::try_from(T::default()).unwrap_or_default();
    let known = mistake::keys(&defaults);
    let mut table = layers.table.clone();
    let mut wrong: Vec<String> = Vec::new();
    loop {
        let error = match serde_path_to_error::deserialize::<_, T>(Value::Table(table.clone())) {
            Ok(parsed) => return (Some(parsed), wrong),
            Err(error) => error,
        };
        let keys = error.path().iter().map_while(|segment| match segment {
            Segment::Map { key } => Some(key.clone()),
            _ => None,
        });
        let (mut path, message) = (keys.collect::<Vec<_>>(), error.inner().message().to_owned());
        let unknown = mistake::unknown(&message);
        if let Some((field, _)) = &unknown
            && path.last() != Some(field)
        {
            path.push(field.clone());
        }
        let key = path.join(".");
        let section = || path[..path.len().saturating_sub(1)].join(".");
        let message = match &unknown {
            Some((field, siblings)) => mistake::instead(&section(), field, siblings, &known),
            None => mistake::expected(&message),
        };
        // a field that is missing because it was wrong has been named
        let named = wrong.iter().any(|wrong| wrong.rsplit_once('.').is_some_and(|(section, _)| section == key));
        if !named {
            let value = layers.get(&key).map_or(String::new(), |value| mistake::shown(&key, value));
            mistakes.push(Mistake { origin: layers.origin(&key), key: key.clone(), value, message });
        }
        if !remove(&mut table, &path) {
            return (None, wrong);
        }
        wrong.push(key);
    }
}

fn remove(table: &mut Table, path: &[String]) -> bool {
    match path {
        [] => false,
        [last] => table.remove(last).is_some(),
        [first, rest @ ..] => match table.get_mut(first) {
            Some(Value::Table(below)) => remove(below, rest),
            _ => false,
        },
    }
}

/// A list of strings, or one string with commas: an environment variable holds no list.
///
/// # Errors
/// If it is neither.
pub fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a list of strings, or one string with commas")]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Config {
        name: String,
        #[serde(deserialize_with = "list")]
        urls: Vec<String>,
        limits: Limits,
        pair: Pair,
    }

    #[derive(Debug, Serialize, Deserialize, PartialEq, Default)]
    #[serde(deny_unknown_fields, default)]
    struct Limits {
        max_inflight: u32,
        floor: u32,
    }

    #[derive(Debug, Serialize, Deserialize, PartialEq, Default)]
    #[serde(deny_unknown_fields)]
    struct Pair {
        low: f64,
        high: f64,
    }

    impl Default for Config {
        fn default() -> Self {
            Self { name: "n".into(), urls: Vec::new(), limits: Limits::default(), pair: Pair::default() }
        }
    }

    fn check(config: &Config) -> Vec<Objection> {
        let low =
            Objection::new("limits.floor", "expected no more than limits.max_inflight").beside("limits.max_inflight");
        if config.limits.floor > config.limits.max_inflight { vec![low] } else { Vec::new() }
    }

    fn with(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sensorium.toml");
        std::fs::write(&path, file).unwrap();
        let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        read(Some(&path), own(environment), &own(flags), check)
    }

    /// Key, value and message of each, and the line or name of where it was set.
    fn mistakes(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Vec<[String; 4]> {
        let Err(Error::Mistakes(mistakes)) = with(file, environment, flags) else { panic!("no mistakes in {file}") };
        let cells = mistakes.into_iter().map(|Mistake { origin, key, value, message }| {
            let origin = match origin {
                Origin::File(_, line) => format!("line {}", line.unwrap_or(0)),
                other => other.to_string(),
            };
            [key, value, message, origin]
        });
        cells.collect()
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
    fn every_mistake_is_named_with_key_value_expectation_and_origin() {
        let file = "nam = 'x'\nurls = 7\nmax_inflight = 3\n[limits]\nmax_inflght = 1\nfloor = -2\n[pair]\nlow = 'l'\nhigh = 1.0\n";
        let found = mistakes(file, &[("SENSORIUM_LIMITS__MAX_INFLIGHT", "many")], &[("name", "[1]")]);
        let cells =
            |key: &str, value: &str, message: &str, origin: &str| [key, value, message, origin].map(str::to_owned);
        let number = "expected a whole number from 0 to 4294967295";
        let expected = [
            cells("nam", "\"x\"", "is no key, did you mean name?", "line 1"),
            cells("urls", "7", "expected a list of strings, or one string with commas", "line 2"),
            cells("max_inflight", "3", "is no key, did you mean limits.max_inflight?", "line 3"),
            cells("limits.max_inflght", "1", "is no key, did you mean limits.max_inflight?", "line 5"),
            cells("limits.floor", "-2", number, "line 6"),
            cells("pair.low", "\"l\"", "expected a number", "line 8"),
            cells("limits.max_inflight", "\"many\"", number, "SENSORIUM_LIMITS__MAX_INFLIGHT"),
            cells("name", "[1]", "expected a string", "the command line"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_at_odds_is_named_unless_it_is_wrong_already() {
        let found = mistakes("[limits]\nfloor = 5\nmax_inflight = 2", &[], &[]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0][..2], ["limits.floor".to_owned(), "5".to_owned()]);
        assert_eq!(found[0][3], "line 2");
        let found = mistakes("[limits]\nfloor = 5\nmax_inflight = 'two'", &[], &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0][0], "limits.max_inflight");
    }

    #[test]
    fn a_section_that_is_none_and_a_field_that_is_missing() {
        let found = mistakes("limits = 3\n[pair]\nlow = 1.0", &[], &[("limits.floor", "3")]);
        let keys: Vec<&str> = found.iter().map(|cells| cells[0].as_str()).collect();
        assert_eq!(keys, ["limits", "pair", "limits.floor"], "{found:?}");
        assert!(found[1][2].contains("high"), "{found:?}");
    }

    #[test]
    fn all_that_is_no_toml_is_named_by_its_line() {
        let found = mistakes("name = \nurls = ['a']\n[limits\nfloor = 1\n", &[], &[]);
        let lines: Vec<&str> = found.iter().map(|cells| cells[3].as_str()).collect();
        assert!(lines.contains(&"line 1") && lines.contains(&"line 3"), "{found:?}");
        let text = with("name = \n", &[], &[]).unwrap_err().to_string();
        assert!(text.contains("sensorium.toml, line 1"), "{text}");
    }
}
