//! `sensorium.v1.Jobs`: many items, each understood when there is time for it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use sensorium_actors::error::{Error, Result};
use sensorium_actors::jobs::Jobs as Handle;
use sensorium_actors::jobs::grave::Grave;
use sensorium_actors::jobs::record::{self, Item, Outcome, Snapshot, State, Work};
use sensorium_actors::jobs::submit::Header;
use sensorium_actors::request::{Context, Parameters};
use sensorium_plane::operator::Act;
use sensorium_plane::status::{from_error, from_transport};
use sensorium_plane::trace_text;
use sensorium_proto::v1::jobs_server::Jobs;
use sensorium_proto::v1::submit_job_request::Message;
use sensorium_proto::v1::*;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use super::convert;
use crate::auth::require_admin;
use crate::context::context;
use crate::server::Door;
use crate::trace::{Method, Timed, request_span};

/// Entries of a page when the request does not say, and at most.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;
/// An upload of which nothing comes for so long is over.
const IDLE: Duration = Duration::from_secs(600);

/// See the module.
pub struct JobsService {
    door: Arc<Door>,
}

type Answer<T> = std::result::Result<Response<T>, Status>;

impl JobsService {
    /// The service behind `door`.
    pub fn new(door: Arc<Door>) -> Self {
        Self { door }
    }

    fn jobs(&self) -> Result<&Handle> {
        self.door.jobs.as_ref().ok_or_else(|| Error::FailedPrecondition {
            reason: "JOBS_OFF",
            message: "this gateway was started without NATS, which keeps jobs (--nats)".to_owned(),
        })
    }

    async fn submit(
        &self,
        mut messages: Streaming<SubmitJobRequest>,
        context: &Context,
    ) -> std::result::Result<Job, Status> {
        let told = |error: Error| from_error(&error);
        let first = messages.message().await.map_err(from_transport)?;
        let Some(Message::Header(header)) = first.and_then(|first| first.message) else {
            return Err(told(Error::invalid("message", "no header, expected it before all items")));
        };
        let span = context.span.clone().unwrap_or_else(tracing::Span::none);
        let header = submitted(header, trace_text(&span)).map_err(told)?;
        let mut submission = {
            // counted with the tenant's requests; what follows is waited for by a drain, and takes nobody's place
            let _permit = self.door.router.admission().enter(context).map_err(told)?;
            self.jobs().map_err(told)?.begin(header, context).await.map_err(told)?
        };
        let mut index = 0;
        let mut next = async || {
            let silent = |_| Error::DeadlineExceeded { stage: "waiting for the next item of the job".to_owned() };
            tokio::time::timeout(IDLE, messages.message())
                .await
                .map_err(|late| told(silent(late)))?
                .map_err(from_transport)
        };
        // a stream that breaks is no end: the job is not accepted
        while let Some(message) = next().await? {
            let field = format!("items[{index}]");
            let Some(Message::Item(item)) = message.message else {
                return Err(told(Error::invalid(field, "not an item, expected one in every message but the first")));
            };
            submission.add(received(item, &field).map_err(told)?).await.map_err(told)?;
            index += 1;
        }
        Ok(job(submission.finish().await.map_err(told)?))
    }
}

/// A page's size, within its limits.
fn page(size: u32) -> Result<usize> {
    match size {
        0 => Ok(PAGE as usize),
        1..=MAX_PAGE => Ok(size as usize),
        more => Err(Error::invalid("page_size", format!("{more}, expected {MAX_PAGE} at most"))),
    }
}

fn submitted(header: JobHeader, trace: String) -> Result<Header> {
    let JobHeader { idempotency_key, label, emphasis, question, no_answer, sampling } = header;
    let request = UnderstandRequest { parts: Vec::new(), emphasis, question, no_answer, sampling };
    let input = convert::input(request)?;
    let work = Work {
        emphasis: input.emphasis,
        question: input.question,
        no_answer: input.no_answer,
        sampling: input.sampling,
        ..Work::default()
    };
    Ok(Header { key: idempotency_key, label, work, trace })
}

fn received(item: JobItem, field: &str) -> Result<Item> {
    let request = UnderstandRequest { parts: item.parts, ..UnderstandRequest::default() };
    let input = convert::input(request).map_err(|error| match error {
        Error::InvalidArgument { field: inner, message } => Error::invalid(format!("{field}.{inner}"), message),
        other => other,
    })?;
    Ok(Item { name: item.name, text: input.text, image: input.image, audio: input.audio })
}

fn job(snapshot: Snapshot) -> Job {
    let state = match snapshot.state() {
        State::Running => job::State::Running,
        State::Succeeded => job::State::Succeeded,
        State::Partial => job::State::Partial,
        State::Failed => job::State::Failed,
        State::Cancelled => job::State::Cancelled,
    };
    let (total, time) = (snapshot.total(), |milliseconds| prost_types::Timestamp::from(record::time(milliseconds)));
    Job {
        id: snapshot.record.id,
        label: snapshot.record.label,
        state: state.into(),
        total,
        done: snapshot.done,
        failed: snapshot.failed,
        submitted: Some(time(snapshot.record.submitted)),
        finished: snapshot.record.finished.map(time),
    }
}

fn outcome(outcome: Outcome) -> ItemResult {
    ItemResult {
        index: outcome.index,
        name: outcome.name,
        result: outcome.report.map(convert::result),
        error: outcome.error,
    }
}

