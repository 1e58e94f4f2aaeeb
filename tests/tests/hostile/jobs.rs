//! Jobs that can never be done, that never come to their end, or that are more than there is room for.

use std::path::PathBuf;
use std::process::Command;

use sensorium_proto::v1::submit_job_request::Message;
use sensorium_proto::v1::{Emphasis, JobHeader, JobItem, Modality, Sampling, SubmitJobRequest, job};
use sensorium_tests::jobs::{header, text};
use sensorium_tests::{Neighbours, Refusal, Repository, Server, ServerOptions, eventually, within};
use tempfile::TempDir;
use tonic::Code;

use super::server;

/// A header with these numbers in it.
fn sampled(sampling: Sampling) -> JobHeader {
    JobHeader { sampling: Some(sampling), ..JobHeader::default() }
}

fn weighed(weight: f64) -> JobHeader {
    let emphasis = Emphasis { modality: Modality::Text.into(), weight: Some(weight), ..Emphasis::default() };
    JobHeader { emphasis: vec![emphasis], ..header("") }
}

/// What nobody could read, or do, is refused before anybody meets it, and uploads that stand still take nobody's place.
#[tokio::test]
async fn what_can_never_be_done_is_refused_and_who_uploads_nothing_holds_nothing() {
    let server = server(&[("limits.max_inflight", "32"), ("understand.text_guard", "")]).await;
    let client = server.client().await;
    let beside = (0..20).map(|at| text("item", &format!("text {at}"))).collect::<Vec<_>>();
    // what models make of themselves for their first batches is nobody's fault
    let job = client.submit(header("before"), beside.clone()).await.unwrap();
    assert_eq!(client.finish(&job.id).await.unwrap().state(), job::State::Succeeded);
    let neighbours = Neighbours::beside(&server).await;
    let mut mistakes: Vec<(&str, JobHeader)> = Vec::new();
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e300] {
        mistakes.push(("sampling.temperature", sampled(Sampling { temperature: Some(number), ..Sampling::default() })));
        mistakes.push(("sampling.top_p", sampled(Sampling { top_p: Some(number), ..Sampling::default() })));
    }
    for number in [f64::NAN, f64::INFINITY, -1.0] {
        mistakes.push(("emphasis.text.weight", weighed(number)));
    }
    mistakes.push(("sampling.max_tokens", sampled(Sampling { max_tokens: u32::MAX, ..Sampling::default() })));
    mistakes.push(("sampling.stop", sampled(Sampling { stop: vec!["x".repeat(100_000)], ..Sampling::default() })));
    mistakes.push(("sampling.stop", sampled(Sampling { stop: vec![String::new(); 17], ..Sampling::default() })));
    mistakes.push(("question", JobHeader { question: "?".repeat(1_100_000), ..JobHeader::default() }));
    mistakes.push(("label", JobHeader { label: "l".repeat(257), ..header("") }));
    for (field, header) in mistakes {
        let wanted = field.replace("sampling.stop", "sampling");
        let refusal = Refusal::of(client.submit(header, vec![text("one", "a sentence")]).await);
        assert_eq!(refusal.code, Code::InvalidArgument, "{field}: {refusal:?}");
        assert!(refusal.fields.iter().any(|(field, _)| field.starts_with(&wanted)), "{field}: {refusal:?}");
    }
    // more of them than there are places
    let message = |message| SubmitJobRequest { message: Some(message) };
    let mut uploads = Vec::new();
    for at in 0..48 {
        if at % 8 == 0 {
            // those that stand still are none of them
            eventually("uploads take no places", async || {
                (server.metric("sensorium_inflight_requests", &[]).await < 8.0).then_some(())
            })
            .await;
        }
        let (messages, upload) = tokio::sync::mpsc::channel(2);
        let upload = tokio_stream::wrappers::ReceiverStream::new(upload);
        let mut jobs = client.jobs.clone();
        let uploading = tokio::spawn(async move { jobs.submit_job(upload).await });
        messages.send(message(Message::Header(header("")))).await.unwrap();
        if at % 2 == 0 {
            messages.send(message(Message::Item(text("one", "a sentence")))).await.unwrap();
        }
        uploads.push((messages, uploading));
    }
    let job = client.submit(header("beside"), beside).await;
    assert_eq!(client.finish(&job.unwrap().id).await.unwrap().state(), job::State::Succeeded);
    // half of them come to an end, half break off
    for (at, (messages, uploading)) in uploads.into_iter().enumerate() {
        match at % 4 {
            0 => {
                drop(messages);
                let job = within(uploading).await.unwrap().unwrap().into_inner();
                assert_eq!(client.finish(&job.id).await.unwrap().state(), job::State::Succeeded);
            }
            _ => uploading.abort(),
        }
    }
    assert!(client.dead().await.unwrap().is_empty());
    neighbours.were_not_hurt("jobs that can never be done, and uploads that stand still").await;
}

