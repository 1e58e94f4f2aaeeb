//! Who is there: workers register what they hold, gateways watch.
//!
//! The embedded twin keeps the register in the process. A registration lives as long as its [`Lease`], as it does in
//! etcd, so a worker that goes away is gone from every view at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its name, unique in the cluster.
    pub worker: String,
    /// Models that it holds, in whatever state.
    pub models: Vec<String>,
}

/// Everybody who is registered, by name.
pub type View = Arc<BTreeMap<String, Registration>>;

/// A cheap handle to the register.
#[derive(Clone)]
pub struct Membership {
    view: Arc<watch::Sender<View>>,
}

impl Membership {
    /// A register within this process.
    pub fn embedded() -> Self {
        Self { view: Arc::new(watch::Sender::new(View::default())) }
    }

    /// Registers a worker for as long as the lease lives.
    pub fn register(&self, registration: Registration) -> Lease {
        let lease = Lease { view: self.view.clone(), worker: registration.worker.clone() };
        lease.update(registration.models);
        lease
    }

    /// The register as it is, and as it changes.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }
}

/// A worker's place in the register.
pub struct Lease {
    view: Arc<watch::Sender<View>>,
    worker: String,
}

impl Lease {
    /// The worker holds other models now.
    pub fn update(&self, models: Vec<String>) {
        let registration = Registration { worker: self.worker.clone(), models };
        self.view.send_if_modified(|view| {
            if view.get(&self.worker) == Some(&registration) {
                return false;
            }
            Arc::make_mut(view).insert(self.worker.clone(), registration.clone());
            true
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.view.send_modify(|view| {
            Arc::make_mut(view).remove(&self.worker);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_registration_lives_as_long_as_its_lease() {
        let membership = Membership::embedded();
        let mut view = membership.watch();
        let lease = membership.register(Registration { worker: "w1".into(), models: vec!["minilm".into()] });
        assert!(view.has_changed().unwrap());
        assert_eq!(view.borrow_and_update()["w1"].models, ["minilm"]);
        lease.update(vec!["minilm".into()]);
        assert!(!view.has_changed().unwrap(), "nothing has changed");
        drop(lease);
        assert!(view.borrow_and_update().is_empty());
    }
}
