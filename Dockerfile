# Rowlock's image: the binary, its certificates and an empty /data, on Debian. docs/deployment.md says how to run it.
# Both bases can be pinned further, by digest: --build-arg RUNTIME_IMAGE=debian@sha256:…
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS builder
# So that what is left of this stage can be found and removed.
LABEL rowlock.stage=builder
WORKDIR /build
# The same sources give the same binary, wherever they lie and whenever they are built.
ENV CARGO_INCREMENTAL=0 \
    CARGO_PROFILE_RELEASE_STRIP=symbols \
    RUSTFLAGS="--remap-path-prefix=/build=rowlock --remap-path-prefix=/usr/local/cargo=cargo" \
    SOURCE_DATE_EPOCH=0
# Dependencies by themselves: sources change more often than Cargo.lock.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches empty \
    && touch src/lib.rs benches/storage.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked \
    && rm -r src
COPY web web
COPY src src
# Files keep the times of the sources, which are older than what was built in their stead: cargo would take it for built.
RUN touch src/lib.rs src/main.rs && cargo build --release --locked

FROM ${RUNTIME_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="rowlock" \
      org.opencontainers.image.description="Many replicas, one CSV, every acknowledged row exactly once" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# For rediss:// and traces by https, where no other certificates are named.
COPY --from=builder /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# A named volume that is new takes the owner of the folder that it is mounted on.
COPY --from=builder --chown=10001:10001 /build/empty /data
COPY --from=builder /build/target/release/rowlock /usr/local/bin/rowlock
# By number, since Kubernetes' runAsNonRoot believes no name.
USER 10001:10001
WORKDIR /data
VOLUME /data
# Others reach this address, so a start without ROWLOCK_API_TOKENS is refused, unless ROWLOCK_AUTH=off says that it is meant.
ENV REDIS_CSV_FILE_NAME=/data/rows.csv \
    ROWLOCK_LISTEN=0.0.0.0:8080
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=2s --timeout=3s --start-period=30s --retries=3 CMD ["rowlock", "health"]
ENTRYPOINT ["rowlock"]
CMD ["serve"]
