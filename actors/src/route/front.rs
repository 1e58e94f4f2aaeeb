//! The root of the front door's tree: one route actor per model that anybody holds.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

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

/// What the front is told.
pub enum Message {
    /// The register has changed; an answer when the routes are there.
    Apply(View, RpcReplyPort<()>),
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
            Message::Apply(view, done) => {
                state.changed(&myself, view).await?;
                // who asked may have gone
                let _ = done.send(());
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
        self.view = view;
        let held = self.view.values().flat_map(|registration| registration.models.iter().map(|held| held.name.clone()));
        let models: BTreeSet<String> = held.collect();
        for model in &models {
            let known = self.args.routes.get(model).map(|route| route.clone());
            match known.and_then(|route| route.actor()) {
                // one that is down is given its workers when it starts again
                Some(route) => drop(route.cast(actor::Message::Workers(self.workers(model)))),
                None => self.start(myself, model).await?,
            }
        }
        for model in self.args.membership.take_remembered() {
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
            let holders = route.table();
            let unloaded = holders.candidates().iter().any(|holder| self.view.contains_key(holder.client.name()));
            let Some(actor) = route.actor() else { continue };
            if unloaded {
                self.args.routes.remove(&route.model);
                actor.stop(Some(RETIRE.to_owned()));
                self.args.tree.remove(&self.path(&route.model));
            } else {
                // its workers are lost, not the model: it is unavailable, not unknown
                let _ = actor.cast(actor::Message::Workers(Vec::new()));
            }
        }
        Ok(())
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
