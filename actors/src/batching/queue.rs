//! The order in which rows go to the device: pure logic, no clock of its own, no channel.
//!
//! A batch forms around an *anchor*, the oldest row of the highest priority that has any. Rows that fit beside it join
//! in order of their difference in length, while padding, tokens and size stay within their limits: length buckets
//! that move with the traffic instead of standing at fixed borders. The anchor always goes, so no row starves.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::manifest::{Batching, TimeoutAction};

/// What the queue needs to know of a row, or of rows that stay together.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Rows.
    pub rows: usize,
    /// Length in tokens of each row; 0 where rows have none.
    pub length: usize,
    /// Only rows of equal kind share a batch: their fixed dimensions are the same.
    pub kind: u64,
    /// From 1, the highest, to the model's lowest.
    pub priority: u32,
    /// When it came.
    pub enqueued: Instant,
    /// When nobody waits any more.
    pub deadline: Option<Instant>,
    /// When the queue gives it up, or delays it.
    pub timeout: Option<Instant>,
    /// It failed in company; it goes alone.
    pub alone: bool,
}

/// What to do now.
#[derive(Debug)]
pub enum Next<T> {
    /// Execute these.
    Batch(Vec<(Meta, T)>),
    /// Nothing yet; ask again then.
    Wait(Instant),
    /// Nothing waits.
    Empty,
}

/// Rows that left the queue without being executed.
#[derive(Debug)]
pub struct Swept<T> {
    /// Their deadline or timeout has passed.
    pub expired: Vec<(Meta, T)>,
    /// Nobody waits for them any more.
    pub abandoned: usize,
}

/// Rows waiting for one model version.
#[derive(Debug)]
pub struct Queue<T> {
    limits: Batching,
    /// One lane per priority, and one behind them for rows that were delayed.
    lanes: Vec<VecDeque<(Meta, T)>>,
    rows: usize,
}

impl<T> Queue<T> {
    /// An empty queue.
    pub fn new(limits: Batching) -> Self {
        let lanes = (0..=limits.priority_levels).map(|_| VecDeque::new()).collect();
        Self { limits, lanes, rows: 0 }
    }

    /// Rows that wait.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a row; gives it back if the queue is full.
    pub fn push(&mut self, meta: Meta, item: T) -> Result<(), T> {
        if self.rows + meta.rows > self.limits.max_queue_size {
            return Err(item);
        }
        self.rows += meta.rows;
        let lane = self.lane(&meta);
        self.lanes[lane].push_back((meta, item));
        Ok(())
    }

    /// Puts a row that has already been accepted back to the front.
    pub fn push_front(&mut self, meta: Meta, item: T) {
        self.rows += meta.rows;
        let lane = self.lane(&meta);
        self.lanes[lane].push_front((meta, item));
    }

    fn lane(&self, meta: &Meta) -> usize {
        (meta.priority.clamp(1, self.limits.priority_levels) - 1) as usize
    }

    /// Takes out what must not be executed any more.
    pub fn sweep(&mut self, now: Instant, abandoned: impl Fn(&T) -> bool) -> Swept<T> {
        let mut swept = Swept { expired: Vec::new(), abandoned: 0 };
        let last = self.lanes.len() - 1;
        for lane in 0..=last {
            for _ in 0..self.lanes[lane].len() {
                let Some((mut meta, item)) = self.lanes[lane].pop_front() else { break };
                let late = meta.timeout.is_some_and(|at| at <= now);
                if abandoned(&item) {
                    self.rows -= meta.rows;
                    swept.abandoned += 1;
                } else if meta.deadline.is_some_and(|at| at <= now)
                    || (late && self.limits.timeout_action == TimeoutAction::Reject)
                {
                    self.rows -= meta.rows;
                    swept.expired.push((meta, item));
                } else if late {
                    meta.timeout = None;
                    self.lanes[last].push_back((meta, item));
                } else {
                    self.lanes[lane].push_back((meta, item));
                }
            }
        }
        swept
    }

