use std::os::fd::{AsFd, AsRawFd};

use super::AF_INET;
use super::link::{
    IFLA_ADDRESS, IFLA_AF_SPEC, IFLA_BR_VLAN_FILTERING, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INET_CONF, IFLA_INFO_DATA,
    IFLA_INFO_KIND, IFLA_IPVLAN_MODE, IFLA_LINK, IFLA_LINKINFO, IFLA_MACVLAN_BC_QUEUE_LEN, IFLA_MACVLAN_MODE,
    IFLA_MASTER, IFLA_MTU, IFLA_NET_NS_FD, IFLA_TXQLEN, IFLA_VLAN_ID, IFLA_VRF_TABLE, IpvlanMode, LinkRef, MacvlanMode,
    RTM_DELLINK, RTM_NEWLINK, RTM_SETLINK, VETH_INFO_PEER, body, link_flags,
};
use crate::wire::{Message, NLM_F_CREATE, NLM_F_EXCL};
use crate::{Error, MacAddr, NetNs, Result};

/// A link to be made. Fill what matters, take the rest from `Default`.
#[derive(Debug, Clone, Default)]
pub struct NewLink<'a> {
    /// Its name; empty: the kernel picks one.
    pub name: &'a str,
    /// What to make.
    pub kind: NewLinkKind<'a>,
    /// Its number; none: the kernel picks one. With a number that is known to be free the requests that follow can be in
    /// the same [`super::Batch`].
    pub index: Option<u32>,
    /// Maximum transmission unit; none: the kernel's choice.
    pub mtu: Option<u32>,
    /// Hardware address; none: random, or the parent's.
    pub mac: Option<MacAddr>,
    /// Where to make it; none: in the handle's namespace. For a veth this is about this end.
    pub netns: Option<&'a NetNs>,
    /// Whether to bring it up. The peer of a veth must be in the handle's namespace for that.
    pub up: bool,
    /// Index of the bridge, bond or VRF it is to join.
    pub master: Option<u32>,
    /// Index of the link below, in the handle's namespace (macvlan, ipvlan, vlan).
    pub parent: Option<u32>,
    /// Length of the transmit queue.
    pub tx_queue_len: Option<u32>,
    /// A note. Only for links in the handle's namespace, and only with a name.
    pub alias: Option<&'a str>,
}

/// What to make.
#[derive(Debug, Clone, Default)]
pub enum NewLinkKind<'a> {
    /// A device that swallows everything.
    #[default]
    Dummy,
    /// A bridge.
    Bridge {
        /// Whether it looks at VLAN tags.
        vlan_filtering: bool,
    },
    /// A pair of links.
    Veth {
        /// The other end.
        peer: Box<NewLink<'a>>,
    },
    /// A second hardware address on the parent.
    Macvlan {
        /// How it talks to its siblings.
        mode: MacvlanMode,
        /// Length of the queue of broadcasts.
        bc_queue_len: Option<u32>,
    },
    /// Further addresses on the parent, with its hardware address.
    Ipvlan {
        /// On which layer.
        mode: IpvlanMode,
    },
    /// A VLAN of the parent.
    Vlan {
        /// Its tag.
        id: u16,
    },
    /// A routing domain.
    Vrf {
        /// Its routing table.
        table: u32,
    },
    /// An intermediate functional block, to shape what comes in.
    Ifb,
}

impl NewLinkKind<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Dummy => "dummy",
            Self::Bridge { .. } => "bridge",
            Self::Veth { .. } => "veth",
            Self::Macvlan { .. } => "macvlan",
            Self::Ipvlan { .. } => "ipvlan",
            Self::Vlan { .. } => "vlan",
            Self::Vrf { .. } => "vrf",
            Self::Ifb => "ifb",
        }
    }
}

/// A setting of IPv4 on one link (`/proc/sys/net/ipv4/conf/LINK/…`), which rtnetlink can change as well: in any
/// namespace, without a mounted `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv4Conf {
    /// `forwarding`.
    Forwarding,
    /// `proxy_arp`.
    ProxyArp,
    /// `rp_filter`.
    RpFilter,
    /// `arp_notify`.
    ArpNotify,
    /// `route_localnet`.
    RouteLocalnet,
}

impl Ipv4Conf {
    fn number(self) -> u16 {
        match self {
            Self::Forwarding => 1,
            Self::ProxyArp => 3,
            Self::RpFilter => 8,
            Self::ArpNotify => 22,
            Self::RouteLocalnet => 26,
        }
    }
}

