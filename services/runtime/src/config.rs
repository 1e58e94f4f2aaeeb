//! Configuration: one TOML file, every key also an environment variable and a flag; flag over environment over file.
//!
//! `limits.max_inflight` is the key, `SENSORIUM_LIMITS__MAX_INFLIGHT` the variable (two underscores are a dot), and
//! `--set limits.max_inflight=100` the flag. Unknown or bad values fail the start with key, value and what was
//! expected; nothing falls back to a default silently. Only a variable that is no key is a warning: whoever starts the
//! process may not have made it. What Kubernetes makes for Services called `sensorium…` is not even that.
//!
//! Variables and flags are read as TOML, and are strings where they are no TOML or a string is expected: `SENSORIUM_NAME=7`
//! is the name `7`.

mod environment;
mod layers;
mod mistake;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_path_to_error::Segment;
use toml::{Table, Value};

use self::environment::Variable;
use self::layers::Layers;
pub use self::mistake::{Mistake, Objection, Origin};

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
/// it is of the right kind. Variables that are no key are warned of.
///
/// # Errors
/// If the file cannot be read, or with every mistake that there is.
pub fn read<T: DeserializeOwned + Serialize + Default>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    flags: &[(String, String)],
    check: impl FnOnce(&T) -> Vec<Objection>,
) -> Result<T, Error> {
    let mut layers = file.map_or_else(|| Ok(Layers::default()), Layers::of_file)?;
    let mut broken = Vec::new();
    for Variable { name, key, value } in environment::variables(environment) {
        let text = value.unwrap_or_else(|shown| {
            broken.push((name.clone(), key.clone()));
            shown
        });
        layers.put(&key, &text, Origin::Variable(name));
    }
    for (key, value) in flags {
        layers.put(key, value, Origin::Flag);
    }
    let mut mistakes = std::mem::take(&mut layers.mistakes);
    let (parsed, wrong) = parse::<T>(&layers, &mut mistakes);
    let ignored = ignore_strangers(&mut mistakes);
    for (name, key) in broken.into_iter().filter(|(name, _)| !ignored.contains(name)) {
        mistakes.retain(|mistake| mistake.key != key);
        let value = layers.get(&key).map_or(String::new(), |value| mistake::shown(&key, value));
        mistakes.push(Mistake { origin: Origin::Variable(name), key, value, message: "is not UTF-8".to_owned() });
    }
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

/// Takes out variables that are no keys, with a warning: they may be another program's. Gives their names.
fn ignore_strangers(mistakes: &mut Vec<Mistake>) -> Vec<String> {
    let mut ignored = Vec::new();
    mistakes.retain(|mistake| match &mistake.origin {
        Origin::Variable(name) if mistake.is_no_key() => {
            // its value is not told: it may be a secret of that program's
            tracing::warn!(variable = name, hint = mistake.message, "environment variable ignored");
            ignored.push(name.clone());
            false
        }
        _ => true,
    });
    ignored
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
        if unknown.is_none()
            && mistake::wants_text(&message)
            && let Some(text) = layers.as_text(&key)
            && to_text(&mut table, &path, text)
        {
            continue;
        }
        let section = || path[..path.len().saturating_sub(1)].join(".");
        let message = match &unknown {
            Some((field, siblings)) => mistake::instead(&section(), field, siblings, &known),
            None if layers.is_below_a_value(&key, &message) => mistake::no_section(&key),
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

/// Makes a string of a value that is none; false if there is nothing to make one of.
fn to_text(table: &mut Table, path: &[String], text: String) -> bool {
    match path {
        [] => false,
        [last] => match table.get_mut(last) {
            None | Some(Value::String(_)) => false,
            Some(value) => {
                *value = Value::String(text);
                true
            }
        },
        [first, rest @ ..] => match table.get_mut(first) {
            Some(Value::Table(below)) => to_text(below, rest, text),
            _ => false,
        },
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
        let variables = own(environment).into_iter().map(|(name, value)| (name.into(), value.into()));
        read(Some(&path), variables, &own(flags), check)
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
        let found = mistakes(file, &[("SENSORIUM_LIMITS__MAX_INFLIGHT", "many")], &[("limits.floor", "[1]")]);
        let cells =
            |key: &str, value: &str, message: &str, origin: &str| [key, value, message, origin].map(str::to_owned);
        let number = "expected a whole number from 0 to 4294967295";
        let expected = [
            cells("nam", "\"x\"", "is no key, did you mean name?", "line 1"),
            cells("urls", "7", "expected a list of strings, or one string with commas", "line 2"),
            cells("max_inflight", "3", "is no key, did you mean limits.max_inflight?", "line 3"),
            cells("limits.max_inflght", "1", "is no key, did you mean limits.max_inflight?", "line 5"),
            cells("pair.low", "\"l\"", "expected a number", "line 8"),
            cells("limits.max_inflight", "\"many\"", number, "SENSORIUM_LIMITS__MAX_INFLIGHT"),
            cells("limits.floor", "[1]", number, "the command line"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_variable_or_a_flag_is_a_string_where_one_is_expected() {
        for text in
            ["7", "007", "1_000", "0x1F", "1e5", "nan", "true", "2026-01-02", "[1]", "{ a = 1 }", "a b", "7 \u{e4}"]
        {
            assert_eq!(with("", &[("SENSORIUM_NAME", text)], &[]).unwrap().name, text);
            assert_eq!(with("name = 'file'", &[], &[("name", text)]).unwrap().name, text);
        }
        assert_eq!(with("", &[("SENSORIUM_URLS", "7")], &[]).unwrap().urls, ["7"]);
        assert_eq!(with("", &[("SENSORIUM_URLS", "['a', 'b']")], &[]).unwrap().urls, ["a", "b"]);
        // in a file a string is written as one
        assert_eq!(mistakes("name = 7", &[], &[])[0][2], "expected a string");
    }

    #[test]
    fn a_variable_that_is_no_key_is_no_mistake_unless_its_value_is_wrong() {
        let environment = [
            ("SENSORIUM_NAM", "x"),
            ("SENSORIUM_NAME__FIRST", "x"),
            ("SENSORIUM_LIMITS__MAX_INFLGHT", "1"),
            ("SENSORIUM_PAIR__MIDDLE__OF", "1"),
            ("SENSORIUM_", "x"),
            ("SENSORIUM___", "x"),
            ("SENSORIUM_PORT", "tcp://10.0.0.1:8001"),
        ];
        assert_eq!(with("name = 'file'", &environment, &[]).unwrap().name, "file");
        assert_eq!(with("", &environment, &[]).unwrap().name, "n");
        let found = mistakes("", &[("SENSORIUM_LIMITS__MAX_INFLIGHT", "many"), ("SENSORIUM_NAM", "x")], &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0][3], "SENSORIUM_LIMITS__MAX_INFLIGHT");
        let found = mistakes("", &[("SENSORIUM_LIMITS", "5")], &[]);
        assert_eq!(found[0][2], "expected a section");
    }

    #[test]
    fn what_is_not_utf_8_is_a_mistake_of_a_key_alone() {
        use std::os::unix::ffi::OsStringExt;
        let broken = || OsString::from_vec(vec![b'a', 0xff]);
        let read = |name: &str| read::<Config>(None, [(OsString::from(name), broken())], &[], check);
        assert_eq!(read("SENSORIUM_OTHER").unwrap(), Config::default());
        let Err(Error::Mistakes(mistakes)) = read("SENSORIUM_NAME") else { panic!("no mistake") };
        assert!(
            mistakes.len() == 1 && mistakes[0].to_string().contains("name: \"a\u{fffd}\", is not UTF-8"),
            "{mistakes:?}"
        );
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
