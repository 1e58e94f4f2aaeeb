//! A user's prompt to tokens, within the model's limit and its chat template.

use sensorium_media::text::Frame;

use super::text;
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::replica::generate::Generator;

/// A prompt in tokens.
#[derive(Clone)]
pub(super) struct Prompt {
    pub(super) ids: Vec<u32>,
    /// How many there would have been, if it was cut.
    pub(super) cut_from: Option<usize>,
}

/// Tokens of `prompt` in the chat template of the manifest, or as it is if `raw`. Where it is longer than the limit and the
/// manifest says `truncate`, the user's text loses its end; what the template says after it is the model's cue to answer.
/// What a user writes is text: a control token that it spells does not end the user's turn. Of a `raw` prompt the caller
/// writes the turns, too.
pub(super) fn encode(
    generator: &Generator,
    manifest: &Manifest,
    field: &str,
    prompt: &[u8],
    raw: bool,
) -> Result<Prompt> {
    let (limits, tokenizer) = (&manifest.limits, &generator.tokenizer);
    let prompt = text::utf8(field, prompt, limits)?;
    if prompt.is_empty() {
        return Err(Error::invalid(field, "empty, expected a prompt"));
    }
    let most = limits.max_tokens;
    let encoded = if raw {
        tokenizer.encode_raw(prompt, most, limits.truncate)
    } else {
        let template = manifest.generation.chat_template.as_str();
        let (before, after) = template.split_once("{prompt}").unwrap_or((template, ""));
        tokenizer.encode_framed(prompt, Frame { before, after }, most, limits.truncate)
    };
    let encoded = encoded.map_err(|error| Error::invalid(field, error))?;
    if encoded.ids.is_empty() {
        return Err(Error::invalid(field, "no tokens, expected a prompt"));
    }
    let cut_from = encoded.truncated.then_some(encoded.total);
    Ok(Prompt { ids: encoded.ids, cut_from })
}

#[cfg(test)]
mod tests {
    use sensorium_media::text::Tokenizer;

    use super::*;

    /// Of one token a word, `w0` to `w99`, `<u>` and `<a>` for the turns.
    fn generator() -> Generator {
        let words = (0..100).map(|n| format!("w{n}")).chain(["<u>", "<a>", "[UNK]"].map(str::to_owned));
        let vocabulary: serde_json::Map<_, _> = words.enumerate().map(|(id, word)| (word, id.into())).collect();
        let file = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, file.to_string()).unwrap();
        Generator { tokenizer: Tokenizer::from_file(&path).unwrap(), end: Vec::new() }
    }

    #[test]
    fn a_long_prompt_loses_its_own_end_and_not_the_templates() {
        let generator = generator();
        let manifest =
            Manifest::generator("[limits]\nmax_tokens = 10\n[generation]\nchat_template = \"<u> {prompt} <a> w99\"");
        let encode = |words: usize, raw| {
            let prompt: Vec<String> = (0..words).map(|n| format!("w{n}")).collect();
            super::encode(&generator, &manifest, "prompt", prompt.join(" ").as_bytes(), raw)
        };
        let ids =
            |words: std::ops::Range<u32>| -> Vec<u32> { [100].into_iter().chain(words).chain([101, 99]).collect() };
        let whole = encode(7, false).unwrap();
        assert_eq!((whole.ids, whole.cut_from), (ids(0..7), None));
        for words in [8, 20, 99] {
            let cut = encode(words, false).unwrap();
            assert_eq!((cut.ids, cut.cut_from), (ids(0..7), Some(words + 3)));
        }
        let raw = encode(20, true).unwrap();
        assert_eq!((raw.ids, raw.cut_from), ((0..10).collect(), Some(20)));
    }

    #[test]
    fn a_template_that_leaves_no_room_and_a_text_of_no_tokens_are_refused() {
        let generator = generator();
        let narrow =
            Manifest::generator("[limits]\nmax_tokens = 3\n[generation]\nchat_template = \"<u> {prompt} <a> w99\"");
        let why = super::encode(&generator, &narrow, "prompt", b"w1 w2", false).err().unwrap();
        assert!(why.to_string().contains("no room"), "{why}");
        let plain = Manifest::generator("");
        let why = super::encode(&generator, &plain, "prompt", b"  \n", true).err().unwrap();
        assert!(why.to_string().contains("no tokens"), "{why}");
    }
}