/// What to change on a link. Fill what matters, take the rest from `Default`.
#[derive(Debug, Clone, Default)]
pub struct LinkChange<'a> {
    /// Up or down.
    pub up: Option<bool>,
    /// A new name. The link must be given by its index then.
    pub name: Option<&'a str>,
    /// A new maximum transmission unit.
    pub mtu: Option<u32>,
    /// A new hardware address.
    pub mac: Option<MacAddr>,
    /// Join the bridge, bond or VRF with this index, or leave (`Some(None)`).
    pub master: Option<Option<u32>>,
    /// Move to another namespace; before everything else, with [`LinkChange::name`] if that is set.
    pub netns: Option<&'a NetNs>,
    /// A new note; empty removes it.
    pub alias: Option<&'a str>,
    /// Take frames for other stations.
    pub promiscuous: Option<bool>,
    /// Take all multicast frames.
    pub all_multicast: Option<bool>,
    /// A new length of the transmit queue.
    pub tx_queue_len: Option<u32>,
    /// Settings of IPv4. They are made after everything else.
    pub ipv4_conf: &'a [(Ipv4Conf, u32)],
}

pub(super) fn index_of(link: LinkRef<'_>) -> u32 {
    match link {
        LinkRef::Index(index) => index,
        LinkRef::Name(_) => 0,
    }
}

/// An error if a link cannot have this name.
pub fn check_link_name(name: &str) -> Result<()> {
    // For `%d` the kernel would put a number.
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte) || byte >= 0x80;
    if (1..16).contains(&name.len()) && name.bytes().all(allowed) && name != "." && name != ".." {
        return Ok(());
    }
    let what = format!("{name:?} cannot name a link: 1 to 15 bytes, no white space, no slash, no colon, no %");
    Err(Error::Invalid { what })
}

fn checked_name(name: &str) -> Result<&str> {
    check_link_name(name).map(|()| name)
}

/// The messages that make a link: one, and others for what the kernel does not take at that moment, the note and the peer
/// of a veth being up.
pub(super) fn create(link: &NewLink<'_>) -> Vec<Result<Message>> {
    let mut messages = vec![create_only(link)];
    if let NewLinkKind::Veth { peer } = &link.kind
        && peer.up
    {
        messages.push(if peer.netns.is_some() || peer.name.is_empty() {
            let what = format!("link {:?}: to be brought up a peer needs a name and the same namespace", peer.name);
            Err(Error::Invalid { what })
        } else {
            set(LinkRef::Name(peer.name), &LinkChange { up: Some(true), ..LinkChange::default() })
        });
    }
    if let Some(alias) = link.alias {
        messages.push(if link.netns.is_some() || link.name.is_empty() {
            let what = format!("link {:?}: a note needs a name, and a link in the same namespace", link.name);
            Err(Error::Invalid { what })
        } else {
            set(LinkRef::Name(link.name), &LinkChange { alias: Some(alias), ..LinkChange::default() })
        });
    }
    messages
}

fn create_only(link: &NewLink<'_>) -> Result<Message> {
    let operation = format!("create {} link {}", link.kind.name(), link.name);
    let mut message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL).about(operation);
    let mut result = put_new(&mut message, link, link.up);
    message.nest(IFLA_LINKINFO, |info| {
        info.attr_str(IFLA_INFO_KIND, link.kind.name());
        match &link.kind {
            // Kernels whose bridges know no VLANs refuse to be told so.
            NewLinkKind::Dummy | NewLinkKind::Ifb | NewLinkKind::Bridge { vlan_filtering: false } => {}
            NewLinkKind::Bridge { vlan_filtering: true } => {
                info.nest(IFLA_INFO_DATA, |data| {
                    data.attr_u8(IFLA_BR_VLAN_FILTERING, 1);
                });
            }
            NewLinkKind::Veth { peer } => {
                info.nest(IFLA_INFO_DATA, |data| {
                    data.nest(VETH_INFO_PEER, |nest| {
                        let peer = put_new(nest, peer, false);
                        if result.is_ok() {
                            result = peer;
                        }
                    });
                });
            }
            NewLinkKind::Macvlan { mode, bc_queue_len } => {
                info.nest(IFLA_INFO_DATA, |data| {
                    data.attr_u32(IFLA_MACVLAN_MODE, mode.number());
                    if let Some(length) = bc_queue_len {
                        data.attr_u32(IFLA_MACVLAN_BC_QUEUE_LEN, *length);
                    }
                });
            }
            NewLinkKind::Ipvlan { mode } => {
                info.nest(IFLA_INFO_DATA, |data| {
                    data.attr_u16(IFLA_IPVLAN_MODE, mode.number());
                });
            }
            NewLinkKind::Vlan { id } => {
                info.nest(IFLA_INFO_DATA, |data| {
                    data.attr_u16(IFLA_VLAN_ID, *id);
                });
            }
            NewLinkKind::Vrf { table } => {
                info.nest(IFLA_INFO_DATA, |data| {
                    data.attr_u32(IFLA_VRF_TABLE, *table);
                });
            }
        }
    });
    result.map(|()| message)
}

