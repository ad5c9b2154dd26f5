//! Layout `nftables`: sets of addresses that are let through, and maps of bridges that are kept apart.

use std::net::IpAddr;

use outrigger_cni_sdk::{Attachment, Error};
use outrigger_netlink::nft::{
    BaseChain, CT_ESTABLISHED_RELATED, CmpOp, CtKey, DataType, Element, Expr, Hook, Key, MetaKey, NewElement, NewSet,
    Register, SetType, SetValue, Verdict,
};

use super::Plan;
use crate::rules::own::{self, TABLE};
use crate::rules::{Kept, Owner, RuleSet, RuleView};

const FORWARD: &str = "forward";
const BRIDGES: &str = "bridges";
/// Pairs of a bridge with itself: what happens to packets that stay on it.
const SELF: &str = "within-bridge";

fn set_of(v6: bool) -> &'static str {
    if v6 { "forwarded6" } else { "forwarded4" }
}

/// A name of an interface as a key.
fn interface(key: Key, name: &str) -> Key {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    key.and(&bytes)
}

pub(super) fn add(view: &mut RuleView<'_>, plan: &Plan) -> Result<(), Error> {
    ensure_sets(view)?;
    if view.ensure_chain(TABLE, &plan.admin_chain)? {
        // Before the rules of containers, which accept, and after those that keep networks apart.
        view.guard()?;
        view.append(TABLE, "forward-admin", &own::rule([Expr::jump(&plan.admin_chain)]))?;
    }
    let owner = plan.owner.borrow();
    for address in &plan.addresses {
        let set = set_of(address.is_ipv6());
        let key = Key::from(*address);
        if view.element(TABLE, set, &key)?.is_some() {
            view.delete_elements(TABLE, set, std::slice::from_ref(&key));
        }
        view.add_elements(TABLE, set, &[NewElement::new(key, owner.comment())]);
    }
    if let Some((bridge, isolated)) = &plan.isolation {
        let (key, pair) = isolation_keys(bridge);
        if view.element(TABLE, BRIDGES, &key)?.is_none() {
            view.add_elements(TABLE, BRIDGES, &[NewElement::new(key, owner.network)]);
        }
        let verdict = if *isolated { Verdict::Drop } else { Verdict::Return };
        let value = Some(SetValue::Verdict(verdict));
        match view.element(TABLE, SELF, &pair)? {
            Some(old) if old.value == value => return Ok(()),
            Some(old) => view.delete_elements(TABLE, SELF, &[old.key]),
            None => {}
        }
        let comment = Some(owner.network.to_owned());
        view.add_elements(TABLE, SELF, &[NewElement { key: pair, value, comment }]);
    }
    Ok(())
}

fn isolation_keys(bridge: &str) -> (Key, Key) {
    let key = interface(Key::default(), bridge);
    (key.clone(), interface(key, bridge))
}

fn ensure_sets(view: &mut RuleView<'_>) -> Result<(), Error> {
    use DataType::InterfaceName;
    own::ensure(view)?;
    if !view.ensure_chain(TABLE, "forward-admin")? {
        return Ok(());
    }
    view.ensure_chain(TABLE, "forward-isolation")?;
    view.ensure_base_chain(TABLE, FORWARD, BaseChain { kind: "filter", hook: Hook::Forward, priority: 0 })?;
    let names = SetType::new(&[InterfaceName]);
    let pairs = SetType::new(&[InterfaceName, InterfaceName]);
    view.ensure_set(TABLE, &NewSet { name: BRIDGES, key: names, value: None, comment: None })?;
    let verdict = Some(SetType::new(&[DataType::Verdict]));
    view.ensure_set(TABLE, &NewSet { name: SELF, key: pairs, value: verdict, comment: None })?;
    let one = Register::FIRST;
    let load = |key, dreg| Expr::Meta { key, dreg };
    let in_bridges =
        |key| [load(key, one), Expr::Lookup { set: BRIDGES.to_owned(), sreg: one, dreg: None, invert: false }];
    let within = [
        load(MetaKey::INPUT_INTERFACE, one),
        load(MetaKey::OUTPUT_INTERFACE, Register::word(4)),
        Expr::Lookup { set: SELF.to_owned(), sreg: one, dreg: Some(Register(0)), invert: false },
    ];
    let between = in_bridges(MetaKey::INPUT_INTERFACE)
        .into_iter()
        .chain(in_bridges(MetaKey::OUTPUT_INTERFACE))
        .chain([Expr::Verdict(Verdict::Drop)]);
    view.append(TABLE, "forward-isolation", &own::rule(within))?;
    view.append(TABLE, "forward-isolation", &own::rule(between))?;
    view.append(TABLE, FORWARD, &own::rule([Expr::jump("forward-isolation")]))?;
    view.append(TABLE, FORWARD, &own::rule([Expr::jump("forward-admin")]))?;
    for v6 in [false, true] {
        let set = set_of(v6);
        view.ensure_set(TABLE, &NewSet { name: set, key: own::address_type(v6), value: None, comment: None })?;
        let answers = [
            Expr::Ct { key: CtKey::STATE, dreg: one },
            Expr::Bitwise {
                sreg: one,
                dreg: one,
                mask: CT_ESTABLISHED_RELATED.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            },
            Expr::Cmp { sreg: one, op: CmpOp::NotEqual, data: vec![0; 4] },
        ];
        let accept = [Expr::Verdict(Verdict::Accept)];
        let of_version = || own::of_version(v6).into_iter();
        let to = of_version().chain(own::in_set(v6, true, set)).chain(answers).chain(accept.clone());
        view.append(TABLE, FORWARD, &own::rule(to))?;
        let from = of_version().chain(own::in_set(v6, false, set)).chain(accept);
        view.append(TABLE, FORWARD, &own::rule(from))?;
    }
    Ok(())
}

