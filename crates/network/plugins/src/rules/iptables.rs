//! Rules in the form in which iptables-nft writes them, and the search for such rules.

use std::net::IpAddr;

use ipnet::IpNet;
use outrigger_cni_sdk::Error;
use outrigger_netlink::nft::{
    BaseChain, Chain, CmpOp, Expr, Family, Hook, MetaKey, NewRule, PayloadBase, Register, Rule, TableRef, Verdict,
    userdata, xt,
};

use super::{Owner, RuleView};

/// Transport protocols.
pub(crate) const TCP: u8 = 6;
/// UDP.
pub(crate) const UDP: u8 = 17;
/// SCTP.
pub(crate) const SCTP: u8 = 132;

/// The name of a protocol, as iptables prints it.
pub(crate) fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        TCP => "tcp",
        UDP => "udp",
        _ => "sctp",
    }
}

/// The table `nat` of an IP version.
pub(crate) fn nat(v6: bool) -> TableRef<'static> {
    TableRef::new(Family::ip(v6), "nat")
}

/// The table `filter` of an IP version.
pub(crate) fn filter(v6: bool) -> TableRef<'static> {
    TableRef::new(Family::ip(v6), "filter")
}

/// What iptables-nft makes for its built-in chains of the two tables.
pub(crate) fn builtin(table: TableRef<'static>, chain: &str) -> BaseChain<'static> {
    let hook = match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        _ => Hook::Postrouting,
    };
    let priority = match (table.name, hook) {
        ("nat", Hook::Prerouting | Hook::Output) => -100,
        ("nat", _) => 100,
        _ => 0,
    };
    BaseChain { kind: table.name, hook, priority }
}

/// Something that must be so, or with `true` must not be so.
pub(crate) type Test<T> = Option<(T, bool)>;

/// A rule in the terms of iptables.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spec {
    /// `-i`; a `+` at the end stands for any rest.
    pub input: Test<String>,
    /// `-o`
    pub output: Test<String>,
    /// `-p`
    pub protocol: Test<u8>,
    /// `-s`
    pub source: Test<IpNet>,
    /// `-d`
    pub destination: Test<IpNet>,
    /// Matches in their order, as expressions.
    pub matches: Vec<Expr>,
    /// What happens.
    pub target: Option<Expr>,
}

impl Spec {
    /// A rule that jumps to a chain.
    pub(crate) fn jump(chain: &str) -> Self {
        Self { target: Some(Expr::jump(chain)), ..Self::default() }
    }

    /// A rule with a verdict.
    pub(crate) fn verdict(verdict: Verdict) -> Self {
        Self { target: Some(Expr::Verdict(verdict)), ..Self::default() }
    }

    /// A rule with a target.
    pub(crate) fn target(target: Expr) -> Self {
        Self { target: Some(target), ..Self::default() }
    }

    pub(crate) fn from(mut self, net: IpNet) -> Self {
        self.source = Some((net, false));
        self
    }

    pub(crate) fn to(mut self, net: IpNet) -> Self {
        self.destination = Some((net, false));
        self
    }

    pub(crate) fn not_to(mut self, net: IpNet) -> Self {
        self.destination = Some((net, true));
        self
    }

    pub(crate) fn comment(mut self, text: &str) -> Self {
        self.matches.push(xt::comment(text));
        self
    }

    pub(crate) fn matching(mut self, expressions: impl IntoIterator<Item = Expr>) -> Self {
        self.matches.extend(expressions);
        self
    }

    pub(crate) fn protocol(mut self, protocol: u8) -> Self {
        self.protocol = Some((protocol, false));
        self
    }

