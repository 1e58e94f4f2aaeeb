//! What a job is, in the forms in which it is kept and sent.
//!
//! Keys of records: `job.<tenant>.<job>`, `open.<tenant>.<job>.<bytes>` for as long as it is not over, `work.<run>` for
//! what is to be done, `live.<run>` for when its upload was last heard of, `part.<run>.<item>.<modality>` for what one sense said of an item,
//! `item.<run>.<item>` for all of it, `fail.<run>.<item>` beside it if it failed. How far a job is, is nowhere written
//! down: it is how many items there are. Each submission is a run of its own, and the first to be complete becomes the
//! job: what came of an earlier one that broke off, perhaps with other items, is never taken for its own.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::manifest::Modality;
use crate::request::Parameters;
use crate::understand::Input;
use crate::understand::report::{Branch, Emphasis, Report};

/// What is to be done with each item, and what may be asked for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Models that it may ask; nothing: all.
    pub models: Option<Vec<String>>,
    /// How much each modality counts; a muted one is never computed.
    pub emphasis: BTreeMap<Modality, Emphasis>,
    /// What to answer; empty: as in an understanding.
    pub question: String,
    /// No answer is wanted.
    pub no_answer: bool,
    /// Sampling of the answer.
    pub sampling: Parameters,
}

/// A job as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// 32 hexadecimal digits.
    pub id: String,
    /// For people.
    pub label: String,
    /// On whose behalf.
    pub tenant: String,
    /// Milliseconds since 1970.
    pub submitted: u64,
    /// Items; nothing until all of them are in, and the job is accepted.
    pub total: Option<u64>,
    /// The submission that was accepted; empty until then.
    pub run: String,
    /// Of all that was submitted: an idempotency key stands for one job.
    pub fingerprint: String,
    /// Somebody wants no more of it.
    pub cancelled: bool,
    /// Milliseconds since 1970; nothing until it was seen to be over.
    pub finished: Option<u64>,
    /// Items that were done when it was: what came of them may expire before the job does.
    #[serde(default)]
    pub done: u64,
    /// Items that had failed then.
    #[serde(default)]
    pub failed: u64,
    /// Bytes that were submitted.
    #[serde(default)]
    pub bytes: u64,
    /// Submissions that were taken for broken off: they are accepted no more.
    #[serde(default)]
    pub broken: Vec<String>,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Items are still to be done.
    Running,
    /// All are done.
    Succeeded,
    /// All are done, and some of them failed.
    Partial,
    /// All failed.
    Failed,
    /// It was cancelled before all were done.
    Cancelled,
}

impl State {
    /// Whether nothing happens any more.
    pub fn is_over(self) -> bool {
        self != Self::Running
    }
}

/// A job as it is at the moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// What it is.
    pub record: Record,
    /// Items that are done, failed ones included.
    pub done: u64,
    /// Items that failed.
    pub failed: u64,
}

impl Snapshot {
    /// Items.
    pub fn total(&self) -> u64 {
        self.record.total.unwrap_or(0)
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        let over = self.record.total.is_some_and(|total| self.done >= total);
        match (over, self.failed) {
            (false, _) if self.record.cancelled => State::Cancelled,
            (false, _) => State::Running,
            (true, 0) => State::Succeeded,
            (true, failed) if failed >= self.total() => State::Failed,
            (true, _) => State::Partial,
        }
    }
}

/// One thing to understand.
#[derive(Clone, Debug, Default)]
pub struct Item {
    /// For people, such as a file's name.
    pub name: String,
    /// UTF-8 text.
    pub text: Option<String>,
    /// An encoded image.
    pub image: Option<Bytes>,
    /// An encoded clip.
    pub audio: Option<Bytes>,
}

impl Item {
    /// What it holds, by modality.
    pub fn contents(&self) -> Vec<(Modality, Bytes)> {
        let text = self.text.as_ref().map(|text| Bytes::copy_from_slice(text.as_bytes()));
        let contents = [text, self.image.clone(), self.audio.clone()];
        Modality::ALL.into_iter().zip(contents).filter_map(|(modality, content)| Some((modality, content?))).collect()
    }
}

