#!/usr/bin/env bash
# Runs every example against a server of its own: bash examples/run.sh (needs the release binary and python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export MALLARD_URI="grpc://127.0.0.1:$port"

cargo build --release --quiet --examples --bins
"$target/release/mallard" serve --location "$MALLARD_URI" --admin off &
server=$!
trap 'kill $server; wait $server' EXIT
until "$target/release/mallard" health >/dev/null 2>&1; do sleep 0.1; done

for example in query put exchange; do
    echo "-- $example.rs"
    "$target/release/examples/$example"
done
echo "-- exchangers.rs"
"$target/release/examples/exchangers" 1000000
# The environment of the end-to-end tests has pyarrow.
sh tests/e2e/run.sh --collect-only -q >/dev/null
for example in query put exchange; do
    echo "-- $example.py"
    "${MALLARD_E2E_VENV:-$target/e2e-venv}/bin/python" "examples/$example.py"
done
echo "-- exchangers.py"
"${MALLARD_E2E_VENV:-$target/e2e-venv}/bin/python" examples/exchangers.py 1000000
