# Sourced by the scripts beside it: `root`, and the Python of a virtual environment with bench/requirements.txt.
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${MALLARD_BENCH_VENV:-${CARGO_TARGET_DIR:-$root/target}/bench-venv}
export PYTHONDONTWRITEBYTECODE=1

environment() {
    # The copy is made last, so an installation that was interrupted is done again.
    if ! cmp -s "$2" "$1/requirements.txt"; then
        python3 -m venv "$1"
        "$1/bin/pip" install --quiet --disable-pip-version-check --requirement "$2"
        cp "$2" "$1/requirements.txt"
    fi
}
environment "$venv" "$root/bench/requirements.txt"
