#!/bin/sh
# Stock clients of Flight SQL, from PyPI, npm, Maven Central and crates.io, at one server: `sh tests/e2e/clients/run.sh [--write] [--only WORDS]`.
# What they can do is the table in docs/clients.md, which is held to what this run says.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
kept=${MALLARD_CLIENTS_DIR:-$target/e2e-clients}
export MALLARD_BIN="${MALLARD_BIN:-${MALLARD:-$target/release/mallard}}"
export PATH="$kept/cargo/bin:$PATH" PYTHONDONTWRITEBYTECODE=1 MALLARD_NODE_MODULES="$kept/node_modules"

if [ ! -x "$MALLARD_BIN" ]; then
    echo "no mallard binary at $MALLARD_BIN: run cargo build --release, or set MALLARD" >&2
    exit 1
fi
command -v npm >/dev/null || { echo "install Node.js with npm first" >&2; exit 1; }
command -v mvn >/dev/null || { echo "install Java 17 with Maven first" >&2; exit 1; }
MALLARD_VERSION=$("$MALLARD_BIN" --version | cut -d ' ' -f 2)
ARROW_FLIGHT_VERSION=$(sed -n '/^name = "arrow-flight"$/{n;s/version = "\(.*\)"/\1/p}' "$root/Cargo.lock")
MALLARD_JDBC_VERSION=18.3.0
MALLARD_JDBC_DRIVER="$kept/jdbc/flight-sql-jdbc-driver-$MALLARD_JDBC_VERSION.jar"
export MALLARD_VERSION ARROW_FLIGHT_VERSION MALLARD_JDBC_VERSION MALLARD_JDBC_DRIVER

# The copies are made last, so an installation that was interrupted is done again.
if ! cmp -s "$here/requirements.txt" "$kept/requirements.txt"; then
    python3 -m venv "$kept"
    "$kept/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$kept/requirements.txt"
fi
if ! cmp -s "$here/package.json" "$kept/installed.json"; then
    cp "$here/package.json" "$kept/package.json"
    npm install --prefix "$kept" --no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error
    cp "$here/package.json" "$kept/installed.json"
fi
if [ "$(cat "$kept/cargo/version" 2>/dev/null)" != "$ARROW_FLIGHT_VERSION" ]; then
    cargo install arrow-flight --version "=$ARROW_FLIGHT_VERSION" --bin flight_sql_client \
        --features cli,flight-sql,tls-ring --locked --quiet --force --root "$kept/cargo" --target-dir "$kept/cargo/build"
    rm -rf "$kept/cargo/build"
    echo "$ARROW_FLIGHT_VERSION" > "$kept/cargo/version"
fi

if [ "$(cat "$kept/jdbc/version" 2>/dev/null)" != "$MALLARD_JDBC_VERSION" ]; then
    mvn --quiet --batch-mode dependency:copy -DoutputDirectory="$kept/jdbc" \
        -Dartifact="org.apache.arrow:flight-sql-jdbc-driver:$MALLARD_JDBC_VERSION"
    echo "$MALLARD_JDBC_VERSION" > "$kept/jdbc/version"
fi

exec "$kept/bin/python" "${MALLARD_CLIENTS_COMMAND:-$here/check.py}" "$@"
