//! The own table of the `nftables` layout.

use std::net::IpAddr;

use ipnet::IpNet;
use outrigger_cni_sdk::Error;
use outrigger_netlink::nft::{
    BaseChain, CmpOp, DataType, Expr, Family, Hook, MetaKey, NewRule, PayloadBase, Register, SetType, TableRef,
};

use super::RuleView;

/// The table.
pub(crate) const TABLE: TableRef<'static> = TableRef::new(Family::Inet, "outrigger_cni");

const COMMENT: &str = "Outrigger's CNI plugins";

/// One address of a version as a key.
pub(crate) fn address_type(v6: bool) -> SetType {
    SetType::new(if v6 { &[DataType::Ipv6] } else { &[DataType::Ipv4] })
}

/// Family number in `meta nfproto` and of NAT.
pub(crate) fn family(v6: bool) -> u8 {
    Family::ip(v6) as u8
}

/// `srcnat` and `dstnat` hooks.
pub(crate) fn nat_chain(hook: Hook) -> BaseChain<'static> {
    BaseChain { kind: "nat", hook, priority: if hook == Hook::Postrouting { 100 } else { -100 } }
}

/// Makes the table unless it is there.
pub(crate) fn ensure(view: &mut RuleView<'_>) -> Result<(), Error> {
    view.ensure_table(TABLE, Some(COMMENT)).map(drop)
}

/// A rule of plain expressions.
pub(crate) fn rule(expressions: impl IntoIterator<Item = Expr>) -> NewRule {
    NewRule { expressions: expressions.into_iter().collect(), ..NewRule::default() }
}

/// `meta nfproto ipv4` or `ipv6`.
pub(crate) fn of_version(v6: bool) -> [Expr; 2] {
    Expr::meta_is(MetaKey::NETWORK_PROTOCOL, &[family(v6)], false)
}

/// `ip saddr` or `ip daddr` into a register.
pub(crate) fn load_address(v6: bool, destination: bool, dreg: Register) -> Expr {
    let (offset, len) = match (v6, destination) {
        (false, false) => (12, 4),
        (false, true) => (16, 4),
        (true, false) => (8, 16),
        (true, true) => (24, 16),
    };
    Expr::Payload { dreg, base: PayloadBase::Network, offset, len }
}

/// `ip saddr` or `ip daddr`, in a network or with `invert` not in it.
pub(crate) fn in_network(net: IpNet, destination: bool, invert: bool) -> Vec<Expr> {
    let net = net.trunc();
    let v6 = net.addr().is_ipv6();
    let (octets, mask) = match (net.addr(), net.netmask()) {
        (IpAddr::V4(address), IpAddr::V4(mask)) => (address.octets().to_vec(), mask.octets().to_vec()),
        (IpAddr::V6(address), IpAddr::V6(mask)) => (address.octets().to_vec(), mask.octets().to_vec()),
        _ => return Vec::new(),
    };
    let one = Register::FIRST;
    let mut list = vec![load_address(v6, destination, one)];
    if net.prefix_len() < net.max_prefix_len() {
        let xor = vec![0; mask.len()];
        list.push(Expr::Bitwise { sreg: one, dreg: one, mask, xor });
    }
    let op = if invert { CmpOp::NotEqual } else { CmpOp::Equal };
    list.push(Expr::Cmp { sreg: one, op, data: octets });
    list
}

/// `ip saddr @set` or `ip daddr @set`.
pub(crate) fn in_set(v6: bool, destination: bool, set: &str) -> [Expr; 2] {
    let one = Register::FIRST;
    [load_address(v6, destination, one), Expr::Lookup { set: set.to_owned(), sreg: one, dreg: None, invert: false }]
}

/// A network as part of a set's name, in characters that nft takes.
pub(crate) fn network_name(prefix: &str, net: IpNet) -> String {
    let net = net.trunc();
    format!("{prefix}-{}-{}", net.addr().to_string().replace(':', "_"), net.prefix_len())
}
