#!/usr/bin/env bash
# What every change must pass before its tests run.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "==> formatting"
cargo fmt --all --check

echo "==> clippy, warnings denied"
cargo clippy --locked --workspace --all-targets --quiet -- -D warnings

echo "==> dependency rules"
cargo run --locked --quiet -p xtask -- check
cargo run --locked --quiet -p xtask -- rules

if command -v shellcheck >/dev/null 2>&1; then
    echo "==> shell scripts"
    shellcheck scripts/*.sh .ci/run
fi
