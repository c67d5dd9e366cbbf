#!/usr/bin/env bash
# Everything that can fail, then one line of counts. Called by `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s (%(%H:%M:%S)T)\n' "$1" -1; }
log=$(mktemp)
before=$(mktemp)
after=$(mktemp)
clean_up() {
  # Whatever ends this: of the cluster nothing stays.
  ! ip link show weft-cluster >/dev/null 2>&1 || make --no-print-directory cluster-down || true
  rm -f "$log" "$before" "$after"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# What must be as before when the tests have ended.
state() {
  ip netns list | sort
  ip -o link | awk -F': ' '{print $2}' | sort
  nft list ruleset
  awk '$2 ~ /netns|weft/ {print $2}' /proc/mounts | sort
}
state >"$before"

status=0
say "lint"
scripts/lint.sh || status=1

say "build"
# All targets at once: features are then the same as for the tests, and nothing is built twice.
cargo build --workspace --all-targets
make --no-print-directory peer
WEFT_BIN_DIR=$CARGO_TARGET_DIR/debug
WEFT_PEER=$(make --no-print-directory print-peer)
export WEFT_BIN_DIR WEFT_PEER

say "tests"
cargo test --workspace --no-fail-fast 2>&1 | tee "$log" || status=1

# go_tests FOLDER [ARGUMENTS of go test]: the tests of a Go module, counted as cargo's are.
go_tests() {
  local folder=$1
  shift
  # Never a cached result: what is tested is not in the module.
  (cd "$folder" && go test -count=1 -v "$@" ./...) 2>&1 | tee -a "$log" | grep -v '^=== ' || status=1
}

say "chart"
go_tests tests/chart

say "cluster"
# The flags of its builds (Makefile), so that nothing is compiled twice; the suite wants a newer Go.
export CGO_ENABLED=0 GOTOOLCHAIN=auto GOFLAGS="-buildvcs=false -trimpath '-gcflags=all=-l -dwarf=false'"
go_tests tests/conformance -skip '^TestConformance$'
go_tests tests/cluster -p 1 -timeout 60m

say "conformance"
# Three runs in a row: none may pass by luck.
RUNS=3 make --no-print-directory conformance 2>&1 | tee -a "$log" || status=1
make --no-print-directory cluster-down || status=1

say "what stayed behind"
state >"$after"
leftovers=0
new=$(diff "$before" "$after" | grep '^>' || true)
if [ -n "$new" ]; then
  printf '%s\nthe tests left this behind\n' "$new" >&2
  leftovers=1
fi

awk -v left="$leftovers" -v status="$status" '
  /^test result:/ { for (i = 1; i <= NF; i++) { if ($i == "passed;") p += $(i-1); if ($i == "failed;") f += $(i-1) } }
  /^--- PASS:/ { p++ }
  /^--- FAIL:/ { f++ }
  /^[0-9]+ of [0-9]+ tests of a mesh passed/ { p += $1; f += $3 - $1 }
  END {
    f += left
    if (status && !f) f = 1   # lint or a build failed: no test could say so
    printf "\n%d passed, %d failed\n", p, f
    exit f ? 1 : 0
  }' "$log"
