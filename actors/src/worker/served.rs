//! A served version: what a request needs to reach its batcher, whatever its supervisor is doing at the moment.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, RwLock};
use ractor::ActorRef;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::namespace::Fingerprint;
use crate::batching::batcher::Message;
use crate::batching::entry::{Begun, Entry, Generation, RowReply, Work};
use crate::batching::queue::Meta;
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::metrics::VersionMetrics;
use crate::pipeline::Assets;
use crate::pipeline::speech::Speech;
use crate::replica::generate::Generator;
use crate::request::Context;
use crate::tensor::Tensor;

/// How long a request waits for a version that is starting or restarting, if its deadline allows.
const PATIENCE: Duration = Duration::from_secs(10);
/// Tries of a row whose batcher was lost before it was executed.
const TRIES: usize = 3;
/// Models that read from each other in a row, at most: manifests may name each other in a circle.
const UPSTREAMS: usize = 4;

/// Whether a version answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its replicas are loading, for the first time or again.
    Loading,
    /// At least one replica is warm.
    Ready,
    /// It finishes what it has and takes no more.
    Unloading,
    /// It failed too often, or cannot be loaded; why.
    Quarantined(String),
    /// It is warm, but the model that it reads from does not answer; which, and why.
    Waiting(String),
}

impl Status {
    /// State and reason, as the repository index writes them.
    pub fn index(&self) -> (&'static str, String) {
        match self {
            Self::Ready => ("READY", String::new()),
            Self::Loading => ("LOADING", String::new()),
            Self::Unloading => ("UNLOADING", String::new()),
            Self::Quarantined(reason) | Self::Waiting(reason) => ("UNAVAILABLE", reason.clone()),
        }
    }
}

/// Rows that stay together on their way through a batch.
#[derive(Clone, Debug)]
pub struct Row {
    /// One tensor per engine input.
    pub tensors: Vec<Tensor>,
    /// Rows in each.
    pub rows: usize,
    /// Tokens of each row; 0 where rows have no length.
    pub length: usize,
    /// Only rows of equal kind share a batch.
    pub kind: u64,
}

/// What a version was read from.
pub struct Files {
    /// Where they lie.
    pub directory: PathBuf,
    /// What the pipeline needs of them.
    pub assets: Assets,
    /// What they were.
    pub fingerprint: Fingerprint,
}

/// One version of one model in one worker.
pub struct Served {
    /// How it is served.
    pub manifest: Arc<Manifest>,
    /// Which version.
    pub version: u64,
    /// Where it lies.
    pub directory: PathBuf,
    /// Its place in the tree, for its actors: operators may see it under another, see [`Tree::alias`].
    ///
    /// [`Tree::alias`]: crate::supervision::tree::Tree::alias
    pub path: String,
    /// What its pipeline needs.
    pub assets: Assets,
    fingerprint: Fingerprint,
    /// Figures.
    pub metrics: Arc<VersionMetrics>,
    upstream: Option<Arc<dyn Fn() -> Option<Arc<Served>> + Send + Sync>>,
    batcher: ArcSwapOption<ActorRef<Message>>,
    ready: Arc<watch::Sender<usize>>,
    status: RwLock<Status>,
    /// Why replicas cannot be loaded, by their number.
    unloadable: Mutex<BTreeMap<usize, String>>,
    comes_back: AtomicBool,
    is_trial: AtomicBool,
    is_rejected: AtomicBool,
    in_flight: AtomicUsize,
}

/// Finds the version that another one reads from.
pub type Upstream = Arc<dyn Fn() -> Option<Arc<Served>> + Send + Sync>;

impl Served {
    /// A version that is about to be started.
    pub fn new(manifest: Arc<Manifest>, version: u64, path: String, files: Files, upstream: Option<Upstream>) -> Self {
        let Files { directory, assets, fingerprint } = files;
        Self {
            fingerprint,
            metrics: Arc::new(VersionMetrics::new(&manifest, version)),
            manifest,
            version,
            directory,
            path,
            assets,
            upstream,
            batcher: ArcSwapOption::empty(),
            ready: Arc::new(watch::Sender::new(0)),
            status: RwLock::new(Status::Loading),
            unloadable: Mutex::default(),
            comes_back: AtomicBool::new(false),
            is_trial: AtomicBool::new(false),
            is_rejected: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
        }
    }

