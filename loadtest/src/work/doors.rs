//! Several gateways that serve the same cluster: who is refused by one turns to the next.

use std::time::Duration;

use tonic::{Code, Status};

use super::{Client, Outcome, Work};
use crate::error::Result;

/// Between two tries of a request.
const PAUSE: Duration = Duration::from_millis(20);
/// Tries of a request, where there is more than one gateway.
const TRIES: usize = 100;

/// A caller's connections, one to each gateway. A clone shares them.
#[derive(Clone)]
pub struct Doors {
    clients: Vec<Client>,
    /// Whom it asks.
    at: usize,
}

impl Doors {
    /// Connects now to `targets`, which are URLs with commas between them; to those that do not answer, when they are
    /// asked.
    ///
    /// # Errors
    /// If none of them answers.
    pub async fn connect(targets: &str) -> Result<Self> {
        let (mut clients, mut at, mut failed) = (Vec::new(), None, None);
        for target in targets.split(',').map(str::trim) {
            clients.push(match Client::connect(target).await {
                Ok(client) => {
                    at = at.or(Some(clients.len()));
                    client
                }
                Err(error) => {
                    failed = Some(error);
                    Client::lazy(target)?
                }
            });
        }
        match (at, failed) {
            (None, Some(error)) => Err(error),
            (at, _) => Ok(Self { clients, at: at.unwrap_or(0) }),
        }
    }

    /// Makes the request of this `number` and waits for all of its answer. With several gateways a caller that hears
    /// UNAVAILABLE asks again at the next one, as whoever must not notice a gateway's end has to.
    ///
    /// # Errors
    /// The last status.
    pub async fn call(&mut self, work: &Work, number: u64) -> Result<Outcome, Status> {
        let tries = if self.clients.len() > 1 { TRIES } else { 1 };
        for _ in 1..tries {
            match work.call(&mut self.clients[self.at], number).await {
                Err(status) if status.code() == Code::Unavailable => {
                    self.at = (self.at + 1) % self.clients.len();
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
        work.call(&mut self.clients[self.at], number).await
    }
}
