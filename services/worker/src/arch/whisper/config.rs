//! `config.json` of a WhisperForConditionalGeneration, and the token ids that follow from the vocabulary's size.

use std::ops::Range;
use std::path::Path;

use serde::Deserialize;

use crate::error::Error;
use crate::weights::read_json;

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    pub(super) d_model: i64,
    pub(super) vocab_size: i64,
    pub(super) num_mel_bins: i64,
    pub(super) encoder_layers: usize,
    pub(super) encoder_attention_heads: i64,
    pub(super) encoder_ffn_dim: i64,
    pub(super) decoder_layers: usize,
    pub(super) decoder_attention_heads: i64,
    pub(super) decoder_ffn_dim: i64,
    pub(super) max_source_positions: i64,
    pub(super) max_target_positions: i64,
    #[serde(default = "gelu")]
    pub(super) activation_function: String,
    #[serde(default)]
    suppress_tokens: Option<Vec<i64>>,
    #[serde(default)]
    begin_suppress_tokens: Option<Vec<i64>>,
}

/// Checkpoints of Hugging Face keep the suppressed tokens here, older ones in `config.json`.
#[derive(Debug, Default, Deserialize)]
struct Generation {
    #[serde(default)]
    suppress_tokens: Option<Vec<i64>>,
    #[serde(default)]
    begin_suppress_tokens: Option<Vec<i64>>,
}

fn gelu() -> String {
    "gelu".to_owned()
}

impl Config {
    pub(super) fn read(directory: &Path) -> Result<Self, Error> {
        let mut config: Self = read_json(&directory.join("config.json"))?;
        let path = directory.join("generation_config.json");
        let generation = if path.exists() { read_json(&path)? } else { Generation::default() };
        config.suppress_tokens = generation.suppress_tokens.or(config.suppress_tokens);
        config.begin_suppress_tokens = generation.begin_suppress_tokens.or(config.begin_suppress_tokens);
        let divides = |heads: i64| heads > 0 && config.d_model % heads == 0;
        if !divides(config.encoder_attention_heads) || !divides(config.decoder_attention_heads) {
            return Err(Error::Load("config.json: attention heads must divide d_model".to_owned()));
        }
        Ok(config)
    }
}

/// Timestamp tokens: 0.00 to 30.00 s in steps of 0.02 s, the last of the vocabulary.
pub(super) const TIMESTAMPS: i64 = 1501;
/// Tokens of the multilingual vocabulary that are neither text, language nor timestamp… and one more than the English.
const MULTILINGUAL_EOT: i64 = 50257;

/// Ids of the special tokens. All vocabularies order them alike: text, end of text, start of transcript, languages,
/// translate, transcribe, start of LM, start of previous, no speech, no timestamps, timestamps.
#[derive(Clone, Debug)]
pub(super) struct Tokens {
    pub(super) end_of_text: i64,
    pub(super) start: i64,
    pub(super) languages: Range<i64>,
    pub(super) transcribe: i64,
    pub(super) no_speech: i64,
    pub(super) timestamps: Range<i64>,
    pub(super) multilingual: bool,
    /// Never chosen.
    pub(super) suppressed: Vec<i64>,
    /// Not chosen first.
    pub(super) suppressed_first: Vec<i64>,
}

impl Tokens {
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        let size = config.vocab_size;
        // 51864 is the English vocabulary, 51865 the multilingual one with 99 languages, 51866 with 100
        let multilingual = size >= 51865;
        let end_of_text = MULTILINGUAL_EOT - i64::from(!multilingual);
        let first_timestamp = size - TIMESTAMPS;
        let start = end_of_text + 1;
        let translate = first_timestamp - 6;
        if translate <= start {
            return Err(Error::Load(format!("config.json: vocab_size {size}, expected 51864 or more")));
        }
        let mut suppressed = config.suppress_tokens.clone().unwrap_or_default();
        // translate … no timestamps: none of them is ever an answer
        suppressed.extend(translate..first_timestamp);
        suppressed.push(start);
        let mut suppressed_first = config.begin_suppress_tokens.clone().unwrap_or_default();
        suppressed_first.push(end_of_text);
        for list in [&mut suppressed, &mut suppressed_first] {
            // -1 stands in some configurations for "the tokenizer's default list"
            list.retain(|token| (0..size).contains(token));
            list.sort_unstable();
            list.dedup();
        }
        Ok(Self {
            end_of_text,
            start,
            languages: start + 1..translate,
            transcribe: translate + 1,
            no_speech: first_timestamp - 2,
            timestamps: first_timestamp..size,
            multilingual,
            suppressed,
            suppressed_first,
        })
    }
}
