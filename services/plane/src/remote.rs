//! A worker behind connections.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::Uri;
use sensorium_actors::error::{Error, Result};
use sensorium_actors::request::{Context, Reply, ReplyStream, Request};
use sensorium_actors::route::client::Client;
use sensorium_cluster::membership::{Link, Registration};
use sensorium_proto::admin::admin_client::AdminClient;
use sensorium_proto::admin::{
    Actor, GetActorTreeRequest, GetModelCardRequest, GetModelCardResponse, RestartActorRequest,
};
use sensorium_proto::inference::repository_index_response::ModelIndex;
use sensorium_proto::inference::{
    ModelStatistics, ModelStatisticsRequest, RepositoryIndexRequest, RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
};
use sensorium_proto::worker;
use sensorium_proto::worker::worker_client::WorkerClient;
use sensorium_runtime::lanes::Lanes;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use crate::connection::{Connection, Way};
use crate::line::Line;
use crate::member::{Description, Member};
use crate::tls::ClientTls;
use crate::{convert, error, inject_trace};

/// How long an operator's question may take; loading a model takes longer.
const ANSWER: Duration = Duration::from_secs(5);

/// How workers are called.
#[derive(Clone)]
pub struct Dial {
    /// HTTP/2 connections to each worker that is called, at least; every lane has some.
    pub connections: usize,
    /// The threads that carry requests; nothing: whatever thread a call is made on.
    pub lanes: Option<Lanes>,
    /// They are closed when nobody has called it for so long.
    pub idle: Duration,
    /// A connection on which nothing has been heard for so long is asked…
    pub keep_alive: Duration,
    /// …and given up after this.
    pub keep_alive_timeout: Duration,
    /// Bytes of an answer at most.
    pub max_message_bytes: usize,
    /// How we prove ourselves; nothing: in the clear.
    pub tls: Option<ClientTls>,
}

impl Default for Dial {
    fn default() -> Self {
        Self {
            connections: 2,
            lanes: None,
            idle: Duration::from_secs(60),
            keep_alive: Duration::from_secs(1),
            keep_alive_timeout: Duration::from_secs(2),
            max_message_bytes: 256 << 20,
            tls: None,
        }
    }
}

impl Dial {
    /// The way to `origin`, unless something bars it.
    pub(crate) fn way(&self, origin: Uri, barred: Option<&'static str>) -> Way {
        let Self { keep_alive, keep_alive_timeout, .. } = *self;
        Way { origin, tls: self.tls.clone(), barred, keep_alive, keep_alive_timeout }
    }
}

/// Whether a worker can be reached, as its calls have told.
#[derive(Clone)]
struct Reach {
    worker: Arc<str>,
    line: Arc<Line>,
}

impl Reach {
    /// What came of a call: the worker's answer or error, either of which says that it is there, or the transport's, which
    /// makes the worker suspect.
    fn outcome<T>(&self, answer: Result<T, Status>, context: &Context) -> Result<T> {
        if answer.as_ref().err().is_none_or(error::is_answer) {
            self.line.heard();
        }
        answer.map_err(|status| self.error(&status, context))
    }

    fn error(&self, status: &Status, context: &Context) -> Error {
        let error = error::from_status(&self.worker, status);
        if let Error::Unavailable { reason: "UNREACHABLE" | "WORKER_LOST", .. } = &error {
            if context.expired() {
                return Error::DeadlineExceeded { stage: format!("waiting for {}", self.worker) };
            }
            if self.line.suspect() {
                tracing::warn!(worker = &*self.worker, %error, "worker is out of reach");
            }
        }
        error
    }
}

/// See the module.
pub struct RemoteMember {
    max_message_bytes: usize,
    reach: Reach,
}

impl RemoteMember {
    /// A worker, at the address that it has registered. Connections are made when they are needed.
    ///
    /// # Errors
    /// If the address is none.
    pub fn new(registration: &Registration, dial: &Dial, link: watch::Receiver<Link>) -> Result<Arc<Self>> {
        let (name, address) = (registration.node.as_str(), registration.address.as_str());
        let scheme = if dial.tls.is_some() { "https" } else { "http" };
        let origin = format!("{scheme}://{address}").parse();
        let origin = origin.map_err(|error| Error::Internal(format!("address '{address}' of {name}: {error}")))?;
        let barred = mismatch(registration, dial);
        if let Some(why) = barred {
            tracing::error!(worker = name, why, "worker cannot be called");
        }
        let line = Line::new(dial.way(origin, barred), dial, link);
        let reach = Reach { worker: name.into(), line };
        Ok(Arc::new(Self { max_message_bytes: dial.max_message_bytes, reach }))
    }

    fn client(&self) -> WorkerClient<Connection> {
        let connection = self.reach.line.connection();
        let origin = connection.origin();
        WorkerClient::with_origin(connection, origin)
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(usize::MAX)
    }

    fn admin(&self) -> AdminClient<Connection> {
        let connection = self.reach.line.connection();
        let origin = connection.origin();
        AdminClient::with_origin(connection, origin).max_decoding_message_size(self.max_message_bytes)
    }

