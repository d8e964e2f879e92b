#!/usr/bin/env bash
# Mutates the parts of the library that crash safety stands on, function by function (cargo-mutants), and lists the mutants
# that no test notices: first the quick tests look, then the sweep looks at those that are left. Takes about half an hour
# on two processors. docs/CRASH_SAFETY.md tells what was made of the survivors.
#
# Needs: cargo install cargo-mutants
set -euo pipefail
cd "$(dirname "$0")/.."
# A mutant may well run away with the memory; the heaps here are small.
ulimit -v 8000000
export RUST_BACKTRACE=0
core=()
for file in journal recovery alloc/orphan alloc/slab heap/cells heap/moves heap/construct heap/lock sys/lock; do
    core+=(--file "src/$file.rs")
done
common=(--jobs 2 --output target "${core[@]}")
cargo mutants "${common[@]}" --timeout 60 -- --no-default-features --lib --test in_memory --test model --test roots --test loom_lock || true
cargo mutants "${common[@]}" --timeout 100 --iterate -- --no-default-features --test sweep -- quick || true
cat target/mutants.out/missed.txt
