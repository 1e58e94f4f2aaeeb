//! The root of the front door's tree: one route actor per model that anybody holds.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use sensorium_cluster::bus::Bus;
use sensorium_cluster::membership::{Membership, Registration, Role, View};

use super::actor::{self, RouteActor};
use super::client::Client;
use super::handle::Route;
use super::subset::{self, Subset};
use super::{Connect, Routes};
use crate::supervision::policy::{Intensity, Verdict};
use crate::supervision::tree::{State as TreeState, Tree};
use crate::supervision::{self, RETIRE};

/// How often routes that nobody holds are looked at.
const INTERVAL: Duration = Duration::from_secs(60);
/// For so long a model that nobody holds is unavailable; then it is unknown, as in the register.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// What the front is told.
pub enum Message {
    /// The register has changed, or has been read at all; an answer when the routes are there.
    Apply(View, bool, RpcReplyPort<()>),
    /// Look for routes that nobody has held for long.
    Look,
    /// Start the route of this model again.
    Restart(String),
}

/// What it starts with.
pub struct Arguments {
    /// The root of its actors' paths, and the name in the register.
    pub name: String,
    /// Where it stands.
    pub zone: Arc<str>,
    /// Workers of a model that are called, where there are more; 0: all.
    pub subset: usize,
    /// The register, of whose view it is told.
    pub membership: Membership,
    /// Live routes, for those who ask.
    pub routes: Routes,
    /// Makes clients.
    pub connect: Connect,
    /// Where events are told.
    pub bus: Bus,
    /// The tree.
    pub tree: Tree,
}

/// See the module.
pub struct Front;

/// What it owns.
pub struct State {
    args: Arguments,
    view: View,
    subset: Subset,
    /// By worker, with the address and start that they were made for.
    clients: HashMap<String, (Registration, Arc<dyn Client>)>,
    names: HashMap<ActorId, String>,
    intensity: Intensity,
}

impl Actor for Front {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, args: Arguments) -> Result<State, ActorProcessingErr> {
        args.tree.starting(&args.name, "front door");
        args.tree.running(&args.name, myself.get_cell());
        let view = View::default();
        myself.send_interval(INTERVAL, || Message::Look);
        Ok(State {
            subset: Subset::new(&args.name, &args.zone, args.subset, &view),
            args,
            view,
            clients: HashMap::new(),
            names: HashMap::new(),
            intensity: Intensity::new(20, Duration::from_secs(60)),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Apply(view, listed, done) => {
                state.changed(&myself, view).await?;
                if listed {
                    state.publish();
                }
                // who asked may have gone
                let _ = done.send(());
                Ok(())
            }
            Message::Look => {
                state.forget();
                Ok(())
            }
            Message::Restart(model) => state.start(&myself, &model).await,
        }
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Some((child, reason)) = supervision::ended(event) else { return Ok(()) };
        let Some(model) = state.names.remove(&child) else { return Ok(()) };
        if reason == RETIRE {
            return Ok(());
        }
        state.args.tree.failed(&state.path(&model), TreeState::Restarting, &reason);
        match state.intensity.judge(&reason) {
            Verdict::Restart(after) => {
                myself.send_after(after, move || Message::Restart(model));
                Ok(())
            }
            Verdict::Escalate => Err(format!("the route of {model} fails too often: {reason}").into()),
        }
    }
}

impl State {
    fn path(&self, model: &str) -> String {
        format!("{}/route/{model}", self.args.name)
    }

