//! Who is there: nodes register what they are and hold, gateways watch.
//!
//! In etcd a registration is a key on a lease, renewed for as long as its node lives ([`Etcd`]). The embedded twin keeps
//! the register in the process. Either way the view is the last one known: an outage of etcd makes it stale, never
//! empty.

mod etcd;
mod registration;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use self::etcd::{Credentials, Error, Etcd, Tls};
pub use self::registration::{AcceptedInput, Accepts, Held, Policy, Registration, Role};
use crate::health::Health;

/// Everybody who is registered, by name.
pub type View = Arc<BTreeMap<String, Registration>>;

/// How the view stands to the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// The view is the register.
    Current,
    /// The register is out of reach; the view is the last one known.
    Stale {
        /// Since when.
        since: Instant,
    },
}

/// What etcd holds of a node.
enum Written {
    /// Nothing yet.
    Nothing,
    /// This, when it was last heard of.
    This(Box<Registration>),
    /// Less than it should: etcd answers, and takes no writes of this node.
    Refused,
    /// Nobody knows.
    OutOfReach,
}

/// Since when the register takes no writes, and why.
type Refusal = Option<(Instant, String)>;

/// A cheap handle to the register.
#[derive(Clone)]
pub struct Membership {
    view: Arc<watch::Sender<View>>,
    link: Arc<watch::Sender<Link>>,
    trouble: Arc<watch::Sender<String>>,
    refusal: Arc<watch::Sender<Refusal>>,
    /// Names of models, from the last list.
    remembered: Arc<Mutex<BTreeSet<String>>>,
    /// The view has been read from the register.
    listed: Arc<AtomicBool>,
    /// Models that are routed, whether or not anybody holds them now; none before there are routes of a view that was read.
    models: Arc<RwLock<Option<BTreeSet<String>>>>,
    etcd: Option<Arc<Etcd>>,
}

impl Membership {
    /// A register within this process.
    pub fn embedded() -> Self {
        Self {
            view: Arc::default(),
            link: Arc::new(watch::Sender::new(Link::Current)),
            trouble: Arc::default(),
            refusal: Arc::default(),
            remembered: Arc::default(),
            listed: Arc::new(AtomicBool::new(true)),
            models: Arc::new(RwLock::new(Some(BTreeSet::new()))),
            etcd: None,
        }
    }

    /// The register in etcd. Returns at once, with a view that is empty and stale until etcd has answered: nodes may be
    /// started before it.
    pub fn etcd(options: Etcd) -> Self {
        let membership = Self {
            link: Arc::new(watch::Sender::new(Link::Stale { since: Instant::now() })),
            listed: Arc::default(),
            models: Arc::default(),
            etcd: Some(Arc::new(options)),
            ..Self::embedded()
        };
        if let Some(options) = membership.etcd.clone() {
            tokio::spawn(etcd::follow(options, membership.clone()));
        }
        membership
    }

    /// The register in etcd for a node that enters itself and asks for nobody else: its view is of itself. A thousand
    /// workers that each watched the others would have etcd send every change a thousand times.
    pub fn etcd_unwatched(options: Etcd) -> Self {
        Self { etcd: Some(Arc::new(options)), ..Self::embedded() }
    }

    /// Registers a node for as long as the lease lives.
    pub fn register(&self, registration: Registration) -> Lease {
        let (wanted, seen) = watch::channel(Some(registration.clone()));
        let (told, written) = watch::channel(Written::Nothing);
        let keeper =
            self.etcd.clone().map(|options| tokio::spawn(etcd::keep(options, seen, told, self.refusal.clone())));
        let lease = Lease { view: self.view.clone(), node: registration.node.clone(), wanted, written, keeper };
        lease.enter(&registration);
        lease
    }

