//! A process of our own for the length of a benchmark: started, waited for, weighed, and stopped as an operator would.

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

/// What says that a process has started.
#[derive(Clone, Copy, Debug)]
pub enum Ready {
    /// HTTP at this path answers with 200.
    Http(SocketAddr, &'static str),
    /// Somebody listens.
    Listens(SocketAddr),
}

impl Ready {
    async fn is_reached(self) -> bool {
        match self {
            Self::Http(address, path) => answers(address, path).await,
            Self::Listens(address) => TcpStream::connect(address).await.is_ok(),
        }
    }
}

/// A running process. It is killed when this is dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ready: Ready,
    begun: Instant,
}

impl Process {
    /// Starts it, and does not wait.
    pub fn spawn(name: &str, mut command: Command, ready: Ready) -> Result<Self> {
        let port = match ready {
            Ready::Http(address, _) | Ready::Listens(address) => address.port(),
        };
        let log = std::env::temp_dir().join(format!("sensorium-bench-{port}.log"));
        let file = std::fs::File::create(&log).map_err(Error::io(format!("cannot write {}", log.display())))?;
        let errors = file.try_clone().map_err(Error::io(format!("cannot write {}", log.display())))?;
        let begun = Instant::now();
        command.stdin(Stdio::null()).stdout(file).stderr(errors).kill_on_drop(true);
        let program = command.as_std().get_program().display().to_string();
        let child = command.spawn().map_err(Error::io(format!("cannot start {program}")))?;
        Ok(Self { name: name.to_owned(), child, log, ready, begun })
    }

    /// Waits until it is ready. Returns how long that was from its start.
    pub async fn ready(&mut self) -> Result<Duration> {
        let name = &self.name;
        loop {
            if self.ready.is_reached().await {
                return Ok(self.begun.elapsed());
            }
            let ended = self.child.try_wait().map_err(Error::io(format!("cannot wait for {name}")))?;
            let said = || format!("what it said is in {}", self.log.display());
            if let Some(status) = ended {
                return Err(Error::Child(format!("{name} ended with {status} before it was ready: {}", said())));
            }
            if self.begun.elapsed() > START_LIMIT {
                return Err(Error::Child(format!("{name} is not ready after {START_LIMIT:?}: {}", said())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.id()?);
        let status = std::fs::read_to_string(&path).map_err(Error::io(format!("cannot read {path}")))?;
        resident(&status).ok_or_else(|| Error::Child(format!("{path} has no VmRSS")))
    }

    /// Kills it; nobody is asked.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.map_err(Error::io(format!("cannot kill {}", self.name)))
    }

    /// Asks it to drain, and waits until it is gone.
    pub async fn stop(mut self) -> Result<()> {
        let Ok(id) = self.id() else { return Ok(()) };
        // the shell's own `kill` is there even where procps is not
        let asked = Command::new("sh").args(["-c", &format!("kill -TERM {id}")]).status().await;
        asked.map_err(Error::io("cannot send SIGTERM"))?;
        let name = &self.name;
        let ended = tokio::time::timeout(STOP_LIMIT, self.child.wait()).await;
        let ended = ended.map_err(|_| Error::Child(format!("{name} did not end within {STOP_LIMIT:?} of SIGTERM")))?;
        let status = ended.map_err(Error::io(format!("cannot wait for {name}")))?;
        if status.success() { Ok(()) } else { Err(Error::Child(format!("{name} ended with {status}"))) }
    }

    fn id(&self) -> Result<u32> {
        self.child.id().ok_or_else(|| Error::Child(format!("{} has ended", self.name)))
    }
}

/// A port that is free now. Somebody may take it before the process does; it then fails to start, and says so.
pub fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(Error::io("no free port"))?;
    listener.local_addr().map_err(Error::io("no free port"))
}

/// One plain HTTP request; a client library for it would be larger than all of this.
async fn answers(address: SocketAddr, path: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
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
    async fn a_process_that_ends_is_told_apart_from_a_slow_one() {
        let ready = Ready::Listens(free_port().unwrap());
        let mut process = Process::spawn("false", Command::new("/bin/false"), ready).unwrap();
        let error = process.ready().await.unwrap_err().to_string();
        assert!(error.contains("false ended with") && error.contains("before it was ready"), "{error}");
    }
}
