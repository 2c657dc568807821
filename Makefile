.DEFAULT_GOAL := help
.PHONY: help run build test test-page test-containers test-hosts hosts hosts-bench model model-quick faults faults-quick \
	faults-selftest check links deps audit fuzz bench bench-deps bench-quick clean

help: ## Print this list
	@awk 'BEGIN { FS = ":[^#]*## " } /^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build, and serve rows.csv on 127.0.0.1:8080, without Redis
	cargo run --release --locked --

build: ## Build target/release/rowlock
	cargo build --release --locked

test: deps check ## Run `make check` and all tests, on a real redis-server; missing tools are installed
	cargo test --locked

# Builds as `make test` does, so that nothing is built twice.
test-page: ## Test the live page in Chromium
	@tests/install-deps page
	cargo test --locked --test integration --no-run
	cd tests/page && npm ci --silent --no-audit --no-fund && node --test --test-concurrency=1

# As root it starts a Docker engine, and makes the base images, if there are none.
test-containers: ## Test docker-compose.yml on a Docker engine, through its load balancer
	@tests/install-deps containers
	tests/containers/run.py

# The table goes into docs/development/model.md. To see one history: tests/model/run.py --histories 500 --without rows_anew
model: ## Check the storage protocol in a model of several hosts, and that each of its rules is needed; about an hour
	tests/model/run.py

model-quick: ## A part of it, in less than a minute
	tests/model/run.py --quick

# Guests are user-mode-linux machines; their root is made once, into target/hosts.
test-hosts: ## Test replicas on three hosts with one NFS volume; less than 4 minutes, as root
	@tests/install-deps hosts
	tests/hosts/run.py

# One scene again: make hosts SCENE=cut-nfs SEED=7. All options: tests/hosts/run.py --help
hosts: ## Run every scene of several hosts with each version of NFS and write the volume table; hours, as root
	@tests/install-deps hosts
	tests/hosts/run.py --seed $(SEED) $(if $(SCENE),--scenes $(SCENE) --verbose,--scenes all --version all --runs 3 --write)

hosts-bench: ## Measure one host and three on a network volume, against the local disk of a guest; as root
	@tests/install-deps hosts
	tests/hosts/run.py --scenes perf

# The table goes into docs/guarantees.md. To repeat one run: make faults SCENE=mixed SEED=7 RUNS=1
RUNS ?= 16
SEED ?= 1
faults: deps ## Run every fault scene 16 times and write the fault table; about half an hour, as root
	@tests/install-deps faults
	cargo test --locked --test faults -- --runs $(RUNS) --seed $(SEED) $(if $(SCENE),--scene $(SCENE) --steps,--write)

faults-quick: deps ## Run every fault once; about 3 minutes, as root
	@tests/install-deps faults
	cargo test --locked --test faults

faults-selftest: deps ## Remove safeguards from the service, one at a time, and expect the faults to find it
	@tests/install-deps faults
	tests/faults/selftest

check: links model-quick ## Check format, lints, documentation and links; every warning is an error
	tests/guards --check
	cargo fmt --check
	cargo clippy --locked --all-targets --test faults -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

links: ## Check the local links and anchors of all Markdown files
	@tests/links/check

deps: ## Install what the tests need beside the service: Redis, CSV readers, schemathesis, Node and more
	@tests/install-deps

audit: ## Check licences, sources, versions and advisories of the dependencies, and that each is used
	@tests/audit

# Starts from the inputs in fuzz/corpus, which `make test` replays. Findings go to fuzz/artifacts.
FUZZ_SECONDS ?= 60
fuzz: ## Fuzz each target for FUZZ_SECONDS (60)
	@tests/fuzz $(FUZZ_SECONDS)

bench: bench-deps ## Compare with other services and write benches/RESULTS.md; about half an hour
	benches/compare.py --write
	benches/alone.py --write

bench-quick: bench-deps ## A part of the comparison, in less than three minutes; writes nothing
	benches/compare.py --runs 1 --seconds 3 --connections 64
	benches/alone.py --seconds 1 --gib 1

bench-deps: ## Install what the comparison needs
	@benches/install-deps

clean: ## Remove what was built
	cargo clean
