#!/bin/sh
# Runs the unit tests and tests/in_memory/main.rs under Miri, which watches every access to memory: bounds, data races,
# alignment, and that each pointer comes from the memory it reaches (strict provenance). Takes a few minutes.
#
#   scripts/miri.sh                          everything
#   scripts/miri.sh orphan                   tests whose names contain "orphan"
#   MIRIFLAGS=-Zmiri-seed=7 scripts/miri.sh  another order of the threads
#
# Needs: rustup toolchain install nightly --component miri
set -eu
cd "$(dirname "$0")/.."

# The clock and the environment are the machine's own, for the times in headers and lane records. Weak memory is not emulated:
# the lock word, where it matters most, is modelled by tests/loom_lock/main.rs.
MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-strict-provenance -Zmiri-disable-weak-memory-emulation ${MIRIFLAGS:-}"
export MIRIFLAGS
exec cargo +nightly miri test --no-default-features --lib --test in_memory "$@"
