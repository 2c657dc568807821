# make run: build and serve.  make test, make test-page, make faults-quick, make test-containers, make audit: everything that must pass.  make faults: everything that goes wrong, 200 times.  make fuzz: a minute for each target.  make bench: the comparison.
.PHONY: run build test test-page test-containers faults faults-quick faults-selftest check deps audit fuzz bench bench-deps bench-quick clean

run:
	cargo run --release --locked --

build:
	cargo build --release --locked

test: deps check
	cargo test --locked

# The live page in Chromium. Built as `make test` builds, so that nothing is built twice.
test-page:
	@tests/install-deps page
	cargo test --locked --test integration --no-run
	cd tests/page && npm ci --silent --no-audit --no-fund && node --test --test-concurrency=1

# docker-compose.yml on a Docker engine, through its load balancer. As root it starts an engine, and makes the base images, where there are none.
test-containers:
	@tests/install-deps containers
	tests/containers/run.py

# Replicas, Redis, networks and disks that fail by a seed's schedule, and a checker that reads the file: about half an hour, as root.
# The table goes into README.md. One run again: make faults SCENE=mixed SEED=7 RUNS=1
RUNS ?= 16
SEED ?= 1
faults: deps
	@tests/install-deps faults
	cargo test --locked --test faults -- --runs $(RUNS) --seed $(SEED) $(if $(SCENE),--scene $(SCENE) --steps,--write)

# Every fault once: about 3 minutes.
faults-quick: deps
	@tests/install-deps faults
	cargo test --locked --test faults

# Takes guards out of the service and sees the faults find it out.
faults-selftest: deps
	@tests/install-deps faults
	tests/faults/selftest

# Format, lints and docs, with every warning an error.
check:
	tests/guards --check
	cargo fmt --check
	cargo clippy --locked --all-targets --test faults -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

# What the tests run beside the service: a real Redis, time-zone tables, CSV readers that none of us wrote, and schemathesis.
deps:
	@tests/install-deps

# Licences, sources and versions of what we depend on, known advisories where their database is in reach; and nothing unused.
audit:
	@tests/audit

# Each target for FUZZ_SECONDS, from the inputs in fuzz/corpus, which make test replays. What is found stands in fuzz/artifacts.
FUZZ_SECONDS ?= 60
fuzz:
	@tests/fuzz $(FUZZ_SECONDS)

# Against a handler that does nothing, and against what one would use instead; the tables go into benches/RESULTS.md. About half an hour.
bench: bench-deps
	benches/compare.py --write
	benches/alone.py --write

# The same in less than three minutes, once all is built: fewer connections and rounds, nothing written.
bench-quick: bench-deps
	benches/compare.py --runs 1 --seconds 3 --connections 64
	benches/alone.py --seconds 1 --gib 1

bench-deps:
	@benches/install-deps

clean:
	cargo clean
