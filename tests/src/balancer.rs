//! A TCP balancer as stands before the gateways of a cluster: it takes turns, asks who is ready, and knows nothing of
//! what it carries.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::{Node, get};

/// How often it is asked who is ready.
const LOOK: Duration = Duration::from_millis(100);

struct Backend {
    grpc: SocketAddr,
    http: SocketAddr,
    ready: AtomicBool,
    connections: AtomicUsize,
}

/// See the module.
pub struct Balancer {
    /// Where it listens.
    pub address: SocketAddr,
    backends: Arc<Vec<Backend>>,
    _tasks: JoinSet<()>,
}

impl Balancer {
    /// In front of these gateways.
    pub async fn start(gateways: &[Node]) -> Self {
        let backends = gateways.iter().map(|gateway| Backend {
            grpc: gateway.grpc,
            http: gateway.http,
            ready: AtomicBool::new(true),
            connections: AtomicUsize::new(0),
        });
        let backends: Arc<Vec<Backend>> = Arc::new(backends.collect());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, backends.clone()));
        tasks.spawn(look(backends.clone()));
        Self { address, backends, _tasks: tasks }
    }

    /// Connections that each gateway was given so far.
    pub fn connections(&self) -> Vec<usize> {
        self.backends.iter().map(|backend| backend.connections.load(Relaxed)).collect()
    }
}

async fn accept(listener: TcpListener, backends: Arc<Vec<Backend>>) {
    let mut carried = JoinSet::new();
    for turn in 0.. {
        let Ok((client, _)) = listener.accept().await else { continue };
        let backends = backends.clone();
        carried.spawn(async move {
            // from whose turn it is on; one that cannot be reached is passed over
            let (before, from) = backends.split_at(turn % backends.len());
            for backend in from.iter().chain(before).filter(|backend| backend.ready.load(Relaxed)) {
                let Ok(mut server) = TcpStream::connect(backend.grpc).await else { continue };
                backend.connections.fetch_add(1, Relaxed);
                let mut client = client;
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let _ = copy_bidirectional(&mut client, &mut server).await;
                return;
            }
        });
        while carried.try_join_next().is_some() {}
    }
}

async fn look(backends: Arc<Vec<Backend>>) {
    loop {
        for backend in backends.iter() {
            let ready = tokio::time::timeout(LOOK * 5, get(backend.http, "/readyz")).await;
            backend.ready.store(matches!(ready, Ok(Ok((200, _)))), Relaxed);
        }
        tokio::time::sleep(LOOK).await;
    }
}
