//! Signals that end a process: the first one politely, a second one at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens from the moment it is made, so that no signal is missed between two waits.
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
    /// `nohup` starts a process that ignores hang-ups, and it goes on doing so.
    hangup: Option<Signal>,
    relayed: Signal,
}

impl Shutdown {
    /// From now on the first SIGTERM or SIGINT no longer ends the process by itself. A second one does, at once and
    /// whatever the process is at: its drain hangs, or somebody has no time for it.
    ///
    /// SIGHUP and SIGUSR1 count as neither the first nor the second. systemd may send SIGHUP right behind SIGTERM, and
    /// a supervising parent passes on what a terminal or a control group has sent to both of them.
    pub fn listen() -> std::io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for number in [SIGTERM, SIGINT] {
            // in this order: the first signal finds the flag unset, and sets it
            flag::register_conditional_default(number, asked.clone())?;
            flag::register(number, asked.clone())?;
        }
        Self::every()
    }

    /// From now on no number of signals ends the process: what follows a second one is the caller's to decide.
    pub fn every() -> std::io::Result<Self> {
        let hangup = (!ignores_hangups()).then(|| signal(SignalKind::hangup())).transpose()?;
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup,
            relayed: signal(SignalKind::user_defined1())?,
        })
    }

    /// The name of the next signal.
    pub async fn wait(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = hangup => "SIGHUP",
            _ = self.relayed.recv() => "SIGUSR1",
        }
    }
}

/// Whether the process was started with SIGHUP ignored: bit 0 of `SigIgn`, see proc(5). Where there is no `/proc`, it
/// was not.
fn ignores_hangups() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