    /// The register as it is, and as it changes.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Models of which the register says that somebody has held them of late, whether or not anybody does now. Each list of
    /// the register tells it once.
    pub fn take_remembered(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.remembered.lock())
    }

    /// Whether the view has been read from the register. To be asked before the view is looked at.
    pub fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Acquire)
    }

    /// Notes which models are routed, held or not, by a view that was read from the register.
    pub fn publish_models(&self, models: BTreeSet<String>) {
        *self.models.write() = Some(models);
    }

    /// Whether there are routes by a view that was read from the register: before, nothing is known to be unknown.
    pub fn has_view(&self) -> bool {
        self.models.read().is_some()
    }

    /// Whether a model is routed, held or not: somebody has held it of late, or is about to.
    pub fn is_known(&self, model: &str) -> bool {
        self.models.read().as_ref().is_some_and(|models| models.contains(model))
    }

    /// How the view stands to the register, and as it changes.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    /// How etcd fares.
    pub fn health(&self) -> Health {
        match *self.link.borrow() {
            _ if self.is_embedded() => Health::Embedded,
            Link::Current => {
                self.refusal.borrow().as_ref().map_or(Health::Ok, |(since, _)| Health::Degraded { since: *since })
            }
            Link::Stale { since } => Health::Stale { since },
        }
    }

    /// Why the register is out of reach, or takes no writes; empty while it does, or while nobody knows yet.
    pub fn trouble(&self) -> String {
        let trouble = self.trouble.borrow().clone();
        if trouble.is_empty() {
            self.refusal.borrow().as_ref().map(|(_, why)| why.clone()).unwrap_or_default()
        } else {
            trouble
        }
    }

    /// Whether the register is within this process.
    pub fn is_embedded(&self) -> bool {
        self.etcd.is_none()
    }
}

/// A node's place in the register.
pub struct Lease {
    view: Arc<watch::Sender<View>>,
    node: String,
    wanted: watch::Sender<Option<Registration>>,
    written: watch::Receiver<Written>,
    keeper: Option<JoinHandle<()>>,
}

impl Lease {
    /// Changes what the register says of the node. Returns whether that was a change.
    pub fn update(&self, change: impl FnOnce(&mut Registration)) -> bool {
        let changed = self.wanted.send_if_modified(|wanted| {
            let Some(registration) = wanted else { return false };
            let before = registration.clone();
            change(registration);
            *registration != before
        });
        if changed && let Some(registration) = self.wanted.borrow().as_ref() {
            self.enter(registration);
        }
        changed
    }

    /// Returns when the register says of the node what it was told last, or when it cannot be reached: a node that is
    /// ready has been seen by those who watch before the next one leaves. A register that answers and takes no writes is
    /// waited for: others read it, and would miss the node.
    pub async fn settled(&self) {
        let mut written = self.written.clone();
        let settled = written.wait_for(|written| match written {
            Written::Nothing | Written::Refused => false,
            Written::This(registration) => self.wanted.borrow().as_ref().is_none_or(|wanted| *wanted == **registration),
            Written::OutOfReach => true,
        });
        // without a keeper, or when it has ended, nothing is written any more
        let _ = settled.await;
    }

    /// Leaves the register; returns when it is known there, or when it cannot be reached and the lease runs out.
    pub async fn withdraw(mut self) {
        self.wanted.send_replace(None);
        if let Some(keeper) = self.keeper.take() {
            // a keeper that has panicked keeps nothing
            let _ = tokio::time::timeout(Duration::from_secs(2), keeper).await;
        }
    }

    /// What a node says of itself, it need not wait to hear from etcd.
    fn enter(&self, registration: &Registration) {
        self.view.send_if_modified(|view| {
            if view.get(&self.node) == Some(registration) {
                return false;
            }
            Arc::make_mut(view).insert(self.node.clone(), registration.clone());
            true
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.wanted.send_replace(None);
        self.view.send_if_modified(|view| Arc::make_mut(view).remove(&self.node).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(models: &[&str]) -> Registration {
        let held = models.iter().map(|name| Held { name: (*name).to_owned(), ..Held::default() });
        Registration { node: "w1".into(), models: held.collect(), ..Registration::default() }
    }

    #[tokio::test]
    async fn a_registration_lives_as_long_as_its_lease() {
        let membership = Membership::embedded();
        let mut view = membership.watch();
        let lease = membership.register(worker(&["minilm"]));
        lease.settled().await; // nobody has to write it anywhere
        assert!(view.has_changed().unwrap());
        assert_eq!(view.borrow_and_update()["w1"].models[0].name, "minilm");
        assert!(!lease.update(|registration| registration.draining = false));
        assert!(!view.has_changed().unwrap(), "nothing has changed");
        assert!(lease.update(|registration| registration.draining = true));
        assert!(view.borrow_and_update()["w1"].draining);
        lease.withdraw().await;
        assert!(view.borrow_and_update().is_empty());
    }
}
