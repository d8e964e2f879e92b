//! Who is alive: one token per lane, held by the kernel on behalf of a process.
//!
//! A token is an open-file-description lock (`F_OFD_SETLK`) on byte 2^40 + lane of the mapped object, far behind its
//! last byte. The kernel lets it go when the last descriptor of that open file is closed, thus when the process is gone,
//! whatever its pid was and in whichever PID namespace it lived. "Held" therefore means "wait", not "will go on": a
//! stopped process holds its tokens, and so does one that is still being torn down.
//!
//! T1. Locks of one open file never conflict with each other. So each attachment has an open file of its own, and
//!     remembers in `own` which lanes' tokens it took; `take` asks `own` first. That open file is never mapped: a mapping
//!     would keep it open, in every forked child too.
//! T2. A token is taken before the lane's record is written, and before a dead lane is recovered. So a lane is claimed
//!     or recovered by one at a time.
//! T3. A forked child shares its parent's open file, and would keep the parent's tokens alive. The child opens the
//!     object anew and gets an open file of its own, before `fork` returns.
//!
//! Who is attached at all, with a lane or without one, holds a token too: all of them share the lock on one more byte. It
//! answers whether anybody has the heap open. This library decides nothing by it; who removes heaps may.
//!
//! Heaps in the caller's own memory have no object to lock; their tokens stand in a table of this process.
//!
//! Not here: what a lane is (`format`), what happens to a dead one (`recovery`).

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::object::{self, Object};
use super::{seat, system};
use crate::error::Result;

/// The token of lane 0; that of lane n lies n bytes further.
const TOKEN_BASE: i64 = 1 << 40;
/// How often a token is given back that the kernel does not take.
const UNLOCK_TRIES: u32 = 16;
/// Held by who creates an object under a temporary name.
const CREATION_BYTE: i64 = TOKEN_BASE - 1;
/// Most lanes that an object of any version has tokens for.
const LANES_MAX: u32 = 4096;
/// Shared by all who have the heap attached.
const ATTACHED_BYTE: i64 = TOKEN_BASE - 2;

/// The one question that recovery, the lock and the claiming of lanes ask about other processes.
pub(crate) trait Liveness: Debug + Send + Sync {
    /// Takes the token of `lane` for the caller; false if anybody alive holds it, the caller's own process included.
    fn take(&self, lane: u32) -> Result<bool>;
    /// Lets a token go that `take` took.
    fn give_back(&self, lane: u32);
    /// True if anybody alive holds the token of `lane`.
    fn is_alive(&self, lane: u32) -> Result<bool>;
    /// True if `take` took the token of `lane` through this very object.
    fn is_own(&self, lane: u32) -> bool;
    /// True if the process was forked and has no open file of its own: nothing may be decided any more.
    fn is_severed(&self) -> bool;
}

/// Which lanes' tokens an attachment holds.
#[derive(Debug)]
struct OwnSet(Box<[AtomicU64]>);

