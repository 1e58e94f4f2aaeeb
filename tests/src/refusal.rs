//! A status and the details that clients act on.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A refused request.
#[derive(Debug)]
pub struct Refusal {
    /// The status code.
    pub code: Code,
    /// For people.
    pub message: String,
    /// `google.rpc.ErrorInfo`'s reason.
    pub reason: Option<String>,
    /// `google.rpc.RetryInfo`.
    pub retry: Option<Duration>,
    /// The trailer `grpc-retry-pushback-ms`.
    pub pushback: Option<u64>,
    /// Fields that `google.rpc.BadRequest` names, with what is wrong with them.
    pub fields: Vec<(String, String)>,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
        let pushback = status.metadata().get("grpc-retry-pushback-ms");
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            reason: details.error_info().map(|info| info.reason.clone()),
            retry: details.retry_info().and_then(|info| info.retry_delay),
            pushback: pushback.and_then(|value| value.to_str().ok()?.parse().ok()),
            fields: violations.into_iter().map(|violation| (violation.field, violation.description)).collect(),
        }
    }
}

impl Refusal {
    /// Of an answer that must be a refusal.
    pub fn of<T: std::fmt::Debug>(answer: Result<T, Status>) -> Self {
        match answer {
            Ok(answer) => panic!("expected a refusal, got {answer:?}"),
            Err(status) => status.into(),
        }
    }

    /// It is the caller's fault: a field whose name holds `field` is named, with each of `words` in what is said.
    pub fn blames(&self, field: &str, words: &[&str]) {
        assert_eq!(self.code, Code::InvalidArgument, "{self:?}");
        let [(named, description)] = self.fields.as_slice() else { panic!("expected one BadRequest field: {self:?}") };
        assert!(named.contains(field), "field '{field}' in {self:?}");
        for word in words {
            assert!(description.contains(word), "'{word}' in {self:?}");
        }
    }

    /// It says when to come again, in both ways.
    pub fn is_retriable(&self, code: Code, reason: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.reason.as_deref(), Some(reason), "{self:?}");
        let retry = self.retry.unwrap_or_else(|| panic!("no RetryInfo in {self:?}"));
        assert!(retry > Duration::ZERO, "{self:?}");
        assert_eq!(self.pushback.map(u128::from), Some(retry.as_millis()), "{self:?}");
    }
}
