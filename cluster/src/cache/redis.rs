//! Redis behind the near-cache. It may be slow, hang, die or be away: no request waits for it longer than a deadline of
//! milliseconds, and none fails by it.
//!
//! A task of its own connects, and connects again; until it has, all look-ups miss. Look-ups that fail or time out open a
//! circuit breaker, and for as long as it is open nobody asks. Writes have a breaker of their own (`traffic.rs`): a Redis
//! that is full, or a replica whose master is gone, takes none and goes on answering what it holds. `redis://` and `rediss://` are one server,
//! `redis+sentinel://host:26379,host:26379/MASTER` the master that sentinels name, `redis+cluster://host:6379,host:6379` a
//! cluster; each also as `rediss+…` with TLS.

mod connect;
mod traffic;

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use metrics::{Counter, Histogram};
use parking_lot::Mutex;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{Cmd, Pipeline, RedisFuture, Value};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use self::connect::Server;
use self::traffic::{Failure, Outcome, Traffic};
use super::Key;
use crate::health::Health;

/// Bytes that wait to be written at most; more are left out, as each value can be computed again.
const MAX_WAITING: usize = 32 << 20;
/// For so long values are gathered for one trip: each trip wakes Redis, and nobody waits for it…
const GATHERED: Duration = Duration::from_millis(10);
/// …up to so many values, as many as are looked up together…
const TOGETHER: usize = 256;
/// …or so many bytes.
const TOGETHER_BYTES: usize = 1 << 20;
/// Trips with look-ups that are under way at once: what comes meanwhile goes together on the next.
const TRIPS: usize = 2;
/// A write, and a ping, may take so many deadlines: nobody waits for them.
const PATIENCE: u32 = 20;
/// How long Redis may fail before it is connected to anew.
const CONNECT_ANEW: Duration = Duration::from_secs(5);

/// Where Redis is, and how long it is waited for.
#[derive(Clone, Debug)]
pub struct Options {
    /// See the module.
    pub url: String,
    /// Over the URL's, if it is not empty.
    pub password: String,
    /// PEM of who may have signed its certificate; none: whom the system trusts.
    pub authority: Option<Vec<u8>>,
    /// PEM of our own certificate and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// How long a look-up may take.
    pub timeout: Duration,
    /// What keys begin with: several clusters may share one Redis.
    pub prefix: String,
}

/// Why Redis cannot be used as it was described.
#[derive(Debug, thiserror::Error)]
#[error("redis: '{url}': {message}")]
pub struct Error {
    /// Without its password.
    pub url: String,
    /// What is wrong with it, and what was expected.
    pub message: String,
}

#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(commands, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(commands, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// A value on its way to Redis.
struct Write {
    key: Key,
    value: Bytes,
    _room: OwnedSemaphorePermit,
}

/// A look-up that waits for its trip.
struct Lookup {
    keys: Vec<Key>,
    answer: oneshot::Sender<Vec<Option<Bytes>>>,
}

/// Look-ups that come while others are under way go together.
#[derive(Default)]
struct Lookups {
    waiting: VecDeque<Lookup>,
    trips: usize,
}

impl Lookups {
    /// Who goes on the next trip; nobody: it ends, and the next look-up sets out anew.
    fn next(&mut self) -> Option<Vec<Lookup>> {
        let mut keys = 0;
        let mut together = Vec::new();
        while keys < TOGETHER
            && let Some(lookup) = self.waiting.pop_front()
        {
            if !lookup.answer.is_closed() {
                keys += lookup.keys.len();
                together.push(lookup);
            }
        }
        if together.is_empty() {
            self.trips -= 1;
            return None;
        }
        Some(together)
    }
}

/// Writes what comes, for as long as the cache lives.
async fn write(mut coming: UnboundedReceiver<Write>, far: Weak<Far>) {
    while let Some(first) = coming.recv().await {
        tokio::time::sleep(GATHERED).await;
        let mut bytes = first.value.len();
        let mut together = vec![first];
        while together.len() < TOGETHER && bytes < TOGETHER_BYTES {
            let Ok(next) = coming.try_recv() else { break };
            bytes += next.value.len();
            together.push(next);
        }
        let Some(far) = far.upgrade() else { return };
        far.write(&together).await;
    }
}

