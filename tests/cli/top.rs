//! `top`, in a terminal of its own: tmux draws it, and tells what is on the screen.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Heap, refused};
use crate::watch::Load;

/// The longest that anything takes to appear on the screen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal of 80 by 24, in a tmux server of its own. What runs there is ended when this is dropped.
#[derive(Debug)]
struct Terminal {
    server: String,
}

fn has_tmux() -> bool {
    let has = Command::new("tmux").arg("-V").output().is_ok_and(|output| output.status.success());
    if !has {
        println!("skipped: there is no tmux, in which top could be drawn");
    }
    has
}

impl Terminal {
    /// Runs `top` on a heap. When it has ended its exit code is printed, and then whether the terminal has its usual modes.
    fn with_top(heap: &Heap, more: &str) -> Self {
        // A server that was told to end may still be there when the next one starts.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let terminal = Self { server: format!("{}-{}", heap.name(), NEXT.fetch_add(1, Ordering::Relaxed)) };
        let program = env!("CARGO_BIN_EXE_shmheap");
        let script = format!(
            "echo started before; {program} top {} {more}; echo \"ended with $?\"; stty -a | tr ' ;' '\\n\\n' \
             | grep -xE -e '-?(icanon|echo|isig)' | tr '\\n' ' '; echo is set; read line",
            heap.name()
        );
        let size = ["-x", "80", "-y", "24"];
        let made = terminal.tmux(&[&["new-session", "-d"], &size[..], &["sh", "-c", &script]].concat());
        assert!(made.status.success(), "{made:?}");
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> Output {
        let server = ["-L", &self.server, "-f", "/dev/null"];
        let mut command = Command::new("tmux");
        command.env_remove("TMUX").env("LC_ALL", "C.UTF-8");
        command.args(server).args(arguments).output().expect("tmux can be started")
    }

    fn press(&self, key: &str) {
        let sent = self.tmux(&["send-keys", key]);
        assert!(sent.status.success(), "{sent:?}");
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p"]).stdout).into_owned()
    }

    /// What tmux tells of the pane.
    fn asked(&self, format: &str) -> String {
        String::from_utf8_lossy(&self.tmux(&["display-message", "-p", format]).stdout).trim().to_owned()
    }

    /// Looks until the screen is as it should be, and returns it.
    #[track_caller]
    fn until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let screen = self.screen();
            if is_so(&screen) {
                return screen;
            }
            assert!(started.elapsed() < PATIENCE, "{what} is not to be seen:\n{screen}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn until_shown(&self, text: &str) -> String {
        self.until(text, |screen| screen.contains(text))
    }

    /// Waits for the end of the program, which must leave the terminal as it found it.
    #[track_caller]
    fn until_restored(&self, code: i32) -> String {
        let screen = self.until_shown("is set");
        assert!(screen.contains(&format!("ended with {code}")), "{screen}");
        assert!(screen.starts_with("started before"), "what stood there before is back:\n{screen}");
        assert!(screen.contains("isig icanon echo is set"), "keys are echoed line by line:\n{screen}");
        assert_eq!((self.asked("#{cursor_flag}"), self.asked("#{alternate_on}")), ("1".to_owned(), "0".to_owned()));
        screen
    }

    /// The pid of the program: the child of the shell that tmux has started.
    fn pid(&self) -> Pid {
        let shell = self.asked("#{pane_pid}");
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).expect("the shell is there");
        Pid::from_raw(children.trim().parse().expect("top is the shell's only child"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// The numbers in the row that starts with this.
fn row<'a>(screen: &'a str, start: &str) -> Option<Vec<&'a str>> {
    let line = screen.lines().find_map(|line| line.trim_start().strip_prefix(start))?;
    Some(line.split_whitespace().collect())
}

#[test]
fn top_shows_the_rates_of_a_heap_at_work_and_keys_change_the_view() {
    if !has_tmux() {
        return;
    }
    let heap = Heap::new("top");
    let _load = Load::on(&heap, 100);
    let terminal = Terminal::with_top(&heap, "--interval 100ms");
    let is_busy = |cell: Option<&&str>| cell.is_some_and(|cell| !cell.starts_with('0'));
    let has_rates = |screen: &str| row(screen, "112 B").is_some_and(|row| is_busy(row.first()) && is_busy(row.get(1)));
    let screen = terminal.until("the rates of blocks of 112 bytes", has_rates);
    for text in [heap.name(), "1 overview", "map,", "lock waits", "takeovers 0", "q quit", &std::process::id().to_string()] {
        assert!(screen.contains(text), "{text} is missing in\n{screen}");
    }
    terminal.press("2");
    terminal.until_shown("ORPHANS");
    terminal.press("Tab");
    let screen = terminal.until_shown("FREE/S LOCK");
    let (pid, word) =
        (std::process::id().to_string(), |line: &str, index| line.split_whitespace().nth(index).map(str::to_owned));
    let own = screen.lines().find(|line| word(line, 1).as_ref() == Some(&pid)).expect("this process is attached");
    assert_eq!(word(own, 3).as_deref(), Some("alive"), "{own}");
    terminal.press("s");
    terminal.until_shown("by bytes");
    terminal.press("Space");
    terminal.until_shown("PAUSED");
    terminal.press("Space");
    terminal.until_shown("every 100ms");
    terminal.press("+");
    terminal.until_shown("every 200ms");
    terminal.press("?");
    terminal.until_shown("help: ? closes it");
    terminal.press("?");
    terminal.press("q");
    terminal.until_restored(0);
}

#[test]
fn top_gives_the_terminal_back_when_it_is_interrupted_or_ended() {
    if !has_tmux() {
        return;
    }
    let heap = Heap::new("top-ended");
    let terminal = Terminal::with_top(&heap, "");
    terminal.until_shown("q quit");
    terminal.press("C-c");
    terminal.until_restored(0);
    drop(terminal);
    let terminal = Terminal::with_top(&heap, "");
    terminal.until_shown("q quit");
    kill(terminal.pid(), Signal::SIGTERM).expect("top is running");
    terminal.until_restored(0);
}

#[test]
fn top_ends_with_an_error_on_a_whole_terminal_when_the_heap_gets_corrupt() {
    if !has_tmux() {
        return;
    }
    let heap = Heap::new("top-corrupt");
    let terminal = Terminal::with_top(&heap, "-i 100ms");
    terminal.until_shown("q quit");
    corrupt(&heap);
    let screen = terminal.until_restored(1);
    assert!(screen.contains("is corrupt") && screen.contains("shmheap repair"), "{screen}");
}

/// Damages the page table's entry of a large block: says that it is longer than the heap (docs/FORMAT.md).
pub(crate) fn corrupt(heap: &Heap) {
    let attached = heap.open();
    let block = attached.allocate(100_000).expect("room");
    let table = (attached.pages_start() + attached.total_size()).next_multiple_of(64);
    let entry = table + (block.get() - attached.pages_start()) / attached.page_size() * 8;
    let file = fs::OpenOptions::new().write(true).open(heap.path()).expect("the heap is there");
    file.write_all_at(&(0xffff_ffff_u64 << 32 | 2).to_ne_bytes(), entry).expect("it can be written to");
}

#[test]
fn top_says_what_else_there_is_where_it_cannot_be_shown() {
    let heap = Heap::new("top-refused");
    let error = refused(3, &["top", heap.name()]);
    assert!(error.contains("needs a terminal"), "{error}");
    for command in ["watch", "stat"] {
        assert!(error.contains(&format!("shmheap {command} {}", heap.name())), "{error}");
    }
    let error = refused(2, &["top", heap.name(), "--json"]);
    assert!(error.contains(&format!("shmheap watch {} --json", heap.name())), "{error}");
    assert!(refused(2, &["top", heap.name(), "--interval", "0"]).contains("from 10ms to 24h"));
    assert!(refused(2, &["top"]).contains("NAME"));
}

/// Read from a terminal that is gone, a program hears its end again and again: it once went on for ever, at full speed.
#[test]
fn top_ends_when_its_terminal_goes_away() {
    if !has_tmux() {
        return;
    }
    let heap = Heap::new("top-gone");
    let terminal = Terminal::with_top(&heap, "");
    terminal.until_shown(heap.name());
    let pid = terminal.pid();
    drop(terminal);
    let started = Instant::now();
    // An end that nobody waits for leaves a zombie.
    let runs = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"));
    while runs() {
        if started.elapsed() > PATIENCE {
            let _ = kill(pid, Signal::SIGKILL);
            panic!("it goes on without a terminal");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
