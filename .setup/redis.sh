#!/usr/bin/env bash
# Prints where a redis-server with TLS is, redis-cli beside it: those already unpacked under .tools/, else the
# machine's own, else Debian's, which are unpacked there. No service is installed and nothing is started.
# REDIS_SERVER=/path/to/redis-server stands in for it.
set -euo pipefail
cd "$(dirname "$0")/.."

# Also the order in integration/src/redis.rs, which finds it again. One without TLS does not know the word.
good() {
  [ -x "$1" ] && [ -x "${1%-server}-cli" ] && [[ "$("${1%-server}-cli" --help 2>&1)" == *--tls* ]]
}
if [ -n "${REDIS_SERVER:-}" ]; then
  if good "$REDIS_SERVER"; then echo "$REDIS_SERVER" && exit 0; fi
  echo "error: REDIS_SERVER=$REDIS_SERVER is no redis-server with redis-cli beside it, both with TLS" >&2
  exit 1
fi
for binary in .tools/redis-*/usr/bin/redis-server "$(command -v redis-server || true)"; do
  if good "$binary"; then echo "$binary" && exit 0; fi
done

fail() {
  echo "error: $1; please install redis-server, or say REDIS_SERVER=/path/to/redis-server" >&2
  exit 1
}
for tool in apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || fail "no redis-server here, and no $tool to get Debian's"
done

mkdir -p .tools
fresh=$(mktemp -d .tools/redis.XXXXXX)
trap 'rm -rf "$fresh"' EXIT
# The program is in redis-tools; redis-server is a link to it and the service, which nobody wants here.
download() { (cd "$fresh" && apt-get -q download redis-tools >&2); }
echo "downloading Debian's redis (once)" >&2
# An image without package lists knows no package; lists that are old name versions that are gone.
if ! download; then
  .setup/apt.sh --update || fail "no package lists, so Debian's redis cannot be downloaded"
  download || fail "Debian's redis cannot be downloaded"
fi

mkdir "$fresh/root"
for package in "$fresh"/*.deb; do dpkg-deb -x "$package" "$fresh/root"; done
version=$(dpkg-deb -f "$fresh"/redis-tools_*.deb Version)
ln -sf redis-check-rdb "$fresh/root/usr/bin/redis-server"
if ! good "$fresh/root/usr/bin/redis-server"; then # its libraries are missing; they start nothing either
  mapfile -t libraries < <(dpkg-deb -f "$fresh"/redis-tools_*.deb Depends | grep -oE '(^|[ |])lib[a-z0-9.+-]+' | tr -d ' |')
  .setup/apt.sh "${libraries[@]}"
  good "$fresh/root/usr/bin/redis-server" || fail "Debian's redis does not start here: $("$fresh/root/usr/bin/redis-cli" --version 2>&1 | tail -1)"
fi

# Renamed as a whole, so that nobody sees half of it; a second installer at work may have won.
home=.tools/redis-$version
good "$home/usr/bin/redis-server" || { rm -rf "$home" && mv -T "$fresh/root" "$home"; } || good "$home/usr/bin/redis-server"
echo "$home/usr/bin/redis-server"
