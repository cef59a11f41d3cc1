# shellcheck shell=bash
# Sourced by the scripts that get a server for the tests: one that is here is used, else Debian's is unpacked under
# .tools/. No service is installed and nothing is started.
#
#   debian NAME VARIABLE WHAT PLACE FOUND-ELSEWHERE... -- PACKAGE...
#
# prints where the server is. PLACE is its path in the packages, PACKAGE the first the one whose version counts.
# WHAT says what the file that VARIABLE names must be. The caller defines `good FILE`, and may define
# `arrange ROOT`, which readies what was unpacked.

debian() {
  local name=$1 variable=$2 what=$3 place=$4 binary
  shift 4
  if [ -n "${!variable:-}" ]; then
    if good "${!variable}"; then echo "${!variable}" && return; fi
    echo "error: $variable=${!variable} is $what" >&2
    exit 1
  fi
  for binary in .tools/"$name"-*/"$place"; do
    if good "$binary"; then echo "$binary" && return; fi
  done
  while [ "$1" != -- ]; do
    if good "$1"; then echo "$1" && return; fi
    shift
  done
  shift
  unpack "$name" "$variable" "$place" "$@"
}

unpack() {
  local name=$1 place=$3 packages=("${@:4}") package version libraries home tool
  local fail_hint="please install ${place##*/}, or say $2=/path/to/${place##*/}"
  fail() {
    echo "error: $1; $fail_hint" >&2
    exit 1
  }
  for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || fail "no $name here, and no $tool to get Debian's"
  done
  mkdir -p .tools
  fresh=$(mktemp -d ".tools/$name.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  # Progress is for those who look; a log has no use for it.
  local quiet=-q
  [ ! -t 2 ] || quiet=-q=0
  # Asked for together, so that they are of one version.
  download() { (cd "$fresh" && apt-get "$quiet" download "${packages[@]}" >&2); }
  echo "downloading Debian's $name (once)" >&2
  # An image without package lists knows no package; lists that are old name versions that are gone.
  if ! download; then
    .setup/apt.sh --update || fail "no package lists, so Debian's $name cannot be downloaded"
    download || fail "Debian's $name cannot be downloaded"
  fi
  mkdir "$fresh/root"
  for package in "$fresh"/*.deb; do dpkg-deb -x "$package" "$fresh/root"; done
  version=$(dpkg-deb -f "$fresh/${packages[0]}"_*.deb Version)
  if declare -F arrange >/dev/null; then arrange "$fresh/root"; fi
  if ! good "$fresh/root/$place"; then # its libraries are missing; they start nothing either
    mapfile -t libraries < <(dpkg-deb -f "$fresh/${packages[0]}"_*.deb Depends | grep -oE '(^|[ |])z?lib[a-z0-9.+-]+' | tr -d ' |')
    .setup/apt.sh "${libraries[@]}"
    good "$fresh/root/$place" || fail "Debian's $name does not start here: $("$fresh/root/$place" --version 2>&1 | tail -1)"
  fi
  # Renamed as a whole, so that nobody sees half of it; a second installer at work may have won.
  home=.tools/$name-$version
  good "$home/$place" || { rm -rf "$home" && mv -T "$fresh/root" "$home"; } || good "$home/$place"
  echo "$home/$place"
}