/// What came of an item.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Its place in the job.
    pub index: u64,
    /// As it was submitted.
    pub name: String,
    /// What was understood; nothing if it was given up.
    pub report: Option<Report>,
    /// Why it failed; empty if it did not.
    pub error: String,
}

/// Something that is kept where it is small, and by reference where it is large.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Content {
    /// Here.
    Inline(Bytes),
    /// A blob of this name.
    Blob(String),
}

/// A message of a work queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The job's key.
    pub job: String,
    /// The job.
    pub id: String,
    /// The submission that it came with.
    pub run: String,
    /// The item's place in the job.
    pub item: u64,
    /// The item's name.
    pub name: String,
    /// 0, or a number of its own for each replay from the dead letters: messages of two replays are not the same message.
    pub attempt: u32,
    /// Modalities of the item that are computed.
    pub modalities: Vec<Modality>,
    /// What is to be done.
    pub step: Step,
}

/// What is to be done with an item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// One sense speaks.
    Sense(Modality, Content),
    /// All have spoken: what do they say together?
    Join,
}

impl Task {
    /// Its queue: that of its modality; joining is done where words are written.
    pub fn queue(&self) -> &'static str {
        match self.step {
            Step::Sense(modality, _) => modality.as_str(),
            Step::Join => Modality::Text.as_str(),
        }
    }

    /// Equal for the same step of the same item.
    pub fn message_id(&self) -> String {
        let step = match self.step {
            Step::Sense(modality, _) => modality.as_str(),
            Step::Join => "join",
        };
        format!("{}.{}.{step}.{}", self.run, self.item, self.attempt)
    }

    pub(super) fn work(&self) -> String {
        work(&self.run)
    }

    pub(super) fn part(&self, modality: Modality) -> String {
        format!("part.{}.{}.{modality}", self.run, self.item)
    }

    /// Where what a sense said lies if it is large.
    pub(super) fn said(&self, modality: Modality) -> String {
        format!("{}.{}", self.part(modality), self.attempt)
    }

    /// Who it takes turns with others as: its tenant.
    pub(super) fn flow(&self) -> String {
        self.job.split('.').nth(1).unwrap_or_default().to_owned()
    }

    pub(super) fn parts(&self) -> String {
        format!("part.{}.{}", self.run, self.item)
    }

    pub(super) fn outcome(&self) -> String {
        format!("item.{}.{}", self.run, self.item)
    }

    pub(super) fn failure(&self) -> String {
        format!("fail.{}.{}", self.run, self.item)
    }

    pub(super) fn encode(&self) -> Result<Bytes> {
        encode(self)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        decode(bytes)
    }
}

/// The key of a job.
pub(super) fn key(tenant: &str, id: &str) -> String {
    format!("{}.{id}", tenant_key(tenant))
}

/// What keys of a tenant's jobs begin with. Tenants may be called anything, keys may not.
pub(super) fn tenant_key(tenant: &str) -> String {
    format!("job.{}", &blake3::hash(tenant.as_bytes()).to_hex()[..16])
}

/// The key of what is to be done.
pub(super) fn work(run: &str) -> String {
    format!("work.{run}")
}

/// The key of when an upload was last heard of.
pub(super) fn live(run: &str) -> String {
    format!("live.{run}")
}

/// What keys of jobs that are not over begin with; the bytes that they were submitted with come last.
pub(super) fn open(tenant: &str) -> String {
    tenant_key(tenant).replacen("job.", "open.", 1)
}

/// Whether a blob belongs to a submission.
pub(super) fn is_of_run(blob: &str, is_run: impl Fn(&str) -> bool) -> bool {
    blob.split('.').take(2).any(is_run)
}

/// The blob of an item's content.
pub(super) fn content(task: &Task, modality: Modality) -> String {
    format!("{}.{}.{modality}", task.run, task.item)
}

