//! `llama`: greedy continuations, and sequences that come and go.

use sensorium_actors::engine::{Decoder, Error, Feed, Interrupted, Pulse, SequenceId};
use sensorium_actors::manifest::Dtype;
use serde::Deserialize;

use crate::support::{Calm, cosine, decoder, reference};

const MODEL: &str = "smollm2-135m";

#[derive(Deserialize)]
struct Reference {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    prompt: String,
    prompt_tokens: Vec<u32>,
    tokens: Vec<u32>,
    /// Smallest distance between the best and the second-best logit on the way.
    margin: f32,
}

fn items() -> Vec<Item> {
    reference::<Reference>("generation").items
}

fn feed(decoder: &mut dyn Decoder, sequence: SequenceId, tokens: &[u32]) -> Vec<f32> {
    decoder.advance(&[Feed { sequence, tokens, logits: true }], &Calm).unwrap().remove(0)
}

fn best(logits: &[f32]) -> u32 {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32
}

fn greedy(decoder: &mut dyn Decoder, prompt: &[u32], count: usize) -> Vec<u32> {
    let sequence = decoder.open().unwrap();
    let mut tokens = vec![best(&feed(decoder, sequence, prompt))];
    while tokens.len() < count {
        tokens.push(best(&feed(decoder, sequence, &tokens[tokens.len() - 1..])));
    }
    decoder.close(sequence);
    tokens
}

/// The decoder with or without its int8 weights.
fn with_int8(dtype: Dtype, int8_max_sequences: usize) -> Box<dyn Decoder> {
    decoder(MODEL, |manifest| {
        manifest.dtype = dtype;
        manifest.generation.int8_max_sequences = int8_max_sequences;
    })
}

#[test]
fn f32_continuations_are_those_of_transformers() {
    let mut decoder = with_int8(Dtype::F32, 0);
    for item in items() {
        // a closer decision may fall either way by the order of a sum
        if item.margin > 0.005 {
            let found = greedy(decoder.as_mut(), &item.prompt_tokens, item.tokens.len());
            assert_eq!(found, item.tokens, "{:?}", item.prompt);
        }
    }
}

#[test]
fn narrower_weights_agree_on_the_next_token() {
    let items = items();
    let mut exact = with_int8(Dtype::F32, 0);
    for (int8, floor) in [(0, 0.99), (3, 0.97)] {
        let mut narrow = with_int8(Dtype::Bf16, int8);
        let (mut same, mut all) = (0, 0);
        for item in &items {
            let pair = [exact.open().unwrap(), narrow.open().unwrap()];
            feed(exact.as_mut(), pair[0], &item.prompt_tokens);
            feed(narrow.as_mut(), pair[1], &item.prompt_tokens);
            for token in &item.tokens {
                let wide = feed(exact.as_mut(), pair[0], &[*token]);
                let found = feed(narrow.as_mut(), pair[1], &[*token]);
                let cosine = cosine(&wide, &found);
                assert!(cosine > floor, "int8 {int8}: cosine {cosine} of the logits");
                same += usize::from(best(&wide) == best(&found));
                all += 1;
            }
            exact.close(pair[0]);
            narrow.close(pair[1]);
        }
        assert!(same * 100 >= all * 93, "int8 {int8}: {same} of {all} next tokens agree");
    }
}

#[test]
fn token_by_token_equals_at_once() {
    let mut decoder = with_int8(Dtype::F32, 0);
    let prompt: Vec<u32> = (0..300).map(|i| 1000 + i * 7 % 900).collect();
    let at_once = decoder.open().unwrap();
    let whole = feed(decoder.as_mut(), at_once, &prompt);
    let in_parts = decoder.open().unwrap();
    // chunks across the blocks of the cache, then single tokens
    for chunk in [&prompt[..100], &prompt[100..290]] {
        let none = decoder.advance(&[Feed { sequence: in_parts, tokens: chunk, logits: false }], &Calm).unwrap();
        assert!(none.is_empty());
    }
    let mut last = Vec::new();
    for token in &prompt[290..] {
        last = feed(decoder.as_mut(), in_parts, &[*token]);
    }
    let worst = whole.iter().zip(&last).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-2, "logits differ by {worst}");
}

