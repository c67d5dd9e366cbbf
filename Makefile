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
CLUSTER_SOURCES := $(shell find tests/cluster -name '*.go' -o -name 'go.*' -o -name '*.yaml' 2>/dev/null | grep -v _test.go | sort)
CLUSTER := $(WEFT_CACHE)/cluster/bin/weft-cluster-$(shell cat $(CLUSTER_SOURCES) | sha256sum | cut -c1-12)
# As Kubernetes itself is compiled (tests/cluster/build), so that what both need is compiled once.
GO_CHEAP := CGO_ENABLED=0 GOGC=400 GOFLAGS="-buildvcs=false -trimpath '-gcflags=all=-l -dwarf=false'"
CONFORMANCE := $(WEFT_CACHE)/cluster/bin/conformance-$(shell cat tests/conformance/go.sum tests/conformance/*.go 2>/dev/null | sha256sum | cut -c1-12)

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## Install what is missing on a Debian machine, or say what is
	@scripts/setup.sh
	@scripts/cache.sh

.PHONY: setup-test
setup-test:
	@scripts/setup.sh test

.PHONY: build
build: setup ## Build every program (debug)
	@cargo build --workspace --bins

.PHONY: demo
demo: build ## The mesh on this machine: two nodes, mTLS, a live canary (KEEP=1 leaves it up)
	@$(BIN)/weft lab demo $(if $(KEEP),--keep)

.PHONY: test
test: setup setup-test ## Every test, ending with a line of counts
	@scripts/test.sh

.PHONY: cluster
cluster: setup-test $(CLUSTER) ## A real Kubernetes on this machine, with weft (NODES=2 WEFT=0 PROXY_MODE=iptables RELEASE=1)
	@$(CLUSTER) up --nodes $(or $(NODES),2) --proxy-mode $(or $(PROXY_MODE),nftables) \
	  --weft=$(if $(filter 0,$(WEFT)),false,true) $(if $(RELEASE),--release)

.PHONY: cluster-down
cluster-down: $(CLUSTER) ## End that cluster; nothing of it stays but the cache
	@$(CLUSTER) down

.PHONY: cluster-status
cluster-status: $(CLUSTER) ## What runs on it, and where the logs are
	@$(CLUSTER) status

.PHONY: cluster-test
cluster-test: setup-test build $(CLUSTER) ## The tests on that cluster alone (RUN=TestName KEEP=1)
	@cd tests/cluster && WEFT_BIN_DIR=$(BIN) WEFT_E2E_KEEP=$(KEEP) $(GO_CHEAP) go test -count=1 -v -timeout 60m $(if $(RUN),-run "$(RUN)") ./e2e

.PHONY: images
images: $(CLUSTER) ## Weft's images as OCI archives, for clusters of your own (OUT=folder RELEASE=1)
	@$(CLUSTER) images $(if $(OUT),--out "$(abspath $(OUT))") $(if $(RELEASE),--release)

$(CLUSTER):
	@mkdir -p $(@D)
	@cd tests/cluster && $(GO_CHEAP) go build -o $@ ./cmd/weft-cluster

# A KUBECONFIG in the environment is not taken: whose cluster it is to be must be said.
.PHONY: conformance
ifeq ($(origin KUBECONFIG),command line)
conformance: $(CLUSTER) $(CONFORMANCE) ## The Gateway API's mesh suite (KUBECONFIG=file of your own cluster, RUN=TestName RUNS=3 REPORTS=folder)
	@KUBECONFIG=$(abspath $(KUBECONFIG)) tests/conformance/run.sh $(CLUSTER) $(CONFORMANCE)
else
conformance: cluster $(CONFORMANCE)
	@KUBECONFIG=$$($(CLUSTER) kubeconfig) tests/conformance/run.sh $(CLUSTER) $(CONFORMANCE)
endif
export RUN RUNS REPORTS

$(CONFORMANCE):
	@mkdir -p $(@D)
	@echo "weft: building the conformance suite (once)" >&2
	@cd tests/conformance && GOTOOLCHAIN=go1.27.0 $(GO_CHEAP) go test -c -o $@ .

.PHONY: print-cluster
print-cluster: $(CLUSTER)
	@echo $(CLUSTER)

.PHONY: peer
peer: $(PEER)
$(PEER):
	@mkdir -p $(@D)
	@cd tests/peer && CGO_ENABLED=0 go build -trimpath -o $@ .

.PHONY: lint
lint: ## Formatting, clippy, go vet, helm lint and cargo-deny
	@scripts/lint.sh

.PHONY: chart
chart: ## Render the chart into what `weft install` embeds
	@cd tests/chart && go run ./cmd/manifests

.PHONY: bench
bench: setup ## Weft beside a pair of Envoys: ratios, as a table and JSON (a few minutes)
	@cargo build --release --workspace --bins
	@tests/bench/run.sh $(RELEASE_BIN)

.PHONY: bench-flood
bench-flood: setup ## What a flood from one pod does to the p99 of others on its node (ROUNDS=15 APART=1)
	@cargo build --release --workspace --bins
	@WEFT_BIN_DIR=$(RELEASE_BIN) WEFT_FLOOD_ROUNDS=$(or $(ROUNDS),15) $(if $(APART),WEFT_FLOOD_APART=1) cargo test -p weft-lab-tests --test flood -- --nocapture

.PHONY: soak
soak: build ## Random events under checked load (TIME=1h SEED=… FAMILY=ipv4|ipv6|dual)
	@WEFT_BIN_DIR=$(BIN) $(BIN)/weft-soak --time $(or $(TIME),1h) $(if $(SEED),--seed $(SEED)) $(if $(FAMILY),--family $(FAMILY))

.PHONY: clean
clean: ## Remove what was built, in the cache too
	@for i in "$(WEFT_CACHE)"/run/cluster*/; do [ ! -d "$$i" ] || WEFT_CLUSTER=$$(basename "$$i" | tr -d a-z) $(MAKE) --no-print-directory cluster-down; done
	@rm -rf target "$(WEFT_CACHE)"

.PHONY: print-peer
print-peer:
	@echo $(PEER)

.PHONY: print-target
print-target:
	@echo $(CARGO_TARGET_DIR)
