//! The way to a worker.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sensorium_runtime::watched::Watched;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{BadFiles, PemFile, client};
use crate::connection::Unreached;

/// How a gateway proves itself to workers, and knows them.
#[derive(Clone)]
pub struct ClientTls {
    config: Watched<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl ClientTls {
    /// Workers have certificates that `ca` has signed, for `server_name`, or for the host of their address if it is
    /// empty.
    ///
    /// # Errors
    /// If a file cannot be used, or the name is none.
    pub fn start(certificate: PemFile, key: PemFile, ca: PemFile, server_name: &str) -> Result<Self, BadFiles> {
        let name = (!server_name.is_empty()).then(|| ServerName::try_from(server_name.to_owned())).transpose();
        let server_name = name.map_err(|_| {
            BadFiles(format!("plane.server_name: '{server_name}', expected a host's name or an IP address"))
        })?;
        let paths = [&certificate, &key, &ca].map(|file| file.path.clone()).to_vec();
        let parse =
            move |contents: &[Vec<u8>]| client((&certificate, &contents[0]), (&key, &contents[1]), (&ca, &contents[2]));
        Ok(Self { config: Watched::start("plane", paths, parse).map_err(BadFiles)?, server_name })
    }

    #[cfg(test)]
    pub(super) fn config(&self) -> Arc<ClientConfig> {
        self.config.get()
    }

    /// TLS on a connection to `host`, with the certificates of this moment.
    pub(crate) async fn handshake(&self, host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, Unreached> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(|_| Unreached::Name(host.to_owned()))?,
        };
        let connector = TlsConnector::from(self.config.get());
        connector.connect(name, stream).await.map_err(|error| Unreached::Handshake(Arc::new(error)))
    }
}
