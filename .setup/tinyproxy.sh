#!/usr/bin/env bash
# Prints where a tinyproxy is, the proxy of a company that tests go through: the one already unpacked under
# .tools/, else the machine's own, else Debian's, which is unpacked there. No service is installed and nothing is
# started. TINYPROXY=/path/to/tinyproxy stands in for it.
set -euo pipefail
cd "$(dirname "$0")/.."

# Also the order in integration/src/tinyproxy.rs, which finds it again.
good() { [ -x "$1" ] && [[ "$("$1" -v 2>&1)" == "tinyproxy "* ]]; }
if [ -n "${TINYPROXY:-}" ]; then
  if good "$TINYPROXY"; then echo "$TINYPROXY" && exit 0; fi
  echo "error: TINYPROXY=$TINYPROXY is no tinyproxy" >&2
  exit 1
fi
for binary in .tools/tinyproxy-*/usr/bin/tinyproxy "$(command -v tinyproxy || true)" /usr/bin/tinyproxy; do
  if good "$binary"; then echo "$binary" && exit 0; fi
done

fail() {
  echo "error: $1; please install tinyproxy, or say TINYPROXY=/path/to/tinyproxy" >&2
  exit 1
}
for tool in apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || fail "no tinyproxy here, and no $tool to get Debian's"
done

mkdir -p .tools
fresh=$(mktemp -d .tools/tinyproxy.XXXXXX)
trap 'rm -rf "$fresh"' EXIT
download() { (cd "$fresh" && apt-get -q download tinyproxy-bin >&2); }
echo "downloading Debian's tinyproxy (once)" >&2
# An image without package lists knows no package; lists that are old name versions that are gone.
if ! download; then
  .setup/apt.sh --update || fail "no package lists, so Debian's tinyproxy cannot be downloaded"
  download || fail "Debian's tinyproxy cannot be downloaded"
fi

mkdir "$fresh/root"
for package in "$fresh"/*.deb; do dpkg-deb -x "$package" "$fresh/root"; done
version=$(dpkg-deb -f "$fresh"/tinyproxy-bin_*.deb Version)
good "$fresh/root/usr/bin/tinyproxy" || fail "Debian's tinyproxy does not start here"

# Renamed as a whole, so that nobody sees half of it; a second installer at work may have won.
home=.tools/tinyproxy-$version
good "$home/usr/bin/tinyproxy" || { rm -rf "$home" && mv -T "$fresh/root" "$home"; } || good "$home/usr/bin/tinyproxy"
echo "$home/usr/bin/tinyproxy"
