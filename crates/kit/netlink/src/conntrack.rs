//! Connection tracking over netlink: forgetting connections that an address translation has made stale.

use crate::wire::{Attribute, Attributes, Message, NLM_F_ACK};
use crate::{Error, NetNs, Protocol, Reply, Result, Socket};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const GET_STATS: u16 = 5;

const TUPLE_ORIG: u16 = 1;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;

const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_DST_PORT: u16 = 3;

const STATS_ENTRIES: u16 = 1;

/// Transport protocol number of UDP.
pub const UDP: u8 = 17;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Length of `struct nfgenmsg`.
const BODY: usize = 4;

/// A connection to the tracker of one network namespace.
#[derive(Debug)]
pub struct Handle {
    socket: Socket,
}

impl Handle {
    /// Opens one in the thread's network namespace.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)? })
    }

    /// Opens one in this network namespace.
    pub fn in_netns(netns: &NetNs) -> Result<Self> {
        Ok(Self { socket: Socket::open_in(Protocol::Netfilter, netns)? })
    }

    /// How many connections are tracked in this namespace. Cheap, unlike a list: for that the kernel locks each of some
    /// hundred thousand places of a table that all namespaces share, which takes 10 ms or more.
    pub fn count(&self) -> Result<u32> {
        // The answer is marked as one of several, of which no end is told; the acknowledgement is the end.
        let mut message = Message::new(SUBSYSTEM << 8 | GET_STATS, NLM_F_ACK).about("count tracked connections");
        message.put(&[0; BODY]);
        let replies = self.socket.query(message)?;
        let entries = replies.first().map(|reply| Attributes::after(&reply.payload, BODY)).transpose()?;
        let entries = entries.and_then(|attributes| attributes.find(STATS_ENTRIES));
        entries.map_or(Err(Error::Malformed { what: "a count of tracked connections".into() }), |count| count.be32())
    }

    /// Forgets all connections of a family and protocol whose first packet went to one of these ports; says for how
    /// many ports, or how many connections, there were any. A kernel without connection tracking has none.
    pub fn delete_by_destination_port(&self, v6: bool, protocol: u8, ports: &[u16]) -> Result<usize> {
        // Where nothing is tracked there is nothing to look for. A kernel that cannot count must be asked.
        if ports.is_empty() || self.count().is_ok_and(|count| count == 0) {
            return Ok(0);
        }
        let family = if v6 { AF_INET6 } else { AF_INET };
        let mut deleted = 0;
        for (index, port) in ports.iter().enumerate() {
            match self.socket.request(filtered(DELETE, family, protocol, Some(*port))) {
                Ok(()) => deleted += 1,
                // There was none.
                Err(error) if error.is_not_found() => {}
                // Kernels before 6.10 cannot delete by a filter.
                Err(_) => return Ok(deleted + self.list_and_delete(family, protocol, &ports[index..])?),
            }
        }
        Ok(deleted)
    }

    fn list_and_delete(&self, family: u8, protocol: u8, ports: &[u16]) -> Result<usize> {
        // One walk for all ports.
        let only = if let [port] = ports { Some(*port) } else { None };
        let replies = match self.socket.dump(filtered(GET, family, protocol, only)) {
            Err(error) if error.is_not_found() || error.is_unsupported() => return Ok(0),
            other => other?,
        };
        let mut deleted = 0;
        for reply in replies {
            let Some(message) = deletion(&reply, family, protocol, ports)? else { continue };
            match self.socket.request(message) {
                Ok(()) => deleted += 1,
                // It ended by itself.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }
}

/// A question or an order about connections of a family and protocol to a port. For lists, kernels since 5.8 apply the
/// filter themselves; older ones list all. Deletion by a filter is refused by kernels that cannot do it: what they take
/// for a whole tuple lacks addresses.
fn filtered(kind: u16, family: u8, protocol: u8, port: Option<u16>) -> Message {
    const BY_PROTOCOL: u32 = 1 << 3;
    const BY_DESTINATION_PORT: u32 = 1 << 5;
    let mut message = Message::new(SUBSYSTEM << 8 | kind, 0).about("look for tracked connections");
    message.put(&[family, 0, 0, 0]);
    message.nest(TUPLE_ORIG, |tuple| {
        tuple.nest(TUPLE_PROTO, |proto| {
            proto.attr_u8(PROTO_NUM, protocol);
            if let Some(port) = port {
                proto.attr_be16(PROTO_DST_PORT, port);
            }
        });
    });
    message.nest(FILTER, |filter| {
        let by_port = if port.is_some() { BY_DESTINATION_PORT } else { 0 };
        filter.attr_u32(1, BY_PROTOCOL | by_port).attr_u32(2, 0);
    });
    message
}

/// The message that forgets a listed connection, if it is one of those meant.
fn deletion(reply: &Reply, family: u8, protocol: u8, ports: &[u16]) -> Result<Option<Message>> {
    let attributes = Attributes::after(&reply.payload, BODY)?;
    let tuple = attributes
        .find(TUPLE_ORIG)
        .ok_or_else(|| Error::Malformed { what: "a tracked connection without addresses".into() })?;
    let proto = tuple.attributes().find(TUPLE_PROTO).map(|proto| proto.attributes());
    let found = |kind: u16| proto.as_ref().and_then(|proto| proto.find(kind));
    let port = found(PROTO_DST_PORT).and_then(|port| port.be16().ok());
    let is_one = found(PROTO_NUM).is_some_and(|number| number.data == [protocol]);
    if !is_one || !port.is_some_and(|port| ports.contains(&port)) {
        return Ok(None);
    }
    let mut message = Message::new(SUBSYSTEM << 8 | DELETE, 0).about("forget a tracked connection");
    message.put(&[family, 0, 0, 0]);
    message.nest(TUPLE_ORIG, |copy| {
        copy.put(tuple.data);
    });
    for Attribute { kind, data } in [ID, ZONE].into_iter().filter_map(|kind| attributes.find(kind)) {
        message.attr(kind, data);
    }
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A namespace that tracks connections, with one UDP packet to each of these ports.
    fn tracking(ports: &[u16]) -> Option<Handle> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let netns = std::thread::spawn(|| {
            outrigger_sys::net::unshare_network().unwrap();
            NetNs::current().unwrap()
        });
        let netns = netns.join().unwrap();
        netns
            .run(|| {
                let rules = "ip link set lo up; nft add table ip t; nft add chain ip t c '{ type filter hook output priority 0; }'; \
                             nft add rule ip t c ct state new accept";
                let status = std::process::Command::new("sh").args(["-ec", rules]).status().unwrap();
                assert!(status.success());
                let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                for port in ports {
                    // That nobody listens is told to later calls.
                    let _ = socket.send_to(b"x", ("127.0.0.1", *port));
                    let _ = socket.take_error();
                }
            })
            .unwrap();
        Some(Handle::in_netns(&netns).unwrap())
    }

    #[test]
    fn connections_to_ports_are_forgotten() {
        let Some(handle) = tracking(&[53, 54, 55]) else { return };
        assert_eq!(handle.count().unwrap(), 3);
        handle.delete_by_destination_port(false, UDP, &[56]).unwrap();
        handle.delete_by_destination_port(true, UDP, &[53]).unwrap();
        handle.delete_by_destination_port(false, 6, &[53]).unwrap();
        assert_eq!(handle.count().unwrap(), 3);
        handle.delete_by_destination_port(false, UDP, &[53, 54]).unwrap();
        assert_eq!(handle.count().unwrap(), 1);
        // As kernels that cannot delete by a filter need it.
        assert_eq!(handle.list_and_delete(AF_INET, UDP, &[53, 55]).unwrap(), 1);
        assert_eq!(handle.count().unwrap(), 0);
        assert_eq!(handle.delete_by_destination_port(false, UDP, &[53]).unwrap(), 0);
    }

    #[test]
    fn only_what_is_meant_is_forgotten() {
        let mut listed = filtered(GET, AF_INET, UDP, Some(53));
        let payload = listed.finish(1).unwrap()[16..].to_vec();
        let reply = Reply { kind: SUBSYSTEM << 8, flags: 0, sequence: 1, payload };
        assert!(deletion(&reply, AF_INET, UDP, &[52, 53]).unwrap().is_some());
        assert!(deletion(&reply, AF_INET, UDP, &[54]).unwrap().is_none());
        assert!(deletion(&reply, AF_INET, 6, &[53]).unwrap().is_none());
        let empty = Reply { kind: 0, flags: 0, sequence: 1, payload: vec![2, 0, 0, 0] };
        assert!(deletion(&empty, AF_INET, UDP, &[53]).is_err());
    }
}
