//! `sensorium serve --supervised`: the server as a child process, started anew when it is broken.
//!
//! A hung device call cannot be ended from within; the process has to go. Kubernetes does this from outside; on a
//! single machine this parent does. It stays small so that nothing in it can break.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sensorium_actors::supervision::policy::{Intensity, Verdict};
use sensorium_runtime::signal::Shutdown;
use tokio::process::{Child, Command};

use crate::worker::EXIT_BROKEN;

/// Asks the child to drain. Not SIGTERM: a terminal's Ctrl-C and systemd's SIGTERM reach the child as well, and a second
/// one would end it at once.
const DRAIN: Signal = Signal::SIGUSR1;

/// Runs this binary again with the same arguments but `--supervised`, for as long as it takes.
pub async fn run() -> anyhow::Result<ExitCode> {
    let mut shutdown = Shutdown::every()?;
    let mut intensity = Intensity::new(5, Duration::from_secs(300));
    loop {
        let binary = std::env::current_exe().context("where this binary lies")?;
        let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--supervised");
        let mut child = Command::new(binary).args(arguments).spawn().context("starting the server")?;
        let status = tokio::select! {
            status = child.wait() => status?,
            signal = shutdown.wait() => return Ok(exit_code(stop(&mut child, signal, &mut shutdown).await?)),
        };
        let broken = status.code().is_none_or(|code| code == i32::from(EXIT_BROKEN));
        if !broken {
            return Ok(exit_code(status));
        }
        let pause = match intensity.failed() {
            Verdict::Restart(after) => after,
            Verdict::Escalate => anyhow::bail!("the server breaks too often, the last time with {status}"),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = shutdown.wait() => return Ok(exit_code(status)),
        }
    }
}

/// Asks the child to drain, and waits for it; after a second SIGTERM or SIGINT no longer.
async fn stop(child: &mut Child, signal: &str, shutdown: &mut Shutdown) -> anyhow::Result<ExitStatus> {
    tracing::debug!(signal, "passing the signal on");
    let ends = |signal: &str| matches!(signal, "SIGTERM" | "SIGINT");
    let mut asked = ends(signal);
    pass_on(child, DRAIN)?;
    loop {
        tokio::select! {
            status = child.wait() => return Ok(status?),
            signal = shutdown.wait() => {
                if asked && ends(signal) {
                    pass_on(child, Signal::SIGKILL)?;
                }
                asked |= ends(signal);
            }
        }
    }
}

fn pass_on(child: &Child, signal: Signal) -> anyhow::Result<()> {
    if let Some(id) = child.id() {
        // a child that has ended meanwhile needs no signal
        let _ = kill(Pid::from_raw(i32::try_from(id)?), signal);
    }
    Ok(())
}

/// The child's code; as shells do, 128 and the signal that ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    match status.signal() {
        // before it listened: there was nothing to drain
        Some(signal) if signal == DRAIN as i32 => return ExitCode::SUCCESS,
        _ => {}
    }
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