    async fn changed(&mut self, myself: &ActorRef<Message>, view: View) -> Result<(), ActorProcessingErr> {
        self.clients.retain(|node, _| view.contains_key(node));
        for registration in view.values().filter(|registration| registration.role == Role::Worker) {
            let known = self.clients.get_mut(&registration.node).filter(|(known, _)| {
                known.incarnation == registration.incarnation && known.address == registration.address
            });
            match known {
                Some((known, _)) => known.clone_from(registration),
                None => {
                    if let Some(client) = (self.args.connect)(registration) {
                        self.clients.insert(registration.node.clone(), (registration.clone(), client));
                    }
                }
            }
        }
        self.subset = Subset::new(&self.args.name, &self.args.zone, self.args.subset, &view);
        let given_up = given_up(&self.view, &view);
        self.view = view;
        let held = self.view.values().flat_map(|registration| registration.models.iter().map(|held| held.name.clone()));
        let models: BTreeSet<String> = held.collect();
        let mut told = Vec::new();
        for model in &models {
            let known = self.args.routes.get(model).map(|route| route.clone());
            match known.and_then(|route| route.actor()) {
                Some(route) => told.push(tell(route, self.workers(model))),
                None => self.start(myself, model).await?,
            }
        }
        let expected = self.view.values().flat_map(|registration| registration.expects.iter().cloned());
        let expected: BTreeSet<String> = expected.collect();
        for model in self.args.membership.take_remembered().into_iter().chain(expected) {
            if !self.args.routes.contains_key(&model) {
                // nobody holds it: it is unavailable, not unknown
                self.start(myself, &model).await?;
            }
        }
        let gone: Vec<Arc<Route>> = {
            let unheld = self.args.routes.iter().filter(|route| !models.contains(route.key()));
            unheld.map(|route| route.value().clone()).collect()
        };
        for route in gone {
            let Some(actor) = route.actor() else { continue };
            if self.is_unloaded(&route) || (given_up.contains(&route.model) && !route.was_held()) {
                self.remove(&route);
            } else {
                // its workers are lost, not the model: it is unavailable, not unknown
                told.push(tell(actor, Vec::new()));
            }
        }
        // waited for: whoever loads a model and then uses it finds it as it is now
        join_all(told).await;
        Ok(())
    }

    /// Whether a worker that held the model is still there without it. One that has started anew has not unloaded it: it
    /// will have it again in a moment.
    fn is_unloaded(&self, route: &Route) -> bool {
        route.table().candidates().iter().any(|holder| {
            let now = self.view.get(holder.client.name());
            now.is_some_and(|now| now.incarnation == holder.incarnation && !now.expects.contains(&route.model))
        })
    }

    fn remove(&self, route: &Route) {
        self.args.routes.remove(&route.model);
        if let Some(actor) = route.actor() {
            actor.stop(Some(RETIRE.to_owned()));
        }
        self.args.tree.remove(&self.path(&route.model));
    }

    /// Models come and go: what nobody has held for long is known no more.
    fn forget(&self) {
        let expected = |model: &str| self.view.values().any(|node| node.expects.iter().any(|name| name == model));
        let routes: Vec<Arc<Route>> = self.args.routes.iter().map(|route| route.value().clone()).collect();
        for route in routes {
            let unheld = route.unheld_for().is_some_and(|unheld| unheld >= REMEMBERED);
            if unheld && !expected(&route.model) {
                tracing::info!(model = route.model, "held by nobody for long, known no more");
                self.remove(&route);
            }
        }
        if self.args.membership.is_listed() {
            self.publish();
        }
    }

    /// Says which models are known, for all who are asked for one.
    fn publish(&self) {
        self.args.membership.publish_models(self.args.routes.iter().map(|route| route.key().clone()).collect());
    }

    fn workers(&self, model: &str) -> Vec<(Registration, Arc<dyn Client>)> {
        let holders = self.view.values().filter(|node| subset::holds(node, model)).collect();
        let called = self.subset.of(model, holders).into_iter();
        called.filter_map(|worker| Some((worker.clone(), self.clients.get(&worker.node)?.1.clone()))).collect()
    }

    async fn start(&mut self, myself: &ActorRef<Message>, model: &str) -> Result<(), ActorProcessingErr> {
        let path = self.path(model);
        let depth = self.args.tree.starting(&path, "route");
        let route = self.args.routes.entry(model.to_owned()).or_insert_with(|| Arc::new(Route::new(model))).clone();
        let args = actor::Arguments { route, depth, workers: self.workers(model), bus: self.args.bus.clone() };
        let (route, _) = Actor::spawn_linked(None, RouteActor, args, myself.get_cell()).await?;
        self.args.tree.running(&path, route.get_cell());
        self.names.insert(route.get_id(), model.to_owned());
        Ok(())
    }
}

