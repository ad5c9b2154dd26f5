use std::fmt;
use std::str::FromStr;

use super::Handle;
use super::bridge::BridgePort;
use super::new_link::{LinkChange, NewLink, create, delete, index_of, set};
use crate::wire::{Attribute, Attributes, Message};
use crate::{Error, MacAddr, Reply, Result};

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_SETLINK: u16 = 19;

/// Length of `struct ifinfomsg`.
pub(super) const BODY: usize = 16;

pub(super) const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_MTU: u16 = 4;
pub(super) const IFLA_LINK: u16 = 5;
pub(super) const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_TXQLEN: u16 = 13;
pub(super) const IFLA_OPERSTATE: u16 = 16;
pub(super) const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_IFALIAS: u16 = 20;
pub(super) const IFLA_AF_SPEC: u16 = 26;
pub(super) const IFLA_NET_NS_FD: u16 = 28;
pub(super) const IFLA_EXT_MASK: u16 = 29;
pub(super) const IFLA_PROMISCUITY: u16 = 30;
pub(super) const IFLA_LINK_NETNSID: u16 = 37;
pub(super) const IFLA_ALT_IFNAME: u16 = 53;
pub(super) const IFLA_PERM_ADDRESS: u16 = 54;
pub(super) const IFLA_ALLMULTI: u16 = 61;
pub(super) const IFLA_INET_CONF: u16 = 1;
pub(super) const RTEXT_FILTER_SKIP_STATS: u32 = 8;

pub(super) const IFLA_INFO_KIND: u16 = 1;
pub(super) const IFLA_INFO_DATA: u16 = 2;
pub(super) const IFLA_INFO_SLAVE_KIND: u16 = 4;
pub(super) const IFLA_INFO_SLAVE_DATA: u16 = 5;
pub(super) const VETH_INFO_PEER: u16 = 1;
pub(super) const IFLA_MACVLAN_MODE: u16 = 1;
pub(super) const IFLA_MACVLAN_BC_QUEUE_LEN: u16 = 7;
pub(super) const IFLA_IPVLAN_MODE: u16 = 1;
pub(super) const IFLA_VLAN_ID: u16 = 1;
pub(super) const IFLA_VRF_TABLE: u16 = 1;
pub(super) const IFLA_BR_VLAN_FILTERING: u16 = 7;
pub(super) const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;
pub(super) const IFLA_TUN_OWNER: u16 = 1;
pub(super) const IFLA_TUN_GROUP: u16 = 2;
pub(super) const IFLA_TUN_TYPE: u16 = 3;
pub(super) const IFLA_TUN_PERSIST: u16 = 6;
pub(super) const IFLA_TUN_MULTI_QUEUE: u16 = 7;

/// Flags of a link (`IFF_…`, netdevice(7)).
pub mod link_flags {
    /// Up by an administrator's will.
    pub const UP: u32 = 0x1;
    /// Has a broadcast address.
    pub const BROADCAST: u32 = 0x2;
    /// The loopback interface.
    pub const LOOPBACK: u32 = 0x8;
    /// Takes frames for other stations, by an administrator's will.
    pub const PROMISC: u32 = 0x100;
    /// Takes all multicast frames, by an administrator's will.
    pub const ALLMULTI: u32 = 0x200;
    /// Has a carrier.
    pub const LOWER_UP: u32 = 0x1_0000;
}

/// A link by index or by name (alternative names as well).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkRef<'a> {
    /// By its index, which holds in one namespace only.
    Index(u32),
    /// By its name.
    Name(&'a str),
}

impl fmt::Display for LinkRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "number {index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl From<u32> for LinkRef<'_> {
    fn from(index: u32) -> Self {
        Self::Index(index)
    }
}

impl<'a> From<&'a str> for LinkRef<'a> {
    fn from(name: &'a str) -> Self {
        Self::Name(name)
    }
}

impl<'a> From<&'a String> for LinkRef<'a> {
    fn from(name: &'a String) -> Self {
        Self::Name(name)
    }
}

impl From<&Link> for LinkRef<'_> {
    fn from(link: &Link) -> Self {
        Self::Index(link.index)
    }
}