    /// When the next row times out.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.lanes.iter().flatten().filter_map(|(meta, _)| meta.timeout).min()
    }

    /// Forms a batch of at most `room` rows, if it is time.
    pub fn next(&mut self, now: Instant, room: usize) -> Next<T> {
        let Some(lane) = self.lanes.iter().position(|lane| !lane.is_empty()) else { return Next::Empty };
        let anchor = self.lanes[lane][0].0;
        let (chosen, rows) = self.choose(lane, room.min(self.limits.max_batch_size));
        let delay = Duration::from_micros(self.limits.max_queue_delay_us);
        let due = anchor.enqueued + delay;
        let ready = rows >= self.limits.max_batch_size
            || anchor.alone
            || chosen.len() < self.len() // a limit closed the batch, not a lack of rows
            || self.limits.preferred_batch_size.contains(&rows)
            || delay.is_zero()
            || now >= due;
        if !ready {
            return Next::Wait(due);
        }
        Next::Batch(self.take(chosen))
    }

    /// Whether the row that is next failed in company and goes alone.
    pub fn next_is_alone(&self) -> bool {
        self.lanes.iter().find_map(VecDeque::front).is_some_and(|(meta, _)| meta.alone)
    }

    fn len(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    /// Positions (lane, index) of the rows that go together, and how many rows they are.
    fn choose(&self, lane: usize, size: usize) -> (Vec<(usize, usize)>, usize) {
        let anchor = &self.lanes[lane][0].0;
        let mut chosen = vec![(lane, 0)];
        let mut rows = anchor.rows;
        if anchor.alone {
            return (chosen, rows);
        }
        let others = self
            .lanes
            .iter()
            .enumerate()
            .skip(lane)
            .flat_map(|(lane, items)| items.iter().enumerate().map(move |(index, (meta, _))| (lane, index, meta)));
        let mut others: Vec<_> =
            others.filter(|&(l, i, meta)| (l, i) != (lane, 0) && meta.kind == anchor.kind && !meta.alone).collect();
        if anchor.length > 0 {
            // stable: among equal differences the older row comes first
            others.sort_by_key(|(_, _, meta)| meta.length.abs_diff(anchor.length));
        }
        let mut fill = Fill::of(anchor);
        for (lane, index, meta) in others {
            if rows >= size {
                break;
            }
            let wider = fill.with(meta);
            if rows + meta.rows <= size && wider.fits(&self.limits) {
                fill = wider;
                rows += meta.rows;
                chosen.push((lane, index));
            } else if anchor.length == 0 {
                break; // rows without length keep their order
            }
        }
        (chosen, rows)
    }

    fn take(&mut self, mut chosen: Vec<(usize, usize)>) -> Vec<(Meta, T)> {
        // a lane's rows before the first chosen one stay where they are; the rest is rebuilt once
        chosen.sort_unstable();
        let mut taken = Vec::with_capacity(chosen.len());
        let mut at = 0;
        while at < chosen.len() {
            let lane = chosen[at].0;
            let end = at + chosen[at..].iter().take_while(|(l, _)| *l == lane).count();
            let prefix = chosen[at..end].iter().enumerate().all(|(n, &(_, index))| n == index);
            if prefix {
                taken.extend(self.lanes[lane].drain(..end - at));
            } else {
                let mut wanted = chosen[at..end].iter().map(|&(_, index)| index).peekable();
                let old = std::mem::take(&mut self.lanes[lane]);
                for (index, item) in old.into_iter().enumerate() {
                    if wanted.next_if_eq(&index).is_some() {
                        taken.push(item);
                    } else {
                        self.lanes[lane].push_back(item);
                    }
                }
            }
            at = end;
        }
        self.rows -= taken.iter().map(|(meta, _)| meta.rows).sum::<usize>();
        taken
    }
}

/// How full a batch of rows with lengths is.
#[derive(Clone, Copy)]
struct Fill {
    rows: usize,
    longest: usize,
    useful: usize,
}

impl Fill {
    fn of(meta: &Meta) -> Self {
        Self { rows: meta.rows, longest: meta.length, useful: meta.rows * meta.length }
    }