/// Redis as the cache sees it.
pub(super) struct Far {
    connection: Arc<ArcSwapOption<Connection>>,
    /// The connection is to be made anew.
    broken: Arc<Notify>,
    reads: Traffic,
    writes: Traffic,
    to_write: UnboundedSender<Write>,
    lookups: Mutex<Lookups>,
    /// Bytes that may wait to be written.
    room: Arc<Semaphore>,
    timeout: Duration,
    time_to_live: Duration,
    prefix: Vec<u8>,
    errors: Counter,
    timeouts: Counter,
    rejected: Counter,
    refused: Counter,
    dropped: Counter,
    trips: Histogram,
}

impl Far {
    pub(super) fn start(options: &Options, time_to_live: Duration) -> Result<Arc<Self>, Error> {
        let server = Server::parse(options)?;
        let count = |reason| metrics::counter!("sensorium_cache_errors_total", "reason" => reason);
        let (to_write, written) = mpsc::unbounded_channel();
        let far = Arc::new(Self {
            connection: Arc::default(),
            broken: Arc::default(),
            // nothing is known of it before it answers
            reads: Traffic::down(),
            writes: Traffic::well(),
            to_write,
            lookups: Mutex::default(),
            room: Arc::new(Semaphore::new(MAX_WAITING)),
            timeout: options.timeout,
            time_to_live,
            prefix: format!("{}/cache/", options.prefix).into_bytes(),
            errors: count("error"),
            timeouts: count("timeout"),
            rejected: count("circuit_open"),
            refused: count("write_refused"),
            dropped: count("writes_full"),
            trips: metrics::histogram!("sensorium_redis_duration_seconds"),
        });
        tokio::spawn(connect::keep(server, Arc::downgrade(&far)));
        tokio::spawn(write(written, Arc::downgrade(&far)));
        Ok(far)
    }

    fn key(&self, key: Key) -> Vec<u8> {
        [self.prefix.as_slice(), &key.to_be_bytes()].concat()
    }

    /// What Redis has of these keys, in their order; nothing at all if it does not say so in time.
    pub(super) async fn get(self: &Arc<Self>, keys: &[Key]) -> Vec<Option<Bytes>> {
        let (answer, told) = oneshot::channel();
        let sets_out = {
            let mut lookups = self.lookups.lock();
            lookups.waiting.push_back(Lookup { keys: keys.to_vec(), answer });
            let has_room = lookups.trips < TRIPS;
            lookups.trips += usize::from(has_room);
            has_room
        };
        if sets_out {
            tokio::spawn(self.clone().look_up());
        }
        match tokio::time::timeout(self.timeout, told).await {
            Ok(Ok(values)) => values,
            _ => vec![None; keys.len()],
        }
    }

    /// Trips for all look-ups that wait, until there are none.
    async fn look_up(self: Arc<Self>) {
        loop {
            let next = self.lookups.lock().next();
            let Some(together) = next else { return };
            let mut command = redis::cmd("MGET");
            for &key in together.iter().flat_map(|lookup| &lookup.keys) {
                command.arg(self.key(key));
            }
            let asked = self.read(self.timeout, async |mut connection| command.query_async(&mut connection).await);
            let values: Vec<Option<Bytes>> = asked.await.unwrap_or_default();
            // an answer of another length is none
            let is_whole = values.len() == together.iter().map(|lookup| lookup.keys.len()).sum::<usize>();
            let mut values = values.into_iter().filter(|_| is_whole);
            for Lookup { keys, answer } in together {
                // whoever waits no more does without
                let _ = answer.send(keys.iter().map(|_| values.next().flatten()).collect());
            }
        }
    }

    /// Writes in the background, together with what others write.
    pub(super) fn put(&self, values: Vec<(Key, Bytes)>) {
        for (key, value) in values {
            let bytes = u32::try_from(value.len()).unwrap_or(u32::MAX);
            let Ok(room) = self.room.clone().try_acquire_many_owned(bytes) else {
                self.dropped.increment(1);
                continue;
            };
            // the writer lives as long as this
            let _ = self.to_write.send(Write { key, value, _room: room });
        }
    }

    async fn write(&self, values: &[Write]) {
        let seconds = self.time_to_live.as_secs().max(1);
        let commands = values.iter().map(|write| {
            let mut command = redis::cmd("SET");
            command.arg(self.key(write.key)).arg(&write.value[..]).arg("EX").arg(seconds);
            command
        });
        self.send(commands.collect()).await;
    }

