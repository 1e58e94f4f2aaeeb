//! A server of our own for the length of a benchmark: gateway and worker in one process.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::process::Command;

use crate::error::Result;
use crate::process::{Process, Ready, free_port};

/// A running server.
pub struct Server {
    process: Process,
    grpc: SocketAddr,
    /// From the start of the process to the first 200 of `/readyz`.
    pub ready: Duration,
}

impl Server {
    /// Starts `binary serve` with `arguments` on free ports and waits until it is ready.
    pub async fn start(binary: &Path, arguments: &[String]) -> Result<Self> {
        let (grpc, http) = (free_port()?, free_port()?);
        let mut command = Command::new(binary);
        command.args(["serve", "--grpc", &grpc.to_string(), "--http", &http.to_string()]).args(arguments);
        let mut process = Process::spawn("the server", command, Ready::Http(http, "/readyz"))?;
        let ready = process.ready().await?;
        Ok(Self { process, grpc, ready })
    }

    /// Its gRPC address.
    pub fn target(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        self.process.log()
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        self.process.resident()
    }

    /// Asks it to drain, and waits until it is gone.
    pub async fn stop(self) -> Result<()> {
        self.process.stop().await
    }
}
