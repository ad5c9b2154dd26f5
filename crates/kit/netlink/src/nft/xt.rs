//! The binary arguments of the xtables matches and targets that iptables-nft puts into nf_tables rules.
//!
//! Layouts are those of `linux/netfilter/xt_*.h`: native byte order, padded to eight bytes. What is written here is
//! byte for byte what iptables-nft 1.8.9 writes, so that its listing and its search by rule find our rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::expr::{Expr, Xt};

/// Longest text of the comment match.
pub const MAX_COMMENT: usize = 255;

/// An extension of xtables: a match.
fn extension(name: &str, revision: u32, info: Vec<u8>) -> Xt {
    let mut info = info;
    info.resize(info.len().next_multiple_of(8), 0);
    Xt { name: name.to_owned(), revision, info }
}

/// `-m comment --comment text`, cut at 255 bytes.
pub fn comment(text: &str) -> Expr {
    let mut end = text.len().min(MAX_COMMENT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut info = text.as_bytes()[..end].to_vec();
    info.resize(256, 0);
    Expr::Match(extension("comment", 0, info))
}

/// The text of a comment match.
pub fn comment_text(expr: &Expr) -> Option<&str> {
    let Expr::Match(xt) = expr else { return None };
    if xt.name != "comment" {
        return None;
    }
    std::str::from_utf8(xt.info.split(|byte| *byte == 0).next().unwrap_or_default()).ok()
}

/// Kinds of address of `-m addrtype`, as bits.
pub mod address_type {
    /// The names that iptables knows, in the order of their bits.
    pub const NAMES: [&str; 12] = [
        "UNSPEC",
        "UNICAST",
        "LOCAL",
        "BROADCAST",
        "ANYCAST",
        "MULTICAST",
        "BLACKHOLE",
        "UNREACHABLE",
        "PROHIBIT",
        "THROW",
        "NAT",
        "XRESOLVE",
    ];
    /// An address of this host.
    pub const LOCAL: u16 = 1 << 2;
}

/// Arguments of `-m addrtype`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddressTypes {
    /// Kinds of the source address; 0 = any.
    pub source: u16,
    /// Kinds of the destination address; 0 = any.
    pub destination: u16,
    /// The source must not be of these kinds.
    pub not_source: bool,
    /// The destination must not be of these kinds.
    pub not_destination: bool,
}

/// `-m addrtype`.
pub fn addrtype(types: AddressTypes) -> Expr {
    let flags = u32::from(types.not_source) | u32::from(types.not_destination) << 1;
    let mut info = Vec::with_capacity(8);
    info.extend(types.source.to_ne_bytes());
    info.extend(types.destination.to_ne_bytes());
    info.extend(flags.to_ne_bytes());
    Expr::Match(extension("addrtype", 1, info))
}

/// Which port of a packet a multiport match looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// `--source-ports`.
    Source = 0,
    /// `--destination-ports`.
    Destination = 1,
    /// `--ports`.
    Either = 2,
}

/// `-m multiport`: at most 15 ports, where a range counts as two. None if there are more.
pub fn multiport(which: Ports, ports: &[(u16, u16)], invert: bool) -> Option<Expr> {
    let mut values = [0_u16; 15];
    let mut ranges = [0_u8; 15];
    let mut count = 0;
    for (first, last) in ports {
        *values.get_mut(count)? = *first;
        if first != last {
            *ranges.get_mut(count)? = 1;
            count += 1;
            *values.get_mut(count)? = *last;
        }
        count += 1;
    }
    let mut info = vec![which as u8, u8::try_from(count).ok()?];
    info.extend(values.iter().flat_map(|port| port.to_ne_bytes()));
    info.extend(ranges);
    info.push(u8::from(invert));
    Some(Expr::Match(extension("multiport", 1, info)))
}

