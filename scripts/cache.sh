#!/usr/bin/env bash
# Makes the build cache right for this checkout. Cargo tells what is out of date by times of files
# alone, relative to the workspace: what another checkout has built later than this one was cloned
# would pass for built from here. Dependencies stay.
set -euo pipefail
cd "$(dirname "$0")/.."

owner=$CARGO_TARGET_DIR/checkout
here=$(pwd -P)
if [ "$(cat "$owner" 2>/dev/null)" != "$here" ]; then
  rm -rf "$CARGO_TARGET_DIR"/*/.fingerprint/weft-* "$CARGO_TARGET_DIR"/*/*/.fingerprint/weft-*
  mkdir -p "$CARGO_TARGET_DIR"
  printf '%s\n' "$here" >"$owner"
fi
