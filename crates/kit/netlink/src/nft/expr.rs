//! The expressions that rules are made of (`linux/netfilter/nf_tables.h`).

use crate::wire::{Attribute, Attributes, Message};
use crate::{Error, Result};

/// A 16-byte register, or one of its 4-byte parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u32);

impl Register {
    /// The first 16-byte register, the one that nearly all rules use.
    pub const FIRST: Self = Self(1);

    /// The 4-byte part that lies this many words into the register area, for the fields of a concatenation.
    pub const fn word(words: u32) -> Self {
        // A part that begins a 16-byte register is called by that register's name, as nft does.
        if words.is_multiple_of(4) { Self(1 + words / 4) } else { Self(8 + words) }
    }
}

/// What a `meta` expression reads or sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetaKey(pub u32);

impl MetaKey {
    /// The packet mark.
    pub const MARK: Self = Self(3);
    /// Name of the interface that it came from, 16 bytes.
    pub const INPUT_INTERFACE: Self = Self(6);
    /// Name of the interface that it goes to, 16 bytes.
    pub const OUTPUT_INTERFACE: Self = Self(7);
    /// Network protocol: a family, in tables of family inet.
    pub const NETWORK_PROTOCOL: Self = Self(15);
    /// Transport protocol.
    pub const TRANSPORT_PROTOCOL: Self = Self(16);
}

/// Where in a packet a payload expression begins to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadBase {
    /// Link header.
    Link = 0,
    /// Network header.
    Network = 1,
    /// Transport header.
    Transport = 2,
}

/// How a register is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmpOp {
    /// Equal.
    Equal = 0,
    /// Not equal.
    NotEqual = 1,
    /// Less.
    Less = 2,
    /// Less or equal.
    LessOrEqual = 3,
    /// Greater.
    Greater = 4,
    /// Greater or equal.
    GreaterOrEqual = 5,
}

/// What a `ct` expression reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CtKey(pub u32);

impl CtKey {
    /// State bits.
    pub const STATE: Self = Self(0);
    /// Status bits; [`CT_STATUS_DNAT`] is one.
    pub const STATUS: Self = Self(2);
    /// The connection's mark.
    pub const MARK: Self = Self(3);
}

/// Bits of [`CtKey::STATE`]: established or related.
pub const CT_ESTABLISHED_RELATED: u32 = 1 << 1 | 1 << 2;
/// Bit of [`CtKey::STATUS`]: the destination was rewritten.
pub const CT_STATUS_DNAT: u32 = 1 << 5;

/// Kind of the address of a `fib … type local` test.
pub const ADDRESS_LOCAL: u32 = 2;

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Leave this hook.
    Accept,
    /// Drop it.
    Drop,
    /// Go on with the next rule.
    Continue,
    /// Back to the calling chain.
    Return,
    /// Through a chain and back.
    Jump(String),
    /// To a chain, not back.
    Goto(String),
    /// Any other code.
    Other(i32),
}

impl Verdict {
    fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Continue => -1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
            Self::Other(code) => *code,
        }
    }

    /// The chain that a jump or goto leads to.
    pub fn chain(&self) -> Option<&str> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            _ => None,
        }
    }

    /// Writes the attributes of a verdict as the data of an expression or element.
    pub(super) fn encode(&self, kind: u16, message: &mut Message) {
        message.nest(kind, |data| {
            data.nest(2, |verdict| {
                verdict.attr(1, &self.code().to_be_bytes());
                if let Some(chain) = self.chain() {
                    verdict.attr_str(2, chain);
                }
            });
        });
    }

    pub(super) fn decode(attribute: Attribute<'_>) -> Result<Self> {
        let (mut code, mut chain) = (None, String::new());
        for attribute in attribute.attributes() {
            match attribute.kind {
                1 => code = Some(i32::from_be_bytes(attribute.array()?)),
                2 => attribute.str()?.clone_into(&mut chain),
                _ => {}
            }
        }
        Ok(match code.ok_or_else(|| malformed("a verdict without code"))? {
            0 => Self::Drop,
            1 => Self::Accept,
            -1 => Self::Continue,
            -3 => Self::Jump(chain),
            -4 => Self::Goto(chain),
            -5 => Self::Return,
            other => Self::Other(other),
        })
    }
}