/// Operational state (RFC 2863, `IF_OPER_…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OperState {
    /// The driver does not tell; most virtual links.
    #[default]
    Unknown,
    /// Cannot pass packets.
    Down,
    /// The link below is down.
    LowerLayerDown,
    /// Waits for something, such as an authentication.
    Dormant,
    /// Passes packets.
    Up,
    /// Another one of the RFC.
    Other(u8),
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// What makes it: `veth`, `bridge`, …; none for hardware.
    pub kind: Option<String>,
    /// Hardware address, if it has one of six bytes.
    pub mac: Option<MacAddr>,
    /// The hardware address that it was made with, if its driver tells.
    pub permanent_mac: Option<MacAddr>,
    /// Maximum transmission unit.
    pub mtu: u32,
    /// [`link_flags`].
    pub flags: u32,
    /// Operational state.
    pub oper_state: OperState,
    /// Index of the bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// Index of the link below (`IFLA_LINK`): master of a macvlan, peer of a veth. In [`Link::parent_netns`] if that is set.
    pub parent: Option<u32>,
    /// The kernel's id of the namespace of the parent, if it is another one.
    pub parent_netns: Option<i32>,
    /// Length of the transmit queue.
    pub tx_queue_len: u32,
    /// A note of up to 255 bytes.
    pub alias: Option<String>,
    /// How many reasons there are to take frames for other stations.
    pub promiscuity: u32,
    /// What there is to say of this kind.
    pub details: LinkDetails,
    /// Settings of the port, if its master is a bridge.
    pub port: Option<BridgePort>,
    all_multi_count: Option<u32>,
}

impl Link {
    /// Whether an administrator wants it up.
    pub fn is_up(&self) -> bool {
        self.flags & link_flags::UP != 0
    }

    /// Whether it has a carrier.
    pub fn has_carrier(&self) -> bool {
        self.flags & link_flags::LOWER_UP != 0
    }

    /// Whether it is the loopback interface.
    pub fn is_loopback(&self) -> bool {
        self.flags & link_flags::LOOPBACK != 0
    }

    /// Whether it takes all multicast frames.
    pub fn all_multi(&self) -> bool {
        self.flags & link_flags::ALLMULTI != 0 || self.all_multi_count.is_some_and(|count| count > 0)
    }

    pub(super) fn parse(payload: &[u8]) -> Result<Self> {
        let attributes = Attributes::after(payload, BODY)?;
        let mut link = Self { index: word(payload, 4), flags: word(payload, 8), ..Self::default() };
        for attribute in attributes {
            match attribute.kind {
                IFLA_ADDRESS => link.mac = attribute.array().ok().map(MacAddr),
                IFLA_PERM_ADDRESS => link.permanent_mac = attribute.array().ok().map(MacAddr),
                IFLA_IFNAME => attribute.str()?.clone_into(&mut link.name),
                IFLA_MTU => link.mtu = attribute.u32()?,
                IFLA_LINK => link.parent = Some(attribute.u32()?).filter(|index| *index != 0),
                IFLA_LINK_NETNSID => link.parent_netns = Some(attribute.u32()?.cast_signed()),
                IFLA_MASTER => link.master = Some(attribute.u32()?).filter(|index| *index != 0),
                IFLA_TXQLEN => link.tx_queue_len = attribute.u32()?,
                IFLA_OPERSTATE => {
                    link.oper_state = match attribute.u8()? {
                        0 => OperState::Unknown,
                        2 => OperState::Down,
                        3 => OperState::LowerLayerDown,
                        5 => OperState::Dormant,
                        6 => OperState::Up,
                        other => OperState::Other(other),
                    }
                }
                IFLA_IFALIAS => {
                    link.alias = Some(String::from_utf8_lossy(attribute.data).trim_end_matches('\0').into());
                }
                IFLA_PROMISCUITY => link.promiscuity = attribute.u32()?,
                IFLA_ALLMULTI => link.all_multi_count = Some(attribute.u32()?),
                IFLA_LINKINFO => link.parse_info(&attribute)?,
                _ => {}
            }
        }
        // A link that is its own parent has none.
        link.parent = link.parent.filter(|parent| *parent != link.index || link.parent_netns.is_some());
        Ok(link)
    }

