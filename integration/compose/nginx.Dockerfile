# Both servers: the page's nginx.conf as it is, but that each request's TLS is told too, and the stand-in's.
ARG NGINX_BASE=nginx:1.28
FROM ${NGINX_BASE}
COPY integration/scenarios/my-nginx.conf integration/compose/edition.conf integration/compose/witness.conf /etc/nginx/
RUN sed -i 's|^http {$|&\n  include /etc/nginx/witness.conf;|' /etc/nginx/my-nginx.conf && \
    grep -q witness.conf /etc/nginx/my-nginx.conf
# What nginx writes; a tmpfs takes the mode of the folder that it is mounted on.
RUN install -d -m 1777 /run /var/log/nginx /var/cache/nginx /var/lib/nginx && rm -f /var/log/nginx/*
USER 65532:65532
ENTRYPOINT ["nginx", "-g", "daemon off; pid /run/nginx.pid;"]
