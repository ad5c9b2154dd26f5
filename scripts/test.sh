#!/usr/bin/env bash
# Runs every test, then looks for anything that a test left behind on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."

tmp=$(mktemp -d "${TMPDIR:-/tmp}/outrigger-test.XXXXXX")
trap 'rm -rf "$tmp" "$tmp".*' EXIT

# One line for each mount, each loop device with its file, each process of ours, each link, route and rule of the network.
inventory() {
    awk '{print "mount " $5}' /proc/self/mountinfo | sort
    for loop in /sys/block/loop*/loop/backing_file; do
        if [ -e "$loop" ]; then echo "loop $(dirname "$(dirname "$loop")" | xargs basename) $(cat "$loop")"; fi
    done | sort
    for exe in /proc/[0-9]*/exe; do
        target=$(readlink "$exe" 2>/dev/null) || continue
        case $target in "$PWD"/target/*) echo "process ${exe//[!0-9]/} $target" ;; esac
    done | sort
    for link in /sys/class/net/*; do echo "link ${link##*/}"; done
    sed 's/^/route /' /proc/net/route
    if [ "$(id -u)" = 0 ] && command -v nft >/dev/null 2>&1; then nft list tables | sed 's/^/nft /'; fi
    find /run/netns /run/cni /run/flannel /var/lib/cni -type f 2>/dev/null | sed 's/^/file /' | sort || true
    find "$tmp" -mindepth 1 | sed 's/^/file /' | sort
}

inventory > "$tmp.before"

echo "==> building the tests, the command and the CNI plugins"
cargo build --locked --quiet -p outrigger -p outrigger-cni
scripts/build-cni.sh
status=0
echo "==> running the tests"
skips=$tmp.skips
: > "$skips"
TMPDIR=$tmp OUTRIGGER_SKIPS=$skips cargo nextest run --locked --workspace || status=$?
echo "==> $(grep -c . "$skips" || true) tests or parts of tests were skipped"
cat "$skips"
rm -f "$skips"
[ "$(id -u)" = 0 ] || echo "    and those that mount volumes, since this is not root"
echo "==> running the documentation's examples"
TMPDIR=$tmp cargo test --locked --workspace --doc --quiet > "$tmp.doc" 2>&1 || { status=$?; cat "$tmp.doc"; }
rm -f "$tmp.doc"

inventory > "$tmp.after"
if ! diff -u "$tmp.before" "$tmp.after" > "$tmp.diff"; then
    echo "the tests left something behind:" >&2
    cat "$tmp.diff" >&2
    rm -f "$tmp.diff"
    exit 1
fi
rm -f "$tmp.diff"
[ "$status" = 0 ] && echo "==> all passed, nothing left behind"
exit "$status"
