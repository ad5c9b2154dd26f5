#!/usr/bin/env bash
# Runs a command in a small virtual machine with Debian's cloud kernel, for what the kernel of this machine lacks.
#   guest.sh [-t SECONDS] [-f FILE[=PATH]]... COMMAND
# COMMAND is a line for sh, run as root; its output is printed and its exit status is this script's. FILE is put into the
# machine at its own path, or at PATH, with the shared libraries that it needs. 124 means that the time was up (default
# 180 s), 125 that the machine could not be run. It has no disk and no network, so nothing of it is left; its processor is
# emulated, so that it works wherever the tests do. Needs qemu-system-x86, busybox-static and cpio.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$PWD/.cache/guest
seconds=180
files=()
while getopts t:f: option; do
    case $option in
        t) seconds=$OPTARG ;;
        f) files+=("$OPTARG") ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
command=${1:?a command to run}

for tool in qemu-system-x86_64 busybox cpio; do
    command -v "$tool" >/dev/null 2>&1 || { echo "$tool is missing: scripts/tools.sh test installs it" >&2; exit 125; }
done

# The kernel: Debian's package, unpacked aside. It is never installed.
fetch() {
    local package version tmp
    package=$(apt-cache depends --important linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*-cloud-amd64\)$/\1/p' | head -n 1)
    [ -n "$package" ] || { echo "apt-get knows no linux-image-cloud-amd64: apt-get update, then try again" >&2; return 125; }
    tmp=$(mktemp -d "$cache/fetch.XXXXXX")
    # As any user, into a directory of its own.
    (cd "$tmp" && apt-get -o APT::Sandbox::User=root download -qq "$package" >/dev/null && dpkg -x ./*.deb .) ||
        { rm -rf "$tmp"; echo "cannot download $package" >&2; return 125; }
    version=${package#linux-image-}
    local kept=$tmp/kept modules=$tmp/lib/modules/$version directory
    mkdir -p "$kept/lib/modules/$version/kernel"
    for directory in drivers/net/dummy.ko drivers/net/ifb.ko drivers/net/ipvlan drivers/net/macvlan.ko drivers/net/tap.ko \
        drivers/net/tun.ko drivers/net/veth.ko drivers/net/vrf.ko crypto lib net/802 net/8021q net/bridge net/core net/ipv4 \
        net/ipv6 net/llc net/netfilter net/sched; do
        [ -e "$modules/kernel/$directory" ] || continue
        mkdir -p "$kept/lib/modules/$version/kernel/$(dirname "$directory")"
        cp -r "$modules/kernel/$directory" "$kept/lib/modules/$version/kernel/$directory"
    done
    cp "$modules"/modules.builtin "$modules"/modules.order "$kept/lib/modules/$version/"
    (cd "$kept" && busybox depmod -b "$kept" "$version")
    cp "$tmp/boot/vmlinuz-$version" "$kept/vmlinuz"
    mv "$kept" "$cache/kernel"
    rm -rf "$tmp"
}
mkdir -p "$cache"
exec 9> "$cache/lock"
flock 9
[ -d "$cache/kernel" ] || fetch
exec 9>&-

work=$(mktemp -d "${TMPDIR:-/tmp}/outrigger-guest.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,tmp,etc,var/lib,lib,usr/bin,usr/sbin,root}
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
cp -r "$cache/kernel/lib/modules" "$root/lib/modules"

add() { # file, path in the machine
    local from to=$2 library
    from=$(readlink -f "$1")
    [ -e "$root$to" ] && return
    mkdir -p "$root$(dirname "$to")"
    # Without what only a debugger reads: every byte is copied by an emulated processor.
    { command -v strip >/dev/null && strip -o "$root$to" "$from" 2>/dev/null; } || cp "$from" "$root$to"
    chmod --reference="$from" "$root$to"
    for library in $(ldd "$from" 2>/dev/null | grep -o '/[^ ]*'); do
        [ -e "$root$library" ] || { mkdir -p "$root$(dirname "$library")" && cp -L "$library" "$root$library"; }
    done
}
for file in "${files[@]}"; do
    add "${file%%=*}" "${file#*=}"
done

printf '%s\n' "$command" > "$root/command"
cat > "$root/init" <<'INIT'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/net
mount -t tmpfs tmpfs /run
# Not over a FILE that lies there.
[ -n "$(ls -A /tmp)" ] || mount -t tmpfs tmpfs /tmp
ip link set lo up
# The console keeps the kernel's messages; the second serial line carries the command's.
stty -F /dev/ttyS1 raw -echo
sh /command < /dev/null > /dev/ttyS1 2>&1
echo "guest-exit: $?" > /dev/ttyS1
poweroff -f
INIT
chmod 755 "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) > "$work/initramfs"

timeout --foreground "$seconds" qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -monitor none \
    -machine q35 -accel tcg -cpu max -m 768 -kernel "$cache/kernel/vmlinuz" -initrd "$work/initramfs" \
    -append "console=ttyS0 quiet panic=-1 oops=panic mitigations=off tsc=reliable random.trust_cpu=on" \
    -serial "file:$work/console" -serial "file:$work/output" < /dev/null && status=0 || status=$?
sed '/^guest-exit: [0-9]*$/d' "$work/output"
exited=$(sed -n 's/^guest-exit: \([0-9]*\)$/\1/p' "$work/output" | tail -n 1)
if [ -n "$exited" ]; then exit "$exited"; fi
echo "the machine ended before the command did (qemu: $status); the end of its console:" >&2
tail -n 20 "$work/console" >&2
if [ "$status" = 124 ]; then exit 124; fi
exit 125
