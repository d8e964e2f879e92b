//! Time, identity and chance: what a header or a lane record says of the world outside.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, for people to read; nothing is ever decided by it.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The calling thread's id, as the kernel counts it in the caller's PID namespace.
pub(crate) fn thread_id() -> u32 {
    if cfg!(miri) {
        return 0;
    }
    u32::try_from(nix::unistd::gettid().as_raw()).unwrap_or(0)
}

/// This boot's id, as two words; zeros where the kernel does not tell. A process sees one boot: it asks once.
pub(crate) fn boot_id() -> [u64; 2] {
    static BOOT: OnceLock<[u64; 2]> = OnceLock::new();
    *BOOT.get_or_init(read_boot_id)
}

fn read_boot_id() -> [u64; 2] {
    if cfg!(miri) {
        return [0, 0];
    }
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let word =
        |range: std::ops::Range<usize>| digits.get(range).and_then(|part| u64::from_str_radix(part, 16).ok()).unwrap_or(0);
    [word(0..16), word(16..32)]
}

/// 128 random bits, for ids that must not repeat.
pub(crate) fn random_id() -> [u64; 2] {
    let mut bytes = [0u8; 16];
    // SAFETY: the pointer and the length describe `bytes`, which outlives the call.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    let (low, high) = bytes.split_at(8);
    let word = |half: &[u8]| half.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    if got == 16 {
        return [word(low), word(high)];
    }
    // A kernel without getrandom: the clock and the pid, mixed, are unique enough for a name.
    let seed = unix_ms() ^ u64::from(std::process::id()) << 32;
    [seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), seed.rotate_left(17).wrapping_mul(0xbf58_476d_1ce4_e5b9)]
}
