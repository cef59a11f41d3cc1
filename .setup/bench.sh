#!/usr/bin/env bash
# .setup/bench.sh NAME: prints where one of the programs of `make bench` is: wrk, h2load, haproxy or stunnel. The one
# already unpacked under .tools/, else the machine's own, else Debian's, which is unpacked there.
# WRK=/path/to/wrk, and likewise H2LOAD, HAPROXY and STUNNEL, stands in for it.
set -euo pipefail
cd "$(dirname "$0")/.."
. .setup/debian.sh

asked() { # PROGRAM WORDS ARGUMENT: is it what its name says
  [ -x "$1" ] && [[ "$("$1" "$3" 2>&1)" == *"$2"* ]]
}

case $1 in
  wrk)
    good() { asked "$1" "Will Glozer" -v; }
    # Debian lets one of two packages have the library, and both cannot be installed.
    [ -n "${WRK:-}" ] || good .tools/wrk-*/usr/bin/wrk || command -v wrk >/dev/null || .setup/apt.sh libluajit-5.1-2
    debian wrk WRK "no wrk" usr/bin/wrk "$(command -v wrk || true)" -- wrk
    ;;
  h2load)
    good() { asked "$1" "--rps" --help; }
    debian nghttp2 H2LOAD "no h2load with --rps" usr/bin/h2load "$(command -v h2load || true)" -- nghttp2-client
    ;;
  haproxy)
    good() { asked "$1" "OpenSSL" -vv; }
    debian haproxy HAPROXY "no haproxy with TLS" usr/sbin/haproxy "$(command -v haproxy || true)" /usr/sbin/haproxy -- haproxy
    ;;
  stunnel)
    good() { asked "$1" "stunnel " -version; }
    debian stunnel STUNNEL "no stunnel" usr/bin/stunnel4 "$(command -v stunnel4 || command -v stunnel || true)" -- stunnel4
    ;;
  *)
    echo "error: $1 is no program of make bench" >&2
    exit 1
    ;;
esac