    async fn ask<T>(
        &self,
        patience: Duration,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T> {
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => Ok(self.reach.outcome(answer, &Context::default())?.into_inner()),
            Err(_) => Err(Error::DeadlineExceeded { stage: format!("waiting for {}", self.reach.worker) }),
        }
    }
}

/// What keeps us from calling a worker at all. Never in the clear because the register says so: who can write there
/// could have requests sent to anybody.
fn mismatch(registration: &Registration, dial: &Dial) -> Option<&'static str> {
    match (registration.tls, dial.tls.is_some()) {
        (true, false) => Some("the worker speaks TLS, and this gateway has no plane.certificate, plane.key, plane.ca"),
        (false, true) => Some("the worker speaks no TLS, and plane.certificate of this gateway asks for it"),
        _ => None,
    }
}

/// The message with what travels beside it: what is left of the deadline, and the trace.
fn outgoing(request: &Request, context: &Context) -> tonic::Request<worker::InferRequest> {
    let mut message = tonic::Request::new(convert::request_to(request, context));
    if let Some(deadline) = context.deadline {
        message.set_timeout(deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
    }
    if let Some(span) = &context.span {
        inject_trace(span, message.metadata_mut());
    }
    message
}

impl Client for RemoteMember {
    fn name(&self) -> &str {
        &self.reach.worker
    }

    fn is_reachable(&self) -> bool {
        self.reach.line.is_reachable()
    }

    fn silent_for(&self) -> Duration {
        self.reach.line.silent_for()
    }

    fn suspect(&self) -> bool {
        self.reach.line.suspect()
    }

    fn infer<'a>(&'a self, request: &'a Request, context: &'a Context) -> BoxFuture<'a, Result<Reply>> {
        async move {
            let answer = self.client().infer(outgoing(request, context)).await;
            convert::reply_from(self.reach.outcome(answer, context)?.into_inner())
        }
        .boxed()
    }

    fn stream(&self, request: Request, context: Context) -> BoxFuture<'_, Result<ReplyStream>> {
        async move {
            let answer = self.client().stream(outgoing(&request, &context)).await;
            let parts = self.reach.outcome(answer, &context)?.into_inner();
            let reach = self.reach.clone();
            Ok(parts.map(move |part| convert::reply_from(reach.outcome(part, &context)?)).boxed())
        }
        .boxed()
    }
}

impl Member for RemoteMember {
    fn describe<'a>(&'a self, model: &'a str, version: Option<u64>) -> BoxFuture<'a, Result<Description>> {
        async move {
            let request = worker::DescribeRequest { model: model.to_owned(), version: version.unwrap_or(0) };
            let told = self.ask(ANSWER, self.client().describe(request)).await?;
            let manifest = serde_json::from_str(&told.manifest)
                .map_err(|error| Error::Internal(format!("manifest of {model} at {}: {error}", self.reach.worker)))?;
            Ok(Description { manifest, version: told.version, labels: told.labels })
        }
        .boxed()
    }

    fn statistics<'a>(&'a self, model: &'a str, version: Option<u64>) -> BoxFuture<'a, Result<Vec<ModelStatistics>>> {
        async move {
            let version = version.map_or(String::new(), |version| version.to_string());
            let request = ModelStatisticsRequest { name: model.to_owned(), version };
            Ok(self.ask(ANSWER, self.client().statistics(request)).await?.model_stats)
        }
        .boxed()
    }

    fn index(&self) -> BoxFuture<'_, Result<Vec<ModelIndex>>> {
        async move { Ok(self.ask(ANSWER, self.client().index(RepositoryIndexRequest::default())).await?.models) }
            .boxed()
    }

    fn load(&self, request: RepositoryModelLoadRequest) -> BoxFuture<'_, Result<()>> {
        async move { self.ask(Duration::from_secs(600), self.client().load(request)).await.map(drop) }.boxed()
    }

    fn unload<'a>(&'a self, model: &'a str) -> BoxFuture<'a, Result<()>> {
        let request = RepositoryModelUnloadRequest { model_name: model.to_owned(), ..Default::default() };
        async move { self.ask(Duration::from_secs(60), self.client().unload(request)).await.map(drop) }.boxed()
    }

    fn actors<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Vec<Actor>>> {
        let request = GetActorTreeRequest { path: path.to_owned() };
        async move { Ok(self.ask(ANSWER, self.admin().get_actor_tree(request)).await?.actors) }.boxed()
    }

    fn restart<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<()>> {
        let request = RestartActorRequest { path: path.to_owned() };
        async move { self.ask(ANSWER, self.admin().restart_actor(request)).await.map(drop) }.boxed()
    }

    fn card<'a>(&'a self, model: &'a str, version: Option<u64>) -> BoxFuture<'a, Result<GetModelCardResponse>> {
        let version = version.map_or(String::new(), |version| version.to_string());
        let request = GetModelCardRequest { name: model.to_owned(), version };
        async move { self.ask(ANSWER, self.admin().get_model_card(request)).await }.boxed()
    }

    fn drain(&self) -> BoxFuture<'_, Result<()>> {
        async move { self.ask(ANSWER, self.client().drain(worker::DrainRequest {})).await.map(drop) }.boxed()
    }
}
