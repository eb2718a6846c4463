#!/bin/sh
# Runs bench/run.py in a virtual environment of its own: sh bench/run.sh --rounds 5
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${MALLARD_BENCH_VENV:-${CARGO_TARGET_DIR:-$root/target}/bench-venv}
requirements=$root/bench/requirements.txt
export PYTHONDONTWRITEBYTECODE=1
# The copy is made last, so an installation that was interrupted is done again.
if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
    cp "$requirements" "$venv/requirements.txt"
fi
exec "$venv/bin/python" "$root/bench/run.py" "$@"
