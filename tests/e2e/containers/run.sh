#!/bin/sh
# The image and docker-compose.yml, run by a Docker engine: what is in the image, the demo, the password, metrics, data that
# stays, servers that are killed, stopped and cut off in the middle of a transfer, a full volume, and traces.
# MALLARD is the compiled binary that goes into the image; names of sections as arguments run only those. Prints a line for
# each check and, last, how many passed; exit code 1 if any failed. Without a Docker engine nothing is checked.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$HOME/.cache/mallard/target}
mallard=${MALLARD:-$target/release/mallard}
# The checkout stays free of bytecode.
export PYTHONDONTWRITEBYTECODE=1

quick() {
    timeout -k 5 60 docker "$@" </dev/null 2>/dev/null
}

if ! command -v docker >/dev/null || ! quick info >/dev/null; then
    echo "skipped: no Docker engine answers"
    exit 0
fi
compose=$(quick compose version --short || echo none)
# The override file replaces ports.
if [ "$compose" = none ] || [ "$(printf '%s\n' 2.24.0 "${compose#v}" | sort -V | head -n 1)" != 2.24.0 ]; then
    echo "skipped: Docker Compose 2.24 or newer is needed, here is $compose"
    exit 0
fi
if [ ! -x "$mallard" ]; then
    echo "no mallard binary at $mallard: run cargo build --release, or set MALLARD" >&2
    exit 1
fi

venv=$target/containers-venv
# The copy is made last, so an installation that was interrupted is done again.
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/requirements.txt"
fi

# Nothing of the caller's settings is what is checked.
for name in $(env | grep -oE '^(MALLARD|OTEL|COMPOSE)_[A-Za-z0-9_]*'); do
    unset "$name"
done
work=$(mktemp -d "${TMPDIR:-/tmp}/mallard-containers.XXXXXX")
mkdir "$work/build" "$work/report"
# shellcheck disable=SC2046 # four words
set -- $(python3 -c '
import socket
probes = [socket.socket() for _ in range(4)]
for probe in probes:
    probe.bind(("127.0.0.1", 0))
print(*(probe.getsockname()[1] for probe in probes))
') "$@"
export E2E_FLIGHT_1="$1" E2E_FLIGHT_2="$2" E2E_ADMIN_1="$3" E2E_ADMIN_2="$4" E2E_REPORT="$work/report"
shift 4
export COMPOSE_PROJECT_NAME=mallard-e2e COMPOSE_DISABLE_ENV_FILE=1
export COMPOSE_FILE="$root/docker-compose.yml:$here/compose.override.yml"
export MALLARD_IMAGE=mallard:e2e

# Whatever carries the project's name, or the label of the containers and volumes beside it.
remove() {
    quick compose down -v --remove-orphans --timeout 5 || true
    for id in $(quick ps -aq --filter label=mallard-e2e); do
        quick rm -fv "$id" || true
    done
    for name in $(quick volume ls -q --filter label=mallard-e2e); do
        quick volume rm "$name" || true
    done
    quick image rm "$MALLARD_IMAGE" || true
}
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
    code=$?
    trap - EXIT INT TERM
    remove >/dev/null
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What a run that was killed has left.
remove >/dev/null
strip -o "$work/build/mallard" "$mallard"
python3 "$here/check.py" --work "$work" --tools "$venv/bin" "$@"
