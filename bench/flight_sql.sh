#!/bin/sh
# Runs bench/flight_sql.py in virtual environments of its own: sh bench/flight_sql.sh --rounds 7
set -eu
. "$(dirname "$0")/environment.sh"
# Each peer has what it needs for itself.
environment "$venv-quack" "$root/bench/requirements-quack.txt"
environment "$venv-adbc" "$root/bench/requirements-flight-sql.txt"
environment "$venv-roapi" "$root/bench/requirements-roapi.txt"
exec "$venv/bin/python" "$root/bench/flight_sql.py" --adbc-python="$venv-adbc/bin/python" \
    --quack-python="$venv-quack/bin/python" --roapi="$venv-roapi/bin/roapi" "$@"
