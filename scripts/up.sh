#!/usr/bin/env bash
# Starts the lab, applies the claims of examples/book and shows how they became volumes.
# Ctrl-C while this runs takes everything down again; afterwards `make down` does.
set -euo pipefail
cd "$(dirname "$0")/.."

outrigger=target/release/outrigger
dir=${OUTRIGGER_LAB_DIR:-/var/lib/outrigger/lab}

if [ "$(id -u)" != 0 ]; then
    echo "The lab's storage driver mounts volumes, so this needs root. What is built can be started with" >&2
    echo "\`sudo scripts/up.sh\`; without volumes, \`$outrigger lab up --bare\` works for anybody." >&2
    exit 1
fi

abort() {
    trap - INT TERM
    echo
    echo "==> interrupted: taking the lab down"
    "$outrigger" lab down || true
    exit 130
}
trap abort INT TERM

show() {
    echo
    echo "\$ $*"
    "$@"
}

echo "==> starting the lab in $dir"
"$outrigger" lab up
KUBECONFIG=$("$outrigger" lab kubeconfig)
export KUBECONFIG

# Follows the claim's phase by a watch: older minors of kubectl cannot `wait` for a field.
wait_bound() {
    local watcher phase=
    exec 3< <(exec timeout 30 kubectl get pvc "$1" --watch -o 'jsonpath={.status.phase}{"\n"}')
    watcher=$!
    while [ "$phase" != Bound ] && read -r phase <&3; do :; done
    exec 3<&-
    kill "$watcher" 2>/dev/null || true
    if [ "$phase" != Bound ]; then
        echo "claim $1 is ${phase:-not there} after 30 s; see: kubectl describe pvc $1, and $dir/logs" >&2
        return 1
    fi
}

echo "==> applying the book's claims"
kubectl apply -f examples/book/
wait_bound pvc-test
wait_bound example-pvc

show kubectl get pvc,pv
show kubectl get csidrivers,sc

echo
echo "The driver's log of one of the calls ($dir/logs/driver.log):"
grep -A2 -m1 'GRPC call: /csi.v1.Controller/CreateVolume' "$dir/logs/driver.log" || true

echo
echo "==> connecting two containers with the CNI plugins, in network namespaces of their own"
scripts/show-network.sh

cat <<MSG

The lab is running. Use it with stock kubectl:

    export KUBECONFIG=$KUBECONFIG
    kubectl get nodes,pvc,pv

\`$outrigger csi --help\` calls the driver by hand, \`$outrigger lab status\` shows what runs,
\`target/cni\` holds the CNI plugins, ready to be a node's /opt/cni/bin (docs/network.md).
\`make down\` stops it all, \`make reset\` also deletes the data.
MSG
