//! Why a verb did not do what it was told: one place, so that all verbs end alike.

use std::error::Error;
use std::process::ExitCode;

use owo_colors::Style;
use sensorium_runtime::config;
use serde_json::{Value, json};
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

use super::draw::{paint_errors, seconds};
use super::output::{Output, clean, clean_lines, complain, complain_json};

/// For `--help` of each verb.
pub const EXIT_CODES: &str = "Exit codes:
  0  done; also where the reader of the output has seen enough and gone
  1  the server refused or failed, or a file is wrong
  2  wrong usage
  3  nobody answers, or the connection is lost
  4  the job is over, but some of its items failed or could not be read, or it was cancelled
  5  the output cannot be written
With -o json, errors are a line of JSON on stderr: code, message, field, reason, retry_seconds, violations, exit_code.";

/// For `--help` of `serve`, `gateway` and `worker`.
pub const SERVERS_EXIT_CODES: &str = "Exit codes:
  0        drained, after SIGTERM, SIGINT, SIGHUP or `sensorium drain`
  1        it cannot start, or cannot go on
  2        wrong usage
  70       a device call hangs, or the models failed too often: to be started anew
  128 + n  ended at once by signal n: SIGTERM or SIGINT, come a second time";

/// Why a verb did not do what it was told.
pub enum Failure {
    /// Nobody answers.
    Connect(String),
    /// The server's answer, or the end of the connection to it.
    Status(Status),
    /// The arguments make no sense, by themselves or together.
    Usage(String),
    /// A job is over, but not all of it was done.
    Items(String),
    /// A configuration file is wrong.
    Config(config::Error),
    /// The output cannot be written.
    Write(String),
    /// Whoever read stdout has seen enough.
    Closed,
    /// A bug, or what serves cannot go on.
    Other(anyhow::Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Other(error.into())
    }
}

/// What a program that reads errors distinguishes.
#[derive(Clone, Copy)]
enum Kind {
    /// As the server, or the transport, says.
    Status(Code),
    NobodyAnswers,
    Usage,
    ItemsFailed,
    Configuration,
    Output,
    Failed,
}

impl Kind {
    fn as_str(self) -> String {
        match self {
            Self::Status(code) => return code_name(code),
            Self::NobodyAnswers => "NOBODY_ANSWERS",
            Self::Usage => "USAGE",
            Self::ItemsFailed => "ITEMS_FAILED",
            Self::Configuration => "CONFIGURATION",
            Self::Output => "OUTPUT",
            Self::Failed => "FAILED",
        }
        .to_owned()
    }
}

/// A failure, taken apart.
struct Explanation {
    kind: Kind,
    message: String,
    status: Option<Status>,
    exit: u8,
}

impl Failure {
    /// This failure, unless it is that nobody reads stdout any more.
    pub(super) fn unless_closed(self) -> Result<(), Self> {
        if matches!(self, Self::Closed) { Ok(()) } else { Err(self) }
    }

    /// The same of what was done although it cannot be written.
    pub(super) fn beside(self, done: &str) -> Self {
        match self {
            Self::Write(message) => Self::Write(format!("{message}; {done}")),
            other => other,
        }
    }

    /// Tells it on stderr, and gives the exit code.
    pub fn tell(self, output: Output) -> ExitCode {
        let explanation = match self {
            Self::Closed => return ExitCode::SUCCESS,
            Self::Config(error) => return tell_mistakes(&error, output),
            Self::Status(status) => of_status(status),
            Self::Connect(message) => of(Kind::NobodyAnswers, message, 3),
            Self::Usage(message) => of(Kind::Usage, message, 2),
            Self::Items(message) => of(Kind::ItemsFailed, message, 4),
            Self::Write(message) => of(Kind::Output, message, 5),
            Self::Other(error) => of(Kind::Failed, format!("{error:#}"), 1),
        };
        match output {
            Output::Json => complain_json(&explanation.json()),
            Output::Text => complain(explanation.text()),
        }
        ExitCode::from(explanation.exit)
    }
}

fn of(kind: Kind, message: String, exit: u8) -> Explanation {
    Explanation { kind, message, status: None, exit }
}

fn of_status(status: Status) -> Explanation {
    match status.source().map(causes) {
        Some(_) if has_expired(&status) => {
            of(Kind::Status(Code::DeadlineExceeded), "no answer within the time given".to_owned(), 1)
        }
        // a server that wants to see a certificate says so only here
        Some(causes) => of(Kind::Status(Code::Unavailable), format!("the connection is lost: {causes}"), 3),
        None => Explanation {
            kind: Kind::Status(status.code()),
            message: status.message().to_owned(),
            status: Some(status),
            exit: 1,
        },
    }
}

