//! Masquerade: what a container sends outside its networks gets the address of the host.
//!
//! Layout `iptables`: table `nat`, one chain for each container that accepts what goes to its networks and masquerades
//! the rest, and a rule in POSTROUTING that sends what comes from its address there. Layout `nftables`: one set of
//! addresses for each network, and one rule for each set.

use std::collections::BTreeSet;

use ipnet::IpNet;
use outrigger_cni_sdk::{Attachment, Error, IpConfig};
use outrigger_netlink::nft::{
    Element, Expr, Family, Handle, Hook, Key, NewElement, NewSet, Rule, TableRef, Verdict, xt,
};

use super::iptables::{self, Spec, nat};
use super::legacy::{self, Doomed, Line};
use super::own::{self, TABLE};
use super::{Backend, Kept, Owner, RuleSet, RuleView, chain_name};

const POSTROUTING: &str = "POSTROUTING";
/// Our chain in the own table.
const CHAIN: &str = "masquerade";
const SET: &str = "masq";

/// What the original's nftables back end makes.
const ORIGINAL_TABLE: TableRef<'static> = TableRef::new(Family::Inet, "cni_plugins_masquerade");
const ORIGINAL_CHAIN: &str = "masq_checks";

/// Multicast stays as it is: containers of a network talk to each other by it.
fn multicast(v6: bool) -> IpNet {
    use std::net::{Ipv4Addr, Ipv6Addr};
    let net = if v6 {
        IpNet::new(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8)
    } else {
        IpNet::new(Ipv4Addr::new(224, 0, 0, 0).into(), 4)
    };
    net.unwrap_or_else(|_| IpNet::from(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
}

fn is_v6(net: &IpNet) -> bool {
    net.addr().is_ipv6()
}

fn nets(ips: &[IpConfig]) -> Vec<IpNet> {
    ips.iter().map(|ip| ip.address).collect()
}

/// Plans the rules for a container's addresses. The key is the one that names the back end, `ipMasqBackend`.
pub fn add(rules: &RuleSet, backend: Option<&str>, owner: Owner<'_>, ips: &[IpConfig]) -> Result<(), Error> {
    let backend = Backend::parse(backend, "ipMasqBackend")?;
    let nets = nets(ips);
    let owner = Saved::new(owner);
    rules.plan(move |view| match backend.unwrap_or_else(|| view.default_backend()) {
        Backend::Iptables => add_iptables(view, owner.borrow(), &nets),
        Backend::Nftables => add_own(view, owner.borrow(), &nets),
    });
    Ok(())
}

/// Plans the removal of a container's rules in both layouts, and of those that the originals made. The addresses make it
/// faster where they are known; they may be missing.
pub fn del(rules: &RuleSet, owner: Owner<'_>, ips: &[IpConfig]) {
    let nets = nets(ips);
    let legacy = chain_name("", owner.network, owner.container_id);
    rules
        .afterwards(move |_| legacy::remove("nat", &Doomed { chains: &|_, chain| chain == legacy, lines: &|_| false }));
    let owner = Saved::new(owner);
    rules.plan(move |view| {
        let owner = owner.borrow();
        let chain = chain_name("", owner.network, owner.container_id);
        for v6 in [false, true] {
            del_iptables(view, nat(v6), &chain, owner)?;
        }
        let key = owner.key();
        del_own(view, &nets, |comment| comment.starts_with(&key))?;
        del_original(view, |comment| comment.starts_with(&key))
    });
}

/// Checks that the rules for a container's addresses are there, in either layout: the container may be older than the
/// choice of the back end.
pub fn check(handle: &Handle, backend: Option<&str>, owner: Owner<'_>, ips: &[IpConfig]) -> Result<(), Error> {
    let backend = Backend::parse(backend, "ipMasqBackend")?.unwrap_or(Backend::Iptables);
    let mut view = RuleView::new(handle);
    for ip in ips {
        let net = ip.address;
        let mut there = false;
        for layout in [backend, backend.other()] {
            there = there
                || match layout {
                    Backend::Iptables => is_in_iptables(&mut view, net, owner)?,
                    Backend::Nftables => is_in_own(&mut view, net, owner)?,
                };
        }
        if !there && !is_in_legacy(net, owner)? {
            return Err(Error::internal(format!(
                "the rules that masquerade {} in layout {backend} are missing: delete the container and add it again",
                net.addr()
            )));
        }
    }
    Ok(())
}

fn is_in_iptables(view: &mut RuleView<'_>, net: IpNet, owner: Owner<'_>) -> Result<bool, Error> {
    let table = nat(is_v6(&net));
    let name = chain_name("", owner.network, owner.container_id);
    let Some(chain) = view.chain(table, &name)? else { return Ok(false) };
    let masquerades = |rule: &Rule| rule.expressions.iter().any(is_masquerade);
    Ok(view.rules(table, &name)?.iter().any(masquerades) && jump_is_there(view, &chain, net, owner)?)
}

fn is_in_own(view: &mut RuleView<'_>, net: IpNet, owner: Owner<'_>) -> Result<bool, Error> {
    let key = owner.key();
    let element = view.element(TABLE, &own::network_name(SET, net), &Key::from(net.addr()))?;
    let mine = element.is_some_and(|element| element.comment().is_some_and(|comment| comment.starts_with(&key)));
    Ok(mine || has_original(view, &key)?)
}

/// Whether the original made the rules through iptables-legacy.
fn is_in_legacy(net: IpNet, owner: Owner<'_>) -> Result<bool, Error> {
    let Some(table) = legacy::table(is_v6(&net), "nat")? else { return Ok(false) };
    let chain = chain_name("", owner.network, owner.container_id);
    let source = iptables::host(net.addr()).to_string();
    let leads = |line: &Line| line.target() == Some(&chain) && line.value("-s") == Some(&source);
    Ok(table.has(POSTROUTING, leads) && table.has(&chain, |line| line.target() == Some("MASQUERADE")))
}

/// Plans the removal of what belongs to a network and to none of the attachments, in both layouts.
pub fn gc(rules: &RuleSet, network: &str, valid: &[Attachment]) {
    let (network, valid) = Kept::new(network, valid).into_owned();
    rules.afterwards({
        let (network, valid) = (network.clone(), valid.clone());
        move |_| legacy::remove_stale("nat", POSTROUTING, "CNI-", "", &Kept::new(&network, &valid))
    });
    rules.plan(move |view| {
        let kept = Kept::new(&network, &valid);
        for v6 in [false, true] {
            gc_iptables(view, v6, &kept)?;
        }
        del_own(view, &[], |comment| kept.is_stale(comment))?;
        del_original(view, |comment| kept.is_stale(comment))
    });
}

fn add_iptables(view: &mut RuleView<'_>, owner: Owner<'_>, nets: &[IpNet]) -> Result<(), Error> {
    let name = chain_name("", owner.network, owner.container_id);
    let comment = format!("name: \"{}\" id: \"{}\"", owner.network, owner.container_id);
    for v6 in [false, true] {
        let nets: Vec<_> = nets.iter().filter(|net| is_v6(net) == v6).collect();
        if nets.is_empty() {
            continue;
        }
        let table = nat(v6);
        // A chain that exists is one of a second interface of the same container, or was left by a crash.
        let fresh = view.ensure_chain(table, &name)?;
        view.ensure_base_chain(table, POSTROUTING, iptables::builtin(table, POSTROUTING))?;
        let accept = nets.iter().map(|net| Spec::verdict(Verdict::Accept).to(**net));
        let masquerade = Spec::target(xt::masquerade(v6)).not_to(multicast(v6));
        let jumps = nets.iter().map(|net| Spec::jump(&name).from(iptables::host(net.addr())));
        for (chain, spec) in
            accept.chain([masquerade]).map(|spec| (name.as_str(), spec)).chain(jumps.map(|spec| (POSTROUTING, spec)))
        {
            let rule = spec.comment(&comment).rule(Some(owner));
            if fresh {
                view.append(table, chain, &rule)?;
            } else {
                iptables::append_unique(view, table, chain, &rule)?;
            }
        }
    }
    Ok(())
}

/// The chain is of network and container, so that a second interface of the same container shares it; then only the rules
/// that lead there from this interface go.
fn del_iptables(view: &mut RuleView<'_>, table: TableRef<'static>, name: &str, owner: Owner<'_>) -> Result<(), Error> {
    let Some(chain) = view.chain(table, name)? else { return Ok(()) };
    let key = owner.key();
    let mut mine = Vec::new();
    let mut others = false;
    for handle in iptables::jumps_to(view, table, POSTROUTING, &chain)? {
        let Some(rule) = view.rule(table, POSTROUTING, handle)? else { continue };
        match iptables::owner_of(&rule) {
            Some(found) if found != key => others = true,
            _ => mine.push(handle),
        }
    }
    for handle in mine {
        view.delete(table, POSTROUTING, handle);
    }
    if !others {
        view.delete_chain(table, name);
    }
    Ok(())
}

fn is_masquerade(expr: &Expr) -> bool {
    matches!(expr, Expr::Target(target) if target.name == "MASQUERADE") || *expr == Expr::Masquerade
}

fn jump_is_there(
    view: &mut RuleView<'_>,
    chain: &outrigger_netlink::nft::Chain,
    net: IpNet,
    owner: Owner<'_>,
) -> Result<bool, Error> {
    let table = nat(is_v6(&net));
    let comment = format!("name: \"{}\" id: \"{}\"", owner.network, owner.container_id);
    let wanted = Spec::jump(&chain.name).from(iptables::host(net.addr())).comment(&comment).rule(None);
    for handle in iptables::jumps_to(view, table, POSTROUTING, chain)? {
        if view.rule(table, POSTROUTING, handle)?.is_some_and(|rule| rule.does(&wanted.expressions)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn gc_iptables(view: &mut RuleView<'_>, v6: bool, kept: &Kept<'_>) -> Result<(), Error> {
    let table = nat(v6);
    let mut doomed = BTreeSet::new();
    let mut stale = Vec::new();
    let mut needed = BTreeSet::new();
    for rule in view.table_rules(table)? {
        let leads = rule.chain == POSTROUTING;
        let chain = if leads { rule.target_chain() } else { Some(rule.chain.as_str()) };
        let Some(chain) = chain.filter(|chain| chain.starts_with("CNI-")).map(str::to_owned) else { continue };
        // The comment is on the jump and on the chain's own rules, so a chain without a jump is found too.
        if rule.comment().is_some_and(|comment| kept.is_stale_comment("", comment)) {
            doomed.insert(chain);
        } else if leads && kept.is_stale_rule(&rule) {
            stale.push((chain, rule.handle));
        } else if leads {
            needed.insert(chain);
        }
    }
    // Interfaces of one container share a chain.
    for (chain, handle) in stale {
        if !needed.contains(&chain) {
            doomed.insert(chain);
        } else if !doomed.contains(&chain) {
            view.delete(table, POSTROUTING, handle);
        }
    }
    for chain in doomed {
        iptables::remove_chain(view, table, POSTROUTING, &chain)?;
    }
    Ok(())
}

fn add_own(view: &mut RuleView<'_>, owner: Owner<'_>, nets: &[IpNet]) -> Result<(), Error> {
    own::ensure(view)?;
    if view.ensure_chain(TABLE, CHAIN)? {
        for v6 in [false, true] {
            let skip = own::of_version(v6).into_iter().chain(own::in_network(multicast(v6), true, false));
            view.append(TABLE, CHAIN, &own::rule(skip.chain([Expr::Verdict(Verdict::Return)])))?;
        }
        view.ensure_base_chain(TABLE, "postrouting", own::nat_chain(Hook::Postrouting))?;
        view.append(TABLE, "postrouting", &own::rule([Expr::jump(CHAIN)]))?;
    }
    for net in nets {
        let v6 = is_v6(net);
        let set = own::network_name(SET, *net);
        let comment = format!("addresses in {} that are masqueraded outside it", net.trunc());
        let made = NewSet { name: &set, key: own::address_type(v6), value: None, comment: Some(&comment) };
        if view.ensure_set(TABLE, &made)? {
            // Two that come first at the same time must not both make the rule.
            view.guard()?;
            let rule = own::of_version(v6)
                .into_iter()
                .chain(own::in_set(v6, false, &set))
                .chain(own::in_network(*net, true, true))
                .chain([Expr::Masquerade]);
            view.append(TABLE, CHAIN, &own::rule(rule))?;
        }
        let key = Key::from(net.addr());
        // An address that was given again: the element of its former owner would keep its comment.
        if let Some(old) = view.element(TABLE, &set, &key)?
            && !old.comment().is_some_and(|comment| comment.starts_with(&owner.key()))
        {
            view.delete_elements(TABLE, &set, std::slice::from_ref(&key));
        }
        view.add_elements(TABLE, &set, &[NewElement::new(key, owner.comment())]);
    }
    Ok(())
}

/// Removes elements by their comments: those of the addresses if there are any, else all.
fn del_own(view: &mut RuleView<'_>, nets: &[IpNet], doomed: impl Fn(&str) -> bool) -> Result<(), Error> {
    if !view.has_chain(TABLE, CHAIN)? {
        return Ok(());
    }
    let is_doomed = |element: &Element| element.comment().is_some_and(&doomed);
    if !nets.is_empty() {
        for net in nets {
            let set = own::network_name(SET, *net);
            if let Some(element) = view.element(TABLE, &set, &Key::from(net.addr()))?
                && is_doomed(&element)
            {
                view.delete_elements(TABLE, &set, &[element.key]);
            }
        }
        return Ok(());
    }
    for set in view.sets(TABLE)? {
        if set.starts_with("masq-") {
            let keys: Vec<_> =
                view.elements(TABLE, &set)?.into_iter().filter(is_doomed).map(|element| element.key).collect();
            view.delete_elements(TABLE, &set, &keys);
        }
    }
    Ok(())
}

fn del_original(view: &mut RuleView<'_>, doomed: impl Fn(&str) -> bool) -> Result<(), Error> {
    if !view.has_chain(ORIGINAL_TABLE, ORIGINAL_CHAIN)? {
        return Ok(());
    }
    for rule in view.rules(ORIGINAL_TABLE, ORIGINAL_CHAIN)?.iter() {
        if rule.comment().is_some_and(&doomed) {
            view.delete(ORIGINAL_TABLE, ORIGINAL_CHAIN, rule.handle);
        }
    }
    Ok(())
}

fn has_original(view: &mut RuleView<'_>, key: &str) -> Result<bool, Error> {
    Ok(view.has_chain(ORIGINAL_TABLE, ORIGINAL_CHAIN)?
        && view
            .rules(ORIGINAL_TABLE, ORIGINAL_CHAIN)?
            .iter()
            .any(|rule| rule.comment().is_some_and(|comment| comment.starts_with(key))))
}

/// An owner that a planner keeps.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    network: String,
    container_id: String,
    ifname: String,
}

impl Saved {
    pub(crate) fn new(owner: Owner<'_>) -> Self {
        Self {
            network: owner.network.to_owned(),
            container_id: owner.container_id.to_owned(),
            ifname: owner.ifname.to_owned(),
        }
    }

    pub(crate) fn borrow(&self) -> Owner<'_> {
        Owner { network: &self.network, container_id: &self.container_id, ifname: &self.ifname }
    }
}
