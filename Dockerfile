# Mallard in an image that holds the binary, the C and C++ runtime libraries and CA certificates: no shell, no package
# manager.
#
#   docker build -t mallard .
#
# The first build compiles DuckDB; later ones do not, until Cargo.toml or Cargo.lock changes. An already compiled
# binary (stripped, linked against a glibc no newer than BASE_IMAGE's) takes the place of the whole compilation:
#
#   docker build -t mallard --build-context build=DIRECTORY_WITH_mallard .

ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

# === Dependencies, DuckDB among them: a layer that source changes do not invalidate ===
FROM ${RUST_IMAGE} AS dependencies
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ccache g++ \
    && rm -rf /var/lib/apt/lists/*
ENV CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=symbols CCACHE_DIR=/var/cache/ccache CXX="ccache g++"
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches \
    && touch src/lib.rs benches/streams.rs \
    && echo 'fn main() {}' > src/main.rs
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/var/cache/ccache \
    cargo build --release --locked \
    && cargo clean --release --package mallard

# === Mallard itself ===
FROM dependencies AS compile
COPY askama.toml build.rs ./
COPY src src
COPY bench/flights.sql bench/lineitem.sql bench/
ARG REVISION=unknown
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    MALLARD_REVISION=${REVISION} cargo build --release --locked

# What `--build-context build=` replaces.
FROM scratch AS build
COPY --from=compile /src/target/release/mallard /mallard

# === The files of the image ===
FROM ${BASE_IMAGE} AS root
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libstdc++6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /mallard /root-fs/usr/local/bin/mallard
COPY LICENSE /root-fs/usr/share/doc/mallard/copyright
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /root-fs
RUN mkdir -p data etc/ssl/certs run/mallard \
    && install -d -m 1777 tmp \
    && ldd usr/local/bin/mallard | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }' \
        | xargs cp --dereference --parents --target-directory=. \
    && cp --parents /usr/share/doc/{libc6,libstdc++6,libgcc-s1,ca-certificates}/copyright . \
    && cp /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/ \
    && echo 'mallard:x:65532:65532::/tmp:/sbin/nologin' > etc/passwd \
    && echo 'mallard:x:65532:' > etc/group \
    && echo 'hosts: files dns' > etc/nsswitch.conf \
    && chown 65532:65532 data run/mallard \
    && chroot . mallard --version

# === The image ===
FROM scratch
COPY --from=root /root-fs /
ENV PATH=/usr/local/bin \
    HOME=/tmp \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    MALLARD__SERVER__LOCATION=grpc://0.0.0.0:8815 \
    MALLARD__DATABASE__PATH=/data/mallard.duckdb \
    MALLARD__DATABASE__TEMP_DIRECTORY=/tmp/spill
USER 65532:65532
WORKDIR /data
VOLUME ["/data", "/tmp"]
EXPOSE 8815 9815
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --start-interval=1s --retries=3 \
    CMD ["mallard", "health"]
ENTRYPOINT ["mallard"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="Mallard" \
      org.opencontainers.image.description="Moves data between DuckDB databases over Apache Arrow Flight" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="scratch"
