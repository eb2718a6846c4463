#!/bin/sh
# Proves the observability content by running it: rules and configuration with promtool, then two servers, a Prometheus
# that scrapes them, real load, and every expression of the dashboard, of the alerts and of the runbooks against that.
# MALLARD is the binary to run. Prints a line for each check and, last, how many passed; exit code 1 if any failed.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
mallard=${MALLARD:-${CARGO_TARGET_DIR:-$HOME/.cache/mallard/target}/release/mallard}
rows=${ROWS:-200000}
# The checkout stays free of bytecode.
export PYTHONDONTWRITEBYTECODE=1

if [ ! -x "$mallard" ]; then
    echo "no mallard binary at $mallard: run cargo build --release, or set MALLARD" >&2
    exit 1
fi
missing=
command -v promtool >/dev/null && command -v prometheus >/dev/null || missing="$missing prometheus"
command -v python3 >/dev/null || missing="$missing python3"
command -v curl >/dev/null || missing="$missing curl"
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "install$missing first (Debian's packages of these names do)" >&2
        exit 1
    fi
    apt-get update -qq
    # shellcheck disable=SC2086 # one word for each package
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/mallard-observability.XXXXXX")
pids=
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
    code=$?
    trap - EXIT INT TERM
    for pid in $pids; do
        kill "$pid" 2>/dev/null || true
    done
    for pid in $pids; do
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

results=$work/results
export CHECK_RESULTS="$results"
: >"$results"

# One check: its name, and a command that succeeds or says why not.
check() {
    name=$1
    shift
    if "$@" >"$work/said" 2>&1; then
        echo "ok   $name"
        echo "ok $name" >>"$results"
    else
        echo "FAIL $name"
        sed 's/^/     /' "$work/said"
        echo "FAIL $name" >>"$results"
    fi
}

conclude() {
    if grep -q '^FAIL ' "$results"; then
        echo "failed:"
        sed -n 's/^FAIL /  /p' "$results"
        exit 1
    fi
    echo "$(grep -c '^ok ' "$results") passed"
    exit 0
}

# What a started process needs before the checks can go on; its log otherwise.
ready() {
    what=$1 url=$2 pid=$3 log=$4 tries=0
    until curl -fs -o /dev/null --max-time 2 "$url"; do
        tries=$((tries + 1))
        if [ "$tries" -gt 300 ] || ! kill -0 "$pid" 2>/dev/null; then
            echo "FAIL $what did not become ready"
            tail -n 20 "$log"
            echo "FAIL $what did not become ready" >>"$results"
            conclude
        fi
        sleep 0.2
    done
}

# shellcheck disable=SC2046 # five words
set -- $(python3 -c '
import socket
probes = [socket.socket() for _ in range(5)]
for probe in probes:
    probe.bind(("127.0.0.1", 0))
print(*(probe.getsockname()[1] for probe in probes))
')
flight1=$1 flight2=$2 admin1=$3 admin2=$4 web=$5

# The files of the compose profile, with this machine's paths, ports and patience in place of the containers'.
sed -e "s|/etc/prometheus/|$root/config/prometheus/|" \
    -e "s|mallard-1:9815|127.0.0.1:$admin1|; s|mallard-2:9815|127.0.0.1:$admin2|" \
    -e 's|\(scrape_interval\|scrape_timeout\|evaluation_interval\): .*|\1: 2s|' \
    "$root/config/prometheus.yml" >"$work/prometheus.yml"

echo "== files"
check "promtool accepts the rules" promtool check rules "$root/config/prometheus/mallard.rules.yml"
check "promtool accepts the configuration" promtool check config "$work/prometheus.yml"
check "every alert fires and stays silent as it should" promtool test rules "$here/rules_test.yml"
python3 "$here/check.py" files

echo "== two servers, one Prometheus"
python3 -c 'import secrets; print(secrets.token_urlsafe(24))' >"$work/password"
# Nothing of the caller's settings is what is checked.
serve() {
    mkdir "$work/data$1"
    env -i PATH="$PATH" HOME="$work" MALLARD__SERVER__LOCATION="grpc://127.0.0.1:$2" MALLARD__ADMIN__LISTEN="127.0.0.1:$3" \
        MALLARD__DATABASE__PATH="$work/data$1/mallard.duckdb" MALLARD__DATABASE__TEMP_DIRECTORY="$work/data$1/spill" \
        MALLARD__DATABASE__MEMORY_LIMIT=1GiB MALLARD__LIMITS__SQL_LENGTH=8KiB MALLARD__AUTH__LOGIN_FAILURES=100 \
        MALLARD__AUTH__ENABLED=true MALLARD__AUTH__USERS__MALLARD__ROLE=admin MALLARD__AUTH__USERS__MALLARD__PASSWORD_FILE="$work/password" \
        "$mallard" serve >"$work/mallard$1.log" 2>&1 &
    server=$!
    pids="$pids $server"
    ready "server $1" "http://127.0.0.1:$3/readyz" "$server" "$work/mallard$1.log"
}
serve 1 "$flight1" "$admin1"
serve 2 "$flight2" "$admin2"
server2=$server
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/prometheus" \
    --web.listen-address="127.0.0.1:$web" --log.level=warn >"$work/prometheus.log" 2>&1 &
pids="$pids $!"
ready Prometheus "http://127.0.0.1:$web/-/ready" "$!" "$work/prometheus.log"

# Rates need a sample from before the load.
export CHECK_PROMETHEUS="http://127.0.0.1:$web" CHECK_ROWS="$rows" CHECK_MALLARD="$mallard" CHECK_PASSWORD="$work/password"
export CHECK_FLIGHT="grpc://127.0.0.1:$flight1 grpc://127.0.0.1:$flight2" CHECK_ADMIN="127.0.0.1:$admin1 127.0.0.1:$admin2"
python3 "$here/check.py" scraped

echo "== load"
check "the demo runs between the two servers" env -i PATH="$PATH" HOME="$work" "$mallard" demo --rows "$rows" \
    --server1 "grpc://127.0.0.1:$flight1" --server2 "grpc://127.0.0.1:$flight2" --user mallard --password-file "$work/password"
python3 "$here/check.py" live

echo "== one server stops"
kill -TERM "$server2"
python3 "$here/check.py" stopped
conclude
