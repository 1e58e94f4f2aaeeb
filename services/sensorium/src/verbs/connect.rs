//! The way to the server, and how failures are told: one place, so that all verbs end alike.
//!
//! Exit codes: 0 done, 1 the server refused or failed, 2 wrong usage (clap's own code too), 3 nobody answers.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use owo_colors::Style;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{self, Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::draw::{paint_errors, seconds};

/// Bytes of an answer at most; a report brings embeddings, a tree thousands of actors.
pub(super) const MAX_ANSWER: usize = 64 << 20;

/// Which server.
#[derive(clap::Args, Clone, Debug)]
pub struct Server {
    /// gRPC address of the server.
    #[arg(long, env = "SENSORIUM_SERVER", default_value = "http://127.0.0.1:8001")]
    pub server: String,
    /// API key, where the server asks for one.
    #[arg(long, env = "SENSORIUM_KEY", hide_env_values = true)]
    pub key: Option<String>,
    /// PEM file of who may have signed the server's certificate, for `https` addresses. Default: whom the system trusts.
    #[arg(long, env = "SENSORIUM_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// PEM file of our certificate, where the server asks for one.
    #[arg(long, env = "SENSORIUM_CERTIFICATE", value_name = "FILE", requires = "client_key")]
    pub certificate: Option<PathBuf>,
    /// PEM file of its key.
    #[arg(long, env = "SENSORIUM_CLIENT_KEY", value_name = "FILE", requires = "certificate")]
    pub client_key: Option<PathBuf>,
}

/// A connection on which every call brings the key.
pub type Channel = InterceptedService<transport::Channel, Bearer>;

/// Brings the key.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// How to print.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Text,
    /// One JSON document on stdout.
    Json,
}

/// Whom a verb with further verbs asks, and how it prints.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct With {
    #[command(flatten)]
    pub(super) server: Server,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "text")]
    pub(super) output: Output,
}

/// Why a verb did not do what it was told.
pub(super) enum Failure {
    /// Nobody answers.
    Connect(String),
    /// The server's answer.
    Status(Status),
    /// The arguments make no sense together.
    Usage(String),
    /// stdout is gone, or a bug.
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

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.into())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Other(error.into())
    }
}

impl Server {
    /// Another one, which is asked in the same way.
    pub(super) fn at(&self, address: &str) -> Self {
        let scheme = self.server.split_once("://").map(|(scheme, _)| format!("{scheme}://"));
        Self { server: format!("{}{address}", scheme.unwrap_or_default()), ..self.clone() }
    }

    /// Connects now: an address at which nobody listens is an error of its own.
    pub(super) async fn connect(&self) -> Result<Channel, Failure> {
        let scheme = if self.ca.is_some() || self.certificate.is_some() { "https" } else { "http" };
        let with_scheme =
            if self.server.contains("://") { self.server.clone() } else { format!("{scheme}://{}", self.server) };
        let expected = |error: &dyn std::fmt::Display| {
            Failure::Usage(format!("--server {}: {error}, expected http://HOST:PORT or https://HOST:PORT", self.server))
        };
        let endpoint = Endpoint::from_shared(with_scheme).map_err(|error| expected(&error))?;
        let mut endpoint = endpoint.connect_timeout(Duration::from_secs(5)).tcp_nodelay(true);
        match endpoint.uri().scheme_str() {
            Some("https") => endpoint = endpoint.tls_config(self.tls()?).map_err(|error| expected(&causes(&error)))?,
            // what is to be protected is not sent in the clear
            _ if scheme == "https" => return Err(expected(&"in the clear, in spite of --ca or --certificate")),
            _ => {}
        }
        let value = self.key.as_ref().map(|key| format!("Bearer {key}").parse()).transpose();
        let value = value.map_err(|_| Failure::Usage("--key: not printable, expected an API key".to_owned()))?;
        let connected = endpoint.connect().await;
        let channel = connected.map_err(|error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            Failure::Connect(format!("cannot connect to {}: {cause}; is `sensorium serve` running?", self.server))
        })?;
        Ok(InterceptedService::new(channel, Bearer(value)))
    }

    fn tls(&self) -> Result<ClientTlsConfig, Failure> {
        let read = |flag: &str, path: &PathBuf| {
            std::fs::read(path).map_err(|error| Failure::Usage(format!("{flag} {}: {error}", path.display())))
        };
        let mut tls = match &self.ca {
            Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("--ca", ca)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let (Some(certificate), Some(key)) = (&self.certificate, &self.client_key) {
            tls = tls.identity(Identity::from_pem(read("--certificate", certificate)?, read("--client-key", key)?));
        }
        Ok(tls)
    }
}

/// An error and what has caused it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Prints a failure and gives the exit code; what is a bug of ours goes on to `main`.
pub(super) fn finish(result: Result<(), Failure>) -> anyhow::Result<ExitCode> {
    let (message, code) = match result {
        Ok(()) => return Ok(ExitCode::SUCCESS),
        Err(Failure::Other(error)) => return Err(error),
        Err(Failure::Status(status)) => (describe(&status), 1),
        Err(Failure::Usage(message)) => (message, 2),
        Err(Failure::Connect(message)) => (message, 3),
    };
    eprintln!("{} {message}", paint_errors("error:", Style::new().red().bold()));
    Ok(ExitCode::from(code))
}

/// A status with what its details say: the fields that are wrong, and when to come back.
fn describe(status: &Status) -> String {
    let code = code_name(status.code());
    let mut text = format!("{code}: {}", status.message());
    // of the transport's own: a server that wants to see a certificate says so only here
    if let Some(cause) = std::error::Error::source(status) {
        text = format!("{text}: {}", causes(cause));
    }
    let details = status.get_error_details();
    for violation in details.bad_request().into_iter().flat_map(|bad| &bad.field_violations) {
        text.push_str(&format!("\n  {}: {}", violation.field, violation.description));
    }
    if let Some(info) = details.error_info() {
        text.push_str(&format!("\n  reason {}", info.reason));
    }
    if let Some(after) = details.retry_info().and_then(|retry| retry.retry_delay) {
        text.push_str(&format!("\n  may be tried again after {}", seconds(after.as_secs_f64())));
    }
    text
}

/// As specifications and dashboards write it.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// `500ms`, `30s`, `2m`, `1h`, or seconds without a unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let unit = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let factor = match unit {
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unit '{unit}', expected ms, s, m or h")),
    };
    let number: f64 =
        number.trim().parse().map_err(|_| format!("'{text}', expected a number and a unit, as 500ms or 30s"))?;
    Duration::try_from_secs_f64(number * factor).map_err(|_| format!("'{text}', expected 0 or more"))
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        for bad in ["", "s", "-1s", "3 days", "1x"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn codes_are_written_as_in_specifications() {
        assert_eq!(code_name(Code::InvalidArgument), "INVALID_ARGUMENT");
        assert_eq!(code_name(Code::Ok), "OK");
    }

    #[test]
    fn details_are_told() {
        let mut details = ErrorDetails::with_bad_request_violation("parts[0]", "empty, expected text");
        details.set_retry_info(Some(Duration::from_millis(250)));
        let text = describe(&Status::with_error_details(Code::InvalidArgument, "parts[0]: empty", details));
        assert!(text.starts_with("INVALID_ARGUMENT: parts[0]: empty\n  parts[0]: empty, expected text"), "{text}");
        assert!(text.ends_with("after 250 ms"), "{text}");
    }
}
