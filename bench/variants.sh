#!/bin/sh
# Runs bench/variants.py: sh bench/variants.sh http2 --rust
set -eu
. "$(dirname "$0")/environment.sh"
exec "$venv/bin/python" "$root/bench/variants.py" "$@"
