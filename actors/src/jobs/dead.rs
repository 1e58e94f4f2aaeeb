//! The dead letters: what failed too often, and another try for it.

use futures::future::try_join_all;
use sensorium_cluster::jobs::Message;

use super::grave::{Grave, Letter, Unreadable};
use super::record::{self, Content, Record};
use super::{Jobs, run};
use crate::error::{Error, Result};

impl Jobs {
    /// The dead letters from a place on, each with its place.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn dead(&self, from: u64, most: usize) -> Result<Vec<(u64, Grave)>> {
        let dead = self.store.dead(from, most).await?;
        let read = dead.into_iter().filter_map(|dead| match Grave::decode(&dead.body) {
            Ok(grave) => Some((dead.sequence, grave)),
            Err(error) => {
                tracing::error!(sequence = dead.sequence, %error, "a dead letter of another build is left out");
                None
            }
        });
        Ok(read.collect())
    }

    /// Tries a dead letter once more, from where its item failed. The letter is taken away last: replayed by two at once,
    /// or once more after it broke off, it is done twice and seen once. Gives its job; empty if nobody can read which that is.
    ///
    /// # Errors
    /// `NotFound` if there is none at this place; or its job, or what it was given, has expired. `FailedPrecondition` if
    /// its job was cancelled.
    pub async fn replay(&self, sequence: u64) -> Result<String> {
        let found = self.dead(sequence, 1).await?.into_iter().find(|(place, _)| *place == sequence);
        let Some((_, grave)) = found else {
            let what = format!("dead letter {sequence}");
            return Err(Error::NotFound { what, known: "it was replayed, or has expired".to_owned() });
        };
        let letter = match grave {
            Grave::Letter(letter) => letter,
            // somebody of another build may read it
            Grave::Unreadable(Unreadable { queue, flow, trace, body, .. }) => {
                let id = format!("unreadable.{sequence}.{:x}", rand::random::<u64>());
                self.store.push(&queue, Message { id, flow, trace, body }).await?;
                self.store.unbury(sequence).await?;
                return Ok(String::new());
            }
        };
        let task = record::Task { attempt: rand::random_range(1..u32::MAX), ..letter.task.clone() };
        self.given(&letter, &task).await?;
        // an earlier replay has done it
        let outcome = self.outcome(task.outcome()).await?;
        if outcome.is_some_and(|outcome| run::is_whole(&outcome)) {
            self.store.unbury(sequence).await?;
            return Ok(letter.task.id);
        }
        let reopen = async || {
            let (record, revision) = self.record(&letter.tenant, &task.id).await?;
            let record = Record { finished: None, done: 0, failed: 0, ..record };
            Ok::<_, Error>(
                self.store
                    .update(&record::key(&record.tenant, &record.id), record::to_json(&record)?, revision)
                    .await?,
            )
        };
        let mut forgotten = vec![task.outcome(), task.failure()];
        if let record::Step::Sense(modality, _) = task.step {
            forgotten.push(task.part(modality));
        }
        try_join_all(forgotten.iter().map(|key| self.store.remove(key))).await?;
        // after them: whoever counted them before cannot write down what they were
        while !reopen().await? {}
        self.push(&task, "").await?;
        self.store.unbury(sequence).await?;
        self.store.tell(&task.id, "");
        Ok(letter.task.id)
    }

    /// Whether all that a dead letter needs is still there.
    async fn given(&self, letter: &Letter, task: &record::Task) -> Result<()> {
        if self.record(&letter.tenant, &task.id).await?.0.cancelled {
            let message = format!("job '{}' was cancelled, expected one that still wants its items", task.id);
            return Err(Error::FailedPrecondition { reason: "JOB_CANCELLED", message });
        }
        let expired = |what: &str| Error::NotFound {
            what: format!("{what} of item {} of job '{}'", task.item, task.id),
            known: "it has expired".to_owned(),
        };
        self.store.get(&task.work()).await?.ok_or_else(|| expired("what was asked"))?;
        match &task.step {
            record::Step::Sense(_, Content::Blob(name)) => {
                self.store.blob(name).await?.ok_or_else(|| expired("the content"))?;
            }
            record::Step::Sense(..) => {}
            record::Step::Join => {
                let parts = self.store.keys(&task.parts()).await?;
                if parts.len() < task.modalities.len() {
                    return Err(expired("a part"));
                }
            }
        }
        Ok(())
    }
}
