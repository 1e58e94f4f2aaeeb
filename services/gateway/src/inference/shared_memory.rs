//! The system shared memory extension: tensors pass through POSIX shared memory instead of the wire.
//!
//! Regions are read and written with `pread` and `pwrite` on `/dev/shm`, not mapped: a client that truncates its
//! region while we work then costs an error, not a SIGBUS.
//!
//! A region belongs to the tenant that registered it: for everybody else it is not there. It stands for the object that
//! its key named then; once the key names another one, or none, the region gives an error until it is registered anew,
//! never the old object's data.

mod object;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::RwLock;
use sensorium_actors::error::{Error, Result};
use sensorium_proto::inference::infer_parameter::ParameterChoice;
use sensorium_proto::inference::system_shared_memory_status_response::RegionStatus;
use sensorium_proto::inference::{InferParameter, SystemSharedMemoryRegisterRequest};

use self::object::Object;
use super::codec::parameters;
use crate::server::Limits;

/// Bytes of a region's name at most.
const LONGEST_NAME: usize = 255;

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
    object: Object,
}

/// A tenant's regions, by name.
type OfTenant = HashMap<String, Arc<Region>>;

/// The regions of all tenants.
pub struct SharedMemory {
    tenants: Arc<RwLock<HashMap<Arc<str>, OfTenant>>>,
    limits: Arc<Limits>,
}

impl SharedMemory {
    /// No region yet.
    pub fn new(limits: &Limits) -> Self {
        Self { tenants: Arc::default(), limits: Arc::new(limits.clone()) }
    }

    /// Those of a tenant.
    pub fn of(&self, tenant: &Arc<str>) -> Regions {
        Regions { tenants: self.tenants.clone(), limits: self.limits.clone(), tenant: tenant.clone() }
    }
}

/// A cheap handle to the regions of one tenant; others' are not there.
#[derive(Clone)]
pub struct Regions {
    tenants: Arc<RwLock<HashMap<Arc<str>, OfTenant>>>,
    limits: Arc<Limits>,
    tenant: Arc<str>,
}

impl Regions {
    /// Opens and registers a region. One whose object is gone may be registered anew under its name.
    ///
    /// # Errors
    /// `InvalidArgument` if the object cannot be lent, or the name is taken; `Exhausted` if the tenant has as many regions,
    /// or as many bytes in them, as it may; `PermissionDenied` if the object is another tenant's.
    pub fn register(&self, request: SystemSharedMemoryRegisterRequest) -> Result<()> {
        let SystemSharedMemoryRegisterRequest { name, key, offset, byte_size: size } = request;
        if name.is_empty() || name.len() > LONGEST_NAME {
            let message = format!("{} bytes, expected 1 to {LONGEST_NAME}", name.len());
            return Err(Error::invalid("name", message));
        }
        let object = Object::open(&key)?;
        let there = object.size().map_err(|error| Error::invalid("key", format!("'{key}': {error}")))?;
        if size == 0 || offset.checked_add(size).is_none_or(|end| end > there) {
            let message = format!("{size} at offset {offset}, but '{key}' has {there} bytes");
            return Err(Error::invalid("byte_size", message));
        }
        let mut tenants = self.tenants.write();
        let others = tenants.iter().filter(|(tenant, _)| **tenant != self.tenant);
        if others.flat_map(|(_, regions)| regions.values()).any(|other| other.object.identity() == object.identity()) {
            let message = format!("shared memory '{key}' is registered by another tenant");
            return Err(Error::PermissionDenied(message));
        }
        let own = tenants.entry(self.tenant.clone()).or_default();
        // what is gone is of no use to anybody, and its place is free
        own.retain(|_, region| region.object.size().is_ok());
        if own.contains_key(&name) {
            return Err(Error::invalid("name", format!("region '{name}' is already registered")));
        }
        let (most, most_bytes) = (self.limits.max_shared_memory_regions, self.limits.max_shared_memory_bytes);
        if own.len() >= most {
            return Err(full(format!("{most} regions are registered, the limit is {most}")));
        }
        let bytes: u64 = own.values().map(|region| region.size).sum();
        if bytes.saturating_add(size) > most_bytes {
            return Err(full(format!("{size} bytes beside {bytes} in other regions, the limit is {most_bytes}")));
        }
        own.insert(name, Arc::new(Region { key, offset, size, object }));
        Ok(())
    }