/// Tells a route who holds its model, and waits until its table says so.
async fn tell(route: Arc<ActorRef<actor::Message>>, workers: Vec<(Registration, Arc<dyn Client>)>) {
    // one that is down is given its workers when it starts again
    let _ = ractor::call!(route, |done| actor::Message::Workers(workers, done));
}

/// Models that a worker was about to load, and does not hold.
fn given_up(before: &View, now: &View) -> BTreeSet<String> {
    let mut given_up = BTreeSet::new();
    for was in before.values().filter(|node| !node.expects.is_empty()) {
        let Some(is) = now.get(&was.node).filter(|is| is.incarnation == was.incarnation) else { continue };
        let missing = was.expects.iter().filter(|name| !is.expects.contains(name) && !subset::holds(is, name));
        given_up.extend(missing.cloned());
    }
    given_up
}

#[cfg(test)]
mod tests {
    use sensorium_cluster::bus::Bus;
    use sensorium_cluster::membership::Held;

    use super::*;
    use crate::admission::{Admission, Options};
    use crate::route::client::tests::Nobody;
    use crate::route::{Options as RouteOptions, Router};

    fn worker(incarnation: &str, versions: &[u64]) -> Registration {
        let held = |&version: &u64| Held { name: "m".into(), version, state: "READY".into(), ..Held::default() };
        let models = versions.iter().map(held).collect();
        Registration { node: "w".into(), incarnation: incarnation.into(), models, ..Registration::default() }
    }

    async fn router(membership: &Membership) -> Router {
        let connect: Connect = Arc::new(|registration| Some(Arc::new(Nobody(registration.node.clone()))));
        let options = RouteOptions { name: "gateway".into(), zone: String::new(), cache: None, subset: 0 };
        let admission = Admission::new(Options::bound(8));
        Router::start(options, membership, connect, admission, Bus::new("here"), Tree::default()).await.unwrap()
    }

    /// What is said of a version of the model.
    async fn said(router: &Router, version: Option<u64>) -> &'static str {
        router.refresh().await;
        router.held("m", version).map_or_else(|error| error.code(), |_| "held")
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_is_only_what_nobody_has_held_for_long_or_somebody_has_unloaded() {
        let membership = Membership::embedded();
        let router = router(&membership).await;
        assert_eq!(said(&router, None).await, "not_found");
        let first = membership.register(Registration { expects: vec!["m".into()], ..worker("a", &[]) });
        assert_eq!(said(&router, None).await, "unavailable", "about to be loaded");
        first.update(|now| *now = worker("a", &[1, 2]));
        assert_eq!(said(&router, None).await, "held");
        assert_eq!(said(&router, Some(3)).await, "not_found");
        // it starts anew, and loads one version after the other
        drop(first);
        assert_eq!(said(&router, None).await, "unavailable");
        let second = membership.register(worker("b", &[]));
        assert_eq!(said(&router, None).await, "unavailable");
        second.update(|now| *now = worker("b", &[1]));
        assert_eq!(said(&router, Some(2)).await, "unavailable", "it had it, and may have it again");
        second.update(|now| *now = worker("b", &[1, 2]));
        assert_eq!(said(&router, Some(2)).await, "held");
        second.update(|now| *now = worker("b", &[1]));
        assert_eq!(said(&router, Some(2)).await, "not_found", "it was unloaded");
        second.update(|now| *now = worker("b", &[]));
        assert_eq!(said(&router, None).await, "not_found", "all of it was unloaded");
        assert!(router.models().is_empty());

        // what is about to be loaded and is not, is not there
        second.update(|now| now.expects = vec!["m".into()]);
        assert_eq!(said(&router, None).await, "unavailable");
        second.update(|now| now.expects.clear());
        assert_eq!(said(&router, None).await, "not_found");

        // models come and go for years
        second.update(|now| *now = worker("b", &[1]));
        assert_eq!(said(&router, None).await, "held");
        second.withdraw().await;
        assert_eq!(said(&router, None).await, "unavailable");
        tokio::time::sleep(REMEMBERED / 2).await;
        assert_eq!(said(&router, None).await, "unavailable");
        tokio::time::sleep(REMEMBERED / 2 + INTERVAL * 2).await;
        assert_eq!(said(&router, None).await, "not_found");
        assert!(router.models().is_empty());
    }
}
