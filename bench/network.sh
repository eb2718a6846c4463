#!/bin/sh
# Runs bench/network.py in the virtual environment of run.sh: sh bench/network.sh --update. Needs root and iproute2, for
# two network namespaces of its own.
set -eu
. "$(dirname "$0")/environment.sh"
exec "$venv/bin/python" "$root/bench/network.py" "$@"
