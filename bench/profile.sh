#!/bin/sh
# Where the server's CPU goes while a stock pyarrow client repeats one operation: perf samples by group and the symbols
# that lead each. Needs perf (Debian: linux-perf) and the right to sample a process of one's own.
#
#   sh bench/profile.sh get put exchange
set -eu
. "$(dirname "$0")/environment.sh"
exec "$venv/bin/python" "$root/bench/profile_server.py" "$@"