/// The part that a link and the peer of a veth have in common.
fn put_new(message: &mut Message, link: &NewLink<'_>, up: bool) -> Result<()> {
    let up = if up { link_flags::UP } else { 0 };
    message.put(&body(0, link.index.unwrap_or_default(), up, up));
    if !link.name.is_empty() {
        message.attr_str(IFLA_IFNAME, checked_name(link.name)?);
    }
    if let Some(parent) = link.parent {
        message.attr_u32(IFLA_LINK, parent);
    }
    if let Some(master) = link.master {
        message.attr_u32(IFLA_MASTER, master);
    }
    put_common(message, link.mtu, link.mac, link.tx_queue_len, link.netns);
    Ok(())
}

fn put_common(
    message: &mut Message,
    mtu: Option<u32>,
    mac: Option<MacAddr>,
    tx_queue_len: Option<u32>,
    netns: Option<&NetNs>,
) {
    if let Some(mtu) = mtu {
        message.attr_u32(IFLA_MTU, mtu);
    }
    if let Some(mac) = mac {
        message.attr(IFLA_ADDRESS, &mac.0);
    }
    if let Some(length) = tx_queue_len {
        message.attr_u32(IFLA_TXQLEN, length);
    }
    if let Some(netns) = netns {
        message.attr_u32(IFLA_NET_NS_FD, netns.as_fd().as_raw_fd().cast_unsigned());
    }
}

pub(super) fn set(link: LinkRef<'_>, change: &LinkChange<'_>) -> Result<Message> {
    let mut flags = 0;
    let mut mask = 0;
    for (value, flag) in [
        (change.up, link_flags::UP),
        (change.promiscuous, link_flags::PROMISC),
        (change.all_multicast, link_flags::ALLMULTI),
    ] {
        if let Some(value) = value {
            mask |= flag;
            flags |= if value { flag } else { 0 };
        }
    }
    let mut message = Message::new(RTM_SETLINK, 0).about(format!("change link {link}"));
    message.put(&body(0, index_of(link), flags, mask));
    match (link, change.name) {
        (LinkRef::Name(name), None) | (LinkRef::Index(_), Some(name)) => {
            message.attr_str(IFLA_IFNAME, checked_name(name)?);
        }
        (LinkRef::Name(name), Some(_)) => {
            return Err(Error::Invalid { what: format!("link {name}: to rename a link its index is needed") });
        }
        (LinkRef::Index(_), None) => {}
    }
    if let Some(master) = change.master {
        message.attr_u32(IFLA_MASTER, master.unwrap_or_default());
    }
    if let Some(alias) = change.alias {
        // An empty text, without its zero byte, is what removes it.
        message.attr(IFLA_IFALIAS, alias.as_bytes());
    }
    put_common(&mut message, change.mtu, change.mac, change.tx_queue_len, change.netns);
    if !change.ipv4_conf.is_empty() {
        message.nest(IFLA_AF_SPEC, |families| {
            families.nest(u16::from(AF_INET), |inet| {
                inet.nest(IFLA_INET_CONF, |conf| {
                    for (key, value) in change.ipv4_conf {
                        conf.attr_u32(key.number(), *value);
                    }
                });
            });
        });
    }
    Ok(message)
}

pub(super) fn delete(link: LinkRef<'_>) -> Result<Message> {
    let mut message = Message::new(RTM_DELLINK, 0).about(format!("delete link {link}"));
    message.put(&body(0, index_of(link), 0, 0));
    match link {
        LinkRef::Name(name) => {
            message.attr_str(IFLA_IFNAME, checked_name(name)?);
        }
        // The kernel takes this for "all links of group 0".
        LinkRef::Index(0) => return Err(Error::Invalid { what: "link number 0 cannot be deleted".into() }),
        LinkRef::Index(_) => {}
    }
    Ok(message)
}
