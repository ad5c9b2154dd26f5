#!/usr/bin/env bash
# Builds the CNI plugins as they are shipped: one static binary, small. Prints where it is and how large.
# With a directory as argument, installs it there under every plugin's name.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(uname -m)-unknown-linux-gnu
# Static glibc is enough: nothing here looks up users or host names, which is all that would need its shared parts.
# The flags are for this target only, so build scripts and macros, which are for the host, are not affected.
flags_name=CARGO_TARGET_$(echo "$target" | tr 'a-z-' 'A-Z_')_RUSTFLAGS
export "$flags_name=-C target-feature=+crt-static -C relocation-model=static"
cargo build --quiet --locked --profile plugin -p outrigger-cni --target "$target"

binary=${CARGO_TARGET_DIR:-target}/$target/plugin/outrigger-cni
echo "$binary: $(stat -c %s "$binary") bytes"
if [ $# -gt 0 ]; then "$binary" install "$@"; fi
