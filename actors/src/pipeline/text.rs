//! Text to sentence embedding, and to the judgement of a guard that reads that embedding.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::{Answer, Assets, Pool, elements, join, named, scores, unexpected};
use crate::error::{Error, Result};
use crate::manifest::{Limits, Manifest};
use crate::request::{Context, Parameter, Parameters, Request, TRUNCATED};
use crate::tensor::{self, Tensor};
use crate::worker::served::{Row, Served};

pub(super) async fn embed(served: &Arc<Served>, request: &Request, context: &Context, pool: &Pool) -> Result<Answer> {
    let (field, texts) = elements(&served.manifest, request)?;
    let (rows, truncated) = {
        let served = served.clone();
        pool.run(move || tokenise(&served, &field, &texts)).await??
    };
    let replies = try_join_all(rows.into_iter().map(|row| served.forward(row, context))).await?;
    let output = &served.manifest.outputs[0].name;
    let mut parameters = Parameters::default();
    if !truncated.is_empty() {
        parameters.set(TRUNCATED, Parameter::String(truncated));
    }
    Ok((vec![named(output, join(&replies, 0)?)], parameters))
}

/// Rows, and a JSON list of those that were cut: `[{"row":0,"tokens":300,"limit":256}]`, or nothing.
fn tokenise(served: &Served, field: &str, texts: &[Bytes]) -> Result<(Vec<Row>, String)> {
    let Assets::Text(tokenizer) = &served.assets else {
        return Err(Error::Internal("a text pipeline without a tokeniser".to_owned()));
    };
    let limits = &served.manifest.limits;
    let mut cut = Vec::new();
    let mut rows = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let text = utf8(&field, text, limits)?;
        let encoded = tokenizer
            .encode(text, limits.max_tokens, limits.truncate)
            .map_err(|error| Error::invalid(&field, error))?;
        if encoded.ids.is_empty() {
            return Err(Error::invalid(&field, "no tokens, expected a text"));
        }
        if encoded.truncated {
            cut.push(serde_json::json!({"row": index, "tokens": encoded.total, "limit": limits.max_tokens}));
        }
        rows.push(row(&encoded.ids).map_err(unexpected)?);
    }
    let cut = if cut.is_empty() { String::new() } else { serde_json::Value::from(cut).to_string() };
    Ok((rows, cut))
}

/// `input_ids` and `attention_mask`, each INT64 `[1, length]`; a batch pads both with zeros.
fn row(ids: &[u32]) -> Result<Row, tensor::Error> {
    let length = i64::try_from(ids.len()).unwrap_or(i64::MAX);
    let values: Vec<i64> = ids.iter().copied().map(i64::from).collect();
    let input_ids = Tensor::from_i64(vec![1, length], &values)?;
    let attention_mask = Tensor::from_i64(vec![1, length], &vec![1; ids.len()])?;
    Ok(Row { tensors: vec![input_ids, attention_mask], rows: 1, length: ids.len(), kind: 0 })
}

/// A text within its limit of bytes.
pub(super) fn utf8<'a>(field: &str, text: &'a [u8], limits: &Limits) -> Result<&'a str> {
    if text.len() > limits.max_bytes {
        return Err(Error::invalid(field, format!("{} bytes, the limit is {}", text.len(), limits.max_bytes)));
    }
    std::str::from_utf8(text).map_err(|error| Error::invalid(field, format!("not UTF-8: {error}, expected text")))
}

/// Tokens of the narrow windows that a guard judges beside the wide ones, which its encoder averages over.
const NARROW: usize = 48;
/// Windows of one request that are judged side by side.
const SIDE_BY_SIDE: usize = 64;

/// The worst of what the guard says of any part of a text: of all of it in windows as wide as its encoder reads, and of
/// narrow ones, in which a few words are not outweighed by many. Each window begins in the middle of the one before.
pub(super) async fn guard(served: &Arc<Served>, request: &Request, context: &Context, pool: &Pool) -> Result<Answer> {
    let upstream = served.upstream()?;
    let (field, texts) = elements(&served.manifest, request)?;
    let count = texts.len();
    let windows = {
        let (served, upstream) = (served.clone(), upstream.clone());
        pool.run(move || guard_windows(&served, &upstream, &field, &texts)).await??
    };
    let (owners, rows): (Vec<usize>, Vec<Row>) = windows.into_iter().unzip();
    let replies = stream::iter(rows.into_iter().map(|row| upstream.forward(row, context)));
    let replies: Vec<_> = replies.buffered(SIDE_BY_SIDE).try_collect().await?;
    let embedding = join(&replies, 0)?;
    let rows = embedding.rows();
    let most = served.manifest.batching.max_batch_size;
    let parts = (0..rows).step_by(most).map(|start| {
        let count = most.min(rows - start);
        let cut = embedding.slice_rows(start, count).map_err(unexpected);
        async move { served.forward(Row { tensors: vec![cut?], rows: count, length: 0, kind: 0 }, context).await }
    });
    let replies: Vec<_> = stream::iter(parts).buffered(SIDE_BY_SIDE).try_collect().await?;
    let probabilities = join(&replies, 0)?.to_f32().map_err(unexpected)?;
    let mut worst = vec![f32::NEG_INFINITY; count];
    for (owner, probability) in owners.into_iter().zip(probabilities) {
        worst[owner] = worst[owner].max(probability);
    }
    Ok((vec![scores(&served.manifest.outputs[0].name, &worst)?], Parameters::default()))
}

/// The windows of all texts, each with the number of its text. A text that is too long to be judged to its end is
/// refused: a guard says nothing of what it has not read.
fn guard_windows(served: &Served, upstream: &Served, field: &str, texts: &[Bytes]) -> Result<Vec<(usize, Row)>> {
    let Assets::Text(tokenizer) = &upstream.assets else {
        return Err(Error::Internal("a text guard whose upstream has no tokeniser".to_owned()));
    };
    let (limits, wide) = (&served.manifest.limits, upstream.manifest.limits.max_tokens);
    let widths = if NARROW < wide { &[wide, NARROW][..] } else { &[wide] };
    let mut windows = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let text = utf8(&field, text, limits)?;
        let cut = tokenizer.windows(text, widths, limits.max_tokens);
        for ids in cut.map_err(|error| Error::invalid(&field, error))? {
            windows.push((index, row(&ids).map_err(unexpected)?));
        }
    }
    Ok(windows)
}

pub(super) fn warm_up() -> Result<Vec<Vec<Tensor>>, tensor::Error> {
    // short and long: the first meeting with a shape is the slow one
    [16usize, 128].into_iter().map(|length| Ok(row(&vec![0; length])?.tensors)).collect()
}

/// A vector of length 1 in the upstream's space, if that model is there and says how wide it is.
pub(super) fn guard_warm_up(upstream: Option<&Manifest>) -> Result<Vec<Vec<Tensor>>, tensor::Error> {
    let width = upstream.and_then(|manifest| manifest.outputs.first()?.shape.get(1).copied());
    let Some(width) = width.and_then(|width| u16::try_from(width).ok()).filter(|width| *width > 0) else {
        return Ok(Vec::new());
    };
    let values = vec![f32::from(width).sqrt().recip(); width.into()];
    Ok(vec![vec![Tensor::from_f32(vec![1, width.into()], &values)?]])
}