    /// The rule's expressions, in iptables' order: interfaces, protocol, addresses, matches, counter, target.
    pub(crate) fn rule(&self, owner: Option<Owner<'_>>) -> NewRule {
        let mut expressions = Vec::with_capacity(12);
        for (key, interface) in [(MetaKey::INPUT_INTERFACE, &self.input), (MetaKey::OUTPUT_INTERFACE, &self.output)] {
            let Some((name, invert)) = interface else { continue };
            match name.strip_suffix('+') {
                Some("") => {}
                Some(prefix) => expressions.extend(Expr::meta_is(key, prefix.as_bytes(), *invert)),
                None => expressions.extend(Expr::meta_is(key, format!("{name}\0").as_bytes(), *invert)),
            }
        }
        if let Some((protocol, invert)) = self.protocol {
            expressions.extend(Expr::meta_is(MetaKey::TRANSPORT_PROTOCOL, &[protocol], invert));
        }
        for (test, offsets) in [(self.source, (12, 8)), (self.destination, (16, 24))] {
            let Some((net, invert)) = test else { continue };
            expressions.extend(address(net, invert, offsets));
        }
        expressions.extend(self.matches.iter().cloned());
        expressions.push(Expr::counter());
        expressions.extend(self.target.clone());
        NewRule {
            expressions,
            compat: Some(self.protocol.map_or((0, false), |(protocol, invert)| (u32::from(protocol), invert))),
            user_data: owner.map(Owner::user_data).unwrap_or_default(),
            echo: false,
        }
    }
}

/// Expressions that compare an address with a network; whole bytes are compared without a mask.
fn address(net: IpNet, invert: bool, (v4, v6): (u32, u32)) -> Vec<Expr> {
    let (octets, mask, offset) = match (net.trunc(), net.netmask()) {
        (IpNet::V4(net), IpAddr::V4(mask)) => (net.addr().octets().to_vec(), mask.octets().to_vec(), v4),
        (IpNet::V6(net), IpAddr::V6(mask)) => (net.addr().octets().to_vec(), mask.octets().to_vec(), v6),
        _ => return Vec::new(),
    };
    let whole = usize::from(net.prefix_len() / 8);
    if net.prefix_len().is_multiple_of(8) {
        if whole == 0 && !invert {
            return Vec::new();
        }
        return Expr::payload_is(PayloadBase::Network, offset, &octets[..whole], invert).to_vec();
    }
    let xor = vec![0; mask.len()];
    let [load, compare] = Expr::payload_is(PayloadBase::Network, offset, &octets, invert);
    vec![load, Expr::Bitwise { sreg: Register::FIRST, dreg: Register::FIRST, mask, xor }, compare]
}

/// `--sport` or `--dport` of one protocol.
pub(crate) fn port(protocol: u8, destination: bool, (first, last): (u16, u16), invert: bool) -> Vec<Expr> {
    if protocol == SCTP {
        let range = Some(((first, last), invert));
        return vec![if destination { xt::sctp(None, range) } else { xt::sctp(range, None) }];
    }
    let offset = if destination { 2 } else { 0 };
    let load = Expr::Payload { dreg: Register::FIRST, base: PayloadBase::Transport, offset, len: 2 };
    let (from, to) = (first.to_be_bytes().to_vec(), last.to_be_bytes().to_vec());
    let compare =
        if first == last { Expr::cmp(&from, invert) } else { Expr::Range { sreg: Register::FIRST, invert, from, to } };
    vec![load, compare]
}

/// `-m mark [!] --mark value/mask`
pub(crate) fn mark(value: u32, mask: u32, invert: bool) -> Vec<Expr> {
    let one = Register::FIRST;
    let mut list = vec![Expr::Meta { key: MetaKey::MARK, dreg: one }];
    if mask != u32::MAX {
        list.push(Expr::Bitwise { sreg: one, dreg: one, mask: mask.to_ne_bytes().to_vec(), xor: vec![0; 4] });
    }
    let op = if invert { CmpOp::NotEqual } else { CmpOp::Equal };
    list.push(Expr::Cmp { sreg: one, op, data: value.to_ne_bytes().to_vec() });
    list
}

/// The single address as a network.
pub(crate) fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// Makes a rule unless the chain has one that does the same.
pub(crate) fn append_unique(
    view: &mut RuleView<'_>,
    table: TableRef<'static>,
    chain: &str,
    rule: &NewRule,
) -> Result<(), Error> {
    if view.rules(table, chain)?.iter().any(|known| known.does(&rule.expressions)) {
        return Ok(());
    }
    view.append(table, chain, rule)
}

