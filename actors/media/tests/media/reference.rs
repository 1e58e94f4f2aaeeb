//! The same answers as transformers, tokenizers in Python and silero-vad give.

use sensorium_media::audio;
use sensorium_media::mel::{FRAMES, Mel};
use sensorium_media::vad::{Options, segments};
use serde_json::Value;

use crate::audio::speech;
use crate::reference;
use crate::text::tokenizer;

fn floats(values: &Value) -> Vec<f64> {
    values.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn ids(values: &Value) -> Vec<u32> {
    values.as_array().unwrap().iter().map(|value| u32::try_from(value.as_u64().unwrap()).unwrap()).collect()
}

#[test]
fn the_mel_spectrogram_is_that_of_transformers() {
    let expected = reference("whisper_parts");
    let bytes = std::fs::read(speech().join(expected["clip"].as_str().unwrap())).unwrap();
    let clip = audio::decode(&bytes, &audio::Limits { max_bytes: 16 << 20, max_seconds: 600.0 }).unwrap();
    assert_eq!(clip.samples.len() as u64, expected["samples"].as_u64().unwrap());
    let got = Mel::new(80).unwrap().log_mel(&clip.samples);
    assert_eq!(floats(&expected["log_mel"]["shape"]), [80.0, FRAMES as f64]);
    for cell in expected["log_mel"]["cells"].as_array().unwrap() {
        let [at, value] = floats(cell)[..] else { panic!("{cell}") };
        assert!((f64::from(got[at as usize]) - value).abs() < 1e-3, "{cell}: {}", got[at as usize]);
    }
    let mean = got.iter().map(|value| f64::from(*value)).sum::<f64>() / got.len() as f64;
    assert!((mean - expected["log_mel"]["mean"].as_f64().unwrap()).abs() < 1e-4, "{mean}");
}

#[test]
fn speech_segments_are_those_of_silero_vad() {
    let expected = reference("speech_segments");
    let probabilities: Vec<f32> = floats(&expected["probabilities"]).into_iter().map(|p| p as f32).collect();
    let total = usize::try_from(expected["samples"].as_u64().unwrap()).unwrap();
    let got: Vec<Value> = segments(&probabilities, total, &Options::default())
        .iter()
        .map(|segment| serde_json::json!({ "start": segment.start, "end": segment.end }))
        .collect();
    assert_eq!(Value::from(got), expected["segments"]);
}

#[test]
fn tokens_are_those_of_the_models_own_tokenizers() {
    let expected = reference("tokens");
    for model in ["minilm", "smollm2-135m", "whisper-base", "whisper-tiny-en"] {
        let tokenizer = tokenizer(model);
        for item in expected["items"].as_array().unwrap() {
            let text = item["text"].as_str().unwrap();
            // the reference takes a special token that a text spells for one
            let got = tokenizer.encode_raw(text, 1000, false).unwrap().ids;
            if !text.contains("<|") {
                assert_eq!(tokenizer.encode(text, 1000, false).unwrap().ids, got, "{model} {text:?}");
            }
            let expected = ids(&item[model]);
            // The reference of Whisper leaves the frame out: start, (language, task,) no timestamps; end of text.
            let framed = model.starts_with("whisper");
            let frame = got.len() - expected.len();
            assert!(if framed { frame > 0 } else { frame == 0 }, "{model} {text:?}: {got:?}");
            let from = frame.saturating_sub(1);
            assert_eq!(got[from..from + expected.len()], expected, "{model} {text:?}");
        }
    }
}
