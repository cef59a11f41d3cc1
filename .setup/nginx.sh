#!/usr/bin/env bash
# Prints where an nginx with TLS is, its welcome page beside it: the one already unpacked under .tools/, else
# the machine's own, else Debian's, which is unpacked there. No service is installed and nothing is started.
# NGINX=/path/to/nginx stands in for it. Sees to the openssl command too, which makes the certificates.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v openssl >/dev/null || .setup/apt.sh openssl

# Also the order in integration/src/nginx.rs, which finds it again.
good() {
  [ -x "$1" ] && [ -s "${1%/sbin/nginx}/share/nginx/html/index.html" ] &&
    [[ "$("$1" -V 2>&1)" == *--with-http_ssl_module* ]]
}
if [ -n "${NGINX:-}" ]; then
  if good "$NGINX"; then echo "$NGINX" && exit 0; fi
  echo "error: NGINX=$NGINX is no PREFIX/sbin/nginx with TLS and its welcome page in PREFIX/share/nginx/html" >&2
  exit 1
fi
for binary in .tools/nginx-*/usr/sbin/nginx "$(command -v nginx || true)" /usr/sbin/nginx; do
  if good "$binary"; then echo "$binary" && exit 0; fi
done

fail() {
  echo "error: $1; please install nginx, or say NGINX=/path/to/nginx" >&2
  exit 1
}
for tool in apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || fail "no nginx here, and no $tool to get Debian's"
done

mkdir -p .tools
fresh=$(mktemp -d .tools/nginx.XXXXXX)
trap 'rm -rf "$fresh"' EXIT
# Asked for together, so that they are of one version.
download() { (cd "$fresh" && apt-get -q download nginx nginx-common >&2); }
echo "downloading Debian's nginx (once)" >&2
# An image without package lists knows no package; lists that are old name versions that are gone.
if ! download; then
  .setup/apt.sh --update || fail "no package lists, so Debian's nginx cannot be downloaded"
  download || fail "Debian's nginx cannot be downloaded"
fi

mkdir "$fresh/root"
for package in "$fresh"/*.deb; do dpkg-deb -x "$package" "$fresh/root"; done
version=$(dpkg-deb -f "$fresh"/nginx_*.deb Version)
if ! good "$fresh/root/usr/sbin/nginx"; then # its libraries are missing; they start nothing either
  mapfile -t libraries < <(dpkg-deb -f "$fresh"/nginx_*.deb Depends | grep -oE '(^|[ |])z?lib[a-z0-9.+-]+' | tr -d ' |')
  .setup/apt.sh "${libraries[@]}"
  good "$fresh/root/usr/sbin/nginx" || fail "Debian's nginx does not start here: $("$fresh/root/usr/sbin/nginx" -V 2>&1 | tail -1)"
fi

# Renamed as a whole, so that nobody sees half of it; a second installer at work may have won.
home=.tools/nginx-$version
good "$home/usr/sbin/nginx" || { rm -rf "$home" && mv -T "$fresh/root" "$home"; } || good "$home/usr/sbin/nginx"
echo "$home/usr/sbin/nginx"
