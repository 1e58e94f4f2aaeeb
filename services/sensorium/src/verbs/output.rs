//! What verbs print: results on stdout, all else on stderr. A reader that has gone or a full disk is an outcome like
//! others, not a panic, and nothing that others have written controls the terminal.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use super::failure::Failure;

/// How to print.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Text,
    /// JSON on stdout, and errors as a line of JSON on stderr.
    Json,
}

/// A line on stdout.
pub(super) fn line(text: impl Display) -> Result<(), Failure> {
    Sink::stdout().line(text)
}

/// A document on stdout, on several lines.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(escaped(&serde_json::to_string_pretty(value)?))
}

/// A document on stdout, on one line.
pub(super) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    line(escaped(&serde_json::to_string(value)?))
}

/// A line on stderr. Nobody can be told that stderr is gone.
pub fn complain(text: impl Display) {
    let mut stderr = io::stderr().lock();
    // in one piece: lines of others stay whole
    let _ = stderr.write_all(format!("{text}\n").as_bytes());
}

/// A line of JSON on stderr.
pub(super) fn complain_json(value: &impl Serialize) {
    // of what is written here, nothing is without a form in JSON
    complain(escaped(&serde_json::to_string(value).unwrap_or_default()));
}

/// Where results go: stdout, or a file.
pub(super) struct Sink {
    name: String,
    write: Box<dyn Write>,
}

impl Sink {
    pub(super) fn stdout() -> Self {
        Self { name: "stdout".to_owned(), write: Box::new(io::stdout()) }
    }

    /// For what must not be lost; see [`complain`] for the rest.
    pub(super) fn stderr() -> Self {
        Self { name: "stderr".to_owned(), write: Box::new(io::stderr()) }
    }

    /// A file, which is emptied.
    pub(super) fn file(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let file = File::create(path).map_err(|error| Failure::Usage(format!("{name}: {error}")))?;
        Ok(Self { name, write: Box::new(BufWriter::new(file)) })
    }

    pub(super) fn line(&mut self, text: impl Display) -> Result<(), Failure> {
        self.text(&format!("{text}\n"))?;
        self.flush()
    }

    /// A document on one line; on its way when the sink is flushed.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        self.text(&(escaped(&serde_json::to_string(value)?) + "\n"))
    }

    pub(super) fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.write.write_all(text.as_bytes()).map_err(|error| self.failed(&error))
    }

    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.write.flush().map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Closed,
            _ => Failure::Write(format!("{}: {error}", self.name)),
        }
    }
}

/// Whether a character controls the terminal, or the order in which it shows others, rather than being shown.
fn controls(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What others have written, on one line: what controls a terminal is shown as its escape.
pub fn clean(text: &str) -> String {
    let shown = |letter: char| -> String {
        if controls(letter) { letter.escape_default().collect() } else { letter.to_string() }
    };
    if text.chars().any(controls) { text.chars().map(shown).collect() } else { text.to_owned() }
}

/// The same of a text that may have lines; those after the first are indented, so that none looks like one of ours.
pub(super) fn clean_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(|line| clean(line.strip_suffix('\r').unwrap_or(line))).collect();
    lines.join("\n  ")
}

/// JSON escapes what is below a blank; the rest of what controls a terminal is escaped here. It stands in strings alone.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            '\n' => text.push('\n'),
            letter if controls(letter) => text.push_str(&format!("\\u{:04x}", u32::from(letter))),
            letter => text.push(letter),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "\u{1b}[31mred\u{1b}[0m\u{9b}2J\u{7}\u{202e}txt\r\n\u{7f}é✓";

    #[test]
    fn what_controls_a_terminal_is_shown() {
        let shown = clean(HOSTILE);
        assert_eq!(shown, "\\u{1b}[31mred\\u{1b}[0m\\u{9b}2J\\u{7}\\u{202e}txt\\r\\n\\u{7f}é✓");
        assert_eq!(clean("plain – text"), "plain – text");
        assert_eq!(clean_lines("one\r\ntwo\tthree\n\u{1b}c"), "one\n  two\\tthree\n  \\u{1b}c");
    }

    #[test]
    fn json_says_the_same_without_them() {
        let json = escaped(&serde_json::to_string_pretty(&[HOSTILE]).unwrap());
        assert!(json.chars().all(|letter| letter == '\n' || !controls(letter)), "{json}");
        let [back]: [String; 1] = serde_json::from_str(&json).unwrap();
        assert_eq!(back, HOSTILE);
    }
}