/// States of a connection as bits of `-m conntrack --ctstate`.
pub mod state {
    /// The names that iptables knows, with their bits.
    pub const NAMES: [(&str, u16); 7] = [
        ("INVALID", 1),
        ("ESTABLISHED", 1 << 1),
        ("RELATED", 1 << 2),
        ("NEW", 1 << 3),
        ("SNAT", 1 << 6),
        ("DNAT", 1 << 7),
        ("UNTRACKED", 1 << 8),
    ];
    /// `RELATED,ESTABLISHED`.
    pub const RELATED_ESTABLISHED: u16 = 1 << 1 | 1 << 2;
}

/// `-m conntrack [!] --ctstate`.
pub fn conntrack_state(states: u16, invert: bool) -> Expr {
    // Eight addresses and masks, two expiry times, one protocol and four ports that are not matched on.
    let mut info = vec![0; 8 * 16 + 8 + 2 + 8];
    info.extend(1_u16.to_ne_bytes());
    info.extend(u16::from(invert).to_ne_bytes());
    info.extend(states.to_ne_bytes());
    info.extend([0; 2 + 8 + 2]);
    Expr::Match(extension("conntrack", 3, info))
}

/// `-p sctp [!] --sport, [!] --dport`: ranges of ports, each with its inversion.
pub fn sctp(source: Option<((u16, u16), bool)>, destination: Option<((u16, u16), bool)>) -> Expr {
    let mut info = Vec::with_capacity(296);
    for side in [destination, source] {
        let (first, last) = side.map_or((0, 0), |(range, _)| range);
        info.extend(first.to_ne_bytes());
        info.extend(last.to_ne_bytes());
    }
    info.extend([0; 64 * 4 + 4]);
    // Four unused slots for chunk flags.
    info.extend([[0xff, 0, 0]; 4].iter().flatten());
    info.extend(0_u32.to_ne_bytes());
    info.extend((u32::from(source.is_some()) | u32::from(destination.is_some()) << 1).to_ne_bytes());
    let inverted = |side: Option<((u16, u16), bool)>| u32::from(side.is_some_and(|(_, inverted)| inverted));
    info.extend((inverted(source) | inverted(destination) << 1).to_ne_bytes());
    Expr::Match(extension("sctp", 0, info))
}

/// A range of addresses of one family, and whether it is inverted.
pub type AddressRange = ((IpAddr, IpAddr), bool);

/// `-m iprange [!] --src-range, [!] --dst-range`.
pub fn iprange(source: Option<AddressRange>, destination: Option<AddressRange>) -> Expr {
    let mut info = Vec::with_capacity(72);
    let mut flags = 0_u8;
    for (side, bit, invert_bit) in [(source, 1, 1 << 4), (destination, 1 << 1, 1 << 5)] {
        let ((first, last), inverted) =
            side.unwrap_or(((Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()), false));
        info.extend(address(first));
        info.extend(address(last));
        flags |= if side.is_some() { bit } else { 0 } | if inverted { invert_bit } else { 0 };
    }
    info.push(flags);
    Expr::Match(extension("iprange", 1, info))
}

/// `-j MARK --set-xmark value/mask`.
pub fn set_mark(mark: u32, mask: u32) -> Expr {
    let info = [mark.to_ne_bytes(), mask.to_ne_bytes()].concat();
    Expr::Target(extension("MARK", 2, info))
}

/// `-j MASQUERADE`, in the form of the family.
pub fn masquerade(v6: bool) -> Expr {
    let info = if v6 {
        vec![0; 40]
    } else {
        // A count of ranges, which must be 1, and an empty range.
        let mut info = 1_u32.to_ne_bytes().to_vec();
        info.resize(24, 0);
        info
    };
    Expr::Target(Xt { name: "MASQUERADE".to_owned(), revision: 0, info })
}

/// `-j DNAT --to-destination address:port`.
pub fn dnat(to: IpAddr, port: u16) -> Expr {
    const ADDRESS_AND_PORT: u32 = 3;
    let mut info = ADDRESS_AND_PORT.to_ne_bytes().to_vec();
    for _ in 0..2 {
        info.extend(address(to));
    }
    for _ in 0..2 {
        info.extend(port.to_be_bytes());
    }
    // The first port of a range that is shifted; unused.
    info.extend([0; 2]);
    Expr::Target(extension("DNAT", 2, info))
}

