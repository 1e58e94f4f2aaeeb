//! Tokens: JWT (RFC 7519) signed by a key of a JWKS file (RFC 7517).
//!
//! Which algorithms a token may use, its key says and not the token: a public key checks signatures of its own kind
//! only, secrets (`oct`) are good for HMAC alone, and `none` is no algorithm. Claims: `exp` and `aud` must be there,
//! `nbf` and `iss` are checked; `roles` (`infer`, `admin`), `tenant` and `models` say what the bearer may do.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::{Error as JwtError, ErrorKind};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, Validation};
use moka::sync::Cache;
use sensorium_actors::error::Error;
use serde::Deserialize;

use super::{Caller, Role};

/// Seconds by which clocks may differ.
const LEEWAY: u64 = 10;
/// Tokens that need not be checked again, at most.
const REMEMBERED: u64 = 10_000;
/// Bytes that a secret must have, and an RSA modulus.
const SECRET: usize = 32;
const MODULUS: usize = 256;

#[derive(Deserialize)]
struct Claims {
    exp: f64,
    #[serde(default)]
    sub: String,
    #[serde(default)]
    tenant: String,
    /// Those of other services may stand among them.
    #[serde(default)]
    roles: Vec<String>,
    /// Missing: all; empty: none.
    models: Option<Vec<String>>,
}

/// A key that signs.
struct Signer {
    id: Option<String>,
    key: DecodingKey,
    validation: Validation,
}

/// A bearer, and until when (Unix time in seconds).
#[derive(Clone)]
struct Known {
    caller: Arc<Caller>,
    until: f64,
}

/// Those who sign, and tokens that were found good. A new file means a new value, which remembers nothing.
pub(super) struct Tokens {
    signers: Vec<Signer>,
    known: Cache<[u8; 32], Known>,
}

impl Tokens {
    /// Reads a JWKS file. Keys of kinds that we do not know are left out, as RFC 7517 wants it.
    pub(super) fn parse(file: &[u8], issuer: &str, audience: &[String]) -> Result<Self, String> {
        let set: JwkSet = serde_json::from_slice(file).map_err(|error| error.to_string())?;
        let mut signers = Vec::new();
        for jwk in &set.keys {
            let id = jwk.common.key_id.clone();
            let named = || id.as_ref().map_or("a key without kid".to_owned(), |id| format!("key '{id}'"));
            let Some(algorithms) = algorithms(jwk).map_err(|error| format!("{}: {error}", named()))? else { continue };
            let key = decoding_key(jwk).map_err(|error| format!("{}: {error}", named()))?;
            let defaults = Validation::default();
            let mut validation = Validation { algorithms, leeway: LEEWAY, validate_nbf: true, ..defaults };
            validation.set_audience(audience);
            validation.required_spec_claims.insert("aud".to_owned());
            if !issuer.is_empty() {
                validation.set_issuer(&[issuer]);
                validation.required_spec_claims.insert("iss".to_owned());
            }
            signers.push(Signer { id, key, validation });
        }
        if signers.is_empty() {
            return Err("no key in it that can check a signature".to_owned());
        }
        Ok(Self { signers, known: Cache::new(REMEMBERED) })
    }

    /// Whose token it is.
    pub(super) fn identify(&self, token: &str) -> Result<Arc<Caller>, Error> {
        let hash = super::hash(token);
        if let Some(known) = self.known.get(&hash)
            && now() <= known.until
        {
            return Ok(known.caller);
        }
        let claims = self.verify(token).map_err(Error::Unauthenticated)?;
        let roles = [Role::Infer, Role::Admin];
        let caller = Arc::new(Caller {
            name: format!("the token of '{}'", claims.sub),
            tenant: claims.tenant.into(),
            roles: roles.into_iter().filter(|role| claims.roles.iter().any(|name| name == role.as_str())).collect(),
            models: claims.models.map(Into::into),
        });
        self.known.insert(hash, Known { caller: caller.clone(), until: claims.exp + LEEWAY as f64 });
        Ok(caller)
    }

    fn verify(&self, token: &str) -> Result<Claims, String> {
        let header = jsonwebtoken::decode_header(token).map_err(|error| describe(&error))?;
        let fits = |signer: &&Signer| {
            let named = header.kid.is_none() || signer.id.is_none() || header.kid == signer.id;
            named && signer.validation.algorithms.contains(&header.alg)
        };
        let mut refusal = None;
        for signer in self.signers.iter().filter(fits) {
            match jsonwebtoken::decode::<Claims>(token, &signer.key, &signer.validation) {
                Ok(token) => return Ok(token.claims),
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => refusal = Some(describe(&error)),
                Err(error) => return Err(describe(&error)),
            }
        }
        Err(refusal.unwrap_or_else(|| format!("no key that is known fits the token and its {:?}", header.alg)))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Algorithms that a key checks; nothing for one that is not for that.
fn algorithms(jwk: &Jwk) -> Result<Option<Vec<Algorithm>>, String> {
    let other_use = matches!(&jwk.common.public_key_use, Some(used) if *used != PublicKeyUse::Signature);
    let operations = jwk.common.key_operations.as_ref();
    if other_use || operations.is_some_and(|operations| !operations.contains(&KeyOperations::Verify)) {
        return Ok(None);
    }
    let able = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa.algorithms().to_vec(),
        AlgorithmParameters::OctetKey(_) => AlgorithmFamily::Hmac.algorithms().to_vec(),
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => vec![Algorithm::ES256],
            EllipticCurve::P384 => vec![Algorithm::ES384],
            _ => return Ok(None),
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => vec![Algorithm::EdDSA],
        _ => return Ok(None),
    };
    let Some(named) = jwk.common.key_algorithm else { return Ok(Some(able)) };
    match named.to_string().parse::<Algorithm>() {
        Ok(named) if able.contains(&named) => Ok(Some(vec![named])),
        Ok(named) => Err(format!("alg {named:?}, which a key of its kind cannot do")),
        Err(_) => Ok(None),
    }
}

fn decoding_key(jwk: &Jwk) -> Result<DecodingKey, String> {
    let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
    let (bytes, least) = match key.kind() {
        DecodingKeyKind::SecretOrDer(secret) if key.family() == AlgorithmFamily::Hmac => (secret.len(), SECRET),
        DecodingKeyKind::RsaModulusExponent { n, .. } => (n.iter().skip_while(|byte| **byte == 0).count(), MODULUS),
        DecodingKeyKind::SecretOrDer(_) => return Ok(key),
    };
    if bytes < least {
        return Err(format!("{bytes} bytes, expected at least {least}"));
    }
    Ok(key)
}

fn describe(error: &JwtError) -> String {
    match error.kind() {
        ErrorKind::ExpiredSignature => "the token has expired".to_owned(),
        ErrorKind::ImmatureSignature => "the token is not valid yet".to_owned(),
        ErrorKind::InvalidAudience => "the token is for somebody else (aud)".to_owned(),
        ErrorKind::InvalidIssuer => "the token was issued by somebody else (iss)".to_owned(),
        ErrorKind::InvalidSignature => "the token's signature is not that of a key that is known".to_owned(),
        ErrorKind::MissingRequiredClaim(claim) => format!("the token has no claim '{claim}'"),
        _ => format!("not a token that can be used: {error}"),
    }
}

#[cfg(test)]
mod tests;
