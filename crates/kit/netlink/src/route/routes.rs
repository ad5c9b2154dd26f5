use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::link::word;
use super::{Family, Handle};
use crate::wire::{Attributes, Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use crate::{Error, Result};

pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

/// Length of `struct rtmsg`.
const BODY: usize = 12;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
/// Length of `struct rtnexthop`.
const HOP: usize = 8;
const RTNH_F_ONLINK: u32 = 4;
const RTM_F_CLONED: u32 = 0x200;

/// The table that is asked if no rule says otherwise.
pub const TABLE_MAIN: u32 = 254;
/// The table of the machine's own addresses, kept by the kernel.
pub const TABLE_LOCAL: u32 = 255;

/// Who added a route (`RTPROT_…`).
pub mod protocol {
    /// Nobody in particular.
    pub const UNSPEC: u8 = 0;
    /// The kernel.
    pub const KERNEL: u8 = 2;
    /// During boot; what tools take unless told otherwise.
    pub const BOOT: u8 = 3;
    /// An administrator.
    pub const STATIC: u8 = 4;
}

/// How far something is valid (`RT_SCOPE_…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Scope(pub u8);

impl Scope {
    /// Everywhere.
    pub const UNIVERSE: Self = Self(0);
    /// Within a site (IPv6).
    pub const SITE: Self = Self(200);
    /// On the link.
    pub const LINK: Self = Self(253);
    /// On this machine.
    pub const HOST: Self = Self(254);
}

/// What a route does with a packet (`RTN_…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RouteKind {
    /// Sends it.
    #[default]
    Unicast,
    /// Takes it: the address is the machine's own.
    Local,
    /// Takes it as a broadcast.
    Broadcast,
    /// Drops it silently.
    Blackhole,
    /// Drops it and says so.
    Unreachable,
    /// Refuses it.
    Prohibit,
    /// Goes on with the next rule.
    Throw,
    /// Another one.
    Other(u8),
}

impl RouteKind {
    fn number(self) -> u8 {
        match self {
            Self::Unicast => 1,
            Self::Local => 2,
            Self::Broadcast => 3,
            Self::Blackhole => 6,
            Self::Unreachable => 7,
            Self::Prohibit => 8,
            Self::Throw => 9,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Unicast,
            2 => Self::Local,
            3 => Self::Broadcast,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            8 => Self::Prohibit,
            9 => Self::Throw,
            number => Self::Other(number),
        }
    }
}

/// A route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    /// Where to; none: everywhere. The family is then that of the gateway or of the source, IPv4 if there is neither.
    pub dst: Option<IpNet>,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// Index of the link.
    pub oif: Option<u32>,
    /// The table; 0 and [`TABLE_MAIN`] are the same for what is added.
    pub table: u32,
    /// How far the destination is.
    pub scope: Scope,
    /// Who added it ([`protocol`]); 0 becomes [`protocol::BOOT`].
    pub protocol: u8,
    /// What it does.
    pub kind: RouteKind,
    /// Source address of packets that have none yet.
    pub source: Option<IpAddr>,
    /// Metric; the lowest wins.
    pub priority: Option<u32>,
    /// Maximum transmission unit of the path.
    pub mtu: Option<u32>,
    /// Segment size to offer to TCP peers.
    pub advmss: Option<u32>,
    /// The gateway is on the link although no address says so.
    pub onlink: bool,
    /// Further next hops, which share the traffic with the one above.
    pub more_hops: Vec<NextHop>,
}

/// One of several next hops of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// The next hop; none: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the link.
    pub oif: u32,
    /// Its share of the traffic, less one.
    pub weight: u8,
    /// The gateway is on the link although no address says so.
    pub onlink: bool,
}

/// Which routes to list. All conditions must hold; none: all routes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Of this family.
    pub family: Option<Family>,
    /// Of this table.
    pub table: Option<u32>,
    /// Through this link.
    pub oif: Option<u32>,
}

impl Route {
    /// Its family, if anything tells.
    pub fn family(&self) -> Option<Family> {
        let address = self.dst.map(|dst| dst.addr()).or(self.gateway).or(self.source);
        address.map(Family::of)
    }

    /// Whether packets may go through this gateway.
    pub fn goes_through(&self, gateway: IpAddr) -> bool {
        self.gateway == Some(gateway) || self.more_hops.iter().any(|hop| hop.gateway == Some(gateway))
    }

    /// Whether it is for everything.
    pub fn is_default(&self) -> bool {
        self.dst.is_none_or(|dst| dst.prefix_len() == 0)
    }

