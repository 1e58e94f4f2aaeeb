//! Loads and unloads: one at a time, and to their end even if the caller who asked has gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::namespace::Fingerprint;
use super::served::{Files, Served, Status, Upstream};
use super::{Worker, root};
use crate::error::{Error, Result};
use crate::manifest::{Manifest, Modality};
use crate::pipeline::Assets;

/// How long loading a model may take.
const LOAD_PATIENCE: Duration = Duration::from_secs(300);
/// How long a model that is unloaded may finish what it has.
const UNLOAD_PATIENCE: Duration = Duration::from_secs(120);

/// A model of which no version could be begun: its `model.toml`, its tokeniser or a whole version is missing or broken.
#[derive(Clone, Debug)]
pub struct Broken {
    /// Why.
    pub why: Error,
    /// Whether the worker is unready without it. One whose `model.toml` cannot be read counts as required.
    pub required: bool,
    /// Its modality, if that is known.
    pub modality: Option<Modality>,
    /// The newest version that lies in the repository, or 1.
    pub version: u64,
}

/// Runs a change to its end, whatever becomes of the caller: half a load or unload is nothing that anybody could go on with.
async fn to_its_end<T: Send + 'static>(change: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let done = tokio::spawn(change).await;
    done.unwrap_or_else(|error| Err(Error::Internal(format!("a load or unload broke off: {error}"))))
}

impl Worker {
    /// Loads, or loads again, the versions that the model's policy names, and waits until they are warm. What was
    /// loaded before answers until then, and goes on answering if the new ones cannot be loaded.
    ///
    /// A caller who goes away while other models are loaded has begun nothing; later, the load goes on without the caller.
    /// A model that was not there before and cannot be loaded leaves the worker as ready as it was.
    pub async fn load(&self, model: &str, overriding: Option<Manifest>) -> Result<()> {
        let is_new = self.versions.of_model(model).is_empty() && !self.broken.read().contains_key(model);
        let loaded = self.load_to_the_end(model, overriding).await;
        if loaded.is_err() && is_new {
            self.versions.of_model(model).iter().for_each(|served| served.set_rejected());
        }
        loaded
    }

    async fn load_to_the_end(&self, model: &str, overriding: Option<Manifest>) -> Result<()> {
        let turn = self.changing.clone().lock_owned().await;
        let (worker, model) = (self.clone(), model.to_owned());
        to_its_end(async move {
            let loaded = worker.replace(&model, overriding).await;
            drop(turn);
            loaded
        })
        .await
    }

    /// The same for a model that is to be served from the start: if it cannot be begun, that is known, is told to whoever
    /// asks for the model, and the worker tries again.
    pub async fn load_from_the_start(&self, model: &str) -> Result<()> {
        let loaded = self.load_to_the_end(model, None).await;
        if let Err(why) = &loaded
            && self.versions.of_model(model).is_empty()
        {
            self.note_broken(model, why);
        }
        loaded
    }

    fn note_broken(&self, model: &str, why: &Error) {
        let entry = self.repository.get(model).ok();
        let manifest = entry.as_ref().and_then(|entry| entry.manifest.as_ref().ok());
        let broken = Broken {
            why: why.clone(),
            required: manifest.is_none_or(|manifest| manifest.required),
            modality: manifest.map(|manifest| manifest.modality),
            version: entry.as_ref().and_then(|entry| entry.versions.last().copied()).unwrap_or(1),
        };
        self.broken.write().insert(model.to_owned(), broken);
    }

    /// Unloads all versions of a model: no new requests, those in work are finished, then the memory is freed. Goes on
    /// without a caller who goes away.
    pub async fn unload(&self, model: &str) -> Result<()> {
        let turn = self.changing.clone().lock_owned().await;
        let versions = self.versions.of_model(model);
        let was_broken = self.broken.write().remove(model).is_some();
        if versions.is_empty() {
            return if was_broken { Ok(()) } else { self.served(model, None).map(drop) };
        }
        let worker = self.clone();
        to_its_end(async move {
            for served in versions {
                worker.retire(&served).await;
            }
            drop(turn);
            Ok(())
        })
        .await
    }

