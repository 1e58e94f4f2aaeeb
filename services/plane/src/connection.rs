//! One HTTP/2 connection to a worker: made by its first call, watched while it stands, made again when it is lost.
//!
//! Calls speak to `h2` themselves. tonic's channel hands each call to its own task, that one to a task of hyper's, which
//! starts a third for the answer; at a gateway's rates the hand-overs cost more than the frames.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use h2::client::SendRequest;
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::{Request, Response, Uri};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::io::InspectReader;
use tower::BoxError;

use crate::tls::ClientTls;

/// How long a connection may take to come about, and how long TLS may take upon it.
const CONNECT: Duration = Duration::from_secs(1);
const HANDSHAKE: Duration = Duration::from_secs(2);
/// Bytes that the other end of a connection may send on a stream before they are read, at workers as at the door.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// The same of all streams of a connection together.
pub const CONNECTION_WINDOW: u32 = 8 << 20;
/// Streams that were given up of late, and of which frames may still come.
const RESETS: usize = 4096;

/// No connection came about, so nothing was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Unreached {
    #[error("{0}")]
    Connect(Arc<std::io::Error>),
    #[error("TLS handshake: {0}")]
    Handshake(Arc<std::io::Error>),
    #[error("no connection within {0:?}")]
    Silent(Duration),
    #[error("HTTP/2: {0}")]
    Http(Arc<h2::Error>),
    /// Both ends are set up differently.
    #[error("{0}")]
    Mismatch(&'static str),
    #[error("'{0}' is no name of a server")]
    Name(String),
}

impl From<h2::Error> for Unreached {
    fn from(error: h2::Error) -> Self {
        Self::Http(Arc::new(error))
    }
}

/// Where a worker is, and how it is spoken to.
pub(crate) struct Way {
    /// Scheme, host and port.
    pub origin: Uri,
    pub tls: Option<ClientTls>,
    /// Why it cannot be called at all.
    pub barred: Option<&'static str>,
    /// A connection on which nothing has been heard for so long is asked…
    pub keep_alive: Duration,
    /// …and given up after this.
    pub keep_alive_timeout: Duration,
}

type Attempt = Shared<BoxFuture<'static, Result<SendRequest<Bytes>, Unreached>>>;

/// See the module. Clones are the same connection; it ends when the last is gone and its streams are at their end.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Inner>);

struct Inner {
    way: Arc<Way>,
    /// Whose event loop watches it.
    lane: Handle,
    /// The latest attempt at a connection, whatever came of it.
    latest: Mutex<Option<Attempt>>,
}

impl Connection {
    pub(crate) fn new(way: Arc<Way>, lane: Handle) -> Self {
        Self(Arc::new(Inner { way, lane, latest: Mutex::new(None) }))
    }

    pub(crate) fn origin(&self) -> Uri {
        self.0.way.origin.clone()
    }

    /// Something to send a request on. A connection that has ended, or whose worker takes no more, is replaced once.
    async fn sender(&self) -> Result<SendRequest<Bytes>, Unreached> {
        let standing = self.attempt(None);
        if let Ok(sender) = standing.clone().await?.ready().await {
            return Ok(sender);
        }
        Ok(self.attempt(Some(&standing)).await?.ready().await?)
    }

    /// The latest attempt, or a new one if that has failed or is known to have ended.
    fn attempt(&self, ended: Option<&Attempt>) -> Attempt {
        let mut latest = self.0.latest.lock();
        let usable = |attempt: &&Attempt| {
            attempt.peek().is_none_or(Result::is_ok) && !ended.is_some_and(|ended| ended.ptr_eq(attempt))
        };
        if let Some(attempt) = latest.as_ref().filter(usable) {
            return attempt.clone();
        }
        // a task of its own, since whoever asked first may be the first to turn away
        let connecting = self.0.lane.spawn(connect(self.0.way.clone()));
        let joined = connecting
            .map(|joined| joined.unwrap_or_else(|lost| Err(Unreached::Connect(Arc::new(std::io::Error::other(lost))))));
        latest.insert(joined.boxed().shared()).clone()
    }
}