    pub(super) fn parse(payload: &[u8]) -> Result<Option<Self>> {
        let attributes = Attributes::after(payload, BODY)?;
        let Some(family) = Family::from_number(payload[0]) else { return Ok(None) };
        let flags = word(payload, 8);
        if flags & RTM_F_CLONED != 0 {
            return Ok(None);
        }
        let mut route = Self {
            table: u32::from(payload[4]),
            protocol: payload[5],
            scope: Scope(payload[6]),
            kind: RouteKind::from_number(payload[7]),
            onlink: flags & RTNH_F_ONLINK != 0,
            ..Self::default()
        };
        let mut destination = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        for attribute in attributes {
            match attribute.kind {
                RTA_DST => destination = attribute.ip()?,
                RTA_OIF => route.oif = Some(attribute.u32()?),
                RTA_GATEWAY => route.gateway = Some(attribute.ip()?),
                RTA_PRIORITY => route.priority = Some(attribute.u32()?),
                RTA_PREFSRC => route.source = Some(attribute.ip()?),
                RTA_TABLE => route.table = attribute.u32()?,
                RTA_METRICS => {
                    for metric in attribute.attributes() {
                        match metric.kind {
                            RTAX_MTU => route.mtu = Some(metric.u32()?),
                            RTAX_ADVMSS => route.advmss = Some(metric.u32()?),
                            _ => {}
                        }
                    }
                }
                RTA_MULTIPATH => route.more_hops = next_hops(attribute.data)?,
                _ => {}
            }
        }
        let net = IpNet::new(destination, payload[1])
            .map_err(|_| Error::Malformed { what: format!("a route with a prefix of {} bits", payload[1]) })?;
        route.dst = Some(net);
        if !route.more_hops.is_empty() {
            let first = route.more_hops.remove(0);
            (route.gateway, route.oif, route.onlink) = (first.gateway, Some(first.oif), first.onlink);
        }
        Ok(Some(route))
    }
}

