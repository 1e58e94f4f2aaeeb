//! The real binary on free ports.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use crate::{Client, Repository, get};

/// How long a server may take to be ready: the whole pack, on a machine that is busy.
const READY: Duration = Duration::from_secs(180);
/// How long a server may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(10);

/// Runs the server, says its process id, and ends it when the pipe on its own input closes: however a test process
/// ends, it leaves no server behind.
const WRAPPER: &str = r#"
exec 3<&0
"$@" </dev/null >&2 3<&- &
server=$!
echo "$server"
exec >&2
{ cat <&3 >/dev/null; kill -TERM "$server"; } 2>/dev/null &
exec 3<&-
wait "$server"
"#;

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

/// How a server ended.
#[derive(Debug)]
pub struct Exit {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote.
    pub log: String,
}

/// A server that lives as long as this value.
pub struct Server {
    /// Where gRPC listens.
    pub grpc: SocketAddr,
    /// Where HTTP listens.
    pub http: SocketAddr,
    wrapper: Child,
    process: u32,
    log: NamedTempFile,
    _repository: Repository,
}

impl Server {
    /// Starts a server and waits until it is ready; panics with its log if it is not.
    pub async fn start(options: ServerOptions) -> Self {
        let mut server = Self::spawn(options);
        let until = Instant::now() + READY;
        loop {
            if let Some(status) = server.wrapper.try_wait().expect("the server's status") {
                panic!("the server ended with {status} before it was ready:\n{}", server.log());
            }
            if get(server.http, "/readyz").await.is_ok_and(|(status, _)| status == 200) {
                return server;
            }
            assert!(Instant::now() < until, "the server is not ready after {READY:?}:\n{}", server.log());
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Starts a server and does not wait.
    pub fn spawn(options: ServerOptions) -> Self {
        let (grpc, http) = (free_address(), free_address());
        let log = NamedTempFile::new().expect("a file for the server's log");
        let mut command = Command::new("sh");
        command.arg("-c").arg(WRAPPER).arg("sh").arg(binary()).arg("serve");
        command.args(["--grpc", &grpc.to_string(), "--http", &http.to_string(), "--repository"]);
        command.arg(options.repository.path());
        if !options.models.is_empty() {
            command.args(["--models", &options.models.join(",")]);
        }
        if options.supervised {
            command.arg("--supervised");
        }
        for (key, value) in &options.settings {
            command.args(["--set", &format!("{key}={value}")]);
        }
        clean(&mut command);
        command.envs(options.environment);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.reopen().expect("the log, once more"));
        let mut wrapper = command.spawn().expect("a shell");
        let mut line = String::new();
        let output = wrapper.stdout.take().expect("the shell's output");
        BufReader::new(output).read_line(&mut line).expect("the server's process id");
        let process = line.trim().parse().unwrap_or_else(|_| panic!("'{line}' is no process id"));
        Self { grpc, http, wrapper, process, log, _repository: options.repository }
    }

    /// Clients of all services, over a connection of their own.
    pub async fn client(&self) -> Client {
        Client::connect(self.grpc).await
    }

    /// What the server wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process);
        let status = std::fs::read_to_string(path).expect("the server runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kilobytes = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
        kilobytes.expect("a number of kB") * 1024
    }

    /// Asks the server to stop, as an orchestrator would.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Waits for the end; panics if it does not come in time.
    pub async fn wait(mut self, patience: Duration) -> Exit {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.wrapper.try_wait().expect("the server's status") {
                return Exit { code: code(status), log: self.log() };
            }
            assert!(Instant::now() < until, "the server still runs after {patience:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.process);
        // a server that has ended needs no signal
        let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
    }
}

/// A shell says 128 + n for a process that signal n ended.
fn code(status: ExitStatus) -> Option<i32> {
    status.code().filter(|code| *code < 128)
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // into the captured output of the test that failed
            let log = self.log();
            let tail = log.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
            let _ = writeln!(std::io::stderr(), "end of the server's log:\n{}", &log[tail..]);
        }
        if let Ok(Some(_)) = self.wrapper.try_wait() {
            return;
        }
        self.terminate();
        let until = Instant::now() + STOP;
        while Instant::now() < until {
            if let Ok(Some(_)) = self.wrapper.try_wait() {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        self.signal("KILL");
        let _ = self.wrapper.wait();
    }
}

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/sensorium");
    let path = std::env::var_os("SENSORIUM_BINARY").map_or_else(default, PathBuf::from);
    assert!(
        path.is_file(),
        "there is no binary at {}: build it with `cargo build --release -p sensorium`, or name it in SENSORIUM_BINARY",
        path.display()
    );
    path
}

/// The test's own variables, and those of whoever runs it, must not configure the server.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("SENSORIUM_") || text.starts_with("OTEL_") || text == "RUST_LOG" {
            command.env_remove(&name);
        }
    }
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
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address")
}
