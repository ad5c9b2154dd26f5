//! Connections from 127.0.0.1 to a mapped port leave the host's loopback: the kernel must be told to let them through.

use std::io::{Read as _, Write as _};
use std::net::IpAddr;

use outrigger_cni_sdk::{Error, Step as _};
use outrigger_netlink::wire::{Attributes, Message};
use outrigger_netlink::{Protocol, Socket};

/// Sets `route_localnet` on the interface behind which the container is. Nothing if there is no route to it.
pub(super) fn enable(container: IpAddr) -> Result<(), Error> {
    let Some(interface) = interface_to(container) else { return Ok(()) };
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/route_localnet");
    // The kernel takes a value at the beginning of the file only, so reading it needs another open file.
    let set = |path: &str| {
        let mut now = [0];
        std::fs::File::open(path)?.read_exact(&mut now)?;
        if now == *b"1" { Ok(()) } else { std::fs::OpenOptions::new().write(true).open(path)?.write_all(b"1") }
    };
    let result: std::io::Result<()> = set(&path);
    result.step(format_args!("set {path} to 1, without which 127.0.0.1 does not reach mapped ports"))
}

/// The interface that the host would use to send to an address.
fn interface_to(address: IpAddr) -> Option<String> {
    const RTM_GETROUTE: u16 = 26;
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const BODY: usize = 12;
    let IpAddr::V4(v4) = address else { return None };
    let mut message = Message::new(RTM_GETROUTE, 0).about(format!("ask for the route to {address}"));
    // struct rtmsg: family, destination length, and what does not matter.
    message.put(&[2, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).attr(RTA_DST, &v4.octets());
    let socket = Socket::open(Protocol::Route).ok()?;
    let replies = socket.query(message).ok()?;
    let index = Attributes::after(&replies.first()?.payload, BODY).ok()?.find(RTA_OIF)?.u32().ok()?;
    rustix::net::netdevice::index_to_name(&socket, index).ok()
}
