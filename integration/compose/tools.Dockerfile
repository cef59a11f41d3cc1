# openssl, which makes the certificates, and tcpdump, which listens; installed where the base lacks them.
ARG TOOLS_BASE=debian:bookworm-slim
FROM ${TOOLS_BASE}
RUN { command -v openssl && command -v tcpdump; } || \
    { apt-get update && apt-get install -y --no-install-recommends openssl tcpdump && rm -rf /var/lib/apt/lists/*; }
COPY integration/compose/certificates.sh /usr/local/bin/certificates
# A volume takes the owner of the folder that it is first mounted on.
RUN cd / && mkdir certificates && cd certificates && \
    install -d -m 700 -o 65532 -g 65532 authority edition my-nginx my-nginx-ca credentials trust
ENTRYPOINT []
