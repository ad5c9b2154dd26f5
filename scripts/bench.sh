#!/usr/bin/env bash
# Measures what SPECIFICATION.md promises. With PEERS=<kubeconfig of another API server> and PEER_PIDS="<its processes>",
# the same load then goes to that server, in turn, on the same machine.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "==> building (release profile)"
cargo build --release --locked --quiet -p outrigger -p outrigger-bench
bench=target/release/outrigger-bench

echo "==> the driver"
"$bench" driver
echo "==> the lab"
"$bench" lab
if [ -n "${PEERS:-}" ]; then
    echo "==> the peer behind $PEERS"
    # shellcheck disable=SC2046,SC2086
    "$bench" api --kubeconfig "$PEERS" $(printf -- '--pid %s ' ${PEER_PIDS:-})
fi
