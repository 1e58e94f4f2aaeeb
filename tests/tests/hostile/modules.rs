//! A user's own code that refuses what it is given, and decoders that do.

use futures::future::join_all;
use sensorium_tests::{Ask, Neighbours, Refusal, Repository, Server, ServerOptions, eventually};
use tonic::Code;

/// A table of ten rows: an index beyond it is libtorch's own complaint, 7 is the module's own.
const LOOK_UP: &str = "x: Tensor) -> Tensor:
    index = torch.flatten(x)
    if bool(torch.any(torch.eq(index, 7))):
      ops.prim.RaiseException(\"seven is not served here\")
    else:
      pass
    if bool(torch.any(torch.eq(index, 8))):
      rows = torch.flatten(torch.reshape(index, [3, 5]))
    else:
      rows = index
    return torch.index_select(torch.ones([10, 4]), 0, rows)";

/// Each answer has as many columns as the row says, and four more.
const WIDE: &str = "x: Tensor) -> Tensor:
    width = torch.add(int(torch.max(x)), 4)
    return torch.ones([torch.size(x, 0), width])";

fn ask(model: &str, values: &[i64]) -> Ask {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Ask::of(model).raw("x", "INT64", &[i64::try_from(values.len()).unwrap(), 1], data)
}

#[tokio::test]
async fn what_a_users_model_refuses_is_the_callers_mistake() {
    let repository = Repository::new()
        .with(&["identity"])
        .module("table", &[("batching.max_queue_delay_us", "20000")], LOOK_UP)
        .module("wide", &[], WIDE);
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    let neighbours = Neighbours::beside(&server).await;
    for (values, words) in [
        (&[10][..], "index out of range"),
        (&[i64::MIN], "index out of range"),
        (&[1, 2, 99], "index out of range"),
        (&[7], "seven is not served here"),
        (&[8], "shape"),
    ] {
        let refusal = Refusal::of(client.infer(ask("table", values)).await);
        refusal.blames("inputs", &[words]);
        assert!(refusal.message.len() < 1000 && !refusal.message.contains("frame #"), "{refusal:?}");
    }
    // in company too: each of 240 goes with others, one of twelve of them is to blame
    let answers = join_all((0..240).map(|n| client.infer(ask("table", &[if n % 12 == 5 { 10 } else { n % 7 }])))).await;
    for (n, answer) in answers.into_iter().enumerate() {
        if n % 12 == 5 {
            Refusal::of(answer).blames("inputs", &["index out of range"]);
        } else {
            assert_eq!(answer.unwrap().fp32("y"), [1.0; 4], "request {n}");
        }
    }
    // what the model gives and the manifest does not promise is the model's failure, and no reason to load it again
    assert_eq!(client.infer(ask("wide", &[0])).await.unwrap().shape("y"), [1, 4]);
    for more in [-4, 1, 96] {
        let refusal = Refusal::of(client.infer(ask("wide", &[more])).await);
        assert_eq!(refusal.code, Code::Internal, "{refusal:?}");
        assert!(refusal.message.contains("model.toml"), "{refusal:?}");
    }
    neighbours.were_not_hurt("a user's model that refuses what it is given").await;
    for model in ["table", "wide"] {
        assert_eq!(client.actor(&format!("text/{model}/1/replica-0")).await.restarts, 0);
    }
}

/// A prompt that the tokeniser's limit lets through, and the decoder's context does not hold.
#[tokio::test]
async fn a_prompt_over_the_context_is_the_callers_mistake() {
    let settings = [("generation.context_length", "64"), ("limits.max_tokens", "2000")];
    let repository = Repository::new().with(&["identity"]).copy("smollm2-135m", "short", &settings);
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    let ask = |words: usize| {
        let prompt = "one ".repeat(words);
        Ask::of("short").bytes("prompt", &[prompt.trim()]).set("raw", true).set("max_tokens", 60)
    };
    let neighbours = Neighbours::beside(&server).await;
    // others are being generated meanwhile, and go on
    let others = join_all((0..8).map(|_| client.infer(ask(2))));
    let culprits = async {
        for words in [65, 66, 500, 1000] {
            let refusal = Refusal::of(client.infer(ask(words)).await);
            refusal.blames("prompt", &["tokens", "64"]);
        }
    };
    let (others, ()) = futures::join!(others, culprits);
    for answer in others {
        assert!(answer.unwrap().parameter_count("completion_tokens") > 0);
    }
    let fits = client.infer(ask(64)).await.unwrap();
    assert_eq!((fits.parameter_count("prompt_tokens"), fits.parameter_count("completion_tokens")), (64, 1));
    neighbours.were_not_hurt("prompts over the context").await;
    eventually("all slots are free again", async || {
        (client.actor("text/short/1/batcher").await.queue_depth == 0).then_some(())
    })
    .await;
    assert_eq!(client.actor("text/short/1/replica-0").await.restarts, 0);
}
