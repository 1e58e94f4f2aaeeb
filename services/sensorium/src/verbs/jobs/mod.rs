//! `sensorium jobs`: many items at once, and what became of them.

mod dead;
mod sources;
mod submit;
mod table;
mod watch;

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use sensorium_proto::v1::jobs_client::JobsClient;
use sensorium_proto::v1::{CancelJobRequest, GetJobRequest, ItemResult, Job, ListJobsRequest, job};
use serde::Serialize;

use super::connect::{Channel, Connection, MAX_ANSWER, Server, With, quick};
use super::failure::Failure;
use super::infer::report::Report;
use super::output::{self, Output, Sink, clean};

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
    /// Submits folders, JSONL files or a single item as one job, and watches it. The job is printed as soon as it is
    /// accepted, and again when it is over; as JSON, a line each.
    Submit(Box<submit::SubmitArgs>),
    /// Watches a job until it is over, at another server when the one that tells of it is lost.
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
        /// How to print; as text, a line for each item and how it ended.
        #[arg(short, long, value_enum, default_value = "json")]
        output: Output,
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
    Ok(client_on(server.connect().await?))
}

fn client_on(channel: Channel) -> Client {
    JobsClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

/// Runs the verb.
///
/// # Errors
/// If it could not be done, or a job that was waited for did not succeed.
pub async fn run(args: JobsArgs) -> Result<(), Failure> {
    match args.verb {
        Verb::Submit(args) => submit::run(*args).await,
        Verb::Watch { id, with } => {
            let job = watch::until_over(&mut with.server.open().await?, &id).await?;
            let told = match with.output {
                Output::Json => output::json(&Told::of(&job)),
                Output::Text => output::line(table::summary(&job)),
            };
            end(&job, 0).and(told)
        }
        Verb::Results { id, to, server, output } => {
            let mut connection = server.open().await?;
            let mut sink = to.map_or_else(|| Ok(Sink::stdout()), |path| Sink::file(&path))?;
            write_results(&mut connection, &id, &mut sink, output).await
        }
        Verb::List { state, limit, with } => {
            let state = state.map_or(0, Into::into);
            let request = ListJobsRequest { page_size: limit, state, ..ListJobsRequest::default() };
            let jobs = client(&with.server).await?.list_jobs(quick(request)).await?.into_inner().jobs;
            print(&jobs, with.output)
        }
        Verb::Cancel { id, with } => {
            let job = client(&with.server).await?.cancel_job(quick(CancelJobRequest { id })).await?.into_inner();
            print(&[job], with.output)
        }
        Verb::Dead(verb) => dead::run(verb).await,
    }
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
            output::json(&told)
        }
        Output::Text => output::line(table::of(jobs)),
    }
}

/// A job that is over is done if every item is, those included that could not be sent: `skipped` of them.
fn end(job: &Job, skipped: usize) -> Result<(), Failure> {
    let mut wrong = Vec::new();
    if job.state() == job::State::Cancelled {
        wrong.push(format!("job {} was cancelled", job.id));
    }
    if job.failed > 0 {
        let told = format!("`sensorium jobs results {}` says why", job.id);
        wrong.push(format!("{} of {} items failed, {told}", job.failed, job.total));
    }
    if skipped > 0 {
        wrong.push(format!("{skipped} could not be submitted"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(Failure::Items(wrong.join("; "))) }
}

/// A bar of items on stderr; nothing is drawn where that is no terminal.
fn bar(what: &'static str, length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:10} {bar:32} {pos}/{len} {prefix} {per_sec} {eta}");
    let bar = ProgressBar::new(length).with_message(what);
    if let Ok(style) = style { bar.with_style(style) } else { bar }
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

impl Line {
    fn of(item: ItemResult) -> Self {
        Self { index: item.index, name: item.name, error: item.error, result: item.result.map(Report::from) }
    }

    fn text(&self) -> String {
        let how = if self.error.is_empty() { "ok".to_owned() } else { format!("failed: {}", self.error) };
        clean(&format!("{} {}: {how}", self.index, self.name))
    }
}

/// Page by page, each from whoever answers.
async fn write_results(
    connection: &mut Connection<'_>,
    id: &str,
    sink: &mut Sink,
    output: Output,
) -> Result<(), Failure> {
    let mut first_item = 0;
    loop {
        let request = GetJobRequest { id: id.to_owned(), first_item, max_items: PAGE };
        let page = match client_on(connection.channel()).get_job(quick(request)).await {
            Ok(page) => page.into_inner(),
            Err(status) => {
                connection.recover(status.into()).await?;
                continue;
            }
        };
        connection.heard();
        for line in page.items.into_iter().map(Line::of) {
            match output {
                Output::Json => sink.json(&line)?,
                Output::Text => sink.text(&(line.text() + "\n"))?,
            }
        }
        sink.flush()?;
        first_item += u64::from(PAGE);
        if page.job.is_none_or(|job| first_item >= job.total) {
            return Ok(());
        }
    }
}
