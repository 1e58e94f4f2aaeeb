//! Its queues: what waits lies in the file, in the order of its places; who waits in which place is known in memory.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use redb::{ReadableTable, WriteTransaction};

use super::super::{Delivery, Error, Message, Result};
use super::{Disk, FLOWS, Fault, IDS, MESSAGES, PLACES, account, is_known, now};

/// How long a pull waits for a message.
const PULL: Duration = Duration::from_secs(1);

/// Messages of a queue that are in nobody's hands, by flow.
#[derive(Default)]
pub(super) struct Waiting {
    places: HashMap<String, VecDeque<u64>>,
    /// Flows that have some, the next one first.
    turns: VecDeque<String>,
    /// Messages of each flow, those in somebody's hands included.
    held: HashMap<String, u64>,
    /// All places of these.
    known: HashSet<u64>,
}

impl Waiting {
    /// One more message is in the file; false if it is known already.
    pub(super) fn came(&mut self, flow: &str, place: u64) -> bool {
        let new = self.known.insert(place);
        if new {
            *self.held.entry(flow.to_owned()).or_default() += 1;
        }
        new
    }

    fn went(&mut self, flow: &str, place: u64) {
        if !self.known.remove(&place) {
            return;
        }
        if let Some(held) = self.held.get_mut(flow) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                self.held.remove(flow);
            }
        }
    }

    pub(super) fn put(&mut self, flow: &str, place: u64) {
        let places = self.places.entry(flow.to_owned()).or_default();
        if places.is_empty() {
            self.turns.push_back(flow.to_owned());
        }
        places.push_back(place);
    }

    /// The next message of the flow whose turn it is.
    fn next(&mut self, held: &HashSet<String>) -> Option<(String, u64)> {
        let at = self.turns.iter().position(|flow| !held.contains(flow))?;
        let flow = self.turns.remove(at)?;
        let places = self.places.get_mut(&flow)?;
        let place = places.pop_front()?;
        if places.is_empty() {
            self.places.remove(&flow);
        } else {
            self.turns.push_back(flow.clone());
        }
        Some((flow, place))
    }
}

/// What came of a push.
enum Pushed {
    At(u64),
    Known,
    Full(u64),
}

impl Disk {
    pub(in crate::jobs) async fn push(&self, queue: &str, message: Message) -> Result<()> {
        let _turn = self.turn().await;
        let (disk, name) = (self.clone(), queue.to_owned());
        // what is in the file is known to wait before anybody can give up waiting for this
        let pushed = tokio::task::spawn_blocking(move || {
            let flow = message.flow.clone();
            let pushed = disk.file.change(|change| disk.insert(change, &name, &message))?;
            if let Pushed::At(place) = pushed {
                let mut queues = disk.queues.lock();
                let waiting = queues.entry(name.clone()).or_default();
                if waiting.came(&flow, place) {
                    waiting.put(&flow, place);
                }
                drop(queues);
                disk.pushed.notify_waiters();
            }
            Ok(pushed)
        });
        match pushed.await.map_err(|error| Error::Unavailable(error.to_string()))?? {
            Pushed::At(_) | Pushed::Known => Ok(()),
            Pushed::Full(most) => Err(Error::full(queue, most)),
        }
    }

    fn insert(&self, change: &WriteTransaction, queue: &str, message: &Message) -> std::result::Result<Pushed, Fault> {
        let mut ids = change.open_table(IDS)?;
        if is_known(&ids, &message.id)? {
            return Ok(Pushed::Known);
        }
        let of_flow = self.queues.lock().get(queue).and_then(|waiting| waiting.held.get(&message.flow).copied());
        if of_flow.is_some_and(|held| held >= self.bounds.queued_per_flow) {
            return Ok(Pushed::Full(self.bounds.queued_per_flow));
        }
        let most = self.bounds.queued;
        let mut messages = change.open_table(MESSAGES)?;
        let all = || messages.range((queue, 0)..=(queue, u64::MAX));
        let first = all()?.next().transpose()?.map_or(u64::MAX, |(place, _)| place.value().1);
        let mut places = change.open_table(PLACES)?;
        let given = places.get(queue)?.map_or(0, |last| last.value());
        let waits = all()?.next_back().transpose()?.map_or(0, |(place, _)| place.value().1);
        let place = given.max(waits) + 1;
        // there are gaps between the first and the last: they are counted only if it matters
        if place.saturating_sub(first) >= most && all()?.count() as u64 >= most {
            return Ok(Pushed::Full(most));
        }
        let Message { id, flow, trace, body } = message;
        ids.insert(id.as_str(), now())?;
        places.insert(queue, place)?;
        messages.insert((queue, place), (now(), 0, id.as_str(), trace.as_str(), &body[..]))?;
        change.open_table(FLOWS)?.insert((queue, place), flow.as_str())?;
        account(change, body.len(), 0)?;
        Ok(Pushed::At(place))
    }

    fn wait(&self, queue: &str, flow: &str, place: u64) {
        self.queues.lock().entry(queue.to_owned()).or_default().put(flow, place);
        self.pushed.notify_waiters();
    }

