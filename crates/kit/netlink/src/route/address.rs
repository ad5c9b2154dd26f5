use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::io::Errno;

use super::link::word;
use super::{Family, Handle, Scope};
use crate::wire::{Attributes, Message, NLM_F_CREATE, NLM_F_EXCL};
use crate::{Error, Result};

pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

/// Length of `struct ifaddrmsg`.
const BODY: usize = 8;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;

/// `RTNLGRP_IPV6_IFADDR`.
const GROUP_V6_ADDRESSES: u32 = 9;

/// Flags of an address (`IFA_F_…`).
pub mod address_flags {
    /// Added after another address of the same subnet, and removed with it.
    pub const SECONDARY: u32 = 0x01;
    /// No duplicate detection.
    pub const NODAD: u32 = 0x02;
    /// Another station has it.
    pub const DADFAILED: u32 = 0x08;
    /// Duplicate detection is under way: not to be used yet.
    pub const TENTATIVE: u32 = 0x40;
    /// Added by an administrator.
    pub const PERMANENT: u32 = 0x80;
    /// Its subnet's route was not added.
    pub const NOPREFIXROUTE: u32 = 0x200;
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Index of the link.
    pub index: u32,
    /// The address with its prefix. The prefix is the peer's, if there is a peer.
    pub net: IpNet,
    /// The address at the other end.
    pub peer: Option<IpAddr>,
    /// Broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// How far it is valid.
    pub scope: Scope,
    /// Label of an IPv4 address: name of the link, or that with a suffix.
    pub label: Option<String>,
    /// [`address_flags`].
    pub flags: u32,
}

impl Address {
    /// Whether duplicate detection is under way.
    pub fn is_tentative(&self) -> bool {
        self.flags & (address_flags::TENTATIVE | address_flags::DADFAILED) == address_flags::TENTATIVE
    }

    /// Whether duplicate detection found another station with it.
    pub fn is_duplicate(&self) -> bool {
        self.flags & address_flags::DADFAILED != 0
    }

    pub(super) fn parse(payload: &[u8]) -> Result<Self> {
        let attributes = Attributes::after(payload, BODY)?;
        let prefix = payload[1];
        let (mut local, mut address, mut broadcast, mut label) = (None, None, None, None);
        let mut flags = u32::from(payload[2]);
        for attribute in attributes {
            match attribute.kind {
                IFA_LOCAL => local = Some(attribute.ip()?),
                IFA_ADDRESS => address = Some(attribute.ip()?),
                IFA_BROADCAST => broadcast = attribute.array().ok().map(|octets: [u8; 4]| octets.into()),
                IFA_LABEL => label = Some(attribute.str()?.to_owned()),
                IFA_FLAGS => flags = attribute.u32()?,
                _ => {}
            }
        }
        let malformed =
            || Error::Malformed { what: "an address without an address, or with an impossible prefix".into() };
        // IFA_ADDRESS is the peer on a point-to-point link, and the same as IFA_LOCAL, or alone, everywhere else.
        let own = local.or(address).ok_or_else(malformed)?;
        Ok(Self {
            index: word(payload, 4),
            net: IpNet::new(own, prefix).map_err(|_| malformed())?,
            peer: address.filter(|address| *address != own),
            broadcast,
            scope: Scope(payload[3]),
            label,
            flags,
        })
    }
}

/// An address to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewAddress {
    /// The address with its prefix.
    pub net: IpNet,
    /// The address at the other end; the prefix is then about that one.
    pub peer: Option<IpAddr>,
    /// Broadcast address; none: that of the subnet, if it has one.
    pub broadcast: Option<Ipv4Addr>,
    /// How far it is valid.
    pub scope: Scope,
    /// Use it at once, without duplicate detection (IPv6).
    pub no_dad: bool,
    /// Do not add the route of the subnet.
    pub no_prefix_route: bool,
}

impl From<IpNet> for NewAddress {
    fn from(net: IpNet) -> Self {
        Self { net, peer: None, broadcast: None, scope: Scope::UNIVERSE, no_dad: false, no_prefix_route: false }
    }
}

impl NewAddress {
    /// An address of which nothing but the prefix matters.
    pub fn new(net: IpNet) -> Self {
        net.into()
    }
}

impl Handle {
    /// Addresses of this link, or of all.
    pub fn addresses(&self, index: Option<u32>) -> Result<Vec<Address>> {
        self.list_addresses(0, index)
    }

