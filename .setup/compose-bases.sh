#!/usr/bin/env bash
# Prints the base image of each image of integration/compose.yaml, as shell assignments: what the variable already
# says, else the Dockerfile's own, else, where no registry can be reached, one that is made here once: the Debian
# that this machine's apt gets, with the programs in it and the Envoy of .setup/envoy.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

programs=ca-certificates,curl,nginx,openssl,tcpdump
pull_limit=300 # seconds; a network that drops packets must not hold up the build for ever

fail() {
  echo "error: no registry can be reached, and $1" >&2
  exit 1
}

here() { docker image inspect "$1" >/dev/null 2>&1; }

# Which Debian: the archive, release and part that apt has for the release that runs here.
archive() {
  # shellcheck disable=SC1091
  local codename
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  # shellcheck disable=SC2016 # apt-get has variables of its own
  apt-get indextargets --format '$(SITE) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
    awk -v codename="$codename" '$2 == codename && $3 == "main" { print $1, $2; exit }'
}

as_root=()
make_base() {
  local envoy site codename
  if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo -n)
    "${as_root[@]}" true || fail "debootstrap needs root"
  fi
  .setup/apt.sh debootstrap debian-archive-keyring
  envoy=$(.setup/envoy.sh)
  read -r site codename < <(archive) || fail "apt knows no archive of this release"
  eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"

  echo "making $1: Debian $codename from apt's archive (a minute, once)" >&2
  mkdir -p .tools
  fresh=$(mktemp -d .tools/compose-base.XXXXXX)
  trap '${as_root[@]+"${as_root[@]}"} rm -rf --one-file-system "$fresh"' EXIT
  ${as_root[@]+"${as_root[@]}"} env http_proxy="${http_proxy:-}" https_proxy="${https_proxy:-}" \
    /usr/sbin/debootstrap --force-check-gpg --variant=minbase --include="$programs" "$codename" "$fresh/root" "$site" >"$fresh/log" 2>&1 || {
    tail -5 "$fresh/log" >&2
    fail "debootstrap failed"
  }
  ${as_root[@]+"${as_root[@]}"} install -D -m 755 "$envoy" "$fresh/root/usr/local/bin/envoy"
  ${as_root[@]+"${as_root[@]}"} tar -C "$fresh/root" --one-file-system --exclude='./var/cache/apt/*' \
    --exclude='./var/lib/apt/lists/*' --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' -c . |
    docker import - "$1" >/dev/null
}

# What it is made of is in its name, so that another Envoy makes another.
own=egress-compose-base:$(cat .setup/compose-bases.sh envoy/envoy.txt | cksum | cut -d ' ' -f 1)
reachable=yes
while read -r name base; do
  if [ -n "${!name:-}" ]; then
    base=${!name}
  elif ! here "$base"; then
    if [ $reachable = yes ]; then
      echo "pulling $base" >&2
      timeout "$pull_limit" docker pull -q "$base" </dev/null >&2 || reachable=no
    fi
    if [ $reachable = no ]; then
      if ! here "$own"; then make_base "$own" </dev/null; fi
      base=$own
    fi
  fi
  echo "$name=$base"
done < <(sed -n 's/^ARG \([A-Z]*_BASE\)=\(.*\)/\1 \2/p' integration/compose/*.Dockerfile)
