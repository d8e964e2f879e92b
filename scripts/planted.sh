#!/usr/bin/env bash
# Plants one bug after the other (tests/planted/*.patch) into a copy of the sources, and requires that the sweep or the
# models catch it. A test that cannot fail proves nothing.
#
#   scripts/planted.sh               all of them
#   scripts/planted.sh --every 4     every fourth; which ones turns with the day of the year
#   scripts/planted.sh --resume      not those that were caught before, with the same sources
#   scripts/planted.sh lock journal  those whose names contain "lock" or "journal"
#
# The last line is "planted CAUGHT/PLANTED"; the exit code is 1 if any bug was missed.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
every=1 resume=no
[ "${1:-}" = --every ] && every=$2 && shift 2
[ "${1:-}" = --resume ] && resume=yes && shift
turn=$((10#$(date +%j) % every))
target=${CARGO_TARGET_DIR:-$root/target}
tree=$target/planted/tree
log=$target/planted/log.txt
started=$target/planted/started
# A planted bug may well run away with the memory; the heaps here are small.
ulimit -v 8000000

rm -rf "$tree"
mkdir -p "$tree"
cp -r Cargo.toml Cargo.lock README.md src examples tests "$tree/"
cd "$tree"
sources=$(find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
ledger=$target/planted/caught.txt
touch "$ledger"
# A target folder of its own: cargo takes the copy and the original for the same package, and what was built with a bug in it
# would pass for the original's.
export CARGO_TARGET_DIR=$target/planted/build RUST_BACKTRACE=0
build() { cargo test --quiet --no-default-features --no-run --lib --test sweep --test in_memory --test model --test loom_lock --test loom_gate; }
catches() {
    timeout 100 cargo test --quiet --no-default-features --test sweep -- quick || return 0
    timeout 100 cargo test --quiet --no-default-features --lib --test in_memory --test model --test loom_lock --test loom_gate || return 0
    return 1
}
clean_up() { find /dev/shm -maxdepth 1 -name 'shmheap-test-*' -newer "$started" -delete; }

# True if a name is asked for: no words, or one of them in it.
wanted() {
    local name=$1 word
    shift
    [ $# -gt 0 ] || return 0
    for word in "$@"; do [[ $name == *$word* ]] && return 0; done
    return 1
}

build
planted=0 caught=0 index=0
for patch in "$root"/tests/planted/*.patch; do
    name=$(basename "$patch" .patch)
    index=$((index + 1))
    [ $((index % every)) = "$turn" ] || continue
    wanted "$name" "$@" || continue
    if [ $resume = yes ] && grep -qxF "$sources $name" "$ledger"; then
        planted=$((planted + 1)) caught=$((caught + 1))
        continue
    fi
    touch "$started"
    if ! patch --quiet -p1 <"$patch"; then
        printf '%s no longer fits the sources: plant it anew\n' "$patch" >&2
        exit 1
    fi
    planted=$((planted + 1))
    if ! build >"$log" 2>&1; then
        printf 'does not build: %s\n' "$name"
        tail -20 "$log"
    elif catches >"$log" 2>&1; then
        caught=$((caught + 1))
        printf '%s %s\n' "$sources" "$name" >>"$ledger"
        printf 'caught  %-45s %s\n' "$name" "$(grep -m1 -E 'seed [0-9]|panicked|FAILED|hung|overflow' "$log" | cut -c1-110 || true)"
    else
        printf 'MISSED  %s\n' "$name"
    fi
    clean_up
    patch --quiet -R -p1 <"$patch"
done
printf 'planted %d/%d\n' "$caught" "$planted"
[ "$caught" = "$planted" ]
