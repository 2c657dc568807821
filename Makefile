# make run: build and serve.  make test: everything that must pass.
.PHONY: run build test check deps clean

run:
	cargo run --release --locked --

build:
	cargo build --release --locked

test: deps check
	cargo test --locked

# Format, lints and docs, with every warning an error.
check:
	tests/guards --check
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

# What the tests run beside the service: a real Redis, time-zone tables, CSV readers that none of us wrote, and schemathesis.
deps:
	@tests/install-deps

clean:
	cargo clean
