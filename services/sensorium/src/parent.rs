//! `sensorium serve --supervised`: the server as a child process, started anew when it is broken.
//!
//! A hung device call cannot be ended from within; the process has to go. Kubernetes does this from outside; on a
//! single machine this parent does. It stays small so that nothing in it can break.

use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sensorium_actors::supervision::policy::{Intensity, Verdict};
use sensorium_runtime::signal::Shutdown;
use tokio::process::{Child, Command};

use crate::worker::EXIT_BROKEN;

/// Runs this binary again with the same arguments but `--supervised`, for as long as it takes.
pub async fn run() -> anyhow::Result<ExitCode> {
    let mut shutdown = Shutdown::listen()?;
    let mut intensity = Intensity::new(5, Duration::from_secs(300));
    loop {
        let binary = std::env::current_exe().context("where this binary lies")?;
        let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--supervised");
        let mut child = Command::new(binary).args(arguments).spawn().context("starting the server")?;
        let status = tokio::select! {
            status = child.wait() => status?,
            signal = shutdown.wait() => {
                tracing::debug!(signal, "passing the signal on");
                return Ok(exit_code(stop(&mut child).await?));
            }
        };
        let broken = status.code().is_none_or(|code| code == i32::from(EXIT_BROKEN));
        if !broken {
            return Ok(exit_code(status));
        }
        match intensity.failed() {
            Verdict::Restart(after) => tokio::time::sleep(after).await,
            Verdict::Escalate => anyhow::bail!("the server breaks too often, the last time with {status}"),
        }
    }
}

/// Asks the child to stop, as we were asked, and waits for its drain.
async fn stop(child: &mut Child) -> anyhow::Result<ExitStatus> {
    if let Some(id) = child.id() {
        // a child that has ended meanwhile needs no signal
        let _ = kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGTERM);
    }
    Ok(child.wait().await?)
}

fn exit_code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
