#!/bin/sh
# Runs bench/variants.py in the virtual environment that run.sh makes: sh bench/variants.sh http2 --rust
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${MALLARD_BENCH_VENV:-${CARGO_TARGET_DIR:-$root/target}/bench-venv}
export PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" "$root/bench/variants.py" "$@"