impl OwnSet {
    fn new(lanes: u32) -> Self {
        Self((0..lanes.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn word(&self, lane: u32) -> Option<(&AtomicU64, u64)> {
        let word = self.0.get(usize::try_from(lane / 64).ok()?)?;
        Some((word, 1 << (lane % 64)))
    }

    fn insert(&self, lane: u32) -> bool {
        self.word(lane).is_some_and(|(word, bit)| word.fetch_or(bit, Ordering::AcqRel) & bit == 0)
    }

    fn remove(&self, lane: u32) {
        if let Some((word, bit)) = self.word(lane) {
            word.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    fn contains(&self, lane: u32) -> bool {
        self.word(lane).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Release));
    }
}

/// Tokens of an object that several processes map.
#[derive(Debug)]
pub(crate) struct FileTokens {
    object: Arc<Object>,
    /// The way to the object by our descriptor, made ahead: a forked child should not allocate before it has to.
    reopen_path: PathBuf,
    own: OwnSet,
    severed: AtomicBool,
    seat_key: u64,
}

impl FileTokens {
    /// Tokens on `object`. `seat_key` is the key whose seats a forked child must forget.
    pub(crate) fn new(object: Arc<Object>, lanes: u32, seat_key: u64) -> Arc<Self> {
        let reopen_path = object::proc_path(object.file().as_raw_fd());
        let severed = AtomicBool::new(false);
        let tokens = Arc::new(Self { object, reopen_path, own: OwnSet::new(lanes), severed, seat_key });
        fork::register(&tokens);
        tokens
    }

    /// In a forked child: an open file of its own under the same descriptor, and no lanes.
    fn reopen_in_child(&self) {
        self.own.clear();
        let fd = self.object.file().as_raw_fd();
        let reopened = File::options().read(true).write(true).open(&self.reopen_path);
        let _ = reopened.as_ref().map(mark_attached);
        // SAFETY: both numbers are open descriptors; the one replaced is ours, and nobody else in the child uses it.
        let replaced = reopened.is_ok_and(|new| unsafe { libc::dup3(new.as_raw_fd(), fd, libc::O_CLOEXEC) } == fd);
        if !replaced {
            self.severed.store(true, Ordering::Release);
            // The parent's tokens must not live on here; a descriptor that nobody can lock takes the place.
            // SAFETY: as above; the number stays open, so that no other file can come to stand under it.
            let null = File::open("/dev/null").map(|null| unsafe { libc::dup3(null.as_raw_fd(), fd, libc::O_CLOEXEC) });
            drop(null);
        }
    }
}

fn record(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    // SAFETY: `flock` consists of integers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // The constants are small and the field is a short, on every Linux.
    lock.l_type = libc::c_short::try_from(kind).unwrap_or(0);
    lock.l_whence = 0;
    lock.l_start = start;
    lock.l_len = len;
    lock
}

fn byte_of(lane: u32) -> i64 {
    TOKEN_BASE.saturating_add(i64::from(lane))
}

fn lock_byte(file: &File, byte: i64) -> Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&record(libc::F_WRLCK, byte, 1))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(system("fcntl(F_OFD_SETLK)", errno)),
    }
}

/// Takes the creator's token of a temporary object; true if nobody else holds it.
pub(crate) fn lock_creation(file: &File) -> bool {
    lock_byte(file, CREATION_BYTE).unwrap_or(false)
}

/// Says that this open file belongs to an attachment, for as long as it is open. Where somebody else's lock is in the
/// way, or the file system has none, it is attached all the same.
pub(crate) fn mark_attached(file: &File) {
    let shared = record(libc::F_RDLCK, ATTACHED_BYTE, 1);
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&shared));
}

/// True if somebody else than who opened `file` has the object attached: shares the token of all, or holds that of a lane,
/// which is all that older versions had.
pub(crate) fn is_attached(file: &File) -> Result<bool> {
    is_locked(file, ATTACHED_BYTE, byte_of(LANES_MAX).saturating_sub(ATTACHED_BYTE).saturating_add(1))
}

/// True if who creates the temporary object lives.
pub(crate) fn is_being_created(file: &File) -> Result<bool> {
    is_locked(file, CREATION_BYTE, 1)
}

/// True if somebody who has the object open otherwise than through `file` holds the token of `lane`.
pub(crate) fn is_held(file: &File, lane: u32) -> Result<bool> {
    is_locked(file, byte_of(lane), 1)
}

fn is_locked(file: &File, start: i64, len: i64) -> Result<bool> {
    let mut query = record(libc::F_WRLCK, start, len);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut query)).map_err(|errno| system("fcntl(F_OFD_GETLK)", errno))?;
    Ok(libc::c_int::from(query.l_type) != libc::F_UNLCK)
}

impl Liveness for FileTokens {
    fn take(&self, lane: u32) -> Result<bool> {
        if self.is_severed() || !self.own.insert(lane) {
            return Ok(false);
        }
        let taken = lock_byte(self.object.file(), byte_of(lane));
        if !matches!(taken, Ok(true)) {
            self.own.remove(lane);
        }
        taken
    }

    fn give_back(&self, lane: u32) {
        // The kernel may want memory for that. A token that is kept in spite of all makes its lane useless until this
        // process ends, and does no other harm.
        let unlock = record(libc::F_UNLCK, byte_of(lane), 1);
        let unlocked = || fcntl(self.object.file(), FcntlArg::F_OFD_SETLK(&unlock)).is_ok();
        let _ = (0..UNLOCK_TRIES).any(|_| unlocked());
        self.own.remove(lane);
    }

    fn is_alive(&self, lane: u32) -> Result<bool> {
        if self.own.contains(lane) { Ok(true) } else { is_held(self.object.file(), lane) }
    }

    fn is_own(&self, lane: u32) -> bool {
        self.own.contains(lane)
    }

