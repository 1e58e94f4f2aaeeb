//! Weights of a model, to be changed: safetensors, read and written whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// The tensors of a file, by name.
pub type Weights = BTreeMap<String, Array>;

/// One tensor.
#[derive(Clone, Debug)]
pub struct Array {
    /// Such as `F32`.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its elements, little-endian.
    pub data: Vec<u8>,
}

impl Array {
    /// Bytes of a row along the first axis.
    fn stride(&self) -> usize {
        self.data.len() / usize::try_from(self.shape[0]).expect("a size")
    }

    /// Makes NaN of all elements of a row along the first axis. All bits set are NaN in every floating format.
    pub fn spoil_row(&mut self, row: usize) {
        let stride = self.stride();
        self.data[row * stride..(row + 1) * stride].fill(0xff);
    }

    /// Makes NaN of all elements.
    pub fn spoil(&mut self) {
        self.data.fill(0xff);
    }

    /// Keeps the first rows along the first axis.
    pub fn keep_rows(&mut self, rows: u64) {
        let stride = self.stride();
        self.data.truncate(stride * usize::try_from(rows).expect("a size"));
        self.shape[0] = rows;
    }
}

pub(crate) fn read(path: &Path) -> Weights {
    let file = fs::read(path).expect("weights");
    let (length, rest) = file.split_first_chunk::<8>().expect("the length of the header");
    let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).expect("a length"));
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).expect("a header of JSON");
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    tensors
        .map(|(name, info)| {
            let numbers = |key: &str| -> Vec<u64> {
                info[key].as_array().expect("a list").iter().map(|number| number.as_u64().expect("a number")).collect()
            };
            let offset = |at: usize| usize::try_from(numbers("data_offsets")[at]).expect("an offset");
            let dtype = info["dtype"].as_str().expect("a datatype").to_owned();
            (name, Array { dtype, shape: numbers("shape"), data: data[offset(0)..offset(1)].to_vec() })
        })
        .collect()
}

pub(crate) fn write(path: &Path, weights: &Weights) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, array) in weights {
        let from = data.len();
        data.extend_from_slice(&array.data);
        let info = json!({"dtype": array.dtype, "shape": array.shape, "data_offsets": [from, data.len()]});
        header.insert(name.clone(), info);
    }
    let header = serde_json::to_vec(&header).expect("JSON");
    let length = u64::try_from(header.len()).expect("a length").to_le_bytes();
    fs::write(path, [&length[..], &header, &data].concat()).expect("the weights are written");
}
