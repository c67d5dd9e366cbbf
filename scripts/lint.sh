#!/usr/bin/env bash
# Formatting, clippy and vet without warnings, the chart, and what may be in the dependency tree.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --workspace --all-targets --quiet -- -D warnings

unformatted=$(gofmt -l $(git ls-files '*.go'))
if [ -n "$unformatted" ]; then
  printf 'weft: not as gofmt writes it:\n%s\n' "$unformatted" >&2
  exit 1
fi
for module in $(git ls-files '*go.mod'); do
  folder=$(dirname "$module")
  # To vet what imports all of Kubernetes is to compile that: its own build says what is wrong there. And some
  # modules only name tools.
  if ! grep -q 'k8s.io/kubernetes ' "$module" && [ -n "$(git ls-files "$folder/*.go")" ]; then
    # auto: the conformance suite wants a newer Go. The flags are those that it is all built with.
    (cd "$folder" && GOTOOLCHAIN=auto CGO_ENABLED=0 GOFLAGS="-trimpath '-gcflags=all=-l -dwarf=false'" go vet ./...)
  fi
done
(cd tests/chart && go test -count=1 -run Lint . >/dev/null) || {
  echo "weft: helm lint finds fault with charts/weft: cd tests/chart && go test -run Lint ." >&2
  exit 1
}

# cargo-deny is kept in the cache: it takes minutes to build, and seconds to run. Advisories need
# a database from the network and are checked at release time (CONTRIBUTING.md).
tools=${WEFT_CACHE:-$HOME/.cache/weft}/tools
deny=$(command -v cargo-deny || echo "$tools/bin/cargo-deny")
if [ ! -x "$deny" ]; then
  echo "weft: building cargo-deny (once)" >&2
  CARGO_TARGET_DIR="$tools/target" cargo install --quiet --locked --root "$tools" cargo-deny@0.20.2
  rm -rf "$tools/target"
fi
"$deny" --log-level error check bans licenses sources
