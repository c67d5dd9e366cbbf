#!/usr/bin/env bash
# Formatting, clippy without warnings, and what may be in the dependency tree.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --workspace --all-targets --quiet -- -D warnings

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
