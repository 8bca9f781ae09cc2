# Two images of one recipe: --target cpu, --target cuda. Each serves the bundled checkpoint at once:
#
#   docker build --target cpu -t palimpsest . && docker run --rm -p 50051:50051 -p 9464:9464 palimpsest
#
# Both bases are distributions that have the same gRPC, Abseil and protobuf (1.51, 20220623, 3.21). Where Python's
# packages come through a mirror or a proxy, the build takes a pip.conf and certificates (/run/secrets/authorities, for
# pip.conf's `cert`) for that step alone: --secret id=pip,src=pip.conf --secret id=authorities,src=ca.crt

# -- Build and test. `dev setup` is a layer of its own: it changes seldom.
FROM debian:bookworm-slim AS build-cpu
WORKDIR /src
COPY dev requirements.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=authorities ./dev setup
COPY . .
ARG COMMIT=unknown
ARG JOBS=
RUN --mount=type=cache,target=/root/.cache/ccache deploy/image/build.sh release

FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS build-cuda
WORKDIR /src
COPY dev requirements.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=authorities ./dev setup
COPY . .
ARG COMMIT=unknown
ARG JOBS=
RUN --mount=type=cache,target=/root/.cache/ccache deploy/image/build.sh cuda

# -- Ship. The two stages differ in their first two lines only; deploy/test_image.sh holds them to that.
FROM debian:bookworm-slim AS cpu
COPY --from=build-cpu /out/ /
RUN sh /usr/local/lib/palimpsest/install.sh
# `docker run` serves at once, so anybody who reaches the port may call: publish it to whom you trust.
ENV PALIMPSEST_HOST=0.0.0.0 \
    PALIMPSEST_INSECURE_PUBLIC=true \
    PALIMPSEST_METRICS_ADDRESS=0.0.0.0:9464 \
    PALIMPSEST_MODEL=books=/usr/local/share/palimpsest/books-5m \
    PALIMPSEST_MODEL_ROOT=/models
USER 65532:65532
EXPOSE 50051 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["palimpsest", "health", "--connect_timeout=3s", "--timeout=3s"]
ENTRYPOINT ["palimpsest-server"]
ARG VERSION=unknown
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="Palimpsest" \
      org.opencontainers.image.description="Inference server for fast-weight language models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"

FROM nvidia/cuda:13.0.2-runtime-ubuntu24.04 AS cuda
COPY --from=build-cuda /out/ /
RUN sh /usr/local/lib/palimpsest/install.sh
# `docker run` serves at once, so anybody who reaches the port may call: publish it to whom you trust.
ENV PALIMPSEST_HOST=0.0.0.0 \
    PALIMPSEST_INSECURE_PUBLIC=true \
    PALIMPSEST_METRICS_ADDRESS=0.0.0.0:9464 \
    PALIMPSEST_MODEL=books=/usr/local/share/palimpsest/books-5m \
    PALIMPSEST_MODEL_ROOT=/models
USER 65532:65532
EXPOSE 50051 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["palimpsest", "health", "--connect_timeout=3s", "--timeout=3s"]
ENTRYPOINT ["palimpsest-server"]
ARG VERSION=unknown
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="Palimpsest" \
      org.opencontainers.image.description="Inference server for fast-weight language models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
