//! A user's prompt to tokens, within the model's limit and its chat template.

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
pub(super) fn encode(
    generator: &Generator,
    manifest: &Manifest,
    field: &str,
    prompt: &[u8],
    raw: bool,
) -> Result<Prompt> {
    let (limits, tokenizer) = (&manifest.limits, &generator.tokenizer);
    let invalid = |error: sensorium_media::text::Error| Error::invalid(field, error);
    let prompt = text::utf8(field, prompt, limits)?;
    if prompt.is_empty() {
        return Err(Error::invalid(field, "empty, expected a prompt"));
    }
    let most = limits.max_tokens;
    if raw {
        let encoded = tokenizer.encode(prompt, most, limits.truncate).map_err(invalid)?;
        let cut_from = encoded.truncated.then_some(encoded.total);
        return checked(field, Prompt { ids: encoded.ids, cut_from });
    }
    // what a user writes must not end the user's turn
    let mut prompt = prompt.replace("<|", "<\u{200b}|");
    let whole = |prompt: &str| manifest.generation.chat_template.replace("{prompt}", prompt);
    let mut cut_from = None;
    let mut room = most;
    loop {
        let encoded = tokenizer.encode(&whole(&prompt), most, limits.truncate).map_err(invalid)?;
        if !encoded.truncated {
            return checked(field, Prompt { ids: encoded.ids, cut_from });
        }
        let total = *cut_from.get_or_insert(encoded.total);
        // the first time that is all but the template, then whatever the seams still take
        let over = if room == most { tokenizer.encode(&whole(""), most, true).map_err(invalid)?.total } else { encoded.total - most };
        room = room.saturating_sub(over);
        if room == 0 {
            let why = format!("{total} tokens, and the limit of {most} has no room for any beside the chat template");
            return Err(Error::invalid(field, why));
        }
        let kept = tokenizer.encode(&prompt, room, true).map_err(invalid)?;
        prompt = tokenizer.decode(&kept.ids, true).map_err(invalid)?;
    }
}

fn checked(field: &str, prompt: Prompt) -> Result<Prompt> {
    if prompt.ids.is_empty() {
        return Err(Error::invalid(field, "no tokens, expected a prompt"));
    }
    Ok(prompt)
}
