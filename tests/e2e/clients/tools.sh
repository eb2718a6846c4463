#!/bin/sh
# Tools that stand on a client of Flight SQL, from PyPI, at servers of their own: `sh tests/e2e/clients/tools.sh`.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
kept=${MALLARD_TOOLS_DIR:-$target/e2e-tools}
export MALLARD_BIN="${MALLARD_BIN:-${MALLARD:-$target/release/mallard}}" PYTHONDONTWRITEBYTECODE=1 DO_NOT_TRACK=1

# The copy is made last, so an installation that was interrupted is done again.
if ! cmp -s "$here/tools-requirements.txt" "$kept/requirements.txt"; then
    python3 -m venv "$kept"
    "$kept/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/tools-requirements.txt"
    cp "$here/tools-requirements.txt" "$kept/requirements.txt"
fi

exec "$kept/bin/python" "$here/tools.py" "$@"
