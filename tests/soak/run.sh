#!/bin/sh
# What takes longer than a test run has: mixed load, slow readers and floods against real servers, with figures; then crashes and corruption.
# usage: sh tests/soak/run.sh [seconds of mixed load, 1800 by default] [seed]
set -eu
cd "$(dirname "$0")/../.."
export MALLARD_SOAK_SECONDS="${1:-1800}"
[ -z "${2:-}" ] || export MALLARD_SOAK_SEED="$2"
cargo test --release --test it --no-run
for part in floods:: connections:: stalls:: soak::slow_reader soak::mixed_load; do
    cargo test --release --test it -- --nocapture --test-threads 1 "$part"
done
# 50 crashes and 400 flipped bits; their seed is printed, and MALLARD_TEST_SEED repeats it.
export MALLARD_SOAK_CRASHES=50 MALLARD_SOAK_FLIPS=400
cargo test --release --test it -- --nocapture --test-threads 1 crash:: corruption::
