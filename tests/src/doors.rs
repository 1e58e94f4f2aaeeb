//! A client that knows several gateways, and turns to the next when one is not to be had.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tonic::{Code, Status};

use crate::{Ask, Client, Given, Node};

/// Gateways that one request is tried at, the same one again included.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Clone)]
pub struct Doors {
    clients: Vec<Client>,
    at: Arc<AtomicUsize>,
    turn: Arc<AtomicUsize>,
    /// Requests that were turned away somewhere.
    turned: Arc<AtomicUsize>,
}

impl Doors {
    /// All of these.
    pub async fn of(gateways: &[Node]) -> Self {
        let clients = futures::future::join_all(gateways.iter().map(Node::client)).await;
        Self::new(clients)
    }

    /// Behind these clients.
    pub fn new(clients: Vec<Client>) -> Self {
        Self { clients, at: Arc::default(), turn: Arc::default(), turned: Arc::default() }
    }

    /// ModelInfer at the gateway that answered last, and at the next on UNAVAILABLE or a broken connection.
    pub async fn infer(&self, ask: Ask) -> Result<Given, Status> {
        let mut tries = 0;
        loop {
            let at = self.at.load(Relaxed);
            let answer = self.clients[at % self.clients.len()].infer(ask.clone()).await;
            tries += 1;
            match answer {
                Err(status) if is_elsewhere(&status) && tries < TRIES => {
                    self.turned.fetch_add(1, Relaxed);
                    // others may have turned already
                    let _ = self.at.compare_exchange(at, at + 1, Relaxed, Relaxed);
                    if tries >= self.clients.len() {
                        tokio::time::sleep(pushback(&status)).await;
                    }
                }
                answer => return answer,
            }
        }
    }

    /// One of them, another one each time.
    pub fn any(&self) -> &Client {
        &self.clients[self.turn.fetch_add(1, Relaxed) % self.clients.len()]
    }

    /// How often a request was turned away, and asked again.
    pub fn turned(&self) -> usize {
        self.turned.load(Relaxed)
    }
}

/// How long the server asks to be left alone; a moment if nobody was there to ask.
fn pushback(status: &Status) -> Duration {
    let asked = status.metadata().get("grpc-retry-pushback-ms").and_then(|value| value.to_str().ok()?.parse().ok());
    asked.map_or(PAUSE, Duration::from_millis)
}

/// Other gRPC libraries call a broken connection UNAVAILABLE; tonic says that it does not know, and why.
fn is_elsewhere(status: &Status) -> bool {
    let broken = status.code() == Code::Unknown && std::error::Error::source(status).is_some();
    broken || status.code() == Code::Unavailable
}
