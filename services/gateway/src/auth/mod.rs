//! Who may do what: API keys, and tokens that somebody else has signed (JWT). Either says which roles its bearer has,
//! on whose behalf it asks, and for which models it is good.
//!
//! Without keys and tokens everybody may do everything, as befits one machine. Both come from files that are read again
//! when they change, so that taking a key back needs no restart.

mod jwt;
mod keys;
mod refused;

use std::path::PathBuf;
use std::sync::Arc;

use sensorium_actors::error::Error;
use sensorium_plane::operator::Operator;
use sensorium_plane::status::from_error;
use sensorium_runtime::config;
use sensorium_runtime::watched::Watched;
use serde::{Deserialize, Serialize};
use tonic::service::Interceptor;
use tonic::{Extensions, Request, Status};

pub use self::keys::{Key, hash};
use self::refused::Reason;

/// Who may do what at the door.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// File of API keys, as `sensorium key` writes its entries. Default: none. With neither `keys` nor `jwks`, everybody
    /// may do everything.
    pub keys: Option<PathBuf>,
    /// JWKS file (RFC 7517) of those who sign tokens. Default: none, and no token is let in.
    pub jwks: Option<PathBuf>,
    /// Who must have issued a token, its claim `iss`. Default: anybody whose key is in `jwks`.
    pub issuer: String,
    /// Whom a token must be for, one of its claim `aud`. Needed with `jwks`: a key may sign for many services.
    #[serde(deserialize_with = "config::list")]
    pub audience: Vec<String>,
}

