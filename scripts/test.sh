#!/usr/bin/env bash
# Everything that must hold before a change lands. The closing line is nextest's own summary.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

step() { printf '\n== %s  (%d s)\n' "$*" "$SECONDS"; }
export RUST_BACKTRACE=1 CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}

step "format"
cargo fmt --all --check

# What takes seconds comes before what takes minutes; xtask has hardly any dependencies.
step "tidy"
cargo build --quiet -p xtask
target=${CARGO_TARGET_DIR:-target}
"$target/debug/xtask" tidy

# Every program and every test in one go: the tests start the real `backstay`, and one invocation sees one set of features.
step "build"
cargo build --workspace --all-targets

step "clippy"
cargo clippy --workspace --all-targets --quiet -- -D warnings

step "guests and fixtures"
"$target/debug/xtask" fixtures
# Exit code 3: the Linux guest's packages cannot be had here. Its tests say that they are skipped; the rest run.
"$target/debug/xtask" guest || { code=$?; [ "$code" -eq 3 ] || exit "$code"; }

step "previous release"
"$target/debug/xtask" previous

step "documentation examples"
cargo test --workspace --doc --quiet

step "tests"
cargo nextest run --workspace --no-tests=fail "$@"
step "all passed"
