//! ModelStreamInfer: many requests on one stream, mistakes among them.

use sensorium_proto::inference::infer_parameter::ParameterChoice;
use sensorium_tests::{Ask, Given, chaos};

use super::client;

#[tokio::test]
async fn a_mistake_does_not_end_the_stream() {
    let client = client().await;
    let asks = vec![
        chaos("identity", 1.0, 1.0).id("first"),
        Ask::of("identity").fp32("INPUT0", &[1, 2], &[0.0; 2]).id("wrong shape"),
        chaos("nobody", 1.0, 1.0).id("wrong model"),
        chaos("identity", 2.0, 2.0).id("last"),
    ];
    let answers = client.stream_all(asks).await.unwrap();
    assert_eq!(answers.len(), 4);
    for answer in answers {
        let given = Given(answer.infer_response.unwrap());
        match given.0.id.as_str() {
            "first" | "last" => {
                assert_eq!(answer.error_message, "");
                let mark = if given.0.id == "first" { 1.0 } else { 2.0 };
                assert_eq!(given.fp32("OUTPUT0"), [mark; 16]);
                assert_eq!(given.parameter("triton_final_response"), Some(&ParameterChoice::BoolParam(true)));
            }
            "wrong shape" => assert!(answer.error_message.contains("[-1, 16]"), "{}", answer.error_message),
            "wrong model" => assert!(answer.error_message.contains("nobody"), "{}", answer.error_message),
            other => panic!("an answer to '{other}'"),
        }
    }
}

#[tokio::test]
async fn many_requests_of_one_stream_are_all_answered() {
    let client = client().await;
    let asks: Vec<Ask> =
        (0..300u16).map(|n| chaos("identity", f32::from(n), f32::from(n)).id(&n.to_string())).collect();
    let answers = client.stream_all(asks).await.unwrap();
    let mut seen = vec![false; 300];
    for answer in answers {
        let given = Given(answer.infer_response.unwrap());
        let n: u16 = given.0.id.parse().unwrap();
        assert_eq!(given.fp32("OUTPUT0"), [f32::from(n); 16]);
        assert!(!std::mem::replace(&mut seen[usize::from(n)], true), "{n} twice");
    }
    assert!(seen.into_iter().all(|seen| seen));
}

/// What answers once answers in the order of the requests, as Triton's clients count on; the work is done side by side.
#[tokio::test]
async fn answers_come_in_the_order_of_the_requests() {
    let client = client().await;
    let mut asks = Vec::new();
    let mut ids = Vec::new();
    for n in 0..40u16 {
        let id = n.to_string();
        asks.push(match n % 5 {
            0 => chaos("chaos", -f32::from(200 - 4 * n), 0.0).id(&id),
            1 => chaos("nobody", 0.0, 0.0).id(&id),
            2 => Ask::of("identity").fp32("INPUT0", &[1, 2], &[0.0; 2]).id(&id),
            _ => chaos("identity", 0.0, 0.0).id(&id),
        });
        ids.push(id);
    }
    let answers = client.stream_all(asks).await.unwrap();
    for answer in &answers {
        let id = &answer.infer_response.as_ref().unwrap().id;
        let fails = matches!(id.parse::<u16>().unwrap() % 5, 1 | 2);
        assert_eq!(fails, answer.error_message.contains(&format!("[request id: {id}]")), "{answer:?}");
    }
    let came: Vec<String> = answers.into_iter().map(|answer| answer.infer_response.unwrap().id).collect();
    assert_eq!(came, ids);
}
