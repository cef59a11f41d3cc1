# Envoy with the filter, and egressctl to start it. The base has an Envoy of envoy/envoy.txt's version as `envoy`.
ARG ENVOY_BASE=envoyproxy/envoy:v1.40.0
FROM ${ENVOY_BASE}
COPY target/release/egressctl target/release/egress-filter.wasm /opt/egress/
ENV PATH=/opt/egress:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# For what `egressctl render envoy` writes into a volume, which takes the owner of this folder.
RUN install -d -m 700 -o 65532 -g 65532 /rendered
USER 65532:65532
ENTRYPOINT ["egressctl"]
