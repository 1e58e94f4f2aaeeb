use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::*;
use crate::error::is_answer;

const PATIENCE: Duration = Duration::from_millis(200);

fn connection(address: SocketAddr) -> Connection {
    let way = Way {
        origin: format!("http://{address}").parse().unwrap(),
        tls: None,
        barred: None,
        keep_alive: PATIENCE / 2,
        keep_alive_timeout: PATIENCE,
    };
    Connection::new(Arc::new(way), Handle::current())
}

async fn call(connection: &Connection) -> Result<HealthCheckResponse, tonic::Status> {
    let mut client = HealthClient::with_origin(connection.clone(), connection.origin());
    client.check(HealthCheckRequest { service: String::new() }).await.map(tonic::Response::into_inner)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("does not hang")
}

/// A health service until the sender is dropped.
async fn serve(listener: TcpListener) -> (oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let (stop, stopped) = oneshot::channel::<()>();
    let (_, health) = tonic_health::server::health_reporter();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let serving = Server::builder().add_service(health).serve_with_incoming_shutdown(incoming, stopped.map(drop));
    (stop, tokio::spawn(async move { serving.await.unwrap() }))
}

#[tokio::test]
async fn a_worker_that_came_back_is_called_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connection = connection(address);
    let (stop, serving) = serve(listener).await;
    soon(call(&connection)).await.unwrap();
    drop(stop);
    soon(serving).await.unwrap();
    let refused = soon(call(&connection)).await.unwrap_err();
    assert!(!is_answer(&refused), "{refused:?}");
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    let _serving = serve(socket.listen(8).unwrap()).await;
    soon(call(&connection)).await.unwrap();
}

#[tokio::test]
async fn calls_share_one_attempt_even_if_the_first_turns_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connection = connection(listener.local_addr().unwrap());
    let accepted = Arc::new(AtomicUsize::new(0));
    // polled once: it has begun the attempt, and is gone
    assert!(call(&connection).now_or_never().is_none());
    let calls = futures::future::join_all((0..20).map(|_| call(&connection)));
    let count = accepted.clone();
    let (_, health) = tonic_health::server::health_reporter();
    let incoming = futures::stream::unfold(listener, move |listener| {
        count.fetch_add(1, Relaxed);
        async move { Some((listener.accept().await.map(|(stream, _)| stream), listener)) }
    });
    let _serving = tokio::spawn(Server::builder().add_service(health).serve_with_incoming(incoming));
    assert!(soon(calls).await.into_iter().all(|answer| answer.is_ok()));
    // the one that was accepted, and the one that is waited for
    assert_eq!(accepted.load(Relaxed), 2);
}

/// A peer that reads and, as long as `speaks`, says something, but never answers.
async fn mute(speaks: oneshot::Receiver<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut from, mut to) = stream.into_split();
        tokio::spawn(async move { while from.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {} });
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        const WINDOW_UPDATE: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        to.write_all(&SETTINGS).await.unwrap();
        let mut speaks = speaks;
        while tokio::time::timeout(PATIENCE / 10, &mut speaks).await.is_err() {
            to.write_all(&WINDOW_UPDATE).await.unwrap();
        }
        std::future::pending::<()>().await;
        drop(to);
    });
    address
}

#[tokio::test]
async fn only_silence_ends_a_connection() {
    let (hush, speaks) = oneshot::channel();
    let connection = connection(mute(speaks).await);
    let mut calling = pin!(call(&connection));
    let waited = tokio::time::timeout(PATIENCE * 10, &mut calling).await;
    assert!(waited.is_err(), "what speaks is there: {waited:?}");
    drop(hush);
    let lost = soon(calling).await.unwrap_err();
    assert!(!is_answer(&lost), "{lost:?}");
    let error = crate::error::from_status("w1", &lost);
    assert!(error.to_string().contains("w1 is out of reach"), "{error}");
    assert!(matches!(error, sensorium_actors::error::Error::Unavailable { reason: "WORKER_LOST", .. }), "{error:?}");
}

#[tokio::test]
async fn whoever_turns_away_resets_the_stream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connection = connection(listener.local_addr().unwrap());
    let calling = tokio::spawn({
        let connection = connection.clone();
        async move { call(&connection).await }
    });
    let (stream, _) = listener.accept().await.unwrap();
    let mut server = h2::server::handshake(stream).await.unwrap();
    let (request, mut respond) = soon(server.accept()).await.unwrap().unwrap();
    tokio::spawn(async move { while server.accept().await.is_some() {} });
    let mut body = request.into_body();
    let sent = soon(body.data()).await.unwrap().unwrap();
    assert!(sent.len() >= 5 && body.is_end_stream(), "one message, which ends the stream: {sent:?}");
    calling.abort();
    let reason = soon(std::future::poll_fn(|cx| respond.poll_reset(cx))).await.unwrap();
    assert_eq!(reason, h2::Reason::CANCEL);
}

#[tokio::test]
async fn what_a_worker_refused_was_not_begun() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connection = connection(listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut server = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = server.accept().await {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
    });
    let refused = soon(call(&connection)).await.unwrap_err();
    let error = crate::error::from_status("w1", &refused);
    assert!(matches!(error, sensorium_actors::error::Error::Unavailable { reason: "UNREACHABLE", .. }), "{error:?}");
}
