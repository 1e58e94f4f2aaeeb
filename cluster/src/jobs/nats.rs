//! Jobs in NATS JetStream.
//!
//! Streams, bucket and object store are made by whoever comes first, made anew if NATS has lost its data, and given the
//! settings of every gateway that starts. The client connects again by itself; while it has not, everything is refused at
//! once rather than after a timeout.

mod told;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_nats::connection::State;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, UpdateErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::object_store::{self, ObjectStore};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, Stream};
use async_nats::jetstream::{self, AckKind, Context};
use async_nats::{Client, ConnectOptions, Event};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Dead, Delivery, Error, Message, Record, Result};
use crate::health::Health;

/// How long an answer of NATS may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a blob may take.
const BLOB: Duration = Duration::from_secs(60);
/// How long a process that starts waits for NATS before it goes on without.
const FIRST: Duration = Duration::from_secs(2);
/// How long a pull waits for a message.
const PULL: Duration = Duration::from_secs(1);
/// For so long equal ids are one message.
const SAME: Duration = Duration::from_secs(120);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Header of a message's trace.
const TRACE: &str = "traceparent";
/// Messages of a queue that may be in somebody's hands at once.
const MAX_IN_HANDS: i64 = 10_000;

/// Where NATS is, and what is kept there.
#[derive(Clone, Debug)]
pub struct Options {
    /// `nats://` or `tls://` URLs; user and password may stand in them.
    pub servers: Vec<String>,
    /// A credentials file.
    pub credentials: Option<PathBuf>,
    /// PEM file of who may have signed its certificate.
    pub authority: Option<PathBuf>,
    /// PEM files of our own certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// What names begin with: several clusters may share one NATS.
    pub prefix: String,
    /// Servers that keep a copy of everything.
    pub replicas: usize,
    /// Everything is forgotten after this long.
    pub retention: Duration,
    /// How long a message may be in somebody's hands before a word is heard of it.
    pub patience: Duration,
    /// Messages that a queue holds at most.
    pub max_queued: i64,
}

/// What is there once NATS has been reached.
struct Ready {
    records: kv::Store,
    blobs: ObjectStore,
    dead: Stream,
    queues: HashMap<&'static str, Consumer<pull::Config>>,
}

pub(super) struct Nats {
    options: Options,
    names: &'static [&'static str],
    client: Client,
    context: Context,
    ready: Arc<ArcSwapOption<Ready>>,
    making: tokio::sync::Mutex<()>,
    down_since: watch::Receiver<Option<Instant>>,
}

fn unavailable(error: impl std::fmt::Display) -> Error {
    Error::Unavailable(format!("NATS: {error}"))
}

