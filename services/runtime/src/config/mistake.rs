//! What is wrong with a configuration, all of it at once: who mends a file wants the whole list.

use std::fmt;
use std::path::PathBuf;

use toml::{Table, Value};

/// Characters of a value that are shown at most.
const SHOWN: usize = 80;
/// How alike two keys must be for one to be taken for the other, from 0 to 1.
const ALIKE: f64 = 0.6;

/// How what is said of an unknown key begins.
const NO_KEY: &str = "is no key";

/// Where a value was set. In the order in which mistakes are listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// In the file; the line counts from 1, and is left out where the key is none of its own.
    File(PathBuf, Option<usize>),
    /// By an environment variable.
    Variable(String),
    /// By a flag.
    Flag,
    /// By nobody.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, Some(line)) => write!(f, "{}, line {line}", path.display()),
            Self::File(path, None) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag => f.write_str("the command line"),
            Self::Default => f.write_str("the defaults"),
        }
    }
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Where the value was set.
    pub origin: Origin,
    /// The key, dotted; empty if the text is no TOML there.
    pub key: String,
    /// What it was set to, as far as it may be shown; empty if it is not set.
    pub value: String,
    /// What was expected.
    pub message: String,
}

impl Mistake {
    /// Whether the key is none, rather than its value wrong.
    pub(super) fn is_no_key(&self) -> bool {
        self.message.starts_with(NO_KEY)
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, key, value, message } = self;
        if !key.is_empty() {
            write!(f, "{key}: ")?;
        }
        if !value.is_empty() {
            write!(f, "{value}, ")?;
        }
        write!(f, "{message} (from {origin})")
    }
}

/// What does not make sense although each value is of the right kind: out of range, or at odds with another key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objection {
    /// The key that is named, and then those that it is at odds with.
    pub keys: Vec<String>,
    /// What was expected.
    pub message: String,
}

impl Objection {
    /// To the value of a key alone.
    pub fn new(key: &str, message: impl Into<String>) -> Self {
        Self { keys: vec![key.to_owned()], message: message.into() }
    }

    /// To the value of a key beside that of another.
    #[must_use]
    pub fn beside(mut self, key: &str) -> Self {
        self.keys.push(key.to_owned());
        self
    }
}

/// A value as it may be shown: no password, and not pages of it.
pub(super) fn shown(key: &str, value: &Value) -> String {
    let last = key.rsplit('.').next().unwrap_or(key);
    let text = match value {
        Value::Table(_) => return "a section".to_owned(),
        _ if last.contains("password") => return "(not shown)".to_owned(),
        Value::String(text) => Value::String(without_password(text)).to_string(),
        other => without_password(&other.to_string()),
    };
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// URLs may hold a user and a password.
fn without_password(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let end = after.find(['/', '"', '\'', ' ']).unwrap_or(after.len());
        let at = after[..end].rfind('@');
        if at.is_some() {
            shown.push('…');
        }
        rest = &after[at.unwrap_or(0)..];
    }
    shown + rest
}

/// What serde says of a value, in an operator's words.
pub(super) fn expected(message: &str) -> String {
    if message == "invalid socket address syntax" {
        return "expected an address and a port, such as 127.0.0.1:8001".to_owned();
    }
    let Some((_, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let range = |most: u64| format!("expected a whole number from 0 to {most}");
    match expected {
        "u8" => range(u8::MAX.into()),
        "u16" => range(u16::MAX.into()),
        "u32" => range(u32::MAX.into()),
        "u64" | "usize" => "expected a whole number, 0 or more".to_owned(),
        "i32" | "i64" | "isize" => "expected a whole number".to_owned(),
        "f32" | "f64" => "expected a number".to_owned(),
        other if other.starts_with("struct ") => "expected a section".to_owned(),
        other => format!("expected {other}"),
    }
}

/// Whether serde expected text, or would have taken it.
pub(super) fn wants_text(message: &str) -> bool {
    message.rsplit_once("expected ").is_some_and(|(_, expected)| expected.contains("string"))
}

/// The unknown key and the keys that are known in its place, if that is what serde says.
pub(super) fn unknown(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (field, rest) = rest.split_once('`')?;
    let known = rest.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    Some((field.to_owned(), known))
}

/// What to write in place of an unknown key: one that looks like it in the same section, or its namesake in another.
pub(super) fn instead(section: &str, field: &str, siblings: &[String], all: &[String]) -> String {
    let dotted = |name: &str| if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
    let alike = |name: &str| strsim::normalized_damerau_levenshtein(field, name);
    let nearest = siblings.iter().map(|name| (alike(name), dotted(name))).max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((likeness, nearest)) = nearest
        && likeness >= ALIKE
    {
        return format!("{NO_KEY}, did you mean {nearest}?");
    }
    let namesake = all.iter().find(|key| key.rsplit('.').next() == Some(field));
    match namesake {
        Some(namesake) => format!("{NO_KEY}, did you mean {namesake}?"),
        None => format!("{NO_KEY}, expected one of {}", siblings.join(", ")),
    }
}

/// What is said of a key below one that has a value of its own.
pub(super) fn no_section(key: &str) -> String {
    format!("{NO_KEY}, {key} is no section")
}

/// All keys of a table, dotted.
pub(super) fn keys(table: &Table) -> Vec<String> {
    let below = |(key, value): (&String, &Value)| match value {
        Value::Table(table) => keys(table).into_iter().map(|below| format!("{key}.{below}")).collect(),
        _ => vec![key.clone()],
    };
    table.iter().flat_map(below).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let text = |text: &str| Value::String(text.to_owned());
        assert_eq!(shown("register.password", &text("secret")), "(not shown)");
        assert_eq!(shown("redis", &text("redis://me:secret@host:6379/0")), "\"redis://…@host:6379/0\"");
        let list = Value::Array(vec![text("nats://a:b@one"), text("nats://two")]);
        assert_eq!(shown("nats", &list), "[\"nats://…@one\", \"nats://two\"]");
        assert_eq!(shown("name", &text(&"x".repeat(500))).chars().count(), SHOWN + 1);
    }

    #[test]
    fn types_are_said_in_words() {
        assert_eq!(
            expected("invalid type: string \"a, expected b\", expected u64"),
            "expected a whole number, 0 or more"
        );
        assert_eq!(expected("invalid value: integer `-1`, expected u16"), "expected a whole number from 0 to 65535");
        assert_eq!(expected("invalid type: integer `3`, expected struct Limits"), "expected a section");
        assert_eq!(expected("something else"), "something else");
    }

    #[test]
    fn what_to_write_instead_is_near_or_a_namesake() {
        let (field, siblings) = unknown("unknown field `zon`, expected one of `name`, `zone`").unwrap();
        assert_eq!((field.as_str(), siblings.len()), ("zon", 2));
        assert_eq!(instead("", &field, &siblings, &[]), "is no key, did you mean zone?");
        let all = ["limits.max_inflight".to_owned()];
        assert_eq!(instead("", "max_inflight", &siblings, &all), "is no key, did you mean limits.max_inflight?");
        assert_eq!(instead("a", "q", &siblings, &all), "is no key, expected one of name, zone");
        assert_eq!(unknown("invalid type"), None);
    }
}
