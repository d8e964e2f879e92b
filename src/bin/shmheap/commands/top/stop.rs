//! Being asked to stop: Ctrl-C, SIGTERM, a terminal that goes away.
//!
//! Who reads from a terminal that has gone away may never come back (crossterm reads its end again and again), and who
//! writes to one that stands still waits. So who does not stop by itself soon is ended.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::failure::Failure;

/// How long the program has to stop by itself.
const GRACE: Duration = Duration::from_secs(1);

/// Tells whether the program was asked to stop.
#[derive(Debug)]
pub(crate) struct Stop {
    asked: Receiver<()>,
}

impl Stop {
    /// From now on the signals that end a program are requests. `clean_up` is called before a program is ended that does not
    /// hear them. Once in a process.
    pub(crate) fn on_signals(clean_up: impl Fn() + Send + 'static) -> Result<Self, Failure> {
        let (ask, asked) = mpsc::channel();
        let handler = move || {
            // Who has stopped already does not listen any more.
            let _ = ask.send(());
            std::thread::sleep(GRACE);
            clean_up();
            std::process::exit(0);
        };
        ctrlc::set_handler(handler).map_err(|error| Failure::cannot(format!("cannot handle signals: {error}")))?;
        Ok(Self { asked })
    }

    /// Waits for so long, or until it is asked to stop; says whether it was.
    pub(crate) fn within(&self, time: Duration) -> bool {
        !matches!(self.asked.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }
}
