# The two commands: `make run` gives a host with a running guest, `make test` proves the repository.
# Everything that is more than a line lives in xtask (Rust) or, before Rust is known to exist, in scripts/deps.sh.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

# Without a terminal nobody answers a question, so apt and cargo must not ask one.
export DEBIAN_FRONTEND := noninteractive

# Creating the guests' user, opening /dev/userfaultfd to it and dropping to it need root; building does not.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
TARGET := $(or $(CARGO_TARGET_DIR),target)
XTASK := $(TARGET)/debug/xtask

.PHONY: help deps build guest run stop test lint fmt bench fuzz soak deb

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install what a fresh Debian 12 lacks (asks nothing, does nothing when all is there)
	@scripts/deps.sh

build: deps
	@cargo build --workspace --bins

guest: build ## build the test guests into target/guest
	@$(XTASK) guest

run: build ## start a host on this machine with a guest booted from a VHD
	@$(XTASK) guest
	@$(SUDO) $(XTASK) run

stop: ## turn the demo guest off and end the daemon that `make run` started
	@if [ ! -d .backstay ]; then echo "make run has not been used here: nothing to stop"; \
	  else [ -x $(XTASK) ] || cargo build --workspace --bins; $(SUDO) $(XTASK) stop; fi

test: deps ## format, lints, every test (the guests included)
	@scripts/test.sh

lint: ## format, tidy, clippy, and cargo-deny where it is installed
	@cargo fmt --all --check
	@cargo run --quiet -p xtask -- tidy
	@cargo clippy --workspace --all-targets --quiet -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --log-level error check; \
	  else echo "lint: cargo-deny is not installed, licences and advisories are not checked (cargo install --locked cargo-deny)"; fi

fmt: ## format everything
	@cargo fmt --all

bench: deps ## measure against QEMU and its tools, write docs/benchmarks.md (BENCH_ARGS=--quick: a few minutes)
	@scripts/optional.sh bench $(BENCH_ARGS)

fuzz: deps ## run the fuzz targets (FUZZ_SECONDS each, needs a nightly toolchain)
	@scripts/optional.sh fuzz

soak: deps ## run what takes long: crashes with fresh seeds, random trees, 1 GiB merged while workers die (SOAK_SECONDS each)
	@scripts/optional.sh soak

deb: deps ## build the Debian package into target/debian
	@cargo build --release -p backstay-cli -p xtask
	@$(TARGET)/release/xtask package
