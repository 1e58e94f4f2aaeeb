//! `sensorium infer`: text, image and audio in; what each sense says, and an answer, out.

pub(super) mod report;
mod show;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sensorium_proto::v1::part::Content;
use sensorium_proto::v1::sensorium_client::SensoriumClient;
use sensorium_proto::v1::understand_event::Event;
use sensorium_proto::v1::{Emphasis, Modality, Part, Sampling, UnderstandRequest};

use super::connect::{self, MAX_ANSWER, With};
use super::failure::Failure;
use super::output::{self, Output};

/// Arguments of `sensorium infer`.
#[derive(clap::Args, Clone, Debug)]
pub struct InferArgs {
    #[command(flatten)]
    with: With,
    /// A sentence.
    #[arg(long)]
    text: Option<String>,
    /// A picture: JPEG, PNG, WebP, GIF, BMP or TIFF.
    #[arg(long)]
    image: Option<PathBuf>,
    /// A clip: WAV, AIFF, CAF, FLAC, MP3, AAC, M4A, Ogg, WebM or Matroska.
    #[arg(long)]
    audio: Option<PathBuf>,
    /// What to answer. Left out: the text, or what is going on.
    #[arg(long, default_value = "")]
    question: String,
    #[command(flatten)]
    emphasis: Emphasised,
    /// Without a written answer.
    #[arg(long)]
    no_answer: bool,
    /// Tokens of the answer at most. Left out: the server's default.
    #[arg(long)]
    max_tokens: Option<u32>,
    /// 0 writes the most probable answer; more, a less predictable one. Left out: 0.
    #[arg(long)]
    temperature: Option<f64>,
    /// The same seed writes the same answer.
    #[arg(long)]
    seed: Option<u64>,
    /// When to have the answer, as 500ms, 30s or 2m: a sense that is late is left out.
    #[arg(long, value_name = "DURATION", value_parser = connect::duration)]
    timeout: Option<Duration>,
}

/// How much each sense counts.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Emphasised {
    /// How much a sense counts, as `image=2.0`; 1 if left out. May be repeated.
    #[arg(long, value_name = "SENSE=WEIGHT", value_parser = weight)]
    weight: Vec<(Modality, f64)>,
    /// A sense that is not to be used, as `audio`. May be repeated.
    #[arg(long, value_name = "SENSE", value_parser = sense)]
    mute: Vec<Modality>,
}

impl Emphasised {
    /// One entry per sense that is named.
    pub(super) fn entries(&self) -> Vec<Emphasis> {
        emphasis(&self.weight, &self.mute)
    }
}

/// Runs the verb.
///
/// # Errors
/// If it could not be done.
pub async fn run(args: InferArgs) -> Result<(), Failure> {
    let mut request = tonic::Request::new(request(&args).await?);
    if let Some(timeout) = args.timeout {
        request.set_timeout(timeout);
    }
    let channel = args.with.server.connect().await?;
    let mut client = SensoriumClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let mut events = client.understand(request).await?.into_inner();
    let mut screen = show::Screen::default();
    while let Some(event) = events.message().await? {
        match (event.event, args.with.output) {
            (Some(Event::Result(result)), Output::Json) => {
                return output::json(&report::Report::from(result));
            }
            (Some(event), Output::Text) => {
                let last = matches!(event, Event::Result(_));
                screen.tell(event)?;
                if last {
                    return Ok(());
                }
            }
            // events before the last one, and those of a newer server
            (Some(_), Output::Json) | (None, _) => {}
        }
    }
    Err(tonic::Status::data_loss("the answer ended without a result").into())
}

async fn request(args: &InferArgs) -> Result<UnderstandRequest, Failure> {
    let mut contents = Vec::new();
    contents.extend(args.text.clone().map(Content::Text));
    if let Some(path) = &args.image {
        contents.push(Content::Image(read("--image", path).await?.into()));
    }
    if let Some(path) = &args.audio {
        contents.push(Content::Audio(read("--audio", path).await?.into()));
    }
    if contents.is_empty() {
        return Err(Failure::Usage("nothing to sense: give at least one of --text, --image and --audio".to_owned()));
    }
    let sampling = Sampling {
        max_tokens: args.max_tokens.unwrap_or(0),
        temperature: args.temperature,
        seed: args.seed,
        ..Sampling::default()
    };
    Ok(UnderstandRequest {
        parts: contents.into_iter().map(|content| Part { content: Some(content) }).collect(),
        emphasis: args.emphasis.entries(),
        question: args.question.clone(),
        no_answer: args.no_answer,
        sampling: Some(sampling),
    })
}

async fn read(flag: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    tokio::fs::read(path).await.map_err(|error| Failure::Usage(format!("{flag} {}: {error}", path.display())))
}

/// One entry per sense; the last weight given for it counts.
fn emphasis(weights: &[(Modality, f64)], mutes: &[Modality]) -> Vec<Emphasis> {
    let senses = [Modality::Text, Modality::Image, Modality::Audio];
    let of = |sense: Modality| {
        let weight = weights.iter().rev().find(|(of, _)| *of == sense).map(|(_, weight)| *weight);
        let mute = mutes.contains(&sense);
        (mute || weight.is_some()).then(|| Emphasis { modality: sense.into(), weight, mute, budget_ms: None })
    };
    senses.into_iter().filter_map(of).collect()
}

fn sense(text: &str) -> Result<Modality, String> {
    match text {
        "text" => Ok(Modality::Text),
        "image" => Ok(Modality::Image),
        "audio" => Ok(Modality::Audio),
        _ => Err(format!("'{text}', expected text, image or audio")),
    }
}

fn weight(text: &str) -> Result<(Modality, f64), String> {
    let (name, number) = text.split_once('=').ok_or("expected SENSE=WEIGHT, as image=2.0")?;
    let number: f64 = number.parse().map_err(|_| format!("'{number}', expected a number"))?;
    if !number.is_finite() || number < 0.0 {
        return Err(format!("{number}, expected 0 or more"));
    }
    Ok((sense(name)?, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_name_their_sense() {
        assert_eq!(weight("image=2.5"), Ok((Modality::Image, 2.5)));
        for bad in ["image", "smell=1", "text=-1", "text=NaN", "text="] {
            assert!(weight(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_sense_has_one_entry() {
        let entries = emphasis(&[(Modality::Image, 2.0), (Modality::Image, 3.0)], &[Modality::Audio, Modality::Image]);
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].modality(), entries[0].weight, entries[0].mute), (Modality::Image, Some(3.0), true));
        assert_eq!((entries[1].modality(), entries[1].weight, entries[1].mute), (Modality::Audio, None, true));
    }
}
