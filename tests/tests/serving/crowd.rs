//! A thousand callers at once.

use futures::future::join_all;
use sensorium_tests::samples::{clip, picture, transcripts};
use sensorium_tests::{Ask, Client, chaos};

use super::server;

/// What a caller wants: mostly cheap things, some that take a while.
fn ask(caller: usize) -> Ask {
    match caller % 100 {
        0 => Ask::of("whisper-tiny-en").bytes("audio", &[clip(&transcripts()[1].0)]),
        1 | 2 => Ask::prompt("1, 2, 3, 4, 5,", 8),
        3..=10 => Ask::of("efficientnet-lite0").bytes("image", &[picture("rocket.jpg")]).output("labels"),
        11..=45 => Ask::text(&format!("{} number {caller}", "something to read ".repeat(caller % 12))),
        46 | 47 => Ask::of("prompt-guard").bytes("text", &["Is it cold outside?"]),
        48 => Ask::of("open-nsfw").bytes("image", &[picture("rocket.jpg")]),
        _ => {
            let mark = f32::from(u16::try_from(caller).unwrap());
            chaos("identity", mark, mark)
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_mixed_requests_all_succeed() {
    let server = server().await;
    let clients: Vec<Client> = join_all((0..8).map(|_| server.client())).await;
    let started = std::time::Instant::now();
    let answers = join_all((0..1000).map(|caller| {
        let client = &clients[caller % clients.len()];
        async move { (caller, client.infer(ask(caller)).await) }
    }))
    .await;
    println!("1,000 mixed requests at once: {:.1} s", started.elapsed().as_secs_f64());
    let failures: Vec<_> =
        answers.iter().filter_map(|(caller, answer)| Some((caller, answer.as_ref().err()?))).collect();
    assert!(failures.is_empty(), "{} failed, the first: {:?}", failures.len(), failures[0]);
    for (caller, answer) in answers {
        if caller % 100 > 48 {
            let mark = f32::from(u16::try_from(caller).unwrap());
            assert_eq!(answer.unwrap().fp32("OUTPUT0"), [mark; 16], "an answer of somebody else");
        }
    }
}
