//! One connection of a listener, from its first byte to its last: what it may cost, and how long it may hold on.
//!
//! hyper is driven here rather than through tonic's server, which knows neither idle connections, nor silent ones, nor
//! an age that differs from one connection to the next.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rand::Rng;
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::Connected;
use tower::{Service, ServiceExt};

use crate::connection::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::deadline;
use crate::deal::Stop;
use crate::tls::Connection;

/// Bytes of an answer that wait for a stream's reader beside those of its body.
const SEND_BUFFER: usize = 64 << 10;
/// The client's preface, which is the first that it says.
const PREFACE: usize = 24;
/// Frames for streams that were ended here, over the life of a connection. A caller whose message is refused half way has
/// the rest of it under way, and so have all others that a proxy carries.
const RESETS: usize = 1 << 20;
/// Calls that were reset before they were looked at. All that a caller has sent since is read at one go, so on a busy
/// machine a storm of cancellations is that long; each costs its headers until then.
const PENDING_RESETS: usize = 1 << 13;
/// Of a connection's age, the part by which two of them may differ: clients that came together do not leave together.
const JITTER: f64 = 0.2;

/// What the connections of a listener may cost, and how long they may hold on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections of the process at this listener at most; more are closed as they come.
    pub connections: usize,
    /// Streams of one connection at most. As many may be reset before a handler has seen them: a proxy that carries many
    /// callers loses all of their streams with its connection.
    pub streams: u32,
    /// Bytes of the headers of one request at most, where the transport ends the stream without a word.
    pub header_bytes: u32,
    /// How long the client may take to say its first words.
    pub silence: Duration,
    /// How long a connection may stand without a call; `None`: for ever.
    pub idle: Option<Duration>,
    /// The age, a little more or less, at which a client is asked to connect anew; `None`: never.
    pub age: Option<Duration>,
    /// Silence after which a connection is asked whether it is alive…
    pub keep_alive: Duration,
    /// …and the time after which one that does not answer is closed.
    pub keep_alive_timeout: Duration,
}

/// Bytes that the calls of one connection hold, which each request's extensions lead to.
#[derive(Clone, Debug, Default)]
pub struct Share(pub Arc<AtomicUsize>);

/// Calls of a connection that are in work.
struct Calls {
    count: AtomicUsize,
    last: Mutex<Instant>,
}

impl Calls {
    fn begin(self: &Arc<Self>) -> Call {
        self.count.fetch_add(1, Relaxed);
        Call(self.clone())
    }

    /// Since when there is none; nothing if there is one.
    fn idle_since(&self) -> Option<Instant> {
        (self.count.load(Relaxed) == 0).then(|| *self.last.lock())
    }
}

struct Call(Arc<Calls>);

impl Drop for Call {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Relaxed) == 1 {
            *self.0.last.lock() = Instant::now();
        }
    }
}

/// An answer's body, with which its call ends.
struct Answer {
    body: Body,
    _call: Call,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Serves one connection until either end closes it. When `stop` resolves, or its time is over, the client is told to
/// connect anew, and what is in work is finished.
pub(crate) async fn serve<S>(connection: Connection, service: S, limits: &Limits, stop: Stop)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let now = Instant::now();
    let calls = Arc::new(Calls { count: AtomicUsize::new(0), last: Mutex::new(now) });
    let (heard, info) = (connection.heard(), connection.connect_info());
    let (answering, share) = (calls.clone(), Share::default());
    let handler = service_fn(move |request: Request<Incoming>| {
        let (service, call) = (service.clone(), answering.begin());
        let (info, share) = (info.clone(), share.clone());
        // boxed, for hyper moves it several times on its way into a task
        Box::pin(async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(info);
            request.extensions_mut().insert(share);
            let response = answer(service, request).await;
            Ok::<_, Infallible>(response.map(|body| Answer { body, _call: call }))
        })
    });
    let mut http = Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_concurrent_streams(limits.streams)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(RESETS)
        .max_header_list_size(limits.header_bytes)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.keep_alive_timeout);
    let mut serving = pin!(http.serve_connection(TokioIo::new(connection), handler));
    // polls only what has come: a connection wakes once or more for every call
    let mut events = FuturesUnordered::new();
    events.push(at(Some(now + limits.silence), Event::Silent).boxed());
    events.push(at(limits.age.map(|age| now + jittered(age)), Event::Old).boxed());
    events.push(at(limits.idle.map(|idle| now + idle), Event::Idle).boxed());
    events.push(stop.map(|()| Event::Stop).boxed());
    let mut leaving = false;
    loop {
        let event = tokio::select! {
            biased;
            ended = &mut serving => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection has ended");
                }
                return;
            }
            Some(event) = events.next() => event,
        };
        match event {
            Event::Silent if heard.load(Relaxed) < PREFACE => return,
            Event::Silent => continue,
            _ if leaving => continue,
            Event::Idle => {
                let patience = limits.idle.unwrap_or_default();
                let over = calls.idle_since().unwrap_or_else(Instant::now) + patience;
                if over > Instant::now() {
                    events.push(at(Some(over), Event::Idle).boxed());
                    continue;
                }
            }
            Event::Old | Event::Stop => {}
        }
        leaving = true;
        serving.as_mut().graceful_shutdown();
    }
}

/// What ends a connection beside its ends.
enum Event {
    /// It has been time for the first word.
    Silent,
    /// There may have been no call for long.
    Idle,
    /// It is old enough.
    Old,
    /// The listener stops.
    Stop,
}

/// `event` at that time; never, where there is none.
async fn at(time: Option<Instant>, event: Event) -> Event {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
    event
}

fn jittered(age: Duration) -> Duration {
    age.mul_f64(1.0 + JITTER * (rand::rng().random::<f64>() - 0.5))
}

/// A service's answer, or what its caller's deadline leaves of it. Handlers keep deadlines by themselves; this is for
/// those that have nothing to wait for but others.
async fn answer<S>(service: S, request: Request<Body>) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let timeout = deadline::of(request.headers());
    let answered = service.oneshot(request);
    let Some(timeout) = timeout else {
        return answered.await.unwrap_or_else(|never| match never {});
    };
    // boxed, like all that waits for a clock: it is large, and most calls have no deadline
    match Box::pin(tokio::time::timeout(timeout, answered)).await {
        Ok(answered) => answered.unwrap_or_else(|never| match never {}),
        Err(_) => Status::deadline_exceeded("the deadline passed before there was an answer").into_http(),
    }
}
