//! The real binary on free ports.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::{Exit, Process, clean};
use crate::{Client, Repository, get};

/// How long a server may take to be ready: the whole pack, on a machine that is busy.
const READY: Duration = Duration::from_secs(180);
/// How a server is started.
pub struct ServerOptions {
    repository: Repository,
    models: Vec<String>,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    supervised: bool,
}

impl ServerOptions {
    /// All models of `repository`, the defaults, and one thread per call.
    pub fn new(repository: Repository) -> Self {
        // several servers share few cores here: threads of one call that wait for each other would crawl
        let settings = vec![("compute.intra_op_threads".to_owned(), "1".to_owned())];
        Self { repository, models: Vec::new(), settings, environment: Vec::new(), supervised: false }
    }

    /// Only these models, instead of all of the repository.
    #[must_use]
    pub fn models(mut self, models: &[&str]) -> Self {
        self.models = models.iter().map(|&model| model.to_owned()).collect();
        self
    }

    /// `--set key=value`.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// `--supervised`: with a parent that starts it anew.
    #[must_use]
    pub fn supervised(mut self) -> Self {
        self.supervised = true;
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A server that lives as long as this value.
pub struct Server {
    /// Where gRPC listens.
    pub grpc: SocketAddr,
    /// Where HTTP listens.
    pub http: SocketAddr,
    process: Process,
    _repository: Repository,
    _state: TempDir,
}

impl Server {
    /// Starts a server and waits until it is ready; panics with its log if it is not.
    pub async fn start(options: ServerOptions) -> Self {
        let mut server = Self::spawn(options);
        let until = Instant::now() + READY;
        loop {
            server.process.must_run();
            if get(server.http, "/readyz").await.is_ok_and(|(status, _)| status == 200) {
                return server;
            }
            assert!(Instant::now() < until, "the server is not ready after {READY:?}:\n{}", server.log());
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Starts a server and does not wait.
    pub fn spawn(options: ServerOptions) -> Self {
        let (grpc, http, state) = (free_address(), free_address(), TempDir::new().expect("a folder"));
        let mut arguments = vec!["serve".to_owned()];
        let mut with = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        with("--grpc", grpc.to_string());
        with("--http", http.to_string());
        with("--repository", options.repository.path().display().to_string());
        if !options.models.is_empty() {
            with("--models", options.models.join(","));
        }
        // several servers do not share one file; where a test names its own, that comes later and counts
        with("--set", format!("jobs.path={}", state.path().join("jobs.redb").display()));
        for (key, value) in &options.settings {
            with("--set", format!("{key}={value}"));
        }
        if options.supervised {
            arguments.push("--supervised".to_owned());
        }
        let process = Process::spawn(&binary(), &arguments, &options.environment);
        Self { grpc, http, process, _repository: options.repository, _state: state }
    }

    /// Clients of all services, over a connection of their own.
    pub async fn client(&self) -> Client {
        Client::connect(self.grpc).await
    }

    /// What the server wrote so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.process.resident_bytes()
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// The process id of the server that a supervising parent has started.
    pub fn child_process(&self) -> u32 {
        let parent = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        let children = children.expect("the children of a process");
        let child = children.split_whitespace().next().and_then(|child| child.parse().ok());
        child.unwrap_or_else(|| panic!("process {parent} has no child:\n{}", self.log()))
    }

    /// Asks the server to stop, as an orchestrator would.
    pub fn terminate(&self) {
        self.process.signal("TERM");
    }

    /// Sends a signal, such as `KILL`.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits for the end; panics if it does not come in time.
    pub async fn wait(self, patience: Duration) -> Exit {
        self.process.wait(patience).await
    }
}

/// The binary under test.
pub fn binary() -> PathBuf {
    let default = || std::path::absolute("../target/release/sensorium").unwrap_or_default();
    let path = std::env::var_os("SENSORIUM_BINARY").map_or_else(default, PathBuf::from);
    assert!(
        path.is_file(),
        "there is no binary at {}: build it with `cargo build --release -p sensorium`, or name it in SENSORIUM_BINARY",
        path.display()
    );
    path
}

impl Server {
    /// Runs a verb of the binary, such as `actors tree`, and gives its exit code, output and errors.
    pub async fn verb(arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(binary());
        command.args(arguments).stdin(Stdio::null());
        clean(&mut command);
        let ran = tokio::task::spawn_blocking(move || command.output().expect("the binary starts"));
        let output = crate::within(async { ran.await.expect("the binary ends") }).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// The same where its output goes elsewhere, such as to a pipe that nobody reads; gives its exit code and errors.
    pub async fn verb_into(arguments: &[&str], output: impl Into<Stdio>) -> (Option<i32>, String) {
        let mut command = Command::new(binary());
        command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(Stdio::piped());
        clean(&mut command);
        let ran = tokio::task::spawn_blocking(move || {
            let child = command.spawn().expect("the binary starts");
            // our own end of the output
            drop(command);
            child.wait_with_output().expect("the binary ends")
        });
        let output = crate::within(async { ran.await.expect("the binary ends") }).await;
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts a verb that goes on until its process is ended; what it prints is in its log.
    pub fn verb_that_goes_on(arguments: &[&str]) -> Process {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Process::spawn(&binary(), &arguments, &[])
    }
}

/// An address that is free, and stays so while its node is down: below the ports that outgoing connections are given.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
    loop {
        let port = 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 20_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
