#!/usr/bin/env bash
# Measures what SPECIFICATION.md promises. With PEERS=<kubeconfig of another API server> and PEER_PIDS="<its processes>",
# the same load then goes to that server, in turn, on the same machine. With OUTRIGGER_CNI_PEERS=<directory> those CNI
# plugins are measured besides Debian's.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "==> building (release profile)"
cargo build --release --locked --quiet -p outrigger -p outrigger-bench
bench=target/release/outrigger-bench

echo "==> the driver"
"$bench" driver
echo "==> the lab"
"$bench" lab
echo "==> the network plugins"
scripts/build-cni.sh target/cni
peers=()
if [ -x /usr/lib/cni/bridge ]; then peers+=(--peer debian=/usr/lib/cni); fi
if [ -n "${OUTRIGGER_CNI_PEERS:-}" ]; then peers+=(--peer "peers=$OUTRIGGER_CNI_PEERS"); fi
if [ "$(id -u)" = 0 ]; then "$bench" cni --ours target/cni "${peers[@]}"; else echo "skipped: needs root"; fi
if [ -n "${PEERS:-}" ]; then
    echo "==> the peer behind $PEERS"
    # shellcheck disable=SC2046,SC2086
    "$bench" api --kubeconfig "$PEERS" $(printf -- '--pid %s ' ${PEER_PIDS:-})
fi
