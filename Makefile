# Every target sets up what it needs; the set-up is idempotent and takes a second when all is there.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

cache := $(or $(SENSORIUM_CACHE),$(HOME)/.cache/sensorium)
target := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
binary := $(target)/release/sensorium
# what images hold
bench_profile := dist
# what the set-up found, for cargo and for the tests
with_env := set -a; . "$(cache)/env"; set +a;
# ours are built as tests/build.toml says, everybody else's as in a release
tests_cargo := cargo --config tests/build.toml

# without these a build of two cores runs out of patience before it runs out of memory
export CARGO_INCREMENTAL ?= 0

.PHONY: help
help: ## Lists the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Installs system packages, libtorch, the model pack and samples.
	@services/worker/setup/setup.sh

.PHONY: setup-tests
setup-tests:
	@services/worker/setup/setup.sh --tests

.PHONY: build
build: setup ## Builds the release binary.
	@$(with_env) cargo build --release --locked -p sensorium

.PHONY: run
run: build ## Sets up, builds and serves the default model pack.
	@$(with_env) exec "$(binary)" serve --supervised

.PHONY: cluster
cluster: setup-tests build ## Starts etcd, NATS, Redis, two gateways and three workers on this machine.
	@$(with_env) cluster/local/cluster.sh up "$(binary)"

.PHONY: cluster-roll
cluster-roll: setup ## Restarts every process of it under load, one after the other.
	@$(with_env) cargo build --release --locked -p sensorium-loadtest
	@$(with_env) cluster/local/cluster.sh roll "$(target)/release/loadtest"

.PHONY: cluster-down
cluster-down: ## Stops exactly those.
	@cluster/local/cluster.sh down

.PHONY: test
test: setup-tests ## Sets up and passes all tests.
	@# all at once: a package built alone has other features, and all it depends on would be compiled again
	@$(with_env) $(tests_cargo) build --release --locked --workspace --all-targets
	@$(with_env) SENSORIUM_BINARY="$(binary)" $(tests_cargo) test --release --locked --workspace
	@$(with_env) SENSORIUM_BINARY="$(binary)" "$$SENSORIUM_TEST_PYTHON" -m pytest -q tests/tritonclient

.PHONY: chaos
chaos: setup-tests ## Faults in random order under load; SENSORIUM_CHAOS_SECONDS and _SEED choose.
	@$(with_env) $(tests_cargo) build --release --locked --workspace --all-targets
	@$(with_env) SENSORIUM_BINARY="$(binary)" $(tests_cargo) test --release --locked --workspace --test cluster -- --ignored \
		--nocapture --test-threads 1

FUZZ_SECONDS ?= 20
fuzz_targets := audio_decode audio_length image_decode image_decoded_bytes tokenizer_encode messages

.PHONY: fuzz
fuzz: ## Throws mutated files and messages at what reads them, FUZZ_SECONDS at each.
	@services/worker/setup/setup.sh --fuzz
	@# the sanitizer is nightly's, or any toolchain's that is told to be one; what was found lies in artifacts/
	@cd tests/fuzz; export PATH="$(cache)/cargo-fuzz/bin:$$PATH"; for target in $(fuzz_targets); do \
		seeds=seeds/$$target; [[ -d $$seeds ]] || seeds=../../actors/media/tests/fixtures; mkdir -p "corpus/$$target"; \
		RUSTC_BOOTSTRAP=1 cargo fuzz run "$$target" "corpus/$$target" "$$seeds" -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=1024 -max_len=32768; \
	done

.PHONY: lint
lint: setup ## Checks formatting, clippy, rustdoc and the direction of dependencies.
	cargo fmt --all --check
	@$(with_env) $(tests_cargo) clippy --release --locked --workspace --all-targets -- -D warnings
	@$(with_env) RUSTDOCFLAGS="-D warnings" $(tests_cargo) doc --release --locked --workspace --no-deps --quiet
	@$(with_env) $(tests_cargo) test --release --locked --workspace --test boundaries

.PHONY: bench
bench: setup-tests ## Measures what images hold against baselines; BENCH='--rows WORDS' only some; see docs/PERFORMANCE.md.
	@$(with_env) cargo build --profile $(bench_profile) --locked -p sensorium
	@$(with_env) cargo build --release --locked --workspace --bins --examples
	@$(with_env) baselines=$$(loadtest/baselines/setup.sh); "$(target)/release/loadtest" bench --server "$(target)/$(bench_profile)/sensorium" \
		--forward-loop "$(target)/release/examples/forward_loop" $$baselines $(BENCH)

.PHONY: clean
clean: ## Removes what was built; the cache stays.
	cargo clean