    /// Tries whether it takes writes again: nobody else may write for a while.
    async fn try_writing(&self) {
        let mut command = redis::cmd("SET");
        command.arg([self.prefix.as_slice(), b"probe"].concat()).arg(1).arg("EX").arg(1);
        self.send(vec![command]).await;
    }

    async fn send(&self, commands: Vec<Cmd>) {
        let written = self.ask(&self.writes, self.timeout * PATIENCE, async |connection| match connection {
            // keys of a cluster lie in different slots
            Connection::Cluster(cluster) => {
                let each = commands.iter().map(|command| {
                    let mut cluster = cluster.clone();
                    async move { command.exec_async(&mut cluster).await }
                });
                futures::future::try_join_all(each).await.map(drop)
            }
            Connection::One(mut one) => {
                let mut pipeline = Pipeline::with_capacity(commands.len());
                for command in &commands {
                    pipeline.add_command(command.clone()).ignore();
                }
                pipeline.exec_async(&mut one).await
            }
        });
        match written.await {
            Outcome::Answer(()) => {
                if let Some(since) = self.writes.succeeded() {
                    tracing::info!(seconds = since.elapsed().as_secs_f64(), "redis takes writes again");
                }
            }
            Outcome::NotAsked => {}
            Outcome::Failed(failure) => {
                self.refused.increment(1);
                if self.writes.failed(failure.to_string()) {
                    tracing::warn!(error = %failure, "redis takes no writes, what it holds is read on");
                }
                // of a master that has become a replica, the sentinels or its name lead to another one
                if failure.is_lost() || failure.is_read_only() && self.writes.is_due(CONNECT_ANEW) {
                    self.broken.notify_one();
                }
            }
        }
    }

    /// One question, within a deadline and the breaker of what is read. Nothing, if there is no answer.
    async fn read<T>(
        &self,
        timeout: Duration,
        question: impl AsyncFnOnce(Connection) -> Result<T, redis::RedisError>,
    ) -> Option<T> {
        match self.ask(&self.reads, timeout, question).await {
            Outcome::Answer(answer) => {
                if let Some(since) = self.reads.succeeded() {
                    tracing::info!(seconds = since.elapsed().as_secs_f64(), "redis answers");
                }
                Some(answer)
            }
            Outcome::NotAsked => None,
            Outcome::Failed(failure) => {
                match &failure {
                    Failure::Timeout(_) => self.timeouts.increment(1),
                    Failure::Redis(_) => self.errors.increment(1),
                }
                if self.reads.failed(failure.to_string()) {
                    tracing::warn!(error = %failure, "redis fails");
                }
                if failure.is_lost() || self.reads.unwell_for() >= CONNECT_ANEW {
                    self.broken.notify_one();
                }
                None
            }
        }
    }

    async fn ask<T>(
        &self,
        traffic: &Traffic,
        timeout: Duration,
        question: impl AsyncFnOnce(Connection) -> Result<T, redis::RedisError>,
    ) -> Outcome<T> {
        let Some(connection) = self.connection.load_full() else { return Outcome::NotAsked };
        let bounded = async {
            let started = Instant::now();
            let answer = tokio::time::timeout(timeout, question((*connection).clone())).await;
            self.trips.record(started.elapsed());
            match answer {
                Ok(answer) => answer.map_err(Failure::Redis),
                Err(_) => Err(Failure::Timeout(timeout)),
            }
        };
        match traffic.breaker.call(bounded).await {
            Ok(answer) => Outcome::Answer(answer),
            Err(recloser::Error::Rejected) => {
                self.rejected.increment(1);
                Outcome::NotAsked
            }
            Err(recloser::Error::Inner(failure)) => Outcome::Failed(failure),
        }
    }

    /// How Redis fares.
    pub(super) fn health(&self) -> Health {
        match (self.reads.unwell_since(), self.writes.unwell_since()) {
            (Some(since), _) => Health::Down { since },
            (None, Some(since)) => Health::Degraded { since },
            (None, None) => Health::Ok,
        }
    }

    /// What is wrong with it, in its own words.
    pub(super) fn trouble(&self) -> String {
        let writes = || self.writes.trouble().map(|why| format!("takes no writes: {why}"));
        self.reads.trouble().or_else(writes).unwrap_or_default()
    }
}
