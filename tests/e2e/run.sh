#!/bin/sh
# Drives a running `mallard serve` with the stock pyarrow client. Arguments go to pytest: tests/e2e/run.sh -k exchange
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
venv=${MALLARD_E2E_VENV:-$target/e2e-venv}
export MALLARD_BIN="${MALLARD_BIN:-$target/release/mallard}"
# The checkout stays free of bytecode and caches.
export PYTHONDONTWRITEBYTECODE=1

if [ ! -x "$MALLARD_BIN" ]; then
    echo "no mallard binary at $MALLARD_BIN: run cargo build --release, or set MALLARD_BIN" >&2
    exit 1
fi

requirements=$root/tests/e2e/requirements.txt
# The copy is made last, so an installation that was interrupted is done again.
if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
    cp "$requirements" "$venv/requirements.txt"
fi

exec "$venv/bin/pytest" -p no:cacheprovider --timeout 120 "$root/tests/e2e" "$@"
