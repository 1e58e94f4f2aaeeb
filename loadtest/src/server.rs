//! A server of our own for the length of a benchmark: started, waited for, weighed, and stopped as an operator would.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::error::{Error, Result};

/// How long a start may take before it counts as failed; the goal is far below.
const START_LIMIT: Duration = Duration::from_secs(300);
/// How long a drain may take.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A running server.
pub struct Server {
    child: Child,
    grpc: SocketAddr,
    log: PathBuf,
    /// From the start of the process to the first 200 of `/readyz`.
    pub ready: Duration,
}

impl Server {
    /// Starts `binary serve` with `arguments` on free ports and waits until it is ready.
    pub async fn start(binary: &Path, arguments: &[String]) -> Result<Self> {
        let (grpc, http) = (free_port()?, free_port()?);
        let log = std::env::temp_dir().join(format!("sensorium-bench-{}.log", grpc.port()));
        let file = std::fs::File::create(&log).map_err(Error::io(format!("cannot write {}", log.display())))?;
        let errors = file.try_clone().map_err(Error::io(format!("cannot write {}", log.display())))?;
        let begin = Instant::now();
        let mut child = Command::new(binary)
            .args(["serve", "--grpc", &grpc.to_string(), "--http", &http.to_string()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::io(format!("cannot start {}", binary.display())))?;
        loop {
            if is_ready(http).await {
                return Ok(Self { child, grpc, log, ready: begin.elapsed() });
            }
            let ended = child.try_wait().map_err(Error::io("cannot wait for the server"))?;
            let said = || format!("what it said is in {}", log.display());
            if let Some(status) = ended {
                return Err(Error::Child(format!("the server ended with {status} before it was ready: {}", said())));
            }
            if begin.elapsed() > START_LIMIT {
                return Err(Error::Child(format!("the server is not ready after {START_LIMIT:?}: {}", said())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its gRPC address.
    pub fn target(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        let id = self.child.id().ok_or_else(|| Error::Child("the server has ended".to_owned()))?;
        let path = format!("/proc/{id}/status");
        let status = std::fs::read_to_string(&path).map_err(Error::io(format!("cannot read {path}")))?;
        resident(&status).ok_or_else(|| Error::Child(format!("{path} has no VmRSS")))
    }

    /// Asks it to drain, and waits until it is gone.
    pub async fn stop(mut self) -> Result<()> {
        let Some(id) = self.child.id() else { return Ok(()) };
        // the shell's own `kill` is there even where procps is not
        let asked = Command::new("sh").args(["-c", &format!("kill -TERM {id}")]).status().await;
        asked.map_err(Error::io("cannot send SIGTERM"))?;
        let ended = tokio::time::timeout(STOP_LIMIT, self.child.wait()).await;
        let ended =
            ended.map_err(|_| Error::Child(format!("the server did not end within {STOP_LIMIT:?} of SIGTERM")))?;
        let status = ended.map_err(Error::io("cannot wait for the server"))?;
        if status.success() { Ok(()) } else { Err(Error::Child(format!("the server ended with {status}"))) }
    }
}

/// A port that is free now. Somebody may take it before the server does; it then fails to start, and says so.
fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(Error::io("no free port"))?;
    listener.local_addr().map_err(Error::io("no free port"))
}

/// One plain HTTP request; a client library for it would be larger than all of this.
async fn is_ready(address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), ask).await;
    matches!(answer, Ok(Ok(answer)) if answer.starts_with(b"HTTP/1.1 200"))
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t2\n"), Some(2 << 20));
        assert_eq!(resident("Name:\tx\n"), None);
    }

    #[tokio::test]
    async fn a_server_that_ends_is_told_apart_from_a_slow_one() {
        let error = Server::start(Path::new("/bin/false"), &[]).await.err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("before it was ready")));
    }
}
