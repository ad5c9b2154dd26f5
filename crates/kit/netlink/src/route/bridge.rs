use std::collections::BTreeMap;

use super::link::{
    BODY, IFLA_AF_SPEC, IFLA_BR_VLAN_DEFAULT_PVID, IFLA_BR_VLAN_FILTERING, IFLA_EXT_MASK, IFLA_INFO_DATA,
    IFLA_INFO_KIND, IFLA_LINKINFO, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, RTM_SETLINK, body, word,
};
use super::{AF_BRIDGE, Handle};
use crate::wire::{Attributes, Message};
use crate::{Error, Result};

const IFLA_PROTINFO: u16 = 12;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BRIDGE_FLAGS: u16 = 0;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_FLAGS_SELF: u16 = 2;
const RANGE_BEGIN: u16 = 0x8;
const RANGE_END: u16 = 0x10;
const RTEXT_FILTER_BRVLAN_COMPRESSED: u32 = 4;

/// Flags of a VLAN on a bridge port.
pub mod vlan_flags {
    /// The VLAN is on the bridge itself, not on a port.
    pub const SELF: u16 = 0x1;
    /// What comes in without a tag belongs to it.
    pub const PVID: u16 = 0x2;
    /// What goes out loses its tag.
    pub const UNTAGGED: u16 = 0x4;
}

/// VLANs from the first to the second, both included.
pub type VlanRange = std::ops::RangeInclusive<u16>;

/// State of a bridge port (spanning tree).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    /// Off.
    Disabled,
    /// Listens.
    Listening,
    /// Learns.
    Learning,
    /// Forwards: ready.
    Forwarding,
    /// Blocked.
    Blocking,
    /// Another one.
    Other(u8),
}

impl PortState {
    fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Disabled,
            1 => Self::Listening,
            2 => Self::Learning,
            3 => Self::Forwarding,
            4 => Self::Blocking,
            number => Self::Other(number),
        }
    }
}

/// Settings of a bridge port. What is none stays as it is when set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgePort {
    /// Frames may leave through the port they came in.
    pub hairpin: Option<bool>,
    /// No frames to other isolated ports.
    pub isolated: Option<bool>,
    /// Learns addresses.
    pub learning: Option<bool>,
    /// Gets frames for unknown addresses.
    pub flood: Option<bool>,
    /// Its state. Read only.
    pub state: Option<PortState>,
}

impl BridgePort {
    pub(super) fn parse(attributes: Attributes<'_>) -> Result<Self> {
        let mut port = Self::default();
        for attribute in attributes {
            let place = match attribute.kind {
                IFLA_BRPORT_STATE => {
                    port.state = Some(PortState::from_number(attribute.u8()?));
                    continue;
                }
                IFLA_BRPORT_MODE => &mut port.hairpin,
                IFLA_BRPORT_ISOLATED => &mut port.isolated,
                IFLA_BRPORT_LEARNING => &mut port.learning,
                IFLA_BRPORT_UNICAST_FLOOD => &mut port.flood,
                _ => continue,
            };
            *place = Some(attribute.u8()? != 0);
        }
        Ok(port)
    }
}

/// Settings of a bridge. What is none stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgeSettings {
    /// Whether it looks at VLAN tags.
    pub vlan_filtering: Option<bool>,
    /// VLAN that new ports get; 0: none.
    pub default_pvid: Option<u16>,
}

impl Handle {
    /// Changes a bridge.
    pub fn set_bridge(&self, index: u32, settings: &BridgeSettings) -> Result<()> {
        self.socket.request(set(index, *settings))
    }

    /// Changes a port of a bridge, given by its index.
    pub fn bridge_port(&self, index: u32, port: &BridgePort) -> Result<()> {
        self.socket.request(bridge::port(index, *port))
    }

    /// Adds VLANs to a port, or with [`vlan_flags::SELF`] to the bridge itself. Flags of those it has are replaced.
    pub fn bridge_vlan_add(&self, index: u32, range: VlanRange, flags: u16) -> Result<()> {
        self.socket.request(vlan(index, range, flags, true))
    }

    /// Takes VLANs off a port, or with [`vlan_flags::SELF`] off the bridge itself. Those it does not have are no error.
    pub fn bridge_vlan_del(&self, index: u32, range: VlanRange, flags: u16) -> Result<()> {
        self.socket.request(vlan(index, range, flags, false))
    }

