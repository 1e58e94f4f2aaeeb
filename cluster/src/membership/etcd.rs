//! The register in etcd v3: a key per node under `<prefix>/nodes/`, on a lease of its own.
//!
//! Two tasks. [`keep`] (`lease.rs`) holds a node's key: it grants the lease, puts the key, renews, and starts over whenever
//! any of that fails, also when etcd comes back without its data. [`follow`] keeps the view: it lists, watches from the
//! revision after the list, and when the watch breaks reads on from the revision that it has reached. It lists again if
//! that was compacted, or if the register has lost its data. Reading needs no write: an etcd whose disk is full, and that
//! refuses writes therefore, is read like any other.
//!
//! Under `<prefix>/held/` a worker leaves the names of its models for an hour longer than it lives itself: a gateway that
//! starts while nobody holds a model knows all the same that there is one.

mod held;
mod lease;
mod missing;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, Identity, TlsOptions, Txn, TxnOp,
    TxnOpResponse, WatchOptions,
};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

pub(super) use self::lease::keep;
use self::missing::Missing;
use super::{Link, Membership, Refusal, Registration};

/// An answer that does not come within this is an outage.
const ANSWER: Duration = Duration::from_secs(3);
/// How often a silent connection is asked whether it is alive. etcd closes those that ask more often than every five
/// seconds (its `--grpc-keepalive-min-time`).
const KEEP_ALIVE: Duration = Duration::from_secs(6);
/// How often etcd is asked whether it takes writes: whoever only reads would not notice.
const LOOK: Duration = Duration::from_secs(3);
/// Codes of gRPC with which etcd says no rather than that it cannot answer: INVALID_ARGUMENT (a wrong password),
/// PERMISSION_DENIED, RESOURCE_EXHAUSTED (no space), FAILED_PRECONDITION and UNAUTHENTICATED.
const REFUSALS: [i32; 5] = [3, 7, 8, 9, 16];
/// Bytes of a list at most: that of 1,000 workers with 16 models each takes the 4 MiB of tonic's default.
const LIST: usize = 256 << 20;

/// Where etcd is, and how to talk to it.
#[derive(Clone, Debug)]
pub struct Etcd {
    /// URLs of its members.
    pub endpoints: Vec<String>,
    /// Name of the cluster: the root of all keys, so that several share one etcd.
    pub prefix: String,
    /// Time after which a node that no longer renews is gone. Rounded up to whole seconds, as etcd counts them.
    pub lease: Duration,
    /// User and password, where etcd asks for them.
    pub credentials: Option<Credentials>,
    /// Certificates, for `https` endpoints.
    pub tls: Option<Tls>,
}

/// A user of etcd.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (password not shown)", self.user)
    }
}

/// PEM files of a TLS client, read anew for each connection, so that they may be replaced.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Who may have signed the server's certificate.
    pub authority: PathBuf,
    /// Our own certificate and key, where the server asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    /// Whether the files can be read now.
    ///
    /// # Errors
    /// If one cannot.
    pub fn check(&self) -> Result<()> {
        self.read().map(drop)
    }

    fn read(&self) -> Result<TlsOptions> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| Error::File { path: path.clone(), message: error.to_string() })
        };
        let with = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&self.authority)?));
        Ok(match &self.identity {
            Some((certificate, key)) => with.identity(Identity::from_pem(read(certificate)?, read(key)?)),
            None => with,
        })
    }
}

/// Why the register is out of reach.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// etcd refused, or the connection broke.
    #[error("etcd: {}", describe(.0))]
    Etcd(#[from] etcd_client::Error),
    /// No answer.
    #[error("etcd does not answer")]
    Silent,
    /// The lease ran out while we were cut off.
    #[error("the lease is gone")]
    LeaseGone,
    /// A stream ended.
    #[error("etcd ended the stream: {0}")]
    Ended(String),
    /// A file that cannot be read.
    #[error("cannot read {path}: {message}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A registration that cannot be written.
    #[error("registration: {0}")]
    Json(#[from] serde_json::Error),
}

/// What etcd or the transport says; the reason of a failed connection stands in its causes.
fn describe(error: &etcd_client::Error) -> String {
    let (mut text, mut cause) = match error {
        etcd_client::Error::GRpcStatus(status) => (status.message().to_owned(), std::error::Error::source(status)),
        etcd_client::Error::TransportError(error) => (error.to_string(), std::error::Error::source(error)),
        other => (other.to_string(), None),
    };
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether etcd has answered, and said no.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Etcd(etcd_client::Error::GRpcStatus(status)) => REFUSALS.contains(&i32::from(status.code())),
            _ => false,
        }
    }
}