    fn list_addresses(&self, family: u8, index: Option<u32>) -> Result<Vec<Address>> {
        let mut message = Message::new(RTM_GETADDR, 0).about("list addresses");
        message.put(&body(family, 0, 0, 0, index.unwrap_or_default()));
        let replies = match self.socket.dump(message) {
            // With an index the kernel looks for the link first.
            Err(error) if error.is_not_found() && index.is_some() => return Ok(Vec::new()),
            replies => replies?,
        };
        let addresses = replies.iter().filter(|reply| reply.kind == RTM_NEWADDR && is_ip(&reply.payload));
        let addresses = addresses.map(|reply| Address::parse(&reply.payload));
        let wanted = |address: &Result<Address>| {
            address.as_ref().map_or(true, |address| index.is_none_or(|index| index == address.index))
        };
        addresses.filter(wanted).collect()
    }

    /// Adds an address. `EEXIST` if the link has it.
    pub fn add_address(&self, index: u32, address: &NewAddress) -> Result<()> {
        self.request(add(index, address))
    }

    /// Takes an address off a link. One that is missing is an error ([`Error::is_not_found`]).
    pub fn delete_address(&self, index: u32, net: IpNet) -> Result<()> {
        self.socket.request(delete(index, net))
    }

    /// Waits until no IPv6 address of the link is under duplicate detection any more, and gives its IPv6 addresses. Woken by
    /// the kernel's events, hence without delay. [`Error::Timeout`] if it takes longer than `timeout`.
    pub fn wait_addresses_settled(&self, index: u32, timeout: Duration) -> Result<Vec<Address>> {
        let deadline = Instant::now() + timeout;
        let addresses = self.list_addresses(Family::V6.number(), Some(index))?;
        if !addresses.iter().any(Address::is_tentative) {
            return Ok(addresses);
        }
        // Listed again after joining, so that no event falls between.
        self.socket.join(GROUP_V6_ADDRESSES)?;
        let settled = self.settle(index, deadline);
        self.socket.leave(GROUP_V6_ADDRESSES)?;
        settled
    }

    fn settle(&self, index: u32, deadline: Instant) -> Result<Vec<Address>> {
        loop {
            let addresses = self.list_addresses(Family::V6.number(), Some(index))?;
            let mut waiting: Vec<IpNet> =
                addresses.iter().filter(|address| address.is_tentative()).map(|address| address.net).collect();
            if waiting.is_empty() {
                return Ok(addresses);
            }
            while !waiting.is_empty() {
                let event = match self.next_event(deadline) {
                    Ok(Some(event)) => event,
                    Ok(None) => return Err(timed_out(index)),
                    // Events were lost: list again.
                    Err(error) if error.errno() == Some(Errno::NOBUFS) => break,
                    Err(error) => return Err(error),
                };
                if !matches!(event.kind, RTM_NEWADDR | RTM_DELADDR) {
                    continue;
                }
                let address = Address::parse(&event.payload)?;
                if address.index == index && (event.kind == RTM_DELADDR || !address.is_tentative()) {
                    waiting.retain(|net| *net != address.net);
                }
            }
        }
    }
}

fn timed_out(index: u32) -> Error {
    Error::Timeout { operation: format!("wait for duplicate address detection on link number {index}") }
}

fn is_ip(payload: &[u8]) -> bool {
    payload.first().is_some_and(|family| Family::from_number(*family).is_some())
}

/// `struct ifaddrmsg`.
fn body(family: u8, prefix: u8, flags: u8, scope: u8, index: u32) -> [u8; BODY] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family, prefix, flags, scope, a, b, c, d]
}

pub(super) fn add(index: u32, address: &NewAddress) -> Result<Message> {
    let operation = format!("add address {} to link number {index}", address.net);
    let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL).about(operation);
    let own = address.net.addr();
    let mut flags = 0;
    flags |= if address.no_dad { address_flags::NODAD } else { 0 };
    flags |= if address.no_prefix_route { address_flags::NOPREFIXROUTE } else { 0 };
    message.put(&body(Family::of(own).number(), address.net.prefix_len(), 0, address.scope.0, index));
    message.attr_ip(IFA_LOCAL, own).attr_ip(IFA_ADDRESS, address.peer.unwrap_or(own));
    if let IpNet::V4(net) = address.net {
        let usual = (net.prefix_len() < 31 && address.peer.is_none()).then(|| net.broadcast());
        if let Some(broadcast) = address.broadcast.or(usual) {
            message.attr(IFA_BROADCAST, &broadcast.octets());
        }
    }
    if address.peer.is_some_and(|peer| Family::of(peer) != Family::of(own)) {
        return Err(Error::Invalid { what: format!("address {own} and its peer are not of the same family") });
    }
    if flags != 0 {
        message.attr_u32(IFA_FLAGS, flags);
    }
    Ok(message)
}

pub(super) fn delete(index: u32, net: IpNet) -> Message {
    let mut message = Message::new(RTM_DELADDR, 0).about(format!("delete address {net} of link number {index}"));
    message.put(&body(Family::of(net.addr()).number(), net.prefix_len(), 0, 0, index));
    message.attr_ip(IFA_LOCAL, net.addr()).attr_ip(IFA_ADDRESS, net.addr());
    message
}
