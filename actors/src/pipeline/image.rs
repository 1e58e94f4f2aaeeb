//! Image to feature, class probabilities and labels, and to the judgement of a guard.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use sensorium_media::image as media;

use super::{Answer, Assets, Pool, elements, join, named, scores, unexpected};
use crate::batching::entry::RowReply;
use crate::error::{Error, Result};
use crate::manifest::{Channels, Filter, ImagePreprocess, Manifest};
use crate::request::{CAME, Context, Parameter, Parameters, Request, TRUNCATED};
use crate::tensor::{self, Tensor};
use crate::worker::served::{Row, Served};

/// Labels given per image, where the manifest does not say.
const TOP: usize = 5;

/// Replies, and for each image whether it ended too early, which the limits have to allow.
async fn forward(
    served: &Arc<Served>,
    request: &Request,
    context: &Context,
    pool: &Pool,
    limits: media::Limits,
) -> Result<Vec<(RowReply, Option<media::Cut>)>> {
    let (field, images) = elements(&served.manifest, request)?;
    let rows = images.into_iter().enumerate().map(|(index, image)| {
        let (field, owner) = (format!("{field}[{index}]"), served.clone());
        async move {
            let head = image.clone();
            let measured = pool.run(move || media::decoded_bytes(&head, &limits)).await?;
            let bytes = measured.map_err(|error| Error::invalid(&field, error))?;
            let room = pool.room(bytes, &field, context).await?;
            let prepared = pool.run(move || (prepare(&owner.manifest, &limits, &field, &image), room)).await;
            let (row, cut) = prepared?.0?;
            Ok((served.forward(row, context).await?, cut))
        }
    });
    try_join_all(rows).await
}

fn prepare(
    manifest: &Manifest,
    limits: &media::Limits,
    field: &str,
    encoded: &Bytes,
) -> Result<(Row, Option<media::Cut>)> {
    let Some(options) = &manifest.image else {
        return Err(Error::Internal("an image pipeline without [image]".to_owned()));
    };
    let image = media::decode(encoded, limits).map_err(|error| Error::invalid(field, error))?;
    let pixels = media::preprocess(&image, &preprocess(options)).map_err(|error| Error::invalid(field, error))?;
    let side = i64::from(options.crop);
    let tensor = Tensor::from_f32(vec![1, 3, side, side], &pixels).map_err(unexpected)?;
    Ok((Row { tensors: vec![tensor], rows: 1, length: 0, kind: 0 }, image.cut))
}

fn limits(manifest: &Manifest) -> media::Limits {
    let limits = &manifest.limits;
    media::Limits {
        max_bytes: limits.max_bytes,
        max_pixels: limits.max_pixels,
        allow_truncated: limits.allow_truncated,
    }
}

/// Whatever the manifest allows: a guard must not call safe what it has not seen.
fn guard_limits(manifest: &Manifest) -> media::Limits {
    media::Limits { allow_truncated: false, ..limits(manifest) }
}

fn preprocess(options: &ImagePreprocess) -> media::Preprocess {
    media::Preprocess {
        resize: options.resize,
        crop: options.crop,
        filter: match options.filter {
            Filter::Bilinear => media::Filter::Bilinear,
            Filter::Bicubic => media::Filter::Bicubic,
            Filter::Lanczos => media::Filter::Lanczos,
        },
        scale: options.scale,
        mean: options.mean,
        std: options.std,
        channels: match options.channels {
            Channels::Rgb => media::Channels::Rgb,
            Channels::Bgr => media::Channels::Bgr,
        },
    }
}

/// `embedding` FP32 `[n, d]`, `probabilities` FP32 `[n, classes]`, `labels` BYTES `[n, 5]`, most probable first.
pub(super) async fn classify(
    served: &Arc<Served>,
    request: &Request,
    context: &Context,
    pool: &Pool,
) -> Result<Answer> {
    let seen = forward(served, request, context, pool, limits(&served.manifest)).await?;
    let (replies, cuts): (Vec<_>, Vec<_>) = seen.into_iter().unzip();
    let probabilities = join(&replies, 1)?;
    let mut outputs = vec![named("embedding", join(&replies, 0)?)];
    if request.wants("labels") {
        outputs.push(named("labels", labels(served, &probabilities)?));
    }
    outputs.push(named("probabilities", probabilities));
    Ok((outputs, said_of(&cuts)))
}

/// A JSON list of the images that ended too early: `[{"row":0,"came":0.31}]`, `null` where nobody can tell.
fn said_of(cuts: &[Option<media::Cut>]) -> Parameters {
    let mut parameters = Parameters::default();
    let rounded = |came: f64| (came * 1000.0).floor() / 1000.0;
    let notes = cuts.iter().enumerate().filter_map(|(row, cut)| {
        let came = (*cut)?.came.map(rounded);
        Some(serde_json::json!({ "row": row, CAME: came }))
    });
    let notes: Vec<_> = notes.collect();
    if !notes.is_empty() {
        parameters.set(TRUNCATED, Parameter::String(serde_json::Value::from(notes).to_string()));
    }
    parameters
}