/// Notes that the register takes writes, or why it does not. Says so once.
fn note(refusal: &watch::Sender<Refusal>, why: Option<String>) {
    refusal.send_if_modified(|known| match (known.as_mut(), why) {
        (None, Some(why)) => {
            tracing::warn!(error = why, "the register takes no writes, going on with what it holds");
            *known = Some((Instant::now(), why));
            true
        }
        (Some((_, before)), Some(why)) => {
            let is_news = *before != why;
            *before = why;
            is_news
        }
        (Some((since, _)), None) => {
            tracing::info!(seconds = since.elapsed().as_secs_f64(), "the register takes writes again");
            *known = None;
            true
        }
        (None, None) => false,
    });
}

impl Etcd {
    fn nodes(&self) -> String {
        format!("{}/nodes/", self.prefix)
    }

    /// Which register this is, and its revision: a mark that whoever reads first leaves in it, and that is gone with its
    /// data. Revisions alone do not tell: those of a register that was emptied grow again. Nothing, if there is no mark and
    /// none can be left.
    async fn mark(&self, client: &Client) -> Result<(Option<Vec<u8>>, i64)> {
        let key = format!("{}/mark", self.prefix);
        let found = within(client.kv_client().get(key.as_str(), None)).await?;
        if let Some(mark) = found.kvs().first() {
            return Ok((Some(mark.value().to_vec()), found.header().map_or(0, etcd_client::ResponseHeader::revision)));
        }
        let own = format!("{:?} {}", std::time::SystemTime::now(), std::process::id()).into_bytes();
        let first = Compare::create_revision(key.as_str(), CompareOp::Equal, 0);
        let leave = TxnOp::put(key.as_str(), own.as_slice(), None);
        let look = TxnOp::get(key.as_str(), None);
        let left = within(client.kv_client().txn(Txn::new().when([first]).and_then([leave]).or_else([look]))).await;
        let answer = match left {
            Err(error) if error.is_refusal() => {
                return Ok((None, found.header().map_or(0, etcd_client::ResponseHeader::revision)));
            }
            left => left?,
        };
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let there = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(got) => got.kvs().first().map(|kv| kv.value().to_vec()),
            _ => None,
        });
        Ok((Some(there.unwrap_or(own)), revision))
    }

    fn key(&self, node: &str) -> String {
        format!("{}{node}", self.nodes())
    }

    async fn connect(&self) -> Result<Client> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(ANSWER)
            .with_keep_alive(KEEP_ALIVE, ANSWER)
            .with_keep_alive_while_idle(true)
            // a member that is cut off from the others would be silent rather than say so
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(Credentials { user, password }) = &self.credentials {
            options = options.with_user(user, password);
        }
        if let Some(tls) = &self.tls {
            options = options.with_tls(tls.read()?);
        }
        within(Client::connect(&self.endpoints, Some(options))).await
    }

    fn backoff(&self) -> impl Iterator<Item = Duration> {
        let most = (self.lease / 4).min(Duration::from_secs(1));
        let retry = ExponentialBuilder::new().with_min_delay(Duration::from_millis(50)).with_max_delay(most);
        retry.with_jitter().without_max_times().build()
    }
}

async fn within<T>(answer: impl Future<Output = std::result::Result<T, etcd_client::Error>>) -> Result<T> {
    Ok(tokio::time::timeout(ANSWER, answer).await.map_err(|_| Error::Silent)??)
}

/// Keeps the view for as long as anybody holds a handle to it.
pub(super) async fn follow(options: Arc<Etcd>, told: Membership) {
    let mut backoff = options.backoff();
    let (mut missing, mut place) = (Missing::default(), Place::default());
    loop {
        let mut current = false;
        let outcome = read(&options, &told, &mut missing, &mut place, &mut current).await;
        let Err(error) = outcome;
        let lost = told.link.send_if_modified(|link| {
            let was = *link == Link::Current;
            if was {
                *link = Link::Stale { since: Instant::now() };
            }
            was
        });
        let text = error.to_string();
        if told.trouble.send_replace(text.clone()) != text || lost {
            tracing::warn!(error = text, "the register is out of reach, going on with the last view");
        }
        if current {
            backoff = options.backoff();
        }
        tokio::time::sleep(backoff.next().unwrap_or(Duration::from_secs(1))).await;
    }
}

/// Up to which revision of which register the view has been read; of none, to begin with.
#[derive(Default)]
struct Place {
    mark: Option<Vec<u8>>,
    revision: i64,
}