/// A match or target of xtables with its binary arguments; see [`super::xt`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xt {
    /// Its name.
    pub name: String,
    /// Its revision: layout of the arguments.
    pub revision: u32,
    /// Its arguments.
    pub info: Vec<u8>,
}

/// Direction of a `nat` expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// Source.
    Source = 0,
    /// Destination.
    Destination = 1,
}

/// One expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Reads a property of the packet.
    Meta {
        /// Which.
        key: MetaKey,
        /// Where to.
        dreg: Register,
    },
    /// Sets a property of the packet.
    MetaSet {
        /// Which.
        key: MetaKey,
        /// Where from.
        sreg: Register,
    },
    /// Reads bytes of the packet.
    Payload {
        /// Where to.
        dreg: Register,
        /// Which header.
        base: PayloadBase,
        /// From which byte.
        offset: u32,
        /// How many.
        len: u32,
    },
    /// Compares; the rule ends if that fails.
    Cmp {
        /// Left side.
        sreg: Register,
        /// How.
        op: CmpOp,
        /// Right side.
        data: Vec<u8>,
    },
    /// Compares with a range, both ends of it included.
    Range {
        /// Left side.
        sreg: Register,
        /// Must be outside.
        invert: bool,
        /// Lowest.
        from: Vec<u8>,
        /// Highest.
        to: Vec<u8>,
    },
    /// `dreg = (sreg & mask) ^ xor`.
    Bitwise {
        /// Where from.
        sreg: Register,
        /// Where to.
        dreg: Register,
        /// The mask.
        mask: Vec<u8>,
        /// What is flipped.
        xor: Vec<u8>,
    },
    /// Loads a value.
    Immediate {
        /// Where to.
        dreg: Register,
        /// The value.
        data: Vec<u8>,
    },
    /// Ends the rule.
    Verdict(Verdict),
    /// Looks a key up in a set (the rule ends if it is not there) or map.
    Lookup {
        /// Name of the set.
        set: String,
        /// The key.
        sreg: Register,
        /// Where the value goes to, in a map; `Register(0)` = verdict.
        dreg: Option<Register>,
        /// Ends if it is there.
        invert: bool,
    },
    /// Rewrites an address.
    Nat {
        /// Which.
        kind: NatKind,
        /// Family of the address.
        family: u32,
        /// Where the address is.
        address: Option<Register>,
        /// Where the port is.
        port: Option<Register>,
    },
    /// Rewrites the source to that of the outgoing interface.
    Masquerade,
    /// Rewrites the destination to this host.
    Redirect {
        /// Where the port is.
        port: Option<Register>,
    },
    /// Counts.
    Counter {
        /// Packets so far.
        packets: u64,
        /// Bytes so far.
        bytes: u64,
    },
    /// Reads a property of the connection.
    Ct {
        /// Which.
        key: CtKey,
        /// Where to.
        dreg: Register,
    },
    /// Asks the routing table for the type of the destination address.
    FibDestinationType {
        /// Where to.
        dreg: Register,
    },
    /// Limits the rate.
    Limit {
        /// How many.
        rate: u64,
        /// In how many seconds.
        seconds: u64,
        /// How many at once at first.
        burst: u32,
        /// The rule ends below the rate, not above it.
        over: bool,
    },
    /// A match of xtables.
    Match(Xt),
    /// A target of xtables.
    Target(Xt),
    /// An expression that this crate does not know.
    Other {
        /// Its name.
        name: String,
        /// Its attributes as they came.
        data: Vec<u8>,
    },
}