/// Address and port of a DNAT target.
pub fn dnat_destination(expr: &Expr, v6: bool) -> Option<(IpAddr, u16)> {
    let Expr::Target(xt) = expr else { return None };
    if xt.name != "DNAT" {
        return None;
    }
    let bytes: [u8; 16] = xt.info.get(4..20)?.try_into().ok()?;
    let port = u16::from_be_bytes(xt.info.get(36..38)?.try_into().ok()?);
    let to =
        if v6 { Ipv6Addr::from(bytes).into() } else { Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into() };
    Some((to, port))
}

/// An address in the union that xtables uses for both families.
fn address(address: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes = address.octets(),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn hex(expr: &Expr) -> String {
        let (Expr::Match(xt) | Expr::Target(xt)) = expr else { panic!("not an extension: {expr:?}") };
        xt.info.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Recorded from iptables-nft 1.8.9 on a little-endian machine.
    #[test]
    #[cfg(target_endian = "little")]
    fn as_iptables_writes_them() {
        let local = AddressTypes { destination: address_type::LOCAL, ..AddressTypes::default() };
        assert_eq!(hex(&addrtype(local)), "0000040000000000");
        let both = AddressTypes { source: 4, destination: 12, not_source: true, not_destination: false };
        assert_eq!(hex(&addrtype(both)), "04000c0001000000");
        let ports = multiport(Ports::Destination, &[(8080, 8080), (8081, 8081)], false).unwrap();
        assert_eq!(hex(&ports), format!("0102901f911f{}", "0".repeat(84)));
        let ports = multiport(Ports::Source, &[(1, 1), (5, 9)], true).unwrap();
        assert_eq!(
            hex(&ports),
            "000301000500090000000000000000000000000000000000000000000000000000010000000000000000000000000001"
        );
        let state = hex(&conntrack_state(state::RELATED_ESTABLISHED, false));
        assert_eq!(state, format!("{}01000000060000000000000000000000000000000000", "0".repeat(292)));
        assert_eq!(hex(&set_mark(0x2000, 0x2000)), "0020000000200000");
        assert_eq!(hex(&masquerade(false)), "010000000000000000000000000000000000000000000000");
        assert_eq!(hex(&masquerade(true)), "0".repeat(80));
        assert_eq!(
            hex(&dnat("10.1.0.5".parse().unwrap(), 80)),
            "030000000a0100050000000000000000000000000a010005000000000000000000000000005000500000000000000000"
        );
        assert_eq!(
            hex(&dnat("fd00::5".parse().unwrap(), 80)),
            "03000000fd000000000000000000000000000005fd000000000000000000000000000005005000500000000000000000"
        );
        let both = sctp(Some(((5, 5), false)), Some(((7, 9), true)));
        assert_eq!(
            hex(&both),
            format!("0700090005000500{}ff0000ff0000ff0000ff000000000000030000000200000000000000", "0".repeat(520))
        );
        let range = iprange(
            Some((("10.0.0.1".parse().unwrap(), "10.0.0.9".parse().unwrap()), false)),
            Some((("1.0.0.1".parse().unwrap(), "1.0.0.2".parse().unwrap()), true)),
        );
        assert_eq!(
            hex(&range),
            "0a0000010000000000000000000000000a000009000000000000000000000000\
             01000001000000000000000000000000010000020000000000000000000000002300000000000000"
        );
        assert_eq!(hex(&comment("x")).len(), 512);
    }

    #[test]
    fn read_back() {
        assert_eq!(comment_text(&comment("some text")), Some("some text"));
        assert_eq!(comment_text(&comment(&"é".repeat(200))).unwrap().len(), 254);
        let to = ("fd00::5".parse().unwrap(), 80);
        assert_eq!(dnat_destination(&dnat(to.0, to.1), true), Some(to));
        assert!(multiport(Ports::Either, &[(1, 2); 8], false).is_none());
    }
}