/// Makes sure that a built-in chain has a rule, which is shared by all containers.
pub(crate) fn ensure_shared(
    view: &mut RuleView<'_>,
    table: TableRef<'static>,
    chain: &str,
    rule: &NewRule,
    first: bool,
) -> Result<(), Error> {
    if matches!(chain, "PREROUTING" | "INPUT" | "FORWARD" | "OUTPUT" | "POSTROUTING") {
        view.ensure_base_chain(table, chain, builtin(table, chain))?;
    } else {
        view.ensure_chain(table, chain)?;
    }
    if view.rules(table, chain)?.iter().any(|known| known.does(&rule.expressions)) {
        return Ok(());
    }
    // Two that come first at the same time must not both make it.
    view.guard()?;
    if first { view.insert(table, chain, rule) } else { view.append(table, chain, rule) }
}

/// The numbers of the rules in `entry` that jump to a chain.
///
/// `entry` may have thousands of rules. Whoever makes such a chain makes the rules that lead to it right afterwards, and
/// the kernel numbers all of a table in order, so they are looked for by number first; the whole list is read only where
/// that fails. The chain's count of uses says how many there are to be found.
pub(crate) fn jumps_to(
    view: &mut RuleView<'_>,
    table: TableRef<'static>,
    entry: &str,
    chain: &Chain,
) -> Result<Vec<u64>, Error> {
    let own = view.rules(table, &chain.name)?;
    let wanted = usize::try_from(chain.uses).unwrap_or_default().saturating_sub(own.len());
    let mut found = Vec::new();
    let mut next = own.iter().map(|rule| rule.handle).max().unwrap_or(chain.handle) + 1;
    while found.len() < wanted {
        match view.rule(table, entry, next)? {
            Some(rule) if rule.target_chain() == Some(&chain.name) => found.push(next),
            _ => break,
        }
        next += 1;
    }
    if found.len() < wanted {
        let rules = view.find(table, entry, |rule| rule.mentions(chain.name.as_bytes()))?;
        found = rules.iter().filter(|rule| rule.target_chain() == Some(&chain.name)).map(|rule| rule.handle).collect();
    }
    Ok(found)
}

/// The rules of a chain and those in `entry` that lead to it, each with the chain that it is in.
pub(crate) fn rules_around(
    view: &mut RuleView<'_>,
    table: TableRef<'static>,
    entry: &str,
    chain: &Chain,
) -> Result<Vec<Rule>, Error> {
    let leading = jumps_to(view, table, entry, chain)?;
    let mut found = view.rules(table, &chain.name)?.to_vec();
    for handle in leading {
        found.extend(view.rule(table, entry, handle)?);
    }
    Ok(found)
}

/// Removes an owner's rules from a chain that may have rules of several, together with those that no owner is known of, and
/// the rules in `entry` that lead there. The chain goes with its last rule.
pub(crate) fn remove_owned(
    view: &mut RuleView<'_>,
    table: TableRef<'static>,
    entry: &str,
    name: &str,
    owner: Owner<'_>,
) -> Result<(), Error> {
    let Some(chain) = view.chain(table, name)? else { return Ok(()) };
    if !view.has_chain(table, name)? {
        return Ok(());
    }
    let key = owner.key();
    let (mine, others): (Vec<Rule>, Vec<Rule>) = rules_around(view, table, entry, &chain)?
        .into_iter()
        .partition(|rule| owner_of(rule).is_none_or(|found| found == key));
    if others.is_empty() {
        return remove_chain(view, table, entry, name);
    }
    for rule in mine {
        view.delete(table, &rule.chain, rule.handle);
    }
    Ok(())
}

/// Whose a rule is, as its user data says.
pub(crate) fn owner_of(rule: &Rule) -> Option<&str> {
    userdata::find_text(&rule.user_data, userdata::OWNER)
}

/// Removes a chain and the rules in `entry` that lead to it; nothing if there is no such chain.
pub(crate) fn remove_chain(
    view: &mut RuleView<'_>,
    table: TableRef<'static>,
    entry: &str,
    name: &str,
) -> Result<(), Error> {
    let Some(chain) = view.chain(table, name)? else { return Ok(()) };
    if !view.has_chain(table, name)? {
        return Ok(());
    }
    for handle in jumps_to(view, table, entry, &chain)? {
        view.delete(table, entry, handle);
    }
    view.delete_chain(table, name);
    Ok(())
}