/// So many items of so many bytes each.
fn items(count: usize, bytes: usize) -> Vec<JobItem> {
    (0..count).map(|at| text(&format!("item-{at}"), &"word ".repeat(bytes / 5))).collect()
}

#[tokio::test]
async fn jobs_are_bounded_in_bytes_of_a_tenant_and_in_all() {
    let settings = [
        ("jobs.tasks.concurrency", "0"),
        ("jobs.tasks.tenant_bytes", "3000000"),
        ("jobs.max_bytes", "8000000"),
        ("understand.text_guard", ""),
    ];
    let server = server(&settings).await;
    let client = server.client().await;
    // never: a job of its own that is more than the tenant may have
    Refusal::of(client.submit(header(""), items(40, 100_000)).await).blames("items[", &["bytes", "3000000"]);
    let first = client.submit(header("first"), items(20, 100_000)).await.unwrap();
    let refused = Refusal::of(client.submit(header("second"), items(20, 100_000)).await);
    refused.is_retriable(Code::ResourceExhausted, "JOBS_TENANT_BYTES");
    assert!(refused.message.contains("3000000"), "{refused:?}");
    // what is wanted no more counts no more
    client.cancel(&first.id).await.unwrap();
    let mut kept = 1;
    let full = loop {
        let job = match client.submit(header(&format!("job-{kept}")), items(20, 100_000)).await {
            Ok(job) => job,
            refused => break Refusal::of(refused),
        };
        client.cancel(&job.id).await.unwrap();
        kept += 1;
        assert!(kept < 10, "the file is not bounded");
    };
    full.is_retriable(Code::ResourceExhausted, "JOBS_STORAGE_FULL");
    assert!(kept >= 2, "{kept}");
}

/// A file system of its own, of a few MiB; nothing where that is not permitted, which is said aloud.
struct SmallDisk(TempDir);

impl SmallDisk {
    #[allow(clippy::print_stdout, reason = "a test that does not run says so")]
    fn mount(mebibytes: u32) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        match mounted {
            Ok(done) if done.status.success() => Some(Self(folder)),
            told => {
                println!("NOT RUN: no file system could be mounted: {told:?}");
                None
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// A full disk is said, and heals as soon as there is room: what was accepted goes on, without a restart.
#[tokio::test]
async fn a_full_disk_is_told_and_heals_by_itself() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let repository =
        Repository::new().with(&["minilm"]).copy("minilm", "slow", &[("batching.max_queue_delay_us", "300_000")]);
    let path = disk.path("jobs.redb").display().to_string();
    let options = ServerOptions::new(repository).set("understand.text_guard", "").set("understand.text", "slow");
    let server = Server::start(options.set("jobs.path", &path).set("jobs.tasks.concurrency", "1")).await;
    let client = server.client().await;
    let neighbours = Neighbours::beside(&server).await;
    let accepted = client.submit(header("accepted"), items(40, 100)).await.unwrap();
    // whatever is left
    let filler = disk.path("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    drop(file);
    let refused = eventually("a submission meets the full disk", async || {
        let refused = client.submit(header("refused"), items(20, 60_000)).await;
        refused.is_err().then(|| Refusal::of(refused))
    })
    .await;
    refused.is_retriable(Code::ResourceExhausted, "JOBS_STORAGE_FULL");
    let state = async || {
        let told = client.cluster().await.unwrap();
        told.dependencies.into_iter().find(|of| of.name == "nats").unwrap()
    };
    let told = state().await;
    assert_eq!(told.state, "full", "{told:?}");
    assert!(told.reason.contains("file of jobs"), "{told:?}");
    std::fs::remove_file(&filler).unwrap();
    let job = eventually("jobs are taken again", async || client.submit(header("again"), items(5, 100)).await.ok());
    let job = job.await;
    for (id, items) in [(&accepted.id, 40), (&job.id, 5)] {
        let over = client.finish(id).await.unwrap();
        assert_eq!((over.state(), over.done, over.failed), (job::State::Succeeded, items, 0), "{over:?}");
    }
    assert_eq!(state().await.state, "embedded");
    assert!(client.dead().await.unwrap().is_empty());
    neighbours.were_not_hurt("a full disk").await;
}
