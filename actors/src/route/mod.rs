//! From the door to a worker: one route actor per model plans, the request's own task makes the call.

pub mod actor;
pub mod client;
pub mod front;

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use futures::StreamExt;
use ractor::{Actor, ActorRef};
use sensorium_cluster::membership::Membership;

use self::actor::{Call, Message};
use self::client::Client;
use crate::admission::{Admission, Permit};
use crate::error::{Error, Result};
use crate::request::{Context, Reply, ReplyStream, Request};
use crate::supervision::tree::Tree;

/// Makes a client for a worker that has registered.
pub type Connect = Arc<dyn Fn(&str) -> Option<Arc<dyn Client>> + Send + Sync>;

/// Live routes by model.
pub type Routes = Arc<DashMap<String, ActorRef<Message>>>;

/// Tries of a plan whose route is being started again, and the pause between them.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(5);

/// A cheap handle to all routes.
#[derive(Clone)]
pub struct Router {
    routes: Routes,
    front: ActorRef<front::Message>,
    membership: Membership,
    admission: Admission,
}

impl Router {
    /// Starts the front door's tree under `name`. Routes come and go with the register.
    pub async fn start(
        name: &str,
        membership: &Membership,
        connect: Connect,
        admission: Admission,
        tree: Tree,
    ) -> Result<Self> {
        let routes = Routes::default();
        let args = front::Arguments { name: name.to_owned(), routes: routes.clone(), connect, tree };
        let (front, _) = Actor::spawn(None, front::Front, args)
            .await
            .map_err(|error| Error::Internal(format!("cannot start the front door: {error}")))?;
        let mut view = membership.watch();
        let first = view.borrow_and_update().clone();
        front.cast(front::Message::View(first)).map_err(|_| Error::lost("the front door"))?;
        let told = front.clone();
        tokio::spawn(async move {
            while view.changed().await.is_ok() {
                let changed = view.borrow_and_update().clone();
                if told.cast(front::Message::View(changed)).is_err() {
                    break;
                }
            }
        });
        Ok(Self { routes, front, membership: membership.clone(), admission })
    }

    /// The permit at the door.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Answers one request: admission, plan, call, report.
    pub async fn infer(&self, request: &Request, context: &Context) -> Result<Reply> {
        let _permit = self.admission.enter()?;
        self.infer_within(request, context).await
    }

    /// The same within a request that has been admitted already, such as a branch of an understanding.
    pub async fn infer_within(&self, request: &Request, context: &Context) -> Result<Reply> {
        if context.expired() {
            return Err(Error::DeadlineExceeded { stage: "entering".to_owned() });
        }
        let mut call = self.plan(&request.model).await?;
        let answer = context.bound("waiting for the worker", call.client().infer(request, context)).await;
        if let Err(error) = &answer {
            call.failed(error);
        }
        answer
    }

    /// Answers one request in parts.
    pub async fn stream(&self, request: Request, context: Context) -> Result<ReplyStream> {
        let permit = self.admission.enter()?;
        let stream = self.stream_within(request, context).await?;
        Ok(Box::pin(Admitted { stream, _permit: permit }))
    }

    /// The same within a request that has been admitted already.
    pub async fn stream_within(&self, request: Request, context: Context) -> Result<ReplyStream> {
        if context.expired() {
            return Err(Error::DeadlineExceeded { stage: "entering".to_owned() });
        }
        let mut call = self.plan(&request.model).await?;
        let bounds = context.clone();
        let client = call.client().clone();
        let opened = bounds.bound("waiting for the worker", client.stream(request, context)).await;
        let mut stream = opened.inspect_err(|error| call.failed(error))?;
        Ok(Box::pin(async_stream::stream! {
            loop {
                let next = bounds.bound("streaming", async { stream.next().await.transpose() }).await;
                match next {
                    Ok(Some(reply)) => yield Ok(reply),
                    Ok(None) => break,
                    Err(error) => {
                        call.failed(&error);
                        yield Err(error);
                        break;
                    }
                }
            }
        }))
    }

    /// Waits until the routes are those of the register as it is now.
    pub async fn refresh(&self) {
        let view = self.membership.watch().borrow().clone();
        // a front that is gone has no routes to wait for
        let _ = ractor::call!(self.front, |done| front::Message::Apply(view, done));
    }

    async fn plan(&self, model: &str) -> Result<Call> {
        for _ in 0..TRIES {
            let route = self.routes.get(model).map(|route| route.clone());
            let Some(route) = route else {
                let mut known: Vec<String> = self.routes.iter().map(|route| route.key().clone()).collect();
                known.sort_unstable();
                let (what, known) = (format!("model '{model}'"), format!("loaded are {}", known.join(", ")));
                return Err(Error::NotFound { what, known });
            };
            if let Ok(plan) = ractor::call!(route, Message::Plan) {
                return plan;
            }
            // it is being started again; nothing was executed
            tokio::time::sleep(PAUSE).await;
        }
        Err(Error::lost(&format!("the route of {model}")))
    }
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
