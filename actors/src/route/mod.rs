//! From the door to a worker: one route actor per model plans ahead, the request's own task picks, calls and retries.

pub mod actor;
pub mod attempts;
pub mod cached;
pub mod candidate;
pub mod client;
pub mod front;
pub mod handle;
pub mod hedge;
pub mod subset;
pub mod table;
pub mod versions;

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use futures::StreamExt;
use ractor::{Actor, ActorRef};
use sensorium_cluster::bus::Bus;
use sensorium_cluster::cache::Cache;
use sensorium_cluster::membership::{Held, Membership, Registration};

use self::attempts::Attempts;
use self::cached::Plan;
use self::client::Client;
use self::handle::Route;
use crate::admission::{Admission, Permit};
use crate::error::{Error, Result};
use crate::request::{Context, Parameter, Reply, ReplyStream, Request, Resume};
use crate::shapes::{self, Claimed};
use crate::supervision::tree::Tree;

/// Makes a client for a worker that has registered.
pub type Connect = Arc<dyn Fn(&Registration) -> Option<Arc<dyn Client>> + Send + Sync>;

/// Routes by model.
pub type Routes = Arc<DashMap<String, Arc<Route>>>;

/// How a front door is set up.
pub struct Options {
    /// The root of its actors' paths.
    pub name: String,
    /// Where it stands: workers of the same zone come first.
    pub zone: String,
    /// Where answers are kept that may be given again; none: nowhere.
    pub cache: Option<Cache>,
    /// Workers of a model that it calls, where there are more; 0: all.
    pub subset: usize,
}

/// A worker of a model, for those who ask how it fares.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    /// Its name.
    pub worker: String,
    /// Calls in work from here.
    pub in_flight: u64,
    /// Moving average of a request's time.
    pub latency_seconds: f64,
    /// Whether it is ejected.
    pub ejected: bool,
    /// Whether it can be reached, as far as is known.
    pub reachable: bool,
}

/// A cheap handle to all routes.
#[derive(Clone)]
pub struct Router {
    routes: Routes,
    front: ActorRef<front::Message>,
    membership: Membership,
    admission: Admission,
    zone: Arc<str>,
    cache: Option<Cache>,
}

impl Router {
    /// Starts the front door's tree. Routes come and go with the register.
    pub async fn start(
        options: Options,
        membership: &Membership,
        connect: Connect,
        admission: Admission,
        bus: Bus,
        tree: Tree,
    ) -> Result<Self> {
        let routes = Routes::default();
        let zone: Arc<str> = options.zone.into();
        let (name, subset) = (options.name, options.subset);
        let args = front::Arguments {
            name,
            zone: zone.clone(),
            subset,
            membership: membership.clone(),
            routes: routes.clone(),
            connect,
            bus,
            tree,
        };
        let (front, _) = Actor::spawn(None, front::Front, args)
            .await
            .map_err(|error| Error::Internal(format!("cannot start the front door: {error}")))?;
        let mut view = membership.watch();
        // the front has seen nothing yet
        view.mark_changed();
        let (told, read) = (front.clone(), membership.clone());
        tokio::spawn(async move {
            while view.changed().await.is_ok() {
                // asked first: a view that is read between the two is told of once more
                let listed = read.is_listed();
                let changed = view.borrow_and_update().clone();
                // waited for, so that what changes meanwhile is one change: a large cluster may roll faster than tables
                // are made
                if ractor::call!(told, |done| front::Message::Apply(changed, listed, done)).is_err() {
                    break;
                }
            }
        });
        Ok(Self { routes, front, membership: membership.clone(), admission, zone, cache: options.cache })
    }

    /// Where answers are kept that may be given again.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    /// The permit at the door.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// The register.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Answers one request that has been admitted: plan, call, report.
    pub async fn infer_within(&self, request: &Request, context: &Context) -> Result<Reply> {
        let route = self.enter(request, context)?;
        route.must_accept(request.version, shapes::of(request))?;
        self.infer_on(route, request, context).await
    }

