# Everything that has to hold for a change; the same as .ci/run.
ci:
    bash .ci/run

# Two servers, one demo, 24 million rows.
demo *ARGS:
    cargo run --release -- demo {{ARGS}}

test *ARGS:
    cargo test --release {{ARGS}}

# The stock pyarrow client against a running server.
e2e *ARGS:
    sh tests/e2e/run.sh {{ARGS}}

# The SDK's examples, compiled, registered and run.
wasm *ARGS:
    sh tests/e2e/wasm/run.sh {{ARGS}}

# Dashboard, alerts and runbooks against a real Prometheus.
observability:
    sh tests/e2e/observability/run.sh

# The chart under Helm 3 and 4, and the workflows.
chart *ARGS:
    sh tests/e2e/chart/run.sh {{ARGS}}

# Mixed load for half an hour (or so many seconds), slow readers and floods, with figures and the seed.
soak *ARGS:
    sh tests/soak/run.sh {{ARGS}}

# Clients of Flight SQL from PyPI and npm; `just clients --write` writes docs/clients.md.
clients *ARGS:
    cargo build --release
    sh tests/e2e/clients/run.sh {{ARGS}}
    sh tests/e2e/clients/tools.sh

# SQL with expected answers, through ADBC and through DuckDB itself.
sqllogic *ARGS:
    cargo build --release
    sh tests/sqllogic/run.sh {{ARGS}}

# The image and docker compose, with crashes and cut networks; needs a Docker engine.
containers:
    sh tests/e2e/containers/run.sh

# An image of the binary that is built already.
image:
    cargo build --release
    mkdir -p out/bin
    strip -o out/bin/mallard "${CARGO_TARGET_DIR:-target}/release/mallard"
    docker build -t mallard:0.1.0 --build-context build=out/bin .

examples:
    bash examples/run.sh

# Against the pyarrow baseline, Quack and the machine's floors, in alternation.
bench *ARGS:
    cargo build --release
    bash bench/run.sh {{ARGS}}

# One-row queries through Flight SQL, beside ROAPI and Quack.
bench-flight-sql *ARGS:
    cargo build --release
    sh bench/flight_sql.sh {{ARGS}}

# IPC compression over limited links; needs root, for network namespaces.
bench-network *ARGS:
    sh bench/network.sh {{ARGS}}

# Where the server's CPU goes; needs perf.
profile *ARGS:
    sh bench/profile.sh {{ARGS}}

# Encode, decode, round trip, scan.
microbench *ARGS:
    cargo bench --bench streams {{ARGS}}

lint:
    cargo fmt --check
    cargo clippy --release --all-targets -- -D warnings

# Licences, sources and banned crates; needs cargo-deny.
deny:
    cargo deny check bans licenses sources

# After a key of the configuration has changed.
default-config:
    cargo run --release --quiet -- config default > config/mallard.toml
