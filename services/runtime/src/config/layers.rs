//! File, environment and flags as one table, and who has set what in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::Error;
use super::mistake::{Mistake, Origin, no_section, shown};

/// See the module.
#[derive(Default)]
pub(super) struct Layers {
    pub(super) table: Table,
    file: Option<PathBuf>,
    /// Lines of the file's keys, by the dotted key.
    lines: BTreeMap<String, usize>,
    /// What was set over the file, in turn: the key, its value as it was given, and by whom.
    set: Vec<(String, String, Origin)>,
    /// Values that could not even be put into the table.
    pub(super) mistakes: Vec<Mistake>,
}

impl Layers {
    /// The lowest layer.
    pub(super) fn of_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let (spanned, errors) = DeTable::parse_recoverable(&text);
        if !errors.is_empty() {
            let mistake = |error: toml::de::Error| {
                let line = error.span().map(|span| line_of(&text, span.start));
                let message = format!("is not TOML: {}", error.message().trim());
                Mistake {
                    origin: Origin::File(path.to_owned(), line),
                    key: String::new(),
                    value: line.map_or(String::new(), |line| line_text(&text, line)),
                    message,
                }
            };
            // the text between two of them cannot be trusted, so nothing else is said of it
            return Err(Error::mistakes(errors.into_iter().map(mistake).collect()));
        }
        let table = toml::from_str(&text).map_err(|error| {
            let origin = Origin::File(path.to_owned(), error.span().map(|span| line_of(&text, span.start)));
            let message = error.message().trim().to_owned();
            Error::mistakes(vec![Mistake { origin, key: String::new(), value: String::new(), message }])
        })?;
        let mut lines = BTreeMap::new();
        note(&text, "", spanned.get_ref(), &mut lines);
        Ok(Self { table, file: Some(path.to_owned()), lines, ..Self::default() })
    }

    /// Sets a key, whatever it was before.
    pub(super) fn put(&mut self, key: &str, text: &str, origin: Origin) {
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().unwrap_or(key);
        let mut at = &mut self.table;
        let mut section = String::new();
        for part in parts {
            section = if section.is_empty() { part.to_owned() } else { format!("{section}.{part}") };
            let entry = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
            at = match entry {
                Value::Table(table) => table,
                // a variable like this is no key: what the file says of the key stands
                other => {
                    let message = match origin {
                        Origin::Variable(_) => no_section(&section),
                        _ => format!("expected '{section}' to be a section, it is {}", shown(&section, other)),
                    };
                    let value = shown(key, &parse(text));
                    self.mistakes.push(Mistake { origin, key: key.to_owned(), value, message });
                    return;
                }
            };
        }
        at.insert(last.to_owned(), parse(text));
        self.set.push((key.to_owned(), text.to_owned(), origin));
    }

    /// Who has set a key, or one below it.
    pub(super) fn origin(&self, key: &str) -> Origin {
        let here = |set: &str| set == key || set.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
        if let Some((_, _, origin)) = self.set.iter().rev().find(|(set, ..)| here(set)) {
            return origin.clone();
        }
        let above = |key: &str| key.rsplit_once('.').map(|(above, _)| above.to_owned());
        // a key that is missing is missing in its section
        let mut at = Some(key.to_owned());
        while let (Some(path), Some(of)) = (&self.file, &at) {
            if let Some(&line) = self.lines.get(of) {
                return Origin::File(path.clone(), Some(line));
            }
            at = above(of);
        }
        Origin::Default
    }

    /// The text of a variable or flag that has set a key to something else than a string.
    pub(super) fn as_text(&self, key: &str) -> Option<String> {
        let (_, text, _) = self.set.iter().rev().find(|(set, ..)| set == key)?;
        Some(text.trim().to_owned())
    }

    /// Whether a variable has set something below a key that has a value of its own, as serde's message says.
    pub(super) fn is_below_a_value(&self, key: &str, message: &str) -> bool {
        let below = |set: &String| set.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
        message.starts_with("invalid type: map, expected ")
            && !message.contains("expected struct")
            && self.set.iter().any(|(set, _, origin)| below(set) && matches!(origin, Origin::Variable(_)))
    }

    /// What a key was set to.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
        let first = self.table.get(first)?;
        rest.map_or(Some(first), |rest| rest.split('.').try_fold(first, |at, part| at.get(part)))
    }
}

/// A value as TOML would read it; what is not TOML is a string.
fn parse(text: &str) -> Value {
    toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

fn note(text: &str, section: &str, table: &DeTable<'_>, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let name = key.get_ref();
        let dotted = if section.is_empty() { name.to_string() } else { format!("{section}.{name}") };
        lines.insert(dotted.clone(), line_of(text, key.span().start));
        if let DeValue::Table(below) = value.get_ref() {
            note(text, &dotted, below, lines);
        }
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

fn line_text(text: &str, line: usize) -> String {
    let line = text.lines().nth(line - 1).unwrap_or_default().trim();
    // what cannot be read may be a password
    let hidden = line.to_lowercase().contains("password");
    if hidden || line.is_empty() { String::new() } else { shown("", &Value::String(line.to_owned())) }
}
