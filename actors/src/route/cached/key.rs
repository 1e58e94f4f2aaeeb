//! The key of a row: 128 bits of BLAKE3 over all that its answer depends on.

use blake3::Hasher;

use super::PARAMETER;
use crate::request::{Parameter, Request};

/// Parameters that say how a request is served, not what it is.
const NOT_CONTENT: [&str; 3] = [PARAMETER, "priority", "timeout"];

/// More rows than this are not looked up, however many their version takes: a key and a claim cost memory.
const MOST_ROWS: usize = 1 << 16;

/// One key per row; nothing if the inputs have no rows, or not equally many, or more than are looked up.
pub(super) fn rows(request: &Request, namespace: &str, tenant: &str) -> Option<Vec<u128>> {
    let count = request.inputs.first()?.tensor.rows();
    if count > MOST_ROWS {
        return None;
    }
    let mut inputs: Vec<_> = request.inputs.iter().collect();
    inputs.sort_by(|a, b| a.name.cmp(&b.name));
    let mut common = Hasher::new();
    part(&mut common, namespace.as_bytes());
    part(&mut common, tenant.as_bytes());
    part(&mut common, request.model.as_bytes());
    let mut outputs: Vec<&str> = request.outputs.iter().map(String::as_str).collect();
    outputs.sort_unstable();
    outputs.dedup();
    number(&mut common, outputs.len());
    outputs.iter().for_each(|output| part(&mut common, output.as_bytes()));
    for (name, value) in request.parameters.0.iter().filter(|(name, _)| !NOT_CONTENT.contains(&name.as_str())) {
        part(&mut common, name.as_bytes());
        parameter(&mut common, value);
    }
    let mut columns = Vec::with_capacity(inputs.len());
    for input in inputs {
        let (rows, tail) = input.tensor.shape().split_first()?;
        if usize::try_from(*rows).ok()? != count || count == 0 {
            return None;
        }
        part(&mut common, input.name.as_bytes());
        part(&mut common, input.tensor.dtype().as_str().as_bytes());
        number(&mut common, tail.len());
        for dimension in tail {
            common.update(&dimension.to_le_bytes());
        }
        columns.push(input.tensor.split_rows().ok()?);
    }
    let key = |row: usize| {
        let mut hasher = common.clone();
        columns.iter().for_each(|column| part(&mut hasher, &column[row]));
        let mut key = [0; 16];
        hasher.finalize_xof().fill(&mut key);
        u128::from_be_bytes(key)
    };
    Some((0..count).map(key).collect())
}

/// With its length before it: two parts are not taken for two others of the same bytes.
fn part(hasher: &mut Hasher, bytes: &[u8]) {
    number(hasher, bytes.len());
    hasher.update(bytes);
}

fn number(hasher: &mut Hasher, number: usize) {
    hasher.update(&(number as u64).to_le_bytes());
}

fn parameter(hasher: &mut Hasher, value: &Parameter) {
    let mut fixed = |kind: u8, bytes: &[u8]| {
        hasher.update(&[kind]).update(bytes);
    };
    match value {
        Parameter::Bool(value) => fixed(0, &[u8::from(*value)]),
        Parameter::Int(value) => fixed(1, &value.to_le_bytes()),
        Parameter::Uint(value) => fixed(2, &value.to_le_bytes()),
        Parameter::Float(value) => fixed(3, &value.to_bits().to_le_bytes()),
        Parameter::String(value) => {
            hasher.update(&[4]);
            part(hasher, value.as_bytes());
        }
    }
}
