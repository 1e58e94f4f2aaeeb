//! Jobs in NATS JetStream.
//!
//! Streams, bucket and object store are made by whoever comes first, made anew if NATS has lost its data, and given the
//! settings of every gateway that starts. The client connects again by itself; while it has not, everything is refused at
//! once rather than after a timeout.

mod blobs;
mod queues;
mod room;
mod setup;
mod told;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_nats::connection::State;
use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, UpdateErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::object_store::ObjectStore;
use async_nats::jetstream::stream::{self, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, Event};
use bytes::Bytes;
use futures::TryStreamExt;
use tokio::sync::watch;
use tokio::time::Instant;

use self::queues::Queue;
pub(super) use self::queues::{Hand, hint};
use self::room::Room;
use super::{Bounds, Dead, Error, Record, Result};
use crate::health::Health;

/// How long an answer of NATS may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a process that starts waits for NATS before it goes on without.
const FIRST: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

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
    /// How long a message may be in somebody's hands before a word is heard of it.
    pub patience: Duration,
    /// How much is kept there.
    pub bounds: Bounds,
}

/// What is there once NATS has been reached.
struct Ready {
    records: kv::Store,
    /// Blobs of earlier builds.
    blobs: ObjectStore,
    /// What blobs lie in.
    pieces: Stream,
    dead: Stream,
    queues: HashMap<&'static str, Queue>,
}

pub(super) struct Nats {
    options: Options,
    names: &'static [&'static str],
    client: Client,
    context: Context,
    ready: Arc<ArcSwapOption<Ready>>,
    making: tokio::sync::Mutex<()>,
    room: Room,
    /// Queues whose new messages are about to be told of.
    telling: Arc<parking_lot::Mutex<std::collections::HashSet<String>>>,
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
        let (making, room, telling) = (tokio::sync::Mutex::default(), Room::default(), Arc::default());
        Ok(Self { options, names, client, context, ready, making, room, telling, down_since })
    }

    pub(super) fn health(&self) -> Health {
        match *self.down_since.borrow() {
            None => self.room.short_since().map_or(Health::Ok, |since| Health::Full { since }),
            Some(since) => Health::Down { since },
        }
    }

    pub(super) async fn settled(&self) {
        let mut down_since = self.down_since.clone();
        let _ = tokio::time::timeout(FIRST, down_since.wait_for(Option::is_none)).await;
    }

    pub(super) fn trouble(&self) -> String {
        self.room.trouble()
    }

    pub(super) fn patience(&self) -> Duration {
        self.options.patience
    }

    /// Bytes of a message; some are for its headers.
    pub(super) fn largest(&self) -> usize {
        match self.client.server_info().max_payload {
            0 => usize::MAX,
            most => most - most / 8,
        }
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

    /// A failure after which everything is looked for anew: it may have been lost with NATS's data.
    fn lost(&self, error: impl std::fmt::Display) -> Error {
        self.ready.store(None);
        unavailable(error)
    }

    /// A failure to write: there may be no room, which loses nothing.
    fn unwritten(&self, error: impl std::fmt::Display) -> Error {
        let told = error.to_string();
        if room::is_short(&told) {
            return self.ran_out(&told);
        }
        self.lost(told)
    }

    /// What is too large would be refused in ways that look like an outage.
    fn fits(&self, key: &str, value: &Bytes) -> Result<()> {
        let (size, most) = (value.len(), self.largest());
        if size <= most {
            return Ok(());
        }
        Err(Error::TooLarge(format!("'{key}' has {size} bytes, NATS takes {most}")))
    }

    pub(super) async fn create(&self, key: &str, value: Bytes) -> Result<bool> {
        self.fits(key, &value)?;
        match self.ready().await?.records.create(key, value).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(self.unwritten(error)),
        }
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Record>> {
        let ready = self.ready().await?;
        let entry = ready.records.entry(key).await.map_err(|error| self.lost(error))?;
        if let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) {
            return Ok(Some(Record { value: entry.value, revision: entry.revision }));
        }
        if self.options.replicas == 1 {
            return Ok(None);
        }
        // any replica may have said so, and be behind: what is there is known to the leader
        let subject = format!("{}{key}", ready.records.prefix);
        match ready.records.stream.get_last_raw_message_by_subject(&subject).await {
            Ok(found) if found.headers.get("KV-Operation").is_none() => {
                Ok(Some(Record { value: found.payload, revision: found.sequence }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == stream::RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(self.lost(error)),
        }
    }

    pub(super) async fn update(&self, key: &str, value: Bytes, revision: u64) -> Result<bool> {
        self.fits(key, &value)?;
        match self.ready().await?.records.update(key, value, revision).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(error) => Err(self.unwritten(error)),
        }
    }

    pub(super) async fn remove_below(&self, prefix: &str) -> Result<()> {
        self.remove(&format!("{prefix}.>")).await
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

    pub(super) async fn bury(&self, id: &str, body: Bytes) -> Result<()> {
        self.ready().await?;
        self.fits(id, &body)?;
        let subject = format!("{}.dead", self.options.prefix);
        let letter = PublishMessage::build().payload(body).message_id(id);
        let sent = self.context.send_publish(subject, letter).await.map_err(|error| self.unwritten(error))?;
        sent.await.map(drop).map_err(|error| self.unwritten(error))
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
