//! What is kept of a row: its outputs and what was said of it, in postcard's compact form.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::request::{NamedTensor, Parameter, Parameters, Reply};
use crate::tensor::{DataType, Tensor};

/// The parameter that lists the rows that were cut, as JSON: `[{"row":0,…}]`.
pub(super) const TRUNCATED: &str = "truncated";

/// The form that follows. One that is not known is a miss: builds differ during a rolling restart.
const FORM: u8 = 1;

/// An output of one row, `shape` and all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) dtype: DataType,
    pub(super) shape: Vec<i64>,
    pub(super) data: Bytes,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) version: u64,
    pub(super) outputs: Vec<Output>,
    parameters: Parameters,
}

impl Entry {
    /// The answer to `rows` rows, each for itself; nothing if it cannot be taken apart.
    pub(super) fn of_rows(reply: &Reply, rows: usize) -> Option<Vec<Self>> {
        if rows == 1 {
            let outputs = reply.outputs.iter().map(|NamedTensor { name, tensor }| Output {
                name: name.clone(),
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
                data: tensor.data().clone(),
            });
            let (outputs, parameters) = (outputs.collect(), reply.parameters.clone());
            return Some(vec![Self { version: reply.version, outputs, parameters }]);
        }
        let cut = cut(&reply.parameters)?;
        let mut entries: Vec<Self> = (0..rows)
            .map(|row| {
                let mut parameters = Parameters::default();
                if let Some(note) = cut.iter().find(|note| note["row"] == row) {
                    let mut note = note.clone();
                    note["row"] = 0.into();
                    parameters.set(TRUNCATED, Parameter::String(serde_json::Value::from(vec![note]).to_string()));
                }
                Self { version: reply.version, outputs: Vec::new(), parameters }
            })
            .collect();
        for NamedTensor { name, tensor } in &reply.outputs {
            if tensor.shape().is_empty() || tensor.rows() != rows {
                return None;
            }
            let mut shape = tensor.shape().to_vec();
            shape[0] = 1;
            for (entry, data) in entries.iter_mut().zip(tensor.split_rows().ok()?) {
                entry.outputs.push(Output { name: name.clone(), dtype: tensor.dtype(), shape: shape.clone(), data });
            }
        }
        Some(entries)
    }

    pub(super) fn encode(&self) -> Bytes {
        // writing to memory does not fail
        postcard::to_extend(self, vec![FORM]).unwrap_or_default().into()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (form, rest) = bytes.split_first()?;
        (*form == FORM).then(|| postcard::from_bytes(rest).ok()).flatten()
    }

    /// Whether its outputs are those of another.
    pub(super) fn fits(&self, other: &Self) -> bool {
        self.outputs.len() == other.outputs.len()
            && self
                .outputs
                .iter()
                .zip(&other.outputs)
                .all(|(a, b)| a.name == b.name && a.dtype == b.dtype && a.shape == b.shape)
    }

    /// The note that it was cut, for its place in a batch; nothing at all if it says what a batch cannot say.
    pub(super) fn truncated(&self, row: usize) -> Option<Option<serde_json::Value>> {
        let mut notes = cut(&self.parameters)?;
        if let Some(note) = notes.first_mut() {
            note["row"] = row.into();
        }
        Some(notes.into_iter().next())
    }

    pub(super) fn into_reply(self, model: &Arc<str>) -> Option<Reply> {
        let outputs = self.outputs.into_iter().map(|output| {
            let tensor = Tensor::new(output.dtype, output.shape, output.data).ok()?;
            Some(NamedTensor { name: output.name, tensor })
        });
        let outputs = outputs.collect::<Option<_>>()?;
        let (version, parameters) = (self.version, self.parameters);
        Some(Reply { model: model.clone(), version, outputs, parameters, last: true, tokens: Vec::new() })
    }
}

/// The rows that were cut; nothing if anything else is said.
fn cut(parameters: &Parameters) -> Option<Vec<serde_json::Value>> {
    match parameters.0.iter().collect::<Vec<_>>()[..] {
        [] => Some(Vec::new()),
        [(name, Parameter::String(json))] if name == TRUNCATED => serde_json::from_str(json).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_others_have_written_is_a_miss_not_a_crash(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let with_form: Vec<u8> = [FORM].into_iter().chain(bytes.iter().copied()).collect();
            for bytes in [bytes, with_form] {
                if let Some(entry) = Entry::decode(&bytes) {
                    let _ = entry.truncated(3);
                    let _ = entry.into_reply(&"m".into());
                }
            }
        }
    }

    #[test]
    fn an_entry_comes_back() {
        let tensor = Tensor::from_f32(vec![2, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        let outputs = vec![NamedTensor { name: "e".into(), tensor }];
        let reply = Reply {
            model: "m".into(),
            version: 1,
            outputs,
            parameters: Parameters::default(),
            last: true,
            tokens: vec![],
        };
        let entries = Entry::of_rows(&reply, 2).unwrap();
        assert_eq!(Entry::decode(&entries[1].encode()).unwrap(), entries[1]);
        assert_eq!(entries[1].outputs[0].shape, [1, 2]);
        assert!(Entry::of_rows(&reply, 3).is_none());
        let encoded = entries[0].encode();
        assert!(Entry::decode(&encoded[..encoded.len() - 1]).is_none());
    }
}