impl Expr {
    /// `ip/ip6 … == data`: the usual pair of expressions that compares bytes of the packet.
    pub fn payload_is(base: PayloadBase, offset: u32, data: &[u8], invert: bool) -> [Self; 2] {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        [Self::Payload { dreg: Register::FIRST, base, offset, len }, Self::cmp(data, invert)]
    }

    /// The pair of expressions that compares a property of the packet.
    pub fn meta_is(key: MetaKey, data: &[u8], invert: bool) -> [Self; 2] {
        [Self::Meta { key, dreg: Register::FIRST }, Self::cmp(data, invert)]
    }

    /// Compares the first register.
    pub fn cmp(data: &[u8], invert: bool) -> Self {
        let op = if invert { CmpOp::NotEqual } else { CmpOp::Equal };
        Self::Cmp { sreg: Register::FIRST, op, data: data.to_vec() }
    }

    /// A counter that begins at zero.
    pub fn counter() -> Self {
        Self::Counter { packets: 0, bytes: 0 }
    }

    /// Goes through a chain.
    pub fn jump(chain: &str) -> Self {
        Self::Verdict(Verdict::Jump(chain.to_owned()))
    }

    /// True if both do the same: counts do not matter, nor does what a match of xtables keeps for itself.
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Counter { .. }, Self::Counter { .. }) => true,
            (Self::Match(a), Self::Match(b)) | (Self::Target(a), Self::Target(b)) => {
                let len = a.info.len().min(b.info.len());
                a.name == b.name
                    && a.revision == b.revision
                    && a.info[..len] == b.info[..len]
                    && a.info[len..].iter().chain(&b.info[len..]).all(|byte| *byte == 0)
            }
            _ => self == other,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Payload { .. } => "payload",
            Self::Cmp { .. } => "cmp",
            Self::Range { .. } => "range",
            Self::Bitwise { .. } => "bitwise",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Lookup { .. } => "lookup",
            Self::Nat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Redirect { .. } => "redir",
            Self::Counter { .. } => "counter",
            Self::Ct { .. } => "ct",
            Self::FibDestinationType { .. } => "fib",
            Self::Limit { .. } => "limit",
            Self::Match(_) => "match",
            Self::Target(_) => "target",
            Self::Other { name, .. } => name,
        }
    }

    pub(super) fn encode(&self, message: &mut Message) {
        message.nest(1, |message| {
            message.attr_str(1, self.name());
            message.nest(2, |data| self.encode_data(data));
        });
    }

    fn encode_data(&self, data: &mut Message) {
        match self {
            Self::Meta { key, dreg } => {
                data.attr_be32(2, key.0).attr_be32(1, dreg.0);
            }
            Self::MetaSet { key, sreg } => {
                data.attr_be32(2, key.0).attr_be32(3, sreg.0);
            }
            Self::Payload { dreg, base, offset, len } => {
                data.attr_be32(1, dreg.0).attr_be32(2, *base as u32).attr_be32(3, *offset).attr_be32(4, *len);
            }
            Self::Cmp { sreg, op, data: value } => {
                data.attr_be32(1, sreg.0).attr_be32(2, *op as u32);
                encode_value(3, value, data);
            }
            Self::Range { sreg, invert, from, to } => {
                data.attr_be32(1, sreg.0).attr_be32(2, u32::from(*invert));
                encode_value(3, from, data);
                encode_value(4, to, data);
            }
            Self::Bitwise { sreg, dreg, mask, xor } => {
                let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
                data.attr_be32(1, sreg.0).attr_be32(2, dreg.0).attr_be32(3, len);
                encode_value(4, mask, data);
                encode_value(5, xor, data);
            }
            Self::Immediate { dreg, data: value } => {
                data.attr_be32(1, dreg.0);
                encode_value(2, value, data);
            }
            Self::Verdict(verdict) => {
                data.attr_be32(1, 0);
                verdict.encode(2, data);
            }
            Self::Lookup { set, sreg, dreg, invert } => {
                data.attr_be32(2, sreg.0);
                if let Some(dreg) = dreg {
                    data.attr_be32(3, dreg.0);
                }
                data.attr_str(1, set);
                if *invert {
                    data.attr_be32(5, 1);
                }
            }
            Self::Nat { kind, family, address, port } => {
                data.attr_be32(1, *kind as u32).attr_be32(2, *family);
                if let Some(address) = address {
                    data.attr_be32(3, address.0);
                }
                if let Some(port) = port {
                    data.attr_be32(5, port.0);
                }
            }
            Self::Masquerade => {}
            Self::Redirect { port } => {
                if let Some(port) = port {
                    data.attr_be32(1, port.0);
                }
            }
            Self::Counter { packets, bytes } => {
                data.attr_be64(1, *bytes).attr_be64(2, *packets);
            }
            Self::Ct { key, dreg } => {
                data.attr_be32(2, key.0).attr_be32(1, dreg.0);
            }
            Self::FibDestinationType { dreg } => {
                data.attr_be32(3, FIB_DADDR).attr_be32(2, FIB_ADDRTYPE).attr_be32(1, dreg.0);
            }
            Self::Limit { rate, seconds, burst, over } => {
                data.attr_be64(1, *rate).attr_be64(2, *seconds).attr_be32(3, *burst).attr_be32(4, 0);
                data.attr_be32(5, u32::from(*over));
            }
            Self::Match(xt) | Self::Target(xt) => {
                data.attr_str(1, &xt.name).attr_be32(2, xt.revision).attr(3, &xt.info);
            }
            Self::Other { data: attributes, .. } => {
                data.put(attributes);
            }
        }
    }

    pub(super) fn decode(attributes: Attributes<'_>) -> Result<Self> {
        let (mut name, mut data) = ("", Attribute { kind: 2, data: &[] });
        for attribute in attributes {
            match attribute.kind {
                1 => name = attribute.str()?,
                2 => data = attribute,
                _ => {}
            }
        }
        let fields = Fields(data.attributes());
        Ok(match name {
            "meta" if fields.has(3) => Self::MetaSet { key: MetaKey(fields.be32(2)?), sreg: fields.register(3)? },
            "meta" => Self::Meta { key: MetaKey(fields.be32(2)?), dreg: fields.register(1)? },
            "payload" if fields.has(1) => {
                let base = match fields.be32(2)? {
                    0 => PayloadBase::Link,
                    1 => PayloadBase::Network,
                    2 => PayloadBase::Transport,
                    _ => return Ok(other(name, data)),
                };
                Self::Payload { dreg: fields.register(1)?, base, offset: fields.be32(3)?, len: fields.be32(4)? }
            }
            "cmp" => {
                let op = match fields.be32(2)? {
                    0 => CmpOp::Equal,
                    1 => CmpOp::NotEqual,
                    2 => CmpOp::Less,
                    3 => CmpOp::LessOrEqual,
                    4 => CmpOp::Greater,
                    5 => CmpOp::GreaterOrEqual,
                    _ => return Ok(other(name, data)),
                };
                Self::Cmp { sreg: fields.register(1)?, op, data: fields.value(3)? }
            }
            "range" => Self::Range {
                sreg: fields.register(1)?,
                invert: fields.be32(2)? == 1,
                from: fields.value(3)?,
                to: fields.value(4)?,
            },
            // Operation 0 is mask and xor; shifts and newer ones carry other attributes.
            "bitwise" if !fields.has(6) || fields.be32(6)? == 0 => Self::Bitwise {
                sreg: fields.register(1)?,
                dreg: fields.register(2)?,
                mask: fields.value(4)?,
                xor: fields.value(5)?,
            },
            "immediate" => {
                let value = fields.get(2)?;
                match value.attributes().find(2) {
                    Some(verdict) => Self::Verdict(Verdict::decode(verdict)?),
                    None => Self::Immediate { dreg: fields.register(1)?, data: fields.value(2)? },
                }
            }
            "lookup" => Self::Lookup {
                set: fields.get(1)?.str()?.to_owned(),
                sreg: fields.register(2)?,
                dreg: fields.optional_register(3)?,
                invert: fields.has(5) && fields.be32(5)? & 1 == 1,
            },
            "nat" => Self::Nat {
                kind: if fields.be32(1)? == 0 { NatKind::Source } else { NatKind::Destination },
                family: fields.be32(2)?,
                address: fields.optional_register(3)?,
                port: fields.optional_register(5)?,
            },
            "masq" if !fields.has(2) => Self::Masquerade,
            "redir" => Self::Redirect { port: fields.optional_register(1)? },
            "counter" => Self::Counter { packets: fields.get(2)?.be64()?, bytes: fields.get(1)?.be64()? },
            "ct" if fields.has(1) && !fields.has(3) => {
                Self::Ct { key: CtKey(fields.be32(2)?), dreg: fields.register(1)? }
            }
            "fib" if fields.be32(2)? == FIB_ADDRTYPE && fields.be32(3)? == FIB_DADDR => {
                Self::FibDestinationType { dreg: fields.register(1)? }
            }
            "limit" if !fields.has(4) || fields.be32(4)? == 0 => Self::Limit {
                rate: fields.get(1)?.be64()?,
                seconds: fields.get(2)?.be64()?,
                burst: fields.be32(3)?,
                over: fields.has(5) && fields.be32(5)? & 1 == 1,
            },
            "match" => Self::Match(fields.xt()?),
            "target" => Self::Target(fields.xt()?),
            _ => other(name, data),
        })
    }
}

