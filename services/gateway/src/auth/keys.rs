//! API keys. Their file holds hashes only.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Caller, Role};

/// A key as its file describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// For people: it stands in logs of refusals and of operators' acts, where the key itself never does.
    pub name: String,
    /// On whose behalf. Nothing is shared between tenants.
    #[serde(default)]
    pub tenant: String,
    /// BLAKE3 of the key, 64 hexadecimal digits.
    pub hash: String,
    /// What it is good for.
    pub roles: Vec<Role>,
    /// Models that it may ask; empty: all.
    #[serde(default)]
    pub models: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    keys: Vec<Key>,
}

/// The hash under which a key is kept.
pub fn hash(key: &str) -> [u8; 32] {
    // keys are long and random, so a fast hash is as good as a slow one
    *blake3::hash(key.as_bytes()).as_bytes()
}

/// Callers by the hash of their key.
pub(super) struct Keys(HashMap<[u8; 32], Arc<Caller>>);

impl Keys {
    /// Whose key it is.
    pub(super) fn get(&self, key: &str) -> Option<Arc<Caller>> {
        self.0.get(&hash(key.trim())).cloned()
    }
}

/// Reads a file of keys; one without keys lets nobody in.
pub(super) fn parse(file: &[u8]) -> Result<Keys, String> {
    let text = std::str::from_utf8(file).map_err(|error| error.to_string())?;
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut callers: HashMap<[u8; 32], Arc<Caller>> = HashMap::new();
    for key in file.keys {
        let hash = blake3::Hash::from_hex(&key.hash)
            .map_err(|error| format!("hash of '{}': {error}, expected 64 hexadecimal digits", key.name))?;
        let caller = Caller {
            name: format!("API key '{}'", key.name),
            tenant: key.tenant.into(),
            roles: key.roles,
            models: (!key.models.is_empty()).then(|| key.models.into()),
        };
        let name = caller.name.clone();
        if let Some(other) = callers.insert(*hash.as_bytes(), Arc::new(caller)) {
            return Err(format!("{} and {name} are the same key", other.name));
        }
    }
    Ok(Keys(callers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_in_the_file_are_named() {
        let key = |name: &str, hash: &str| format!("[[keys]]\nname = '{name}'\nhash = '{hash}'\nroles = ['infer']\n");
        let error = |file: String| parse(file.as_bytes()).err().unwrap();
        let good = "0".repeat(64);
        assert!(parse(key("a", &good).as_bytes()).is_ok());
        assert!(parse(b"").unwrap().get("anything").is_none(), "the last key was taken back");
        assert!(error(key("a", "12")).contains("'a'"));
        let twice = error(key("a", &good) + &key("b", &good));
        assert!(twice.contains("'a'") && twice.contains("'b'"), "{twice}");
        assert!(error("[[keys]]\nname = 'a'\nrole = 'infer'".to_owned()).contains("role"));
    }
}
