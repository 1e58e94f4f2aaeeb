//! Certificates, as the configuration names them.

use std::path::PathBuf;

use sensorium_plane::tls::{self, BadFiles, ClientTls, PemFile, ServerTls};

use crate::config::Config;

fn file(key: &'static str, path: &Option<PathBuf>) -> Option<PemFile> {
    path.clone().map(|path| PemFile { key, path })
}

/// TLS of the door; nothing: in the clear.
pub fn door(config: &Config) -> Result<Option<ServerTls>, BadFiles> {
    let files = &config.tls;
    let own = file("tls.certificate", &files.certificate).zip(file("tls.key", &files.key));
    own.map(|(certificate, key)| tls::door(certificate, key, file("tls.client_ca", &files.client_ca))).transpose()
}

/// What both ends of the request plane show and ask for.
fn files(config: &Config) -> Option<(PemFile, PemFile, PemFile)> {
    let plane = &config.plane;
    let own = file("plane.certificate", &plane.certificate).zip(file("plane.key", &plane.key));
    own.zip(file("plane.ca", &plane.ca)).map(|((certificate, key), ca)| (certificate, key, ca))
}

/// TLS of a worker's listener; nothing: in the clear.
#[cfg(feature = "worker")]
pub fn worker(config: &Config) -> Result<Option<ServerTls>, BadFiles> {
    files(config).map(|(certificate, key, ca)| tls::worker(certificate, key, ca)).transpose()
}

/// TLS to workers; nothing: in the clear.
pub fn plane(config: &Config) -> Result<Option<ClientTls>, BadFiles> {
    let name = &config.plane.server_name;
    files(config).map(|(certificate, key, ca)| ClientTls::start(certificate, key, ca, name)).transpose()
}