    fn parse_info(&mut self, info: &Attribute<'_>) -> Result<()> {
        let info = info.attributes();
        let kind = info.find(IFLA_INFO_KIND).map(|kind| kind.str()).transpose()?;
        self.kind = kind.map(str::to_owned);
        if let (Some(kind), Some(data)) = (kind, info.find(IFLA_INFO_DATA)) {
            self.details = LinkDetails::parse(kind, &data.attributes())?;
        }
        let slave = info.find(IFLA_INFO_SLAVE_KIND).map(|kind| kind.str()).transpose()?;
        if let (Some("bridge"), Some(data)) = (slave, info.find(IFLA_INFO_SLAVE_DATA)) {
            self.port = Some(BridgePort::parse(data.attributes())?);
        }
        Ok(())
    }
}

/// What there is to say of a kind of link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LinkDetails {
    /// Nothing that is read here.
    #[default]
    None,
    /// A bridge.
    Bridge {
        /// Whether it looks at VLAN tags.
        vlan_filtering: bool,
        /// VLAN that new ports get.
        default_pvid: u16,
    },
    /// A macvlan.
    Macvlan {
        /// Its mode; none for one that is not known here.
        mode: Option<MacvlanMode>,
        /// Length of the queue of broadcasts that was asked for.
        bc_queue_len: Option<u32>,
    },
    /// An ipvlan.
    Ipvlan {
        /// Its mode; none for one that is not known here.
        mode: Option<IpvlanMode>,
    },
    /// A VLAN.
    Vlan {
        /// Its tag.
        id: u16,
    },
    /// A VRF.
    Vrf {
        /// Its routing table.
        table: u32,
    },
    /// A tun or tap device.
    Tun {
        /// Ethernet frames (tap), not IP packets (tun).
        tap: bool,
        /// Who may open it.
        owner: Option<u32>,
        /// Which group may open it.
        group: Option<u32>,
        /// Lives on without an open file.
        persistent: bool,
        /// May be opened several times.
        multi_queue: bool,
    },
}

impl LinkDetails {
    fn parse(kind: &str, data: &Attributes<'_>) -> Result<Self> {
        let u32_of = |kind| data.find(kind).map(|attribute| attribute.u32()).transpose();
        let u16_of = |kind| data.find(kind).map(|attribute| attribute.u16()).transpose();
        let flag = |kind| data.find(kind).map(|attribute| attribute.u8()).transpose().map(|value| value == Some(1));
        Ok(match kind {
            "bridge" => Self::Bridge {
                vlan_filtering: flag(IFLA_BR_VLAN_FILTERING)?,
                default_pvid: u16_of(IFLA_BR_VLAN_DEFAULT_PVID)?.unwrap_or_default(),
            },
            "macvlan" | "macvtap" => Self::Macvlan {
                mode: u32_of(IFLA_MACVLAN_MODE)?.and_then(MacvlanMode::from_number),
                bc_queue_len: u32_of(IFLA_MACVLAN_BC_QUEUE_LEN)?,
            },
            "ipvlan" | "ipvtap" => Self::Ipvlan { mode: u16_of(IFLA_IPVLAN_MODE)?.and_then(IpvlanMode::from_number) },
            "vlan" => Self::Vlan { id: u16_of(IFLA_VLAN_ID)?.unwrap_or_default() },
            "vrf" => Self::Vrf { table: u32_of(IFLA_VRF_TABLE)?.unwrap_or_default() },
            "tun" => Self::Tun {
                tap: data.find(IFLA_TUN_TYPE).map(|attribute| attribute.u8()).transpose()? == Some(2),
                owner: u32_of(IFLA_TUN_OWNER)?,
                group: u32_of(IFLA_TUN_GROUP)?,
                persistent: flag(IFLA_TUN_PERSIST)?,
                multi_queue: flag(IFLA_TUN_MULTI_QUEUE)?,
            },
            _ => Self::None,
        })
    }
}

