//! Work queues in NATS: a stream each, a subject for each flow in it, and a consumer for each subject.
//!
//! One consumer for all would deliver them in the order in which they came: whoever came first with many would hold up
//! everybody, and what waits to be tried again would take the places that one consumer has in hand.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self, AckKind};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::super::{Delivery, Error, Message, Result};
use super::{ANSWER, Nats, room, unavailable};

/// How long a pull waits for a message.
const PULL: Duration = Duration::from_secs(1);
/// What flows there are is asked for this often at most.
const LOOK: Duration = Duration::from_millis(250);
/// New messages are told of together.
const TELL: Duration = Duration::from_millis(10);
/// A consumer that nobody asks is forgotten; what it had in hand is delivered again by the next one.
const IDLE: Duration = Duration::from_secs(24 * 3600);
/// Header of a message's trace.
const TRACE: &str = "traceparent";
/// The flow of messages of earlier builds.
const EARLIER: &str = "";

/// The subject of hints that a queue has new messages.
pub(in crate::jobs) fn hint(queue: &str) -> String {
    format!("queued.{queue}")
}

/// What there is of a queue.
pub(super) struct Queue {
    pub(super) stream: Stream,
    subject: String,
    patience: Duration,
    consumers: tokio::sync::Mutex<HashMap<String, Consumer<pull::Config>>>,
    turns: Mutex<Turns>,
}

/// Flows that have messages, the next one first, as they were when they were looked for.
#[derive(Default)]
struct Turns {
    flows: VecDeque<String>,
    looked: Option<Instant>,
}

impl Turns {
    /// Those that were known keep their places; new ones come first, since they have not had a turn.
    fn update(&mut self, there: HashSet<String>) {
        self.flows.retain(|flow| there.contains(flow));
        let mut new: Vec<String> = there.into_iter().filter(|flow| !self.flows.contains(flow)).collect();
        new.sort_unstable();
        for flow in new {
            self.flows.push_front(flow);
        }
        self.looked = Some(Instant::now());
    }

    /// The next flow that is not held; it is the last one from now on.
    fn next(&mut self, held: &HashSet<String>, tried: &HashSet<String>) -> Option<String> {
        let at = self.flows.iter().position(|flow| !held.contains(flow) && !tried.contains(flow))?;
        let flow = self.flows.remove(at)?;
        self.flows.push_back(flow.clone());
        Some(flow)
    }
}

impl Queue {
    pub(super) fn new(stream: Stream, subject: String, patience: Duration) -> Self {
        Self { stream, subject, patience, consumers: tokio::sync::Mutex::default(), turns: Mutex::default() }
    }

    fn of_flow(&self, flow: &str) -> String {
        if flow == EARLIER { self.subject.clone() } else { format!("{}.{flow}", self.subject) }
    }

    fn flow<'a>(&self, subject: &'a str) -> &'a str {
        subject.strip_prefix(&self.subject).map_or(EARLIER, |flow| flow.trim_start_matches('.'))
    }

    /// Flows that have messages, whoever has these in hand.
    async fn look(&self) -> std::result::Result<(), async_nats::Error> {
        let subjects = self.stream.info_with_subjects(">").await?;
        let there = subjects.map_ok(|(subject, _)| self.flow(&subject).to_owned()).try_collect().await?;
        self.turns.lock().update(there);
        Ok(())
    }

    async fn consumer(&self, flow: &str) -> std::result::Result<Consumer<pull::Config>, async_nats::Error> {
        let mut consumers = self.consumers.lock().await;
        if let Some(known) = consumers.get(flow) {
            return Ok(known.clone());
        }
        let config = pull::Config {
            durable_name: Some(format!("flow-{flow}")),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.patience,
            // what waits to be tried again must not hold up what has never been tried
            max_ack_pending: -1,
            filter_subject: self.of_flow(flow),
            inactive_threshold: IDLE,
            ..pull::Config::default()
        };
        let made = self.stream.create_consumer(config).await?;
        // a cluster's tenants come and go
        if consumers.len() > 1024 {
            consumers.clear();
        }
        consumers.insert(flow.to_owned(), made.clone());
        Ok(made)
    }

    /// What there is of a flow at once, so many at most.
    async fn take(&self, flow: &str, most: usize) -> std::result::Result<Vec<jetstream::Message>, async_nats::Error> {
        let taken = async {
            let batch = self.consumer(flow).await?.fetch().max_messages(most).messages().await?;
            batch.try_collect::<Vec<_>>().await
        };
        let taken = taken.await;
        if taken.is_err() {
            // it may be gone
            self.consumers.lock().await.remove(flow);
        }
        taken
    }
}

