//! Child processes: this program started once more, with a task. The task goes down as an argument, the answer comes
//! back on standard output, both as JSON. A child that takes too long is killed, by its own pid.

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cold::ColdTask;
use crate::space::SpaceTask;
use crate::workers::{self, WorkerTask};

/// The hidden command by which a child is started.
pub(crate) const COMMAND: &str = "child";
/// How long a child may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a child does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Task {
    /// One worker of several.
    Worker(WorkerTask),
    /// A batch in a process that has done nothing else.
    Cold(ColdTask),
    /// Counts memory.
    Space(SpaceTask),
}

/// The child's side.
pub(crate) fn run(task: &str) -> Result<()> {
    // A run that is killed takes its children with it.
    // SAFETY: this only sets which signal we get.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let answer = match serde_json::from_str(task).context("the task is not one")? {
        Task::Worker(task) => serde_json::to_string(&workers::run(&task)?)?,
        Task::Cold(task) => serde_json::to_string(&task.run()?)?,
        Task::Space(task) => serde_json::to_string(&task.run()?)?,
    };
    println!("{answer}");
    Ok(())
}

/// Lets one child do a task, and returns its answer.
pub(crate) fn ask<T: DeserializeOwned>(task: &Task) -> Result<T> {
    let mut children = Children::default();
    children.start(task)?;
    let answers = children.wait()?;
    serde_json::from_str(answers.first().map_or("", String::as_str)).context("the child's answer is none")
}

/// The children of one measurement. Those that still run when this is dropped are killed.
#[derive(Debug, Default)]
pub(crate) struct Children(Vec<Child>);

impl Children {
    pub(crate) fn start(&mut self, task: &Task) -> Result<()> {
        let program = std::env::current_exe().context("where is this program?")?;
        let mut command = Command::new(program);
        command.arg(COMMAND).arg(serde_json::to_string(task)?).stdin(Stdio::null()).stdout(Stdio::piped());
        self.0.push(command.spawn().context("cannot start a child")?);
        Ok(())
    }

    /// Waits for all, and returns what they wrote.
    pub(crate) fn wait(mut self) -> Result<Vec<String>> {
        let until = Instant::now() + DEADLINE;
        let mut answers = Vec::new();
        for child in &mut self.0 {
            let status = wait_for(child, until)?;
            ensure!(status.success(), "a child failed: {status}");
            let mut answer = String::new();
            let mut output = child.stdout.take().ok_or_else(|| anyhow!("the child's output is gone"))?;
            output.read_to_string(&mut answer).context("cannot read a child's answer")?;
            answers.push(answer);
        }
        self.0.clear();
        Ok(answers)
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Those that have ended already cannot be killed, and need not be.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sleeps until the child ends: a parent that looked again and again would take time from what it measures.
fn wait_for(child: &mut Child, until: Instant) -> Result<ExitStatus> {
    // SAFETY: the child is ours and has not been waited for, so its pid is its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    ensure!(fd >= 0, "cannot watch a child: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is open, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("a child has not ended within {DEADLINE:?}");
        }
        let mut watched = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: there is one descriptor, and it is ours.
        let ready = unsafe { libc::poll(&raw mut watched, 1, left.as_millis() as i32 + 1) };
        if ready > 0 {
            return child.wait().context("cannot wait for a child");
        }
    }
}
