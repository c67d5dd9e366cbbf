#!/usr/bin/env bash
# Runs the conformance suite on the cluster of $KUBECONFIG: the progress and the table on the terminal, all that
# the suite has to say in a log. Called by `make conformance`.
# Usage: run.sh WEFT-CLUSTER SUITE     both built; RUN (one test), RUNS (how often) and REPORTS (folder)
#   from the environment
set -euo pipefail
cluster=$1 suite=$2
cd "$(dirname "$0")/../.."

[ -r "$KUBECONFIG" ] || { echo "weft: no kubeconfig at $KUBECONFIG" >&2; exit 2; }
# Never over what someone else installed: the suite itself refuses definitions of another version.
"$cluster" crds --kubeconfig "$KUBECONFIG" --if-absent

version=v$(awk -F'"' '/^\[workspace.package\]/ {p = 1} p && /^version/ {print $2; exit}' Cargo.toml)
out=${WEFT_CACHE:-$HOME/.cache/weft}/conformance
# One test is no report.
reports=""
[ -n "${RUN:-}" ] || reports=$(realpath -m "${REPORTS:-$out}")
mkdir -p "$out" ${reports:+"$reports"}
log=$out/run.log

for run in $(seq "${RUNS:-1}"); do
  [ "${RUNS:-1}" = 1 ] || echo "run $run of $RUNS" >&2
  status=0
  "$suite" -test.v -test.run '^TestConformance$' -test.timeout 60m --version "$version" --reports "$reports" \
    ${RUN:+--run-test "$RUN"} >"$log" || status=$?
  if [ $status != 0 ]; then
    # The suite's own words on each failure; a test that fails fails its parents, which say nothing more.
    grep -E '^ *--- FAIL|^ +Error: ' "$log" | tail -20 >&2 || true
    echo "log: $log" >&2
    exit $status
  fi
done
echo "log: $log" >&2