    fn next(&self, queue: &str, held: &HashSet<String>) -> Option<Hand> {
        let (flow, place) = self.queues.lock().get_mut(queue)?.next(held)?;
        Some(Hand { disk: self.clone(), queue: queue.to_owned(), flow, place, settled: false })
    }

    pub(in crate::jobs) async fn pull(
        &self,
        queue: &str,
        most: usize,
        held: &HashSet<String>,
    ) -> Result<BoxStream<'static, Result<Delivery>>> {
        let until = tokio::time::Instant::now() + PULL;
        // hands from the beginning: dropped half way, they are put back
        let mut hands = Vec::new();
        loop {
            let mut pushed = std::pin::pin!(self.pushed.notified());
            pushed.as_mut().enable();
            while hands.len() < most
                && let Some(hand) = self.next(queue, held)
            {
                hands.push(hand);
            }
            if !hands.is_empty() || tokio::time::timeout_at(until, pushed).await.is_err() {
                break;
            }
        }
        let mut deliveries = Vec::with_capacity(hands.len());
        for hand in hands {
            deliveries.extend(hand.deliver().await.transpose());
        }
        Ok(futures::stream::iter(deliveries).boxed())
    }

    pub(in crate::jobs) async fn waiting(&self, queue: &str) -> Result<u64> {
        let name = queue.to_owned();
        self.read(move |read| {
            let messages = read.open_table(MESSAGES)?;
            Ok(messages.range((name.as_str(), 0)..=(name.as_str(), u64::MAX))?.count() as u64)
        })
        .await
    }
}

/// A message in somebody's hands.
pub(in crate::jobs) struct Hand {
    disk: Disk,
    queue: String,
    flow: String,
    place: u64,
    settled: bool,
}

impl Hand {
    async fn deliver(mut self) -> Result<Option<Delivery>> {
        let (name, flow, place) = (self.queue.clone(), self.flow.clone(), self.place);
        let noted = self.disk.change(move |change| {
            let mut messages = change.open_table(MESSAGES)?;
            let found = messages.get((name.as_str(), place))?.map(|found| {
                let (born, deliveries, id, trace, body) = found.value();
                (born, deliveries + 1, id.to_owned(), trace.to_owned(), Bytes::copy_from_slice(body))
            });
            // one that was done after all
            let Some((born, deliveries, id, trace, body)) = found else { return Ok(None) };
            // a message that brings the process down is counted before it does
            messages.insert((name.as_str(), place), (born, deliveries, id.as_str(), trace.as_str(), &body[..]))?;
            Ok(Some((deliveries, Message { id, flow, trace, body })))
        });
        let Some((deliveries, message)) = noted.await? else {
            self.settled = true;
            return Ok(None);
        };
        Ok(Some(Delivery { message, deliveries, hand: super::super::Hand::Disk(self) }))
    }

    pub(in crate::jobs) async fn done(mut self) -> Result<()> {
        let (disk, queue, flow, place) = (self.disk.clone(), self.queue.clone(), self.flow.clone(), self.place);
        let removed = tokio::task::spawn_blocking(move || {
            let gone = disk.file.change(|change| {
                let mut messages = change.open_table(MESSAGES)?;
                let gone = messages.remove((queue.as_str(), place))?.map(|gone| gone.value().4.len());
                change.open_table(FLOWS)?.remove((queue.as_str(), place))?;
                account(change, 0, gone.unwrap_or(0))?;
                Ok(gone)
            })?;
            if gone.is_some()
                && let Some(waiting) = disk.queues.lock().get_mut(&queue)
            {
                waiting.went(&flow, place);
            }
            Ok(())
        });
        removed.await.map_err(|error| Error::Unavailable(error.to_string()))??;
        self.settled = true;
        Ok(())
    }

    pub(in crate::jobs) async fn untried(self) -> Result<()> {
        let (queue, place) = (self.queue.clone(), self.place);
        let uncount = move |change: &WriteTransaction| {
            let mut messages = change.open_table(MESSAGES)?;
            let found = messages.get((queue.as_str(), place))?.map(|found| {
                let (born, deliveries, id, trace, body) = found.value();
                (born, deliveries.saturating_sub(1), id.to_owned(), trace.to_owned(), body.to_vec())
            });
            if let Some((born, deliveries, id, trace, body)) = found {
                let kept = (born, deliveries, id.as_str(), trace.as_str(), &body[..]);
                messages.insert((queue.as_str(), place), kept)?;
            }
            Ok(())
        };
        // put back by being dropped
        self.disk.change(uncount).await
    }

    #[allow(clippy::unnecessary_wraps, reason = "as the other hand has it")]
    pub(in crate::jobs) fn back(self, after: Duration) -> Result<()> {
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            drop(self);
        });
        Ok(())
    }
}

impl Drop for Hand {
    /// Whoever had it has gone without a word.
    fn drop(&mut self) {
        if !self.settled {
            self.disk.wait(&self.queue, &self.flow, self.place);
        }
    }
}
