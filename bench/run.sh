#!/bin/sh
# Runs bench/run.py in virtual environments of its own: sh bench/run.sh --rounds 5
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${MALLARD_BENCH_VENV:-${CARGO_TARGET_DIR:-$root/target}/bench-venv}
export PYTHONDONTWRITEBYTECODE=1

environment() {
    # The copy is made last, so an installation that was interrupted is done again.
    if ! cmp -s "$2" "$1/requirements.txt"; then
        python3 -m venv "$1"
        "$1/bin/pip" install --quiet --disable-pip-version-check --requirement "$2"
        cp "$2" "$1/requirements.txt"
    fi
}
environment "$venv" "$root/bench/requirements.txt"
# Quack speaks with one version of DuckDB only, which is not the one Mallard has.
environment "$venv-quack" "$root/bench/requirements-quack.txt"
exec "$venv/bin/python" "$root/bench/run.py" --quack-python "$venv-quack/bin/python" "$@"