impl Options {
    /// Whether the keys make sense together.
    ///
    /// # Errors
    /// Names those that do not.
    pub fn check(&self) -> Result<(), String> {
        match &self.jwks {
            Some(_) if self.audience.is_empty() => {
                Err("auth.jwks: without auth.audience, expected whom tokens are for".to_owned())
            }
            None if !self.audience.is_empty() || !self.issuer.is_empty() => {
                Err("auth.issuer, auth.audience: without auth.jwks, expected the keys of those who sign".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// What a bearer is good for.
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

/// Somebody who has shown a key or a token.
#[derive(Debug)]
struct Caller {
    /// For people: `API key 'ci'`.
    name: String,
    tenant: Arc<str>,
    roles: Vec<Role>,
    /// Models that it may ask; nothing: all.
    models: Option<Arc<[String]>>,
}

/// Why keys or tokens cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadAuth(String);

/// The keys and signers of a door; none: it stands open.
#[derive(Clone, Default)]
pub struct Auth {
    keys: Option<Watched<keys::Keys>>,
    tokens: Option<Watched<jwt::Tokens>>,
}

impl Auth {
    /// Reads the files, now and whenever they change.
    ///
    /// # Errors
    /// With the key of the configuration, the file, and what is wrong in it.
    pub fn start(options: &Options) -> Result<Self, BadAuth> {
        options.check().map_err(BadAuth)?;
        let keys = options.keys.clone().map(|path| {
            let named = path.display().to_string();
            let bad = move |error| format!("auth.keys: {named}: {error}");
            Watched::start("auth.keys", vec![path], move |files| keys::parse(&files[0]).map_err(&bad))
        });
        let tokens = options.jwks.clone().map(|path| {
            let named = path.display().to_string();
            let bad = move |error| format!("auth.jwks: {named}: {error}");
            let (issuer, audience) = (options.issuer.clone(), options.audience.clone());
            let parse = move |files: &[Vec<u8>]| jwt::Tokens::parse(&files[0], &issuer, &audience).map_err(&bad);
            Watched::start("auth.jwks", vec![path], parse)
        });
        Ok(Self { keys: keys.transpose().map_err(BadAuth)?, tokens: tokens.transpose().map_err(BadAuth)? })
    }

    /// Lets in whoever has this role.
    pub fn require(&self, role: Role) -> Check {
        Check { auth: self.clone(), role }
    }

    fn identify(&self, request: &Request<()>) -> Result<Option<Arc<Caller>>, (Reason, Error)> {
        if self.keys.is_none() && self.tokens.is_none() {
            return Ok(None);
        }
        let header = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let bearer = header("authorization").and_then(bearer);
        if let (Some(tokens), Some(token)) = (&self.tokens, bearer)
            && (token.matches('.').count() == 2 || self.keys.is_none())
        {
            return tokens.get().identify(token).map(Some).map_err(|error| (Reason::BadToken, error));
        }
        let Some(key) = bearer.or_else(|| header("x-api-key")) else {
            let message = "no credentials, expected 'authorization: Bearer KEY' or 'x-api-key: KEY'";
            return Err((Reason::NoCredentials, Error::Unauthenticated(message.to_owned())));
        };
        let known = self.keys.as_ref().and_then(|keys| keys.get().get(key));
        let unknown = || Error::Unauthenticated("the API key is not known".to_owned());
        known.map(Some).ok_or_else(|| (Reason::UnknownKey, unknown()))
    }
}

/// What `Bearer` brings; the scheme's case does not matter (RFC 9110).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, credentials) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credentials.trim())
}

/// Lets requests in, and says on whose behalf they come.
#[derive(Clone)]
pub struct Check {
    auth: Auth,
    role: Role,
}

impl Interceptor for Check {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let caller = self.auth.identify(&request).map_err(|(reason, error)| {
            refused::note(request.extensions(), None, reason, &error);
            from_error(&error)
        })?;
        if let Some(caller) = caller {
            allowed(request.extensions(), &caller, self.role)?;
            let operator = Operator { name: caller.name.as_str().into(), tenant: caller.tenant.clone() };
            request.extensions_mut().insert(operator);
            request.extensions_mut().insert(caller);
        }
        Ok(request)
    }
}

fn allowed(extensions: &Extensions, caller: &Caller, role: Role) -> Result<(), Status> {
    // an operator may do what everybody may: `status` asks more than one service
    if caller.roles.contains(&role) || caller.roles.contains(&Role::Admin) {
        return Ok(());
    }
    let error = Error::PermissionDenied(format!("{} has not the role '{}'", caller.name, role.as_str()));
    refused::note(extensions, Some(caller), Reason::Role, &error);
    Err(from_error(&error))
}

/// A call among others that only an operator may make.
pub fn require_admin(extensions: &Extensions) -> Result<(), Status> {
    extensions.get::<Arc<Caller>>().map_or(Ok(()), |caller| allowed(extensions, caller, Role::Admin))
}

/// On whose behalf a request comes, and which models it may ask; nothing: all.
pub fn identity(extensions: &Extensions) -> (Arc<str>, Option<Arc<[String]>>) {
    match extensions.get::<Arc<Caller>>() {
        None => (Arc::default(), None),
        Some(caller) => (caller.tenant.clone(), caller.models.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn auth(roles: &str) -> Auth {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let hash = blake3::hash(b"secret").to_hex();
        std::fs::write(
            &path,
            format!("[[keys]]\nname = \"ci\"\ntenant = \"acme\"\nhash = \"{hash}\"\nroles = {roles}\n"),
        )
        .unwrap();
        Auth::start(&Options { keys: Some(path), ..Options::default() }).unwrap()
    }

    fn request(header: &'static str, value: &'static str) -> Request<()> {
        let mut request = Request::new(());
        request.metadata_mut().insert(header, value.parse().unwrap());
        request
    }

    #[tokio::test]
    async fn a_key_opens_what_its_roles_say() {
        let auth = auth("[\"infer\"]").await;
        let let_in = auth.require(Role::Infer).call(request("authorization", "Bearer secret")).unwrap();
        assert_eq!(&*identity(let_in.extensions()).0, "acme");
        assert!(require_admin(let_in.extensions()).is_err());
        assert!(auth.require(Role::Infer).call(request("authorization", "bearer secret")).is_ok());
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

    #[test]
    fn half_of_the_options_is_a_mistake() {
        let path = Some(PathBuf::from("jwks.json"));
        let no_audience = Options { jwks: path.clone(), ..Options::default() };
        assert!(no_audience.check().unwrap_err().contains("auth.audience"));
        let no_keys = Options { issuer: "https://id".to_owned(), ..Options::default() };
        assert!(no_keys.check().unwrap_err().contains("auth.jwks"));
        let whole = Options { jwks: path, audience: vec!["sensorium".to_owned()], ..Options::default() };
        assert_eq!(whole.check(), Ok(()));
    }
}
