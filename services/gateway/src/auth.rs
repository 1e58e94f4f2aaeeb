//! Who may do what: API keys with roles, a tenant, and the models that they are good for.
//!
//! A file of keys holds their hashes only. Without a file everybody may do everything, as befits one machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sensorium_actors::error::Error;
use sensorium_plane::status::from_error;
use serde::{Deserialize, Serialize};
use tonic::service::Interceptor;
use tonic::{Extensions, Request, Status};

/// What a key is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Asking models.
    Infer,
    /// Loading, unloading, restarting, draining, settings.
    Admin,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Admin => "admin",
        }
    }
}

/// A key as its file describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// For people; it stands in logs.
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
    keys: Vec<Key>,
}

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("auth.keys: {}: {message}", path.display())]
pub struct BadKeys {
    path: PathBuf,
    message: String,
}

/// The keys of a door; none: it stands open.
#[derive(Clone, Default)]
pub struct Auth {
    by_hash: Option<Arc<HashMap<[u8; 32], Arc<Key>>>>,
}

/// The hash under which a key is kept.
pub fn hash(key: &str) -> [u8; 32] {
    // keys are long and random, so a fast hash is as good as a slow one
    *blake3::hash(key.as_bytes()).as_bytes()
}

impl Auth {
    /// Reads a file of keys.
    ///
    /// # Errors
    /// With the file, and what is wrong in it.
    pub fn read(path: &Path) -> Result<Self, BadKeys> {
        let bad = |message: String| BadKeys { path: path.to_owned(), message };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let file: File = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let mut by_hash = HashMap::new();
        for key in file.keys {
            let hash = blake3::Hash::from_hex(&key.hash)
                .map_err(|error| bad(format!("hash of '{}': {error}, expected 64 hexadecimal digits", key.name)))?;
            if let Some(other) = by_hash.insert(*hash.as_bytes(), Arc::new(key.clone())) {
                return Err(bad(format!("'{}' and '{}' are the same key", other.name, key.name)));
            }
        }
        Ok(Self { by_hash: Some(Arc::new(by_hash)) })
    }

    /// Lets in whoever has this role.
    pub fn require(&self, role: Role) -> Check {
        Check { auth: self.clone(), role }
    }

    fn identify(&self, request: &Request<()>) -> Result<Option<Arc<Key>>, Error> {
        let Some(keys) = &self.by_hash else { return Ok(None) };
        let header = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let bearer = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let Some(key) = bearer.or_else(|| header("x-api-key")) else {
            let message = "no credentials, expected 'authorization: Bearer KEY' or 'x-api-key: KEY'";
            return Err(Error::Unauthenticated(message.to_owned()));
        };
        let known = keys.get(&hash(key.trim())).cloned();
        known.map(Some).ok_or_else(|| Error::Unauthenticated("the API key is not known".to_owned()))
    }
}

/// Lets requests in, and says on whose behalf they come.
#[derive(Clone)]
pub struct Check {
    auth: Auth,
    role: Role,
}

impl Interceptor for Check {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let key = self.auth.identify(&request).map_err(|error| from_error(&error))?;
        if let Some(key) = key {
            allowed(&key, self.role)?;
            request.extensions_mut().insert(key);
        }
        Ok(request)
    }
}

fn allowed(key: &Key, role: Role) -> Result<(), Status> {
    if key.roles.contains(&role) {
        return Ok(());
    }
    let message = format!("API key '{}' has not the role '{}'", key.name, role.as_str());
    Err(from_error(&Error::PermissionDenied(message)))
}

/// A call among others that only an operator may make.
pub fn require_admin(extensions: &Extensions) -> Result<(), Status> {
    extensions.get::<Arc<Key>>().map_or(Ok(()), |key| allowed(key, Role::Admin))
}

/// On whose behalf a request comes, and which models it may ask; nothing: all.
pub fn identity(extensions: &Extensions) -> (Arc<str>, Option<Arc<[String]>>) {
    match extensions.get::<Arc<Key>>() {
        None => (Arc::default(), None),
        Some(key) => {
            let models = (!key.models.is_empty()).then(|| key.models.clone().into());
            (key.tenant.as_str().into(), models)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(roles: &str) -> Auth {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let hash = blake3::hash(b"secret").to_hex();
        std::fs::write(
            &path,
            format!("[[keys]]\nname = \"ci\"\ntenant = \"acme\"\nhash = \"{hash}\"\nroles = {roles}\n"),
        )
        .unwrap();
        Auth::read(&path).unwrap()
    }

    fn request(header: &'static str, value: &'static str) -> Request<()> {
        let mut request = Request::new(());
        request.metadata_mut().insert(header, value.parse().unwrap());
        request
    }

    #[test]
    fn a_key_opens_what_its_roles_say() {
        let auth = auth("[\"infer\"]");
        let let_in = auth.require(Role::Infer).call(request("authorization", "Bearer secret")).unwrap();
        assert_eq!(&*identity(let_in.extensions()).0, "acme");
        assert!(require_admin(let_in.extensions()).is_err());
        assert!(auth.require(Role::Infer).call(request("x-api-key", "secret")).is_ok());
        let code = |role, request| auth.require(role).call(request).unwrap_err().code();
        assert_eq!(code(Role::Infer, request("x-api-key", "guess")), tonic::Code::Unauthenticated);
        assert_eq!(code(Role::Infer, Request::new(())), tonic::Code::Unauthenticated);
        assert_eq!(code(Role::Admin, request("x-api-key", "secret")), tonic::Code::PermissionDenied);
    }

    #[test]
    fn without_keys_the_door_stands_open() {
        let let_in = Auth::default().require(Role::Admin).call(Request::new(())).unwrap();
        assert!(require_admin(let_in.extensions()).is_ok());
        assert_eq!(identity(let_in.extensions()).1, None);
    }
}
