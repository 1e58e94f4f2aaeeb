//! Safetensors, read tensor by tensor and checked against what the architecture asks for.
//!
//! The format: an 8-byte little-endian header length, a JSON header, raw little-endian tensors. A tensor is read when
//! it is asked for, so that a load never holds the file and the converted weights at once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorInfo};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::error::Error;

/// The tensors of a checkpoint, to be asked for by name and shape.
pub(crate) struct Weights {
    files: Vec<File>,
    entries: BTreeMap<String, Entry>,
    used: RefCell<BTreeSet<String>>,
    bytes: Cell<u64>,
    kind: Kind,
    device: Device,
}

struct Entry {
    file: usize,
    /// Where the file's tensor data begins.
    base: u64,
    info: TensorInfo,
}

/// `model.safetensors.index.json` of a checkpoint in several files.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens `model.safetensors` of the folder, or the shards that `model.safetensors.index.json` names. Tensors will
    /// be handed out as `kind` on `device`.
    pub(crate) fn open(directory: &Path, kind: Kind, device: Device) -> Result<Self, Error> {
        let index = directory.join("model.safetensors.index.json");
        let names: BTreeSet<String> = if index.exists() {
            read_json::<Index>(&index)?.weight_map.into_values().collect()
        } else {
            BTreeSet::from(["model.safetensors".to_owned()])
        };
        let mut weights = Self {
            files: Vec::new(),
            entries: BTreeMap::new(),
            used: RefCell::default(),
            bytes: Cell::default(),
            kind,
            device,
        };
        for name in names {
            weights.add(&directory.join(name))?;
        }
        Ok(weights)
    }

    fn add(&mut self, path: &Path) -> Result<(), Error> {
        let bad = |error: &dyn std::fmt::Display| Error::Load(format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(|error| bad(&error))?;
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).map_err(|error| bad(&error))?;
        let length = u64::from_le_bytes(length);
        let size = file.metadata().map_err(|error| bad(&error))?.len();
        let base = length.checked_add(8).filter(|&base| base <= size).ok_or_else(|| {
            bad(&format!("the header says {length} bytes, but the file has {size}; is it safetensors?"))
        })?;
        let mut header = vec![0; usize::try_from(length).map_err(|error| bad(&error))?];
        file.read_exact_at(&mut header, 8).map_err(|error| bad(&error))?;
        let mut header: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&header).map_err(|error| bad(&error))?;
        header.remove("__metadata__");
        for (name, value) in header {
            let info: TensorInfo =
                serde_json::from_value(value).map_err(|error| bad(&format!("tensor '{name}': {error}")))?;
            if base + info.data_offsets.1 as u64 > size {
                return Err(bad(&format!("tensor '{name}' runs past the end of the file")));
            }
            self.entries.insert(name, Entry { file: self.files.len(), base, info });
        }
        self.files.push(file);
        Ok(())
    }

    /// Kind of the tensors that are handed out.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Device of the tensors that are handed out.
    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// Whether the checkpoint has the tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The tensor, which must have this shape, in the kind of the model.
    pub(crate) fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, Error> {
        self.tensor_as(name, shape, self.kind)
    }

    /// The tensor, which must have this shape, in a kind of its own: for what is sensitive to rounding.
    pub(crate) fn tensor_as(&self, name: &str, shape: &[i64], kind: Kind) -> Result<Tensor, Error> {
        let entry = self.entries.get(name).ok_or_else(|| {
            Error::Load(format!("the checkpoint has no tensor '{name}' (expected with shape {shape:?})"))
        })?;
        let info = &entry.info;
        let found: Vec<i64> = info.shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
        if found != shape {
            return Err(Error::Load(format!("tensor '{name}' has shape {found:?}, expected {shape:?}")));
        }
        let stored = match info.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F64 => Kind::Double,
            other => {
                return Err(Error::Load(format!("tensor '{name}' is {other:?}, expected F32, F16, BF16 or F64")));
            }
        };
        let (start, end) = info.data_offsets;
        let mut data = vec![0; end.saturating_sub(start)];
        if data.len() != info.shape.iter().product::<usize>() * stored.elt_size_in_bytes() {
            return Err(Error::Load(format!("tensor '{name}' has {} bytes, not what its shape takes", data.len())));
        }
        self.files[entry.file]
            .read_exact_at(&mut data, entry.base + start as u64)
            .map_err(|error| Error::Load(format!("tensor '{name}' cannot be read: {error}")))?;
        let tensor = Tensor::f_from_data_size(&data, shape, stored)?.f_to_device(self.device)?.f_to_kind(kind)?;
        self.used.borrow_mut().insert(name.to_owned());
        self.bytes.set(self.bytes.get() + bytes(&tensor));
        Ok(tensor)
    }

    /// Bytes of all tensors handed out so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Names of the tensors that nobody asked for.
    pub(crate) fn unused(&self) -> Vec<&str> {
        let used = self.used.borrow();
        self.entries.keys().filter(|name| !used.contains(*name)).map(String::as_str).collect()
    }
}

/// Bytes of a tensor's elements.
pub(crate) fn bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

/// Reads and parses a JSON file of the version's folder.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = std::fs::read(path).map_err(|error| Error::Load(format!("cannot read {}: {error}", path.display())))?;
    serde_json::from_slice(&text).map_err(|error| Error::Load(format!("{}: {error}", path.display())))
}