impl Nats {
    pub(super) async fn start(options: Options, names: &'static [&'static str]) -> Result<Self> {
        let (down, down_since) = watch::channel(Some(Instant::now()));
        let ready: Arc<ArcSwapOption<Ready>> = Arc::default();
        let forgotten = ready.clone();
        let mut connect = ConnectOptions::new()
            .name(format!("sensorium {}", options.prefix))
            .retry_on_initial_connect()
            .request_timeout(Some(ANSWER))
            .connection_timeout(ANSWER)
            .ping_interval(Duration::from_secs(5))
            .reconnect_delay_callback(|tries| LONGEST_PAUSE.min(Duration::from_millis(100 * tries as u64)))
            .event_callback(move |event| {
                let (down, forgotten) = (down.clone(), forgotten.clone());
                async move {
                    match event {
                        Event::Connected => {
                            tracing::info!("connected to NATS");
                            down.send_replace(None);
                            // it may have lost its data
                            forgotten.store(None);
                        }
                        Event::Disconnected => {
                            tracing::warn!("lost NATS; jobs wait, everything else goes on");
                            down.send_if_modified(|down| down.is_none() && down.replace(Instant::now()).is_none());
                        }
                        Event::ServerError(error) => tracing::warn!(%error, "NATS refuses"),
                        _ => {}
                    }
                }
            });
        if let Some(file) = &options.credentials {
            let read = tokio::fs::read_to_string(file).await;
            let bad = |error: std::io::Error| Error::Setup(format!("jobs.credentials: {}: {error}", file.display()));
            connect = connect.credentials(&read.map_err(bad)?).map_err(bad)?;
        }
        if let Some(file) = &options.authority {
            connect = connect.add_root_certificates(file.clone());
        }
        if let Some((certificate, key)) = &options.identity {
            connect = connect.add_client_certificate(certificate.clone(), key.clone());
        }
        let servers = options.servers.iter().map(|url| {
            url.parse()
                .map_err(|error| Error::Setup(format!("nats: {error}, expected nats://HOST:PORT or tls://HOST:PORT")))
        });
        let servers = servers.collect::<Result<Vec<async_nats::ServerAddr>>>()?;
        // the client reads neither from the URL
        if let Some(server) = servers.iter().find(|server| server.has_user_pass()) {
            let (user, password) = (server.username().unwrap_or_default(), server.password().unwrap_or_default());
            connect = connect.user_and_password(user.to_owned(), password.to_owned());
        }
        let client = connect.connect(servers).await.map_err(|error| Error::Setup(format!("nats: {error}")))?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(ANSWER);
        Ok(Self { options, names, client, context, ready, making: tokio::sync::Mutex::default(), down_since })
    }

    pub(super) fn health(&self) -> Health {
        match *self.down_since.borrow() {
            None => Health::Ok,
            Some(since) => Health::Down { since },
        }
    }

    pub(super) async fn settled(&self) {
        let mut down_since = self.down_since.clone();
        let _ = tokio::time::timeout(FIRST, down_since.wait_for(Option::is_none)).await;
    }

    pub(super) fn patience(&self) -> Duration {
        self.options.patience
    }

    fn subject(&self, queue: &str) -> String {
        format!("{}.jobs.{queue}", self.options.prefix)
    }

    /// Streams, bucket and object store, made if they are not there, and with the settings of this gateway.
    async fn ready(&self) -> Result<Arc<Ready>> {
        if self.client.connection_state() != State::Connected {
            return Err(unavailable("not connected"));
        }
        if let Some(ready) = self.ready.load_full() {
            return Ok(ready);
        }
        let _one_at_a_time = self.making.lock().await;
        if let Some(ready) = self.ready.load_full() {
            return Ok(ready);
        }
        // boxed, for whoever asks would carry its ten kilobytes along
        let ready = Arc::new(Box::pin(self.make()).await?);
        self.ready.store(Some(ready.clone()));
        Ok(ready)
    }

    /// The stream of this configuration, made or changed: settings of a gateway that starts hold from then on.
    async fn stream(&self, config: stream::Config) -> Result<stream::Stream> {
        let name = config.name.clone();
        self.context.create_or_update_stream(config).await.map_err(unavailable)?;
        self.context.get_stream(name).await.map_err(unavailable)
    }

    async fn make(&self) -> Result<Ready> {
        let Options { prefix, replicas, retention, patience, max_queued, .. } = &self.options;
        let (context, replicas, retention) = (&self.context, *replicas, *retention);
        // the stream of a bucket, by ADR-8: the client would ask for the account first, whose answer it does not
        // understand from servers before 2.10
        let bucket = format!("{prefix}_jobs");
        let config = stream::Config {
            name: format!("KV_{bucket}"),
            subjects: vec![format!("$KV.{bucket}.>")],
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            max_age: retention,
            num_replicas: replicas,
            ..stream::Config::default()
        };
        context.create_or_update_stream(config).await.map_err(unavailable)?;
        let records = context.get_key_value(bucket).await.map_err(unavailable)?;
        let blobs = format!("{prefix}_blobs");
        let blobs = match context.get_object_store(&blobs).await {
            Ok(there) => {
                let stream = context.get_stream(format!("OBJ_{blobs}")).await.map_err(unavailable)?;
                let there_is = &stream.cached_info().config;
                let config = stream::Config { max_age: retention, num_replicas: replicas, ..there_is.clone() };
                context.update_stream(config).await.map_err(unavailable)?;
                there
            }
            Err(_) => {
                let config = object_store::Config {
                    bucket: blobs,
                    max_age: retention,
                    num_replicas: replicas,
                    ..object_store::Config::default()
                };
                context.create_object_store(config).await.map_err(unavailable)?
            }
        };
        let plain = |name: &str, subject: String| stream::Config {
            name: format!("{prefix}_{name}"),
            subjects: vec![subject],
            max_age: retention,
            num_replicas: replicas,
            duplicate_window: SAME.min(retention),
            ..stream::Config::default()
        };
        let dead = self.stream(plain("dead", format!("{prefix}.dead"))).await?;
        let mut queues = HashMap::new();
        for &name in self.names {
            let config = stream::Config {
                retention: RetentionPolicy::WorkQueue,
                // what does not fit is refused, not what waits thrown away
                discard: DiscardPolicy::New,
                max_messages: *max_queued,
                ..plain(&format!("queue_{name}"), self.subject(name))
            };
            let stream = self.stream(config).await?;
            let consumer = pull::Config {
                durable_name: Some("intake".to_owned()),
                ack_policy: AckPolicy::Explicit,
                ack_wait: *patience,
                max_ack_pending: MAX_IN_HANDS,
                ..pull::Config::default()
            };
            queues.insert(name, stream.create_consumer(consumer).await.map_err(unavailable)?);
        }
        Ok(Ready { records, blobs, dead, queues })
    }

    /// A failure after which everything is looked for anew: it may have been lost with NATS's data.
    fn lost(&self, error: impl std::fmt::Display) -> Error {
        self.ready.store(None);
        unavailable(error)
    }

    pub(super) async fn create(&self, key: &str, value: Bytes) -> Result<bool> {
        match self.ready().await?.records.create(key, value).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(self.lost(error)),
        }
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Record>> {
        let entry = self.ready().await?.records.entry(key).await.map_err(|error| self.lost(error))?;
        let there = entry.filter(|entry| entry.operation == Operation::Put);
        Ok(there.map(|entry| Record { value: entry.value, revision: entry.revision }))
    }

    pub(super) async fn update(&self, key: &str, value: Bytes, revision: u64) -> Result<bool> {
        match self.ready().await?.records.update(key, value, revision).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(error) => Err(self.lost(error)),
        }
    }

    pub(super) async fn remove(&self, key: &str) -> Result<()> {
        let ready = self.ready().await?;
        // a key that is deleted leaves a marker, which would be counted
        let subject = format!("{}{key}", ready.records.prefix);
        ready.records.stream.purge().filter(subject).await.map(drop).map_err(|error| self.lost(error))
    }

    pub(super) async fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let ready = self.ready().await?;
        let root = ready.records.prefix.clone();
        let subjects = ready.records.stream.info_with_subjects(format!("{root}{prefix}.>")).await;
        let subjects = subjects.map_err(|error| self.lost(error))?;
        let keys = subjects.map_ok(|(subject, _)| subject.strip_prefix(&root).unwrap_or(&subject).to_owned());
        keys.try_collect().await.map_err(|error| self.lost(error))
    }

    pub(super) async fn put_blob(&self, name: &str, value: Bytes) -> Result<()> {
        let ready = self.ready().await?;
        ready.blobs.put(name, &mut &value[..]).await.map(drop).map_err(|error| self.lost(error))
    }

    pub(super) async fn blob(&self, name: &str) -> Result<Option<Bytes>> {
        let mut object = match self.ready().await?.blobs.get(name).await {
            Ok(object) => object,
            Err(error) if error.kind() == object_store::GetErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.lost(error)),
        };
        let mut value = Vec::with_capacity(object.info().size);
        // one whose pieces are gone would be read for ever
        tokio::time::timeout(BLOB, object.read_to_end(&mut value)).await.map_err(unavailable)?.map_err(unavailable)?;
        Ok(Some(value.into()))
    }

    pub(super) async fn remove_blob(&self, name: &str) -> Result<()> {
        match self.ready().await?.blobs.delete(name).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == object_store::DeleteErrorKind::NotFound => Ok(()),
            Err(error) => Err(unavailable(error)),
        }
    }

    pub(super) async fn push(&self, queue: &str, message: Message) -> Result<()> {
        self.ready().await?;
        let mut publish = PublishMessage::build().payload(message.body).message_id(&message.id);
        if !message.trace.is_empty() {
            publish = publish.header(TRACE, message.trace.as_str());
        }
        let told = |error: async_nats::jetstream::context::PublishError| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => Error::Setup(format!("NATS: {error}")),
            PublishErrorKind::Other if error.to_string().contains("maximum messages exceeded") => {
                Error::full(queue, self.options.max_queued)
            }
            _ => self.lost(error),
        };
        self.context.send_publish(self.subject(queue), publish).await.map_err(told)?.await.map(drop).map_err(told)
    }

    pub(super) async fn pull(&self, queue: &str, most: usize) -> Result<BoxStream<'static, Result<Delivery>>> {
        let ready = self.ready().await?;
        let Some(consumer) = ready.queues.get(queue) else {
            return Err(Error::Setup(format!("there is no queue '{queue}'")));
        };
        let batch =
            consumer.fetch().max_messages(most).expires(PULL).messages().await.map_err(|error| self.lost(error))?;
        let ready = self.ready.clone();
        Ok(batch
            .map(move |message| {
                let message = message.map_err(|error| {
                    ready.store(None);
                    unavailable(error)
                })?;
                let deliveries = message.info().map_or(1, |info| u64::try_from(info.delivered).unwrap_or(1));
                let trace = message.headers.as_ref().and_then(|headers| headers.get(TRACE));
                let trace = trace.map(|trace| trace.as_str().to_owned()).unwrap_or_default();
                let told = Message { id: String::new(), trace, body: message.payload.clone() };
                Ok(Delivery { message: told, deliveries, hand: super::Hand::Nats(Box::new(Hand(message))) })
            })
            .boxed())
    }

    pub(super) async fn waiting(&self, queue: &str) -> Result<u64> {
        let ready = self.ready().await?;
        let Some(consumer) = ready.queues.get(queue) else { return Ok(0) };
        let info = consumer.get_info().await.map_err(|error| self.lost(error))?;
        Ok(info.num_pending + info.num_ack_pending as u64)
    }

    pub(super) async fn bury(&self, id: &str, body: Bytes) -> Result<()> {
        self.ready().await?;
        let subject = format!("{}.dead", self.options.prefix);
        let letter = PublishMessage::build().payload(body).message_id(id);
        let sent = self.context.send_publish(subject, letter).await.map_err(|error| self.lost(error))?;
        sent.await.map(drop).map_err(|error| self.lost(error))
    }

    pub(super) async fn dead(&self, from: u64, most: usize) -> Result<Vec<Dead>> {
        let ready = self.ready().await?;
        let state = ready.dead.get_info().await.map_err(|error| self.lost(error))?.state;
        let mut dead = Vec::new();
        // an empty stream begins with 0, where no message can be
        let mut sequence = from.max(state.first_sequence).max(1);
        while sequence <= state.last_sequence && dead.len() < most {
            // those that were replayed have left gaps
            if let Some(body) = self.letter(&ready.dead, sequence).await? {
                dead.push(Dead { sequence, body });
            }
            sequence += 1;
        }
        Ok(dead)
    }

    pub(super) async fn unbury(&self, sequence: u64) -> Result<bool> {
        let ready = self.ready().await?;
        match self.letter(&ready.dead, sequence).await? {
            None => Ok(false),
            Some(_) => ready.dead.delete_message(sequence).await.map_err(|error| self.lost(error)),
        }
    }

    async fn letter(&self, dead: &Stream, sequence: u64) -> Result<Option<Bytes>> {
        match dead.get_raw_message(sequence).await {
            Ok(message) => Ok(Some(message.payload)),
            Err(error) if error.kind() == stream::RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(self.lost(error)),
        }
    }
}

pub(super) struct Hand(jetstream::Message);

impl Hand {
    /// Heard by NATS when it returns: what was thought done and was not would be done twice.
    pub(super) async fn done(self) -> Result<()> {
        tokio::time::timeout(ANSWER, self.0.double_ack()).await.map_err(unavailable)?.map_err(unavailable)
    }

    pub(super) async fn in_progress(&self) -> Result<()> {
        self.0.ack_with(AckKind::Progress).await.map_err(unavailable)
    }

    pub(super) async fn back(self, after: Duration) -> Result<()> {
        self.0.ack_with(AckKind::Nak(Some(after))).await.map_err(unavailable)
    }
}
