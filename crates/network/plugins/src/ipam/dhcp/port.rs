//! The container's interface, seen by the daemon: a packet socket on it, and its addresses.
//!
//! A socket belongs for ever to the namespace in which it was opened, so a thread enters the namespace to open it and
//! ends; none stays there. The socket is open only while messages are exchanged, and the namespace is not held open
//! between: it goes when the runtime lets it go.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use ipnet::IpNet;
use outrigger_cni_sdk::{Code, Error, Route, Step as _};
use outrigger_netlink::route::{Handle, LinkChange, NewAddress, Route as NewRoute, Scope};
use outrigger_netlink::{MacAddr, NetNs};
use outrigger_sys::packet::{self as sys, FilterStep};

use super::client::Destination;
use super::packet::{CLIENT_PORT, Message, SERVER_PORT, unwrap, wrap};

const BROADCAST: [u8; 6] = [0xff; 6];

/// Lets through whole UDP packets to port 68, for sockets that see the IP header first.
const FILTER: [FilterStep; 8] = [
    // The protocol is UDP.
    FilterStep { code: 0x30, jump_true: 0, jump_false: 0, operand: 9 },
    FilterStep { code: 0x15, jump_true: 0, jump_false: 5, operand: 17 },
    // The fragment offset is 0.
    FilterStep { code: 0x28, jump_true: 0, jump_false: 0, operand: 6 },
    FilterStep { code: 0x45, jump_true: 3, jump_false: 0, operand: 0x1fff },
    // The port behind the IP header, whose length goes to the index register, is 68.
    FilterStep { code: 0xb1, jump_true: 0, jump_false: 0, operand: 0 },
    FilterStep { code: 0x48, jump_true: 0, jump_false: 0, operand: 2 },
    // The next step's false branch and the others' end here: nothing.
    FilterStep { code: 0x15, jump_true: 1, jump_false: 0, operand: CLIENT_PORT as u32 },
    FilterStep { code: 0x06, jump_true: 0, jump_false: 0, operand: 0 },
];
const ACCEPT: FilterStep = FilterStep { code: 0x06, jump_true: 0, jump_false: 0, operand: 0xffff };

/// A socket on an interface.
#[derive(Debug)]
pub struct Port {
    /// There until it is dropped.
    socket: Option<OwnedFd>,
    index: u32,
    hardware: [u8; 6],
}

/// Opens a namespace. `identity`, device and inode, says which one is expected at the path: another one is an error, for
/// paths are used again.
pub fn namespace(path: &Path, identity: Option<(u64, u64)>) -> Result<NetNs, Error> {
    let netns = NetNs::open(path).map_err(|error| Error::new(Code::InvalidNetns, format!("dhcp: {error}")))?;
    let found = netns.id().step("dhcp")?;
    if identity.is_some_and(|identity| identity != found) {
        let msg = format!("dhcp: the network namespace at {} is not that of the lease any more", path.display());
        return Err(Error::new(Code::InvalidNetns, msg));
    }
    Ok(netns)
}

impl Port {
    /// Opens a socket on an interface, which is set up if it is down.
    pub fn open(netns: &NetNs, ifname: &str) -> Result<Self, Error> {
        let handle = Handle::in_netns(netns).step("dhcp")?;
        let link = handle.link(ifname).step("dhcp: looking for the interface in the container")?;
        let Some(MacAddr(hardware)) = link.mac else {
            return Err(Error::internal(format!("dhcp: the interface {ifname} has no ethernet address")));
        };
        if !link.is_up() {
            let up = LinkChange { up: Some(true), ..LinkChange::default() };
            handle.set_link(link.index, &up).step(format_args!("dhcp: setting {ifname} up"))?;
        }
        let opened = netns.run(sys::open).step("dhcp")?;
        let socket = opened.step("dhcp: opening a packet socket")?;
        let mut filter = FILTER.to_vec();
        filter.push(ACCEPT);
        sys::attach_filter(&socket, &filter).step("dhcp: filtering a packet socket")?;
        sys::bind(&socket, link.index).step(format_args!("dhcp: listening on {ifname}"))?;
        Ok(Self { socket: Some(socket), index: link.index, hardware })
    }

    /// Hardware address of the interface.
    pub fn hardware(&self) -> [u8; 6] {
        self.hardware
    }

    /// Sends a message to a server.
    pub fn send(&self, message: &Message, to: Destination) -> io::Result<()> {
        let (from, server, station) = match to {
            Destination::Broadcast => (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, BROADCAST),
            Destination::Server { server, next_hop } => (message.client, server, next_hop),
        };
        let packet = wrap((from, CLIENT_PORT), (server, SERVER_PORT), &message.encode());
        sys::send(self, self.index, station, &packet)
    }

    /// The next message and the station that it came from; none if there is none yet.
    pub fn receive(&self) -> io::Result<Option<(Message, [u8; 6])>> {
        let mut buffer = [0; 4096];
        loop {
            match sys::receive(self, &mut buffer) {
                Ok((length, from)) => {
                    let message = unwrap(&buffer[..length], CLIENT_PORT).and_then(Message::decode);
                    if let Some(message) = message {
                        return Ok(Some((message, from)));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().expect("the socket is there until the port is dropped").as_fd()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // To close a packet socket is to wait until no processor uses it, some 25 ms: not a wait for the thread that serves
        // all containers. If there can be no other, it is closed here.
        let socket = self.socket.take();
        let _ = std::thread::Builder::new().name("close".into()).spawn(move || drop(socket));
    }
}

/// Takes an address off the interface: its lease has ended. One that is not there is success.
pub fn remove_address(netns: &NetNs, ifname: &str, net: IpNet) -> Result<(), Error> {
    let handle = Handle::in_netns(netns).step("dhcp")?;
    let link = handle.link(ifname).step("dhcp")?;
    match handle.delete_address(link.index, net) {
        Err(error) if !error.is_not_found() => Err(error).step(format_args!("dhcp: taking {net} off {ifname}")),
        _ => Ok(()),
    }
}

/// Puts an address and its routes back on the interface: there is a lease for it again.
pub fn restore_address(netns: &NetNs, ifname: &str, net: IpNet, routes: &[Route]) -> Result<(), Error> {
    let handle = Handle::in_netns(netns).step("dhcp")?;
    let link = handle.link(ifname).step("dhcp")?;
    match handle.add_address(link.index, &NewAddress::new(net)) {
        Err(error) if !error.is_exists() => return Err(error).step(format_args!("dhcp: putting {net} on {ifname}")),
        _ => {}
    }
    for route in routes {
        let gateway = route.gw.filter(|gateway| *gateway != IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let new = NewRoute {
            dst: Some(route.dst),
            gateway,
            oif: Some(link.index),
            scope: if gateway.is_some() { Scope::UNIVERSE } else { Scope::LINK },
            priority: route.priority,
            mtu: route.mtu,
            ..NewRoute::default()
        };
        match handle.add_route(&new) {
            Err(error) if !error.is_exists() => return Err(error).step(format_args!("dhcp: route to {}", route.dst)),
            _ => {}
        }
    }
    Ok(())
}
