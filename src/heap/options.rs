//! How a heap is created and opened.

use std::path::Path;
use std::time::Duration;

use super::{Heap, Restore, attach, mend};
use crate::alloc::Classes;
use crate::error::{Error, Result};
use crate::format::{Header, LANES_MAX, PAGE_SIZE_MAX, PAGE_SIZE_MIN, ROOT_SLOTS_MAX};
use crate::region::Memory;
use crate::repair::RepairReport;
use crate::sys::clock;
use crate::sys::object::{Admission, Place};

/// Smallest and largest capacity.
const CAPACITY_MIN: u64 = 64 << 10;
const CAPACITY_MAX: u64 = 1 << 46;
/// Pages that a heap has at most before its default page size grows.
const PAGES_COMFORTABLE: u64 = 32_768;

/// Whose segments are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OwnerTrust {
    /// Only those of the calling process's effective user.
    #[default]
    SameUser,
    /// Only those of this uid.
    User(u32),
    /// Anybody's. A heap's bytes are checked before they are used, but whoever can write them can change your data.
    Anyone,
}

/// How a heap is created and opened, in the manner of [`std::fs::OpenOptions`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use shmheap::Heap;
/// use std::time::Duration;
///
/// # let name = &format!("doc-options-{}", std::process::id());
/// let heap = Heap::options().capacity(1 << 30).lanes(16).lock_timeout(Duration::from_secs(1)).open_or_create(name)?;
/// heap.destroy()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Options {
    capacity: Option<u64>,
    page_size: Option<u64>,
    mode: u32,
    trust: OwnerTrust,
    lanes: Option<u32>,
    root_slots: Option<u32>,
    lock_timeout: Duration,
    dry_run: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

impl Options {
    /// Capacity where none is given.
    const CAPACITY_DEFAULT: u64 = 64 << 20;

    /// All defaults.
    #[must_use]
    pub fn new() -> Self {
        Self {
            capacity: None,
            page_size: None,
            mode: 0o600,
            trust: OwnerTrust::SameUser,
            lanes: None,
            root_slots: None,
            lock_timeout: Duration::from_secs(5),
            dry_run: false,
        }
    }

    /// Bytes in the region, from 64 KiB to 64 TiB; rounded up to 4096. Default 64 MiB. Memory is taken only for what is
    /// used. When opening: the capacity that the heap must have; by default any.
    #[must_use]
    pub fn capacity(mut self, bytes: u64) -> Self {
        self.capacity = Some(bytes);
        self
    }

    /// Bytes per page, a power of two from 4096 to 65536. The default grows with the capacity: 4096 up to 128 MiB, 65536
    /// from 2 GiB on. Only for creating.
    #[must_use]
    pub fn page_size(mut self, bytes: u64) -> Self {
        self.page_size = Some(bytes);
        self
    }

    /// Permission bits of the segment. Default 0600. When opening: which write permissions of group and others are
    /// accepted; a segment that lets more people write is refused.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Whose segments are opened. Default: only one's own.
    #[must_use]
    pub fn trust(mut self, trust: OwnerTrust) -> Self {
        self.trust = trust;
        self
    }

    /// How many threads, of all processes, can have a lane of their own, from 1 to 4096. Further ones share one lane.
    /// Default: one per 512 KiB of capacity, from 4 to 64. Only for creating.
    #[must_use]
    pub fn lanes(mut self, lanes: u32) -> Self {
        self.lanes = Some(lanes);
        self
    }

    /// How many roots there can be, from 1 to 65536. Default: one per 16 KiB of capacity, at least 16. Only for creating.
    #[must_use]
    pub fn root_slots(mut self, slots: u32) -> Self {
        self.root_slots = Some(slots);
        self
    }

