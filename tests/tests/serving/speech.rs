//! Speech: transcripts, their times, and where there is any.

use std::iter::repeat_n;

use sensorium_tests::samples::{RATE, clip, fixture, reference, samples, transcripts, wav};
use sensorium_tests::{Ask, Client, words};
use serde_json::Value;

use super::client;

const CONTAINERS: [&str; 13] = [
    "aac-16k.aac",
    "aac-stereo-44k.m4a",
    "flac-16k.flac",
    "flac-stereo-22k.flac",
    "mp3-16k.mp3",
    "mp3-stereo-48k.mp3",
    "vorbis-stereo-44k.ogg",
    "wav-f32-4k.wav",
    "wav-mulaw-8k.wav",
    "wav-s16-8k.wav",
    "wav-s24-6k.wav",
    "wav-s32-4k.wav",
    "wav-u8-8k.wav",
];

async fn transcript(client: &Client, model: &str, audio: &[u8]) -> String {
    client.infer(Ask::of(model).bytes("audio", &[audio])).await.unwrap().one_text("transcript")
}

fn segments(json: &str) -> Vec<(f64, f64)> {
    let list: Vec<Value> = serde_json::from_str(json).unwrap();
    list.iter().map(|segment| (segment["start"].as_f64().unwrap(), segment["end"].as_f64().unwrap())).collect()
}

/// Times increase and lie within the clip.
fn check_times(segments: &[(f64, f64)], seconds: f64) {
    let mut before = 0.0;
    for &(start, end) in segments {
        assert!(before <= start + 1e-3 && start < end && end <= seconds + 0.1, "{segments:?} in {seconds} s");
        before = end;
    }
}

async fn word_error_rate(model: &str) -> f64 {
    let client = client().await;
    let mut heard = Vec::new();
    for (name, words) in transcripts() {
        let given = client.infer(Ask::of(model).bytes("audio", &[clip(&name)])).await.unwrap();
        let seconds = samples(&name).len() as f64 / f64::from(RATE);
        let times = segments(&given.one_text("segments"));
        assert!(!times.is_empty(), "{name} has segments");
        check_times(&times, seconds);
        heard.push((words, given.one_text("transcript")));
    }
    let rate = words::error_rate(heard.iter().map(|(words, heard)| (words.as_str(), heard.as_str())));
    println!("{model}: word error rate {:.2} % of five clips", 100.0 * rate);
    for (words, heard) in &heard {
        println!("  {words}\n  {heard}");
    }
    rate
}

#[tokio::test]
async fn whisper_base_hears_every_word() {
    let rate = word_error_rate("whisper-base").await;
    assert!(rate <= 0.05, "word error rate {rate}");
}

#[tokio::test]
async fn whisper_tiny_hears_nearly_every_word() {
    let rate = word_error_rate("whisper-tiny-en").await;
    assert!(rate <= 0.12, "word error rate {rate}");
}

#[tokio::test]
async fn a_clip_longer_than_a_window_is_heard_to_its_end() {
    let client = client().await;
    let mut long = Vec::new();
    let mut all = String::new();
    for (name, words) in transcripts().into_iter().chain(transcripts()) {
        long.extend(samples(&name));
        long.extend(repeat_n(0, RATE as usize));
        all = format!("{all} {words}");
    }
    let seconds = long.len() as f64 / f64::from(RATE);
    assert!(seconds > 45.0, "{seconds}");
    let given = client.infer(Ask::of("whisper-base").bytes("audio", &[wav(&long, RATE, 1)])).await.unwrap();
    check_times(&segments(&given.one_text("segments")), seconds);
    let rate = words::error_rate([(all.as_str(), given.one_text("transcript").as_str())]);
    println!("whisper-base: word error rate {:.2} % of one clip of {seconds:.0} s", 100.0 * rate);
    assert!(rate <= 0.06, "word error rate {rate}: {}", given.one_text("transcript"));
}

#[tokio::test]
async fn any_rate_and_channel_count_is_heard() {
    let client = client().await;
    let (name, words) = &transcripts()[0];
    let samples = samples(name);
    let halved: Vec<i16> = samples.iter().copied().step_by(2).collect();
    // straight lines between samples are good enough for ears of 8 kHz
    let stereo: Vec<i16> = samples
        .windows(2)
        .flat_map(|pair| {
            let (a, b) = (i32::from(pair[0]), i32::from(pair[1]));
            [a, (2 * a + b) / 3, (a + 2 * b) / 3]
        })
        .flat_map(|sample| repeat_n(i16::try_from(sample).unwrap(), 2))
        .collect();
    for (what, file) in [("8 kHz", wav(&halved, 8000, 1)), ("48 kHz stereo", wav(&stereo, 48_000, 2))] {
        let heard = transcript(&client, "whisper-base", &file).await;
        let rate = words::error_rate([(words.as_str(), heard.as_str())]);
        assert!(rate <= 0.2, "{what}: word error rate {rate}: {heard}");
    }
}

#[tokio::test]
async fn several_clips_of_one_request_are_heard_in_order() {
    let client = client().await;
    let clips = &transcripts()[1..3];
    let files: Vec<_> = clips.iter().map(|(name, _)| clip(name)).collect();
    let given = client.infer(Ask::of("whisper-tiny-en").bytes("audio", &files)).await.unwrap();
    assert_eq!(given.shape("transcript"), [2]);
    for ((_, words), heard) in clips.iter().zip(given.texts("transcript")) {
        assert!(words::error_rate([(words.as_str(), heard.as_str())]) <= 0.4, "{words} / {heard}");
    }
}

#[tokio::test]
async fn silence_has_no_words() {
    let client = client().await;
    let file = wav(&vec![0; 3 * RATE as usize], RATE, 1);
    assert_eq!(transcript(&client, "whisper-base", &file).await, "");
}

#[tokio::test]
async fn every_container_is_decoded() {
    let client = client().await;
    for name in CONTAINERS {
        for (model, output) in [("silero-vad", "segments"), ("whisper-tiny-en", "segments")] {
            let given = client.infer(Ask::of(model).bytes("audio", &[fixture(name)])).await;
            let given = given.unwrap_or_else(|status| panic!("{model} of {name}: {status}"));
            check_times(&segments(&given.one_text(output)), 1.2);
        }
    }
}

#[tokio::test]
async fn speech_is_found_where_the_reference_finds_it() {
    let client = client().await;
    let reference = reference("speech_segments");
    let silence = |n: usize| usize::try_from(reference["silence_samples"][n].as_u64().unwrap()).unwrap();
    let mut long: Vec<i16> = vec![0; silence(0)];
    for (n, name) in reference["clips"].as_array().unwrap().iter().enumerate() {
        long.extend(samples(name.as_str().unwrap()));
        long.extend(repeat_n(0, silence(n + 1)));
    }
    assert_eq!(Some(long.len() as u64), reference["samples"].as_u64());
    let given = client.infer(Ask::of("silero-vad").bytes("audio", &[wav(&long, RATE, 1)])).await.unwrap();
    let found = segments(&given.one_text("segments"));
    let wanted = reference["segments"].as_array().unwrap();
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    for ((start, end), wanted) in found.into_iter().zip(wanted) {
        let seconds = |key: &str| wanted[key].as_f64().unwrap() / f64::from(RATE);
        assert!(
            (start - seconds("start")).abs() < 0.1 && (end - seconds("end")).abs() < 0.1,
            "{start}-{end}, {wanted}"
        );
    }
}
