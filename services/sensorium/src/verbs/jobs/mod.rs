//! `sensorium jobs`: many items at once, and what became of them.

mod dead;
mod sources;
mod submit;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use sensorium_proto::v1::jobs_client::JobsClient;
use sensorium_proto::v1::{CancelJobRequest, GetJobRequest, Job, ListJobsRequest, WatchJobRequest, job};
use serde::Serialize;

use super::connect::{self, Channel, Failure, MAX_ANSWER, Output, Server, With};
use super::infer::report::Report;

/// Results that are asked for at a time.
const PAGE: u32 = 100;

/// Arguments of `sensorium jobs`.
#[derive(clap::Args, Clone, Debug)]
pub struct JobsArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Verb {
    /// Submits a folder, a JSONL file or a single item as one job, and watches it.
    Submit(Box<submit::SubmitArgs>),
    /// Watches a job until it is over.
    Watch {
        /// The job.
        id: String,
        #[command(flatten)]
        with: With,
    },
    /// The results of a job, as JSONL.
    Results {
        /// The job.
        id: String,
        /// Where to write them. Left out: stdout.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
        #[command(flatten)]
        server: Server,
    },
    /// Your jobs, the newest first.
    List {
        /// Only jobs that are `running`, `succeeded`, `partial`, `failed` or `cancelled`.
        #[arg(long, value_parser = state)]
        state: Option<job::State>,
        /// So many at most.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        #[command(flatten)]
        with: With,
    },
    /// Wants no more of a job; what is done stays.
    Cancel {
        /// The job.
        id: String,
        #[command(flatten)]
        with: With,
    },
    /// Tasks that failed too often.
    #[command(subcommand)]
    Dead(dead::Verb),
}

type Client = JobsClient<Channel>;

async fn client(server: &Server) -> Result<Client, Failure> {
    Ok(JobsClient::new(server.connect().await?).max_decoding_message_size(MAX_ANSWER))
}

/// Runs the verb.
///
/// # Errors
/// If stdout is gone; what the server says is printed.
pub async fn run(args: JobsArgs) -> anyhow::Result<ExitCode> {
    connect::finish(act(args.verb).await)
}

async fn act(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Submit(args) => submit::run(*args).await,
        Verb::Watch { id, with } => {
            let mut client = client(&with.server).await?;
            let job = watch(&mut client, &id).await?;
            end(&job, with.output)
        }
        Verb::Results { id, to, server } => {
            let mut client = client(&server).await?;
            match to {
                Some(path) => write_results(&mut client, &id, &mut create(&path)?).await,
                None => write_results(&mut client, &id, &mut std::io::stdout().lock()).await,
            }
        }
        Verb::List { state, limit, with } => {
            let state = state.map_or(0, Into::into);
            let request = ListJobsRequest { page_size: limit, state, ..ListJobsRequest::default() };
            let jobs = client(&with.server).await?.list_jobs(request).await?.into_inner().jobs;
            print(&jobs, with.output)
        }
        Verb::Cancel { id, with } => {
            let job = client(&with.server).await?.cancel_job(CancelJobRequest { id }).await?.into_inner();
            print(&[job], with.output)
        }
        Verb::Dead(verb) => dead::run(verb).await,
    }
}

fn create(path: &std::path::Path) -> Result<std::io::BufWriter<std::fs::File>, Failure> {
    let file = std::fs::File::create(path);
    let file = file.map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    Ok(std::io::BufWriter::new(file))
}

fn state(text: &str) -> Result<job::State, String> {
    let known = job::State::from_str_name(&format!("STATE_{}", text.to_uppercase()));
    known
        .filter(|known| *known != job::State::Unspecified)
        .ok_or_else(|| format!("'{text}', expected running, succeeded, partial, failed or cancelled"))
}

/// A job as JSON.
#[derive(Serialize)]
struct Told {
    id: String,
    label: String,
    state: String,
    total: u64,
    done: u64,
    failed: u64,
    submitted: String,
    finished: Option<String>,
}

impl Told {
    fn of(job: &Job) -> Self {
        Self {
            id: job.id.clone(),
            label: job.label.clone(),
            state: table::state(job),
            total: job.total,
            done: job.done,
            failed: job.failed,
            submitted: job.submitted.map(|time| time.to_string()).unwrap_or_default(),
            finished: job.finished.map(|time| time.to_string()),
        }
    }
}

fn print(jobs: &[Job], output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => {
            let told: Vec<Told> = jobs.iter().map(Told::of).collect();
            println!("{}", serde_json::to_string_pretty(&told)?);
        }
        Output::Text => println!("{}", table::of(jobs)),
    }
    Ok(())
}

/// Says how a job has ended; one of which nothing has come is a failure.
fn end(job: &Job, output: Output) -> Result<(), Failure> {
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&Told::of(job))?),
        Output::Text => println!("{}", table::summary(job)),
    }
    match job.state() {
        job::State::Failed => Err(tonic::Status::aborted(format!("all {} items failed", job.total)).into()),
        job::State::Cancelled => Err(tonic::Status::cancelled(format!("job {} was cancelled", job.id)).into()),
        _ => Ok(()),
    }
}

/// A bar of items on stderr; nothing is drawn where that is no terminal.
fn bar(what: &'static str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:10} {bar:32} {pos}/{len} {prefix} {per_sec} {eta}");
    let bar = ProgressBar::new(length).with_message(what);
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}

/// Follows a job to its end, over gateways that go and come.
async fn watch(client: &mut Client, id: &str) -> Result<Job, Failure> {
    let bar = bar("working", 0);
    let mut lost = 0;
    loop {
        let told = async {
            let mut told = client.watch_job(WatchJobRequest { id: id.to_owned() }).await?.into_inner();
            let mut last = None;
            while let Some(job) = told.message().await? {
                bar.set_length(job.total);
                bar.set_position(job.done);
                if job.failed > 0 {
                    bar.set_prefix(format!("({} failed)", job.failed));
                }
                last = Some(job);
            }
            last.ok_or_else(|| tonic::Status::data_loss("the job's end was not told"))
        };
        match told.await {
            Ok(job) => {
                bar.finish_and_clear();
                return Ok(job);
            }
            Err(status) if status.code() == tonic::Code::Unavailable && lost < 60 => {
                lost += 1;
                bar.set_prefix("(connection lost)");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// What came of an item, a line of JSON.
#[derive(Serialize)]
struct Line {
    index: u64,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    result: Option<Report>,
}

async fn write_results(client: &mut Client, id: &str, out: &mut impl std::io::Write) -> Result<(), Failure> {
    let mut first_item = 0;
    loop {
        let request = GetJobRequest { id: id.to_owned(), first_item, max_items: PAGE };
        let page = client.get_job(request).await?.into_inner();
        for item in page.items {
            let line =
                Line { index: item.index, name: item.name, error: item.error, result: item.result.map(Report::from) };
            serde_json::to_writer(&mut *out, &line)?;
            out.write_all(b"\n")?;
        }
        first_item += u64::from(PAGE);
        if page.job.is_none_or(|job| first_item >= job.total) {
            return Ok(out.flush()?);
        }
    }
}
