#!/usr/bin/env bash
# Installs those of the named Debian packages that are missing; silent when none is.
# `.setup/apt.sh --update` installs nothing: it fetches the package lists.
set -euo pipefail

missing=()
for package in "$@"; do
  [ "$package" != --update ] || continue
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
[ "${#missing[@]}" -gt 0 ] || [ "${1:-}" = --update ] || exit 0

by_hand() {
  local what=update
  [ "${#missing[@]}" -eq 0 ] || what="install ${missing[*]}"
  echo "error: $1; please do by hand: apt-get $what" >&2
  exit 1
}

command -v apt-get >/dev/null || by_hand "no apt-get on this machine"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || by_hand "neither root nor sudo"
  # Nobody can answer a password prompt where there is no terminal.
  if [ -t 0 ]; then as_root=(sudo); else as_root=(sudo -n); fi
  "${as_root[@]}" true || by_hand "sudo was refused"
fi

# --no-remove: a compiler that somebody chose is never swapped for ours.
# The lock's patience is for an unattended upgrade that runs on a fresh machine.
apt() {
  ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
    apt-get -q -y --no-remove --no-install-recommends \
    -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null >&2
}

if [ "${#missing[@]}" -eq 0 ]; then
  apt update || by_hand "apt-get failed"
  exit 0
fi

echo "installing Debian packages: ${missing[*]}" >&2
# An image without package lists knows no package; lists that are old name versions that are gone.
if apt-cache show "${missing[@]}" >/dev/null 2>&1 && apt install "${missing[@]}"; then exit 0; fi
if ! { apt update && apt install "${missing[@]}"; }; then by_hand "apt-get failed"; fi