const FIB_ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 2;

/// Writes a value as the nested data of an attribute.
pub(super) fn encode_value(kind: u16, value: &[u8], message: &mut Message) {
    message.nest(kind, |data| {
        data.attr(1, value);
    });
}

fn other(name: &str, data: Attribute<'_>) -> Expr {
    Expr::Other { name: name.to_owned(), data: data.data.to_vec() }
}

/// The attributes of an expression.
struct Fields<'a>(Attributes<'a>);

impl<'a> Fields<'a> {
    fn has(&self, kind: u16) -> bool {
        self.0.find(kind).is_some()
    }

    fn get(&self, kind: u16) -> Result<Attribute<'a>> {
        self.0.find(kind).ok_or_else(|| malformed(&format!("an expression without attribute {kind}")))
    }

    fn be32(&self, kind: u16) -> Result<u32> {
        self.get(kind)?.be32()
    }

    fn register(&self, kind: u16) -> Result<Register> {
        self.be32(kind).map(Register)
    }

    fn optional_register(&self, kind: u16) -> Result<Option<Register>> {
        self.0.find(kind).map(|attribute| attribute.be32().map(Register)).transpose()
    }

    fn value(&self, kind: u16) -> Result<Vec<u8>> {
        let value = self.get(kind)?.attributes().find(1).ok_or_else(|| malformed("data without a value"))?;
        Ok(value.data.to_vec())
    }

    fn xt(&self) -> Result<Xt> {
        Ok(Xt { name: self.get(1)?.str()?.to_owned(), revision: self.be32(2)?, info: self.get(3)?.data.to_vec() })
    }
}

