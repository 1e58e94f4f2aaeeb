//! Prompt to continuation, at once or piece by piece.

use std::sync::Arc;

use futures::StreamExt;
use futures::future::try_join_all;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::prompt::{self, Prompt};
use super::{Answer, Assets, Pool, elements, inputs, named};
use crate::batching::entry::{Generation, Piece};
use crate::error::{Error, Result};
use crate::replica::sampler::Sampling;
use crate::request::{Context, Parameter, Parameters, Reply, ReplyStream, Request, Resume, TRUNCATED};
use crate::tensor::Tensor;
use crate::worker::served::Served;

/// A generation that has been accepted.
struct Started {
    pieces: mpsc::UnboundedReceiver<Result<Piece>>,
    prompt: Prompt,
    sampling: Sampling,
}

/// Parameters that a generation reads: those of [`sampling`], and `raw`.
pub(super) const PARAMETERS: [&str; 7] = ["max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "raw"];

/// Tries of a generation whose batcher was lost.
const TRIES: u32 = 5;

/// `text` BYTES `[n]`: the whole continuation of each prompt.
pub(super) async fn complete(
    served: &Arc<Served>,
    request: &Request,
    context: &Context,
    pool: &Pool,
) -> Result<Answer> {
    let started = start(served, request, context, pool).await?;
    let single = started.len() == 1;
    let written = started.into_iter().map(|mut started| async move {
        for _ in 0..TRIES {
            let mut whole = String::new();
            while let Some(piece) = started.pieces.recv().await {
                let piece = piece?;
                whole.push_str(&piece.text);
                if piece.finish.is_some() {
                    return Ok((whole, piece, started.prompt));
                }
            }
            if !served.manifest.routing.idempotent {
                return Err(Error::begun(&served.manifest.name, "it was lost"));
            }
            // lost with its batcher; nobody has seen any of it, and the same seed writes the same again
            started = submit(served, started.prompt, started.sampling, Resume::default(), context).await?;
        }
        Err(Error::lost(&served.manifest.name))
    });
    let written = context.bound(&format!("generating with {}", served.manifest.name), try_join_all(written)).await?;
    let mut parameters = Parameters::default();
    if single {
        for (_, last, prompt) in &written {
            finish(&mut parameters, last, prompt, served);
        }
    }
    let texts: Vec<&str> = written.iter().map(|(text, ..)| text.as_str()).collect();
    Ok((vec![named(&served.manifest.outputs[0].name, Tensor::from_elements(&texts))], parameters))
}

/// The same, a reply per piece. One prompt only.
pub async fn stream(served: Arc<Served>, request: Request, context: Context, pool: Pool) -> Result<ReplyStream> {
    let rows = inputs::check(&served.manifest, &request)?;
    if rows != 1 {
        let field = format!("inputs.{}.shape", served.manifest.inputs[0].name);
        return Err(Error::invalid(field, format!("{rows} prompts, a stream takes 1")));
    }
    let mut started = start(&served, &request, &context, &pool).await?;
    let Some(Started { pieces, prompt, .. }) = started.pop() else {
        return Err(Error::Internal("no generation was started".to_owned()));
    };
    let output = served.manifest.outputs[0].name.clone();
    let (model, version) = (request.model.clone(), served.version);
    let mut over = false;
    let pieces = UnboundedReceiverStream::new(pieces).map(Some).chain(futures::stream::once(async { None }));
    Ok(Box::pin(pieces.filter_map(move |piece| {
        let reply = match piece {
            Some(Ok(piece)) => {
                let mut parameters = Parameters::default();
                over = piece.finish.is_some();
                if over {
                    finish(&mut parameters, &piece, &prompt, &served);
                }
                let outputs = vec![named(&output, Tensor::from_elements(&[&piece.text]))];
                Some(Ok(Reply { model: model.clone(), version, outputs, parameters, last: over, tokens: piece.fresh }))
            }
            Some(Err(error)) => {
                over = true;
                Some(Err(error))
            }
            // the channel closed in the middle of the text
            None if !over => Some(Err(Error::lost(&served.manifest.name))),
            None => None,
        };
        std::future::ready(reply)
    })))
}

fn finish(parameters: &mut Parameters, last: &Piece, prompt: &Prompt, served: &Served) {
    let reason = last.finish.map_or("", |finish| finish.as_str());
    parameters.set("finish_reason", Parameter::String(reason.to_owned()));
    parameters.set("prompt_tokens", Parameter::Uint(prompt.ids.len() as u64));
    parameters.set("completion_tokens", Parameter::Uint(last.tokens as u64));
    if let Some(tokens) = prompt.cut_from {
        let cut = serde_json::json!([{"row": 0, "tokens": tokens, "limit": served.manifest.limits.max_tokens}]);
        parameters.set(TRUNCATED, Parameter::String(cut.to_string()));
    }
}

async fn start(served: &Arc<Served>, request: &Request, context: &Context, pool: &Pool) -> Result<Vec<Started>> {
    let (field, prompts) = elements(&served.manifest, request)?;
    let sampling = sampling(&request.parameters, served.manifest.generation.default_max_tokens)?;
    let raw = request.parameters.flag("raw")?.unwrap_or(false);
    let owner = served.clone();
    let encoded: Vec<Prompt> = pool
        .run(move || {
            let Assets::Generation(generator) = &owner.assets else {
                return Err(Error::Internal("a generation pipeline without a tokeniser".to_owned()));
            };
            let prompts = prompts.iter().enumerate();
            prompts
                .map(|(at, prompt)| prompt::encode(generator, &owner.manifest, &format!("{field}[{at}]"), prompt, raw))
                .collect::<Result<_>>()
        })
        .await??;
    let mut started = Vec::with_capacity(encoded.len());
    let resume = request.resume.clone().unwrap_or_default();
    for prompt in encoded {
        started.push(submit(served, prompt, sampling.clone(), resume.clone(), context).await?);
    }
    Ok(started)
}

/// Puts a sequence into the queue, again if the batcher is lost in that moment.
async fn submit(
    served: &Served,
    prompt: Prompt,
    sampling: Sampling,
    resume: Resume,
    context: &Context,
) -> Result<Started> {
    let mut tries = 0;
    loop {
        tries += 1;
        let (sink, pieces) = mpsc::unbounded_channel();
        let generation = Generation {
            prompt: prompt.ids.clone(),
            generated: resume.tokens.clone(),
            sent: resume.sent,
            told: resume.tokens.len(),
            sampling: sampling.clone(),
            sink,
        };
        match served.generate(generation, context).await {
            Ok(()) => return Ok(Started { pieces, prompt, sampling }),
            Err(Error::Unavailable { reason: "RESTARTING", .. }) if tries < TRIES => {
                Box::pin(tokio::time::sleep(std::time::Duration::from_millis(20 << tries))).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// How to continue a text, as a request's parameters say.
///
/// # Errors
/// `InvalidArgument` with the parameter that is none, or out of its range.
pub fn sampling(parameters: &Parameters, default_max_tokens: usize) -> Result<Sampling> {
    let bounded = |name: &str, low: f64, high: f64, default: f64| -> Result<f64> {
        let value = parameters.number(name)?.unwrap_or(default);
        if (low..=high).contains(&value) {
            Ok(value)
        } else {
            Err(Error::invalid(format!("parameters.{name}"), format!("{value}, expected {low} to {high}")))
        }
    };
    let most = 1u64 << 20;
    let max_tokens = match parameters.count("max_tokens")? {
        None => default_max_tokens,
        Some(count) if (1..=most).contains(&count) => usize::try_from(count).unwrap_or(usize::MAX),
        Some(count) => return Err(Error::invalid("parameters.max_tokens", format!("{count}, expected 1 to {most}"))),
    };
    #[allow(clippy::cast_possible_truncation)]
    Ok(Sampling {
        max_tokens,
        temperature: bounded("temperature", 0.0, 10.0, 0.0)? as f32,
        top_p: bounded("top_p", 0.0, 1.0, 1.0)? as f32,
        top_k: usize::try_from(parameters.count("top_k")?.unwrap_or(0)).unwrap_or(usize::MAX),
        seed: parameters.count("seed")?.unwrap_or_else(rand::random),
        stop: stop(parameters)?,
    })
}

/// One string, or a JSON list of up to 16, since a parameter holds no list.
fn stop(parameters: &Parameters) -> Result<Vec<String>> {
    let Some(text) = parameters.text("stop")? else { return Ok(Vec::new()) };
    let stops = match serde_json::from_str::<Vec<String>>(text) {
        Ok(list) => list,
        Err(_) => vec![text.to_owned()],
    };
    if stops.len() > 16 {
        return Err(Error::invalid("parameters.stop", format!("{} strings, expected at most 16", stops.len())));
    }
    Ok(stops.into_iter().filter(|stop| !stop.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_none_are_no_way_to_sample() {
        let with = |name: &str, value: f64| {
            let mut parameters = Parameters::default();
            parameters.set(name, Parameter::Float(value));
            sampling(&parameters, 1)
        };
        for name in ["temperature", "top_p"] {
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e-300, 1e300] {
                let error = with(name, value).unwrap_err();
                assert!(error.to_string().starts_with(&format!("parameters.{name}")), "{error}");
            }
            with(name, 0.5).unwrap();
        }
    }

    #[test]
    fn stop_is_a_string_or_a_list() {
        let with = |value: &str| {
            let mut parameters = Parameters::default();
            parameters.set("stop", Parameter::String(value.to_owned()));
            stop(&parameters)
        };
        assert_eq!(with("\n").unwrap(), ["\n"]);
        assert_eq!(with(r#"["a", "b", ""]"#).unwrap(), ["a", "b"]);
        assert!(with(&serde_json::to_string(&vec!["x"; 17]).unwrap()).is_err());
    }
}
