//! `sensorium jobs submit`: a folder, a JSONL file or a single item as one job.

use std::path::PathBuf;

use futures::stream;
use sensorium_proto::v1::submit_job_request::Message;
use sensorium_proto::v1::{Job, JobHeader, Sampling, SubmitJobRequest};
use tokio::sync::mpsc;

use super::super::connect::{Failure, Output, With};
use super::sources::{self, Source};
use super::{Client, bar, client, create, end, print, watch, write_results};
use crate::verbs::infer::Emphasised;

/// Items that are read ahead of their being sent.
const AHEAD: usize = 4;

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

pub(super) async fn run(args: SubmitArgs) -> Result<(), Failure> {
    let mut items = Vec::new();
    for input in &args.inputs {
        items.extend(sources::of(input)?);
    }
    if args.text.is_some() || args.image.is_some() || args.audio.is_some() {
        let (text, image, audio) = (args.text.clone(), args.image.clone(), args.audio.clone());
        items.push(Source { name: "item".to_owned(), text, text_file: None, image, audio });
    }
    // before hours of work, not after
    let mut results = args.results.as_deref().map(create).transpose()?;
    let mut client = client(&args.with.server).await?;
    let sampling = Sampling { max_tokens: args.max_tokens.unwrap_or(0), ..Sampling::default() };
    let header = JobHeader {
        idempotency_key: args.idempotency_key.clone(),
        label: args.label.clone(),
        emphasis: args.emphasis.entries(),
        question: args.question.clone(),
        no_answer: args.no_answer,
        sampling: Some(sampling),
    };
    let job = send(&mut client, header, items).await?;
    if args.detach {
        return match args.with.output {
            Output::Text => {
                println!("{}", job.id);
                Ok(())
            }
            Output::Json => print(&[job], Output::Json),
        };
    }
    let job = watch(&mut client, &job.id).await?;
    if let Some(results) = &mut results {
        write_results(&mut client, &job.id, results).await?;
    }
    end(&job, args.with.output)
}

async fn send(client: &mut Client, header: JobHeader, items: Vec<Source>) -> Result<Job, Failure> {
    let bar = bar("sending", items.len() as u64);
    let (sender, receiver) = mpsc::channel(AHEAD);
    let message = |message| SubmitJobRequest { message: Some(message) };
    // a file that cannot be read drops the call first: the stream must not look as if it were at its end
    let open = sender.clone();
    let sent = bar.clone();
    let feed = async move {
        for source in items {
            let item = source.read().await?;
            if sender.send(message(Message::Item(item))).await.is_err() {
                break; // the server has said why it wants no more
            }
            sent.inc(1);
        }
        Ok::<_, Failure>(())
    };
    let first = stream::iter([message(Message::Header(header))]);
    let rest = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
    let mut call = std::pin::pin!(client.submit_job(futures::StreamExt::chain(first, rest)));
    let mut feed = std::pin::pin!(feed);
    let fed = tokio::select! {
        job = &mut call => return Ok(job?.into_inner()),
        fed = &mut feed => fed,
    };
    fed?;
    drop(open);
    let job = call.await?.into_inner();
    bar.finish_and_clear();
    Ok(job)
}