pub(super) fn malformed(what: &str) -> Error {
    Error::Malformed { what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::xt;
    use super::*;

    fn encoded(expressions: &[Expr]) -> Vec<u8> {
        let mut message = Message::new(0, 0);
        for expression in expressions {
            expression.encode(&mut message);
        }
        message.finish(0).unwrap()[16..].to_vec()
    }

    fn decoded(bytes: &[u8]) -> Vec<Expr> {
        Attributes::new(bytes).map(|element| Expr::decode(element.attributes()).unwrap()).collect()
    }

    fn all() -> Vec<Expr> {
        let one = Register::FIRST;
        let mut list = vec![
            Expr::MetaSet { key: MetaKey::MARK, sreg: one },
            Expr::Bitwise { sreg: one, dreg: one, mask: vec![0xf0, 0, 0, 0], xor: vec![0; 4] },
            Expr::Range { sreg: one, invert: true, from: vec![0, 1], to: vec![0, 9] },
            Expr::Immediate { dreg: one, data: vec![1, 2] },
            Expr::Lookup { set: "a".into(), sreg: one, dreg: Some(Register(0)), invert: false },
            Expr::Lookup { set: "b".into(), sreg: one, dreg: None, invert: true },
            Expr::Nat { kind: NatKind::Destination, family: 2, address: Some(one), port: Some(Register::word(1)) },
            Expr::Masquerade,
            Expr::Redirect { port: Some(one) },
            Expr::Counter { packets: 1, bytes: 2 },
            Expr::Ct { key: CtKey::STATUS, dreg: one },
            Expr::FibDestinationType { dreg: one },
            Expr::Limit { rate: 5, seconds: 1, burst: 5, over: true },
            xt::comment("a text"),
            xt::masquerade(false),
            Expr::Other { name: "quota".into(), data: vec![8, 0, 1, 0, 0, 0, 0, 1] },
        ];
        list.extend(Expr::meta_is(MetaKey::TRANSPORT_PROTOCOL, &[6], false));
        list.extend(Expr::payload_is(PayloadBase::Network, 12, &[10, 1], true));
        for verdict in [
            Verdict::Accept,
            Verdict::Drop,
            Verdict::Continue,
            Verdict::Return,
            Verdict::Jump("x".into()),
            Verdict::Goto("y".into()),
            Verdict::Other(2),
        ] {
            list.push(Expr::Verdict(verdict));
        }
        list
    }

    #[test]
    fn read_back_as_written() {
        assert_eq!(decoded(&encoded(&all())), all());
    }

    /// The expressions of `ip daddr 10.1.0.0/16 … accept`, recorded from iptables-nft 1.8.9.
    #[test]
    fn as_iptables_writes_them() {
        let hex = "34000180 0c000100 7061796c 6f616400 24000280 08000100 00000001 08000200 00000001 08000300 00000010 \
                   08000400 00000002 2c000180 08000100 636d7000 20000280 08000100 00000001 08000200 00000000 0c000380 \
                   06000100 0a010000 2c000180 0c000100 636f756e 74657200 1c000280 0c000100 00000000 00000000 0c000200 \
                   00000000 00000000 30000180 0e000100 696d6d65 64696174 65000000 1c000280 08000100 00000000 10000280 \
                   0c000280 08000100 00000001";
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let bytes: Vec<u8> =
            digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
        let mut rule = Expr::payload_is(PayloadBase::Network, 16, &[10, 1], false).to_vec();
        rule.push(Expr::counter());
        rule.push(Expr::Verdict(Verdict::Accept));
        if cfg!(target_endian = "little") {
            assert_eq!(encoded(&rule), bytes);
        }
    }

    #[test]
    fn registers_have_the_names_that_nft_gives_them() {
        assert_eq!(Register::word(0), Register(1));
        assert_eq!(Register::word(1), Register(9));
        assert_eq!(Register::word(4), Register(2));
        assert_eq!(Register::word(5), Register(13));
    }

    #[test]
    fn sameness_looks_away_from_counts_and_padding() {
        assert!(Expr::counter().same(&Expr::Counter { packets: 5, bytes: 6 }));
        let Expr::Match(mut long) = xt::comment("x") else { panic!() };
        long.info.extend([0; 8]);
        assert!(Expr::Match(long.clone()).same(&xt::comment("x")));
        long.info.push(1);
        assert!(!Expr::Match(long).same(&xt::comment("x")));
        assert!(!Expr::Masquerade.same(&Expr::counter()));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(position in 0usize..2000, byte: u8, cut in 0usize..2000) {
            let mut bytes = encoded(&all());
            let position = position % bytes.len();
            bytes[position] = byte;
            bytes.truncate(cut);
            for element in Attributes::new(&bytes) {
                let _ = Expr::decode(element.attributes());
            }
        }
    }
}
