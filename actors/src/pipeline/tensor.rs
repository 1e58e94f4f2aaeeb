//! Tensors go through as they are: `identity`, and users' own TorchScript.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;

use super::{Answer, join, named, unexpected};
use crate::error::{Error, Result};
use crate::manifest::{Manifest, TensorSpec};
use crate::request::{Context, Parameters, Request};
use crate::tensor::{self, Tensor};
use crate::worker::served::{Row, Served};

pub(super) async fn run(served: &Arc<Served>, request: &Request, context: &Context, rows: usize) -> Result<Answer> {
    let inputs: Vec<&Tensor> = served.manifest.inputs.iter().filter_map(|spec| request.input(&spec.name)).collect();
    let kind = kind(&inputs);
    let most = served.manifest.batching.max_batch_size;
    let replies = if rows <= most {
        let tensors = inputs.into_iter().cloned().collect();
        vec![served.forward(Row { tensors, rows, length: 0, kind }, context).await?]
    } else {
        // more rows than a batch takes go as several
        let parts = (0..rows).step_by(most).map(|start| {
            let rows = most.min(rows - start);
            let cut = inputs.iter().map(|tensor| tensor.slice_rows(start, rows));
            let tensors = cut.collect::<Result<Vec<_>, _>>();
            async move {
                let tensors = tensors.map_err(|error| Error::invalid("inputs", error))?;
                served.forward(Row { tensors, rows, length: 0, kind }, context).await
            }
        });
        try_join_all(parts).await?
    };
    let outputs = served.manifest.outputs.iter().enumerate();
    let outputs = outputs.map(|(n, spec)| Ok(named(&spec.name, join(&replies, n)?))).collect::<Result<Vec<_>>>()?;
    for (spec, output) in served.manifest.outputs.iter().zip(&outputs) {
        if output.tensor.dtype() != spec.datatype {
            return Err(unexpected(format!(
                "{} is {}, model.toml says {}",
                spec.name,
                output.tensor.dtype(),
                spec.datatype
            )));
        }
    }
    Ok((outputs, Parameters::default()))
}

/// One row of zeros, where the manifest says how long a row is.
pub(super) fn warm_up(manifest: &Manifest) -> Result<Vec<Vec<Tensor>>, tensor::Error> {
    let zeros = |spec: &TensorSpec| {
        let shape: Vec<i64> = [1].into_iter().chain(spec.shape.iter().skip(1).copied()).collect();
        let bytes = tensor::element_count(&shape).ok()? * spec.datatype.size()?;
        Some(Tensor::new(spec.datatype, shape, Bytes::from(vec![0; bytes])))
    };
    let row: Option<Vec<_>> = manifest.inputs.iter().map(zeros).collect();
    row.map(|row| row.into_iter().collect::<Result<Vec<_>, _>>()).into_iter().collect()
}

/// Rows whose fixed dimensions are equal may share a batch.
fn kind(inputs: &[&Tensor]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for tensor in inputs {
        tensor.shape().get(1..).hash(&mut hasher);
    }
    hasher.finish()
}
