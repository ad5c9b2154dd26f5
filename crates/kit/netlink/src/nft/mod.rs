//! Packet filter and address translation: `nf_tables` over netlink.
//!
//! Changes go through a [`Batch`], which the kernel does as one or not at all. What is there is read in parts: one chain
//! by name, the rules of one chain, one element by key; none of these costs more when there are many others.

mod batch;
mod expr;
mod handle;
pub mod userdata;
pub mod xt;

use std::fmt;

pub use batch::{Batch, NewElement, NewRule};
pub use expr::{
    ADDRESS_LOCAL, CT_ESTABLISHED_RELATED, CT_STATUS_DNAT, CmpOp, CtKey, Expr, MetaKey, NatKind, PayloadBase, Register,
    Verdict, Xt,
};
pub use handle::{Chain, Element, Handle, RawRule, Rule, Set, Table, is_race};

use crate::wire::Message;

/// Message types of `nf_tables`.
mod kind {
    pub(super) const SUBSYSTEM: u16 = 10;
    pub(super) const NEWTABLE: u8 = 0;
    pub(super) const GETTABLE: u8 = 1;
    pub(super) const DELTABLE: u8 = 2;
    pub(super) const NEWCHAIN: u8 = 3;
    pub(super) const GETCHAIN: u8 = 4;
    pub(super) const DELCHAIN: u8 = 5;
    pub(super) const NEWRULE: u8 = 6;
    pub(super) const GETRULE: u8 = 7;
    pub(super) const DELRULE: u8 = 8;
    pub(super) const NEWSET: u8 = 9;
    pub(super) const GETSET: u8 = 10;
    pub(super) const DELSET: u8 = 11;
    pub(super) const NEWSETELEM: u8 = 12;
    pub(super) const GETSETELEM: u8 = 13;
    pub(super) const DELSETELEM: u8 = 14;
    pub(super) const GETGEN: u8 = 16;
}

/// How many elements one message carries: with the longest comments they still fit its 64 KiB.
const ELEMENT_LIMIT: usize = 128;

/// Family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// All of them, where that is allowed.
    Unspecified = 0,
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4.
    Ip = 2,
    /// Bridged frames.
    Bridge = 7,
    /// IPv6.
    Ip6 = 10,
}

impl Family {
    /// The family of IP tables of a version.
    pub fn ip(v6: bool) -> Self {
        if v6 { Self::Ip6 } else { Self::Ip }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::Unspecified, Self::Inet, Self::Ip, Self::Bridge, Self::Ip6]
            .into_iter()
            .find(|family| *family as u8 == number)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "any",
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Bridge => "bridge",
            Self::Ip6 => "ip6",
        })
    }
}

/// A table by family and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableRef<'a> {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: &'a str,
}

impl<'a> TableRef<'a> {
    /// A table of this family and name.
    pub const fn new(family: Family, name: &'a str) -> Self {
        Self { family, name }
    }
}

impl fmt::Display for TableRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// Where in the path of a packet a chain is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// On arrival.
    Prerouting = 0,
    /// On its way to this host.
    Input = 1,
    /// On its way through this host.
    Forward = 2,
    /// When this host sends it.
    Output = 3,
    /// Before it leaves.
    Postrouting = 4,
}

/// What makes a chain one that is called by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain<'a> {
    /// `filter`, `nat` or `route`.
    pub kind: &'a str,
    /// Where it is called.
    pub hook: Hook,
    /// In which order: lower comes first.
    pub priority: i32,
}

/// Type of a set's keys or values: up to four simple types in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetType(&'static [DataType]);

/// A simple type, by the number that nft gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    /// A verdict.
    Verdict,
    /// An IPv4 address.
    Ipv4 = 7,
    /// An IPv6 address.
    Ipv6 = 8,
    /// A transport protocol.
    Protocol = 12,
    /// A port.
    Port = 13,
    /// A name of an interface.
    InterfaceName = 41,
}

impl DataType {
    fn len(self) -> u32 {
        match self {
            Self::Verdict => 0,
            Self::Ipv4 => 4,
            Self::Ipv6 | Self::InterfaceName => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }
}

impl SetType {
    /// A concatenation of types, or one type.
    pub const fn new(types: &'static [DataType]) -> Self {
        Self(types)
    }

    /// The number of the type: six bits for each part.
    fn id(self) -> u32 {
        match self.0 {
            [DataType::Verdict] => 0xffff_ff00,
            parts => parts.iter().fold(0, |id, part| id << 6 | *part as u32),
        }
    }

    fn len(self) -> u32 {
        match self.0 {
            [one] => one.len(),
            parts => parts.iter().map(|part| part.len().next_multiple_of(4)).sum(),
        }
    }

