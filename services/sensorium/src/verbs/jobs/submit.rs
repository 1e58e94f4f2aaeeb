//! `sensorium jobs submit`: folders, JSONL files or a single item as one job.

use std::collections::HashSet;
use std::path::PathBuf;

use futures::{StreamExt, stream};
use prost::Message as _;
use sensorium_proto::v1::submit_job_request::Message;
use sensorium_proto::v1::{Job, JobHeader, Sampling, SubmitJobRequest};
use serde_json::json;
use tokio::sync::mpsc;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::super::connect::{Connection, With};
use super::super::draw::bold;
use super::super::failure::Failure;
use super::super::output::{self, Output, Sink, clean, complain, complain_json};
use super::sources::{self, Skipped, Source};
use super::{Told, bar, client_on, end, table, watch, write_results};
use crate::verbs::infer::Emphasised;

/// Items that are read ahead of their being sent.
const AHEAD: usize = 4;
/// Items that the server may refuse, one after the other, before the rest is given up as well: after each, all others
/// are sent once more.
const REFUSALS: usize = 50;

/// Arguments of `sensorium jobs submit`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct SubmitArgs {
    /// Folders, whose files of equal name make one item, and JSONL files of `{"name", "text", "image", "audio"}`.
    #[arg(value_name = "FOLDER|FILE", required_unless_present_any = ["text", "image", "audio"])]
    inputs: Vec<PathBuf>,
    /// A sentence; with --image and --audio, one item.
    #[arg(long)]
    text: Option<String>,
    /// A picture.
    #[arg(long)]
    image: Option<PathBuf>,
    /// A clip.
    #[arg(long)]
    audio: Option<PathBuf>,
    /// Submits nothing if there is an item that cannot be read, or that the server refuses. Left out: such items are
    /// named and skipped, and the exit code is 4.
    #[arg(long)]
    strict: bool,
    /// Equal keys are one job, however often it is submitted.
    #[arg(long, value_name = "KEY", default_value = "")]
    idempotency_key: String,
    /// For people.
    #[arg(long, default_value = "")]
    label: String,
    /// What to answer for each item. Left out: its text, or what is going on.
    #[arg(long, default_value = "")]
    question: String,
    /// Without written answers.
    #[arg(long)]
    no_answer: bool,
    /// Tokens of an answer at most. Left out: the server's default.
    #[arg(long)]
    max_tokens: Option<u32>,
    #[command(flatten)]
    emphasis: Emphasised,
    /// Returns when the job is accepted, and does not wait for it.
    #[arg(long)]
    detach: bool,
    /// Where to write the results, as JSONL.
    #[arg(long, value_name = "FILE", conflicts_with = "detach")]
    results: Option<PathBuf>,
    #[command(flatten)]
    with: With,
}

/// Runs the verb.
pub(super) async fn run(args: SubmitArgs) -> Result<(), Failure> {
    let (mut items, mut skipped) = (Vec::new(), Vec::new());
    for input in &args.inputs {
        let found = sources::of(input)?;
        items.extend(found.items);
        skipped.extend(found.skipped);
    }
    if args.text.is_some() || args.image.is_some() || args.audio.is_some() {
        let (text, image, audio) = (args.text.clone(), args.image.clone(), args.audio.clone());
        items.push(Source { name: "item".to_owned(), text, text_file: None, image, audio });
    }
    // before hours of work, not after
    let mut results = args.results.as_deref().map(Sink::file).transpose()?;
    let mut sending = Sending { items, skipped, left_out: HashSet::new(), args: &args };
    sending.may_skip()?;
    let mut connection = args.with.server.open().await?;
    let job = sending.accepted(&mut connection).await?;
    let skipped = sending.skipped.len();

    // whoever waits for hours knows at once what for
    let told = match args.with.output {
        Output::Json => output::json_line(&Told::of(&job)),
        Output::Text if args.detach => output::line(clean(&job.id)),
        Output::Text => output::line(format!("{} is accepted: {} items", bold(&job.id), job.total)),
    };
    // who cannot be told the id here is told it there, and a reader of the id alone wants the job nevertheless
    let told = told.map_err(|failure| failure.beside(&format!("job {} is accepted", job.id)));
    if args.detach {
        let all = if skipped == 0 { Ok(()) } else { Err(Failure::Items(format!("{skipped} could not be submitted"))) };
        return all.and(told);
    }
    told.or_else(Failure::unless_closed)?;
    let job = watch::until_over(&mut connection, &job.id).await?;
    if let Some(results) = &mut results {
        write_results(&mut connection, &job.id, results, Output::Json).await?;
    }
    let told = match args.with.output {
        Output::Json => output::json_line(&Told::of(&job)),
        Output::Text => output::line(table::summary(&job)),
    };
    end(&job, skipped).and(told)
}

/// A job on its way to the server.
struct Sending<'a> {
    items: Vec<Source>,
    /// What cannot be part of it, and why.
    skipped: Vec<Skipped>,
    /// Which of the items those are.
    left_out: HashSet<usize>,
    args: &'a SubmitArgs,
}

/// An item that went out: its place among all, and the bytes of its message.
struct Sent {
    item: usize,
    bytes: usize,
}

