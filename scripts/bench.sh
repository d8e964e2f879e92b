#!/usr/bin/env bash
# Measures the heap's allocator beside others: mimalloc, snmalloc, jemalloc, rpmalloc, glibc, Boost.Interprocess,
# rts-alloc.
#
#   scripts/bench.sh                            everything, 11 rounds: a minute and a half
#   scripts/bench.sh --quick                    the same, shorter: half a minute
#   scripts/bench.sh --only churn,larson,space  some workloads and tables
#   scripts/bench.sh --allocators shmheap,mimalloc
#   scripts/bench.sh --save results.json        keeps the numbers too
#   scripts/bench.sh plot results.json docs     draws them: bench.svg, scaling.svg, space.svg
#
# The last four lines are "geomean vs mimalloc X", "geomean vs best private Y", "geomean vs Boost.Interprocess Z" and
# "space churn A  traces B".
#
# Needs cmake, make and a C++ compiler for the other allocators, and Boost's headers for Boost.Interprocess, which is
# left out where they are missing. Root gets what is missing from apt.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

missing=()
command -v cmake >/dev/null || missing+=(cmake)
command -v make >/dev/null || missing+=(make)
command -v g++ >/dev/null || missing+=(g++)
[ -e /usr/include/boost/interprocess/managed_shared_memory.hpp ] || missing+=(libboost-dev)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null ||
            printf 'apt-get install %s failed; trying without\n' "${missing[*]}" >&2
    else
        printf 'not installed: apt-get install %s\n' "${missing[*]}" >&2
    fi
fi

# A run that was killed could not remove its segments. Those of runs that still go on stay.
clean_up() {
    local segment pid
    for segment in /dev/shm/*shmheap-bench-*; do
        [ -e "$segment" ] || continue
        pid=${segment##*shmheap-bench-}
        pid=${pid%%-*}
        kill -0 "$pid" 2>/dev/null || rm -f "$segment"
    done
}
trap clean_up EXIT

target=${CARGO_TARGET_DIR:-$root/target/bench}
cargo build --quiet --release --manifest-path "$root/tests/bench/Cargo.toml" --target-dir "$target"
"$target/release/shmheap-bench" "$@"
