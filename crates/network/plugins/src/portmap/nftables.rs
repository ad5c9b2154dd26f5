//! Layout `nftables`: maps from protocol and port, or address, protocol and port, to the container's address and port.
//!
//! What must be masqueraded on its way is found by a mark, set when a connection to the host begins, and by sets of mapped
//! containers, one for each network.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use outrigger_cni_sdk::{Attachment, Code, Error};
use outrigger_netlink::nft::{
    ADDRESS_LOCAL, CT_STATUS_DNAT, CmpOp, CtKey, DataType, Element, Expr, Family, Hook, Key, MetaKey, NatKind,
    NewElement, NewRule, NewSet, PayloadBase, Register, SetType, SetValue, TableRef, userdata,
};

use super::{Mapping, Plan};
use crate::rules::own::{self, TABLE};
use crate::rules::{Kept, Owner, RuleSet, RuleView};

/// Looks ports up.
const HOSTPORTS: &str = "hostports";
/// Masquerades mapped connections.
const HAIRPIN: &str = "hairpin";
/// Mappings with conditions, one rule each.
const CONDITIONAL: &str = "conditional";
/// What the original's back end makes, in tables of this name.
const ORIGINAL: &str = "cni_hostport";
const ORIGINAL_CHAINS: [&str; 3] = ["hostports", "hostip_hostports", "masquerading"];

/// The map that a mapping is in, and its key there.
fn place(v6: bool, mapping: &Mapping, host: Option<IpAddr>) -> (String, Key) {
    let version = if v6 { 6 } else { 4 };
    let key = Key::default();
    let (name, key) = match host {
        Some(host) => (format!("hostip{version}"), key.and_address(host)),
        None => (format!("hostport{version}"), key),
    };
    (name, key.and(&[mapping.protocol]).and_port(mapping.host_port))
}

fn destination(net: IpNet, mapping: &Mapping) -> Key {
    Key::from(net.addr()).and_port(mapping.container_port)
}

pub(super) fn add(view: &mut RuleView<'_>, plan: &Plan, net: IpNet) -> Result<(), Error> {
    let v6 = net.addr().is_ipv6();
    ensure_maps(view)?;
    let conditions = plan.conditions[usize::from(v6)].expressions();
    if conditions.is_empty() {
        for mapping in &plan.mappings {
            let Ok(host) = mapping.host_address(v6) else { continue };
            let (map, key) = place(v6, mapping, host);
            if let Some(old) = view.element(TABLE, &map, &key)? {
                release(view, plan, &map, old, mapping)?;
            }
            let value = Some(SetValue::Data(destination(net, mapping)));
            view.add_elements(TABLE, &map, &[NewElement { key, value, comment: Some(plan.owner().comment()) }]);
        }
    } else {
        if view.ensure_chain(TABLE, CONDITIONAL)? {
            view.guard()?;
            view.insert(TABLE, HOSTPORTS, &own::rule([Expr::jump(CONDITIONAL)]))?;
        }
        for mapping in &plan.mappings {
            let Ok(host) = mapping.host_address(v6) else { continue };
            view.append(TABLE, CONDITIONAL, &conditional(plan, net, mapping, host, conditions))?;
        }
    }
    if plan.snat { add_hairpin(view, plan, net) } else { Ok(()) }
}

/// Makes room for a mapping where its key is taken: by the container itself, from an ADD without DEL. What another
/// container has stays.
fn release(view: &mut RuleView<'_>, plan: &Plan, map: &str, old: Element, mapping: &Mapping) -> Result<(), Error> {
    let comment = old.comment().unwrap_or_default();
    if comment.starts_with(&plan.owner().key()) {
        view.delete_elements(TABLE, map, &[old.key]);
        return Ok(());
    }
    let who = comment.split_once(", ").map_or("another container", |(_, names)| names);
    let msg = format!("host port {} is taken ({who}): use another one, or delete that container", mapping.host_port);
    Err(Error::new(Code::TryAgain, msg))
}