impl Sending<'_> {
    /// Names what is skipped; that is a mistake if nothing may be, or nothing is left.
    fn may_skip(&self) -> Result<(), Failure> {
        self.skipped.iter().try_for_each(|skipped| self.may_skip_this(skipped))?;
        self.something_is_left()
    }

    fn may_skip_this(&self, Skipped { name, reason }: &Skipped) -> Result<(), Failure> {
        if self.args.strict {
            return Err(Failure::Usage(format!("{name}: {reason}")));
        }
        match self.args.with.output {
            Output::Json => complain_json(&json!({ "code": "ITEM_SKIPPED", "message": reason, "field": name })),
            Output::Text => complain(clean(&format!("skipped {name}: {reason}"))),
        }
        Ok(())
    }

    fn something_is_left(&self) -> Result<(), Failure> {
        if self.left_out.len() < self.items.len() {
            return Ok(());
        }
        Err(Failure::Usage("nothing to submit: no item can be read and is taken by the server".to_owned()))
    }

    fn skip(&mut self, item: usize, reason: String) -> Result<(), Failure> {
        let skipped = Skipped { name: self.items[item].name.clone(), reason };
        self.may_skip_this(&skipped)?;
        self.skipped.push(skipped);
        self.left_out.insert(item);
        self.something_is_left()
    }

    /// The job, when the server has all of it. What the server refuses is left out; a server that is lost meanwhile is
    /// replaced by another one, which makes the same job of it, as its key is the same.
    async fn accepted(&mut self, connection: &mut Connection<'_>) -> Result<Job, Failure> {
        let header = self.header();
        let mut refusals = 0;
        loop {
            let mut sent = Vec::new();
            let failure = match self.send(connection, &header, &mut sent).await {
                Ok(job) => {
                    connection.heard();
                    return Ok(job);
                }
                Err(failure) => failure,
            };
            match failure {
                Failure::Status(status) => match refused(&status, &sent) {
                    Some(item) if refusals < REFUSALS => {
                        refusals += 1;
                        self.skip(item, status.message().to_owned())?;
                    }
                    _ => connection.recover(status.into()).await?,
                },
                other => return Err(other),
            }
        }
    }

    fn header(&self) -> JobHeader {
        let args = self.args;
        let sampling = Sampling { max_tokens: args.max_tokens.unwrap_or(0), ..Sampling::default() };
        let own_key = || uuid::Uuid::now_v7().to_string();
        JobHeader {
            idempotency_key: if args.idempotency_key.is_empty() { own_key() } else { args.idempotency_key.clone() },
            label: args.label.clone(),
            emphasis: args.emphasis.entries(),
            question: args.question.clone(),
            no_answer: args.no_answer,
            sampling: Some(sampling),
        }
    }

    /// Sends all that is not left out, once.
    async fn send(
        &mut self,
        connection: &Connection<'_>,
        header: &JobHeader,
        sent: &mut Vec<Sent>,
    ) -> Result<Job, Failure> {
        let bar = bar("sending", (self.items.len() - self.left_out.len()) as u64);
        let mut client = client_on(connection.channel());
        let (sender, receiver) = mpsc::channel(AHEAD);
        let message = |message| SubmitJobRequest { message: Some(message) };
        // whatever ends the feed drops the call first: the stream must not look as if it were at its end
        let open = sender.clone();
        let feed = async {
            for item in 0..self.items.len() {
                if self.left_out.contains(&item) {
                    continue;
                }
                let read = match self.items[item].clone().read().await {
                    Ok(read) => message(Message::Item(read)),
                    Err(reason) => {
                        self.skip(item, reason)?;
                        continue;
                    }
                };
                sent.push(Sent { item, bytes: read.encoded_len() });
                if sender.send(read).await.is_err() {
                    break; // the server has said why it wants no more
                }
                bar.inc(1);
            }
            Ok::<_, Failure>(())
        };
        let first = stream::iter([message(Message::Header(header.clone()))]);
        let rest = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
        let mut call = std::pin::pin!(client.submit_job(first.chain(rest)));
        let fed = tokio::select! {
            job = &mut call => return Ok(job?.into_inner()),
            fed = feed => fed,
        };
        fed?;
        drop((open, sender));
        let job = call.await?.into_inner();
        bar.finish_and_clear();
        Ok(job)
    }
}

/// Which item a server refuses, if it is one. It names an item by its place among those that it was sent; a message that
/// is too large was read by nobody, and is the largest.
fn refused(status: &Status, sent: &[Sent]) -> Option<usize> {
    if status.code() != Code::InvalidArgument {
        return None;
    }
    let details = status.get_error_details();
    let field = &details.bad_request()?.field_violations.first()?.field;
    if field == "message" {
        return sent.iter().max_by_key(|sent| sent.bytes).map(|sent| sent.item);
    }
    let (place, _) = field.strip_prefix("items[")?.split_once(']')?;
    sent.get(place.parse::<usize>().ok()?).map(|sent| sent.item)
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn refused_items_are_found() {
        let sent = [(3, 10), (5, 30), (6, 20)].map(|(item, bytes)| Sent { item, bytes });
        let of = |code: Code, field: &str| {
            let details = ErrorDetails::with_bad_request_violation(field, "wrong");
            refused(&Status::with_error_details(code, "wrong", details), &sent)
        };
        assert_eq!(of(Code::InvalidArgument, "items[2].parts[0]"), Some(6));
        assert_eq!(of(Code::InvalidArgument, "items[0]"), Some(3));
        assert_eq!(of(Code::InvalidArgument, "message"), Some(5));
        for (code, field) in [
            (Code::InvalidArgument, "items[9]"),
            (Code::InvalidArgument, "items"),
            (Code::InvalidArgument, "label"),
            (Code::ResourceExhausted, "items[0]"),
        ] {
            assert_eq!(of(code, field), None, "{code} {field}");
        }
    }
}
