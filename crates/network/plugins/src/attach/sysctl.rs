//! Kernel settings under `/proc/sys/net`, of the network namespace that the calling thread is in.

use std::io;
use std::net::IpAddr;

use outrigger_cni_sdk::{Error, Step as _};
use outrigger_netlink::route::Ipv4Conf;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{read, write};

/// Writes a setting. `key` is relative to `/proc/sys/net` and uses slashes, since interface names may hold dots.
pub(crate) fn set(key: &str, value: &str) -> io::Result<()> {
    let file = open(format!("/proc/sys/net/{key}"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    write(&file, value.as_bytes())?;
    Ok(())
}

/// Reads a setting, without the newline. None if the kernel does not have it.
pub(crate) fn get(key: &str) -> io::Result<Option<String>> {
    let file = match open(format!("/proc/sys/net/{key}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        file => file?,
    };
    let mut buffer = [0; 256];
    let length = read(&file, &mut buffer)?;
    Ok(Some(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()))
}

/// Writes a setting unless it has the value already, so that a read-only `/proc/sys` which is right does no harm.
pub(crate) fn ensure(key: &str, value: &str) -> io::Result<()> {
    if get(key)?.as_deref() == Some(value) { Ok(()) } else { set(key, value) }
}

/// Turns forwarding on for the families of these addresses: a host that is the gateway of its containers must forward.
pub(crate) fn enable_forwarding(addresses: impl IntoIterator<Item = IpAddr>) -> io::Result<()> {
    let (mut v4, mut v6) = (false, false);
    for address in addresses {
        if address.is_ipv4() {
            v4 = true;
        } else {
            v6 = true;
        }
    }
    if v4 {
        ensure("ipv4/ip_forward", "1")?;
    }
    if v6 {
        ensure("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// What a main plugin wants of its interface in the container besides what its addresses need.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Settings {
    /// Settings of IPv4, which netlink can make.
    pub ipv4: &'static [(Ipv4Conf, u32)],
    /// Settings of IPv6 as (name, value), which need a visit to the namespace. They may be missing or read-only without
    /// harm.
    pub ipv6: &'static [(&'static str, &'static str)],
}

impl Settings {
    /// Writes those of IPv6 for `ifname`, in the namespace of the calling thread. With `addresses` the interface gets IPv6
    /// addresses: IPv6 must be on for it and for `lo`, and the addresses must stay when it goes down.
    pub(crate) fn write(self, ifname: &str, addresses: bool) -> Result<(), Error> {
        for (name, value) in self.ipv6 {
            // A kernel without IPv6, or a container with a read-only /proc/sys, works without.
            let _ = set(&format!("ipv6/conf/{ifname}/{name}"), value);
        }
        if !addresses {
            return Ok(());
        }
        for interface in ["lo", ifname] {
            let key = format!("ipv6/conf/{interface}/disable_ipv6");
            // Without the setting there is no IPv6; adding the address will say so.
            if get(&key).is_ok_and(|value| value.is_some_and(|value| value != "0")) {
                set(&key, "0").step(format_args!("turn on IPv6 (/proc/sys/net/{key})"))?;
            }
        }
        // Some kernels lack it; then addresses go with the link state, which is no reason to fail.
        let _ = set(&format!("ipv6/conf/{ifname}/keep_addr_on_down"), "1");
        Ok(())
    }
}
