#!/bin/sh
# What takes longer than a test run has: mixed load, slow readers and floods against real servers, then crashes and
# corruption. What they measure is written into SECURITY.md.
# usage: sh tests/soak/run.sh [seconds of mixed load, 1800 by default] [seed]
set -eu
cd "$(dirname "$0")/../.."
export MALLARD_SOAK_SECONDS="${1:-1800}"
[ -z "${2:-}" ] || export MALLARD_SOAK_SEED="$2"
# 50 crashes and 400 flipped bits; their seed is printed, and MALLARD_TEST_SEED repeats it.
export MALLARD_SOAK_CRASHES=50 MALLARD_SOAK_FLIPS=400
cargo test --release --test it --no-run
log=$(mktemp)
trap 'rm -f "$log"' EXIT
parts="connections:: floods:: stalls:: soak::slow_reader wire::requests login_flood:: tokens:: crash:: corruption:: soak::mixed_load"
for part in $parts; do
    status=0
    cargo test --release --test it -- --nocapture --test-threads 1 "$part" >"$log.part" 2>&1 || status=$?
    cat "$log.part"
    cat "$log.part" >>"$log"
    rm -f "$log.part"
    [ "$status" = 0 ] || exit "$status"
done
python3 tests/soak/figures.py "$log" SECURITY.md
