//! Tokenizers of the model repository: limits, huge texts, streaming, transcripts.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use sensorium_media::text::{Detokenizer, Error, Tokenizer};
use sensorium_media::transcript::{Heard, Segment, Transcript, transcript};

use crate::set_up;

/// The tokenizer of a model in `$SENSORIUM_REPOSITORY`, or in the default repository.
pub(crate) fn tokenizer(model: &str) -> Tokenizer {
    let path = set_up("SENSORIUM_REPOSITORY", "models").join(model).join("1/tokenizer.json");
    Tokenizer::from_file(&path).unwrap()
}

#[test]
fn special_tokens_frame_a_text_and_survive_truncation() {
    let bert = tokenizer("minilm");
    let (cls, sep) = (bert.token_id("[CLS]").unwrap(), bert.token_id("[SEP]").unwrap());
    let whole = bert.encode("Hello, world! This is a test.", 256, false).unwrap();
    assert_eq!(whole.ids, [101, 7592, 1010, 2088, 999, 2023, 2003, 1037, 3231, 1012, 102]);
    assert_eq!((whole.ids[0], whole.ids[10]), (cls, sep));
    assert_eq!((whole.total, whole.exact, whole.truncated), (11, true, false));

    let cut = bert.encode("Hello, world! This is a test.", 5, true).unwrap();
    assert_eq!(cut.ids, [101, 7592, 1010, 2088, 102]);
    assert_eq!((cut.total, cut.exact, cut.truncated), (11, true, true));
    assert!(!bert.encode("Hello, world! This is a test.", 11, false).unwrap().truncated);

    let error = bert.encode("Hello, world! This is a test.", 10, false).unwrap_err();
    assert_eq!(error.to_string(), "text of 29 bytes has 11 tokens, the limit is 10");
    assert!(error.is_over_limit());
    assert!(matches!(bert.encode("a", 2, true), Err(Error::NoRoom { limit: 2, added: 2 })));
    assert_eq!(bert.encode("", 5, true).unwrap().ids, [101, 102]);
    assert_eq!(bert.decode(&whole.ids, true).unwrap(), "hello, world! this is a test.");
    assert!(bert.token_id("no such token").is_none());
}

#[test]
fn a_missing_file_is_named() {
    let error = Tokenizer::from_file("/nowhere/tokenizer.json".as_ref()).err().unwrap();
    assert!(error.to_string().contains("/nowhere/tokenizer.json"), "{error}");
}

#[test]
fn a_huge_text_gives_the_ids_of_a_whole_reading_without_one() {
    let sentence = "The quick brown fox doesn't jump over 1234 lazy dogs; naïve café ☕️ — <|im_end|> done.\n\n  ";
    let long = sentence.repeat(2500);
    for model in ["minilm", "smollm2-135m", "whisper-base"] {
        let tokenizer = tokenizer(model);
        // So many allowed tokens that the whole text is read.
        let whole = tokenizer.encode(&long, 1 << 20, true).unwrap();
        assert!(whole.exact && !whole.truncated);
        for limit in [16, 256, 4000] {
            let cut = tokenizer.encode(&long, limit, true).unwrap();
            assert!(!cut.exact && cut.truncated && cut.total > limit && cut.total < whole.total, "{model}");
            // All but the closing token, where there is one.
            let framed = cut.ids.last() == whole.ids.last() && model != "smollm2-135m";
            let same = limit - usize::from(framed);
            assert_eq!(cut.ids.len(), limit);
            assert_eq!(cut.ids[..same], whole.ids[..same], "{model}");
            let error = tokenizer.encode(&long, limit, false).unwrap_err();
            assert!(matches!(error, Error::TooManyTokens { exact: false, .. }), "{error}");
        }
    }
}

#[test]
fn a_text_of_16_megabytes_costs_no_more_than_its_beginning() {
    let bert = tokenizer("minilm");
    let started = Instant::now();
    let words = bert.encode(&"word ".repeat(3 << 20), 256, true).unwrap();
    assert_eq!((words.ids.len(), words.exact), (256, false));
    // One endless word, and nothing at all.
    for text in ["x".repeat(16 << 20), " ".repeat(16 << 20)] {
        let error = bert.encode(&text, 256, true).unwrap_err();
        assert!(matches!(error, Error::Sparse { .. }) && error.is_over_limit(), "{error}");
    }
    // Seconds even unoptimised on a busy machine; the whole of it takes minutes.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = Detokenizer::new(tokenizer, true);
    let mut text = String::new();
    for id in ids {
        text.extend(stream.push(*id).unwrap());
    }
    text.extend(stream.finish().unwrap());
    text
}

#[test]
fn characters_of_several_tokens_are_given_out_whole() {
    let llama = tokenizer("smollm2-135m");
    let text = "naïve ☕️ 🧑‍🚀 日本語 — done";
    let ids = llama.encode(text, 1000, false).unwrap().ids;
    let mut stream = Detokenizer::new(&llama, true);
    let pieces: Vec<String> = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
    assert!(pieces.len() < ids.len(), "some tokens are parts of characters");
    assert!(pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER)), "{pieces:?}");
    assert_eq!(pieces.concat(), text);
    assert_eq!(stream.finish().unwrap(), None);
}

#[test]
fn an_unfinished_character_comes_out_at_the_end() {
    let llama = tokenizer("smollm2-135m");
    let ids = llama.encode("日🧑", 1000, false).unwrap().ids;
    let got = streamed(&llama, &ids[..ids.len() - 1]);
    assert!(got.starts_with('日') && got.ends_with(char::REPLACEMENT_CHARACTER), "{got}");
}

