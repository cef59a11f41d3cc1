#!/usr/bin/env bash
# What every build on this machine needs: cargo, and a C compiler with the C library's headers
# (rustc links with it, and `ring` compiles C). With `lint`: rustfmt and clippy as well.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo --version >/dev/null 2>&1; then
  echo "error: no working cargo here; please install rustup and its stable toolchain first" >&2
  exit 1
fi

# Asked of the compiler itself: gcc without libc6-dev is there and yet compiles nothing.
compiles() { echo '#include <stdlib.h>' | cc -x c -c -o /dev/null - 2>/dev/null; }
compiles || .setup/apt.sh gcc libc6-dev
compiles || {
  echo "error: cc cannot compile a C file that includes stdlib.h" >&2
  exit 1
}

if [ "${1:-}" = lint ]; then
  for tool in rustfmt clippy; do
    # rustup's minimal profile leaves both out.
    cargo "${tool/rust/}" --version >/dev/null 2>&1 || rustup component add "$tool" >&2 || {
      echo "error: cargo ${tool/rust/} is missing; please install it: rustup component add $tool" >&2
      exit 1
    }
  done
fi
