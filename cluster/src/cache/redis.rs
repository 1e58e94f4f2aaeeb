//! Redis behind the near-cache. It may be slow, hang, die or be away: no request waits for it longer than a deadline of
//! milliseconds, and none fails by it.
//!
//! A task of its own connects, and connects again; until it has, all look-ups miss. Look-ups that fail or time out open a
//! circuit breaker, and for as long as it is open nobody asks. `redis://` and `rediss://` are one server,
//! `redis+sentinel://host:26379,host:26379/MASTER` the master that sentinels name, `redis+cluster://host:6379,host:6379` a
//! cluster; each also as `rediss+…` with TLS.

mod connect;

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use metrics::{Counter, Histogram};
use parking_lot::Mutex;
use recloser::{AsyncRecloser, Recloser};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{Cmd, Pipeline, RedisFuture, Value};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use self::connect::Server;
use super::Key;
use crate::health::Health;

/// Look-ups over which the breaker takes its measure.
const MEASURED: usize = 8;
/// Share of them that must fail before it opens.
const FAILING: f32 = 0.5;
/// Look-ups that are let through to see whether Redis is back.
const PROBES: usize = 2;
/// How long it stays open.
const OPEN: Duration = Duration::from_secs(1);
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
/// Failures in a row after which Redis is said to be down: one look-up that comes too late is no news.
const DOWN: u32 = 3;
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

/// Why a look-up gave nothing.
enum Failure {
    Timeout,
    Redis(redis::RedisError),
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
    breaker: AsyncRecloser,
    writes: UnboundedSender<Write>,
    lookups: Mutex<Lookups>,
    /// Bytes that may wait to be written.
    room: Arc<Semaphore>,
    /// Since when, and how often in a row.
    failing: Mutex<Option<(Instant, u32)>>,
    timeout: Duration,
    time_to_live: Duration,
    prefix: Vec<u8>,
    errors: Counter,
    timeouts: Counter,
    rejected: Counter,
    dropped: Counter,
    trips: Histogram,
}

impl Far {
    pub(super) fn start(options: &Options, time_to_live: Duration) -> Result<Arc<Self>, Error> {
        let server = Server::parse(options)?;
        let breaker =
            Recloser::custom().error_rate(FAILING).closed_len(MEASURED).half_open_len(PROBES).open_wait(OPEN).build();
        let count = |reason| metrics::counter!("sensorium_cache_errors_total", "reason" => reason);
        let (writes, written) = mpsc::unbounded_channel();
        let far = Arc::new(Self {
            connection: Arc::default(),
            broken: Arc::default(),
            breaker: breaker.into(),
            writes,
            lookups: Mutex::default(),
            room: Arc::new(Semaphore::new(MAX_WAITING)),
            failing: Mutex::new(Some((Instant::now(), DOWN))),
            timeout: options.timeout,
            time_to_live,
            prefix: format!("{}/cache/", options.prefix).into_bytes(),
            errors: count("error"),
            timeouts: count("timeout"),
            rejected: count("circuit_open"),
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
            let asked = self.ask(self.timeout, async |mut connection| command.query_async(&mut connection).await);
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
            let _ = self.writes.send(Write { key, value, _room: room });
        }
    }

    async fn write(&self, values: &[Write]) {
        let seconds = self.time_to_live.as_secs().max(1);
        let commands = values.iter().map(|write| {
            let mut command = redis::cmd("SET");
            command.arg(self.key(write.key)).arg(&write.value[..]).arg("EX").arg(seconds);
            command
        });
        let commands: Vec<Cmd> = commands.collect();
        self.ask(self.timeout * PATIENCE, async |connection| match connection {
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
        })
        .await;
    }

    /// One question, within a deadline and the breaker.
    async fn ask<T>(
        &self,
        timeout: Duration,
        question: impl AsyncFnOnce(Connection) -> Result<T, redis::RedisError>,
    ) -> Option<T> {
        let connection = self.connection.load_full()?;
        let bounded = async {
            let started = Instant::now();
            let answer = tokio::time::timeout(timeout, question((*connection).clone())).await;
            self.trips.record(started.elapsed());
            match answer {
                Ok(answer) => answer.map_err(Failure::Redis),
                Err(_) => Err(Failure::Timeout),
            }
        };
        match self.breaker.call(bounded).await {
            Ok(answer) => {
                self.well();
                Some(answer)
            }
            Err(recloser::Error::Rejected) => {
                self.rejected.increment(1);
                None
            }
            Err(recloser::Error::Inner(failure)) => {
                self.failed(&failure);
                None
            }
        }
    }

    fn well(&self) {
        if let Some((since, failures)) = self.failing.lock().take()
            && failures >= DOWN
        {
            tracing::info!(seconds = since.elapsed().as_secs_f64(), "redis answers");
        }
    }

    /// It is known to be away. Since when it fails, and whether that is news.
    fn fails(&self, failures: u32) -> (Instant, bool) {
        let mut failing = self.failing.lock();
        let (since, count) = failing.get_or_insert_with(|| (Instant::now(), 0));
        let before = *count;
        *count = count.saturating_add(failures);
        (*since, before < DOWN && *count >= DOWN)
    }

    fn failed(&self, failure: &Failure) {
        let (since, news) = self.fails(1);
        match failure {
            Failure::Timeout => {
                self.timeouts.increment(1);
                if news {
                    tracing::warn!(milliseconds = self.timeout.as_millis(), "redis does not answer in time");
                }
            }
            Failure::Redis(error) => {
                self.errors.increment(1);
                if news {
                    tracing::warn!(%error, "redis fails");
                }
            }
        }
        let lost = matches!(failure, Failure::Redis(error) if error.is_unrecoverable_error());
        if lost || since.elapsed() >= CONNECT_ANEW {
            self.broken.notify_one();
        }
    }

    /// How Redis fares.
    pub(super) fn health(&self) -> Health {
        let failing = self.failing.lock().filter(|(_, failures)| *failures >= DOWN);
        failing.map_or(Health::Ok, |(since, _)| Health::Down { since })
    }
}
