//! A stage for what must not be seen outside: a shell with a /dev/shm of its own.
//!
//! The shell runs in a mount namespace of its own, in which an empty tmpfs lies over /dev/shm. So heaps can have the names
//! that the documents give them, and what removes leftovers finds those of the stage only. Where there is no namespace to be
//! had, the tests say that they were skipped. All that runs on a stage ends with it, and at the latest after
//! [`LIFETIME_SECONDS_MAX`].

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

/// How long a stage lasts.
const LIFETIME_SECONDS_MAX: &str = "150";
/// How long is waited for something to happen there.
const PATIENCE: Duration = Duration::from_secs(60);
/// Comes before the exit code, after what a command has printed.
const END: &str = "@@end ";
/// What stands in for `sudo`: whoever tests this is root already, if only of the namespace.
const SUDO: &str = "#!/bin/sh\n\
                    [ \"$1\" = -u ] || exec \"$@\"\n\
                    uid=$(id -u \"$2\") || exit 1\n\
                    shift 2\n\
                    exec setpriv --reuid=\"$uid\" --clear-groups \"$@\"\n";

/// The shell, and the folder in which it works.
#[derive(Debug)]
pub(crate) struct Stage {
    shell: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    folder: TempDir,
}

/// How a command on a stage ended: what it printed on both of its outputs.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) text: String,
}

impl Stage {
    /// A stage whose /dev/shm has this size, as mount(8) writes it; `None` where there is none to be had.
    pub(crate) fn new(test: &str, size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder for the stage");
        let tools = folder.path().join("tools");
        std::fs::create_dir(&tools).expect("a folder for its tools");
        open_to_all(folder.path());
        let sudo = tools.join("sudo");
        std::fs::write(&sudo, SUDO).expect("its tools");
        open_to_all(&sudo);
        let program = Path::new(env!("CARGO_BIN_EXE_shmheap"));
        let path = format!(
            "{}:{}:{}",
            tools.display(),
            program.parent().expect("the program lies in a folder").display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let namespaces = if geteuid().is_root() { "-m" } else { "-rm" };
        let enter = format!("mount -t tmpfs -o size={size},mode=1777 tmpfs /dev/shm && echo entered && exec sh");
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", LIFETIME_SECONDS_MAX, "unshare", namespaces, "sh", "-c", &enter]);
        command.env("PATH", path).env("RUST_BACKTRACE", "0").env("NO_COLOR", "1").current_dir(folder.path());
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut shell) = spawned else {
            eprintln!("skipped: {test} needs timeout(1) to start a shell that ends in any case");
            return None;
        };
        let (input, output) = (shell.stdin.take().expect("a pipe"), shell.stdout.take().expect("a pipe"));
        let mut stage = Self { shell, input, output: BufReader::new(output), folder };
        if stage.line() == "entered\n" {
            return Some(stage);
        }
        eprintln!("skipped: {test} needs a mount namespace (root, or unshare -rm), which is not to be had here");
        None
    }

    /// A line that the shell prints; empty when it has ended.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the shell prints text");
        line
    }

    /// Runs a command to its end.
    pub(crate) fn run(&mut self, command: &str) -> Ended {
        write!(self.input, "{{ {command}\n}} </dev/null 2>&1; printf '\\n{END}%s\\n' $?\n").expect("the shell listens");
        self.input.flush().expect("the shell listens");
        let mut text = String::new();
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "the shell ended or was ended in: {command}\n{text}");
            if let Some(code) = line.strip_prefix(END) {
                // The line end before the mark is not the command's.
                text.truncate(text.len() - 1);
                return Ended { code: code.trim().parse().expect("an exit code"), text };
            }
            text.push_str(&line);
        }
    }

    /// Runs commands, all of which must succeed; returns what the last one printed.
    #[track_caller]
    pub(crate) fn prepare(&mut self, commands: &[&str]) -> String {
        let mut last = String::new();
        for command in commands {
            let ended = self.run(command);
            assert_eq!(ended.code, 0, "{command} printed {}", ended.text);
            last = ended.text;
        }
        last
    }

    /// Starts this test program in the background as a worker in this role; returns its pid.
    pub(crate) fn start(&mut self, role: &str, heap: &str) -> i32 {
        let program = std::env::current_exe().expect("a test program knows where it is");
        let arguments = "worker_entry --exact --nocapture --test-threads=1";
        let variables = format!("SHMHEAP_TEST_WORKER='{role}' SHMHEAP_TEST_HEAP={heap}");
        let pid = self.prepare(&[&format!("{variables} {} {arguments} >role.out 2>&1 & echo $!", program.display())]);
        pid.trim().parse().expect("a pid")
    }

    /// Waits until a process that was started here is in this state, by the letter that ps(1) uses.
    pub(crate) fn await_state(&mut self, pid: i32, state: char) {
        let started = Instant::now();
        let is_there = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(state))
        };
        while !is_there() {
            assert!(started.elapsed() < PATIENCE, "waited in vain for {pid}: {}", self.run("cat role.out").text);
            std::thread::yield_now();
        }
    }

    /// The folder in which its commands run.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Lets other users in.
fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("the path is this test's");
}

impl Drop for Stage {
    fn drop(&mut self) {
        // timeout(1) passes it on to all that it has started, stopped ones included.
        let pid = i32::try_from(self.shell.id()).expect("a pid is small");
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let _ = self.shell.wait();
    }
}