#[test]
fn sequences_that_join_and_leave_do_not_disturb_others() {
    let mut decoder = with_int8(Dtype::F32, 0);
    let items = items();
    let (first, second) = (&items[0], &items[1]);
    let alone = greedy(decoder.as_mut(), &first.prompt_tokens, 16);

    let steady = decoder.open().unwrap();
    let mut tokens = vec![best(&feed(decoder.as_mut(), steady, &first.prompt_tokens))];
    let mut guest = None;
    while tokens.len() < 16 {
        let step = tokens.len();
        let next = [tokens[step - 1]];
        let mut feeds = vec![Feed { sequence: steady, tokens: &next, logits: true }];
        // a guest's prompt comes with step 4, it speaks until step 9, and another comes with step 11
        if step == 4 || step == 11 {
            guest = Some(decoder.open().unwrap());
            feeds.insert(0, Feed { sequence: guest.unwrap(), tokens: &second.prompt_tokens, logits: step == 4 });
        } else if let Some(sequence) = guest {
            feeds.push(Feed { sequence, tokens: &[42], logits: true });
        }
        let rows = decoder.advance(&feeds, &Calm).unwrap();
        let mine = feeds.iter().filter(|feed| feed.logits).position(|feed| feed.sequence == steady).unwrap();
        tokens.push(best(&rows[mine]));
        if step == 9 {
            decoder.close(guest.take().unwrap());
        }
    }
    assert_eq!(tokens, alone);
}

#[test]
fn an_interrupted_step_can_be_repeated() {
    struct Stop;
    impl Pulse for Stop {
        fn beat(&self) -> Result<(), Interrupted> {
            Err(Interrupted)
        }
    }
    let mut decoder = decoder(MODEL, |_| ());
    let sequence = decoder.open().unwrap();
    let expected = feed(decoder.as_mut(), sequence, &[1, 2, 3]);
    let other = decoder.open().unwrap();
    let feeds = [Feed { sequence: other, tokens: &[1, 2, 3], logits: true }];
    assert!(matches!(decoder.advance(&feeds, &Stop), Err(Error::Interrupted)));
    assert_eq!(decoder.advance(&feeds, &Calm).unwrap()[0], expected);
}

#[test]
fn limits_are_kept() {
    let mut decoder = decoder(MODEL, |_| ());
    let input = |result: Result<Vec<Vec<f32>>, Error>, says: &str| {
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::Input(message) if message.contains(says)), "{error}");
    };
    let open: Vec<SequenceId> = (0..decoder.max_sequences()).map(|_| decoder.open().unwrap()).collect();
    assert!(matches!(decoder.open(), Err(Error::Input(_))));
    let sequence = open[0];
    let long = vec![5; decoder.context_length() + 1];
    input(decoder.advance(&[Feed { sequence, tokens: &long, logits: false }], &Calm), "in all at most");
    input(decoder.advance(&[Feed { sequence, tokens: &[], logits: false }], &Calm), "at least one");
    input(decoder.advance(&[Feed { sequence, tokens: &[60_000], logits: false }], &Calm), "expected less than");
    let twice = || Feed { sequence, tokens: &[5], logits: false };
    input(decoder.advance(&[twice(), twice()], &Calm), "fed twice");
    decoder.close(sequence);
    input(decoder.advance(&[twice()], &Calm), "not open");
    let before = decoder.memory_bytes();
    let again = decoder.open().unwrap();
    feed(decoder.as_mut(), again, &[5]);
    assert!(decoder.memory_bytes() > before, "a cache takes memory");
    decoder.close(again);
    assert_eq!(decoder.memory_bytes(), before, "and gives it back");
}