async fn read(
    options: &Etcd,
    told: &Membership,
    missing: &mut Missing,
    place: &mut Place,
    current: &mut bool,
) -> Result<std::convert::Infallible> {
    let Membership { view, link, trouble, refusal, .. } = told;
    let client = options.connect().await?;
    let prefix = options.nodes();
    let (mark, now) = options.mark(&client).await?;
    let resumed = mark.is_some() && place.mark == mark && place.revision <= now;
    if resumed {
        missing.renew(options.lease);
    } else {
        let mut lists = client.kv_client().max_decoding_message_size(LIST);
        let list = within(lists.get(prefix.as_str(), Some(GetOptions::new().with_prefix()))).await?;
        let revision = list.header().map_or(0, etcd_client::ResponseHeader::revision);
        let listed = list.kvs().iter().filter_map(|kv| parse(kv.key(), kv.value(), &prefix)).collect();
        // before the view: who is told of that looks here
        *told.remembered.lock() = held::all(options, &client).await?;
        told.listed.store(true, Ordering::Release);
        view.send_modify(|view| *view = missing.merge(view, listed, options.lease));
        *place = Place { mark, revision };
    }
    let from = place.revision + 1;
    let watching = WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
    let mut watches = client.watch_client().max_decoding_message_size(LIST);
    let mut events = within(watches.watch(prefix.as_str(), Some(watching))).await?;
    *current = true;
    trouble.send_replace(String::new());
    if link.send_replace(Link::Current) != Link::Current {
        tracing::info!(nodes = view.borrow().len(), from, resumed, "the view of the cluster is current");
    }
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = missing.next();
        let event = tokio::select! {
            _ = look.tick() => {
                // who may not ask goes by what its own writes meet
                if let Ok(status) = within(client.maintenance_client().status()).await {
                    let alarms = status.errors().join(", ");
                    note(refusal, (!alarms.is_empty()).then(|| format!("etcd: {}", alarms.trim())));
                }
                continue;
            }
            event = events.message() => event?.ok_or_else(|| Error::Ended("watch".to_owned()))?,
            () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                for node in missing.take_due() {
                    tracing::warn!(node, "did not register again, left out");
                    view.send_modify(|view| drop(Arc::make_mut(view).remove(&node)));
                }
                continue;
            }
        };
        if event.canceled() {
            // also when the revision was compacted: everything is listed anew
            *place = Place::default();
            return Err(Error::Ended(match event.compact_revision() {
                0 => event.cancel_reason().to_owned(),
                oldest => format!("what came before revision {oldest} is compacted"),
            }));
        }
        for event in event.events() {
            let Some(kv) = event.kv() else { continue };
            match event.event_type() {
                EventType::Put => {
                    if let Some((node, registration)) = parse(kv.key(), kv.value(), &prefix) {
                        missing.heard(&node);
                        view.send_if_modified(|view| {
                            let changed = view.get(&node) != Some(&registration);
                            if changed {
                                Arc::make_mut(view).insert(node, registration);
                            }
                            changed
                        });
                    }
                }
                EventType::Delete => {
                    if let Some(node) = node_of(kv.key(), &prefix) {
                        missing.heard(node);
                        view.send_if_modified(|view| Arc::make_mut(view).remove(node).is_some());
                    }
                }
            }
        }
        // what the header says may be ahead of what is still to come, unless the answer says just how far we are
        if event.created() {
            continue;
        }
        let revision = match event.events().iter().filter_map(|event| Some(event.kv()?.mod_revision())).max() {
            None => event.header().map(etcd_client::ResponseHeader::revision),
            last => last,
        };
        place.revision = place.revision.max(revision.unwrap_or(0));
    }
}

fn node_of<'a>(key: &'a [u8], prefix: &str) -> Option<&'a str> {
    std::str::from_utf8(key).ok()?.strip_prefix(prefix)
}

fn parse(key: &[u8], value: &[u8], prefix: &str) -> Option<(String, Registration)> {
    let node = node_of(key, prefix)?;
    match serde_json::from_slice::<Registration>(value) {
        Ok(registration) => Some((node.to_owned(), registration)),
        Err(error) => {
            tracing::warn!(node, %error, "a registration that cannot be read is left out");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_registration_is_left_out() {
        assert!(parse(b"/s/nodes/w", b"{}", "/s/nodes/").is_some());
        assert!(parse(b"/s/nodes/w", b"not json", "/s/nodes/").is_none());
        assert!(parse(b"/other", b"{}", "/s/nodes/").is_none());
    }
}
