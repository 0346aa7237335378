#!/usr/bin/env bash
# Runs bench, fuzz or soak where the tree has them.
set -euo pipefail
cd "$(dirname "$0")/.."
case "$1" in
bench)
    [ -f bench/Cargo.toml ] || { echo "bench: there is no bench/ in this tree" >&2; exit 1; }
    # One invocation, so that shared crates are built once. The guest boots from what xtask makes.
    cargo build --release -p backstay-cli -p backstay-bench -p xtask
    target=${CARGO_TARGET_DIR:-target}
    "$target/release/xtask" microguest
    exec "$target/release/backstay-bench" "${@:2}" ;;
fuzz)
    [ -f fuzz/Cargo.toml ] || { echo "fuzz: there is no fuzz/ in this tree" >&2; exit 1; }
    cargo +nightly fuzz --version >/dev/null 2>&1 ||
        { echo "fuzz: needs a nightly toolchain and cargo-fuzz (cargo install --locked cargo-fuzz)" >&2; exit 1; }
    # What is found stays out of the committed corpora, and with them out of `make test`.
    for target in $(cargo +nightly fuzz list); do
        mkdir -p "fuzz/found/$target"
        cargo +nightly fuzz run "$target" "fuzz/found/$target" "fuzz/corpus/$target" -- -max_total_time="${FUZZ_SECONDS:-60}" -print_final_stats=1
    done ;;
soak)
    # The end-to-end ones start the `backstay` and the guests that lie in the target folder.
    cargo build -p backstay-cli -p xtask
    "${CARGO_TARGET_DIR:-target}/debug/xtask" guest || { code=$?; [ "$code" -eq 3 ] || exit "$code"; }
    SOAK_SECONDS=${SOAK_SECONDS:-600} exec cargo nextest run --workspace --profile soak --run-ignored only -E 'test(/soak_/)' ;;
*) echo "usage: $0 bench|fuzz|soak" >&2; exit 2 ;;
esac
