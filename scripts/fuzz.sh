#!/usr/bin/env bash
# Hostile bytes: runs every fuzz target from its corpus, with AddressSanitizer and with every assertion and check of
# arithmetic that a debug build has. tests/fuzz/src/lib.rs tells what the targets are.
#
#   scripts/fuzz.sh                        20 seconds for each target
#   scripts/fuzz.sh 3600                   an hour for each
#   scripts/fuzz.sh 3600 --log totals.txt  adds what was run to this file, and tells the totals of all runs that did so
#   scripts/fuzz.sh --blind 3600           instead, random changes of the committed inputs, twice as many in the same time
#   scripts/fuzz.sh --bytes                instead, every single-byte change of a valid region (half an hour)
#
# The last line is "fuzz executions N  findings F", "blind ..." or "single-byte changes N  findings F"; the exit code is 1 if F is not 0.
# A finding is kept under target/fuzz/findings. What is found worth trying again is kept under target/fuzz/corpus, for the next
# run; the committed corpus stays as it is.
set -uo pipefail
cd "$(dirname "$0")/.."
seconds=20 log="" jobs=2 blind=""
export RUST_BACKTRACE=0
while [ $# -gt 0 ]; do
    case "$1" in
        --log) log=$(realpath "$2") && shift 2 ;;
        --blind) blind=$2 && shift 2 ;;
        --bytes)
            export SHMHEAP_BYTES=full CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true
            out=$(mktemp)
            trap 'rm -f "$out"' EXIT
            cargo test --release --quiet --no-default-features --target-dir target/checked --test hostile a_changed_byte -- --nocapture | tee "$out"
            failed=$?
            grep -q '^single-byte changes' "$out" || printf 'single-byte changes 0  findings 1\n'
            grep '^single-byte changes' "$out"
            exit "$failed"
            ;;
        [0-9]*) seconds=$1 && shift ;;
        *) printf 'usage: scripts/fuzz.sh [seconds] [--log FILE] | --bytes\n' >&2 && exit 2 ;;
    esac
done

if [ -n "$blind" ]; then
    rustup toolchain list | grep -q ^nightly || rustup toolchain install nightly --profile minimal || exit 1
    RUSTFLAGS="-Zsanitizer=address --cfg fuzzing" cargo +nightly build --release --example blind \
        --manifest-path tests/fuzz/Cargo.toml --target x86_64-unknown-linux-gnu --target-dir target/fuzz/asan || exit 1
    export ASAN_OPTIONS=detect_stack_use_after_return=0:malloc_context_size=0:quarantine_size_mb=4:detect_leaks=0
    pids=() executions=0 findings=0
    for job in $(seq $jobs); do
        target/fuzz/asan/x86_64-unknown-linux-gnu/release/examples/blind "$blind" "$(($(date +%s) + job))" \
            >"target/fuzz/blind-$job.log" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || findings=$((findings + 1)); done
    # Of one that failed, the log tells where its input is.
    executions=$(sed -n 's/^blind executions //p' target/fuzz/blind-*.log | awk '{ sum += $1 } END { print sum + 0 }')
    [ "$findings" = 0 ] || grep -a -h -E 'panicked|^SUMMARY|stands in' target/fuzz/blind-*.log | cut -c1-160
    printf 'blind executions %d  findings %d\n' "$executions" "$findings"
    exit "$((findings != 0))"
fi

command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz || exit 1
rustup toolchain list | grep -q ^nightly || rustup toolchain install nightly --profile minimal || exit 1
# Comparisons are not traced: the targets make magic numbers and checksums right by themselves, and run twice as fast.
cargo +nightly fuzz build --fuzz-dir tests/fuzz --target-dir target/fuzz/build --no-trace-compares || exit 1
export ASAN_OPTIONS=detect_stack_use_after_return=0:malloc_context_size=0:quarantine_size_mb=4:detect_leaks=0

# Bytes of an input that its target can make something of.
longest() { case "$1" in region | scribble) echo 300 ;; *) echo 65536 ;; esac }

# One target, for so many seconds; its closing lines stand in target/fuzz/NAME.log.
run() {
    local name=$1
    mkdir -p "target/fuzz/corpus/$name" "target/fuzz/findings/$name"
    "$(find target/fuzz/build -path "*release/$name" -type f)" "target/fuzz/corpus/$name" "tests/fuzz/corpus/$name" \
        -max_total_time="$seconds" -timeout=10 -max_len="$(longest "$name")" -entropic=0 -detect_leaks=0 -print_final_stats=1 \
        -artifact_prefix="target/fuzz/findings/$name/" >"target/fuzz/$name.log" 2>&1
}

executions=0 findings=0
mkdir -p target/fuzz
targets=$(cargo +nightly fuzz list --fuzz-dir tests/fuzz)
started=$(mktemp)
trap 'rm -f "$started"' EXIT
for name in $targets; do
    while [ "$(jobs -r | wc -l)" -ge $jobs ]; do wait -n; done
    run "$name" &
done
wait
for name in $targets; do
    ran=$(sed -n 's/^stat::number_of_executed_units: *//p' "target/fuzz/$name.log")
    found=$(find "target/fuzz/findings/$name" -type f -newer "$started" | wc -l)
    # One that ended without a word is a finding too.
    [ -n "$ran" ] || [ "$found" -gt 0 ] || found=1
    [ "$found" = 0 ] || grep -a -E -A1 'panicked|^SUMMARY|Test unit' "target/fuzz/$name.log" | cut -c1-160
    printf '%-12s %12s executions in %d s  findings %d\n' "$name" "${ran:-?}" "$seconds" "$found"
    executions=$((executions + ${ran:-0})) findings=$((findings + found))
    [ -z "$log" ] || printf '%s %s %s\n' "$name" "${ran:-0}" "$found" >>"$log"
done
if [ -n "$log" ]; then
    read -r executions findings < <(awk '{ ran += $2; found += $3 } END { printf "%d %d\n", ran, found }' "$log")
fi
printf 'fuzz executions %d  findings %d\n' "$executions" "$findings"
[ "$findings" = 0 ]
