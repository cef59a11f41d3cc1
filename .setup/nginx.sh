#!/usr/bin/env bash
# Prints where an nginx with TLS is, its welcome page beside it: the one already unpacked under .tools/, else
# the machine's own, else Debian's, which is unpacked there. NGINX=/path/to/nginx stands in for it.
# Sees to the openssl command too, which makes the certificates.
set -euo pipefail
cd "$(dirname "$0")/.."
. .setup/debian.sh

command -v openssl >/dev/null || .setup/apt.sh openssl

# Also the order in integration/src/nginx.rs, which finds it again.
good() {
  [ -x "$1" ] && [ -s "${1%/sbin/nginx}/share/nginx/html/index.html" ] &&
    [[ "$("$1" -V 2>&1)" == *--with-http_ssl_module* ]]
}
debian nginx NGINX "no PREFIX/sbin/nginx with TLS and its welcome page in PREFIX/share/nginx/html" usr/sbin/nginx \
  "$(command -v nginx || true)" /usr/sbin/nginx -- nginx nginx-common