/// Reads a list of `struct rtnexthop`, each with attributes behind it.
fn next_hops(mut bytes: &[u8]) -> Result<Vec<NextHop>> {
    let mut hops = Vec::new();
    while let Some([low, high, flags, weight]) = bytes.first_chunk() {
        let length = usize::from(u16::from_ne_bytes([*low, *high]));
        let hop = bytes.get(..length).filter(|_| length >= HOP);
        let hop = hop.ok_or_else(|| Error::Malformed { what: "a next hop that is longer than its list".into() })?;
        let gateway = Attributes::after(hop, HOP)?.find(RTA_GATEWAY);
        hops.push(NextHop {
            gateway: gateway.map(|gateway| gateway.ip()).transpose()?,
            oif: word(hop, 4),
            weight: *weight,
            onlink: u32::from(*flags) & RTNH_F_ONLINK != 0,
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(hops)
}

impl Handle {
    /// Routes that the filter lets through. Those that the kernel keeps for single conversations are left out, and
    /// [`Route::dst`] is always set.
    pub fn routes(&self, filter: RouteFilter) -> Result<Vec<Route>> {
        let mut message = Message::new(RTM_GETROUTE, 0).about("list routes");
        let mut body = [0; BODY];
        body[0] = filter.family.map_or(0, Family::number);
        message.put(&body);
        if let Some(table) = filter.table {
            message.attr_u32(RTA_TABLE, table);
        }
        if let Some(oif) = filter.oif {
            message.attr_u32(RTA_OIF, oif);
        }
        let replies = match self.socket.dump(message) {
            // The kernel looks for the table and for the link first.
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            replies => replies?,
        };
        let routes = replies.iter().filter(|reply| reply.kind == RTM_NEWROUTE);
        let routes = routes.filter_map(|reply| Route::parse(&reply.payload).transpose());
        let wanted = |route: &Route| {
            filter.family.is_none_or(|family| route.family() == Some(family))
                && filter.table.is_none_or(|table| route.table == table)
                && filter
                    .oif
                    .is_none_or(|oif| route.oif == Some(oif) || route.more_hops.iter().any(|hop| hop.oif == oif))
        };
        routes.filter(|route| route.as_ref().map_or(true, wanted)).collect()
    }

    /// Adds a route. `EEXIST` if there is one with the same destination, table and metric.
    pub fn add_route(&self, route: &Route) -> Result<()> {
        self.request(add(route, NLM_F_EXCL))
    }

    /// Adds a route beside those with the same destination, table and metric: for IPv4 before them, for IPv6 as a further
    /// next hop of theirs. `EEXIST` if one has the same next hop too.
    pub fn add_route_beside(&self, route: &Route) -> Result<()> {
        self.request(add(route, 0))
    }

    /// Adds a route in place of one with the same destination, table and metric, if there is one.
    pub fn replace_route(&self, route: &Route) -> Result<()> {
        self.request(add(route, NLM_F_REPLACE))
    }

    /// Removes a route. One that is missing is an error ([`Error::is_not_found`]).
    pub fn delete_route(&self, route: &Route) -> Result<()> {
        self.request(delete(route))
    }
}

fn describe(route: &Route) -> String {
    let mut text = route.dst.map_or_else(|| "default".to_owned(), |dst| dst.to_string());
    for (word, value) in [
        ("via", route.gateway.map(|gateway| gateway.to_string())),
        ("through link number", route.oif.map(|oif| oif.to_string())),
        ("in table", Some(route.table).filter(|table| *table != 0).map(|table| table.to_string())),
    ] {
        if let Some(value) = value {
            text.extend([" ", word, " ", &value]);
        }
    }
    text
}

fn put(message: &mut Message, route: &Route, protocol: u8, scope: Scope) -> Result<()> {
    let family = route.family().unwrap_or(Family::V4);
    let same = |address: Option<IpAddr>| address.is_none_or(|address| Family::of(address) == family);
    let hops = route.more_hops.iter().map(|hop| hop.gateway);
    if !hops.chain([route.gateway, route.source]).all(same) {
        return Err(Error::Invalid { what: format!("route {}: not all addresses are of one family", describe(route)) });
    }
    let table = if route.table == 0 { TABLE_MAIN } else { route.table };
    let mut body = [0; BODY];
    body[0] = family.number();
    body[1] = route.dst.map_or(0, |dst| dst.prefix_len());
    body[4] = u8::try_from(table).unwrap_or_default();
    body[5] = protocol;
    body[6] = scope.0;
    body[7] = route.kind.number();
    let flags = if route.onlink { RTNH_F_ONLINK } else { 0 };
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    message.put(&body);
    message.attr_u32(RTA_TABLE, table);
    if let Some(dst) = route.dst.filter(|dst| dst.prefix_len() > 0) {
        message.attr_ip(RTA_DST, dst.network());
    }
    if route.more_hops.is_empty() {
        if let Some(gateway) = route.gateway {
            message.attr_ip(RTA_GATEWAY, gateway);
        }
        if let Some(oif) = route.oif {
            message.attr_u32(RTA_OIF, oif);
        }
    } else {
        let oif = route.oif.unwrap_or_default();
        let first = NextHop { gateway: route.gateway, oif, weight: 0, onlink: route.onlink };
        message.nest(RTA_MULTIPATH, |list| {
            for hop in [first].iter().chain(&route.more_hops) {
                put_hop(list, *hop);
            }
        });
    }
    if let Some(source) = route.source {
        message.attr_ip(RTA_PREFSRC, source);
    }
    if let Some(priority) = route.priority {
        message.attr_u32(RTA_PRIORITY, priority);
    }
    if route.mtu.is_some() || route.advmss.is_some() {
        message.nest(RTA_METRICS, |metrics| {
            if let Some(mtu) = route.mtu {
                metrics.attr_u32(RTAX_MTU, mtu);
            }
            if let Some(advmss) = route.advmss {
                metrics.attr_u32(RTAX_ADVMSS, advmss);
            }
        });
    }
    Ok(())
}

fn put_hop(list: &mut Message, hop: NextHop) {
    // The attribute of the gateway has a header of four bytes.
    let length = HOP + hop.gateway.map_or(0, |gateway| if gateway.is_ipv4() { 8 } else { 20 });
    let flags = if hop.onlink { RTNH_F_ONLINK } else { 0 };
    let [low, high] = u16::try_from(length).unwrap_or_default().to_ne_bytes();
    list.put(&[low, high, u8::try_from(flags).unwrap_or_default(), hop.weight]).put(&hop.oif.to_ne_bytes());
    if let Some(gateway) = hop.gateway {
        list.attr_ip(RTA_GATEWAY, gateway);
    }
}

/// `how` tells what becomes of a route that is there: `NLM_F_EXCL`, `NLM_F_REPLACE`, or neither.
pub(super) fn add(route: &Route, how: u16) -> Result<Message> {
    let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | how).about(format!("add route {}", describe(route)));
    let protocol = if route.protocol == protocol::UNSPEC { protocol::BOOT } else { route.protocol };
    put(&mut message, route, protocol, route.scope)?;
    Ok(message)
}

pub(super) fn delete(route: &Route) -> Result<Message> {
    let mut message = Message::new(RTM_DELROUTE, 0).about(format!("delete route {}", describe(route)));
    // IPv4 compares the scope of what is deleted; "nowhere" stands for any. IPv6 has none.
    let scope = if route.scope == Scope::UNIVERSE { Scope(255) } else { route.scope };
    put(&mut message, route, route.protocol, scope)?;
    Ok(message)
}
