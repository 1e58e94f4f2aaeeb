//! Jobs on one machine, kept in a file; and the verbs that send them.

use std::time::Duration;

use sensorium_proto::v1::part::Content;
use sensorium_proto::v1::{Modality, UnderstandRequest, job};
use sensorium_tests::jobs::{header, item, text};
use sensorium_tests::samples::{clip, folder, picture, transcripts};
use sensorium_tests::{Refusal, Repository, Server, ServerOptions, cosine, eventually};
use tempfile::TempDir;
use tonic::Code;

use super::understanding::{branch, result, three_parts, understand};
use super::{client, server};

#[tokio::test]
async fn a_job_says_what_an_understanding_says() {
    let client = client().await;
    let words = "A cat with green eyes looks at us.".to_owned();
    let clip = clip(&transcripts()[1].0);
    let parts = vec![Content::Text(words), Content::Image(picture("chelsea.png").into()), Content::Audio(clip.into())];
    let job = client
        .submit(header(""), vec![item("all", parts.clone()), item("seen", vec![parts[1].clone()])])
        .await
        .unwrap();
    let over = client.finish(&job.id).await.unwrap();
    assert_eq!((over.state(), over.done), (job::State::Succeeded, 2), "{over:?}");
    let told = client.job(&job.id, 10).await.unwrap().items;
    assert_eq!((told[0].name.as_str(), told[1].name.as_str()), ("all", "seen"));
    let kept = told[0].result.as_ref().unwrap();
    let request = UnderstandRequest { parts: three_parts(), no_answer: true, ..UnderstandRequest::default() };
    let events = understand(&client, request).await.unwrap();
    let asked = result(&events);
    assert!(!kept.degraded);
    for modality in [Modality::Text, Modality::Image, Modality::Audio] {
        let (kept, asked) = (branch(kept, modality), branch(asked, modality));
        assert_eq!((kept.state, &kept.words, &kept.labels), (asked.state, &asked.words, &asked.labels));
        assert!(cosine(&kept.embedding, &asked.embedding) > 0.9999);
    }
    let (kept, asked) = (kept.fusion.as_ref().unwrap(), asked.fusion.as_ref().unwrap());
    assert_eq!(kept.consistency.len(), asked.consistency.len());
    assert!(cosine(&kept.embedding, &asked.embedding) > 0.9999);
    assert_eq!(told[1].result.as_ref().unwrap().branches.len(), 1);
}

#[tokio::test]
async fn a_job_answers_in_words_and_an_item_that_is_none_says_why() {
    let client = client().await;
    let mut asking = header("");
    (asking.no_answer, asking.question) = (false, "What is in the picture?".to_owned());
    let items = vec![
        item("cat", vec![Content::Image(picture("chelsea.png").into())]),
        item("none", vec![Content::Image(b"no picture at all".to_vec().into())]),
    ];
    let job = client.submit(asking, items).await.unwrap();
    let over = client.finish(&job.id).await.unwrap();
    assert_eq!((over.state(), over.done, over.failed), (job::State::Partial, 2, 1), "{over:?}");
    let told = client.job(&job.id, 10).await.unwrap().items;
    assert!(!told[0].result.as_ref().unwrap().answer.as_ref().unwrap().text.is_empty());
    assert!(told[1].error.starts_with("image: "), "{}", told[1].error);
}

/// A server for texts, whose jobs lie in `state`.
async fn keeping(state: &TempDir, settings: &[(&str, &str)]) -> Server {
    let path = state.path().join("jobs.redb").display().to_string();
    let options = ServerOptions::new(Repository::new().with(&["minilm"]));
    let options = options.set("understand.text_guard", "").set("jobs.path", &path);
    Server::start(settings.iter().fold(options, |options, (key, value)| options.set(key, value))).await
}

