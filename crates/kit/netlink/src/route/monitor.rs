use std::time::Instant;

use super::address::{RTM_DELADDR, RTM_NEWADDR};
use super::link::{RTM_DELLINK, RTM_NEWLINK};
use super::routes::{RTM_DELROUTE, RTM_NEWROUTE};
use super::{Address, Family, Link, Route};
use crate::{Error, NetNs, Protocol, Result, Socket};

const GROUP_LINK: u32 = 1;
const GROUP_V4_ADDRESS: u32 = 5;
const GROUP_V4_ROUTE: u32 = 7;
const GROUP_V6_ADDRESS: u32 = 9;
const GROUP_V6_ROUTE: u32 = 11;

/// What to hear of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Groups {
    /// Links.
    pub links: bool,
    /// Addresses.
    pub addresses: bool,
    /// Routes.
    pub routes: bool,
}

/// Something that happened in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link is new or has changed.
    Link(Link),
    /// A link is gone.
    LinkGone(Link),
    /// An address is new or has changed.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route is new or has changed.
    Route(Route),
    /// A route is gone.
    RouteGone(Route),
}

/// Events of a namespace, from the moment on at which it was opened.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Listens in the thread's network namespace.
    pub fn open(groups: Groups) -> Result<Self> {
        Self::listen(Socket::open(Protocol::Route)?, groups)
    }

    /// Listens in this network namespace.
    pub fn in_netns(groups: Groups, netns: &NetNs) -> Result<Self> {
        Self::listen(Socket::open_in(Protocol::Route, netns)?, groups)
    }

    fn listen(socket: Socket, groups: Groups) -> Result<Self> {
        for (wanted, numbers) in [
            (groups.links, &[GROUP_LINK][..]),
            (groups.addresses, &[GROUP_V4_ADDRESS, GROUP_V6_ADDRESS]),
            (groups.routes, &[GROUP_V4_ROUTE, GROUP_V6_ROUTE]),
        ] {
            for number in numbers.iter().filter(|_| wanted) {
                socket.join(*number)?;
            }
        }
        Ok(Self { socket })
    }

    /// The next event; none once `deadline` has passed. Fails with `ENOBUFS` if events were lost: look at everything anew.
    pub fn next(&self, deadline: Instant) -> Result<Option<Event>> {
        while let Some(reply) = self.socket.event(deadline)? {
            let payload = &reply.payload;
            // Bridges tell of their ports in messages of the same type.
            let other_family = payload.first().is_some_and(|family| *family != 0);
            let is_ip = payload.first().is_some_and(|family| Family::from_number(*family).is_some());
            let event = match reply.kind {
                RTM_NEWLINK | RTM_DELLINK if other_family => continue,
                RTM_NEWADDR | RTM_DELADDR if !is_ip => continue,
                RTM_NEWLINK => Event::Link(Link::parse(payload)?),
                RTM_DELLINK => Event::LinkGone(Link::parse(payload)?),
                RTM_NEWADDR => Event::Address(Address::parse(payload)?),
                RTM_DELADDR => Event::AddressGone(Address::parse(payload)?),
                RTM_NEWROUTE | RTM_DELROUTE => match Route::parse(payload)? {
                    Some(route) if reply.kind == RTM_NEWROUTE => Event::Route(route),
                    Some(route) => Event::RouteGone(route),
                    None => continue,
                },
                _ => continue,
            };
            return Ok(Some(event));
        }
        Ok(None)
    }

    /// Waits for the first event for which `wanted` gives something. [`Error::Timeout`] once `deadline` has passed.
    pub fn wait_until<T>(&self, deadline: Instant, mut wanted: impl FnMut(&Event) -> Option<T>) -> Result<T> {
        while let Some(event) = self.next(deadline)? {
            if let Some(found) = wanted(&event) {
                return Ok(found);
            }
        }
        Err(Error::Timeout { operation: "wait for an event of the network".into() })
    }
}
