#!/usr/bin/env bash
# Links the native module. Its unwinder comes from an archive: images of Envoy have no libgcc_s.so.1.
set -euo pipefail
args=()
for arg; do
  case $arg in
    -lgcc_s) args+=(-l:libgcc_eh.a) ;;
    *) args+=("$arg") ;;
  esac
done
exec "${CC:-cc}" "${args[@]}"
