#!/bin/sh
# SQL with expected answers, through ADBC and through DuckDB itself; see run.py. Its environment is that of tests/e2e/clients.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
MALLARD_CLIENTS_COMMAND="$here/run.py" exec sh "$here/../e2e/clients/run.sh" "$@"
