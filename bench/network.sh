#!/bin/sh
# Runs bench/network.py in the virtual environment of run.sh: sh bench/network.sh --update. Needs root and iproute2, for
# two network namespaces of its own.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${MALLARD_BENCH_VENV:-${CARGO_TARGET_DIR:-$root/target}/bench-venv}
export PYTHONDONTWRITEBYTECODE=1
if ! cmp -s "$root/bench/requirements.txt" "$venv/requirements.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$root/bench/requirements.txt"
    cp "$root/bench/requirements.txt" "$venv/requirements.txt"
fi
exec "$venv/bin/python" "$root/bench/network.py" "$@"