/// An enum of modes with the kernel's number and the name that people write.
macro_rules! modes {
    ($(#[$doc:meta])* $name:ident: $number:ty { $($(#[$variant_doc:meta])* $variant:ident = $value:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            pub(super) fn number(self) -> $number {
                match self { $(Self::$variant => $value,)* }
            }

            fn from_number(number: $number) -> Option<Self> {
                match number { $($value => Some(Self::$variant),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)* })
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(Error::Invalid { what: format!("mode {text:?} is none of {}", [$($text),*].join(", ")) }),
                }
            }
        }
    };
}

modes! {
    /// How a macvlan talks to those that share its master.
    MacvlanMode: u32 {
        /// Not at all.
        Private = 1, "private";
        /// Through the switch outside.
        Vepa = 2, "vepa";
        /// Directly.
        Bridge = 4, "bridge";
        /// It is the only one.
        Passthru = 8, "passthru";
    }
}

modes! {
    /// On which layer an ipvlan takes its packets.
    IpvlanMode: u16 {
        /// Frames; broadcasts reach all.
        L2 = 0, "l2";
        /// Packets, routed in the namespace of the master.
        L3 = 1, "l3";
        /// As l3, and through the netfilter of that namespace.
        L3s = 2, "l3s";
    }
}

impl Handle {
    /// The link. [`Error::NotFound`] if there is none.
    pub fn link<'r>(&self, link: impl Into<LinkRef<'r>>) -> Result<Link> {
        let link = link.into();
        match self.find_link(link)? {
            Some(found) => Ok(found),
            None => Err(Error::NotFound { what: format!("link {link}") }),
        }
    }

    /// The link, if there is one.
    pub fn find_link<'r>(&self, link: impl Into<LinkRef<'r>>) -> Result<Option<Link>> {
        let link = link.into();
        if let LinkRef::Name(name) = link
            && !(1..128).contains(&name.len())
        {
            return Ok(None);
        }
        let mut message = Message::new(RTM_GETLINK, 0).about(format!("look at link {link}"));
        message.put(&body(0, index_of(link), 0, 0));
        if let LinkRef::Name(name) = link {
            // The kernel refuses a longer text in the first of them.
            message.attr_str(if name.len() < 16 { IFLA_IFNAME } else { IFLA_ALT_IFNAME }, name);
        }
        message.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        match self.query_one(message) {
            Ok(reply) => Link::parse(&reply.payload).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All links.
    pub fn links(&self) -> Result<Vec<Link>> {
        let mut message = Message::new(RTM_GETLINK, 0).about("list links");
        message.put(&body(0, 0, 0, 0)).attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        self.socket.dump(message)?.iter().filter(|reply| reply.kind == RTM_NEWLINK).map(parse_reply).collect()
    }

    /// Makes a link. Fails with `EEXIST` if its name is taken.
    pub fn create_link(&self, link: &NewLink<'_>) -> Result<()> {
        let messages = create(link).into_iter().collect::<Result<Vec<_>>>()?;
        self.socket.batch(messages)?.into_iter().try_for_each(|outcome| outcome.result)
    }

    /// Changes a link.
    pub fn set_link<'r>(&self, link: impl Into<LinkRef<'r>>, change: &LinkChange<'_>) -> Result<()> {
        self.request(set(link.into(), change))
    }

    /// Removes a link. One that is missing is an error ([`Error::is_not_found`]).
    pub fn delete_link<'r>(&self, link: impl Into<LinkRef<'r>>) -> Result<()> {
        self.request(delete(link.into()))
    }
}

fn parse_reply(reply: &Reply) -> Result<Link> {
    Link::parse(&reply.payload)
}

/// Four bytes of a payload whose length was checked.
pub(super) fn word(payload: &[u8], at: usize) -> u32 {
    payload.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// `struct ifinfomsg`.
pub(super) fn body(family: u8, index: u32, flags: u32, mask: u32) -> [u8; BODY] {
    let mut body = [0; BODY];
    body[0] = family;
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&mask.to_ne_bytes());
    body
}