    /// How long a call waits for a lock whose holder is alive but does not go on (stopped, say) before it fails with
    /// [`Error::LockTimeout`]. Default 5 s. Where many take turns, the time-out counts anew for each holder, but
    /// no call waits for more than twelve of them. A dead holder is replaced after about a millisecond, whatever is set
    /// here.
    #[must_use]
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    /// If true, [`Self::repair`] and its like change nothing, and report what they would do. Default false. Only for
    /// repairing.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Creates a heap in a new POSIX shared-memory segment of this name (1 to 200 of `A-Z a-z 0-9 . _ -`, not starting
    /// with a dot), and attaches it.
    ///
    /// The heap appears under its name whole or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] if there is something of this name; [`Error::BadName`], [`Error::BadCapacity`],
    /// [`Error::WrongPageSize`], [`Error::BadOption`] for arguments out of range; [`Error::NoSpace`] if /dev/shm is full.
    pub fn create(&self, name: &str) -> Result<Heap> {
        attach::create_object(self, Place::segment(name)?)
    }

    /// Attaches the heap of this name.
    ///
    /// Everything in the header is checked before it is used.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::PermissionDenied`], [`Error::WrongOwner`] or [`Error::WrongMode`] for segments of
    /// others, or open to others; [`Error::NotAHeap`], [`Error::WrongVersion`], [`Error::WrongByteOrder`],
    /// [`Error::WrongPageSize`] for what this library cannot read; [`Error::CapacityMismatch`] if the segment is not as
    /// large as its header says, or as the options ask.
    pub fn open(&self, name: &str) -> Result<Heap> {
        attach::open_object(self, Place::segment(name)?, true)
    }

    /// Attaches the heap of this name, or creates it if there is none. Of several that call this at once, one creates.
    ///
    /// # Errors
    ///
    /// As [`Self::open`] and [`Self::create`].
    pub fn open_or_create(&self, name: &str) -> Result<Heap> {
        attach::open_or_create_object(self, &Place::segment(name)?)
    }