/// The compact form of messages.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Bytes> {
    postcard::to_stdvec(value)
        .map(Bytes::from)
        .map_err(|error| Error::Internal(format!("cannot write a task: {error}")))
}

pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    postcard::from_bytes(bytes).map_err(|error| unreadable("a task", &error))
}

/// The form of records, which people may read.
pub(super) fn to_json<T: Serialize>(value: &T) -> Result<Bytes> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|error| Error::Internal(format!("cannot write a record: {error}")))
}

pub(super) fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| unreadable("a record", &error))
}

/// It will be no more readable another time; perhaps to another build.
fn unreadable(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::FailedPrecondition { reason: UNREADABLE, message: format!("cannot read {what}: {error}") }
}

/// The reason of what cannot be read.
pub(super) const UNREADABLE: &str = "JOBS_UNREADABLE";

pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// When milliseconds since 1970 are.
pub fn time(milliseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(milliseconds)
}

impl Work {
    pub(super) fn mutes(&self, modality: Modality) -> bool {
        self.emphasis.get(&modality).is_some_and(|emphasis| emphasis.mute)
    }

    /// What an understanding is asked, of which one sense is given.
    pub(super) fn input(&self, modality: Modality, content: Bytes) -> Result<Input> {
        let mut input = self.question_of(&[]);
        match modality {
            Modality::Text => {
                let text = String::from_utf8(content.to_vec());
                input.text = Some(text.map_err(|error| Error::invalid("text", format!("not UTF-8: {error}")))?);
            }
            Modality::Image => input.image = Some(content),
            Modality::Audio => input.audio = Some(content),
        }
        Ok(input)
    }

    /// What an understanding is asked, once the senses have spoken.
    pub(super) fn question_of(&self, branches: &[Branch]) -> Input {
        let text = branches.iter().find(|branch| branch.modality == Modality::Text).map(|branch| branch.words.clone());
        Input {
            text,
            emphasis: self.emphasis.clone(),
            question: self.question.clone(),
            no_answer: self.no_answer,
            sampling: self.sampling.clone(),
            ..Input::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(total: Option<u64>, cancelled: bool) -> Record {
        Record {
            id: "1".into(),
            label: String::new(),
            tenant: "acme".into(),
            submitted: 0,
            total,
            run: String::new(),
            fingerprint: String::new(),
            cancelled,
            finished: None,
            done: 0,
            failed: 0,
            bytes: 0,
            broken: Vec::new(),
        }
    }

    #[test]
    fn the_state_follows_from_what_is_done() {
        let state =
            |total, cancelled, done, failed| Snapshot { record: record(total, cancelled), done, failed }.state();
        assert_eq!(state(Some(3), false, 2, 0), State::Running);
        assert_eq!(state(Some(3), true, 2, 0), State::Cancelled);
        assert_eq!(state(Some(3), true, 3, 0), State::Succeeded, "too late to be cancelled");
        assert_eq!(state(Some(3), false, 3, 1), State::Partial);
        assert_eq!(state(Some(3), false, 3, 3), State::Failed);
    }

    #[test]
    fn tenants_do_not_share_keys_whatever_they_are_called() {
        assert_ne!(key("a.b", "1"), key("a", "b.1"));
        assert!(key("*.>", "1").bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.'));
    }

    proptest! {
        #[test]
        fn what_is_no_task_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Task::decode(&bytes);
        }

        #[test]
        fn tasks_come_back(item in any::<u64>(), name in ".*", body in proptest::collection::vec(any::<u8>(), 0..50)) {
            let step = Step::Sense(Modality::Image, Content::Inline(body.into()));
            let modalities = vec![Modality::Text, Modality::Image];
            let task = Task { job: "job.x.1".into(), id: "1".into(), run: "1-0".into(), item, name, attempt: 2, modalities, step };
            prop_assert_eq!(Task::decode(&task.encode().unwrap()).unwrap(), task);
        }
    }
}
