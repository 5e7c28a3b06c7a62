# The image: one binary, certificates and the C library, as a user without rights. Build it with
#   docker build -t homing .
# No cache mounts, so that any builder can build it; the dependencies are a layer of their own instead.

# Debian 13's C library and certificates, no shell, user 65532. It must be the build stage's Debian: a newer C library
# there would make a binary that doesn't start here. Where it can't be had: --build-arg BASE=debian:trixie-slim
ARG BASE=gcr.io/distroless/cc-debian13:nonroot

FROM rust:1.95-trixie AS build
WORKDIR /build
# Without line tables the binary is a quarter as large; backtraces keep the functions' names.
ENV CARGO_PROFILE_RELEASE_DEBUG=false \
    CARGO_PROFILE_RELEASE_STRIP=debuginfo

# Dependencies first: they change seldom and take most of the time. With an empty crate in its place, ours isn't needed.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
# A member of the workspace must be there, though nothing of it is compiled.
COPY tests/sim/Cargo.toml tests/sim/
RUN mkdir src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked \
    && rm -r src

COPY migrations migrations
COPY src src
# cargo goes by modification times, and those of COPY are the sources' own, which may be older than the empty crate's.
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked \
    && mkdir -p /image/data \
    && cp target/release/homing /image/homing

FROM ${BASE}

LABEL org.opencontainers.image.title="Homing" \
      org.opencontainers.image.description="Self-hosted HTTP message queue, wire-compatible with QStash" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"

# Other bases have no certificates; in distroless this replaces the file by its equal.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /image/homing /homing
# A new named volume takes contents and owner of the directory that it covers, so an empty one with the right owner is
# enough. A bind mount doesn't: that needs `chown 65532:65532`.
COPY --from=build --chown=65532:65532 /image/data /data

ENV HOMING_LISTEN=0.0.0.0:8080 \
    HOMING_DATA_DIR=/data
USER 65532:65532
WORKDIR /data
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/homing", "healthcheck"]
# In exec form, so that SIGTERM reaches the server and not a shell.
ENTRYPOINT ["/homing"]