/// Whether a status was made by our own end of the connection, since the deadline has passed.
fn has_expired(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether another server, or the same in a moment, may answer otherwise: the connection broke, nobody is there, or it
/// is too late. A server of ours never says UNKNOWN; tonic does, of a stream that ends without a status.
pub(super) fn passes(status: &Status) -> bool {
    status.source().is_some() || matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown)
}

impl Explanation {
    /// What the status's details say as well: the fields that are wrong, and when to come back.
    fn text(&self) -> String {
        // people know these by their names, and the others by what they say
        let prefix = match self.kind {
            Kind::Status(code) => format!("{}: ", code_name(code)),
            _ => String::new(),
        };
        let mut text = format!("{prefix}{}", self.message);
        if let Some(status) = &self.status {
            let details = status.get_error_details();
            for violation in details.bad_request().into_iter().flat_map(|bad| &bad.field_violations) {
                let line = format!("{}: {}", violation.field, violation.description);
                // once is enough
                if !self.message.contains(&line) {
                    text.push_str(&format!("\n{line}"));
                }
            }
            if let Some(info) = details.error_info() {
                text.push_str(&format!("\nreason {}", info.reason));
            }
            if let Some(after) = details.retry_info().and_then(|retry| retry.retry_delay) {
                text.push_str(&format!("\nmay be tried again after {}", seconds(after.as_secs_f64())));
            }
        }
        format!("{} {}", paint_errors("error:", Style::new().red().bold()), clean_lines(&text))
    }

    fn json(&self) -> Value {
        let details = self.status.as_ref().map(StatusExt::get_error_details).unwrap_or_default();
        let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
        let shown = violations.iter().map(|of| json!({ "field": of.field, "description": of.description }));
        json!({
            "code": self.kind.as_str(),
            "message": self.message,
            "field": violations.first().map(|violation| &violation.field),
            "reason": details.error_info().map(|info| &info.reason),
            "retry_seconds": details.retry_info().and_then(|retry| Some(retry.retry_delay?.as_secs_f64())),
            "violations": shown.collect::<Vec<_>>(),
            "exit_code": self.exit,
        })
    }
}

/// Names each mistake of a configuration, a line each.
fn tell_mistakes(error: &config::Error, output: Output) -> ExitCode {
    match (error, output) {
        (config::Error::Mistakes(mistakes), Output::Text) => {
            mistakes.iter().for_each(|mistake| complain(clean(&mistake.to_string())));
        }
        (other, Output::Text) => complain(clean_lines(&other.to_string())),
        (error, Output::Json) => {
            let mistakes: &[config::Mistake] = match error {
                config::Error::Mistakes(mistakes) => mistakes,
                _ => &[],
            };
            let shown = mistakes.iter().map(|of| {
                json!({ "field": of.key, "value": of.value, "description": of.message, "origin": of.origin.to_string() })
            });
            complain_json(&json!({
                "code": Kind::Configuration.as_str(),
                "message": error.to_string(),
                "field": mistakes.first().map(|mistake| &mistake.key),
                "reason": null,
                "retry_seconds": null,
                "violations": shown.collect::<Vec<_>>(),
                "exit_code": 1,
            }));
        }
    }
    ExitCode::from(1)
}

/// An error and what has caused it.
pub(super) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let deeper = error.to_string();
        if !text.ends_with(&deeper) {
            text = format!("{text}: {deeper}");
        }
        cause = error.source();
    }
    text
}

/// As specifications and dashboards write it.
pub(super) fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn codes_are_written_as_in_specifications() {
        assert_eq!(code_name(Code::InvalidArgument), "INVALID_ARGUMENT");
        assert_eq!(code_name(Code::Ok), "OK");
    }

    fn refusal(message: &str) -> Explanation {
        let mut details = ErrorDetails::with_bad_request_violation("parts[0]", "empty, expected text");
        details.set_retry_info(Some(Duration::from_millis(250)));
        of_status(Status::with_error_details(Code::InvalidArgument, message, details))
    }

    #[test]
    fn details_are_told_once() {
        let text = refusal("it is wrong").text();
        assert!(text.contains("INVALID_ARGUMENT: it is wrong\n"), "{text}");
        assert!(text.contains("\n  parts[0]: empty, expected text") && text.ends_with("after 250 ms"), "{text}");
        let text = refusal("parts[0]: empty, expected text").text();
        assert_eq!(text.matches("empty, expected text").count(), 1, "{text}");
    }

    #[test]
    fn details_are_fields_of_json() {
        let json = refusal("it is wrong").json();
        assert_eq!((&json["code"], &json["field"]), (&json!("INVALID_ARGUMENT"), &json!("parts[0]")));
        assert_eq!((&json["retry_seconds"], &json["exit_code"]), (&json!(0.25), &json!(1)));
        assert_eq!(json["violations"][0]["description"], "empty, expected text");
        let json = of(Kind::Usage, "wrong".to_owned(), 2).json();
        assert!(json["field"].is_null() && json["retry_seconds"].is_null(), "{json}");
    }
}
