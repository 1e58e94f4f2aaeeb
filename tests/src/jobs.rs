//! Jobs as their submitters see them.

use futures::StreamExt;
use sensorium_proto::v1::part::Content;
use sensorium_proto::v1::submit_job_request::Message;
use sensorium_proto::v1::*;
use tonic::{Request, Status};

use crate::{Client, within};

/// A job without answers in words, which take long; equal keys are one job.
pub fn header(key: &str) -> JobHeader {
    JobHeader { idempotency_key: key.to_owned(), no_answer: true, ..JobHeader::default() }
}

/// An item of one text.
pub fn text(name: &str, text: &str) -> JobItem {
    item(name, vec![Content::Text(text.to_owned())])
}

/// An item of these parts.
pub fn item(name: &str, contents: Vec<Content>) -> JobItem {
    let parts = contents.into_iter().map(|content| Part { content: Some(content) }).collect();
    JobItem { name: name.to_owned(), parts }
}

impl Client {
    /// SubmitJob.
    pub async fn submit(&self, header: JobHeader, items: Vec<JobItem>) -> Result<Job, Status> {
        self.submit_within(None, header, items).await
    }

    /// SubmitJob as a part of the trace that a `traceparent` names.
    pub async fn submit_within(
        &self,
        traceparent: Option<&str>,
        header: JobHeader,
        items: Vec<JobItem>,
    ) -> Result<Job, Status> {
        let messages = [Message::Header(header)].into_iter().chain(items.into_iter().map(Message::Item));
        let messages: Vec<_> = messages.map(|message| SubmitJobRequest { message: Some(message) }).collect();
        let mut request = Request::new(tokio_stream::iter(messages));
        if let Some(parent) = traceparent {
            request.metadata_mut().insert("traceparent", parent.parse().expect("ASCII"));
        }
        Ok(within(self.jobs.clone().submit_job(request)).await?.into_inner())
    }

    /// WatchJob: the last word of it.
    pub async fn finish(&self, id: &str) -> Result<Job, Status> {
        let mut told = within(self.jobs.clone().watch_job(WatchJobRequest { id: id.to_owned() })).await?.into_inner();
        let mut last = None;
        while let Some(job) = within(told.next()).await {
            last = Some(job?);
        }
        last.ok_or_else(|| Status::data_loss("nothing was told"))
    }

    /// GetJob, with so many results at most.
    pub async fn job(&self, id: &str, max_items: u32) -> Result<GetJobResponse, Status> {
        let request = GetJobRequest { id: id.to_owned(), first_item: 0, max_items };
        Ok(within(self.jobs.clone().get_job(request)).await?.into_inner())
    }

    /// CancelJob.
    pub async fn cancel(&self, id: &str) -> Result<Job, Status> {
        Ok(within(self.jobs.clone().cancel_job(CancelJobRequest { id: id.to_owned() })).await?.into_inner())
    }

    /// ListJobs, page by page.
    pub async fn all_jobs(&self, page_size: u32) -> Result<Vec<Job>, Status> {
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListJobsRequest { page_size, page_token, state: 0 };
            let page = within(self.jobs.clone().list_jobs(request)).await?.into_inner();
            all.extend(page.jobs);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// ListDeadTasks.
    pub async fn dead(&self) -> Result<Vec<DeadTask>, Status> {
        Ok(within(self.jobs.clone().list_dead_tasks(ListDeadTasksRequest::default())).await?.into_inner().tasks)
    }
}