impl Nats {
    pub(in crate::jobs) async fn push(&self, queue: &str, message: Message) -> Result<()> {
        let ready = self.ready().await?;
        let Some(of) = ready.queues.get(queue) else { return Err(unknown(queue)) };
        self.fits(&message.id, &message.body)?;
        let mut publish = PublishMessage::build().payload(message.body).message_id(&message.id);
        if !message.trace.is_empty() {
            publish = publish.header(TRACE, message.trace.as_str());
        }
        let told = |error: PublishError| {
            let words = error.to_string();
            match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => Error::TooLarge(format!("NATS: {words}")),
                _ if room::is_short(&words) => self.ran_out(&words),
                PublishErrorKind::Other if words.contains("per subject exceeded") => {
                    Error::full(queue, self.options.bounds.queued_per_flow)
                }
                PublishErrorKind::Other if words.contains("maximum messages exceeded") => {
                    Error::full(queue, self.options.bounds.queued)
                }
                _ => self.lost(words),
            }
        };
        let subject = of.of_flow(&message.flow);
        self.context.send_publish(subject, publish).await.map_err(told)?.await.map(drop).map_err(told)?;
        self.tell_of(queue);
        Ok(())
    }

    /// Tells those who wait that there is something to take: once for all that is pushed meanwhile.
    fn tell_of(&self, queue: &str) {
        if !self.telling.lock().insert(queue.to_owned()) {
            return;
        }
        let (client, telling, queue) = (self.client.clone(), self.telling.clone(), queue.to_owned());
        let subject = format!("{}.hints.{}", self.options.prefix, hint(&queue));
        tokio::spawn(async move {
            tokio::time::sleep(TELL).await;
            telling.lock().remove(&queue);
            super::told::say(&client, subject, bytes::Bytes::new()).await;
        });
    }

    pub(in crate::jobs) async fn pull(
        &self,
        queue: &str,
        most: usize,
        held: &HashSet<String>,
        mut hints: broadcast::Receiver<String>,
    ) -> Result<BoxStream<'static, Result<Delivery>>> {
        let until = Instant::now() + PULL;
        loop {
            let ready = self.ready().await?;
            let Some(of) = ready.queues.get(queue) else { return Err(unknown(queue)) };
            let fresh = of.turns.lock().looked.is_some_and(|looked| looked.elapsed() < LOOK);
            if !fresh {
                of.look().await.map_err(|error| self.lost(error))?;
            }
            let mut taken = Vec::new();
            let mut tried = HashSet::new();
            while taken.len() < most {
                let (next, flows) = {
                    let mut turns = of.turns.lock();
                    let flows = turns.flows.iter().filter(|flow| !held.contains(*flow)).count();
                    (turns.next(held, &tried), flows)
                };
                let Some(flow) = next else { break };
                let part = (most - taken.len()).div_ceil(flows.saturating_sub(tried.len()).max(1));
                let messages = of.take(&flow, part).await.map_err(|error| self.lost(error))?;
                taken.extend(messages.into_iter().map(|message| Self::delivery(&flow, message)));
                tried.insert(flow);
            }
            if !taken.is_empty() || Instant::now() >= until {
                return Ok(stream::iter(taken.into_iter().map(Ok)).boxed());
            }
            // a hint that is lost, or a task that is to be tried again: looked for after a while
            let pause = until.min(Instant::now() + PULL / 2);
            let _ = tokio::time::timeout_at(pause, hints.recv()).await;
            of.turns.lock().looked = None;
        }
    }

    fn delivery(flow: &str, message: jetstream::Message) -> Delivery {
        let deliveries = message.info().map_or(1, |info| u64::try_from(info.delivered).unwrap_or(1));
        let trace = message.headers.as_ref().and_then(|headers| headers.get(TRACE));
        let trace = trace.map(|trace| trace.as_str().to_owned()).unwrap_or_default();
        let told = Message { id: String::new(), flow: flow.to_owned(), trace, body: message.payload.clone() };
        Delivery { message: told, deliveries, hand: super::super::Hand::Nats(Box::new(Hand(message))) }
    }

    pub(in crate::jobs) async fn waiting(&self, queue: &str) -> Result<u64> {
        let ready = self.ready().await?;
        let Some(of) = ready.queues.get(queue) else { return Ok(0) };
        self.look_for_room().await;
        Ok(of.stream.get_info().await.map_err(|error| self.lost(error))?.state.messages)
    }
}

