#!/bin/sh
# Builds the SDK's examples in Rust and C and that of docs/exchangers.md, registers them at a running server through pyarrow, and checks the rows.
# Where it is root it installs the compilers that are missing; else it says which.
set -eu

root=$(cd "$(dirname "$0")/../../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
venv=${MALLARD_E2E_VENV:-$target/e2e-venv}
modules=$target/wasm-modules
export MALLARD_BIN="${MALLARD_BIN:-$target/release/mallard}" PYTHONDONTWRITEBYTECODE=1

need() {
    [ "$(id -u)" = 0 ] || { echo "install $* first" >&2; exit 1; }
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
command -v clang >/dev/null && command -v wasm-ld >/dev/null || need clang lld

# rustup's compiler if it has the target, else the distribution's, which is old and good enough: the SDK needs 1.63.
rustc=rustc
if ! [ -d "$(rustc --print sysroot)/lib/rustlib/wasm32-unknown-unknown" ]; then
    rustc=/usr/bin/rustc
    [ -d /usr/lib/rustlib/wasm32-unknown-unknown ] && [ -x $rustc ] || need rustc libstd-rust-dev-wasm32 lld
fi

mkdir -p "$modules"
rustc --edition 2021 --test "$root/sdk/mallard-exchanger/src/lib.rs" -o "$modules/sdk-tests"
"$modules/sdk-tests" --quiet
sdk=$root/sdk/mallard-exchanger
compile() {
    "$rustc" --edition 2021 -O --target wasm32-unknown-unknown "$@"
}
compile --crate-type rlib --crate-name mallard_exchanger "$sdk/src/lib.rs" -o "$modules/libmallard_exchanger.rlib"
for example in processed keep tokens copy_nested; do
    compile --crate-type cdylib -C panic=abort -C lto=fat -C strip=symbols \
        --extern mallard_exchanger="$modules/libmallard_exchanger.rlib" \
        "$sdk/examples/$example.rs" -o "$modules/$example.wasm"
done
# The one that docs/exchangers.md shows.
mkdir -p "$modules/docs"
sed -n '/^```rust$/,/^```$/{/^```/d;p}' "$root/docs/exchangers.md" > "$modules/docs/keep.rs"
compile --crate-type cdylib -C panic=abort -C lto=fat -C strip=symbols \
    --extern mallard_exchanger="$modules/libmallard_exchanger.rlib" "$modules/docs/keep.rs" -o "$modules/docs/keep.wasm"
clang --target=wasm32 -O2 -Wall -Wextra -Wno-unused-parameter -Werror -nostdlib -mbulk-memory -Wl,--no-entry \
    -o "$modules/hash.wasm" "$root/sdk/c/hash.c"

requirements=$root/tests/e2e/requirements.txt
if ! cmp -s "$requirements" "$venv/requirements.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
    cp "$requirements" "$venv/requirements.txt"
fi
MALLARD_WASM_MODULES=$modules exec "$venv/bin/pytest" -p no:cacheprovider --timeout 300 "$root/tests/e2e/wasm/examples.py" "$@"