fn asked(value: i32) -> Result<Option<State>> {
    match job::State::try_from(value) {
        Ok(job::State::Unspecified) => Ok(None),
        Ok(job::State::Running) => Ok(Some(State::Running)),
        Ok(job::State::Succeeded) => Ok(Some(State::Succeeded)),
        Ok(job::State::Partial) => Ok(Some(State::Partial)),
        Ok(job::State::Failed) => Ok(Some(State::Failed)),
        Ok(job::State::Cancelled) => Ok(Some(State::Cancelled)),
        Err(_) => Err(Error::invalid("state", format!("{value}, expected one of Job.State"))),
    }
}

fn caller<T>(request: &Request<T>) -> std::result::Result<Context, Status> {
    context(request.metadata(), request.extensions(), &Parameters::default())
}

#[tonic::async_trait]
impl Jobs for JobsService {
    async fn submit_job(&self, request: Request<Streaming<SubmitJobRequest>>) -> Answer<Job> {
        let _timed = Timed::start(Method::SubmitJob);
        let span = request_span("SubmitJob", "", request.metadata());
        let context = span.in_scope(|| caller(&request))?;
        // a drain waits for it: nobody else has an upload's first half
        let _until_accepted = self.door.router.admission().linger().map_err(|error| from_error(&error))?;
        self.submit(request.into_inner(), &context).instrument(span).await.map(Response::new)
    }

    type WatchJobStream = Pin<Box<dyn Stream<Item = std::result::Result<Job, Status>> + Send>>;

    async fn watch_job(&self, request: Request<WatchJobRequest>) -> Answer<Self::WatchJobStream> {
        let tenant = caller(&request)?.tenant;
        let jobs = self.jobs().map_err(|error| from_error(&error))?;
        let snapshots = jobs.watch(tenant, request.into_inner().id);
        let told = snapshots.map(|snapshot| snapshot.map(job).map_err(|error| from_error(&error)));
        // a gateway that leaves says so: another one knows the job as well
        let (admission, refusing) = (self.door.router.admission().clone(), self.door.router.admission().clone());
        let told = told.take_until(async move { admission.draining().await });
        let end = stream::once(async move { refusing.must_not_drain().err() });
        let end = end.filter_map(|error| async move { Some(Err(from_error(&error?))) });
        Ok(Response::new(Box::pin(told.chain(end))))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Answer<GetJobResponse> {
        let tenant = caller(&request)?.tenant;
        let GetJobRequest { id, first_item, max_items } = request.into_inner();
        let told = async {
            let jobs = self.jobs()?;
            let snapshot = jobs.get(&tenant, &id).await?;
            let most = if max_items == 0 { 0 } else { page(max_items)? as u64 };
            let items = jobs.outcomes(&snapshot, first_item, most).await?;
            Ok(GetJobResponse { job: Some(job(snapshot)), items: items.into_iter().map(outcome).collect() })
        };
        told.await.map(Response::new).map_err(|error| from_error(&error))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Answer<Job> {
        let tenant = caller(&request)?.tenant;
        let told = async { self.jobs()?.cancel(&tenant, &request.get_ref().id).await };
        told.await.map(|snapshot| Response::new(job(snapshot))).map_err(|error| from_error(&error))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Answer<ListJobsResponse> {
        let tenant = caller(&request)?.tenant;
        let ListJobsRequest { page_size, page_token, state } = request.into_inner();
        let told = async {
            let listed = self.jobs()?.list(&tenant, asked(state)?, page(page_size)?, &page_token).await?;
            Ok(ListJobsResponse { jobs: listed.jobs.into_iter().map(job).collect(), next_page_token: listed.next })
        };
        told.await.map(Response::new).map_err(|error| from_error(&error))
    }

    async fn list_dead_tasks(&self, request: Request<ListDeadTasksRequest>) -> Answer<ListDeadTasksResponse> {
        require_admin(request.extensions())?;
        let ListDeadTasksRequest { page_size, first_sequence } = request.into_inner();
        let told = async {
            let dead = self.jobs()?.dead(first_sequence, page(page_size)?).await?;
            let tasks = dead.into_iter().map(|(sequence, grave)| match grave {
                Grave::Letter(letter) => DeadTask {
                    sequence,
                    queue: letter.task.queue().to_owned(),
                    job_id: letter.task.id,
                    tenant: letter.tenant,
                    item: letter.task.item,
                    item_name: letter.task.name,
                    error: letter.error,
                    deliveries: letter.deliveries,
                    buried: Some(record::time(letter.buried).into()),
                },
                Grave::Unreadable(unreadable) => DeadTask {
                    sequence,
                    queue: unreadable.queue,
                    error: unreadable.error,
                    deliveries: unreadable.deliveries,
                    buried: Some(record::time(unreadable.buried).into()),
                    ..DeadTask::default()
                },
            });
            Ok(ListDeadTasksResponse { tasks: tasks.collect() })
        };
        told.await.map(Response::new).map_err(|error| from_error(&error))
    }

    async fn replay_dead_task(&self, request: Request<ReplayDeadTaskRequest>) -> Answer<ReplayDeadTaskResponse> {
        require_admin(request.extensions())?;
        let act = Act::begin(&request, "replay_dead_task", &request.get_ref().sequence.to_string());
        let told = async { self.jobs()?.replay(request.get_ref().sequence).await };
        let job_id = act.end(told.await.map_err(|error| from_error(&error)))?;
        Ok(Response::new(ReplayDeadTaskResponse { job_id }))
    }
}
