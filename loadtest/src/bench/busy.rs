//! Neighbours that take cores all the time and want nothing of us.

use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::error::{Error, Result};

/// Processes that do nothing but count, until this is dropped.
pub(super) struct Busy {
    _loops: Vec<Child>,
}

impl Busy {
    /// Starts so many of them.
    pub(super) fn start(count: usize) -> Result<Self> {
        let one = |_| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null()).kill_on_drop(true);
            command.spawn().map_err(Error::io("cannot start /bin/sh"))
        };
        Ok(Self { _loops: (0..count).map(one).collect::<Result<_>>()? })
    }
}
