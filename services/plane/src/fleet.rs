//! All workers of the cluster, as operators ask for them: by name, or all together.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use moka::future::Cache;
use parking_lot::RwLock;
use sensorium_actors::error::{Error, Result};
use sensorium_actors::route::client::Client;
use sensorium_actors::route::{unheld, unread};
use sensorium_actors::supervision::tree::Tree;
use sensorium_cluster::membership::{Held, Membership, Registration, View};
use sensorium_proto::admin::Actor;
use sensorium_proto::inference::repository_index_response::ModelIndex;
use sensorium_proto::inference::{ModelStatistics, RepositoryModelLoadRequest};
use tokio::sync::watch;

use crate::local;
use crate::member::{Description, Member};
use crate::statistics;

/// Makes a member of a registration; `None` for one that is not to be called.
pub type Make = Arc<dyn Fn(&Registration) -> Option<Arc<dyn Member>> + Send + Sync>;

/// By name, each with the registration that it was made of.
type Members = BTreeMap<String, (Registration, Arc<dyn Member>)>;

/// Start of a worker, and the namespace of what it holds: a version that is loaded anew with another manifest or other
/// files, through whichever gateway, is another one.
type Described = (String, String);

/// A cheap handle to all workers.
#[derive(Clone)]
pub struct Fleet {
    members: Arc<RwLock<Members>>,
    make: Make,
    membership: Membership,
    /// Actors of this process that are no worker's.
    tree: Tree,
    described: Cache<Described, Arc<Description>>,
}

impl Fleet {
    /// The workers of `membership`, made by `make`; `tree` is of the actors beside them.
    pub fn new(membership: &Membership, make: Make, tree: Tree) -> Self {
        let members: Arc<RwLock<Members>> = Arc::default();
        tokio::spawn(leave_out(Arc::downgrade(&members), membership.watch()));
        Self {
            members,
            make,
            membership: membership.clone(),
            tree,
            described: Cache::builder().max_capacity(10_000).time_to_live(Duration::from_secs(60)).build(),
        }
    }

    /// The client of a worker that has registered, for the router: the same for as long as the worker is.
    pub fn connect(&self, registration: &Registration) -> Option<Arc<dyn Client>> {
        Some(self.member_of(registration)? as Arc<dyn Client>)
    }

    fn member_of(&self, registration: &Registration) -> Option<Arc<dyn Member>> {
        let same = |known: &Registration| {
            known.incarnation == registration.incarnation && known.address == registration.address
        };
        let known = self.members.read().get(&registration.node).filter(|(known, _)| same(known)).cloned();
        if let Some((_, member)) = known {
            return Some(member);
        }
        let member = (self.make)(registration)?;
        self.members.write().insert(registration.node.clone(), (registration.clone(), member.clone()));
        Some(member)
    }

    /// All workers that are registered now.
    pub fn all(&self) -> Vec<(Registration, Arc<dyn Member>)> {
        let view = self.membership.watch().borrow().clone();
        let workers = view.values().filter(|registration| registration.is_worker());
        workers.filter_map(|worker| Some((worker.clone(), self.member_of(worker)?))).collect()
    }

    /// A worker by name.
    ///
    /// # Errors
    /// `NotFound` with the names that exist, `Unavailable` before the register has been read.
    pub fn get(&self, name: &str) -> Result<Arc<dyn Member>> {
        let all = self.all();
        let found = all.iter().find(|(registration, _)| registration.node == name);
        found.map(|(_, member)| member.clone()).ok_or_else(|| {
            if let Some(unread) = unread(&self.membership) {
                return unread;
            }
            let names: Vec<&str> = all.iter().map(|(registration, _)| registration.node.as_str()).collect();
            Error::NotFound {
                what: format!("worker '{name}'"),
                known: format!("there are {}", sensorium_actors::error::names(&names)),
            }
        })
    }

