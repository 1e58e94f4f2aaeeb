//! What is told on NATS without being kept: hints for other processes of ours, and events for whoever listens.

use std::collections::HashMap;
use std::sync::Weak;

use async_nats::Client;
use async_nats::connection::State;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::Nats;
use crate::bus::Event;

/// Publishes if NATS is there: what is not heard at once is not kept for later.
pub(super) async fn say(client: &Client, subject: String, payload: Bytes) {
    if client.connection_state() == State::Connected {
        let _ = client.publish(subject, payload).await;
    }
}

impl Nats {
    /// Gives hints of other processes to those who listen in this one.
    pub(in crate::jobs) fn relay(&self, events: Weak<Mutex<HashMap<String, broadcast::Sender<String>>>>) {
        let (client, all) = (self.client.clone(), format!("{}.hints.", self.options.prefix));
        tokio::spawn(async move {
            let Ok(mut hints) = client.subscribe(format!("{all}>")).await else { return };
            while let Some(hint) = hints.next().await {
                let Some(events) = events.upgrade() else { return };
                if let Some(subject) = hint.subject.strip_prefix(&all) {
                    crate::jobs::relay(&events, subject, &String::from_utf8_lossy(&hint.payload));
                }
            }
        });
    }

    pub(in crate::jobs) fn tell(&self, subject: &str, text: &str) {
        let (client, text) = (self.client.clone(), Bytes::copy_from_slice(text.as_bytes()));
        let subject = format!("{}.hints.{subject}", self.options.prefix);
        tokio::spawn(async move {
            // a hint that is lost is looked for
            say(&client, subject, text).await;
        });
    }

    /// Publishes events until their bus is gone.
    pub(in crate::jobs) fn announce(&self, mut events: broadcast::Receiver<Event>) {
        let (client, prefix) = (self.client.clone(), self.options.prefix.clone());
        tokio::spawn(async move {
            loop {
                let event = match events.recv().await {
                    Ok(event) => event,
                    Err(RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "more events than NATS takes");
                        continue;
                    }
                    Err(RecvError::Closed) => return,
                };
                let Ok(payload) = serde_json::to_vec(&event) else { continue };
                say(&client, format!("{prefix}.events.{}", event.subject), payload.into()).await;
            }
        });
    }
}
