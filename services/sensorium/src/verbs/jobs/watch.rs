//! Following a job to its end, over gateways that go and come.

use std::time::Duration;

use indicatif::ProgressBar;
use sensorium_proto::v1::{GetJobRequest, Job, WatchJobRequest, job};
use tonic::{Request, Status};

use super::super::connect::Connection;
use super::super::failure::Failure;
use super::{bar, client_on};

/// A job may take hours over an item, and nothing is told meanwhile. After so long the gateway is asked whether it still
/// knows the job.
const SILENCE: Duration = Duration::from_secs(20);
/// What that answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// The job when it is over. A gateway that is lost, freezes or leaves is replaced by another one.
pub(super) async fn until_over(connection: &mut Connection<'_>, id: &str) -> Result<Job, Failure> {
    let bar = bar("working", 0);
    let over = loop {
        match follow(connection, id, &bar).await {
            Ok(job) => break Ok(job),
            Err(status) => {
                bar.set_prefix("(connection lost)");
                if let Err(failure) = connection.recover(status.into()).await {
                    break Err(failure);
                }
            }
        }
    };
    bar.finish_and_clear();
    over
}

/// The same from one gateway, as far as it goes.
async fn follow(connection: &mut Connection<'_>, id: &str, bar: &ProgressBar) -> Result<Job, Status> {
    let mut client = client_on(connection.channel());
    let mut told = client.watch_job(WatchJobRequest { id: id.to_owned() }).await?.into_inner();
    loop {
        let job = match tokio::time::timeout(SILENCE, told.message()).await {
            Ok(job) => job?.ok_or_else(|| Status::unavailable("the gateway told nothing more of the job"))?,
            Err(_) => {
                let mut request = Request::new(GetJobRequest { id: id.to_owned(), ..GetJobRequest::default() });
                request.set_timeout(ANSWER);
                let job = client.get_job(request).await?.into_inner().job;
                job.ok_or_else(|| Status::unavailable("the gateway said nothing of the job"))?
            }
        };
        connection.heard();
        show(&job, bar);
        if job.state() != job::State::Running {
            return Ok(job);
        }
    }
}

fn show(job: &Job, bar: &ProgressBar) {
    bar.set_length(job.total);
    bar.set_position(job.done);
    bar.set_prefix(if job.failed > 0 { format!("({} failed)", job.failed) } else { String::new() });
}