/// What all containers share.
fn ensure_maps(view: &mut RuleView<'_>) -> Result<(), Error> {
    use DataType::{Ipv4, Ipv6, Port, Protocol};
    own::ensure(view)?;
    if !view.ensure_chain(TABLE, HOSTPORTS)? {
        return Ok(());
    }
    for (v6, host, name, key, value) in [
        (false, true, "hostip4", SetType::new(&[Ipv4, Protocol, Port]), SetType::new(&[Ipv4, Port])),
        (true, true, "hostip6", SetType::new(&[Ipv6, Protocol, Port]), SetType::new(&[Ipv6, Port])),
        (false, false, "hostport4", SetType::new(&[Protocol, Port]), SetType::new(&[Ipv4, Port])),
        (true, false, "hostport6", SetType::new(&[Protocol, Port]), SetType::new(&[Ipv6, Port])),
    ] {
        view.ensure_set(TABLE, &NewSet { name, key, value: Some(value), comment: None })?;
        view.append(TABLE, HOSTPORTS, &lookup_rule(v6, host, name))?;
    }
    let local = [
        Expr::FibDestinationType { dreg: Register::FIRST },
        Expr::cmp(&ADDRESS_LOCAL.to_ne_bytes(), false),
        Expr::jump(HOSTPORTS),
    ];
    for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        view.ensure_base_chain(TABLE, chain, own::nat_chain(hook))?;
        view.append(TABLE, chain, &own::rule(local.clone()))?;
    }
    view.ensure_chain(TABLE, HAIRPIN)?;
    view.ensure_base_chain(TABLE, "postrouting", own::nat_chain(Hook::Postrouting))?;
    let one = Register::FIRST;
    let mapped = [
        Expr::Ct { key: CtKey::STATUS, dreg: one },
        Expr::Bitwise { sreg: one, dreg: one, mask: CT_STATUS_DNAT.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expr::Cmp { sreg: one, op: CmpOp::NotEqual, data: vec![0; 4] },
        Expr::jump(HAIRPIN),
    ];
    view.append(TABLE, "postrouting", &own::rule(mapped))
}

/// `dnat ip to [ip daddr .] meta l4proto . th dport map @name`
fn lookup_rule(v6: bool, host: bool, name: &str) -> NewRule {
    let mut expressions = own::of_version(v6).to_vec();
    let mut words = 0;
    if host {
        expressions.push(own::load_address(v6, true, Register::FIRST));
        words = if v6 { 4 } else { 1 };
    }
    expressions.push(Expr::Meta { key: MetaKey::TRANSPORT_PROTOCOL, dreg: Register::word(words) });
    expressions.push(destination_port(Register::word(words + 1)));
    let sreg = Register::FIRST;
    expressions.push(Expr::Lookup { set: name.to_owned(), sreg, dreg: Some(Register::FIRST), invert: false });
    expressions.push(nat_to(v6));
    own::rule(expressions)
}

fn destination_port(dreg: Register) -> Expr {
    Expr::Payload { dreg, base: PayloadBase::Transport, offset: 2, len: 2 }
}

/// The address is in the first registers, the port right behind it.
fn nat_to(v6: bool) -> Expr {
    Expr::Nat {
        kind: NatKind::Destination,
        family: u32::from(own::family(v6)),
        address: Some(Register::FIRST),
        port: Some(Register::word(if v6 { 4 } else { 1 })),
    }
}

fn conditional(plan: &Plan, net: IpNet, mapping: &Mapping, host: Option<IpAddr>, conditions: &[Expr]) -> NewRule {
    let v6 = net.addr().is_ipv6();
    let mut expressions = own::of_version(v6).to_vec();
    expressions.extend(Expr::meta_is(MetaKey::TRANSPORT_PROTOCOL, &[mapping.protocol], false));
    expressions.push(destination_port(Register::FIRST));
    expressions.push(Expr::cmp(&mapping.host_port.to_be_bytes(), false));
    if let Some(host) = host {
        expressions.extend(own::in_network(host.into(), true, false));
    }
    expressions.extend_from_slice(conditions);
    let address = match net.addr() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    expressions.push(Expr::Immediate { dreg: Register::FIRST, data: address });
    let port = mapping.container_port.to_be_bytes().to_vec();
    expressions.push(Expr::Immediate { dreg: Register::word(if v6 { 4 } else { 1 }), data: port });
    expressions.push(nat_to(v6));
    NewRule { user_data: userdata::comment(&plan.owner().comment()), ..own::rule(expressions) }
}

