//! rtnetlink(7): links, addresses, routes, rules, traffic control, bridge ports and their VLANs, events.

mod address;
mod bridge;
mod link;
mod monitor;
mod new_link;
mod qdisc;
mod routes;
mod rules;

use std::time::Instant;

use crate::wire::{Message, NLM_F_EXCL, NLM_F_REPLACE};
use crate::{Error, NetNs, Protocol, Reply, Result, Socket};

pub use address::{Address, NewAddress, address_flags};
pub use bridge::{BridgePort, BridgeSettings, PortState, VlanRange, vlan_flags};
pub use link::{IpvlanMode, Link, LinkDetails, LinkRef, MacvlanMode, OperState, link_flags};
pub use monitor::{Event, Groups, Monitor};
pub use new_link::{Ipv4Conf, LinkChange, NewLink, NewLinkKind, check_link_name};
pub use qdisc::{Filter, INGRESS, Qdisc, ROOT, Tbf};
pub use routes::{NextHop, Route, RouteFilter, RouteKind, Scope, TABLE_LOCAL, TABLE_MAIN, protocol};
pub use rules::Rule;

/// Which IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Its number (`AF_INET`, `AF_INET6`).
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => AF_INET,
            Self::V6 => AF_INET6,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        match number {
            AF_INET => Some(Self::V4),
            AF_INET6 => Some(Self::V6),
            _ => None,
        }
    }
}

const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;

/// rtnetlink in one network namespace: that in which it was opened, for ever.
#[derive(Debug)]
pub struct Handle {
    socket: Socket,
}

impl Handle {
    /// Opens it in the thread's network namespace.
    pub fn open() -> Result<Self> {
        Socket::open(Protocol::Route).map(|socket| Self { socket })
    }

    /// Opens it in this network namespace.
    pub fn in_netns(netns: &NetNs) -> Result<Self> {
        Socket::open_in(Protocol::Route, netns).map(|socket| Self { socket })
    }

    /// The socket below, for messages that this crate does not know.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Begins a batch: several requests that are sent at once.
    pub fn batch(&self) -> Batch<'_> {
        Batch { handle: self, messages: Vec::new(), error: None }
    }

    fn request(&self, message: Result<Message>) -> Result<()> {
        self.socket.request(message?)
    }

    fn query_one(&self, message: Message) -> Result<Reply> {
        let operation = message.operation().to_owned();
        let reply = self.socket.query(message)?.into_iter().next();
        reply.ok_or_else(|| Error::Malformed { what: format!("{operation}: the kernel gave no answer") })
    }

    fn next_event(&self, deadline: Instant) -> Result<Option<Reply>> {
        self.socket.event(deadline)
    }
}

/// Requests that are sent together: one system call to send them, one to learn that all went well. The kernel handles them
/// in order and goes on after one that it refuses.
#[derive(Debug)]
#[must_use = "nothing is done before `commit`"]
pub struct Batch<'a> {
    handle: &'a Handle,
    messages: Vec<Message>,
    /// The first request that could not be written.
    error: Option<Error>,
}

