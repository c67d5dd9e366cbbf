#!/usr/bin/env bash
# Installs what weft's lab and tests need beyond Rust and Go, or says in one line what is missing.
# Exit codes: 0 all there, 2 this machine can't run weft (the reason is printed).
# Usage: scripts/setup.sh [test]     "test" adds what only the tests need.
set -euo pipefail

fail() { printf 'weft: %s\n' "$1" >&2; exit 2; }

[ "$(uname -s)" = Linux ] || fail "weft runs on Linux only (this is $(uname -s)); use a Linux machine or virtual machine"
[ "$(id -u)" = 0 ] || fail "root is needed to make network namespaces; run this again with sudo"
command -v cargo >/dev/null || fail "cargo is missing; install Rust 1.95 or newer with rustup"
command -v cc >/dev/null || fail "a C compiler is missing (aws-lc is built with it); apt-get install gcc libc6-dev"

# Is there a network namespace to be had, with nf_tables in it?
unshare -n true 2>/dev/null || fail "this kernel or container refuses network namespaces; run on a machine where 'unshare -n true' works"

# package:program, the program being looked up where Debian puts it.
wanted="iproute2:ip nftables:nft containernetworking-plugins:/usr/lib/cni/bridge"
if [ "${1:-}" = test ]; then
  # What the tests' cluster is made of besides Kubernetes itself, which is compiled (tests/cluster).
  command -v go >/dev/null || fail "go is missing; install Go 1.26 or newer from https://go.dev/dl"
  wanted="$wanted containerd:containerd runc:runc conntrack:conntrack iptables:iptables util-linux:nsenter procps:pkill"
fi
missing=""
for pair in $wanted; do
  program=${pair#*:}
  if [ "${program#/}" = "$program" ]; then
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || missing="$missing ${pair%%:*}"
  else
    [ -x "$program" ] || missing="$missing ${pair%%:*}"
  fi
done
if [ -n "$missing" ]; then
  command -v apt-get >/dev/null || fail "missing:$missing; install them with your package manager"
  echo "weft: installing$missing" >&2
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  # shellcheck disable=SC2086
  { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1 \
    || { tail -5 "$log" >&2; rm -f "$log"; fail "could not install$missing; run: apt-get install$missing"; }
  rm -f "$log"
fi

unshare -n "$(PATH="$PATH:/usr/sbin:/sbin" command -v nft)" add table inet weft_probe 2>/dev/null \
  || fail "this kernel has no nf_tables; weft needs it for its redirects (Linux 5.10 or newer with nf_tables)"
