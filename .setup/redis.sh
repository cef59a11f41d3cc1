#!/usr/bin/env bash
# Prints where a redis-server with TLS is, redis-cli beside it: those already unpacked under .tools/, else the
# machine's own, else Debian's, which are unpacked there. REDIS_SERVER=/path/to/redis-server stands in for it.
set -euo pipefail
cd "$(dirname "$0")/.."
. .setup/debian.sh

# Also the order in integration/src/redis.rs, which finds it again. One without TLS does not know the word.
good() {
  [ -x "$1" ] && [ -x "${1%-server}-cli" ] && [[ "$("${1%-server}-cli" --help 2>&1)" == *--tls* ]]
}
# The program is in redis-tools; the package redis-server is a link to it and the service, which nobody wants here.
arrange() { ln -sf redis-check-rdb "$1/usr/bin/redis-server"; }
debian redis REDIS_SERVER "no redis-server with redis-cli beside it, both with TLS" usr/bin/redis-server \
  "$(command -v redis-server || true)" -- redis-tools
