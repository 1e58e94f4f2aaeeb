//! What is in a PEM file, or what is wrong with it.

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{PemFile, Read};

/// What is wrong with a file.
pub(super) fn bad(file: &PemFile, error: impl std::fmt::Display) -> String {
    format!("{}: {}: {error}", file.key, file.path.display())
}

/// What is wrong with two files that belong together.
pub(super) fn pair(certificate: &PemFile, key: &PemFile, error: &rustls::Error) -> String {
    format!("{}, {}: {}, {}: {error}", certificate.key, key.key, certificate.path.display(), key.path.display())
}

/// A chain of certificates, the own one first.
pub(super) fn certificates((file, pem): Read<'_>) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(chain) if chain.is_empty() => Err(bad(file, "no certificate in it, expected PEM")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(bad(file, format!("{error}, expected certificates in PEM"))),
    }
}

/// A private key: PKCS #8, PKCS #1 or SEC 1.
pub(super) fn private_key((file, pem): Read<'_>) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| bad(file, format!("{error}, expected a private key in PEM")))
}

/// Certificates of those who may sign.
pub(super) fn roots(read: Read<'_>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(read)? {
        roots.add(certificate).map_err(|error| bad(read.0, error))?;
    }
    Ok(roots)
}