    /// As nft writes it: 0 = it has none, 1 = the machine's, 2 = network order.
    fn byte_order(self) -> u32 {
        match self.0 {
            [DataType::Ipv4 | DataType::Ipv6 | DataType::Port] => 2,
            [DataType::InterfaceName] => 1,
            _ => 0,
        }
    }
}

/// A set or map to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewSet<'a> {
    /// Its name.
    pub name: &'a str,
    /// Type of its keys.
    pub key: SetType,
    /// Type of its values: then it is a map.
    pub value: Option<SetType>,
    /// Its comment.
    pub comment: Option<&'a str>,
}

/// A key, or a value that is no verdict: its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Vec<u8>);

/// Value of a map's element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetValue {
    /// A verdict.
    Verdict(Verdict),
    /// Anything else.
    Data(Key),
}

/// A request of `nf_tables` with its fixed body.
fn message(number: u8, flags: u16, family: Family, operation: impl FnOnce() -> String) -> Message {
    let mut message = Message::new(kind::SUBSYSTEM << 8 | u16::from(number), flags).about(operation());
    header(&mut message, family, 0);
    message
}

/// Writes `struct nfgenmsg`.
fn header(message: &mut Message, family: Family, resource: u16) {
    let [high, low] = resource.to_be_bytes();
    message.put(&[family as u8, 0, high, low]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Attribute, Attributes};

    /// Numbers and lengths that nft 1.0.6 gives the same types.
    #[test]
    fn types_of_sets_are_those_of_nft() {
        use DataType::{InterfaceName, Ipv4, Ipv6, Port, Protocol};
        for (parts, id, len) in [
            (&[Protocol, Port][..], 0x30d, 8),
            (&[Ipv4, Port], 0x1cd, 8),
            (&[Ipv6, Protocol, Port], 0x830d, 24),
            (&[Ipv6, Port], 0x20d, 20),
            (&[Ipv4, Ipv4], 0x1c7, 8),
            (&[InterfaceName, InterfaceName], 0xa69, 32),
            (&[Ipv4], 7, 4),
            (&[DataType::Verdict], 0xffff_ff00, 0),
        ] {
            let parts: &'static [DataType] = Vec::leak(parts.to_vec());
            let kind = SetType::new(parts);
            assert_eq!((kind.id(), kind.len()), (id, len), "{parts:?}");
        }
    }

    fn only(batch: Batch) -> (u16, Vec<u8>) {
        let mut framed = batch.framed();
        assert_eq!(framed.len(), 3);
        (framed[1].kind(), framed[1].finish(1).unwrap()[20..].to_vec())
    }

    /// `add element inet t hp4 { tcp . 8080 comment "net id if" : 10.1.0.5 . 80 }`, recorded from nft 1.0.6.
    #[test]
    fn elements_are_written_as_nft_writes_them() {
        let mut batch = Batch::new();
        let key = Key::default().and(&[6]).and_port(8080);
        let value = Key::from(std::net::IpAddr::from([10, 1, 0, 5])).and_port(80);
        let element = NewElement { key, value: Some(SetValue::Data(value)), comment: Some("net id if".to_owned()) };
        batch.add_elements(TableRef::new(Family::Inet, "t"), "hp4", &[element], false);
        let (kind, bytes) = only(batch);
        assert_eq!(kind, 0x0a0c);
        let list = Attributes::new(&bytes).find(3).unwrap().attributes().next().unwrap();
        let fields: Vec<_> = list.attributes().map(|Attribute { kind, data }| (kind, data.to_vec())).collect();
        assert_eq!(
            fields,
            [
                (1, [&[12, 0, 1, 0][..], &[0x06, 0, 0, 0, 0x1f, 0x90, 0, 0]].concat()),
                (2, [&[12, 0, 1, 0][..], &[0x0a, 1, 0, 5, 0, 0x50, 0, 0]].concat()),
                (6, b"\x00\x0anet id if\0".to_vec()),
            ]
        );
    }

    /// The chain that iptables-nft 1.8.9 makes for POSTROUTING of table nat.
    #[test]
    fn built_in_chains_are_written_as_iptables_writes_them() {
        let mut batch = Batch::new();
        let base = BaseChain { kind: "nat", hook: Hook::Postrouting, priority: 100 };
        batch.add_base_chain(TableRef::new(Family::Ip, "nat"), "POSTROUTING", base);
        let (kind, bytes) = only(batch);
        assert_eq!(kind, 0x0a03);
        let fields: Vec<_> = Attributes::new(&bytes).map(|Attribute { kind, data }| (kind, data.to_vec())).collect();
        let hook = [8, 0, 1, 0, 0, 0, 0, 4, 8, 0, 2, 0, 0, 0, 0, 100];
        assert_eq!(
            fields,
            [
                (1, b"nat\0".to_vec()),
                (3, b"POSTROUTING\0".to_vec()),
                (4, hook.to_vec()),
                (5, vec![0, 0, 0, 1]),
                (7, b"nat\0".to_vec()),
            ]
        );
    }
}