    fn with(self, meta: &Meta) -> Self {
        Self {
            rows: self.rows + meta.rows,
            longest: self.longest.max(meta.length),
            useful: self.useful + meta.rows * meta.length,
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn fits(self, limits: &Batching) -> bool {
        let padded = self.rows * self.longest;
        if padded == 0 {
            return true;
        }
        let padding = (padded - self.useful) as f64 / padded as f64;
        padding <= limits.max_padding && (limits.max_batch_tokens == 0 || padded <= limits.max_batch_tokens)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meta(length: usize) -> Meta {
        Meta {
            rows: 1,
            length,
            kind: 0,
            priority: 2,
            enqueued: Instant::now(),
            deadline: None,
            timeout: None,
            alone: false,
        }
    }

    fn queue(change: impl FnOnce(&mut Batching)) -> Queue<usize> {
        let mut limits = Batching { max_batch_size: 8, ..Batching::default() };
        change(&mut limits);
        Queue::new(limits)
    }

    fn lengths(next: Next<usize>) -> Vec<usize> {
        match next {
            Next::Batch(batch) => batch.iter().map(|(meta, _)| meta.length).collect(),
            other => panic!("expected a batch, got {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn similar_lengths_go_together_and_the_oldest_always_goes() {
        let mut queue = queue(|_| ());
        for length in [100, 8, 95, 9, 110, 200] {
            queue.push(meta(length), length).unwrap();
        }
        let mut first = lengths(queue.next(Instant::now(), usize::MAX));
        first.sort_unstable();
        assert_eq!(first, [95, 100, 110]);
        assert_eq!(lengths(queue.next(Instant::now(), usize::MAX)), [8, 9]);
        assert_eq!(lengths(queue.next(Instant::now(), usize::MAX)), [200]);
        assert!(matches!(queue.next(Instant::now(), usize::MAX), Next::Empty));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_waits_for_company_but_not_longer_than_the_delay() {
        let mut queue = queue(|limits| {
            limits.max_queue_delay_us = 1000;
            limits.preferred_batch_size = vec![3];
        });
        queue.push(meta(0), 1).unwrap();
        let Next::Wait(due) = queue.next(Instant::now(), usize::MAX) else { panic!("should wait") };
        assert_eq!(due - Instant::now(), Duration::from_millis(1));
        queue.push(meta(0), 2).unwrap();
        queue.push(meta(0), 3).unwrap();
        assert_eq!(lengths(queue.next(Instant::now(), usize::MAX)).len(), 3, "3 is preferred");
        queue.push(meta(0), 4).unwrap();
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(lengths(queue.next(Instant::now(), usize::MAX)).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn priorities_kinds_and_solitude_are_kept() {
        let mut queue = queue(|_| ());
        queue.push(Meta { priority: 3, ..meta(1) }, 0).unwrap();
        queue.push(Meta { priority: 1, ..meta(2) }, 1).unwrap();
        queue.push(Meta { kind: 7, ..meta(3) }, 2).unwrap();
        queue.push_front(Meta { alone: true, priority: 1, ..meta(4) }, 3);
        assert_eq!(lengths(queue.next(Instant::now(), usize::MAX)), [4]);
        assert_eq!(lengths(queue.next(Instant::now(), usize::MAX)), [2]);
        assert_eq!(lengths(queue.next(Instant::now(), usize::MAX)), [3]);
        assert_eq!(lengths(queue.next(Instant::now(), usize::MAX)), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_dead_are_swept_and_the_late_rejected_or_delayed() {
        let now = Instant::now();
        let late = Meta { timeout: Some(now + Duration::from_millis(5)), ..meta(1) };
        let mut rejecting = queue(|_| ());
        rejecting.push(late, 0).unwrap();
        rejecting.push(Meta { deadline: Some(now + Duration::from_millis(9)), ..meta(2) }, 1).unwrap();
        rejecting.push(meta(3), 2).unwrap();
        assert_eq!(rejecting.next_timeout(), Some(now + Duration::from_millis(5)));
        tokio::time::advance(Duration::from_millis(10)).await;
        let swept = rejecting.sweep(Instant::now(), |&item| item == 2);
        assert_eq!((swept.expired.len(), swept.abandoned, rejecting.rows()), (2, 1, 0));

        let mut delaying = queue(|limits| limits.timeout_action = TimeoutAction::Delay);
        delaying.push(late, 0).unwrap();
        delaying.push(Meta { priority: 3, ..meta(50) }, 1).unwrap();
        assert!(delaying.sweep(Instant::now(), |_| false).expired.is_empty());
        assert_eq!(lengths(delaying.next(Instant::now(), usize::MAX)), [50], "the late row went behind");
    }

    #[test]
    fn a_full_queue_gives_back() {
        let mut queue = queue(|limits| limits.max_queue_size = 2);
        queue.push(meta(1), 1).unwrap();
        queue.push(meta(1), 2).unwrap();
        assert_eq!(queue.push(meta(1), 3), Err(3));
    }

    proptest! {
        /// Whatever comes, every row leaves exactly once and no batch breaks a limit.
        #[test]
        fn nothing_is_lost_doubled_or_overfull(lengths in prop::collection::vec((8usize..256, 1u32..4, 0u64..2), 1..200)) {
            let mut queue = queue(|limits| { limits.max_batch_tokens = 1024; });
            for (index, &(length, priority, kind)) in lengths.iter().enumerate() {
                queue.push(Meta { priority, kind, ..meta(length) }, index).unwrap();
            }
            let mut seen = vec![false; lengths.len()];
            while let Next::Batch(batch) = queue.next(Instant::now(), usize::MAX) {
                let longest = batch.iter().map(|(meta, _)| meta.length).max().unwrap();
                let useful: usize = batch.iter().map(|(meta, _)| meta.length).sum();
                let padded = longest * batch.len();
                prop_assert!(batch.len() <= 8);
                prop_assert!(batch.len() == 1 || padded <= 1024);
                prop_assert!((padded - useful) as f64 <= 0.15 * padded as f64);
                prop_assert!(batch.iter().all(|(meta, _)| meta.kind == batch[0].0.kind));
                for (_, index) in batch {
                    prop_assert!(!std::mem::replace(&mut seen[index], true));
                }
            }
            prop_assert!(seen.into_iter().all(|seen| seen));
            prop_assert_eq!(queue.rows(), 0);
        }
    }
}