    async fn replace(&self, model: &str, overriding: Option<Manifest>) -> Result<()> {
        let entry = self.repository.get(model)?;
        let overridden = overriding.is_some();
        let own = |manifest: &Manifest| entry.served_by(&manifest.version_policy);
        let numbers = overriding.as_ref().map_or_else(|| entry.served(), own);
        let manifest = match (overriding, entry.manifest) {
            (Some(manifest), _) | (None, Ok(manifest)) => Arc::new(manifest),
            (None, Err(error)) => return Err(Error::invalid("model_name", error)),
        };
        if numbers.is_empty() {
            let there: Vec<String> = entry.versions.iter().map(u64::to_string).collect();
            let message = format!("no version of {model} is to be served; there are [{}]", crate::error::names(&there));
            return Err(Error::FailedPrecondition { reason: "NO_VERSION", message });
        }
        let before = self.versions.of_model(model);
        let mut fresh = Vec::new();
        for version in numbers {
            fresh.push(Arc::new(self.prepare(&manifest, version, &before).await?));
        }
        self.broken.write().remove(model);
        if before.is_empty() {
            fresh.iter().for_each(|served| self.versions.insert(served));
        }
        if let Err(error) = self.warm(&fresh).await {
            if !before.is_empty() {
                for served in &fresh {
                    self.stop(served).await;
                }
            }
            return Err(error);
        }
        if overridden {
            self.overridden.write().insert(model.to_owned());
        } else {
            self.overridden.write().remove(model);
        }
        self.succeed(&fresh, &before).await;
        Ok(())
    }

    /// Loads one version anew that could not be loaded before; its sisters are left as they are. What it says is read
    /// again, unless a load has said something else.
    pub(super) async fn replace_version(&self, old: &Arc<Served>) -> Result<()> {
        let turn = self.changing.clone().lock_owned().await;
        if !old.is_to_be_tried_again() || !self.versions().iter().any(|served| Arc::ptr_eq(served, old)) {
            return Ok(()); // somebody has loaded or unloaded it meanwhile
        }
        let name = &old.manifest.name;
        let manifest = if self.overridden.read().contains(name) {
            old.manifest.clone()
        } else {
            Arc::new(self.repository.get(name)?.manifest.map_err(|error| Error::invalid("model_name", error))?)
        };
        let before = [old.clone()];
        let fresh = [Arc::new(self.prepare(&manifest, old.version, &before).await?)];
        fresh[0].set_trial();
        let warm = self.warm(&fresh).await;
        match &warm {
            Ok(()) => self.succeed(&fresh, &before).await,
            Err(_) => self.stop(&fresh[0]).await,
        }
        drop(turn);
        warm
    }

    /// Starts versions, and waits until they are warm.
    async fn warm(&self, fresh: &[Arc<Served>]) -> Result<()> {
        for served in fresh {
            // a root that is gone has said so through `failed`
            let _ = self.root.cast(root::Message::Start(served.clone()));
        }
        let until = Instant::now() + LOAD_PATIENCE;
        for served in fresh {
            served.wait_ready(until).await?;
        }
        Ok(())
    }

    /// Puts versions in the place of their predecessors, also in the eyes of operators.
    async fn succeed(&self, fresh: &[Arc<Served>], before: &[Arc<Served>]) {
        for served in fresh {
            self.versions.insert(served);
        }
        for old in before {
            self.retire(old).await;
        }
        for served in fresh {
            let place = self.place(&served.manifest, served.version);
            if served.path != place {
                self.shared.tree.alias(&served.path, &place);
            }
        }
    }

    /// Where operators see a version.
    fn place(&self, manifest: &Manifest, version: u64) -> String {
        format!("{}/{}/{}/{version}", self.name, manifest.modality, manifest.name)
    }

    async fn prepare(&self, manifest: &Arc<Manifest>, version: u64, before: &[Arc<Served>]) -> Result<Served> {
        /// Tells versions apart that stand side by side for a while.
        static NEXT: AtomicU64 = AtomicU64::new(2);
        let directory = self.repository.directory(&manifest.name, version);
        let (reading, folder) = (manifest.clone(), directory.clone());
        let read = self.pool.run(move || {
            let fingerprint = Fingerprint::take(&reading, version, &folder)?;
            let assets = Assets::read(&reading, &folder).map_err(|error| error.to_string())?;
            Ok(Files { directory, assets, fingerprint })
        });
        let failed = |message| Error::FailedPrecondition { reason: "LOAD_FAILED", message };
        let files = read.await?.map_err(failed)?;
        let mut path = self.place(manifest, version);
        // beside a predecessor that still answers, a path of its own, which no other has had
        if !before.is_empty() {
            path = format!("{path}.{}", NEXT.fetch_add(1, Ordering::Relaxed));
        }
        let upstream = manifest.upstream.clone().map(|model| -> Upstream {
            let versions = self.versions.clone();
            Arc::new(move || versions.newest(&model))
        });
        Ok(Served::new(manifest.clone(), version, path, files, upstream))
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
}
