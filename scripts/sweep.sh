#!/usr/bin/env bash
# Death at any instruction, measured: crash points, double crashes, schedules of two processes, failing system calls, real
# kills, and planted bugs that all of these must notice. docs/CRASH_SAFETY.md tells the method.
#
#   scripts/sweep.sh           the short form, in under five minutes
#   scripts/sweep.sh --full    the full form, about 35 minutes on two processors; goes on where it stopped
#
# The last line is "crash points N  double M  schedules S  kills K  planted P/P  failures F"; the exit code is 1 if F is not 0.
# Needs Linux 5.6 on x86-64, and the right to trace one's own children. Root is not needed.
set -uo pipefail
cd "$(dirname "$0")/.."
form=short which=(--every 25)
case "${1:-}" in
    --full) form=full which=(--resume) ;;
    "") ;;
    *) printf 'usage: scripts/sweep.sh [--full]\n' >&2 && exit 2 ;;
esac
out=$(mktemp)
trap 'rm -f "$out"' EXIT

RUST_BACKTRACE=0 cargo test --release --quiet --test sweep -- "$form" | tee "$out"
closing=$(tail -n 1 "$out")
case "$closing" in
    "crash points "*) ;;
    *) printf 'the sweep came to no end\n' >&2 && exit 1 ;;
esac
scripts/planted.sh "${which[@]}" | tee "$out"
planted=$(tail -n 1 "$out")
caught=${planted#planted } missed=0
case "$caught" in
    [0-9]*/[0-9]*) missed=$((${caught#*/} - ${caught%/*})) ;;
    *) missed=1 ;;
esac
failures=$((${closing##*failures } + missed))
printf '%s  planted %s  failures %d\n' "${closing%  failures*}" "$caught" "$failures"
[ "$failures" = 0 ]
