//! A process that lives as long as its value, however the test ends.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

/// How long a process may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(10);

/// Runs a process, says its process id, and ends it when the pipe on its own input closes: however a test process
/// ends, it leaves none behind, not even one that it froze.
const WRAPPER: &str = r#"
exec 3<&0
"$@" </dev/null >&2 3<&- &
server=$!
echo "$server"
exec >&2
{ cat <&3 >/dev/null; kill -TERM "$server"; kill -CONT "$server"; } 2>/dev/null &
exec 3<&-
wait "$server"
"#;

/// How a process ended.
#[derive(Debug)]
pub struct Exit {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote.
    pub log: String,
}

/// See the module.
pub struct Process {
    wrapper: Child,
    id: u32,
    log: NamedTempFile,
}

impl Process {
    /// Starts a program.
    pub fn spawn(program: &Path, arguments: &[String], environment: &[(String, String)]) -> Self {
        Self::spawn_within(None, program, arguments, environment)
    }

    /// Starts a program within a network namespace.
    pub fn spawn_within(
        namespace: Option<&str>,
        program: &Path,
        arguments: &[String],
        environment: &[(String, String)],
    ) -> Self {
        let log = NamedTempFile::new().expect("a file for the log");
        let mut command = Command::new("sh");
        command.arg("-c").arg(WRAPPER).arg("sh");
        if let Some(namespace) = namespace {
            // it becomes the program, so the process id is the program's
            command.args(["ip", "netns", "exec", namespace]);
        }
        command.arg(program).args(arguments);
        clean(&mut command);
        command.envs(environment.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.reopen().expect("the log, once more"));
        let mut wrapper = command.spawn().expect("a shell");
        let mut line = String::new();
        let output = wrapper.stdout.take().expect("the shell's output");
        BufReader::new(output).read_line(&mut line).expect("the process id");
        let id = line.trim().parse().unwrap_or_else(|_| panic!("'{line}' is no process id"));
        Self { wrapper, id, log }
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    /// Panics with its log if it has ended.
    pub fn must_run(&mut self) {
        if let Some(status) = self.wrapper.try_wait().expect("its status") {
            panic!("the process ended with {status}:\n{}", self.log());
        }
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        resident_bytes_of(self.id).expect("the process runs")
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Sends a signal, such as `TERM`, `KILL`, `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        signal(self.id, name);
    }

    /// Waits for the end; panics if it does not come in time.
    pub async fn wait(mut self, patience: Duration) -> Exit {
        self.ended(patience).await
    }

    /// The same, of a process that is kept for its log.
    pub async fn ended(&mut self, patience: Duration) -> Exit {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.wrapper.try_wait().expect("its status") {
                return Exit { code: code(status), log: self.log() };
            }
            assert!(Instant::now() < until, "the process still runs after {patience:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Sends a process a signal, such as `TERM`. One that has ended needs none.
pub fn signal(process: u32, name: &str) {
    let kill = format!("kill -{name} {process}");
    let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
}

/// Resident memory of a process, in bytes; nothing if it has ended.
pub(crate) fn resident_bytes_of(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
    Some(kilobytes.expect("a number of kB") * 1024)
}

/// A shell says 128 + n for a process that signal n ended.
fn code(status: ExitStatus) -> Option<i32> {
    status.code().filter(|code| *code < 128)
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // into the captured output of the test that failed
            let log = self.log();
            let tail = log.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
            let _ = writeln!(std::io::stderr(), "end of the process's log:\n{}", &log[tail..]);
        }
        if let Ok(Some(_)) = self.wrapper.try_wait() {
            return;
        }
        self.signal("CONT");
        self.signal("TERM");
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

/// The test's own variables, and those of whoever runs it, must not configure the server.
pub(crate) fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("SENSORIUM_") || text.starts_with("OTEL_") || text == "RUST_LOG" {
            command.env_remove(&name);
        }
    }
}
