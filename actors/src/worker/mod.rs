//! The worker: model versions under supervision, and the handle by which requests reach them.

mod loading;
pub mod modality;
mod namespace;
pub mod registrar;
pub mod repository;
mod revival;
pub mod root;
pub mod served;
pub mod version;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt;
use parking_lot::RwLock;
use ractor::{Actor, ActorRef};
use tokio::sync::watch;

pub use self::loading::Broken;
use self::repository::Repository;
use self::served::{Served, Status};
use crate::engine::Loader;
use crate::error::{Error, Result};
use crate::manifest::Modality;
use crate::metrics::Finished;
use crate::pipeline::{self, Pool};
use crate::replica::actor::Shared;
use crate::replica::cores::Cores;
use crate::request::{Context, Reply, ReplyStream, Request};
use crate::supervision::tree::Tree;

/// How a worker is set up.
pub struct Options {
    /// Its name, the root of its actors' paths.
    pub name: String,
    /// The model repository.
    pub repository: PathBuf,
    /// Calls that may occupy the device's cores at once: cores divided by intra-op threads.
    pub concurrent_calls: usize,
    /// Decoding, resampling and tokenising jobs at once.
    pub decode_threads: usize,
    /// Bytes of decoded images and clips at once.
    pub decoded_bytes: usize,
}

type ByNumber = BTreeMap<(String, u64), Arc<Served>>;

/// Versions that are to be served, by model and number.
#[derive(Clone, Default)]
pub struct Versions(Arc<RwLock<ByNumber>>);

impl Versions {
    fn of(&self, modality: Modality) -> Vec<Arc<Served>> {
        let versions = self.0.read();
        let wanted = versions.values().filter(|served| {
            served.manifest.modality == modality
                && !matches!(served.status(), Status::Unloading | Status::Quarantined(_))
        });
        wanted.cloned().collect()
    }

    fn insert(&self, served: &Arc<Served>) {
        self.0.write().insert((served.manifest.name.clone(), served.version), served.clone());
    }

    fn remove(&self, served: &Arc<Served>) {
        let key = (served.manifest.name.clone(), served.version);
        let mut versions = self.0.write();
        if versions.get(&key).is_some_and(|there| Arc::ptr_eq(there, served)) {
            versions.remove(&key);
        }
    }

    fn of_model(&self, model: &str) -> Vec<Arc<Served>> {
        self.0.read().values().filter(|served| served.manifest.name == model).cloned().collect()
    }

    /// The newest that answers or will; one that is down does not hide an older one.
    fn newest(&self, model: &str) -> Option<Arc<Served>> {
        let mut staying = self.of_model(model);
        staying.retain(|served| served.status() != Status::Unloading);
        let up = staying.iter().rfind(|served| !matches!(served.status(), Status::Quarantined(_)));
        up.or(staying.last()).cloned()
    }
}

/// A cheap handle to one worker.
#[derive(Clone)]
pub struct Worker {
    name: Arc<str>,
    repository: Repository,
    root: ActorRef<root::Message>,
    versions: Versions,
    shared: Arc<Shared>,
    pool: Pool,
    fatal: watch::Receiver<Option<String>>,
    /// One load or unload at a time.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// Models that were to be served from the start and of which no version could be begun.
    broken: Arc<RwLock<BTreeMap<String, Broken>>>,
    /// Models that are served as a load asked rather than as the repository says.
    overridden: Arc<RwLock<BTreeSet<String>>>,
}