    /// Forgets one region, or all for an empty name. Unknown names are fine, as with Triton.
    pub fn unregister(&self, name: &str) {
        let mut tenants = self.tenants.write();
        let Some(own) = tenants.get_mut(&self.tenant) else { return };
        if !name.is_empty() {
            own.remove(name);
        }
        if name.is_empty() || own.is_empty() {
            tenants.remove(&self.tenant);
        }
    }

    /// One region, or all for an empty name.
    pub fn status(&self, name: &str) -> Result<HashMap<String, RegionStatus>> {
        let tenants = self.tenants.read();
        let own = tenants.get(&self.tenant);
        if !name.is_empty() && own.is_none_or(|own| !own.contains_key(name)) {
            let mut known: Vec<&str> = own.into_iter().flat_map(HashMap::keys).map(String::as_str).collect();
            known.sort_unstable();
            return Err(Error::NotFound {
                what: format!("shared memory region '{name}'"),
                known: format!("registered are [{}]", sensorium_actors::error::names(&known)),
            });
        }
        let asked = own.into_iter().flatten().filter(|(known, _)| name.is_empty() || *known == name);
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

    /// Whether one request may read, or write, so many bytes by all of its windows together: as many as a message has.
    pub fn within_a_message(&self, bytes: u64) -> Result<()> {
        let most = self.limits.max_message_bytes;
        if usize::try_from(bytes).is_ok_and(|bytes| bytes <= most) {
            return Ok(());
        }
        let message = format!("{bytes} bytes in all windows of the request, the limit is {most}");
        Err(Error::invalid("shared_memory_byte_size", message))
    }

    /// The bytes of a window.
    pub fn read(&self, window: &Window) -> Result<Bytes> {
        self.within_a_message(window.size)?;
        let (region, at) = self.locate(window, window.size)?;
        let mut data = BytesMut::zeroed(usize::try_from(window.size).unwrap_or(usize::MAX));
        region.object.read(&mut data, at).map_err(|error| gone(window, &error))?;
        Ok(data.freeze())
    }

    /// Writes into a window.
    pub fn write(&self, window: &Window, data: &[u8]) -> Result<()> {
        if data.len() as u64 > window.size {
            let message = format!("{} bytes, but the output has {}", window.size, data.len());
            return Err(Error::invalid("shared_memory_byte_size", message));
        }
        let (region, at) = self.locate(window, data.len() as u64)?;
        region.object.write(data, at).map_err(|error| gone(window, &error))
    }

    fn locate(&self, window: &Window, size: u64) -> Result<(Arc<Region>, u64)> {
        let found = self.tenants.read().get(&self.tenant).and_then(|own| own.get(&window.region)).cloned();
        let region = found
            .ok_or_else(|| Error::invalid("shared_memory_region", format!("'{}' is not registered", window.region)))?;
        let end = window.offset.checked_add(size.max(window.size));
        if end.is_none_or(|end| end > region.size) {
            let message = format!(
                "{} bytes at offset {}, but region '{}' has {}",
                window.size, window.offset, window.region, region.size
            );
            return Err(Error::invalid("shared_memory_byte_size", message));
        }
        let there = region.object.size().map_err(|error| gone(window, &error))?;
        if region.offset.saturating_add(region.size) > there {
            return Err(gone(window, &format!("its object has only {there} bytes left")));
        }
        let at = region.offset + window.offset;
        Ok((region, at))
    }
}

fn gone(window: &Window, error: &dyn std::fmt::Display) -> Error {
    let message = format!("'{}' cannot be used any more: {error}", window.region);
    Error::invalid("shared_memory_region", message)
}

fn full(message: String) -> Error {
    let retry_after = Duration::from_secs(1);
    Error::Exhausted { reason: "SHARED_MEMORY_FULL", message: format!("shared memory: {message}"), retry_after }
}