    fn is_severed(&self) -> bool {
        self.severed.load(Ordering::Acquire)
    }
}

/// Tokens of a heap in the caller's memory, all of whose users are in this process.
#[derive(Debug)]
pub(crate) struct LocalTokens {
    /// Where the memory starts: two attachments of one memory see each other's tokens.
    base: usize,
    own: OwnSet,
}

static LOCAL: Mutex<BTreeSet<(usize, u32)>> = Mutex::new(BTreeSet::new());

fn local() -> MutexGuard<'static, BTreeSet<(usize, u32)>> {
    LOCAL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalTokens {
    /// Tokens for memory at this address.
    pub(crate) fn new(base: usize, lanes: u32) -> Self {
        Self { base, own: OwnSet::new(lanes) }
    }
}

impl Liveness for LocalTokens {
    fn take(&self, lane: u32) -> Result<bool> {
        // As with a file's tokens, a lane that the heap has not is nobody's to take.
        if !self.own.insert(lane) {
            return Ok(false);
        }
        let taken = local().insert((self.base, lane));
        if !taken {
            self.own.remove(lane);
        }
        Ok(taken)
    }

    fn give_back(&self, lane: u32) {
        self.own.remove(lane);
        local().remove(&(self.base, lane));
    }

    fn is_alive(&self, lane: u32) -> Result<bool> {
        Ok(local().contains(&(self.base, lane)))
    }

    fn is_own(&self, lane: u32) -> bool {
        self.own.contains(lane)
    }

    fn is_severed(&self) -> bool {
        false
    }
}

/// Whose tokens are asked about by one who holds none: a read-only attachment.
#[derive(Debug)]
pub(crate) struct Onlooker(pub(crate) Option<Arc<Object>>);

impl Liveness for Onlooker {
    fn take(&self, _lane: u32) -> Result<bool> {
        Ok(false)
    }

    fn give_back(&self, _lane: u32) {}

    fn is_alive(&self, lane: u32) -> Result<bool> {
        self.0.as_ref().map_or(Ok(true), |object| is_held(object.file(), lane))
    }

    fn is_own(&self, _lane: u32) -> bool {
        false
    }

    fn is_severed(&self) -> bool {
        false
    }
}

/// Keeps T3: every `FileTokens` is told of a fork, in the child, before user code runs there.
mod fork {
    use super::{Arc, FileTokens, Mutex, MutexGuard, PoisonError, Weak, seat};
    use std::cell::UnsafeCell;
    use std::sync::Once;

    static TOKENS: Mutex<Vec<Weak<FileTokens>>> = Mutex::new(Vec::new());

    fn tokens() -> MutexGuard<'static, Vec<Weak<FileTokens>>> {
        TOKENS.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The list's guard while a fork is under way.
    struct Held(UnsafeCell<Option<MutexGuard<'static, Vec<Weak<FileTokens>>>>>);

    // SAFETY: the cell is reached only between `prepare` and `parent` or `child`, by the thread that forks, and only
    // while that thread holds the mutex whose guard the cell keeps: there is never more than one such thread.
    unsafe impl Sync for Held {}

    static HELD: Held = Held(UnsafeCell::new(None));

    extern "C" fn prepare() {
        let guard = tokens();
        // SAFETY: the mutex is held from here to `parent` or `child`; see `Held`.
        unsafe { *HELD.0.get() = Some(guard) };
    }

    extern "C" fn parent() {
        // SAFETY: this thread holds the mutex since `prepare`; see `Held`.
        drop(unsafe { (*HELD.0.get()).take() });
    }

    extern "C" fn child() {
        // SAFETY: the child has one thread, the one that ran `prepare`; see `Held`.
        let guard = unsafe { (*HELD.0.get()).take() };
        for tokens in guard.iter().flat_map(|list| list.iter()).filter_map(Weak::upgrade) {
            tokens.reopen_in_child();
            seat::forget(|number| number == tokens.seat_key);
        }
    }

    pub(super) fn register(new: &Arc<FileTokens>) {
        static HANDLERS: Once = Once::new();
        HANDLERS.call_once(|| {
            // SAFETY: the three handlers are functions of this library, which is never unloaded, and touch only the list.
            unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
        });
        let mut list = tokens();
        list.retain(|tokens| tokens.strong_count() != 0);
        list.push(Arc::downgrade(new));
    }
}