impl tower::Service<Request<tonic::body::Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let connection = self.clone();
        async move {
            let mut sender = connection.sender().await?;
            let (mut head, body) = request.into_parts();
            head.version = http::Version::HTTP_2;
            let (answer, mut outgoing) = sender.send_request(Request::from_parts(head, ()), false)?;
            // both handles are held until there is an answer: whoever turns away earlier resets the stream
            pour(body, &mut outgoing).await?;
            Ok(answer.await?.map(Incoming))
        }
        .boxed()
    }
}

/// Sends a request's one message. It is in memory as a whole, so nothing is gained by waiting for the worker's window:
/// h2 holds on to the same bytes until there is room. The last of them end the stream.
async fn pour(body: tonic::body::Body, outgoing: &mut SendStream<Bytes>) -> Result<(), BoxError> {
    let mut body = pin!(body);
    let mut last = Bytes::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let earlier = std::mem::replace(&mut last, data);
        if !earlier.is_empty() {
            outgoing.send_data(earlier, false)?;
        }
    }
    Ok(outgoing.send_data(last, true)?)
}

/// The body of an answer.
pub(crate) struct Incoming(RecvStream);

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match ready!(self.0.poll_data(cx)) {
            Some(Ok(data)) => {
                self.0.flow_control().release_capacity(data.len())?;
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => self.0.poll_trailers(cx).map(|trailers| trailers.transpose().map(|ok| ok.map(Frame::trailers))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

async fn connect(way: Arc<Way>) -> Result<SendRequest<Bytes>, Unreached> {
    if let Some(why) = way.barred {
        return Err(Unreached::Mismatch(why));
    }
    let host = way.origin.host().unwrap_or_default().trim_matches(['[', ']']);
    let address = (host, way.origin.port_u16().unwrap_or(if way.tls.is_some() { 443 } else { 80 }));
    let failed = |error| Unreached::Connect(Arc::new(error));
    let stream = within(CONNECT, TcpStream::connect(address)).await?.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    match &way.tls {
        None => start(stream, &way).await,
        Some(tls) => start(within(HANDSHAKE, tls.handshake(host, stream)).await??, &way).await,
    }
}

async fn within<T>(patience: Duration, future: impl Future<Output = T>) -> Result<T, Unreached> {
    tokio::time::timeout(patience, future).await.map_err(|_| Unreached::Silent(patience))
}

/// Begins HTTP/2, and looks after the connection until it ends.
async fn start(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    way: &Way,
) -> Result<SendRequest<Bytes>, Unreached> {
    let heard = Arc::new(Heard { born: Instant::now(), last: AtomicU64::new(0) });
    let listening = heard.clone();
    let io = InspectReader::new(io, move |_: &[u8]| listening.now());
    let (sender, mut connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .enable_push(false)
        // callers that turn away in a storm end their own streams, not the connection that others are on
        .max_concurrent_reset_streams(RESETS)
        .max_local_error_reset_streams(None)
        .handshake(io)
        .await?;
    let pings = connection.ping_pong();
    let (origin, every, patience) = (way.origin.clone(), way.keep_alive, way.keep_alive_timeout);
    tokio::spawn(async move {
        let alive = async {
            match pings {
                Some(pings) => keep_alive(pings, &heard, every, patience).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = connection => tracing::debug!(%origin, ?ended, "connection ended"),
            // without its connection, every stream ends with an error
            () = alive => tracing::debug!(%origin, "nothing was heard for {patience:?}, connection given up"),
        }
    });
    Ok(sender)
}

/// When something was last heard on a connection, in milliseconds after it was made.
struct Heard {
    born: Instant,
    last: AtomicU64,
}

impl Heard {
    fn now(&self) {
        self.last.store(self.age(), Relaxed);
    }

    fn age(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn ago(&self) -> Duration {
        Duration::from_millis(self.age().saturating_sub(self.last.load(Relaxed)))
    }
}

/// Returns when the other end has been silent for too long. An answer that takes long to arrive is no silence.
async fn keep_alive(mut pings: PingPong, heard: &Heard, every: Duration, patience: Duration) {
    loop {
        tokio::time::sleep(every.saturating_sub(heard.ago()).max(every / 8)).await;
        if heard.ago() < every {
            continue;
        }
        let mut pong = pin!(pings.ping(Ping::opaque()));
        loop {
            match tokio::time::timeout(patience, &mut pong).await {
                Ok(Ok(_)) => break,
                // the connection has ended, and knows
                Ok(Err(_)) => std::future::pending().await,
                Err(_) if heard.ago() < patience => {}
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
