//! Hostile bytes: whatever stands in a region, no call reads or writes outside of it, fails to return, panics or raises a
//! signal.
//!
//! | file | |
//! |---|---|
//! | `bytes.rs` | every single-byte change of a valid region |
//! | `corpus.rs` | the inputs that the fuzzer has found worth keeping, and those that once failed |
//! | `regressions.rs` | findings, told one by one |
//! | tests/fuzz/src/lib.rs | what the fuzzer runs; included here, so that no fuzzer is needed |
//!
//! Not here: scribbling while others are at work (tests/scribbler.rs).

#![allow(unsafe_code, reason = "regions stand between guards, and their bytes are changed behind the library's back")]

mod bytes;
mod corpus;
mod regressions;
mod signals;
#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, unreachable_pub, reason = "a crate of its own for the fuzzer; not all of it is needed here")]
mod targets;
