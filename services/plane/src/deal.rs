//! A gRPC server on all lanes: the connections of one listener, each dealt to the lane that has fewest.

use std::convert::Infallible;
use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures::future::{BoxFuture, Shared, select};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use http::{Request, Response};
use sensorium_runtime::lanes::Lanes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::body::Body;
use tonic::transport::server::TcpIncoming;
use tower::Service;

use crate::inbound::{self, Limits};
use crate::tls::{self, Connection, ServerTls};

/// How long accepting pauses after an error, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);
const REFUSED: &str = "sensorium_connections_refused_total";

/// A place on a lane, held by a connection.
pub(crate) struct Seat(Arc<AtomicUsize>);

impl Seat {
    pub(crate) fn take(taken: &Arc<AtomicUsize>) -> Self {
        taken.fetch_add(1, Relaxed);
        Self(taken.clone())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A connection before its handshake.
pub(crate) struct Accepted {
    pub stream: TcpStream,
    pub seat: Seat,
}

/// Connections that a lane has, and its inbox for more.
type Table = (Arc<AtomicUsize>, mpsc::UnboundedSender<(std::net::TcpStream, Seat)>);

/// Where connections come from; `name` stands in logs and metrics.
#[allow(missing_docs)]
pub struct Listening {
    pub listener: TcpListener,
    pub tls: Option<ServerTls>,
    pub name: &'static str,
}

/// Resolves when servers are to finish what they have.
pub type Stop = Shared<BoxFuture<'static, ()>>;

/// Serves `service` on all lanes until `shutdown` resolves, then finishes what is in work.
pub async fn serve<S>(
    lanes: &Lanes,
    listening: Listening,
    limits: Limits,
    shutdown: impl Future<Output = ()> + Send + 'static,
    service: S,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    metrics::describe_counter!(REFUSED, "Connections that were closed since a listener has as many as it may have");
    let most = limits.connections;
    let limits = Arc::new(limits);
    each_lane(lanes, listening, most, shutdown, |incoming, stop| {
        serve_lane(incoming, service.clone(), limits.clone(), stop)
    })
    .await;
}

/// The connections of one lane.
async fn serve_lane<S>(
    mut incoming: BoxStream<'static, io::Result<Connection>>,
    service: S,
    limits: Arc<Limits>,
    stop: Stop,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut connections = JoinSet::new();
    let mut stopped = stop.clone();
    loop {
        tokio::select! {
            () = &mut stopped => break,
            connection = incoming.next() => match connection {
                Some(Ok(connection)) => {
                    let (service, limits, stop) = (service.clone(), limits.clone(), stop.clone());
                    connections.spawn(async move { inbound::serve(connection, service, &limits, stop).await });
                }
                // the client's doing, or the lane's event loop is full
                Some(Err(error)) => tracing::debug!(%error, "a connection was lost before it began"),
                None => break,
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection's task panicked");
                }
            }
        }
    }
    drop(incoming);
    while connections.join_next().await.is_some() {}
}

/// Runs one server on each lane, as `serve` makes it of connections and the signal to stop, until all have ended.
async fn each_lane<F>(
    lanes: &Lanes,
    listening: Listening,
    most: usize,
    shutdown: impl Future<Output = ()> + Send + 'static,
    serve: impl Fn(BoxStream<'static, io::Result<Connection>>, Stop) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let stop = shutdown.boxed().shared();
    let mut tables: Vec<Table> = Vec::new();
    let mut serving = JoinSet::new();
    for lane in lanes.handles() {
        let (deal, dealt) = mpsc::unbounded_channel();
        // from here on it is the lane's event loop that watches it
        let accepted = UnboundedReceiverStream::new(dealt)
            .map(|(stream, seat)| Ok(Accepted { stream: TcpStream::from_std(stream)?, seat }));
        serving.spawn_on(serve(tls::incoming(accepted, listening.tls.clone(), listening.name), stop.clone()), lane);
        tables.push((Arc::new(AtomicUsize::new(0)), deal));
    }
    // who stops closes the listener first
    drop(select(accept(listening.listener, listening.name, &tables, most).boxed(), stop).await);
    drop(tables);
    while let Some(ended) = serving.join_next().await {
        ended.unwrap_or_else(|error| resume_unwind(error.into_panic()));
    }
}

async fn accept(listener: TcpListener, name: &'static str, tables: &[Table], most: usize) {
    // tonic's own `tcp_nodelay` is not for listeners that it is given: answers of more than a segment would wait for the
    // caller's delayed acknowledgement, 40 ms
    let mut incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    while let Some(accepted) = incoming.next().await {
        match accepted.and_then(TcpStream::into_std) {
            Ok(stream) => {
                let standing: usize = tables.iter().map(|(taken, _)| taken.load(Relaxed)).sum();
                if standing >= most {
                    metrics::counter!(REFUSED, "listener" => name).increment(1);
                    continue;
                }
                let Some((taken, deal)) = tables.iter().min_by_key(|(taken, _)| taken.load(Relaxed)) else { return };
                // an error: the lane's server has ended, which ends all
                let _ = deal.send((stream, Seat::take(taken)));
            }
            // the client's doing
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A server that says which lane it is on to whoever speaks, until it is to stop.
    async fn tell_lane(mut incoming: BoxStream<'static, io::Result<Connection>>, stop: Stop) {
        let mut told = JoinSet::new();
        while let futures::future::Either::Left((Some(connection), _)) = select(incoming.next(), stop.clone()).await {
            let mut connection = connection.unwrap();
            told.spawn(async move {
                while connection.read_u8().await.is_ok() {
                    connection.write_u8(u8::try_from(Lanes::current().unwrap()).unwrap()).await.unwrap();
                }
            });
        }
        told.join_all().await;
    }

    async fn lane_of(stream: &mut TcpStream) -> u8 {
        stream.write_u8(0).await.unwrap();
        stream.read_u8().await.unwrap()
    }

    #[tokio::test]
    async fn each_connection_goes_to_the_lane_with_fewest_and_the_last_are_served_to_their_end() {
        let lanes = Lanes::start(2).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let listening = Listening { listener, tls: None, name: "test" };
        let serving = tokio::spawn(async move { each_lane(&lanes, listening, 6, stopped.map(drop), tell_lane).await });

        let mut on = [Vec::new(), Vec::new()];
        for _ in 0..6 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let lane = lane_of(&mut stream).await;
            on[usize::from(lane)].push(stream);
        }
        assert_eq!(on.each_ref().map(Vec::len), [3, 3]);
        let mut one_more = TcpStream::connect(address).await.unwrap();
        let closed = async { one_more.write_u8(0).await.is_err() || one_more.read_u8().await.is_err() };
        assert!(tokio::time::timeout(Duration::from_secs(60), closed).await.unwrap(), "six is what it may have");
        on[1].clear();
        // the lane hears of it when it reads
        let settled = async {
            loop {
                let mut stream = TcpStream::connect(address).await.unwrap();
                if lane_of(&mut stream).await == 1 {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), settled).await.expect("the lane that lost three gets the next");

        drop(stop);
        let refused = async { while TcpStream::connect(address).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(60), refused).await.expect("the listener is closed first");
        assert_eq!(lane_of(&mut on[0][0]).await, 0, "who is in is served");
        assert!(!serving.is_finished());
        drop(on);
        serving.await.unwrap();
    }
}
