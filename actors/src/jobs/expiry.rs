//! What is over is forgotten, a while after its end. Nothing else ever is: what waits and what is in work stay, however
//! long they take.
//!
//! One gateway at a time does it, the one that holds the record `tidy`. It also sees jobs end at whose end nobody looked.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::grave::Grave;
use super::record::{self, Record};
use super::{Jobs, READ_AHEAD};
use crate::error::{Error, Result};

/// How often it is looked for what is over; more often where retention is short.
const LONGEST_TURN: Duration = Duration::from_secs(60);
const SHORTEST_TURN: Duration = Duration::from_secs(1);
/// An upload that never came to its end is kept for so long at least.
const UPLOAD: Duration = Duration::from_secs(3600);
/// Dead letters that are read at once.
const PAGE: usize = 256;
/// The record of who does it.
const TIDY: &str = "tidy";

#[derive(Serialize, Deserialize)]
struct Tidy {
    who: String,
    /// Milliseconds since 1970.
    until: u64,
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Never returns.
pub(super) async fn forget_what_is_over(jobs: Jobs, who: String) {
    let turn = (jobs.retention / 4).clamp(SHORTEST_TURN, LONGEST_TURN);
    let mut expiries = HashMap::new();
    loop {
        let tidied = async {
            if jobs.is_mine_to_tidy(&who, turn).await? {
                jobs.tidy(&mut expiries).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = tidied.await {
            tracing::debug!(%error, "jobs that are over could not be forgotten, trying on");
        }
        tokio::time::sleep(turn).await;
    }
}

impl Jobs {
    /// Whether this gateway is the one that does it for the next turns.
    async fn is_mine_to_tidy(&self, who: &str, turn: Duration) -> Result<bool> {
        let now = record::now();
        let mine = record::to_json(&Tidy { who: who.to_owned(), until: now + milliseconds(turn * 3) })?;
        let Some(found) = self.store.get(TIDY).await? else { return Ok(self.store.create(TIDY, mine).await?) };
        // one that cannot be read is nobody's
        let held = record::from_json::<Tidy>(&found.value).is_ok_and(|tidy| tidy.who != who && tidy.until > now);
        Ok(!held && self.store.update(TIDY, mine, found.revision).await?)
    }

    /// Forgets all jobs whose time has come. `expiries` is when that is of those that were over, from turn to turn.
    async fn tidy(&self, expiries: &mut HashMap<String, u64>) -> Result<()> {
        let now = record::now();
        let keys: HashSet<String> = self.store.keys("job").await?.into_iter().collect();
        expiries.retain(|key, _| keys.contains(key));
        let due = keys.into_iter().filter(|key| expiries.get(key).is_none_or(|expiry| *expiry <= now));
        let looked = futures::stream::iter(due.collect::<Vec<_>>()).map(async |key| self.look_at(key).await);
        let looked: Vec<(String, Option<(Record, u64)>)> = looked.buffer_unordered(READ_AHEAD).try_collect().await?;
        let mut over = Vec::new();
        for (key, job) in looked {
            match job {
                Some((record, expiry)) if expiry <= now => over.push(record),
                Some((record, expiry)) if record.finished.is_some() => {
                    expiries.insert(key, expiry);
                }
                _ => {}
            }
        }
        if over.is_empty() {
            return Ok(());
        }
        self.forget(&over).await
    }

    /// A job, and when it is to be forgotten, if that is known; it ends by being looked at, if it has.
    async fn look_at(&self, key: String) -> Result<(String, Option<(Record, u64)>)> {
        let Some(found) = self.store.get(&key).await? else { return Ok((key, None)) };
        let record: Record = match record::from_json(&found.value) {
            Ok(record) => record,
            Err(error) => {
                tracing::debug!(key, %error, "a job of another build is left alone");
                return Ok((key, None));
            }
        };
        if record.total.is_none() {
            let expiry = record.submitted + milliseconds(self.retention.max(UPLOAD));
            return Ok((key, Some((record, expiry))));
        }
        let record = self.look((record, found.revision)).await?.record;
        let expiry = record.finished.map(|finished| finished + milliseconds(self.retention));
        Ok((key, expiry.map(|expiry| (record, expiry))))
    }

    /// Forgets jobs and everything of theirs; the job itself last, so that what breaks off is begun again.
    async fn forget(&self, over: &[Record]) -> Result<()> {
        let ids: HashSet<&str> = over.iter().map(|record| record.id.as_str()).collect();
        // every submission of a job, accepted or not, is called by it
        let is_over = |run: &str| run.split_once('-').is_some_and(|(id, _)| ids.contains(id));
        let works = self.store.keys("work").await?;
        let runs: Vec<&str> =
            works.iter().filter_map(|key| key.strip_prefix("work.")).filter(|run| is_over(run)).collect();
        for run in &runs {
            for kind in ["part", "item", "fail"] {
                self.store.remove_below(&format!("{kind}.{run}")).await?;
            }
            self.store.remove(&record::live(run)).await?;
        }
        let blobs = self.store.blobs().await?;
        for blob in blobs.iter().filter(|blob| record::is_of_run(blob, is_over)) {
            self.store.remove_blob(blob).await?;
        }
        self.forget_letters(&ids).await?;
        for run in &runs {
            self.store.remove(&record::work(run)).await?;
        }
        for record in over {
            self.close(record).await?;
            self.store.remove(&record::key(&record.tenant, &record.id)).await?;
            tracing::info!(job = record.id, "a job that is over is forgotten");
        }
        Ok(())
    }

    /// Takes the letters of these jobs away, and those that nobody can read and that are older than jobs may be.
    async fn forget_letters(&self, ids: &HashSet<&str>) -> Result<()> {
        let (mut from, oldest) = (0, record::now().saturating_sub(milliseconds(self.retention)));
        loop {
            let page = self.dead(from, PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            from = last + 1;
            for (place, grave) in &page {
                let is_over = match grave {
                    Grave::Letter(letter) => ids.contains(letter.task.id.as_str()),
                    Grave::Unreadable(unreadable) => unreadable.buried < oldest,
                };
                if is_over {
                    self.store.unbury(*place).await?;
                }
            }
        }
    }
}
