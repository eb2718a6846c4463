#!/bin/sh
# Runs bench/run.py in virtual environments of its own: sh bench/run.sh --rounds 5
set -eu
. "$(dirname "$0")/environment.sh"
# Quack speaks with one version of DuckDB only, which is not the one Mallard has.
environment "$venv-quack" "$root/bench/requirements-quack.txt"
exec "$venv/bin/python" "$root/bench/run.py" --quack-python "$venv-quack/bin/python" "$@"
