#!/usr/bin/env bash
# Runs each named make target, all of them even when one fails, and closes with the sum of the tests
# that every runner reported, as CI systems read it: `312 passed, 0 failed`.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=
for target in "$@"; do
  "${MAKE:-make}" --no-print-directory "$target" | tee -a "$log" || failed+=" $target"
done

[ -z "$failed" ] || echo "failed:$failed" >&2
# cargo test and wasm-bindgen-test-runner: `test result: ok. 3 passed; 0 failed; 1 ignored; ...`;
# integration/compose/play.py: `3 passed, 0 failed`
awk '
  /^test result: / {
    for (i = 2; i <= NF; i++) {
      if ($i ~ /^passed/) passed += $(i - 1)
      if ($i ~ /^failed/) wrong += $(i - 1)
      if ($i ~ /^ignored/) skipped += $(i - 1)
    }
  }
  /^[0-9]+ passed, [0-9]+ failed$/ {
    passed += $1
    wrong += $3
  }
  END {
    printf "%d passed, %d failed", passed, wrong
    if (skipped) printf ", %d skipped", skipped
    print ""
    exit !passed || wrong # no test at all is a failure too
  }' "$log" && [ -z "$failed" ]
