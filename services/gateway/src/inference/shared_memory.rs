//! The system shared memory extension: tensors pass through POSIX shared memory instead of the wire.
//!
//! Regions are read and written with `pread` and `pwrite` on `/dev/shm`, not mapped: a client that truncates its
//! region while we work then costs an error, not a SIGBUS.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::RwLock;
use sensorium_actors::error::{Error, Result};
use sensorium_proto::inference::infer_parameter::ParameterChoice;
use sensorium_proto::inference::system_shared_memory_status_response::RegionStatus;
use sensorium_proto::inference::{InferParameter, SystemSharedMemoryRegisterRequest};

use super::codec::parameters;

/// A part of a registered region that a tensor lives in.
#[derive(Clone, Debug)]
pub struct Window {
    region: String,
    offset: u64,
    size: u64,
}

impl Window {
    /// The window that a tensor's parameters name, if they do.
    pub fn of(message: &HashMap<String, InferParameter>, field: &str) -> Result<Option<Self>> {
        if !message.contains_key("shared_memory_region") {
            return Ok(None);
        }
        let own = parameters(message);
        let Some(region) = own.text("shared_memory_region")? else { return Ok(None) };
        let size = own.count("shared_memory_byte_size")?.ok_or_else(|| {
            Error::invalid(format!("{field}.shared_memory_byte_size"), "missing beside shared_memory_region")
        })?;
        let offset = own.count("shared_memory_offset")?.unwrap_or(0);
        Ok(Some(Self { region: region.to_owned(), offset, size }))
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The parameters by which an answer says where it put an output.
    pub fn written(&self, size: usize) -> HashMap<String, InferParameter> {
        let number = |value: u64| ParameterChoice::Int64Param(i64::try_from(value).unwrap_or(i64::MAX));
        let mut said = vec![
            ("shared_memory_region", ParameterChoice::StringParam(self.region.clone())),
            ("shared_memory_byte_size", number(size as u64)),
        ];
        if self.offset > 0 {
            said.push(("shared_memory_offset", number(self.offset)));
        }
        said.into_iter()
            .map(|(name, choice)| (name.to_owned(), InferParameter { parameter_choice: Some(choice) }))
            .collect()
    }
}

struct Region {
    key: String,
    offset: u64,
    size: u64,
    file: File,
}

/// Registered regions, by name.
pub struct Regions {
    regions: RwLock<HashMap<String, Arc<Region>>>,
    max_bytes: usize,
}

impl Regions {
    /// No region yet; a tensor in one may have `max_bytes`, as in a message.
    pub fn new(max_bytes: usize) -> Self {
        Self { regions: RwLock::default(), max_bytes }
    }

    /// Opens and registers a region.
    pub fn register(&self, request: SystemSharedMemoryRegisterRequest) -> Result<()> {
        let plain = request.key.strip_prefix('/').unwrap_or(&request.key);
        if plain.is_empty() || plain.contains('/') || plain == ".." || plain == "." {
            return Err(Error::invalid(
                "key",
                format!("'{}', expected the name of a POSIX shared memory object", request.key),
            ));
        }
        let path = Path::new("/dev/shm").join(plain);
        let file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(|error| {
                Error::invalid("key", format!("cannot open shared memory '{}': {error}", request.key))
            })?;
        let there = file.metadata().map_err(|error| Error::Internal(error.to_string()))?.len();
        let fits = request.offset.checked_add(request.byte_size).is_some_and(|end| end <= there);
        if request.byte_size == 0 || !fits {
            let message =
                format!("{} at offset {}, but '{}' has {there} bytes", request.byte_size, request.offset, request.key);
            return Err(Error::invalid("byte_size", message));
        }
        let mut regions = self.regions.write();
        if regions.contains_key(&request.name) {
            return Err(Error::invalid("name", format!("region '{}' is already registered", request.name)));
        }
        let region = Region { key: request.key, offset: request.offset, size: request.byte_size, file };
        regions.insert(request.name, Arc::new(region));
        Ok(())
    }

    /// Forgets one region, or all for an empty name. Unknown names are fine, as with Triton.
    pub fn unregister(&self, name: &str) {
        let mut regions = self.regions.write();
        if name.is_empty() {
            regions.clear();
        } else {
            regions.remove(name);
        }
    }

    /// One region, or all for an empty name.
    pub fn status(&self, name: &str) -> Result<HashMap<String, RegionStatus>> {
        let regions = self.regions.read();
        if !name.is_empty() && !regions.contains_key(name) {
            let known: Vec<&str> = regions.keys().map(String::as_str).collect();
            return Err(Error::NotFound {
                what: format!("shared memory region '{name}'"),
                known: format!("registered are [{}]", sensorium_actors::error::names(&known)),
            });
        }
        let asked = regions.iter().filter(|(known, _)| name.is_empty() || *known == name);
        let described = asked.map(|(name, region)| {
            let status = RegionStatus {
                name: name.clone(),
                key: region.key.clone(),
                offset: region.offset,
                byte_size: region.size,
            };
            (name.clone(), status)
        });
        Ok(described.collect())
    }

    /// The bytes of a window.
    pub fn read(&self, window: &Window) -> Result<Bytes> {
        let (region, at) = self.locate(window, window.size)?;
        let size = usize::try_from(window.size).unwrap_or(usize::MAX);
        if size > self.max_bytes {
            let message = format!("{size} bytes, the limit is {}", self.max_bytes);
            return Err(Error::invalid("shared_memory_byte_size", message));
        }
        let mut data = BytesMut::zeroed(size);
        region.file.read_exact_at(&mut data, at).map_err(|error| gone(window, &error))?;
        Ok(data.freeze())
    }

    /// Writes into a window.
    pub fn write(&self, window: &Window, data: &[u8]) -> Result<()> {
        if data.len() as u64 > window.size {
            let message = format!("{} bytes, but the output has {}", window.size, data.len());
            return Err(Error::invalid("shared_memory_byte_size", message));
        }
        let (region, at) = self.locate(window, data.len() as u64)?;
        region.file.write_all_at(data, at).map_err(|error| gone(window, &error))
    }

    fn locate(&self, window: &Window, size: u64) -> Result<(Arc<Region>, u64)> {
        let region =
            self.regions.read().get(&window.region).cloned().ok_or_else(|| {
                Error::invalid("shared_memory_region", format!("'{}' is not registered", window.region))
            })?;
        let end = window.offset.checked_add(size.max(window.size));
        if end.is_none_or(|end| end > region.size) {
            let message = format!(
                "{} bytes at offset {}, but region '{}' has {}",
                window.size, window.offset, window.region, region.size
            );
            return Err(Error::invalid("shared_memory_byte_size", message));
        }
        let at = region.offset + window.offset;
        Ok((region, at))
    }
}

fn gone(window: &Window, error: &std::io::Error) -> Error {
    Error::invalid("shared_memory_region", format!("'{}' cannot be used any more: {error}", window.region))
}