#[test]
fn windows_hold_all_of_a_text_and_each_begins_in_the_middle_of_the_one_before() {
    let bert = tokenizer("minilm");
    let text = "alpha beta gamma delta ".repeat(10);
    let whole = bert.encode(&text, 1000, false).unwrap().ids;
    let (start, end) = (whole[0], *whole.last().unwrap());
    let content = &whole[1..whole.len() - 1];
    let wide = bert.windows(&text, &[256, 12], 1000).unwrap();
    assert_eq!(wide[0], whole, "the wide window comes first");
    for (number, window) in wide[1..].iter().enumerate() {
        assert!(window.len() <= 12 && window[0] == start && window.last() == Some(&end), "{window:?}");
        assert!(content[5 * number..].starts_with(&window[1..window.len() - 1]), "{window:?}");
    }
    assert!(wide[1..].iter().map(|window| window.len() - 2).sum::<usize>() >= content.len());
    assert_eq!(bert.windows("alpha beta", &[256, 12], 1000).unwrap().len(), 1, "it fits the narrow one");
    assert_eq!(bert.windows("", &[256, 12], 1000).unwrap(), [[start, end]]);
    assert!(bert.windows(&text, &[256], whole.len() - 1).is_err(), "nothing is left unjudged");
}

#[test]
fn special_tokens_are_left_out_of_a_stream() {
    let llama = tokenizer("smollm2-135m");
    let text = "<|im_start|>user\nhi<|im_end|>";
    let ids = llama.encode_raw(text, 100, false).unwrap().ids;
    assert_eq!(streamed(&llama, &ids), "user\nhi");
    let ids = llama.encode(text, 100, false).unwrap().ids;
    assert_eq!(streamed(&llama, &ids), text, "a caller's text is text, whatever it spells");
}

/// Read once: a file of megabytes for each case is most of the test's time.
fn llama() -> &'static Tokenizer {
    static LLAMA: LazyLock<Tokenizer> = LazyLock::new(|| tokenizer("smollm2-135m"));
    &LLAMA
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_stream_is_the_text(texts in prop::collection::vec("[a-z .,'\n☕日é🧑]{0,40}", 1..6)) {
        let llama = llama();
        for text in texts {
            let ids = llama.encode(&text, 1000, false).unwrap().ids;
            prop_assert_eq!(streamed(llama, &ids), text);
        }
    }

    #[test]
    fn any_ids_are_text(ids in prop::collection::vec(0_u32..49_152, 0..60)) {
        let _ = streamed(llama(), &ids);
    }
}

struct Whisper {
    tokenizer: Tokenizer,
    begin: u32,
}

impl Whisper {
    fn new() -> Self {
        let tokenizer = tokenizer("whisper-base");
        let begin = tokenizer.token_id("<|notimestamps|>").unwrap() + 1;
        Self { tokenizer, begin }
    }

    fn words(&self, text: &str) -> Vec<u32> {
        let framed = self.tokenizer.encode(text, 1000, false).unwrap().ids;
        framed.into_iter().filter(|id| *id < self.tokenizer.token_id("<|endoftext|>").unwrap()).collect()
    }

    fn at(&self, seconds: f64) -> Vec<u32> {
        vec![self.begin + (seconds / 0.02).round() as u32]
    }

    fn heard(&self, ids: &[Vec<u32>]) -> Transcript {
        transcript(&ids.concat(), self.begin, Heard { offset: 100.0, seconds: 10.0 }, &self.tokenizer).unwrap()
    }
}

fn segment(start: f64, end: f64, text: &str) -> Segment {
    Segment { start: 100.0 + start, end: 100.0 + end, text: text.to_owned() }
}

#[test]
fn paired_timestamps_are_segments() {
    let w = Whisper::new();
    let ids = [w.at(0.0), w.words(" Hello there."), w.at(2.4), w.at(3.0), w.words(" How are you?"), w.at(5.0)];
    let mut got = w.heard(&ids);
    assert_eq!(got.segments, [segment(0.0, 2.4, "Hello there."), segment(3.0, 5.0, "How are you?")]);
    assert_eq!(got.text(), "Hello there. How are you?");
    got.append(w.heard(&[w.at(0.0), w.words(" Fine."), w.at(1.0)]));
    assert_eq!((got.text(), got.segments.len()), ("Hello there. How are you? Fine.", 3));
}

#[test]
fn unpaired_and_absurd_timestamps() {
    let w = Whisper::new();
    assert_eq!(w.heard(&[w.words(" No times.")]).segments, [segment(0.0, 10.0, "No times.")]);
    let open = [w.at(1.0), w.words(" One."), w.at(2.0), w.words(" Two.")];
    assert_eq!(w.heard(&open).segments, [segment(1.0, 2.0, "One."), segment(2.0, 10.0, "Two.")]);
    // Backwards, beyond the window, and without text.
    let absurd = [w.at(4.0), w.words(" One."), w.at(2.0), w.at(3.0), w.words(" Two."), w.at(29.0), w.at(30.0)];
    assert_eq!(w.heard(&absurd).segments, [segment(4.0, 4.0, "One."), segment(4.0, 10.0, "Two.")]);
    assert_eq!(w.heard(&[]).segments, []);
    let special = vec![w.tokenizer.token_id("<|endoftext|>").unwrap()];
    assert_eq!(w.heard(&[w.at(0.0), w.words(" Hi."), w.at(1.0), special]).segments, [segment(0.0, 1.0, "Hi.")]);
}