    /// Attaches the heap of this name for reading only.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_read_only(&self, name: &str) -> Result<Heap> {
        attach::open_object(self, Place::segment(name)?, false)
    }

    /// Creates a heap in a new file, shared by all who open it, and attaches it.
    ///
    /// # Errors
    ///
    /// As [`Self::create`].
    pub fn create_file(&self, path: impl AsRef<Path>) -> Result<Heap> {
        attach::create_object(self, Place::File(path.as_ref().to_owned()))
    }

    /// Attaches the heap in a file.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<Heap> {
        attach::open_object(self, Place::File(path.as_ref().to_owned()), true)
    }

    /// Attaches the heap in a file for reading only.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_file_read_only(&self, path: impl AsRef<Path>) -> Result<Heap> {
        attach::open_object(self, Place::File(path.as_ref().to_owned()), false)
    }

    /// Creates a heap without a name, which forked children share with their parent.
    ///
    /// # Errors
    ///
    /// As [`Self::create`].
    pub fn create_anonymous(&self) -> Result<Heap> {
        attach::create_object(self, Place::Anonymous)
    }

    /// Creates a heap in the caller's memory, over whatever was there. The capacity is the memory's length.
    ///
    /// # Errors
    ///
    /// As [`Self::create`]; [`Error::CapacityMismatch`] if a capacity was given that is not the memory's length.
    pub fn create_in(&self, memory: Memory) -> Result<Heap> {
        attach::create_in_memory(self, memory)
    }

    /// Attaches the heap in the caller's memory.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_in(&self, memory: Memory) -> Result<Heap> {
        attach::open_in_memory(self, memory)
    }

    /// Makes a damaged heap sound again: everything that [`Heap::findings`] tells is mended, and each action reported.
    ///
    /// The header must be whole. What is derived is rebuilt from the page table and the slabs' bits. Pages of which these
    /// contradict each other are *quarantined*: they become one allocated block, which [`Heap::blocks`] lists, so that its
    /// bytes can be copied out; [`Heap::deallocate`] frees it. What the dead had under way is finished or undone. The
    /// bytes of blocks are never changed. Nothing but this repairs a heap, and a sound one is left as it is, except that
    /// dead lanes are recovered.
    ///
    /// Damage that leaves words which contradict no others cannot be seen, and so not be repaired: a bit that says that a
    /// block is free, say. Nobody else can use the heap meanwhile. A repair that is killed can be repeated.
    /// Takes time proportional to the number of pages, of which those in use so far count most.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] if a thread of any process has a lane of the heap; nothing has changed then. As [`Self::open`],
    /// [`Error::NotAHeap`] for a damaged header included: then only a saved copy helps. [`Error::NoSpace`] if memory that
    /// should be reserved is not there; [`Error::Corrupt`] if anything is left that could not be mended.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shmheap::Heap;
    ///
    /// # let name = &format!("doc-repair-{}", std::process::id());
    /// # drop(Heap::options().capacity(1 << 20).create(name)?);
    /// let planned = Heap::options().dry_run(true).repair(name)?;
    /// println!("{planned}");
    /// let done = Heap::options().repair(name)?;
    /// assert_eq!(done, planned);
    /// Heap::open(name)?.validate()?;
    /// # Heap::unlink(name)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn repair(&self, name: &str) -> Result<RepairReport> {
        mend::repair_object(self, Place::segment(name)?)
    }

    /// Repairs the heap in a file, as [`Self::repair`] does.
    ///
    /// # Errors
    ///
    /// As [`Self::repair`].
    pub fn repair_file(&self, path: impl AsRef<Path>) -> Result<RepairReport> {
        mend::repair_object(self, Place::File(path.as_ref().to_owned()))
    }

    /// Repairs the heap in the caller's memory, as [`Self::repair`] does.
    ///
    /// # Errors
    ///
    /// As [`Self::repair`]; [`Error::BadCapacity`] if there is no memory for the copy that a dry run makes.
    pub fn repair_in(&self, memory: Memory) -> Result<RepairReport> {
        mend::repair_in_memory(self, memory)
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Makes a heap in a new segment, with the parameters of `saved`, and fills it with `f` before it gets its name.
    pub(crate) fn create_restored(
        &self,
        name: &str,
        saved: &Header,
        f: impl FnOnce(&Restore<'_>) -> Result<()>,
    ) -> Result<Heap> {
        let header = self.header_like(saved, None)?;
        attach::create_object_with(self, Place::segment(name)?, header, |heap| heap.restore(f))
    }

    /// As [`Self::create_restored`], in a new file.
    pub(crate) fn create_file_restored(
        &self,
        path: &Path,
        saved: &Header,
        f: impl FnOnce(&Restore<'_>) -> Result<()>,
    ) -> Result<Heap> {
        let header = self.header_like(saved, None)?;
        attach::create_object_with(self, Place::File(path.to_owned()), header, |heap| heap.restore(f))
    }

    /// As [`Self::create_restored`], in the caller's memory.
    pub(crate) fn create_restored_in(
        &self,
        memory: Memory,
        saved: &Header,
        f: impl FnOnce(&Restore<'_>) -> Result<()>,
    ) -> Result<Heap> {
        let len = u64::try_from(memory.len()).unwrap_or(u64::MAX);
        let header = self.header_like(saved, Some(len & !(PAGE_SIZE_MIN.wrapping_sub(1))))?;
        attach::create_in_memory_with(self, memory, header, |heap| heap.restore(f))
    }

    /// The header of a new heap into which everything fits that one with the header `saved` holds, at the same offsets.
    fn header_like(&self, saved: &Header, len: Option<u64>) -> Result<Header> {
        let asked = self.capacity.and_then(|capacity| capacity.checked_next_multiple_of(PAGE_SIZE_MIN));
        let capacity = len.or(asked).unwrap_or(saved.capacity);
        if capacity < saved.capacity {
            return Err(Error::BadCapacity { capacity, why: "it is smaller than that of the heap that was saved" });
        }
        Ok(Header { capacity, instance: clock::random_id(), created_ms: clock::unix_ms(), ..*saved })
    }

    pub(super) fn timeout(&self) -> Duration {
        self.lock_timeout
    }

    pub(super) fn permissions(&self) -> u32 {
        self.mode & 0o777
    }

    pub(super) fn admission(&self) -> Admission {
        let owner = match self.trust {
            OwnerTrust::SameUser => Some(nix::unistd::geteuid().as_raw()),
            OwnerTrust::User(uid) => Some(uid),
            OwnerTrust::Anyone => None,
        };
        Admission { owner, mode_allowed: self.mode & 0o022 }
    }

    /// Checks the capacity of a heap that was opened against the one asked for.
    pub(super) fn check_capacity(&self, actual: u64) -> Result<()> {
        match self.capacity.and_then(|capacity| capacity.checked_next_multiple_of(PAGE_SIZE_MIN)) {
            Some(expected) if expected != actual => Err(Error::CapacityMismatch { expected, actual }),
            _ => Ok(()),
        }
    }

    /// The header of a new heap. `len` is the length of the memory, where that is given.
    pub(super) fn header(&self, len: Option<u64>) -> Result<Header> {
        let wanted = len.or(self.capacity).unwrap_or(Self::CAPACITY_DEFAULT);
        let bad = |why| Err(Error::BadCapacity { capacity: wanted, why });
        let capacity = match len {
            Some(len) => len & !0xfff,
            None => wanted.checked_next_multiple_of(PAGE_SIZE_MIN).unwrap_or(u64::MAX),
        };
        if capacity < CAPACITY_MIN {
            return bad("the smallest capacity is 64 KiB");
        }
        if capacity > CAPACITY_MAX {
            return bad("the largest capacity is 64 TiB");
        }
        let page_size = self.checked_page_size(capacity)?;
        let lanes_default = u32::try_from(capacity >> 19).unwrap_or(u32::MAX).clamp(4, 64);
        let lanes = in_range("lanes", self.lanes.unwrap_or(lanes_default), LANES_MAX)?;
        let slots_default = u32::try_from(capacity >> 14).unwrap_or(u32::MAX).clamp(16, ROOT_SLOTS_MAX);
        let root_slots = in_range("root_slots", self.root_slots.unwrap_or(slots_default), ROOT_SLOTS_MAX)?;
        // The largest class is a 512th of the capacity, so that a slab is a small part of the heap.
        let class_max = (capacity >> 9).clamp(1024, 32 << 10);
        let slab_min = (capacity >> 12).clamp(page_size.min(16 << 10), 16 << 10).max(page_size);
        Ok(Header {
            capacity,
            page_shift: page_size.trailing_zeros(),
            lanes,
            root_slots,
            classes: Classes::count_up_to(class_max),
            slab_bytes_min: u32::try_from(slab_min).unwrap_or(u32::MAX),
            instance: clock::random_id(),
            created_ms: clock::unix_ms(),
        })
    }

    fn checked_page_size(&self, capacity: u64) -> Result<u64> {
        let min = PAGE_SIZE_MIN.max(crate::sys::os_page_size());
        let comfortable = capacity.div_ceil(PAGES_COMFORTABLE).next_power_of_two();
        let page_size = self.page_size.unwrap_or(comfortable.clamp(min, PAGE_SIZE_MAX));
        if !page_size.is_power_of_two() || !(min..=PAGE_SIZE_MAX).contains(&page_size) {
            return Err(Error::WrongPageSize { page_size, min });
        }
        Ok(page_size)
    }
}

fn in_range(option: &'static str, value: u32, max: u32) -> Result<u32> {
    if (1..=max).contains(&value) {
        return Ok(value);
    }
    Err(Error::BadOption { option, value: u64::from(value), min: 1, max: u64::from(max) })
}