fn labels(served: &Served, probabilities: &Tensor) -> Result<Tensor> {
    let Assets::Image { labels } = &served.assets else {
        return Err(Error::Internal("an image pipeline without labels".to_owned()));
    };
    let rows = probabilities.rows();
    let values = probabilities.to_f32().map_err(unexpected)?;
    if values.len() != rows * labels.len() {
        return Err(unexpected(format!("{} probabilities for {} labels", values.len(), labels.len())));
    }
    // as many as the manifest promises; a model of fewer classes has no name for the rest
    let promised = served.manifest.outputs.iter().find(|output| output.name == "labels");
    let promised = promised.and_then(|output| usize::try_from(*output.shape.get(1)?).ok());
    let count = promised.unwrap_or(TOP.min(labels.len()));
    let mut names = Vec::with_capacity(rows * count);
    for row in values.chunks_exact(labels.len()) {
        let best = top(row, count).into_iter().map(|(class, _)| labels[class].as_str());
        names.extend(best.chain(std::iter::repeat("")).take(count));
    }
    let shape = [rows, count].map(|n| i64::try_from(n).unwrap_or(i64::MAX)).to_vec();
    Tensor::new(crate::tensor::DataType::Bytes, shape, Tensor::from_elements(&names).into_data()).map_err(unexpected)
}

/// The `count` highest values with their positions, highest first.
pub fn top(values: &[f32], count: usize) -> Vec<(usize, f32)> {
    let mut ranked: Vec<(usize, f32)> = values.iter().copied().enumerate().collect();
    let count = count.min(ranked.len());
    if count > 0 && count < ranked.len() {
        ranked.select_nth_unstable_by(count - 1, |a, b| b.1.total_cmp(&a.1));
    }
    ranked.truncate(count);
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked
}

pub(super) async fn guard(served: &Arc<Served>, request: &Request, context: &Context, pool: &Pool) -> Result<Answer> {
    let seen = forward(served, request, context, pool, guard_limits(&served.manifest)).await?;
    let replies: Vec<_> = seen.into_iter().map(|(reply, _)| reply).collect();
    let values = join(&replies, 0)?.to_f32().map_err(unexpected)?;
    // two classes: safe, not safe
    let unsafe_class: Vec<f32> = values.chunks_exact(2).map(|row| row[1]).collect();
    Ok((vec![scores(&served.manifest.outputs[0].name, &unsafe_class)?], Parameters::default()))
}

pub(super) fn warm_up(manifest: &Manifest) -> Result<Vec<Vec<Tensor>>, tensor::Error> {
    let side = manifest.image.as_ref().map_or(224, |options| i64::from(options.crop));
    let pixels = vec![0.0; usize::try_from(3 * side * side).unwrap_or(0)];
    Ok(vec![vec![Tensor::from_f32(vec![1, 3, side, side], &pixels)?]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_refuses_what_ended_too_early_whatever_the_manifest_allows() {
        let whole = Bytes::from_static(include_bytes!("../../media/tests/fixtures/scene.jpg"));
        let cut = whole.slice(..whole.len() * 3 / 4);
        let pack = include_str!("../../../services/worker/setup/models/open-nsfw/model.toml");
        for allowed in ["", "\n[limits]\nallow_truncated = true\n"] {
            let manifest = Manifest::parse(&format!("{pack}{allowed}"), std::path::Path::new("model.toml")).unwrap();
            let prepared = |limits, image| prepare(&manifest, &limits, "image[0]", image).map(|(_, cut)| cut);
            assert_eq!(prepared(guard_limits(&manifest), &whole).unwrap(), None);
            let refused = prepared(guard_limits(&manifest), &cut).unwrap_err();
            assert_eq!(refused.code(), "invalid_argument");
            assert!(refused.to_string().contains("ends after about"), "{refused}");
            let others = prepared(limits(&manifest), &cut);
            assert_eq!(others.is_ok_and(|cut| cut.is_some()), !allowed.is_empty());
        }
    }

    #[test]
    fn what_ended_too_early_is_said_by_its_row() {
        assert!(said_of(&[None, None]).0.is_empty());
        let cut = |came| Some(media::Cut { came });
        let told = said_of(&[None, cut(Some(0.31299)), None, cut(None)]);
        let notes = told.text("truncated").unwrap();
        assert_eq!(notes, Some(r#"[{"came":0.312,"row":1},{"came":null,"row":3}]"#));
    }
}
