//! What the shapes of a request's inputs may be: judged at the door, before anything is split, hashed or copied, and
//! again by the worker, whose word counts.

use sensorium_cluster::membership::{AcceptedInput, Accepts};

use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::request::Request;
use crate::tensor::{DataType, element_count};

/// A request's input as far as its size can be told without a look at its values.
#[derive(Clone, Copy, Debug)]
pub struct Claimed<'a> {
    /// Its name on the wire.
    pub name: &'a str,
    /// Whether it is BYTES, each element of which costs memory of its own.
    pub is_bytes: bool,
    /// The shape that it says it has.
    pub shape: &'a [i64],
}

/// What a version says that it takes.
pub fn accepts(manifest: &Manifest) -> Accepts {
    let inputs = manifest.inputs.iter();
    let inputs = inputs.map(|input| AcceptedInput { name: input.name.clone(), shape: input.shape.clone() });
    Accepts { max_elements: manifest.max_elements() as u64, inputs: inputs.collect() }
}

/// The inputs of a request.
pub fn of(request: &Request) -> impl Iterator<Item = Claimed<'_>> {
    request.inputs.iter().map(|input| Claimed {
        name: &input.name,
        is_bytes: input.tensor.dtype() == DataType::Bytes,
        shape: input.tensor.shape(),
    })
}

/// Judges inputs by what a version says it takes, as far as their size goes: rows, elements, and dimensions of zero, by
/// which any number of rows costs no byte. The rest, such as a name or a datatype that the version does not know, is left
/// to the worker.
///
/// # Errors
/// `InvalidArgument` naming the input, its shape, and what was expected.
pub fn check<'a>(accepts: &Accepts, inputs: impl Iterator<Item = Claimed<'a>>) -> Result<()> {
    for input in inputs {
        if let Some(known) = accepts.inputs.iter().find(|known| known.name == input.name) {
            must_be_bounded(input.name, input.is_bytes, input.shape, accepts.max_elements)?;
            if input.shape.contains(&0) {
                must_fit(input.name, &known.shape, input.shape)?;
            }
        }
    }
    Ok(())
}

/// An input has 1 to `limit` rows, and as many elements at most where each costs memory of its own.
pub(crate) fn must_be_bounded(name: &str, is_bytes: bool, shape: &[i64], limit: u64) -> Result<()> {
    let field = || format!("inputs.{name}.shape");
    let elements = element_count(shape).map_err(|error| Error::invalid(field(), error))?;
    let rows = shape.first().copied().unwrap_or(1);
    if !u64::try_from(rows).is_ok_and(|rows| (1..=limit).contains(&rows)) {
        return Err(Error::invalid(field(), format!("{rows} rows, expected 1 to {limit}")));
    }
    if is_bytes && elements as u64 > limit {
        return Err(Error::invalid(field(), format!("{elements} elements, expected {limit} at most")));
    }
    Ok(())
}

/// An input has the shape that `model.toml` says; a batch of scalars is often sent as `[n, 1]`.
pub(crate) fn must_fit(name: &str, wanted: &[i64], shape: &[i64]) -> Result<()> {
    let column = match shape {
        [rows, 1] if wanted.len() == 1 => std::slice::from_ref(rows),
        _ => shape,
    };
    let fits = column.len() == wanted.len() && column.iter().zip(wanted).all(|(&got, &want)| want == -1 || got == want);
    if fits {
        return Ok(());
    }
    Err(Error::invalid(format!("inputs.{name}.shape"), format!("{shape:?}, expected {wanted:?} (-1: any size)")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn judge(wanted: &[i64], is_bytes: bool, shape: &[i64]) -> Result<()> {
        let inputs = vec![AcceptedInput { name: "x".into(), shape: wanted.to_vec() }];
        let accepts = Accepts { max_elements: 8, inputs };
        check(&accepts, [Claimed { name: "x", is_bytes, shape }].into_iter())
    }

    #[test]
    fn rows_and_elements_are_bounded_and_tails_are_those_of_the_manifest() {
        assert!(judge(&[-1], true, &[8]).is_ok() && judge(&[-1], true, &[8, 1]).is_ok());
        assert!(judge(&[-1, 16], false, &[8, 16]).is_ok() && judge(&[-1, -1], false, &[8, 1000]).is_ok());
        for shape in [&[0][..], &[9], &[-1], &[8, 0], &[i64::MAX, 0], &[i64::MAX, 2], &[8, 2]] {
            assert!(judge(&[-1], true, shape).is_err(), "{shape:?}");
        }
        assert!(judge(&[-1, -1], true, &[4, 3]).is_err(), "twelve elements");
        assert!(judge(&[-1, 16], false, &[9, 0]).is_err());
    }

    proptest! {
        #[test]
        fn no_shape_panics(shape in prop::collection::vec(any::<i64>(), 0..5), is_bytes in any::<bool>()) {
            if judge(&[-1, -1], is_bytes, &shape).is_ok() {
                prop_assert!(shape.first().is_none_or(|rows| (1..=8).contains(rows)));
            }
        }
    }
}
