//! What the bytes of a call may cost, from the first of the request to the last of the answer.
//!
//! Handlers see whole messages and know nothing of this. In front of them a request's body is inflated and counted as it
//! comes ([`inflow`]); behind them an answer that its caller has not taken still counts as being in work, and not for
//! ever ([`outflow`]). All that is held at a time draws on one [`Budget`].

mod budget;
mod inflate;
mod inflow;
mod outflow;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use parking_lot::Mutex;
use tonic::body::Body;
use tonic::service::Routes;

pub use self::budget::{Budget, Charge};
use self::inflate::Encoding;
use self::inflow::Inflow;
use self::outflow::Held;
pub use self::outflow::Unread;
use sensorium_actors::admission::Permit;
use sensorium_actors::error::{Error, Result};
use sensorium_plane::inbound::Share;
use sensorium_plane::status;
use tonic::Extensions;

/// What one call may cost.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of a message at most, inflated.
    pub message_bytes: usize,
    /// Bytes of a request's headers at most, counted as HTTP/2 does.
    pub header_bytes: usize,
    /// How long a message may stop coming, and an answer may go untaken.
    pub stall: Duration,
}

/// The services of a door within their bounds.
#[derive(Clone)]
pub struct Bounded {
    routes: Routes,
    bounds: Bounds,
    budget: Budget,
    unread: Arc<Unread>,
}

impl Bounded {
    /// `routes` within `bounds`.
    pub fn new(routes: Routes, bounds: Bounds, budget: Budget, unread: Arc<Unread>) -> Self {
        Self { routes, bounds, budget, unread }
    }
}

/// An answer that keeps its request's place, and what its bytes draw on the budget, until it has been taken.
pub fn held<T>(answer: T, permit: Permit, charge: Charge) -> tonic::Response<T> {
    let mut response = tonic::Response::new(answer);
    response.extensions_mut().insert(Held::new(permit, charge));
    response
}

/// A part of the budget for what a handler makes of a request, such as its answer, to its connection's account.
///
/// # Errors
/// `Exhausted` if there are not so many bytes left.
pub fn charge(extensions: &Extensions, bytes: usize) -> Result<Charge> {
    let received = extensions.get::<Received>();
    let received = received.ok_or_else(|| Error::Internal("a request that came past the door".to_owned()))?;
    received.budget.take(received.share.clone(), bytes)
}

/// What of a request's message draws on the budget, for as long as its handler holds the request's extensions.
#[derive(Clone)]
struct Received {
    budget: Budget,
    share: Share,
    _message: Arc<Mutex<Charge>>,
}

impl tower::Service<Request<Body>> for Bounded {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, std::result::Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        tower::Service::<Request<Body>>::poll_ready(&mut self.routes, context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (size, limit) = (header_bytes(request.headers()), self.bounds.header_bytes);
        if size > limit {
            let refused = status::invalid("metadata", format!("{size} bytes of headers, the limit is {limit}"));
            return std::future::ready(Ok(refused.into_http())).boxed();
        }
        let encoding = Encoding::take(request.headers_mut());
        let share = request.extensions_mut().remove::<Share>().unwrap_or_default();
        let charge = Arc::new(Mutex::new(self.budget.nothing(share.clone())));
        request.extensions_mut().insert(Received { budget: self.budget.clone(), share, _message: charge.clone() });
        let bounds = self.bounds;
        let request = request.map(|body| Body::new(Inflow::new(body, encoding, bounds, charge)));
        let answered = tower::Service::call(&mut self.routes, request);
        let unread = self.unread.clone();
        async move {
            let mut response = status::amend(answered.await?);
            let held = response.extensions_mut().remove::<Held>();
            Ok(response.map(|body| Body::new(unread.follow(body, held))))
        }
        .boxed()
    }
}

/// As HTTP/2 counts a header list (RFC 9113, 6.5.2).
fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}
