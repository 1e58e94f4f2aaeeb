//! Whisper (Radford et al., 2022): windows of 30 s to text with timestamps.
//!
//! | engine tensor | datatype, shape |
//! | --- | --- |
//! | in `mel` | FP32 `[n, mels, 3000]`, log-mel as Whisper's front end makes it |
//! | in `language` | INT64 `[n]`, the language's token, -1 to detect it; English-only models ignore it |
//! | in `temperature` | FP32 `[n]`, 0 for the likeliest tokens, above it they are sampled, from a seed of its own |
//! | out `tokens` | INT64 `[n, t]`, text and timestamp tokens, padded with -1 |
//! | out `avg_logprob` | FP32 `[n]`, mean log-probability of the tokens and the end |
//! | out `no_speech_prob` | FP32 `[n]` |
//! | out `language` | INT64 `[n]`, the language's token, -1 for English-only models |
//! | out `feature` | FP32 `[n, d]`, mean over the encoder's frames |
//! | out `language_prob` | FP32 `[n, languages]`, in the order of their tokens; none for English-only models |
//! | out `ending` | INT64 `[n]`, 0: the model ended, 1: at half of the decoder's context, 2: it looped |

mod attention;
mod config;
mod decoder;
mod decoding;
mod encoder;

use std::path::Path;

use sensorium_actors::engine::Pulse;
use sensorium_actors::manifest::Generation;
use sensorium_actors::tensor::DataType;
use tch::{Device, Kind, Tensor};

use self::config::{Config, Tokens};
use self::decoder::{Decoder, State};
use self::decoding::{Dice, Ending, Hypothesis, detect_language, language_probabilities, probability};
use self::encoder::Encoder;
use crate::convert;
use crate::error::Error;
use crate::network::{Network, Port};
use crate::weights::Weights;

/// The model.
pub(crate) struct Whisper {
    config: Config,
    tokens: Tokens,
    encoder: Encoder,
    decoder: Decoder,
    kind: Kind,
}

/// What is known of a batch before its first token.
struct Opening {
    languages: Vec<i64>,
    no_speech: Vec<f32>,
    /// Probability of each language, a row per window.
    language_probabilities: Vec<f32>,
    /// Logits of the first token, a row per window.
    logits: Vec<f32>,
}

impl Whisper {
    pub(crate) fn load(directory: &Path, weights: &Weights, generation: &Generation) -> Result<Self, Error> {
        let config = Config::read(directory)?;
        let int8_max_rows = if weights.device() == Device::Cpu { generation.int8_max_sequences } else { 0 };
        Ok(Self {
            tokens: Tokens::new(&config)?,
            encoder: Encoder::load(weights, &config)?,
            decoder: Decoder::load(weights, &config, int8_max_rows)?,
            kind: weights.kind(),
            config,
        })
    }

    /// Bytes of the int8 copies.
    pub(crate) fn int8_bytes(&self) -> u64 {
        self.decoder.int8_bytes()
    }

    /// Tokens decoded of a window at most: half the decoder's context, the other half is for a prompt.
    fn limit(&self) -> usize {
        usize::try_from(self.config.max_target_positions / 2).unwrap_or(0)
    }

    fn languages(&self, given: &Tensor) -> Result<Vec<i64>, Error> {
        let given = convert::to_i64(given)?;
        let Tokens { languages, multilingual, .. } = &self.tokens;
        let unknown = given.iter().find(|&&token| token != -1 && !languages.contains(&token));
        if let Some(bad) = unknown.filter(|_| *multilingual) {
            let (first, last) = (languages.start, languages.end - 1);
            return Err(Error::Input(format!("language {bad}, expected -1 or a language token, {first} to {last}")));
        }
        Ok(given)
    }

    /// Feeds a column of prompt tokens per entry of `columns`, and returns the hidden states `[n, t, d]`.
    fn feed(&self, columns: &[Vec<i64>], state: &mut State) -> Result<Tensor, Error> {
        let columns = columns.iter().map(|column| Tensor::f_from_slice(column)).collect::<Result<Vec<_>, _>>()?;
        let tokens = Tensor::f_stack(&columns, 1)?.f_to_device(self.decoder.device())?;
        self.decoder.advance(&tokens, state)
    }

    fn logits(&self, hidden: &Tensor, position: i64) -> Result<Vec<f32>, Error> {
        convert::to_f32(&self.decoder.logits(&hidden.f_select(1, position)?)?)
    }

    /// Feeds the prompt: start of transcript and, for multilingual models, language and task.
    fn open(&self, mut languages: Vec<i64>, state: &mut State) -> Result<Opening, Error> {
        let start = vec![self.tokens.start; languages.len()];
        let (first, last) = if !self.tokens.multilingual {
            let hidden = self.feed(&[start], state)?;
            languages.fill(-1);
            let logits = self.logits(&hidden, 0)?;
            (logits.clone(), logits)
        } else {
            let task = vec![self.tokens.transcribe; languages.len()];
            if languages.contains(&-1) {
                let first = self.logits(&self.feed(&[start], state)?, 0)?;
                for (language, row) in languages.iter_mut().zip(first.chunks_exact(self.vocabulary())) {
                    if *language == -1 {
                        *language = detect_language(row, &self.tokens);
                    }
                }
                (first, self.logits(&self.feed(&[languages.clone(), task], state)?, 1)?)
            } else {
                let hidden = self.feed(&[start, languages.clone(), task], state)?;
                (self.logits(&hidden, 0)?, self.logits(&hidden, 2)?)
            }
        };
        let rows = || first.chunks_exact(self.vocabulary());
        let language_probabilities = if self.tokens.multilingual {
            rows().flat_map(|row| language_probabilities(row, &self.tokens)).collect()
        } else {
            Vec::new()
        };
        let no_speech = rows().map(|row| probability(row, self.tokens.no_speech)).collect();
        Ok(Opening { languages, no_speech, language_probabilities, logits: last })
    }

