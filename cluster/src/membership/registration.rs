//! What a node says of itself, as JSON under its key.

use serde::{Deserialize, Serialize};

/// What a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes requests and plans who answers.
    Gateway,
    /// Holds models.
    #[default]
    Worker,
}

/// A node. Fields that an older build does not know are ignored by it, and fields that it does not write have defaults:
/// builds differ during a rolling restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Registration {
    /// Its name, unique in the cluster.
    pub node: String,
    /// What it is.
    pub role: Role,
    /// Changes with every start of the node: a name that comes back is another process.
    pub incarnation: String,
    /// `host:port` of its gRPC; empty if it is this process.
    pub address: String,
    /// Its gRPC speaks TLS.
    pub tls: bool,
    /// `host:port` of its HTTP side.
    pub http: String,
    /// Where it stands; routes prefer their own zone.
    pub zone: String,
    /// Version of the build.
    pub build: String,
    /// Requests that it works on side by side before they queue.
    pub capacity: u32,
    /// It finishes what it has and takes no more.
    pub draining: bool,
    /// Versions that it holds, in whatever state.
    pub models: Vec<Held>,
    /// Names of models that it is about to load: nobody may hold them yet, and they are not unknown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expects: Vec<String>,
}

impl Registration {
    /// Whether it holds models.
    pub fn is_worker(&self) -> bool {
        self.role == Role::Worker
    }
}

/// A version that a worker holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Held {
    /// The model.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// `text`, `image` or `audio`.
    pub modality: String,
    /// `READY`, `LOADING`, `UNLOADING` or `UNAVAILABLE`, as the repository index writes it.
    pub state: String,
    /// Why it is not ready.
    pub reason: String,
    /// Changes with everything that its answers depend on beside the input.
    pub namespace: String,
    /// How requests for it are routed.
    pub policy: Policy,
    /// What a request for it may hold; nothing: it did not say, and judges by itself.
    pub accepts: Option<Accepts>,
}

/// What a version takes, so that a gateway refuses what is too large before it splits, hashes or copies it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Accepts {
    /// Rows of a request at most, and elements of a BYTES input.
    pub max_elements: u64,
    /// Its inputs.
    pub inputs: Vec<AcceptedInput>,
}

/// An input of a version.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AcceptedInput {
    /// Its name on the wire.
    pub name: String,
    /// Its shape; -1 is any size, and the first dimension is the batch.
    pub shape: Vec<i64>,
}

impl Held {
    /// Whether it answers.
    pub fn is_ready(&self) -> bool {
        self.state == "READY"
    }
}

/// What a route has to know of a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// A request may be executed twice.
    pub idempotent: bool,
    /// A broken generation goes on elsewhere from what was sent.
    pub resume: bool,
    /// Percentile of the model's own latency after which a second worker is asked; 0: never.
    pub hedge_percentile: f64,
    /// A smaller model that answers in its place when its budget does not suffice; empty: none.
    pub fallback: String,
    /// Milliseconds that a branch of an understanding is given for it; 0: its share of the deadline.
    pub budget_ms: u64,
    /// Equal inputs may be answered from the cache.
    pub cached: bool,
    /// A stream may have any number of answers to one request.
    pub decoupled: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            idempotent: true,
            resume: true,
            hedge_percentile: 0.0,
            fallback: String::new(),
            budget_ms: 0,
            cached: false,
            decoupled: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_or_newer_build_is_understood() {
        let newer = r#"{"node":"w","role":"worker","models":[{"name":"m","version":3,"colour":"red"}],"rack":7}"#;
        let read: Registration = serde_json::from_str(newer).unwrap();
        assert_eq!((read.node.as_str(), read.models[0].version, read.draining), ("w", 3, false));
        assert!(read.models[0].policy.idempotent);
        let again: Registration = serde_json::from_str(&serde_json::to_string(&read).unwrap()).unwrap();
        assert_eq!(again, read);
    }
}