    /// The same of one whose inputs have been judged ([`must_accept`](Self::must_accept)).
    pub async fn infer_accepted(&self, request: &Request, context: &Context) -> Result<Reply> {
        let route = self.enter(request, context)?;
        self.infer_on(route, request, context).await
    }

    /// The route of a request that is not too late, and whose caller may ask its model.
    fn enter(&self, request: &Request, context: &Context) -> Result<Arc<Route>> {
        if context.expired() {
            return Err(Error::DeadlineExceeded { stage: "entering".to_owned() });
        }
        context.permits(&request.model)?;
        self.route(&request.model)
    }

    async fn infer_on(&self, route: Arc<Route>, request: &Request, context: &Context) -> Result<Reply> {
        if let Some(cache) = &self.cache {
            let read = |held: &Held| held.policy.cached.then(|| (held.version, held.namespace.clone()));
            if let Some((version, namespace)) = route.choose(request.version, read)?
                && let Some(plan) = Plan::of(request, version, &namespace, context)?
            {
                let compute = |part: Request| {
                    let route = route.clone();
                    async move { self.compute(route, &part, context).await }
                };
                // boxed, for requests that nothing is kept of would carry its size along
                let answer = Box::pin(plan.answer(cache, request, compute));
                return context.bound("waiting for the cache", answer).await;
            }
        }
        self.compute(route, request, context).await
    }

    async fn compute(&self, route: Arc<Route>, request: &Request, context: &Context) -> Result<Reply> {
        let mut attempts = Attempts::new(route, self.zone.clone(), &self.admission, request, context)?;
        context.bound("waiting for the worker", attempts.infer(request, context)).await
    }

    /// Answers one request in parts.
    pub async fn stream(&self, request: Request, context: Context) -> Result<ReplyStream> {
        let permit = self.admission.enter(&context)?;
        let stream = self.stream_within(request, context).await?;
        Ok(Box::pin(Admitted { stream, _permit: permit }))
    }

    /// The same within a request that has been admitted already. A generation whose worker is lost goes on elsewhere
    /// from what was told, or ends with a status that says so, as the model wants it.
    pub async fn stream_within(&self, mut request: Request, context: Context) -> Result<ReplyStream> {
        let route = self.enter(&request, &context)?;
        route.must_accept(request.version, shapes::of(&request))?;
        let mut attempts = Attempts::new(route, self.zone.clone(), &self.admission, &request, &context)?;
        if attempts.policy.resume && !request.parameters.0.contains_key("seed") {
            // who goes on must draw what who began would have drawn
            request.parameters.set("seed", Parameter::Uint(rand::random()));
        }
        let opened = context.bound("waiting for the worker", attempts.open(&request, &context)).await?;
        Ok(Box::pin(async_stream::stream! {
            let (mut call, mut replies) = opened;
            let mut told = Resume::default();
            loop {
                let next = context.bound("streaming", async { replies.next().await.transpose() }).await;
                let error = match next {
                    Ok(Some(reply)) => {
                        told.note(&reply);
                        attempts.progressed();
                        if reply.last {
                            call.answered();
                        }
                        yield Ok(reply);
                        continue;
                    }
                    Ok(None) => break,
                    Err(error) => error,
                };
                call.failed(&error);
                if !told.is_empty() && !attempts.policy.resume {
                    yield Err(error);
                    break;
                }
                let again = context.bound("waiting for another worker", async {
                    let other = attempts.next(&call, error).await?;
                    request.resume = (!told.is_empty()).then(|| told.clone());
                    attempts.open_with(other, &request, &context).await
                });
                match again.await {
                    Ok(opened) => (call, replies) = opened,
                    Err(error) => {
                        yield Err(error);
                        break;
                    }
                }
            }
        }))
    }