/// The set of mapped containers of a network, or of those whose connections are all masqueraded.
fn hairpin_set(plan: &Plan, net: IpNet) -> String {
    if plan.masq_all {
        format!("mapped{}-all{}", plan.mark_bit, if net.addr().is_ipv6() { 6 } else { 4 })
    } else {
        own::network_name(&format!("mapped{}", plan.mark_bit), net)
    }
}

fn add_hairpin(view: &mut RuleView<'_>, plan: &Plan, net: IpNet) -> Result<(), Error> {
    let v6 = net.addr().is_ipv6();
    let one = Register::FIRST;
    let mark = plan.mark();
    let marking = format!("mark{}", plan.mark_bit);
    if view.ensure_chain(TABLE, &marking)? {
        view.guard()?;
        let set = [
            Expr::Meta { key: MetaKey::MARK, dreg: one },
            Expr::Bitwise {
                sreg: one,
                dreg: one,
                mask: (!mark).to_ne_bytes().to_vec(),
                xor: mark.to_ne_bytes().to_vec(),
            },
            Expr::MetaSet { key: MetaKey::MARK, sreg: one },
        ];
        view.append(TABLE, &marking, &own::rule(set))?;
        view.insert(TABLE, HOSTPORTS, &own::rule([Expr::jump(&marking)]))?;
    }
    let set = hairpin_set(plan, net);
    if view.ensure_set(
        TABLE,
        &NewSet { name: &set, key: own::address_type(v6), value: None, comment: Some("containers with host ports") },
    )? {
        view.guard()?;
        let marked = crate::rules::iptables::mark(mark, mark, false);
        let from = |source: Option<IpNet>| {
            let source = source.map(|source| own::in_network(source, false, false)).unwrap_or_default();
            own::rule(
                own::of_version(v6)
                    .into_iter()
                    .chain(marked.clone())
                    .chain(source)
                    .chain(own::in_set(v6, true, &set))
                    .chain([Expr::Masquerade]),
            )
        };
        if plan.masq_all {
            view.append(TABLE, HAIRPIN, &from(None))?;
        } else {
            view.append(TABLE, HAIRPIN, &from(Some(net)))?;
            if !v6 {
                let loopback = IpNet::new(Ipv4Addr::new(127, 0, 0, 0).into(), 8).ok();
                view.append(TABLE, HAIRPIN, &from(loopback))?;
            }
        }
    }
    let key = Key::from(net.addr());
    if let Some(old) = view.element(TABLE, &set, &key)? {
        view.delete_elements(TABLE, &set, &[old.key]);
    }
    view.add_elements(TABLE, &set, &[NewElement::new(key, plan.owner().comment())]);
    Ok(())
}

/// Removes a container's elements: those of the known mappings and addresses by key, or if that is not all that there can
/// be, by their comments.
pub(super) fn del(
    view: &mut RuleView<'_>,
    owner: Owner<'_>,
    mappings: &[Mapping],
    addresses: &[IpNet],
) -> Result<(), Error> {
    let key = owner.key();
    let is_mine = |comment: &str| comment.starts_with(&key);
    if view.has_chain(TABLE, HOSTPORTS)? {
        if mappings.is_empty() || addresses.is_empty() {
            del_by_comment(view, is_mine)?;
        } else {
            del_by_key(view, is_mine, mappings, addresses)?;
        }
        del_conditional(view, is_mine)?;
    }
    for family in [Family::Ip, Family::Ip6] {
        let table = TableRef::new(family, ORIGINAL);
        if !view.has_table(table)? {
            continue;
        }
        for chain in ORIGINAL_CHAINS {
            for rule in view.rules(table, chain)?.iter() {
                if rule.comment() == Some(owner.container_id) {
                    view.delete(table, chain, rule.handle);
                }
            }
        }
    }
    Ok(())
}

fn del_by_key(
    view: &mut RuleView<'_>,
    doomed: impl Fn(&str) -> bool,
    mappings: &[Mapping],
    addresses: &[IpNet],
) -> Result<(), Error> {
    let is_doomed = |element: &Element| element.comment().is_some_and(&doomed);
    let mut keys: Vec<(String, Key)> = Vec::new();
    for v6 in [false, true] {
        for mapping in mappings {
            let Ok(host) = mapping.host_address(v6) else { continue };
            keys.push(place(v6, mapping, host));
        }
    }
    for set in view.sets(TABLE)?.into_iter().filter(|set| set.starts_with("mapped")) {
        let of_set = |net: &&IpNet| {
            set.ends_with(if net.addr().is_ipv6() { "-all6" } else { "-all4" })
                || set.ends_with(&own::network_name("", **net))
        };
        keys.extend(addresses.iter().filter(of_set).map(|net| (set.clone(), Key::from(net.addr()))));
    }
    keys.sort();
    keys.dedup();
    for (set, key) in keys {
        if let Some(element) = view.element(TABLE, &set, &key)?
            && is_doomed(&element)
        {
            view.delete_elements(TABLE, &set, &[element.key]);
        }
    }
    Ok(())
}