    /// Namespace of its answers in a cache: everything that they depend on beside the input, and so that of the version
    /// that it reads from, too.
    pub fn namespace(&self) -> Cow<'_, str> {
        self.namespace_within(UPSTREAMS)
    }

    fn namespace_within(&self, depth: usize) -> Cow<'_, str> {
        let own = self.fingerprint.namespace();
        let upstream = self.upstream.as_ref().filter(|_| depth > 0).and_then(|upstream| upstream());
        match upstream {
            Some(upstream) => format!("{own}<{}", upstream.namespace_within(depth - 1)).into(),
            None => own.into(),
        }
    }

    /// Whether the files of the version are still those that it was loaded from: what is read from others must not be
    /// kept under its namespace. Reads them again if they were touched.
    ///
    /// # Errors
    /// Says that they are not, or which cannot be read.
    pub fn check_files(&self) -> Result<(), String> {
        self.fingerprint.check(&self.manifest, self.version, &self.directory)
    }

    /// Whether it answers.
    pub fn status(&self) -> Status {
        let own = self.own_status();
        let (Status::Ready, Some(upstream), Some(find)) = (&own, &self.manifest.upstream, &self.upstream) else {
            return own;
        };
        match find().map(|found| found.own_status()) {
            Some(Status::Ready | Status::Waiting(_)) => own,
            Some(Status::Loading) => Status::Loading,
            Some(Status::Quarantined(why)) => Status::Waiting(format!("reads from {upstream}, which is down: {why}")),
            Some(Status::Unloading) | None => Status::Waiting(format!("reads from {upstream}, which is not loaded")),
        }
    }

    /// The same without a look at the model that it reads from.
    fn own_status(&self) -> Status {
        let status = self.status.read().clone();
        match status {
            Status::Loading | Status::Ready if *self.ready.borrow() > 0 => Status::Ready,
            Status::Ready => Status::Loading,
            other => other,
        }
    }

    /// State and reason, as the repository index writes them: of a version that answers also which of its replicas do not.
    pub fn index(&self) -> (&'static str, String) {
        let (state, reason) = self.status().index();
        let unloadable = self.unloadable.lock();
        if !reason.is_empty() || unloadable.is_empty() {
            return (state, reason);
        }
        let why: Vec<String> = unloadable.iter().map(|(number, why)| format!("replica-{number}: {why}")).collect();
        let (down, all) = (unloadable.len(), self.manifest.replicas.count);
        (state, format!("{down} of {all} replicas cannot be loaded: {}", why.join("; ")))
    }

    /// Notes why a replica cannot be loaded, or that it has been. Returns how many cannot be at the moment, and whether
    /// this one could not be before.
    pub fn note_replica(&self, number: usize, unloadable: Option<String>) -> (usize, bool) {
        let mut known = self.unloadable.lock();
        let before = match unloadable {
            Some(why) => known.insert(number, why),
            None => known.remove(&number),
        };
        (known.len(), before.is_some())
    }

    /// Takes the version out of service; `comes_back` if it is tried again since it could not be loaded.
    pub fn quarantine(&self, reason: &str, comes_back: bool) {
        self.comes_back.store(comes_back, Ordering::Release);
        self.set_status(Status::Quarantined(reason.to_owned()));
    }

    /// Whether it is in quarantine and to be tried again.
    pub fn is_to_be_tried_again(&self) -> bool {
        self.comes_back.load(Ordering::Acquire) && matches!(self.own_status(), Status::Quarantined(_))
    }

    /// Marks the version as one that is tried again: that it cannot be loaded is no news.
    pub fn set_trial(&self) {
        self.is_trial.store(true, Ordering::Release);
    }

    /// Whether it is such a one.
    pub fn is_trial(&self) -> bool {
        self.is_trial.load(Ordering::Acquire)
    }

    /// Marks the version as one whose load an operator was refused: nobody has come to rely on it.
    pub fn set_rejected(&self) {
        self.is_rejected.store(true, Ordering::Release);
    }

    /// Whether it is such a one. The worker is ready without it.
    pub fn is_rejected(&self) -> bool {
        self.is_rejected.load(Ordering::Acquire)
    }

    /// Changes the status, and wakes those who wait for it.
    pub fn set_status(&self, status: Status) {
        *self.status.write() = status;
        self.ready.send_modify(|_| ());
    }

    /// Replicas that are ready, counted by the replicas themselves.
    pub fn ready(&self) -> &Arc<watch::Sender<usize>> {
        &self.ready
    }

    /// Its supervisor has a batcher for it, or has lost it.
    pub fn set_batcher(&self, batcher: Option<ActorRef<Message>>) {
        self.batcher.store(batcher.map(Arc::new));
    }

    /// The version that this one reads from, kept from being unloaded for as long as the guard lives.
    pub fn upstream(&self) -> Result<InFlight> {
        let name = self.manifest.upstream.as_deref().unwrap_or("nothing");
        let find = || Some(self.upstream.as_ref()?()?.enter());
        // one that began to be unloaded between finding and entering has a successor already
        let entered = std::iter::repeat_with(find).take(3).flatten();
        let mut sound = entered.filter(|entered| entered.own_status() != Status::Unloading);
        sound.next().ok_or_else(|| Error::Unavailable {
            reason: "UPSTREAM_MISSING",
            message: format!("{} reads from {name}, which is not loaded", self.manifest.name),
            retry_after: Duration::from_secs(1),
        })
    }

    /// Whisper's assets.
    pub fn speech(&self) -> Result<&Speech> {
        match &self.assets {
            Assets::Speech(speech) => Ok(speech),
            _ => Err(Error::Internal(format!("{} does not transcribe", self.manifest.name))),
        }
    }

    /// Tokeniser and end tokens, if this is a generator.
    pub fn generator(&self) -> Option<Arc<Generator>> {
        match &self.assets {
            Assets::Generation(generator) => Some(generator.clone()),
            _ => None,
        }
    }

    /// Counts a request for as long as the guard lives.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(self.clone())
    }

    /// Requests in work.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Waits until at least one replica is warm, or says why there will be none. The model that it reads from may be missing.
    pub async fn wait_ready(&self, until: Instant) -> Result<()> {
        let mut ready = self.ready.subscribe();
        loop {
            ready.mark_unchanged();
            match self.own_status() {
                Status::Ready | Status::Waiting(_) => return Ok(()),
                Status::Quarantined(why) => {
                    return Err(Error::FailedPrecondition {
                        reason: "QUARANTINED",
                        message: format!("{} version {} is quarantined: {why}", self.manifest.name, self.version),
                    });
                }
                Status::Unloading => {
                    return Err(Error::Unavailable {
                        reason: "UNLOADING",
                        message: format!("{} version {} is being unloaded", self.manifest.name, self.version),
                        retry_after: Duration::from_secs(1),
                    });
                }
                Status::Loading => {}
            }
            if tokio::time::timeout_at(until, ready.changed()).await.is_err() {
                return Err(Error::Unavailable {
                    reason: "LOADING",
                    message: format!("{} version {} has no replica that is ready", self.manifest.name, self.version),
                    retry_after: Duration::from_millis(500),
                });
            }
        }
    }

    async fn batcher(&self, context: &Context) -> Result<Arc<ActorRef<Message>>> {
        // the way of nearly every request: no waiting, no subscription
        if *self.ready.borrow() > 0
            && let Some(batcher) = self.batcher.load_full()
        {
            return Ok(batcher);
        }
        let patience = Instant::now() + PATIENCE;
        self.wait_ready(context.deadline.map_or(patience, |deadline| deadline.min(patience))).await?;
        self.batcher.load_full().ok_or_else(|| Error::lost(&self.manifest.name))
    }

    /// Puts rows into the queue and waits for their outputs. Rows whose batcher is lost before they were executed are
    /// put into its successor's queue.
    pub async fn forward(&self, row: Row, context: &Context) -> Result<RowReply> {
        let mut tries = 0;
        let stage = format_args!("waiting for {}", self.manifest.name).to_string();
        context
            .bound(&stage, async {
                loop {
                    tries += 1;
                    let batcher = self.batcher(context).await?;
                    let (reply, answer) = oneshot::channel();
                    let begun = (!self.manifest.routing.idempotent).then(Begun::default);
                    let work = Work::Forward { tensors: row.tensors.clone(), reply, begun: begun.clone() };
                    let sent = batcher.cast(self.submission(work, row.rows, row.length, row.kind, context));
                    if sent.is_ok()
                        && let Ok(answer) = answer.await
                    {
                        return answer;
                    }
                    if begun.is_some_and(|begun| begun.is_set()) {
                        return Err(Error::begun(&self.manifest.name, "it was lost"));
                    }
                    if tries == TRIES {
                        return Err(Error::lost(&self.manifest.name));
                    }
                    tokio::time::sleep(Duration::from_millis(20 << tries)).await;
                }
            })
            .await
    }

    /// Puts a sequence into the queue; its pieces come through its sink.
    pub async fn generate(&self, generation: Generation, context: &Context) -> Result<()> {
        let stage = format!("waiting for {}", self.manifest.name);
        let batcher = context.bound(&stage, self.batcher(context)).await?;
        let length = 0; // a prompt is fed in parts: nothing is padded
        let message = self.submission(Work::Generate(generation), 1, length, 0, context);
        batcher.cast(message).map_err(|_| Error::lost(&self.manifest.name))
    }

    fn submission(&self, work: Work, rows: usize, length: usize, kind: u64, context: &Context) -> Message {
        let batching = &self.manifest.batching;
        let now = Instant::now();
        let default = (batching.default_timeout_us > 0).then(|| Duration::from_micros(batching.default_timeout_us));
        let timeout = match context.queue_timeout {
            Some(timeout) if batching.allow_timeout_override => Some(timeout),
            _ => default,
        };
        let meta = Meta {
            rows,
            length,
            kind,
            priority: if context.priority == 0 { batching.default_priority_level } else { context.priority },
            enqueued: now,
            deadline: context.deadline,
            timeout: timeout.map(|timeout| now + timeout),
            alone: false,
        };
        Message::Submit(meta, Entry { work, attempts: 0, span: context.span.clone() })
    }
}

/// A request in work.
pub struct InFlight(Arc<Served>);

impl std::ops::Deref for InFlight {
    type Target = Arc<Served>;

    fn deref(&self) -> &Arc<Served> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