    /// VLANs and their flags, by index of the port or bridge that has them. Those without any are left out.
    pub fn bridge_vlans(&self) -> Result<BTreeMap<u32, Vec<(VlanRange, u16)>>> {
        let mut message = Message::new(RTM_GETLINK, 0).about("list VLANs of bridges");
        message.put(&body(AF_BRIDGE, 0, 0, 0)).attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN_COMPRESSED);
        let mut vlans = BTreeMap::new();
        for reply in self.socket.dump(message)?.iter().filter(|reply| reply.kind == RTM_NEWLINK) {
            let attributes = Attributes::after(&reply.payload, BODY)?;
            let Some(specific) = attributes.find(IFLA_AF_SPEC) else { continue };
            let ranges = parse_vlans(specific.attributes())?;
            if !ranges.is_empty() {
                vlans.insert(word(&reply.payload, 4), ranges);
            }
        }
        Ok(vlans)
    }
}

fn parse_vlans(attributes: Attributes<'_>) -> Result<Vec<(VlanRange, u16)>> {
    let mut ranges = Vec::new();
    let mut begin = None;
    for attribute in attributes.filter(|attribute| attribute.kind == IFLA_BRIDGE_VLAN_INFO) {
        let [f0, f1, v0, v1] = attribute.array()?;
        let flags = u16::from_ne_bytes([f0, f1]);
        let id = u16::from_ne_bytes([v0, v1]);
        let kept = flags & (vlan_flags::PVID | vlan_flags::UNTAGGED);
        if flags & RANGE_BEGIN != 0 {
            begin = Some(id);
        } else if flags & RANGE_END != 0 {
            let begin =
                begin.take().ok_or_else(|| Error::Malformed { what: "a range of VLANs without a beginning".into() })?;
            ranges.push((begin..=id, kept));
        } else {
            ranges.push((id..=id, kept));
        }
    }
    Ok(ranges)
}

pub(super) fn set(index: u32, settings: BridgeSettings) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0).about(format!("change bridge number {index}"));
    message.put(&body(0, index, 0, 0)).nest(IFLA_LINKINFO, |info| {
        info.attr_str(IFLA_INFO_KIND, "bridge").nest(IFLA_INFO_DATA, |data| {
            if let Some(filtering) = settings.vlan_filtering {
                data.attr_u8(IFLA_BR_VLAN_FILTERING, u8::from(filtering));
            }
            if let Some(pvid) = settings.default_pvid {
                data.attr_u16(IFLA_BR_VLAN_DEFAULT_PVID, pvid);
            }
        });
    });
    message
}

pub(super) fn port(index: u32, port: BridgePort) -> Message {
    let mut message = Message::new(RTM_SETLINK, 0).about(format!("change bridge port number {index}"));
    message.put(&body(AF_BRIDGE, index, 0, 0)).nest(IFLA_PROTINFO, |info| {
        for (kind, value) in [
            (IFLA_BRPORT_MODE, port.hairpin),
            (IFLA_BRPORT_ISOLATED, port.isolated),
            (IFLA_BRPORT_LEARNING, port.learning),
            (IFLA_BRPORT_UNICAST_FLOOD, port.flood),
        ] {
            if let Some(value) = value {
                info.attr_u8(kind, u8::from(value));
            }
        }
    });
    message
}

pub(super) fn vlan(index: u32, range: VlanRange, flags: u16, add: bool) -> Message {
    let (kind, verb) = if add { (RTM_SETLINK, "add") } else { (RTM_DELLINK, "remove") };
    let operation = format!("{verb} VLANs {} to {} of link number {index}", range.start(), range.end());
    let mut message = Message::new(kind, 0).about(operation);
    let on_bridge = flags & vlan_flags::SELF != 0;
    let flags = flags & !vlan_flags::SELF;
    message.put(&body(AF_BRIDGE, index, 0, 0)).nest(IFLA_AF_SPEC, |specific| {
        if on_bridge {
            specific.attr_u16(IFLA_BRIDGE_FLAGS, BRIDGE_FLAGS_SELF);
        }
        let mut put = |id: u16, flags: u16| {
            let info = [flags.to_ne_bytes(), id.to_ne_bytes()].concat();
            specific.attr(IFLA_BRIDGE_VLAN_INFO, &info);
        };
        if range.start() == range.end() {
            put(*range.start(), flags);
        } else {
            put(*range.start(), flags | RANGE_BEGIN);
            put(*range.end(), flags | RANGE_END);
        }
    });
    message
}

// So that methods and encoders can share their names.
use self as bridge;