impl Worker {
    /// Starts the tree, with no model yet.
    pub async fn start(options: Options, loader: Arc<dyn Loader>, tree: Tree) -> Result<Self> {
        let versions = Versions::default();
        let shared = Arc::new(Shared {
            loader,
            cores: Arc::new(Cores::new(options.concurrent_calls)),
            tree,
            hung_threads: watch::Sender::new(0),
        });
        let (fatal, fatal_seen) = watch::channel(None);
        let args =
            root::Arguments { name: options.name.clone(), shared: shared.clone(), versions: versions.clone(), fatal };
        let (root, _) = Actor::spawn(None, root::Root, args)
            .await
            .map_err(|error| Error::Internal(format!("cannot start the worker: {error}")))?;
        let worker = Self {
            name: options.name.into(),
            repository: Repository::new(options.repository),
            root,
            versions,
            shared,
            pool: Pool::new(options.decode_threads, options.decoded_bytes),
            fatal: fatal_seen,
            changing: Arc::default(),
            broken: Arc::default(),
            overridden: Arc::default(),
        };
        tokio::spawn(revival::keep_trying(worker.clone()));
        Ok(worker)
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The model repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The supervision tree.
    pub fn tree(&self) -> &Tree {
        &self.shared.tree
    }

    /// Every version that is served, loading or quarantined.
    pub fn versions(&self) -> Vec<Arc<Served>> {
        self.versions.0.read().values().cloned().collect()
    }

    /// Models that were to be served from the start and of which no version could be begun, with the reason.
    pub fn broken(&self) -> BTreeMap<String, Broken> {
        self.broken.read().clone()
    }

    /// Why the worker cannot do what it is there for: it holds no model, or one that is required does not answer in any of
    /// its versions. `None` if all is well.
    pub fn unsound(&self) -> Option<String> {
        let (versions, broken) = (self.versions(), self.broken());
        if versions.is_empty() && broken.is_empty() {
            return Some(format!("no model is loaded; the repository is {}", self.repository.root().display()));
        }
        let mut lost: BTreeMap<&str, String> = BTreeMap::new();
        for (name, broken) in broken.iter().filter(|(_, broken)| broken.required) {
            lost.insert(name, broken.why.to_string());
        }
        // versions of a model stand side by side: the reason of its newest, unless an older one answers
        for served in versions.iter().filter(|served| served.manifest.required && !served.is_rejected()) {
            let down = match served.status() {
                Status::Quarantined(why) | Status::Waiting(why) => Some(why),
                Status::Ready | Status::Loading | Status::Unloading => None,
            };
            let sound = |other: &&Arc<Served>| {
                other.manifest.name == served.manifest.name
                    && !matches!(other.status(), Status::Quarantined(_) | Status::Waiting(_))
            };
            if let Some(why) = down.filter(|_| !versions.iter().any(|other| sound(&other))) {
                lost.insert(&served.manifest.name, why);
            }
        }
        let reasons: Vec<String> = lost.iter().map(|(name, why)| format!("model {name}: {why}")).collect();
        (!reasons.is_empty()).then(|| reasons.join("\n"))
    }

    /// A version, or the newest; NOT_FOUND with the names that exist.
    pub fn served(&self, model: &str, version: Option<u64>) -> Result<Arc<Served>> {
        let versions = self.versions.0.read();
        let newest_ready = || {
            let mut of_model = versions.values().rev().filter(|served| served.manifest.name == model);
            let first = of_model.next();
            // a version that is down does not hide an older one that answers
            first
                .filter(|served| served.status() == Status::Ready)
                .or_else(|| of_model.find(|served| served.status() == Status::Ready).or(first))
        };
        let found = match version {
            Some(version) => versions.get(&(model.to_owned(), version)),
            None => newest_ready(),
        };
        found.cloned().ok_or_else(|| {
            let numbers: Vec<String> =
                versions.keys().filter(|(name, _)| name == model).map(|(_, version)| version.to_string()).collect();
            if let Some(broken) = self.broken.read().get(model) {
                let message = format!("model '{model}' cannot be loaded: {}", broken.why);
                return Error::FailedPrecondition { reason: "LOAD_FAILED", message };
            }
            if numbers.is_empty() {
                let mut names: Vec<&str> = versions.keys().map(|(name, _)| name.as_str()).collect();
                names.dedup();
                Error::NotFound {
                    what: format!("model '{model}'"),
                    known: format!("loaded are {}", crate::error::names(&names)),
                }
            } else {
                Error::NotFound {
                    what: format!("model '{model}' version {}", version.unwrap_or_default()),
                    known: format!("loaded are {}", crate::error::names(&numbers)),
                }
            }
        })
    }

    /// Why the tree has given up, or a device thread too many hangs; pending for as long as all is well.
    pub async fn failed(&self, max_hung_threads: usize) -> String {
        let mut fatal = self.fatal.clone();
        let mut hung = self.shared.hung_threads.subscribe();
        tokio::select! {
            reason = fatal.wait_for(Option::is_some) => match reason {
                Ok(reason) => reason.clone().unwrap_or_default(),
                Err(_) => "the worker's root has stopped".to_owned(),
            },
            count = hung.wait_for(|count| *count > max_hung_threads) =>
                format!("{} device threads hang and cannot be ended", count.map_or(0, |count| *count)),
        }
    }

    /// Who answers this request.
    fn asked(&self, request: &Request) -> Result<Arc<Served>> {
        let served = self.served(&request.model, request.version)?;
        let Some(wanted) = &request.namespace else { return Ok(served) };
        let namespace = served.namespace();
        if **wanted == *namespace {
            return Ok(served);
        }
        Err(Error::NotFound { what: format!("'{wanted}'"), known: format!("loaded is {namespace}") })
    }

    /// Answers one request.
    pub async fn infer(&self, request: &Request, context: &Context) -> Result<Reply> {
        let served = self.asked(request)?;
        let _in_flight = served.enter();
        let mut finished = Finished::new(served.metrics.clone());
        let answer = pipeline::run(&served, request, context, &self.pool).await;
        finished.code = answer.as_ref().map_or_else(Error::code, |_| "ok");
        answer
    }

    /// Answers one request in parts: a generator piece by piece, any other model at once.
    pub async fn stream(&self, request: Request, context: Context) -> Result<ReplyStream> {
        let served = self.asked(&request)?;
        if served.generator().is_none() {
            let reply = self.infer(&request, &context).await;
            return Ok(Box::pin(futures::stream::once(async { reply })));
        }
        let in_flight = served.enter();
        let mut finished = Finished::new(served.metrics.clone());
        let mut pieces = match pipeline::stream(served, request, context, self.pool.clone()).await {
            Ok(pieces) => pieces,
            Err(error) => {
                finished.code = error.code();
                return Err(error);
            }
        };
        Ok(Box::pin(async_stream::stream! {
            let _in_flight = in_flight;
            let mut finished = finished; // whole: a closure would capture its field alone
            while let Some(piece) = pieces.next().await {
                let code = piece.as_ref().map_or_else(Error::code, |_| "cancelled");
                finished.code = code;
                yield piece;
            }
            if finished.code == "cancelled" {
                finished.code = "ok"; // read to its end
            }
        }))
    }
}
