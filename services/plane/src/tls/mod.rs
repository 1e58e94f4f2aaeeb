//! TLS on a listener, and to a worker, from PEM files that may be replaced while the process runs.
//!
//! Each handshake uses what the files say at that moment; connections that stand go on as they began. The cryptography
//! is ring's, as it is etcd's.

mod accept;
mod dial;
mod pem;

pub use accept::Connection;
pub(crate) use accept::incoming;
pub use dial::ClientTls;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use sensorium_runtime::watched::Watched;

/// A PEM file, and the key of the configuration that names it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct PemFile {
    pub key: &'static str,
    pub path: PathBuf,
}

/// Certificate files cannot be used: the key, the file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadFiles(String);

/// TLS of a listener, as its files say now.
pub type ServerTls = Watched<ServerConfig>;

/// The one protocol that we speak within TLS.
const ALPN: &[u8] = b"h2";

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// TLS of the door. With `client_ca`, only clients with a certificate that it has signed are let in.
///
/// # Errors
/// If a file cannot be used.
pub fn door(certificate: PemFile, key: PemFile, client_ca: Option<PemFile>) -> Result<ServerTls, BadFiles> {
    let paths = [&certificate, &key].into_iter().chain(&client_ca).map(|file| file.path.clone()).collect();
    let parse = move |contents: &[Vec<u8>]| {
        let client_ca = client_ca.as_ref().zip(contents.get(2).map(Vec::as_slice));
        server(rustls::ALL_VERSIONS, (&certificate, &contents[0]), (&key, &contents[1]), client_ca)
    };
    Watched::start("tls", paths, parse).map_err(BadFiles)
}

/// TLS of a worker's listener: gateways prove themselves by a certificate that `ca` has signed.
///
/// # Errors
/// If a file cannot be used.
pub fn worker(certificate: PemFile, key: PemFile, ca: PemFile) -> Result<ServerTls, BadFiles> {
    let paths = [&certificate, &key, &ca].map(|file| file.path.clone()).to_vec();
    let parse = move |contents: &[Vec<u8>]| {
        server(&[&TLS13], (&certificate, &contents[0]), (&key, &contents[1]), Some((&ca, &contents[2])))
    };
    Watched::start("plane", paths, parse).map_err(BadFiles)
}

/// A file and what is in it.
type Read<'a> = (&'a PemFile, &'a [u8]);

fn server(
    versions: &[&'static rustls::SupportedProtocolVersion],
    certificate: Read<'_>,
    key: Read<'_>,
    client_ca: Option<Read<'_>>,
) -> Result<ServerConfig, String> {
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(versions).map_err(|error| error.to_string())?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(pem::roots(ca)?), provider());
            builder.with_client_cert_verifier(verifier.build().map_err(|error| pem::bad(ca.0, error))?)
        }
    };
    let (chain, private) = (pem::certificates(certificate)?, pem::private_key(key)?);
    let mut config =
        builder.with_single_cert(chain, private).map_err(|error| pem::pair(certificate.0, key.0, &error))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn client(certificate: Read<'_>, key: Read<'_>, ca: Read<'_>) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&TLS13]).map_err(|error| error.to_string())?;
    let (chain, private) = (pem::certificates(certificate)?, pem::private_key(key)?);
    let config = builder.with_root_certificates(pem::roots(ca)?).with_client_auth_cert(chain, private);
    let mut config = config.map_err(|error| pem::pair(certificate.0, key.0, &error))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests;
