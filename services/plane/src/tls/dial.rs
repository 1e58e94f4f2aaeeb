//! The way to a worker.

use std::io;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sensorium_runtime::watched::Watched;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::{BadFiles, PemFile, client};

/// How long a connection and its handshake may take.
const CONNECT: Duration = Duration::from_secs(3);

/// No connection came about, so nothing was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreached {
    #[error("{0}")]
    Connect(io::Error),
    #[error("TLS handshake: {0}")]
    Handshake(io::Error),
    #[error("no connection within {CONNECT:?}")]
    Silent,
    /// Both ends are set up differently.
    #[error("{0}")]
    Mismatch(&'static str),
    #[error("'{0}' is no name of a server")]
    Name(String),
}

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

    /// A channel that connects when it is needed, with the certificates of that moment.
    pub(crate) fn channel(&self, endpoint: &Endpoint) -> Channel {
        let tls = self.clone();
        let connector = tower::service_fn(move |uri: Uri| tls.clone().connect(uri));
        // the connector keeps the time itself
        endpoint.clone().connect_timeout(CONNECT * 2).connect_with_connector_lazy(connector)
    }

    #[cfg(test)]
    pub(super) fn config(&self) -> std::sync::Arc<ClientConfig> {
        self.config.get()
    }

    fn connect(self, uri: Uri) -> BoxFuture<'static, Result<TokioIo<TlsStream<TcpStream>>, Unreached>> {
        async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let name = match self.server_name {
                Some(name) => name,
                None => ServerName::try_from(host.clone()).map_err(|_| Unreached::Name(host.clone()))?,
            };
            let connecting = async {
                let address = (host.as_str(), uri.port_u16().unwrap_or(443));
                let stream = TcpStream::connect(address).await.map_err(Unreached::Connect)?;
                stream.set_nodelay(true).map_err(Unreached::Connect)?;
                let connector = TlsConnector::from(self.config.get());
                connector.connect(name, stream).await.map_err(Unreached::Handshake)
            };
            let connected = tokio::time::timeout(CONNECT, connecting).await;
            Ok(TokioIo::new(connected.map_err(|_| Unreached::Silent)??))
        }
        .boxed()
    }
}

/// A channel on which every call fails, and says why.
pub(crate) fn mismatch(endpoint: &Endpoint, why: &'static str) -> Channel {
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| async move {
        Err::<TokioIo<TcpStream>, _>(Unreached::Mismatch(why))
    }))
}
