//! Being asked to stop: Ctrl-C, SIGTERM, a terminal that goes away.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::failure::Failure;

/// Tells whether the program was asked to stop.
#[derive(Debug)]
pub(crate) struct Stop {
    asked: Receiver<()>,
}

impl Stop {
    /// From now on the signals that end a program are requests. Once in a process.
    pub(crate) fn on_signals() -> Result<Self, Failure> {
        let (ask, asked) = mpsc::channel();
        let handler = move || {
            // Who has stopped already does not listen any more.
            let _ = ask.send(());
        };
        ctrlc::set_handler(handler).map_err(|error| Failure::cannot(format!("cannot handle signals: {error}")))?;
        Ok(Self { asked })
    }

    /// Waits for so long, or until it is asked to stop; says whether it was.
    pub(crate) fn within(&self, time: Duration) -> bool {
        !matches!(self.asked.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }
}
