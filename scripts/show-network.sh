#!/usr/bin/env bash
# Attaches two containers to a network with our CNI plugins and shows that they reach each other. All of it happens in
# namespaces that end with this script: the machine's own network is not touched.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" != inside ]; then
    exec unshare --net --mount --propagation private "$0" inside
fi

outrigger=target/release/outrigger
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /var/lib/cni
mount -t tmpfs tmpfs /var/lib/cni
ip link set lo up
export CNI_PATH=$PWD/target/cni NETCONFPATH=$PWD/examples/network

show() {
    echo
    echo "\$ $*"
    "$@"
}

show "$outrigger" cni add podnet a --create-netns -o table
show "$outrigger" cni add podnet b --create-netns -o table
address=$(ip -n b -4 -o address show eth0 | awk '{sub("/.*", "", $4); print $4}')
show ip netns exec a ping -c 1 -W 2 "$address"
show "$outrigger" cni check podnet a
"$outrigger" cni del podnet a --remove-netns
"$outrigger" cni del podnet b --remove-netns
