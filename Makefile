# weft: the two commands that matter are `make demo` and `make test`; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Build results live outside the checkout, keyed by what they depend on, so that a second clone is
# warm and a bare machine is right. WEFT_CACHE moves them; CARGO_TARGET_DIR overrides it all.
WEFT_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/weft
export WEFT_CACHE
LOCK_KEY := $(shell cat Cargo.lock Cargo.toml rust-toolchain.toml | sha256sum | cut -c1-12)
export CARGO_TARGET_DIR ?= $(WEFT_CACHE)/target-$(LOCK_KEY)
export PATH := $(PATH):/usr/sbin:/sbin
BIN := $(CARGO_TARGET_DIR)/debug
RELEASE_BIN := $(CARGO_TARGET_DIR)/release
PEER := $(WEFT_CACHE)/bin/hbone-peer-$(shell cat tests/peer/go.sum tests/peer/*.go 2>/dev/null | sha256sum | cut -c1-12)

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## Install what is missing on a Debian machine, or say what is
	@scripts/setup.sh

.PHONY: build
build: setup ## Build every program (debug)
	@cargo build --workspace --bins

.PHONY: demo
demo: build ## The mesh on this machine: two nodes, mTLS, a live canary (KEEP=1 leaves it up)
	@$(BIN)/weft lab demo $(if $(KEEP),--keep)

.PHONY: test
test: setup ## Every test, ending with a line of counts
	@scripts/test.sh

.PHONY: peer
peer: $(PEER)
$(PEER):
	@mkdir -p $(@D)
	@cd tests/peer && CGO_ENABLED=0 go build -trimpath -o $@ .

.PHONY: lint
lint: ## Formatting, clippy, go vet, helm lint and cargo-deny
	@scripts/lint.sh

.PHONY: bench
bench: setup ## Weft beside a pair of Envoys: ratios, as a table and JSON (a few minutes)
	@cargo build --release --workspace --bins
	@tests/bench/run.sh $(RELEASE_BIN)

.PHONY: soak
soak: build ## Random events under checked load (TIME=1h SEED=… FAMILY=ipv4|ipv6|dual)
	@WEFT_BIN_DIR=$(BIN) $(BIN)/weft-soak --time $(or $(TIME),1h) $(if $(SEED),--seed $(SEED)) $(if $(FAMILY),--family $(FAMILY))

.PHONY: clean
clean: ## Remove what was built, in the cache too
	@rm -rf target "$(WEFT_CACHE)"

.PHONY: print-peer
print-peer:
	@echo $(PEER)

.PHONY: print-target
print-target:
	@echo $(CARGO_TARGET_DIR)