    fn vocabulary(&self) -> usize {
        usize::try_from(self.config.vocab_size).unwrap_or(1)
    }

    /// Decodes every window to its end, at its temperature.
    fn decode(
        &self,
        mut logits: Vec<f32>,
        temperatures: &[f32],
        state: &mut State,
        pulse: &dyn Pulse,
    ) -> Result<Vec<Hypothesis>, Error> {
        let mut dice: Vec<Option<Dice>> = temperatures.iter().map(|temperature| Dice::new(*temperature)).collect();
        let mut hypotheses: Vec<Hypothesis> = state.rows.iter().map(|_| Hypothesis::default()).collect();
        loop {
            pulse.beat()?;
            let mut places = Vec::with_capacity(state.rows.len());
            let mut next = Vec::with_capacity(state.rows.len());
            for (place, (&row, logits)) in state.rows.iter().zip(logits.chunks_exact_mut(self.vocabulary())).enumerate()
            {
                let row = usize::try_from(row).unwrap_or(0);
                let hypothesis = &mut hypotheses[row];
                let (token, logprob) = hypothesis.choose(logits, &self.tokens, dice[row].as_mut());
                if !hypothesis.push(token, logprob, &self.tokens, self.limit()) {
                    places.push(i64::try_from(place).unwrap_or(0));
                    next.push(token);
                }
            }
            if places.is_empty() {
                return Ok(hypotheses);
            }
            if places.len() < state.rows.len() {
                state.keep(&places)?;
            }
            logits = self.logits(&self.feed(&[next], state)?, 0)?;
        }
    }
}

impl Network for Whisper {
    fn inputs(&self) -> Vec<Port> {
        let frames = 2 * self.config.max_source_positions;
        vec![
            Port::new("mel", DataType::Fp32, &[-1, self.config.num_mel_bins, frames]),
            Port::new("language", DataType::Int64, &[-1]),
            Port::new("temperature", DataType::Fp32, &[-1]),
        ]
    }

    fn outputs(&self) -> Vec<DataType> {
        use DataType::{Fp32, Int64};
        vec![Int64, Fp32, Fp32, Int64, Fp32, Fp32, Int64]
    }

    fn forward(&self, inputs: &[Tensor], pulse: &dyn Pulse) -> Result<Vec<Tensor>, Error> {
        let languages = self.languages(&inputs[1])?;
        if languages.is_empty() {
            return Err(Error::Input("no windows given, expected at least one".to_owned()));
        }
        let temperatures = convert::to_f32(&inputs[2])?;
        if let Some(bad) = temperatures.iter().find(|temperature| !(0.0..=10.0).contains(*temperature)) {
            return Err(Error::Input(format!("temperature {bad}, expected 0 to 10")));
        }
        let encoded = self.encoder.forward(&inputs[0].f_to_kind(self.kind)?, pulse)?;
        let feature = encoded.f_mean_dim([1].as_slice(), false, Kind::Float)?;
        pulse.beat()?;
        // the prompt is at most three tokens
        let mut state = self.decoder.start(&encoded, 3 + i64::try_from(self.limit()).unwrap_or(0))?;
        let opening = self.open(languages, &mut state)?;
        let hypotheses = self.decode(opening.logits, &temperatures, &mut state, pulse)?;

        let width = hypotheses.iter().map(|hypothesis| hypothesis.tokens.len()).max().unwrap_or(0);
        let mut tokens = vec![-1; hypotheses.len() * width];
        for (at, hypothesis) in hypotheses.iter().enumerate() {
            tokens[at * width..at * width + hypothesis.tokens.len()].copy_from_slice(&hypothesis.tokens);
        }
        let logprobs: Vec<f32> = hypotheses.iter().map(Hypothesis::average_logprob).collect();
        let languages = i64::try_from(opening.language_probabilities.len() / hypotheses.len()).unwrap_or(0);
        let endings = hypotheses.iter().map(|hypothesis| hypothesis.ending.unwrap_or(Ending::Length) as i64);
        let endings: Vec<i64> = endings.collect();
        let rows = i64::try_from(hypotheses.len()).unwrap_or(0);
        Ok(vec![
            Tensor::f_from_slice(&tokens)?.f_view([rows, i64::try_from(width).unwrap_or(0)])?,
            Tensor::f_from_slice(&logprobs)?,
            Tensor::f_from_slice(&opening.no_speech)?,
            Tensor::f_from_slice(&opening.languages)?,
            feature,
            Tensor::f_from_slice(&opening.language_probabilities)?.f_view([rows, languages])?,
            Tensor::f_from_slice(&endings)?,
        ])
    }
}
