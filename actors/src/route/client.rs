//! A worker as a route sees it.

use std::time::Duration;

use futures::future::BoxFuture;

use crate::error::Result;
use crate::request::{Context, Reply, ReplyStream, Request};
use crate::worker::Worker;

/// Calls one worker. On one machine it is the worker's own handle, else a connection to it.
pub trait Client: Send + Sync {
    /// The worker's name.
    fn name(&self) -> &str;

    /// Whether the worker can be reached, as far as is known. A route asks others first.
    fn is_reachable(&self) -> bool {
        true
    }

    /// Whether it may fall silent while whoever calls it does not: it is a process of its own.
    fn may_fall_silent(&self) -> bool {
        true
    }

    /// For how long it has said nothing at all, about whatever model, as far as is known.
    fn silent_for(&self) -> Duration {
        Duration::MAX
    }

    /// Its calls wait far longer than they ever did: it is asked whether it is there, and others are called until it says
    /// so. Returns whether that is news.
    fn suspect(&self) -> bool {
        false
    }

    /// One request, one answer.
    fn infer<'a>(&'a self, request: &'a Request, context: &'a Context) -> BoxFuture<'a, Result<Reply>>;

    /// One request, an answer in parts.
    fn stream(&self, request: Request, context: Context) -> BoxFuture<'_, Result<ReplyStream>>;
}

impl Client for Worker {
    fn name(&self) -> &str {
        Worker::name(self)
    }

    fn may_fall_silent(&self) -> bool {
        false
    }

    fn infer<'a>(&'a self, request: &'a Request, context: &'a Context) -> BoxFuture<'a, Result<Reply>> {
        Box::pin(Worker::infer(self, request, context))
    }

    fn stream(&self, request: Request, context: Context) -> BoxFuture<'_, Result<ReplyStream>> {
        Box::pin(Worker::stream(self, request, context))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
    use std::time::Duration;

    use super::*;
    use crate::error::Error;
    use crate::request::Parameters;

    /// A worker of this name, which answers nothing.
    pub(in crate::route) struct Nobody(pub(in crate::route) String);

    impl Client for Nobody {
        fn name(&self) -> &str {
            &self.0
        }

        fn infer<'a>(&'a self, _: &'a Request, _: &'a Context) -> BoxFuture<'a, Result<Reply>> {
            Box::pin(async { Err(Error::Cancelled) })
        }

        fn stream(&self, _: Request, _: Context) -> BoxFuture<'_, Result<ReplyStream>> {
            Box::pin(async { Err(Error::Cancelled) })
        }
    }

    /// A worker that takes its time for every request, and counts those that were begun and those that were ended. Once it
    /// is suspected it says nothing, unless it is `there`.
    pub(in crate::route) struct Slow {
        pub name: &'static str,
        pub takes: Duration,
        pub fails: Option<fn() -> Error>,
        pub begun: AtomicUsize,
        pub ended: AtomicUsize,
        pub there: bool,
        pub suspected: AtomicBool,
    }

    impl Slow {
        pub(in crate::route) fn new(name: &'static str, takes: u64, fails: Option<fn() -> Error>) -> Arc<Self> {
            Arc::new(Self::of(name, takes, fails))
        }

        /// One that says that it is there whenever it is asked.
        pub(in crate::route) fn there(name: &'static str, takes: u64) -> Arc<Self> {
            Arc::new(Self { there: true, ..Self::of(name, takes, None) })
        }

        fn of(name: &'static str, takes: u64, fails: Option<fn() -> Error>) -> Self {
            let (begun, ended, suspected) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
            Self { name, takes: Duration::from_millis(takes), fails, begun, ended, there: false, suspected }
        }
    }

    impl Client for Slow {
        fn name(&self) -> &str {
            self.name
        }

        fn is_reachable(&self) -> bool {
            self.there || !self.suspected.load(Relaxed)
        }

        fn suspect(&self) -> bool {
            !self.suspected.swap(true, Relaxed)
        }

        fn infer<'a>(&'a self, request: &'a Request, _: &'a Context) -> BoxFuture<'a, Result<Reply>> {
            Box::pin(async {
                self.begun.fetch_add(1, Relaxed);
                tokio::time::sleep(self.takes).await;
                self.ended.fetch_add(1, Relaxed);
                match self.fails {
                    Some(error) => Err(error()),
                    None => Ok(Reply {
                        model: request.model.clone(),
                        version: 1,
                        outputs: Vec::new(),
                        parameters: Parameters::default(),
                        last: true,
                        tokens: Vec::new(),
                    }),
                }
            })
        }

        fn stream(&self, _: Request, _: Context) -> BoxFuture<'_, Result<ReplyStream>> {
            Box::pin(async { Err(Error::Cancelled) })
        }
    }
}