    /// Waits until the routes are those of the register as it is now.
    pub async fn refresh(&self) {
        let listed = self.membership.is_listed();
        let view = self.membership.watch().borrow().clone();
        // a front that is gone has no routes to wait for
        let _ = ractor::call!(self.front, |done| front::Message::Apply(view, listed, done));
    }

    /// Models that are routed, by name.
    pub fn models(&self) -> Vec<String> {
        let mut known: Vec<String> = self.routes.iter().map(|route| route.key().clone()).collect();
        known.sort_unstable();
        known
    }

    /// The version as its best holder has it; `None` leaves the choice to the route.
    ///
    /// # Errors
    /// `NotFound` with the names that exist, `Unavailable` if nobody holds the model any more, or the register has not been
    /// read.
    pub fn held(&self, model: &str, version: Option<u64>) -> Result<Held> {
        self.route(model)?.resolve(version, Held::clone)
    }

    /// Judges inputs by what the version says that it takes, before anything is made of their values.
    ///
    /// # Errors
    /// `InvalidArgument` for an input that is too large or of another shape; else as [`Router::held`].
    pub fn must_accept<'a>(
        &self,
        model: &str,
        version: Option<u64>,
        inputs: impl Iterator<Item = Claimed<'a>>,
    ) -> Result<()> {
        self.route(model)?.must_accept(version, inputs)
    }

    /// Whether a stream may have any number of answers to one request for this version; not so if nobody holds it.
    pub fn is_decoupled(&self, model: &str, version: Option<u64>) -> bool {
        let of = |route: Arc<Route>| route.resolve(version, |held| held.policy.decoupled);
        self.route(model).and_then(of).unwrap_or(false)
    }

    /// How long a request of this size can be expected to take, from what calls have told of late; nothing if they have
    /// told nothing.
    pub fn expected(&self, model: &str, size: f64) -> Option<Duration> {
        let table = self.route(model).ok()?.table();
        let seconds = table.expected_seconds(table.versions().newest()?, size)?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// How the workers of a model fare, as seen from here.
    pub fn workers(&self, model: &str) -> Vec<WorkerStatus> {
        let Ok(route) = self.route(model) else { return Vec::new() };
        let table = route.table();
        let status = table.candidates().iter().map(|candidate| WorkerStatus {
            worker: candidate.client.name().to_owned(),
            in_flight: candidate.seen.in_flight(),
            latency_seconds: candidate.seen.latency_seconds(),
            ejected: candidate.seen.is_ejected(),
            reachable: candidate.client.is_reachable(),
        });
        status.collect()
    }

    fn route(&self, model: &str) -> Result<Arc<Route>> {
        if let Some(route) = self.routes.get(model) {
            return Ok(route.clone());
        }
        Err(unheld(&self.membership, model).unwrap_or_else(|| Error::NotFound {
            what: format!("model '{model}'"),
            known: format!("loaded are {}", crate::error::names(self.models())),
        }))
    }
}

/// What is answered before the register has been read: nothing is known to be unknown yet.
pub fn unread(membership: &Membership) -> Option<Error> {
    let message = || "the register of the cluster has not been read yet".to_owned();
    (!membership.has_view()).then(|| unavailable("NO_VIEW", message()))
}

/// Why a model that nobody holds is unavailable; nothing if it is unknown.
pub fn unheld(membership: &Membership, model: &str) -> Option<Error> {
    let known = || unavailable("NO_WORKER", format!("no worker holds {model}"));
    unread(membership).or_else(|| membership.is_known(model).then(known))
}

fn unavailable(reason: &'static str, message: String) -> Error {
    Error::Unavailable { reason, message, retry_after: Duration::from_secs(1) }
}

/// A stream that holds its permit for as long as it runs.
struct Admitted {
    stream: ReplyStream,
    _permit: Permit,
}

impl futures::Stream for Admitted {
    type Item = Result<Reply>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(context)
    }
}
