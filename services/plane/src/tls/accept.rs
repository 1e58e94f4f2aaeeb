//! Connections of a listener, each after its handshake.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::ready;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::ServerTls;
use crate::deal::{Accepted, Seat};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once on each lane; who comes then has been accepted, and waits in the lane's inbox.
const HANDSHAKES: usize = 1024;
/// One failed handshake in this time is logged.
const COMPLAIN: Duration = Duration::from_secs(1);
const FAILURES: &str = "sensorium_tls_handshake_failures_total";

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection, in the clear or within TLS.
pub struct Connection {
    io: Io,
    info: TcpConnectInfo,
    heard: Arc<AtomicUsize>,
    _seat: Seat,
}

impl Connection {
    fn new(io: Io, info: TcpConnectInfo, seat: Seat) -> Self {
        Self { io, info, heard: Arc::default(), _seat: seat }
    }

    /// Bytes that the peer has said so far, within TLS.
    pub(crate) fn heard(&self) -> Arc<AtomicUsize> {
        self.heard.clone()
    }
}

/// Connections of a listener that is called `name` in logs and metrics. Handshakes run side by side, so a client that is
/// slow or silent holds up nobody. One that fails is no error of the listener's.
pub(crate) fn incoming(
    accepted: impl Stream<Item = io::Result<Accepted>> + Send + 'static,
    tls: Option<ServerTls>,
    name: &'static str,
) -> BoxStream<'static, io::Result<Connection>> {
    let Some(tls) = tls else {
        return accepted.map(|accepted| accepted.map(|Accepted { stream, seat }| plain(stream, seat))).boxed();
    };
    metrics::describe_counter!(FAILURES, "TLS handshakes that failed, by listener");
    let complaints = Arc::new(Complaints { name, last: Mutex::new(None) });
    accepted
        .map(move |accepted| {
            let (tls, complaints) = (tls.clone(), complaints.clone());
            // a task of its own: the cryptography of one handshake would hold up the accepting of others
            tokio::spawn(async move {
                match accepted {
                    Ok(accepted) => handshake(accepted, &tls, &complaints).await.map(Ok),
                    Err(error) => Some(Err(error)),
                }
            })
            .map(|joined| joined.ok().flatten())
        })
        .buffer_unordered(HANDSHAKES)
        .filter_map(ready)
        .boxed()
}

fn plain(stream: TcpStream, seat: Seat) -> Connection {
    let info = stream.connect_info();
    Connection::new(Io::Plain(stream), info, seat)
}

async fn handshake(accepted: Accepted, tls: &ServerTls, complaints: &Complaints) -> Option<Connection> {
    let Accepted { stream, seat } = accepted;
    let info = stream.connect_info();
    let acceptor = TlsAcceptor::from(tls.get());
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(Connection::new(Io::Tls(Box::new(stream)), info, seat)),
        // probes connect and leave
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            tracing::debug!(listener = complaints.name, peer = ?info.remote_addr, "left without a handshake");
        }
        Ok(Err(error)) => complaints.add(info.remote_addr, &explain(&error)),
        Err(_) => complaints.add(info.remote_addr, &format!("no handshake within {HANDSHAKE:?}")),
    }
    None
}

/// Words for the mistake that is made most often.
fn explain(error: &io::Error) -> String {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            "the peer does not speak TLS".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Failed handshakes: all are counted, few are logged, as anybody may cause them.
struct Complaints {
    name: &'static str,
    last: Mutex<Option<Instant>>,
}

impl Complaints {
    fn add(&self, peer: Option<SocketAddr>, error: &str) {
        metrics::counter!(FAILURES, "listener" => self.name).increment(1);
        let mut last = self.last.lock();
        if last.is_none_or(|last| last.elapsed() >= COMPLAIN) {
            *last = Some(Instant::now());
            tracing::warn!(listener = self.name, ?peer, error, "TLS handshake failed");
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.info.clone()
    }
}

macro_rules! either {
    ($connection:expr, $io:ident => $call:expr) => {
        match &mut $connection.as_mut().get_mut().io {
            Io::Plain(stream) => {
                let $io = Pin::new(stream);
                $call
            }
            Io::Tls(stream) => {
                let $io = Pin::new(&mut **stream);
                $call
            }
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = either!(self, io => io.poll_read(cx, into));
        self.heard.fetch_add(into.filled().len() - before, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write(cx, from))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write_vectored(cx, from))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