pub(super) fn del(view: &mut RuleView<'_>, owner: Owner<'_>, addresses: &[IpAddr]) -> Result<(), Error> {
    if !view.has_chain(TABLE, FORWARD)? {
        return Ok(());
    }
    let key = owner.key();
    let is_mine = |element: &Element| element.comment().is_some_and(|comment| comment.starts_with(&key));
    if addresses.is_empty() {
        return remove(view, is_mine);
    }
    for address in addresses {
        let set = set_of(address.is_ipv6());
        if let Some(element) = view.element(TABLE, set, &Key::from(*address))?.filter(is_mine) {
            view.delete_elements(TABLE, set, &[element.key]);
        }
    }
    Ok(())
}

fn remove(view: &mut RuleView<'_>, doomed: impl Fn(&Element) -> bool) -> Result<(), Error> {
    for v6 in [false, true] {
        let elements = view.elements(TABLE, set_of(v6))?;
        let keys: Vec<_> = elements.into_iter().filter(&doomed).map(|element| element.key).collect();
        view.delete_elements(TABLE, set_of(v6), &keys);
    }
    Ok(())
}

pub(super) fn check(view: &mut RuleView<'_>, plan: &Plan) -> Result<(), Error> {
    let key = plan.owner.borrow().key();
    let missing = |what: String| {
        Err(Error::internal(format!("{what} in table {TABLE} is missing: delete the container and add it again")))
    };
    for address in &plan.addresses {
        let element = view.element(TABLE, set_of(address.is_ipv6()), &Key::from(*address))?;
        if !element.is_some_and(|element| element.comment().is_some_and(|comment| comment.starts_with(&key))) {
            return missing(format!("address {address}"));
        }
    }
    if let Some((bridge, _)) = &plan.isolation {
        let (name, pair) = isolation_keys(bridge);
        if view.element(TABLE, BRIDGES, &name)?.is_none() || view.element(TABLE, SELF, &pair)?.is_none() {
            return missing(format!("bridge {bridge}"));
        }
    }
    Ok(())
}

/// The bridges that a network keeps apart.
pub(super) fn isolated_bridges(view: &mut RuleView<'_>, network: &str) -> Result<Vec<String>, Error> {
    if !view.has_chain(TABLE, FORWARD)? {
        return Ok(Vec::new());
    }
    let mut bridges = Vec::new();
    for set in [BRIDGES, SELF] {
        bridges.extend(view.elements(TABLE, set)?.iter().filter_map(|element| bridge_of(element, network)));
    }
    Ok(bridges)
}

/// The bridge whose isolation a network asked for with an element.
fn bridge_of(element: &Element, network: &str) -> Option<String> {
    let name = element.key.bytes().split(|byte| *byte == 0).next().filter(|_| element.comment() == Some(network))?;
    String::from_utf8(name.to_vec()).ok()
}

pub(super) fn gc(rules: &RuleSet, network: &str, valid: &[Attachment], unused_bridges: Vec<String>) {
    let (network, valid) = Kept::new(network, valid).into_owned();
    rules.plan(move |view| {
        let kept = Kept::new(&network, &valid);
        if !view.has_chain(TABLE, FORWARD)? {
            return Ok(());
        }
        remove(view, |element| element.comment().is_some_and(|comment| kept.is_stale(comment)))?;
        if unused_bridges.is_empty() {
            return Ok(());
        }
        for set in [BRIDGES, SELF] {
            let is_unused =
                |element: &Element| bridge_of(element, &network).is_some_and(|bridge| unused_bridges.contains(&bridge));
            let keys: Vec<_> =
                view.elements(TABLE, set)?.into_iter().filter(is_unused).map(|element| element.key).collect();
            view.delete_elements(TABLE, set, &keys);
        }
        Ok(())
    });
}