    /// Who holds a version, the best first; `None` is any version.
    fn holders(&self, model: &str, version: Option<u64>) -> Vec<(Registration, Held, Arc<dyn Member>)> {
        let mut holders = Vec::new();
        for (registration, member) in self.all() {
            let held = registration
                .models
                .iter()
                .filter(|held| held.name == model && version.is_none_or(|version| held.version == version));
            if let Some(best) = held.max_by_key(|held| (held.is_ready(), held.version)) {
                holders.push((registration.clone(), best.clone(), member));
            }
        }
        holders.sort_by_key(|(registration, held, _)| {
            (!held.is_ready(), registration.draining, std::cmp::Reverse(held.version))
        });
        holders
    }

    /// What a version is, as one of its holders says.
    ///
    /// # Errors
    /// `NotFound` with the names that exist; what the last holder said if none answers.
    pub async fn describe(&self, model: &str, version: Option<u64>) -> Result<Arc<Description>> {
        let mut last = None;
        for (registration, held, member) in self.holders(model, version) {
            let key = (registration.incarnation, held.namespace);
            if let Some(known) = self.described.get(&key).await {
                return Ok(known);
            }
            match member.describe(model, Some(held.version)).await {
                Ok(told) => {
                    let told = Arc::new(told);
                    self.described.insert(key, told.clone()).await;
                    return Ok(told);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| self.unknown(model, version)))
    }

    /// Versions of a model that anybody holds, ascending.
    pub fn versions(&self, model: &str) -> Vec<u64> {
        let mut versions: Vec<u64> = self
            .all()
            .iter()
            .flat_map(|(registration, _)| registration.models.iter())
            .filter(|held| held.name == model)
            .map(|held| held.version)
            .collect();
        versions.sort_unstable();
        versions.dedup();
        versions
    }

    fn unknown(&self, model: &str, version: Option<u64>) -> Error {
        let versions = self.versions(model);
        if let (Some(version), false) = (version, versions.is_empty()) {
            let known: Vec<String> = versions.iter().map(u64::to_string).collect();
            let what = format!("model '{model}' version {version}");
            return Error::NotFound { what, known: format!("loaded are {}", sensorium_actors::error::names(&known)) };
        }
        if let Some(unavailable) = unheld(&self.membership, model) {
            return unavailable;
        }
        let mut names: Vec<String> = self
            .all()
            .into_iter()
            .flat_map(|(registration, _)| registration.models.into_iter().map(|held| held.name))
            .collect();
        names.sort_unstable();
        names.dedup();
        Error::NotFound {
            what: format!("model '{model}'"),
            known: format!("loaded are {}", sensorium_actors::error::names(&names)),
        }
    }

    /// Figures of a version, of all versions of a model, or of everything, added up over all workers.
    ///
    /// # Errors
    /// `NotFound` if a model is named that nobody holds.
    pub async fn statistics(&self, model: &str, version: Option<u64>) -> Result<Vec<ModelStatistics>> {
        if !model.is_empty() && self.holders(model, version).is_empty() {
            return Err(self.unknown(model, version));
        }
        let asked = self.all();
        let answers = join_all(asked.iter().map(|(_, member)| member.statistics(model, version))).await;
        Ok(statistics::sum(reached(&asked, answers)))
    }

    /// What lies in the workers' repositories, with the best state that a version has anywhere.
    ///
    /// # Errors
    /// Of the only worker, if there is but one: its repository cannot be read.
    pub async fn index(&self) -> Result<Vec<ModelIndex>> {
        let asked = self.all();
        let mut answers = join_all(asked.iter().map(|(_, member)| member.index())).await;
        if let [Err(_)] = answers.as_slice() {
            return answers.remove(0);
        }
        Ok(local::best(reached(&asked, answers)))
    }

    /// Loads a model on the workers that hold it, or else on all that have it in their repository.
    ///
    /// # Errors
    /// The first that any of them has; the others have loaded it none the less.
    pub async fn load(&self, request: &RepositoryModelLoadRequest) -> Result<()> {
        let model = request.model_name.as_str();
        let mut loading: Vec<Arc<dyn Member>> =
            self.holders(model, None).into_iter().map(|(_, _, member)| member).collect();
        if loading.is_empty() {
            let asked = self.all();
            for (_, member) in asked.iter() {
                // with a single worker its own refusal says most
                let has = asked.len() == 1
                    || member.index().await.is_ok_and(|index| index.iter().any(|entry| entry.name == model));
                if has {
                    loading.push(member.clone());
                }
            }
        }
        if loading.is_empty() {
            return Err(self.unknown(model, None));
        }
        let outcome = join_all(loading.iter().map(|member| member.load(request.clone()))).await;
        self.described.invalidate_all();
        outcome.into_iter().collect()
    }

    /// Unloads a model everywhere.
    ///
    /// # Errors
    /// `NotFound` if nobody holds it.
    pub async fn unload(&self, model: &str) -> Result<()> {
        let holders = self.holders(model, None);
        if holders.is_empty() {
            return Err(self.unknown(model, None));
        }
        let outcome = join_all(holders.iter().map(|(_, _, member)| member.unload(model))).await;
        self.described.invalidate_all();
        outcome.into_iter().collect()
    }

    /// Actors at and below a path, of this process and of all workers; empty: all.
    pub async fn actors(&self, path: &str) -> Vec<Actor> {
        let own = self.tree.list(path).into_iter().map(local::actor).collect();
        let root = path.split('/').next().unwrap_or_default();
        let asked: Vec<_> =
            self.all().into_iter().filter(|(worker, _)| root.is_empty() || worker.node == root).collect();
        let answers = join_all(asked.iter().map(|(_, member)| member.actors(path))).await;
        [own].into_iter().chain(reached(&asked, answers)).flatten().collect()
    }

    /// Restarts the actor at a path.
    ///
    /// # Errors
    /// `NotFound` with the paths that exist, `FailedPrecondition` for a root or one that does not run.
    pub async fn restart(&self, path: &str) -> Result<()> {
        let root = path.split('/').next().unwrap_or_default();
        if let Ok(member) = self.get(root) {
            return member.restart(path).await;
        }
        if !self.tree.list(path).is_empty() {
            return local::restart(&self.tree, path);
        }
        match unread(&self.membership) {
            Some(unread) => Err(unread),
            None => Err(self.unknown_actor(path).await),
        }
    }

    /// There is no actor at this path; which there are.
    pub async fn unknown_actor(&self, path: &str) -> Error {
        local::unknown_actor(path, self.actors("").await.into_iter().map(|actor| actor.path))
    }

    /// The model card of a version, from one of its holders.
    ///
    /// # Errors
    /// `NotFound` with the names that exist, or if the version has no card.
    pub async fn card(
        &self,
        model: &str,
        version: Option<u64>,
    ) -> Result<sensorium_proto::admin::GetModelCardResponse> {
        let Some((_, held, member)) = self.holders(model, version).into_iter().next() else {
            return Err(self.unknown(model, version));
        };
        member.card(model, Some(held.version)).await
    }
}

/// Lets go of workers that have left the register, and so of their connections, for as long as the fleet lives.
async fn leave_out(members: Weak<RwLock<Members>>, mut view: watch::Receiver<View>) {
    while view.changed().await.is_ok() {
        let now = view.borrow_and_update().clone();
        let Some(members) = members.upgrade() else { return };
        members.write().retain(|node, _| now.contains_key(node));
    }
}

/// Answers of those who gave one; a worker that is out of reach is left out, and said so once.
fn reached<T>(asked: &[(Registration, Arc<dyn Member>)], answers: Vec<Result<T>>) -> Vec<T> {
    let told = asked.iter().zip(answers).filter_map(|((worker, _), answer)| match answer {
        Ok(answer) => Some(answer),
        Err(Error::NotFound { .. }) => None,
        Err(error) => {
            tracing::warn!(worker = worker.node, %error, "left out of an operator's answer");
            None
        }
    });
    told.collect()
}
