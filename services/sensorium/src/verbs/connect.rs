//! The way to the server: the first of several that answers, and another one when that is lost.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{self, Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::failure::{Failure, causes, passes};
use super::output::Output;

/// Bytes of an answer at most; a report brings embeddings, a tree thousands of actors.
pub(super) const MAX_ANSWER: usize = 64 << 20;

/// What a connection may take, with its TLS.
const CONNECT: Duration = Duration::from_secs(5);
/// Of several servers, one that does not say within this how it is counts as away.
const ANSWER: Duration = Duration::from_secs(2);
/// After so much silence a connection is asked whether it is alive…
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// …and given up if it does not answer for so long: its server is frozen, or out of reach.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// What a question may take that a sound server answers from memory.
const QUICK: Duration = Duration::from_secs(30);
/// For so long, a lost connection is looked for a successor.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Which server.
#[derive(clap::Args, Clone, Debug)]
pub struct Server {
    /// gRPC address of the server. May be repeated, or hold several, separated by commas: the first that answers is
    /// asked, and where a verb goes on for longer, another one when that is lost.
    #[arg(
        long = "server",
        env = "SENSORIUM_SERVER",
        default_value = "http://127.0.0.1:8001",
        value_delimiter = ',',
        value_name = "ADDRESS"
    )]
    pub servers: Vec<String>,
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

/// Whom a verb asks, and how it prints.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct With {
    #[command(flatten)]
    pub(super) server: Server,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "text")]
    pub(super) output: Output,
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

/// A request that is answered soon or not at all.
pub(super) fn quick<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(QUICK);
    request
}

impl Server {
    /// Another one, which is asked in the same way.
    pub(super) fn at(&self, address: &str) -> Self {
        let scheme = self.servers.first().and_then(|first| first.split_once("://"));
        let scheme = scheme.map(|(scheme, _)| format!("{scheme}://")).unwrap_or_default();
        Self { servers: vec![format!("{scheme}{address}")], ..self.clone() }
    }

    /// Connects now, to the first that answers: addresses at which nobody does are an error of their own.
    pub(super) async fn connect(&self) -> Result<Channel, Failure> {
        Ok(self.open().await?.channel)
    }

    /// The same for a verb that goes on for longer.
    pub(super) async fn open(&self) -> Result<Connection<'_>, Failure> {
        let (at, channel) = self.reach(0).await?;
        Ok(Connection { server: self, at, channel, lost: None })
    }

    /// The first that answers, in their order from `from` on, and its place. One that says it is not ready, such as a
    /// gateway that drains, is taken if there is no better one.
    async fn reach(&self, from: usize) -> Result<(usize, Channel), Failure> {
        let bearer = self.bearer()?;
        let endpoints = self.servers.iter().map(|address| self.endpoint(address)).collect::<Result<Vec<_>, _>>()?;
        let (mut unready, mut away) = (None, Vec::new());
        for turn in 0..endpoints.len() {
            let at = (from + turn) % endpoints.len();
            let connected = tokio::time::timeout(CONNECT, endpoints[at].connect()).await;
            let channel = match connected {
                Ok(Ok(channel)) => InterceptedService::new(channel, bearer.clone()),
                Ok(Err(error)) => {
                    away.push((at, deepest(&error)));
                    continue;
                }
                Err(_) => {
                    away.push((at, format!("no connection within {CONNECT:?}")));
                    continue;
                }
            };
            // where there is one, whatever it says is the answer
            if endpoints.len() == 1 {
                return Ok((at, channel));
            }
            match ready(channel.clone()).await {
                Ok(true) => return Ok((at, channel)),
                Ok(false) => unready = unready.or(Some((at, channel))),
                Err(reason) => away.push((at, reason)),
            }
        }
        unready.ok_or_else(|| {
            let reasons = away.iter().map(|(at, reason)| format!("{}: {reason}", self.servers[*at]));
            let reasons: Vec<String> = reasons.collect();
            Failure::Connect(format!("cannot connect to {}; is `sensorium serve` running?", reasons.join("; ")))
        })
    }

    fn bearer(&self) -> Result<Bearer, Failure> {
        let value = self.key.as_ref().map(|key| format!("Bearer {key}").parse()).transpose();
        value.map(Bearer).map_err(|_| Failure::Usage("--key: not printable, expected an API key".to_owned()))
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, Failure> {
        let scheme = if self.ca.is_some() || self.certificate.is_some() { "https" } else { "http" };
        let with_scheme = if address.contains("://") { address.to_owned() } else { format!("{scheme}://{address}") };
        let expected = |error: &dyn std::fmt::Display| {
            Failure::Usage(format!("--server {address}: {error}, expected http://HOST:PORT or https://HOST:PORT"))
        };
        let endpoint = Endpoint::from_shared(with_scheme).map_err(|error| expected(&error))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        match endpoint.uri().scheme_str() {
            Some("https") => endpoint.tls_config(self.tls()?).map_err(|error| expected(&causes(&error))),
            // what is to be protected is not sent in the clear
            _ if scheme == "https" => Err(expected(&"in the clear, in spite of --ca or --certificate")),
            _ => Ok(endpoint),
        }
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

/// Whether a server takes requests; an error if it does not answer. An older one, or a proxy, may not know the question.
async fn ready(channel: Channel) -> Result<bool, String> {
    let mut client = HealthClient::new(channel);
    match tokio::time::timeout(ANSWER, client.check(HealthCheckRequest::default())).await {
        Ok(Ok(answer)) => Ok(answer.into_inner().status() == ServingStatus::Serving),
        Ok(Err(status)) if passes(&status) => {
            Err(std::error::Error::source(&status).map_or_else(|| status.message().to_owned(), causes))
        }
        Ok(Err(_)) => Ok(true),
        Err(_) => Err(format!("no answer within {ANSWER:?}")),
    }
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// A connection that may be replaced by one to another server.
pub(super) struct Connection<'a> {
    server: &'a Server,
    at: usize,
    channel: Channel,
    lost: Option<Instant>,
}

impl Connection<'_> {
    /// The connection as it is now.
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Whom it leads to.
    pub(super) fn address(&self) -> &str {
        &self.server.servers[self.at]
    }

    /// The server answered: what is lost later is another loss.
    pub(super) fn heard(&mut self) {
        self.lost = None;
    }

    /// Looks for another server once, the next one first.
    pub(super) async fn turn(&mut self) -> Result<(), Failure> {
        (self.at, self.channel) = self.server.reach(self.at + 1).await?;
        Ok(())
    }

    /// Goes on at another server, or at the same one when it is back, after a failure that passes. Any other failure is
    /// given back, and so is this one a minute after the connection was lost.
    pub(super) async fn recover(&mut self, failure: Failure) -> Result<(), Failure> {
        let passing = match &failure {
            Failure::Status(status) => passes(status),
            Failure::Connect(_) => true,
            _ => false,
        };
        if !passing {
            return Err(failure);
        }
        let lost = *self.lost.get_or_insert_with(Instant::now);
        let mut last = failure;
        while lost.elapsed() < PATIENCE {
            tokio::time::sleep(PAUSE).await;
            match self.turn().await {
                Err(failure @ Failure::Connect(_)) => last = failure,
                other => return other,
            }
        }
        Err(last)
    }
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
}