impl Batch<'_> {
    /// Adds any request.
    pub fn push(&mut self, message: Result<Message>) -> &mut Self {
        match message {
            Ok(message) => self.messages.push(message),
            Err(error) if self.error.is_none() => self.error = Some(error),
            Err(_) => {}
        }
        self
    }

    /// Adds [`Handle::create_link`].
    pub fn create_link(&mut self, link: &NewLink<'_>) -> &mut Self {
        for message in new_link::create(link) {
            self.push(message);
        }
        self
    }

    /// Adds [`Handle::set_link`].
    pub fn set_link<'r>(&mut self, link: impl Into<LinkRef<'r>>, change: &LinkChange<'_>) -> &mut Self {
        self.push(new_link::set(link.into(), change))
    }

    /// Adds [`Handle::delete_link`].
    pub fn delete_link<'r>(&mut self, link: impl Into<LinkRef<'r>>) -> &mut Self {
        self.push(new_link::delete(link.into()))
    }

    /// Adds [`Handle::add_address`].
    pub fn add_address(&mut self, index: u32, address: &NewAddress) -> &mut Self {
        self.push(address::add(index, address))
    }

    /// Adds [`Handle::delete_address`].
    pub fn delete_address(&mut self, index: u32, net: ipnet::IpNet) -> &mut Self {
        self.push(Ok(address::delete(index, net)))
    }

    /// Adds [`Handle::add_route`].
    pub fn add_route(&mut self, route: &Route) -> &mut Self {
        self.push(routes::add(route, NLM_F_EXCL))
    }

    /// Adds [`Handle::add_route_beside`].
    pub fn add_route_beside(&mut self, route: &Route) -> &mut Self {
        self.push(routes::add(route, 0))
    }

    /// Adds [`Handle::replace_route`].
    pub fn replace_route(&mut self, route: &Route) -> &mut Self {
        self.push(routes::add(route, NLM_F_REPLACE))
    }

    /// Adds [`Handle::delete_route`].
    pub fn delete_route(&mut self, route: &Route) -> &mut Self {
        self.push(routes::delete(route))
    }

    /// Adds [`Handle::add_rule`].
    pub fn add_rule(&mut self, rule: &Rule) -> &mut Self {
        self.push(rules::add(rule))
    }

    /// Adds [`Handle::delete_rule`].
    pub fn delete_rule(&mut self, rule: &Rule) -> &mut Self {
        self.push(rules::delete(rule))
    }

    /// Adds [`Handle::set_bridge`].
    pub fn set_bridge(&mut self, index: u32, settings: &BridgeSettings) -> &mut Self {
        self.push(Ok(bridge::set(index, *settings)))
    }

    /// Adds [`Handle::bridge_port`].
    pub fn bridge_port(&mut self, index: u32, port: &BridgePort) -> &mut Self {
        self.push(Ok(bridge::port(index, *port)))
    }

    /// Adds [`Handle::bridge_vlan_add`].
    pub fn bridge_vlan_add(&mut self, index: u32, range: VlanRange, flags: u16) -> &mut Self {
        self.push(Ok(bridge::vlan(index, range, flags, true)))
    }

    /// Adds [`Handle::bridge_vlan_del`].
    pub fn bridge_vlan_del(&mut self, index: u32, range: VlanRange, flags: u16) -> &mut Self {
        self.push(Ok(bridge::vlan(index, range, flags, false)))
    }

    /// Adds [`Handle::add_tbf`].
    pub fn add_tbf(&mut self, index: u32, tbf: &Tbf) -> &mut Self {
        self.push(qdisc::tbf(index, tbf))
    }

    /// Adds [`Handle::add_ingress`].
    pub fn add_ingress(&mut self, index: u32) -> &mut Self {
        self.push(Ok(qdisc::ingress(index)))
    }

    /// Adds [`Handle::add_mirred`].
    pub fn add_mirred(&mut self, index: u32, target: u32) -> &mut Self {
        self.push(Ok(qdisc::mirred(index, target)))
    }

    /// How many requests there are.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Sends them all and waits. The first refusal is the error; the requests after it were tried all the same. If one
    /// could not be written, nothing is sent.
    pub fn commit(self) -> Result<()> {
        self.commit_each()?.into_iter().collect()
    }

    /// As [`Batch::commit`], with what became of each request, in order.
    pub fn commit_each(self) -> Result<Vec<Result<()>>> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.handle.socket.batch(self.messages)?.into_iter().map(|outcome| outcome.result).collect()),
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A namespace of the test's own, without a name, and rtnetlink in it. None without root.
    pub(crate) fn netns() -> Option<(NetNs, Handle)> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let netns = std::thread::spawn(|| {
            outrigger_sys::net::unshare_network().unwrap();
            NetNs::current().unwrap()
        });
        let netns = netns.join().unwrap();
        let handle = Handle::in_netns(&netns).unwrap();
        Some((netns, handle))
    }

    /// What a program prints in the namespace.
    pub(crate) fn output(netns: &NetNs, command: &[&str]) -> String {
        netns
            .run(|| {
                let output = std::process::Command::new(command[0]).args(&command[1..]).output().unwrap();
                assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
                String::from_utf8(output.stdout).unwrap()
            })
            .unwrap()
    }
}