#[tokio::test]
async fn jobs_outlive_their_process() {
    const ITEMS: usize = 400;
    let state = TempDir::new().unwrap();
    let mut server = keeping(&state, &[]).await;
    let mut client = server.client().await;
    let items = || (0..ITEMS).map(|at| text(&format!("item-{at}"), &format!("sentence {at}"))).collect();
    let job = client.submit(header("once"), items()).await.unwrap();
    for (share, signal) in [(ITEMS / 10, "TERM"), (ITEMS / 3, "KILL")] {
        eventually("some of it is done", async || {
            let done = client.job(&job.id, 0).await.ok()?.job?.done;
            (done >= share as u64).then_some(())
        })
        .await;
        server.signal(signal);
        server.wait(Duration::from_secs(60)).await;
        server = keeping(&state, &[]).await;
        client = server.client().await;
        let again = client.submit(header("once"), items()).await.unwrap();
        assert_eq!(again.id, job.id);
    }
    let over = client.finish(&job.id).await.unwrap();
    assert_eq!((over.state(), over.done, over.failed), (job::State::Succeeded, ITEMS as u64, 0), "{over:?}");
    let told = client.job(&job.id, 1000).await.unwrap().items;
    let indices: Vec<u64> = told.iter().map(|item| item.index).collect();
    assert_eq!(indices, (0..ITEMS as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_queue_on_disk_is_bounded_and_what_it_keeps_expires() {
    let state = TempDir::new().unwrap();
    let items = |count: usize| (0..count).map(|at| text(&format!("item-{at}"), "a sentence")).collect::<Vec<_>>();
    // nobody takes anything from the queue
    let server = keeping(&state, &[("jobs.max_queued", "5"), ("jobs.tasks.concurrency", "0")]).await;
    let client = server.client().await;
    let taken = client.submit(header("taken"), items(5)).await.unwrap();
    let refused = Refusal::of(client.submit(header("refused"), items(5)).await);
    refused.is_retriable(Code::ResourceExhausted, "JOBS_QUEUE_FULL");
    drop(server);

    let server = keeping(&state, &[]).await;
    let client = server.client().await;
    let over = client.finish(&taken.id).await.unwrap();
    assert_eq!((over.state(), over.done, over.failed), (job::State::Succeeded, 5, 0), "{over:?}");
    // whoever was refused comes again, with the same key
    let again = client.submit(header("refused"), items(5)).await.unwrap();
    assert_eq!(client.finish(&again.id).await.unwrap().state(), job::State::Succeeded);
    drop(server);
    // a process that starts sweeps out what is too old
    let server = keeping(&state, &[("jobs.retention_seconds", "1")]).await;
    let client = server.client().await;
    eventually("all is forgotten", async || client.all_jobs(10).await.unwrap().is_empty().then_some(())).await;
    assert_eq!(client.job(&taken.id, 10).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_folder_is_one_job_and_its_results_are_a_file() {
    let address = format!("http://{}", server().await.grpc);
    let out = TempDir::new().unwrap();
    let (results, pictures) = (out.path().join("results.jsonl"), folder().join("images"));
    let (results, pictures) = (results.display().to_string(), pictures.display().to_string());
    let run = [
        "jobs",
        "submit",
        &pictures,
        "--server",
        &address,
        "--no-answer",
        "--label",
        "pictures",
        "--results",
        &results,
    ];
    let (code, said, errors) = Server::verb(&run).await;
    assert_eq!(code, Some(0), "{errors}");
    assert!(said.contains("succeeded") && said.contains("items"), "{said}");
    let lines = std::fs::read_to_string(&results).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: &str| lines.iter().find(|line| line["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let cat = of("chelsea")["result"]["branches"][0]["labels"][0]["name"].as_str().unwrap().to_owned();
    assert!(cat.contains("cat") || cat.contains("tabby"), "{cat}");

    let (code, said, _) = Server::verb(&["jobs", "list", "--server", &address, "-o", "json", "--limit", "1000"]).await;
    assert_eq!(code, Some(0));
    let listed: serde_json::Value = serde_json::from_str(&said).unwrap();
    let ours = listed.as_array().unwrap().iter().find(|job| job["label"] == "pictures").unwrap();
    assert_eq!((ours["state"].as_str(), ours["done"].as_u64()), (Some("succeeded"), Some(lines.len() as u64)));
    let id = ours["id"].as_str().unwrap();
    let (code, said, _) = Server::verb(&["jobs", "results", id, "--server", &address]).await;
    assert_eq!((code, said.lines().count()), (Some(0), lines.len()));
    let (code, _, errors) = Server::verb(&["jobs", "watch", "0123", "--server", &address]).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("NOT_FOUND"), "{errors}");
    let (code, _, errors) = Server::verb(&["jobs", "submit", "/nowhere", "--server", &address]).await;
    assert_eq!(code, Some(2), "{errors}");
}
