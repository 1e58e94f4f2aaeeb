//! What is kept of a row: its outputs and what was said of it, in postcard's compact form.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::request::{CAME, NamedTensor, Parameter, Parameters, Reply, TRUNCATED};
use crate::tensor::{DataType, Tensor};

/// The parameter that says of the rows of a batch what is said of one that is asked alone, as JSON:
/// `[{"row":0,"language":"en",…}]`.
pub(super) const ROWS: &str = "rows";

/// The form that follows. One that is not known is a miss: builds differ during a rolling restart.
const FORM: u8 = 2;

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
        let said = Said::of(&reply.parameters)?;
        let mut entries: Vec<Self> = (0..rows)
            .map(|row| Self { version: reply.version, outputs: Vec::new(), parameters: said.alone(row) })
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

    /// Whether all of the input came. A text of which the end was left out did; a file that ended too early did not, and
    /// what was seen of it is nobody else's answer.
    pub(super) fn is_of_whole_input(&self) -> bool {
        match self.parameters.0.get(TRUNCATED) {
            Some(Parameter::String(json)) => serde_json::from_str::<Vec<Value>>(json)
                .is_ok_and(|notes| notes.iter().all(|note| note.get(CAME).is_none())),
            Some(_) => false,
            None => true,
        }
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

/// What a batch's answer says of its rows.
struct Said {
    cut: Vec<Value>,
    rows: Vec<Value>,
}

impl Said {
    /// Nothing, if anything is said of the batch as a whole.
    fn of(parameters: &Parameters) -> Option<Self> {
        let mut said = Self { cut: Vec::new(), rows: Vec::new() };
        for (name, value) in &parameters.0 {
            match (name.as_str(), value) {
                (TRUNCATED, Parameter::String(json)) => said.cut = serde_json::from_str(json).ok()?,
                (ROWS, Parameter::String(json)) => said.rows = serde_json::from_str(json).ok()?,
                _ => return None,
            }
        }
        Some(said)
    }

    /// What would be said of this row if it were asked alone.
    fn alone(&self, row: usize) -> Parameters {
        let mut parameters = Parameters::default();
        if let Some(note) = self.cut.iter().find(|note| note["row"] == row) {
            let mut note = note.clone();
            note["row"] = 0.into();
            parameters.set(TRUNCATED, Parameter::String(Value::from(vec![note]).to_string()));
        }
        let note = self.rows.iter().find(|note| note["row"] == row).and_then(Value::as_object);
        for (name, value) in note.into_iter().flatten().filter(|(name, _)| *name != "row") {
            if let Some(value) = from_json(value) {
                parameters.set(name, value);
            }
        }
        parameters
    }
}

/// What is said of rows, gathered for the batch that they make.
#[derive(Default)]
pub(super) struct Notes {
    cut: Vec<Value>,
    rows: Vec<Value>,
}

impl Notes {
    /// Adds what is said of an entry, for its place in the batch; nothing at all if it cannot be said of a row.
    pub(super) fn add(&mut self, row: usize, entry: &Entry) -> Option<()> {
        let mut about = serde_json::Map::new();
        for (name, value) in &entry.parameters.0 {
            match (name.as_str(), value) {
                (TRUNCATED, Parameter::String(json)) => {
                    let notes: Vec<Value> = serde_json::from_str(json).ok()?;
                    self.cut.extend(notes.into_iter().next().map(|mut note| {
                        note["row"] = row.into();
                        note
                    }));
                }
                (TRUNCATED | ROWS, _) => return None,
                (_, value) => drop(about.insert(name.clone(), to_json(value)?)),
            }
        }
        if !about.is_empty() {
            about.insert("row".to_owned(), row.into());
            self.rows.push(Value::Object(about));
        }
        Some(())
    }

    pub(super) fn into_parameters(self) -> Parameters {
        let mut parameters = Parameters::default();
        for (name, notes) in [(TRUNCATED, self.cut), (ROWS, self.rows)] {
            if !notes.is_empty() {
                parameters.set(name, Parameter::String(Value::from(notes).to_string()));
            }
        }
        parameters
    }
}

/// Nothing for what JSON cannot say.
fn to_json(value: &Parameter) -> Option<Value> {
    Some(match value {
        Parameter::Bool(value) => (*value).into(),
        Parameter::Int(value) => (*value).into(),
        Parameter::Uint(value) => (*value).into(),
        Parameter::Float(value) => serde_json::Number::from_f64(*value)?.into(),
        Parameter::String(value) => value.as_str().into(),
    })
}

fn from_json(value: &Value) -> Option<Parameter> {
    Some(match value {
        Value::Bool(value) => Parameter::Bool(*value),
        Value::String(value) => Parameter::String(value.clone()),
        Value::Number(value) => match (value.as_u64(), value.as_i64()) {
            (Some(value), _) => Parameter::Uint(value),
            (None, Some(value)) => Parameter::Int(value),
            (None, None) => Parameter::Float(value.as_f64()?),
        },
        _ => return None,
    })
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
                    let _ = Notes::default().add(3, &entry);
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

    /// The same is kept of a row whether it was asked alone or in a batch, and the same is said of it in a batch.
    #[test]
    fn what_is_said_of_a_row_does_not_depend_on_its_company() {
        let tensor = Tensor::from_f32(vec![1, 1], &[1.0]).unwrap();
        let mut parameters = Parameters::default();
        parameters.set("audio_seconds", Parameter::Float(3.0));
        parameters.set("language", Parameter::String("en".into()));
        let outputs = vec![NamedTensor { name: "e".into(), tensor }];
        let reply = Reply { model: "m".into(), version: 1, outputs, parameters, last: true, tokens: vec![] };
        let alone = Entry::of_rows(&reply, 1).unwrap().remove(0);
        let mut notes = Notes::default();
        notes.add(0, &alone).unwrap();
        notes.add(1, &Entry { parameters: Parameters::default(), ..alone.clone() }).unwrap();
        notes.add(2, &alone).unwrap();
        let told = notes.into_parameters();
        let tensor = Tensor::from_f32(vec![3, 1], &[1.0; 3]).unwrap();
        let outputs = vec![NamedTensor { name: "e".into(), tensor }];
        let together = Entry::of_rows(&Reply { outputs, parameters: told, ..reply }, 3).unwrap();
        assert_eq!((&together[0], &together[2]), (&alone, &alone));
        assert!(together[1].parameters.0.is_empty());
        // a batch of which something is said as a whole cannot be taken apart
        let mut whole = Parameters::default();
        whole.set("seconds", Parameter::Float(1.0));
        assert!(Said::of(&whole).is_none());
    }
}
