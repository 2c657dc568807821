# Rowlock's image: the binary, its certificates and an empty /data, on Debian. docs/deployment.md says how to run it.
# Base images can be pinned by digest: --build-arg RUNTIME_IMAGE=debian@sha256:…
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS builder
# The container test finds and removes the image of this stage by the label.
LABEL rowlock.stage=builder
WORKDIR /build
# A reproducible build: the same sources give the same binary, at any path and time.
ENV CARGO_INCREMENTAL=0 \
    CARGO_PROFILE_RELEASE_STRIP=symbols \
    RUSTFLAGS="--remap-path-prefix=/build=rowlock --remap-path-prefix=/usr/local/cargo=cargo" \
    SOURCE_DATE_EPOCH=0
# Builds the dependencies in a layer of their own, since sources change more often than Cargo.lock.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches empty \
    && touch src/lib.rs benches/storage.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked \
    && rm -r src
COPY web web
COPY src src
# The sources are older than the placeholders above, so without `touch` cargo would not build them.
RUN touch src/lib.rs src/main.rs && cargo build --release --locked

FROM ${RUNTIME_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="rowlock" \
      org.opencontainers.image.description="Many replicas, one CSV, every acknowledged row exactly once" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Default certificates for rediss:// and for traces over HTTPS.
COPY --from=builder /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# A new named volume takes the owner of this folder.
COPY --from=builder --chown=10001:10001 /build/empty /data
COPY --from=builder /build/target/release/rowlock /usr/local/bin/rowlock
# A number, since Kubernetes' runAsNonRoot cannot check a name.
USER 10001:10001
WORKDIR /data
VOLUME /data
# Other hosts reach this address, so a replica does not start without ROWLOCK_API_TOKENS or ROWLOCK_AUTH=off.
ENV REDIS_CSV_FILE_NAME=/data/rows.csv \
    ROWLOCK_LISTEN=0.0.0.0:8080
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=2s --timeout=3s --start-period=30s --retries=3 CMD ["rowlock", "health"]
ENTRYPOINT ["rowlock"]
CMD ["serve"]
