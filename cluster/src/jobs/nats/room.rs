//! Room in NATS: how much is taken, and what is kept for those who have something to write when there is no more.
//!
//! NATS does not say how much its server may store. So jobs have a bound of their own, and beside it a reserve: a stream
//! of nothing, which is thrown away when NATS refuses to store more. What is freed so is for results, which free the
//! places of what they are the results of; nothing is taken in until the reserve is there again.

use std::time::Duration;

use async_nats::jetstream::stream;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::super::{Error, Result};
use super::{Nats, unavailable};

/// What is kept for results when NATS is full.
const RESERVE: u64 = 16 << 20;
/// Bytes of one message of it.
const PIECE: usize = 256 << 10;
/// What is in use is asked for this often at most.
const LOOK: Duration = Duration::from_secs(1);
/// How often the reserve is tried to be made again.
const TRY: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Room(Mutex<State>);

#[derive(Default)]
struct State {
    /// Bytes in use, and when they were asked for.
    used: Option<(Instant, u64)>,
    /// Bytes that were taken in since.
    since: u64,
    short: Option<Short>,
}

/// NATS has refused to store more.
struct Short {
    since: Instant,
    tried: Instant,
    message: String,
}

/// Whether an error of NATS says that there is no room. It has several words for it.
pub(super) fn is_short(error: &str) -> bool {
    ["insufficient", "resource limits exceeded", "maximum bytes exceeded", "no space left"]
        .iter()
        .any(|words| error.contains(words))
}

impl Room {
    pub(super) fn short_since(&self) -> Option<Instant> {
        self.0.lock().short.as_ref().map(|short| short.since)
    }

    pub(super) fn trouble(&self) -> String {
        self.0.lock().short.as_ref().map(|short| short.message.clone()).unwrap_or_default()
    }
}

impl Nats {
    fn reserved(&self) -> String {
        format!("{}_reserve", self.options.prefix)
    }

    /// Fills the reserve up. After NATS had no room, it has to take as much again: what was only just freed is for
    /// results.
    pub(super) async fn reserve(&self, replicas: usize) -> Result<()> {
        let subject = format!("{}.reserve", self.options.prefix);
        let config = stream::Config {
            name: self.reserved(),
            subjects: vec![subject.clone()],
            num_replicas: replicas,
            ..stream::Config::default()
        };
        self.context.create_or_update_stream(config).await.map_err(unavailable)?;
        let stream = self.context.get_stream(self.reserved()).await.map_err(unavailable)?;
        // a part of what the bound says, where that is little
        let wanted = RESERVE.min(self.options.bounds.bytes / 8);
        let mut there = stream.cached_info().state.bytes;
        let piece = Bytes::from(vec![0; PIECE.min(self.largest())]);
        let was_short = self.room.short_since().is_some();
        let proof = if was_short { 2 * wanted } else { wanted };
        while there < proof {
            let sent = self.context.publish(subject.clone(), piece.clone()).await;
            let kept = match sent {
                Ok(kept) => kept.await,
                Err(error) => Err(error),
            };
            match kept {
                Ok(_) => there += piece.len() as u64,
                Err(error) if is_short(&error.to_string()) => {
                    self.ran_out(&error.to_string());
                    return Ok(());
                }
                Err(error) => return Err(unavailable(error)),
            }
        }
        if was_short {
            let keep = wanted.div_ceil(piece.len() as u64);
            stream.purge().keep(keep).await.map_err(unavailable)?;
        }
        self.has_room();
        Ok(())
    }

    fn has_room(&self) {
        if self.room.0.lock().short.take().is_some() {
            tracing::info!("NATS has room again, jobs are taken in");
        }
    }

    /// NATS has refused to store more: the reserve is let go.
    pub(super) fn ran_out(&self, error: &str) -> Error {
        let message = format!("NATS has no room: {error}");
        let first = {
            let (mut state, now) = (self.room.0.lock(), Instant::now());
            let first = state.short.is_none();
            state.short.get_or_insert_with(|| Short { since: now, tried: now, message: message.clone() });
            first
        };
        if first {
            tracing::error!(error, "NATS has no room; no jobs are taken in, results use what was reserved for them");
        }
        let (context, name) = (self.context.clone(), self.reserved());
        tokio::spawn(async move {
            let purged = match context.get_stream_no_info(name).await {
                Ok(stream) => stream.purge().await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = purged {
                tracing::debug!(error, "the reserve in NATS could not be let go");
            }
        });
        Error::NoRoom(message)
    }

    /// See [`Jobs::take_in`](super::super::Jobs::take_in).
    pub(in crate::jobs) async fn take_in(&self, bytes: u64) -> Result<()> {
        let ready = self.ready().await?;
        let try_again = {
            let mut state = self.room.0.lock();
            state.short.as_mut().map(|short| {
                let now = Instant::now();
                let due = now.duration_since(short.tried) >= TRY;
                if due {
                    short.tried = now;
                }
                due
            })
        };
        match try_again {
            None => {}
            Some(true) => self.reserve(self.options.replicas).await?,
            Some(false) => {}
        }
        if self.room.short_since().is_some() {
            return Err(Error::NoRoom(self.room.trouble()));
        }
        let known = {
            let mut state = self.room.0.lock();
            let fresh = state.used.filter(|(when, _)| when.elapsed() < LOOK).map(|(_, used)| used);
            state.since += bytes;
            fresh.map(|used| used + state.since)
        };
        let used = match known {
            Some(used) => used,
            None => {
                let mut used = 0;
                let bucket = format!("KV_{}_jobs", self.options.prefix);
                let records = self.context.get_stream(bucket).await.map_err(|error| self.lost(error))?;
                used += records.cached_info().state.bytes;
                let streams = ready.queues.values().map(|queue| &queue.stream).chain([&ready.dead, &ready.pieces]);
                for stream in streams {
                    used += stream.get_info().await.map_err(|error| self.lost(error))?.state.bytes;
                }
                let mut state = self.room.0.lock();
                (state.used, state.since) = (Some((Instant::now(), used)), bytes);
                used + bytes
            }
        };
        self.options.bounds.take_in(used, 0)
    }

    /// Tries whether there is room again, if there was none. For those who have nothing to put there at the moment.
    pub(in crate::jobs) async fn look_for_room(&self) {
        if self.room.short_since().is_some() {
            // what it found is noted
            let _ = self.take_in(0).await;
        }
    }
}
