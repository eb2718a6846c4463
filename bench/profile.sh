#!/bin/sh
# Where the server's CPU goes while a stock pyarrow client repeats one operation: perf samples by group and the symbols
# that lead each. Needs perf (Debian: linux-perf) and the right to sample a process of one's own.
#
#   sh bench/profile.sh get put exchange
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${MALLARD_BENCH_VENV:-${CARGO_TARGET_DIR:-$root/target}/bench-venv}
export PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" "$root/bench/profile_server.py" "$@"
