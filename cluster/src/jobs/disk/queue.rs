//! Its queues: what waits lies in the file, in the order of its places; who waits in which place is known in memory.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use redb::{ReadableTable, WriteTransaction};

use super::super::{Delivery, Error, Message, Result};
use super::{Disk, IDS, MESSAGES, PLACES, is_known, now};

/// How long a pull waits for a message.
const PULL: Duration = Duration::from_secs(1);

/// Places of messages that are in nobody's hands.
pub(super) type Waiting = VecDeque<u64>;

impl Disk {
    pub(in crate::jobs) async fn push(&self, queue: &str, message: Message) -> Result<()> {
        let (name, most) = (queue.to_owned(), self.max_queued);
        let pushed = self.change(move |change| {
            let mut ids = change.open_table(IDS)?;
            if is_known(&ids, &message.id)? {
                return Ok(Some(None));
            }
            let mut messages = change.open_table(MESSAGES)?;
            let all = || messages.range((name.as_str(), 0)..=(name.as_str(), u64::MAX));
            let first = all()?.next().transpose()?.map_or(u64::MAX, |(place, _)| place.value().1);
            let mut places = change.open_table(PLACES)?;
            let given = places.get(name.as_str())?.map_or(0, |last| last.value());
            let waits = all()?.next_back().transpose()?.map_or(0, |(place, _)| place.value().1);
            let place = given.max(waits) + 1;
            // there are gaps between the first and the last: they are counted only if it matters
            if place.saturating_sub(first) >= most && all()?.count() as u64 >= most {
                return Ok(None);
            }
            ids.insert(message.id.as_str(), now())?;
            places.insert(name.as_str(), place)?;
            let Message { id, trace, body } = &message;
            messages.insert((name.as_str(), place), (now(), 0, id.as_str(), trace.as_str(), &body[..]))?;
            Ok(Some(Some(place)))
        });
        match pushed.await? {
            Some(Some(place)) => self.wait(queue, place),
            Some(None) => {} // it is there already
            None => return Err(Error::full(queue, most)),
        }
        Ok(())
    }

    fn wait(&self, queue: &str, place: u64) {
        self.queues.lock().entry(queue.to_owned()).or_default().push_back(place);
        self.pushed.notify_waiters();
    }

    fn next(&self, queue: &str) -> Option<u64> {
        self.queues.lock().get_mut(queue)?.pop_front()
    }

    pub(in crate::jobs) async fn pull(&self, queue: &str, most: usize) -> Result<BoxStream<'static, Result<Delivery>>> {
        let until = tokio::time::Instant::now() + PULL;
        let mut places = Vec::new();
        loop {
            let pushed = self.pushed.notified();
            while places.len() < most
                && let Some(place) = self.next(queue)
            {
                places.push(place);
            }
            if !places.is_empty() || tokio::time::timeout_at(until, pushed).await.is_err() {
                break;
            }
        }
        let mut deliveries = Vec::with_capacity(places.len());
        for place in places {
            deliveries.extend(self.deliver(queue, place).await.transpose());
        }
        Ok(futures::stream::iter(deliveries).boxed())
    }

    async fn deliver(&self, queue: &str, place: u64) -> Result<Option<Delivery>> {
        let name = queue.to_owned();
        let noted = self.change(move |change| {
            let mut messages = change.open_table(MESSAGES)?;
            let found = messages.get((name.as_str(), place))?.map(|found| {
                let (born, deliveries, id, trace, body) = found.value();
                (born, deliveries + 1, id.to_owned(), trace.to_owned(), Bytes::copy_from_slice(body))
            });
            // one that has expired while it waited
            let Some((born, deliveries, id, trace, body)) = found else { return Ok(None) };
            // a message that brings the process down is counted before it does
            messages.insert((name.as_str(), place), (born, deliveries, id.as_str(), trace.as_str(), &body[..]))?;
            Ok(Some((deliveries, Message { id, trace, body })))
        });
        let mut hand = Hand { disk: self.clone(), queue: queue.to_owned(), place, settled: false };
        let Some((deliveries, message)) = noted.await? else {
            hand.settled = true;
            return Ok(None);
        };
        Ok(Some(Delivery { message, deliveries, hand: super::super::Hand::Disk(hand) }))
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
    place: u64,
    settled: bool,
}

impl Hand {
    pub(in crate::jobs) async fn done(mut self) -> Result<()> {
        let (queue, place) = (self.queue.clone(), self.place);
        let remove = move |change: &WriteTransaction| {
            change.open_table(MESSAGES)?.remove((queue.as_str(), place))?;
            Ok(())
        };
        self.disk.change(remove).await?;
        self.settled = true;
        Ok(())
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
            self.disk.wait(&self.queue, self.place);
        }
    }
}
