#!/usr/bin/env bash
# Runs cargo for wasm32-unknown-unknown: `.setup/wasm-toolchain.sh build -p NAME`.
# Without arguments it prints which compiler that is and where its output goes, as shell assignments.
#
# rustup  the cargo on PATH, whose compiler has the target or gets it from rustup.
# debian  where rustup cannot download: Debian's compiler, which builds std from Debian's sources.
#         Compiler and sources must be of one version, so rustup's compiler cannot stand in.
# WASM_TOOLCHAIN=rustup|debian forces one.
set -euo pipefail
cd "$(dirname "$0")/.."

target=wasm32-unknown-unknown
unreachable=.tools/rustup-cannot-add-$target
target_dir=${CARGO_TARGET_DIR:-target}

has_target() { compgen -G "$(rustc --print target-libdir --target $target 2>/dev/null)/libstd-*.rlib" >/dev/null; }

# Bounded: a network that drops packets must not hold up the build for minutes.
add_target() {
  command -v rustup >/dev/null || return 1
  echo "adding the $target target with rustup" >&2
  RUSTUP_MAX_RETRIES=0 timeout 60 rustup target add $target </dev/null >&2 && has_target
}

choice=${WASM_TOOLCHAIN:-}
case $choice in
  rustup)
    has_target || add_target || {
      echo "error: WASM_TOOLCHAIN=rustup, but rustup cannot add $target" >&2
      exit 1
    }
    ;;
  debian) ;;
  '')
    if has_target; then
      choice=rustup
    elif [ ! -e "$unreachable" ] && add_target; then
      choice=rustup
    else
      choice=debian
      if [ ! -e "$unreachable" ]; then # remembered, so that the wait comes once
        echo "rustup cannot add $target: using Debian's compiler from now on" >&2
        mkdir -p .tools
        touch "$unreachable"
      fi
    fi
    ;;
  *)
    echo "error: WASM_TOOLCHAIN is rustup or debian, not $choice" >&2
    exit 1
    ;;
esac

if [ "$choice" = debian ]; then
  .setup/apt.sh rustc-web cargo-web rust-web-src lld
  # A folder of its own: in a shared one, the two compilers would undo each other's work.
  target_dir=$target_dir/debian
fi

if [ $# -eq 0 ]; then
  echo "WASM_TOOLCHAIN=$choice"
  echo "WASM_DIR=$target_dir/$target"
  exit 0
fi

command=$1
shift
# No module tells where it was built, and one of the same sources is the same everywhere.
registry=${CARGO_HOME:-$HOME/.cargo}/registry/src
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS="--remap-path-prefix=$registry=crates"
if [ "$choice" = rustup ]; then exec cargo "$command" --target $target "$@"; fi

# Every path is written out, since cargo and cargo-clippy on PATH may be rustup's.
export CARGO=/usr/bin/cargo RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc CARGO_TARGET_DIR=$target_dir
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld
export RUSTC_BOOTSTRAP=1 # build-std is unstable, and so is what std is written with
runner=$CARGO
if [ "$command" = clippy ]; then
  .setup/apt.sh rust-web-clippy
  runner=/usr/bin/cargo-clippy
fi
exec "$runner" "$command" -Zbuild-std=std,panic_abort --target $target "$@"
