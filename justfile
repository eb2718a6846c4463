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

examples:
    bash examples/run.sh

# Against the pyarrow baseline, in alternation.
bench *ARGS:
    cargo build --release
    bash bench/run.sh {{ARGS}}

# Encode, decode, round trip, scan.
microbench *ARGS:
    cargo bench --bench streams {{ARGS}}

lint:
    cargo fmt --check
    cargo clippy --release --all-targets -- -D warnings

# After a key of the configuration has changed.
default-config:
    cargo run --release --quiet -- config default > config/mallard.toml
