//! Connection tracking over netlink: forgetting connections that an address translation has made stale.

use crate::wire::{Attribute, Attributes, Message};
use crate::{Error, NetNs, Protocol, Reply, Result, Socket};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;

const TUPLE_ORIG: u16 = 1;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;

const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_DST_PORT: u16 = 3;

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

    /// Forgets all connections of a family and protocol whose first packet went to one of these ports; says how many. A
    /// kernel without connection tracking has none.
    pub fn delete_by_destination_port(&self, v6: bool, protocol: u8, ports: &[u16]) -> Result<usize> {
        let family = if v6 { AF_INET6 } else { AF_INET };
        let mut deleted = 0;
        for port in ports {
            let replies = match self.socket.dump(list(family, protocol, *port)) {
                Err(error) if error.is_not_found() || error.is_unsupported() => return Ok(deleted),
                other => other?,
            };
            for reply in replies {
                let Some(message) = deletion(&reply, family, protocol, *port)? else { continue };
                match self.socket.request(message) {
                    Ok(()) => deleted += 1,
                    // It ended by itself.
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(deleted)
    }
}

/// The question. Kernels since 5.8 apply the filter themselves; older ones list all.
fn list(family: u8, protocol: u8, port: u16) -> Message {
    const BY_PROTOCOL: u32 = 1 << 3;
    const BY_DESTINATION_PORT: u32 = 1 << 5;
    let mut message = Message::new(SUBSYSTEM << 8 | GET, 0).about("list tracked connections");
    message.put(&[family, 0, 0, 0]);
    message.nest(TUPLE_ORIG, |tuple| {
        tuple.nest(TUPLE_PROTO, |proto| {
            proto.attr_u8(PROTO_NUM, protocol).attr_be16(PROTO_DST_PORT, port);
        });
    });
    message.nest(FILTER, |filter| {
        filter.attr_u32(1, BY_PROTOCOL | BY_DESTINATION_PORT).attr_u32(2, 0);
    });
    message
}

/// The message that forgets a listed connection, if it is one of those meant.
fn deletion(reply: &Reply, family: u8, protocol: u8, port: u16) -> Result<Option<Message>> {
    let attributes = Attributes::after(&reply.payload, BODY)?;
    let tuple = attributes
        .find(TUPLE_ORIG)
        .ok_or_else(|| Error::Malformed { what: "a tracked connection without addresses".into() })?;
    let proto = tuple.attributes().find(TUPLE_PROTO).map(|proto| proto.attributes());
    let is = |kind: u16, wanted: &[u8]| {
        proto.as_ref().and_then(|proto| proto.find(kind)).is_some_and(|found| found.data == wanted)
    };
    if !is(PROTO_NUM, &[protocol]) || !is(PROTO_DST_PORT, &port.to_be_bytes()) {
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

    #[test]
    fn only_what_is_meant_is_forgotten() {
        let mut listed = list(AF_INET, UDP, 53);
        let payload = listed.finish(1).unwrap()[16..].to_vec();
        let reply = Reply { kind: SUBSYSTEM << 8, flags: 0, sequence: 1, payload };
        assert!(deletion(&reply, AF_INET, UDP, 53).unwrap().is_some());
        assert!(deletion(&reply, AF_INET, UDP, 54).unwrap().is_none());
        assert!(deletion(&reply, AF_INET, 6, 53).unwrap().is_none());
        let empty = Reply { kind: 0, flags: 0, sequence: 1, payload: vec![2, 0, 0, 0] };
        assert!(deletion(&empty, AF_INET, UDP, 53).is_err());
    }
}