fn unknown(queue: &str) -> Error {
    Error::Setup(format!("there is no queue '{queue}'"))
}

pub(in crate::jobs) struct Hand(jetstream::Message);

impl Hand {
    /// Heard by NATS when it returns: what was thought done and was not would be done twice.
    pub(in crate::jobs) async fn done(self) -> Result<()> {
        tokio::time::timeout(ANSWER, self.0.double_ack()).await.map_err(unavailable)?.map_err(unavailable)
    }

    pub(in crate::jobs) async fn in_progress(&self) -> Result<()> {
        self.0.ack_with(AckKind::Progress).await.map_err(unavailable)
    }

    pub(in crate::jobs) async fn back(self, after: Duration) -> Result<()> {
        self.0.ack_with(AckKind::Nak(Some(after))).await.map_err(unavailable)
    }

    /// As a message of its own, since NATS counts deliveries and not failures.
    pub(in crate::jobs) async fn untried(self, message: &Message) -> Result<()> {
        let mut publish = PublishMessage::build().payload(message.body.clone());
        if !message.trace.is_empty() {
            publish = publish.header(TRACE, message.trace.as_str());
        }
        let again = async {
            let sent = self.0.context.send_publish(self.0.subject.to_string(), publish).await?;
            sent.await
        };
        match again.await {
            // should this not be heard, the task is there twice, and its result once
            Ok(_) => self.done().await,
            Err(_) => self.back(Duration::from_secs(1)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(flows: &[&str]) -> HashSet<String> {
        flows.iter().map(|&flow| flow.to_owned()).collect()
    }

    #[test]
    fn flows_take_turns_and_new_ones_come_first() {
        let mut turns = Turns::default();
        turns.update(set(&["a", "b"]));
        let none = HashSet::new();
        let mut next = |held: &HashSet<String>| turns.next(held, &none).unwrap();
        let first = next(&none);
        assert_ne!(next(&none), first);
        assert_eq!(next(&none), first);
        assert_eq!((next(&set(&["a"])), next(&set(&["a"]))), ("b".to_owned(), "b".to_owned()));
        turns.update(set(&["a", "b", "c"]));
        assert_eq!(turns.next(&none, &none).unwrap(), "c");
        turns.update(set(&["a"]));
        assert_eq!(turns.next(&none, &set(&["a"])), None);
    }

    #[test]
    fn words_of_no_room_are_known() {
        assert!(room::is_short("publish failed: error code: 10023, insufficient resources"));
        assert!(room::is_short("insufficient storage resources available"));
        assert!(!room::is_short("maximum messages exceeded"));
    }
}