fn del_by_comment(view: &mut RuleView<'_>, doomed: impl Fn(&str) -> bool) -> Result<(), Error> {
    for set in view.sets(TABLE)? {
        if ["hostip", "hostport", "mapped"].iter().any(|prefix| set.starts_with(prefix)) {
            let elements = view.elements(TABLE, &set)?.into_iter();
            let keys: Vec<_> =
                elements.filter(|element| element.comment().is_some_and(&doomed)).map(|element| element.key).collect();
            view.delete_elements(TABLE, &set, &keys);
        }
    }
    Ok(())
}

fn del_conditional(view: &mut RuleView<'_>, doomed: impl Fn(&str) -> bool) -> Result<(), Error> {
    if view.has_chain(TABLE, CONDITIONAL)? {
        for rule in view.rules(TABLE, CONDITIONAL)?.iter() {
            if rule.comment().is_some_and(&doomed) {
                view.delete(TABLE, CONDITIONAL, rule.handle);
            }
        }
    }
    Ok(())
}

pub(super) fn check(view: &mut RuleView<'_>, plan: &Plan, net: IpNet) -> Result<(), Error> {
    let v6 = net.addr().is_ipv6();
    let key = plan.owner().key();
    let missing = |mapping: &Mapping| {
        Err(Error::internal(format!(
            "the rule that maps host port {} to {} is missing: delete the container and add it again",
            mapping.host_port,
            net.addr()
        )))
    };
    if has_original(view, plan, v6)? {
        return Ok(());
    }
    let conditions = plan.conditions[usize::from(v6)].expressions();
    for mapping in &plan.mappings {
        let Ok(host) = mapping.host_address(v6) else { continue };
        let there = if conditions.is_empty() {
            let (map, place) = place(v6, mapping, host);
            let element = view.element(TABLE, &map, &place)?;
            element.is_some_and(|element| {
                element.value == Some(SetValue::Data(destination(net, mapping)))
                    && element.comment().is_some_and(|comment| comment.starts_with(&key))
            })
        } else {
            let wanted = conditional(plan, net, mapping, host, conditions);
            view.rules(TABLE, CONDITIONAL)?.iter().any(|rule| rule.does(&wanted.expressions))
        };
        if !there {
            return missing(mapping);
        }
    }
    if plan.snat && view.element(TABLE, &hairpin_set(plan, net), &Key::from(net.addr()))?.is_none() {
        return Err(Error::internal(format!(
            "the rule that masquerades mapped connections to {} is missing: delete the container and add it again",
            net.addr()
        )));
    }
    Ok(())
}

/// Whether the original made the container's rules, as many as there are mappings.
fn has_original(view: &mut RuleView<'_>, plan: &Plan, v6: bool) -> Result<bool, Error> {
    let table = TableRef::new(Family::ip(v6), ORIGINAL);
    if !view.has_table(table)? {
        return Ok(false);
    }
    let wanted = plan.mappings.iter().filter(|mapping| mapping.host_address(v6).is_ok()).count();
    let rules = view.rules(table, ORIGINAL_CHAINS[0])?;
    let mine = rules.iter().filter(|rule| rule.comment() == Some(&plan.container_id));
    Ok(wanted > 0 && mine.count() >= wanted)
}

pub(super) fn gc(rules: &RuleSet, network: &str, valid: &[Attachment]) {
    let (network, valid) = Kept::new(network, valid).into_owned();
    rules.plan(move |view| {
        let kept = Kept::new(&network, &valid);
        if !view.has_chain(TABLE, HOSTPORTS)? {
            return Ok(());
        }
        del_by_comment(view, |comment| kept.is_stale(comment))?;
        del_conditional(view, |comment| kept.is_stale(comment))
    });
}
