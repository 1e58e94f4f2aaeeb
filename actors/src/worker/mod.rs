//! The worker: model versions under supervision, and the handle by which requests reach them.

pub mod modality;
mod namespace;
pub mod registrar;
pub mod repository;
pub mod root;
pub mod served;
pub mod version;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::RwLock;
use ractor::{Actor, ActorRef};
use tokio::sync::watch;
use tokio::time::Instant;

use self::repository::Repository;
use self::served::{Served, Status, Upstream};
use crate::engine::Loader;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, Modality};
use crate::metrics::Finished;
use crate::pipeline::{self, Assets, Pool};
use crate::replica::actor::Shared;
use crate::replica::cores::Cores;
use crate::request::{Context, Reply, ReplyStream, Request};
use crate::supervision::tree::Tree;

/// How long loading a model may take.
const LOAD_PATIENCE: Duration = Duration::from_secs(300);
/// How long a model that is unloaded may finish what it has.
const UNLOAD_PATIENCE: Duration = Duration::from_secs(120);

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
        Ok(Self {
            name: options.name.into(),
            repository: Repository::new(options.repository),
            root,
            versions,
            shared,
            pool: Pool::new(options.decode_threads),
            fatal: fatal_seen,
            changing: Arc::default(),
        })
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

    /// Whether a model that has to answer has been quarantined in all its versions.
    pub fn has_lost_a_required_model(&self) -> bool {
        let versions = self.versions.0.read();
        let lost = |served: &&Arc<Served>| matches!(served.status(), Status::Quarantined(_));
        versions.values().filter(|served| served.manifest.required).filter(lost).any(|lost_one| {
            let name = &lost_one.manifest.name;
            versions.values().filter(|served| served.manifest.name == *name).all(|served| lost(&served))
        })
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
            if numbers.is_empty() {
                let mut names: Vec<&str> = versions.keys().map(|(name, _)| name.as_str()).collect();
                names.dedup();
                Error::NotFound { what: format!("model '{model}'"), known: format!("loaded are {}", names.join(", ")) }
            } else {
                Error::NotFound {
                    what: format!("version {} of model '{model}'", version.unwrap_or_default()),
                    known: format!("loaded are {}", numbers.join(", ")),
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

    /// Loads, or loads again, the versions that the model's policy names, and waits until they are warm. What was
    /// loaded before answers until then, and goes on answering if the new ones cannot be loaded.
    pub async fn load(&self, model: &str, overriding: Option<Manifest>) -> Result<()> {
        let _one_at_a_time = self.changing.lock().await;
        let entry = self.repository.get(model)?;
        let numbers = entry.served();
        let manifest = match (overriding, entry.manifest) {
            (Some(manifest), _) | (None, Ok(manifest)) => Arc::new(manifest),
            (None, Err(error)) => return Err(Error::invalid("model_name", error)),
        };
        if numbers.is_empty() {
            let there: Vec<String> = entry.versions.iter().map(u64::to_string).collect();
            let message = format!("no version of {model} is to be served; there are [{}]", there.join(", "));
            return Err(Error::FailedPrecondition { reason: "NO_VERSION", message });
        }
        let before = self.versions.of_model(model);
        let mut fresh = Vec::new();
        for version in numbers {
            fresh.push(Arc::new(self.prepare(&manifest, version, &before).await?));
        }
        for served in &fresh {
            if before.is_empty() {
                self.versions.insert(served);
            }
            // a root that is gone has said so through `failed`
            let _ = self.root.cast(root::Message::Start(served.clone()));
        }
        let until = Instant::now() + LOAD_PATIENCE;
        for served in &fresh {
            if let Err(error) = served.wait_ready(until).await {
                if !before.is_empty() {
                    for served in &fresh {
                        self.stop(served).await;
                    }
                }
                return Err(error);
            }
        }
        for served in &fresh {
            self.versions.insert(served);
        }
        for old in &before {
            self.retire(old).await;
        }
        Ok(())
    }

    /// Unloads all versions of a model: no new requests, those in work are finished, then the memory is freed.
    pub async fn unload(&self, model: &str) -> Result<()> {
        let _one_at_a_time = self.changing.lock().await;
        let versions = self.versions.of_model(model);
        if versions.is_empty() {
            return self.served(model, None).map(drop);
        }
        for served in versions {
            self.retire(&served).await;
        }
        Ok(())
    }

    async fn prepare(&self, manifest: &Arc<Manifest>, version: u64, before: &[Arc<Served>]) -> Result<Served> {
        let directory = self.repository.directory(&manifest.name, version);
        let (reading, folder) = (manifest.clone(), directory.clone());
        let read = self.pool.run(move || {
            let namespace = namespace::of(&reading, version, &folder)?;
            let assets = Assets::read(&reading, &folder).map_err(|error| error.to_string())?;
            Ok((namespace, assets))
        });
        let failed = |message| Error::FailedPrecondition { reason: "LOAD_FAILED", message };
        let (namespace, assets) = read.await?.map_err(failed)?;
        let place = format!("{}/{}/{}/{version}", self.name, manifest.modality, manifest.name);
        // beside a predecessor that still answers, a path of its own
        let mut path = place.clone();
        let mut generation = 1;
        while before.iter().any(|old| old.path == path) {
            generation += 1;
            path = format!("{place}.{generation}");
        }
        let upstream = manifest.upstream.clone().map(|model| -> Upstream {
            let versions = self.versions.clone();
            Arc::new(move || versions.newest(&model))
        });
        Ok(Served::new(manifest.clone(), version, directory, path, namespace, assets, upstream))
    }

    /// Lets a version finish what it has, then stops it.
    async fn retire(&self, served: &Arc<Served>) {
        served.set_status(Status::Unloading);
        let until = Instant::now() + UNLOAD_PATIENCE;
        while served.in_flight() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.stop(served).await;
        self.versions.remove(served);
    }

    async fn stop(&self, served: &Arc<Served>) {
        // a root that is gone has taken its versions with it
        let _ = ractor::call!(self.root, |done| root::Message::Stop(served.clone(), done));
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
