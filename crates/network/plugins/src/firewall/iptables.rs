//! Layout `iptables`: the chains and rules of the original plugin, in table `filter`.

use std::net::IpAddr;

use outrigger_cni_sdk::{Attachment, Error};
use outrigger_netlink::nft::{Expr, MetaKey, NewRule, Rule, TableRef, Verdict, userdata, xt};

use super::{Plan, memory};
use crate::rules::iptables::{self as rules, Spec, filter};
use crate::rules::legacy::{self, Doomed, Line};
use crate::rules::{Kept, Owner, RuleSet, RuleView, network_key};

const FORWARD: &str = "FORWARD";
const CNI_FORWARD: &str = "CNI-FORWARD";
const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";
const COMMON: &str = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";

pub(super) fn add(view: &mut RuleView<'_>, plan: &Plan) -> Result<(), Error> {
    for v6 in [false, true] {
        let addresses = plan.of_version(v6);
        if addresses.is_empty() {
            continue;
        }
        let table = filter(v6);
        ensure_chains(view, table, &plan.admin_chain)?;
        for rule in addresses.iter().flat_map(|address| container_rules(*address, Some(plan.owner.borrow()))) {
            // Without looking for it: the chain has two rules for each container. One that is there twice, since a former
            // ADD was not followed by DEL, does no harm, and DEL removes both.
            view.append(table, CNI_FORWARD, &NewRule { echo: true, ..rule })?;
        }
        if let Some((bridge, isolated)) = &plan.isolation {
            isolate(view, table, plan.owner.borrow().network, bridge, *isolated)?;
        }
    }
    Ok(())
}

fn to_containers() -> NewRule {
    Spec::jump(CNI_FORWARD).comment("CNI firewall plugin rules").rule(None)
}

fn to_admin(chain: &str) -> NewRule {
    Spec::jump(chain).comment("CNI firewall plugin admin overrides").rule(None)
}

fn ensure_chains(view: &mut RuleView<'_>, table: TableRef<'static>, admin: &str) -> Result<(), Error> {
    view.ensure_chain(table, CNI_FORWARD)?;
    let fresh = view.ensure_chain(table, admin)?;
    rules::ensure_shared(view, table, FORWARD, &to_containers(), true)?;
    // The container's chain may be long. Whether a rule leads to the administrator's shows in its count of uses.
    let own = view.rules(table, admin)?.len();
    let led_to =
        !fresh && view.chain(table, admin)?.is_some_and(|chain| usize::try_from(chain.uses).unwrap_or_default() > own);
    if !led_to {
        rules::ensure_shared(view, table, CNI_FORWARD, &to_admin(admin), true)?;
    }
    Ok(())
}

/// Answers to the container are let through, and all that it sends.
fn container_rules(address: IpAddr, owner: Option<Owner<'_>>) -> [NewRule; 2] {
    let net = rules::host(address);
    let answers = xt::conntrack_state(xt::state::RELATED_ESTABLISHED, false);
    [
        Spec::verdict(Verdict::Accept).to(net).matching([answers]).rule(owner),
        Spec::verdict(Verdict::Accept).from(net).rule(owner),
    ]
}

/// The rules that keep a bridge apart from others, in their chains.
fn isolation_rules(bridge: &str, isolated: bool) -> Vec<(&'static str, Spec)> {
    let policy = if isolated { "isolated" } else { "same-bridge" };
    let comment = format!("CNI firewall plugin rules (ingressPolicy: {policy})");
    let on = |invert| Some((bridge.to_owned(), invert));
    let leaves = Spec { input: on(false), output: on(true), ..Spec::jump(STAGE_2) };
    let stays = Spec { input: on(false), output: on(false), ..Spec::verdict(Verdict::Drop) };
    let arrives = Spec { output: on(false), ..Spec::verdict(Verdict::Drop) };
    let mut list = vec![(STAGE_1, leaves.comment(&comment))];
    if isolated {
        list.push((STAGE_1, stays.comment(&comment)));
    }
    list.push((STAGE_2, arrives.comment(COMMON)));
    list
}

fn isolate(
    view: &mut RuleView<'_>,
    table: TableRef<'static>,
    network: &str,
    bridge: &str,
    isolated: bool,
) -> Result<(), Error> {
    view.ensure_chain(table, STAGE_1)?;
    view.ensure_chain(table, STAGE_2)?;
    // Before the rules of containers, which accept.
    rules::ensure_shared(view, table, FORWARD, &Spec::jump(STAGE_1).comment(COMMON).rule(None), true)?;
    for (chain, spec) in isolation_rules(bridge, isolated) {
        let rule = NewRule { user_data: network_mark(network), ..spec.rule(None) };
        rules::ensure_shared(view, table, chain, &rule, true)?;
    }
    for chain in [STAGE_1, STAGE_2] {
        let back = Spec::verdict(Verdict::Return).comment(COMMON).rule(None);
        rules::ensure_shared(view, table, chain, &back, false)?;
    }
    Ok(())
}

/// User data that says of which network a rule is.
fn network_mark(network: &str) -> Vec<u8> {
    userdata::attribute(userdata::OWNER, network_key(network).as_bytes())
}

pub(super) fn del(view: &mut RuleView<'_>, owner: Owner<'_>, addresses: &[IpAddr]) -> Result<(), Error> {
    let key = owner.key();
    if del_remembered(view, &key)? {
        return Ok(());
    }
    for v6 in [false, true] {
        let table = filter(v6);
        if !view.has_chain(table, CNI_FORWARD)? {
            continue;
        }
        let of_address: Vec<_> = addresses
            .iter()
            .filter(|address| address.is_ipv6() == v6)
            .flat_map(|address| container_rules(*address, None))
            .collect();
        let octets: Vec<Vec<u8>> = addresses.iter().map(|address| octets(*address)).collect();
        let found = view.find(table, CNI_FORWARD, |rule| {
            userdata::find_text(rule.user_data, userdata::OWNER) == Some(&key)
                || octets.iter().any(|octets| rule.mentions(octets))
        })?;
        for rule in found {
            // An address may have been given to another container meanwhile, whose rules stay.
            let doomed = match userdata::find_text(&rule.user_data, userdata::OWNER) {
                Some(found) => found == key,
                None => of_address.iter().any(|wanted| rule.does(&wanted.expressions)),
            };
            if doomed {
                view.delete(table, CNI_FORWARD, rule.handle);
            }
        }
    }
    Ok(())
}

/// Removes a container's rules by the numbers that ADD noted; true if that were all of them.
fn del_remembered(view: &mut RuleView<'_>, key: &str) -> Result<bool, Error> {
    let mut known = memory::recall(key);
    let wanted = known.len();
    // Each IP version has a table of its own, with numbers of its own.
    known.sort_unstable();
    known.dedup();
    let mut mine = Vec::new();
    for v6 in [false, true] {
        let table = filter(v6);
        for handle in &known {
            let rule = view.rule(table, CNI_FORWARD, *handle)?;
            if rule.is_some_and(|rule| userdata::find_text(&rule.user_data, userdata::OWNER) == Some(key)) {
                mine.push((table, *handle));
            }
        }
    }
    // One that is not there any more, or whose number another rule has: look through them all.
    if wanted == 0 || mine.len() < wanted {
        return Ok(false);
    }
    for (table, handle) in mine {
        view.delete(table, CNI_FORWARD, handle);
    }
    Ok(true)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub(super) fn check(view: &mut RuleView<'_>, plan: &Plan) -> Result<(), Error> {
    for v6 in [false, true] {
        let table = filter(v6);
        let addresses = plan.of_version(v6);
        if addresses.is_empty() {
            continue;
        }
        let mut wanted = vec![(FORWARD, to_containers()), (CNI_FORWARD, to_admin(&plan.admin_chain))];
        for address in addresses {
            wanted.extend(container_rules(address, None).map(|rule| (CNI_FORWARD, rule)));
        }
        let mut isolation = Vec::new();
        if let Some((bridge, isolated)) = &plan.isolation {
            isolation.push((FORWARD, Spec::jump(STAGE_1).rule(None)));
            isolation
                .extend(isolation_rules(bridge, *isolated).into_iter().map(|(chain, spec)| (chain, spec.rule(None))));
        }
        // The comments of these changed from version to version of the original.
        let plain = |expressions: &[Expr]| -> Vec<Expr> {
            expressions.iter().filter(|expr| xt::comment_text(expr).is_none()).cloned().collect()
        };
        let missing = |chain: &str| {
            Err(Error::internal(format!(
                "a rule in chain {chain} of table {table} is missing: delete the container and add it again"
            )))
        };
        for (chain, rule) in wanted {
            if !view.rules(table, chain)?.iter().any(|known| known.does(&rule.expressions)) {
                return missing(chain);
            }
        }
        for (chain, rule) in isolation {
            let wanted = plain(&rule.expressions);
            let is_it = |known: &Rule| Rule { expressions: plain(&known.expressions), ..known.clone() }.does(&wanted);
            if !view.rules(table, chain)?.iter().any(is_it) {
                return missing(chain);
            }
        }
    }
    Ok(())
}

/// Removes what the original made for these addresses through iptables-legacy. Its rules say no more of their container.
pub(super) fn del_legacy(addresses: &[IpAddr]) -> Result<(), Error> {
    if addresses.is_empty() {
        return Ok(());
    }
    let nets: Vec<String> = addresses.iter().map(|address| rules::host(*address).to_string()).collect();
    let is_one = |line: &Line| {
        let of = line.value("-s").or_else(|| line.value("-d"));
        line.chain == CNI_FORWARD
            && line.target() == Some("ACCEPT")
            && of.is_some_and(|of| nets.iter().any(|net| net == of))
    };
    legacy::remove("filter", &Doomed { chains: &|_, _| false, lines: &is_one })
}

/// Whether the original made the rules through iptables-legacy.
pub(super) fn is_in_legacy(plan: &Plan) -> Result<bool, Error> {
    for v6 in [false, true] {
        let addresses = plan.of_version(v6);
        if addresses.is_empty() {
            continue;
        }
        let Some(table) = legacy::table(v6, "filter")? else { return Ok(false) };
        let accepts = |option: &str, net: &str| {
            table.has(CNI_FORWARD, |line| line.target() == Some("ACCEPT") && line.value(option) == Some(net))
        };
        let nets = addresses.iter().map(|address| rules::host(*address).to_string());
        let keeps_apart = |bridge: &String| {
            table.has(STAGE_1, |line| line.value("-i") == Some(bridge) && line.target() == Some(STAGE_2))
                && table.has(FORWARD, |line| line.target() == Some(STAGE_1))
        };
        if !table.has(FORWARD, |line| line.target() == Some(CNI_FORWARD))
            || !nets.into_iter().all(|net| accepts("-s", &net) && accepts("-d", &net))
            || !plan.isolation.iter().all(|(bridge, _)| keeps_apart(bridge))
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The bridges that a network's rules keep apart.
pub(super) fn isolated_bridges(view: &mut RuleView<'_>, network: &str) -> Result<Vec<String>, Error> {
    let mut bridges = Vec::new();
    for v6 in [false, true] {
        for chain in [STAGE_1, STAGE_2] {
            for rule in view.rules(filter(v6), chain)?.iter().filter(|rule| is_of_network(rule, network)) {
                if let Some(bridge) = bridge_of(rule).filter(|bridge| !bridges.contains(bridge)) {
                    bridges.push(bridge);
                }
            }
        }
    }
    Ok(bridges)
}

fn is_of_network(rule: &Rule, network: &str) -> bool {
    userdata::find_text(&rule.user_data, userdata::OWNER) == Some(&network_key(network))
}

/// The interface that a rule names first.
fn bridge_of(rule: &Rule) -> Option<String> {
    let mut expressions = rule.expressions.iter();
    expressions
        .find(|expr| matches!(expr, Expr::Meta { key: MetaKey::INPUT_INTERFACE | MetaKey::OUTPUT_INTERFACE, .. }))?;
    match expressions.next()? {
        Expr::Cmp { data, .. } => {
            let name = data.split(|byte| *byte == 0).next()?;
            String::from_utf8(name.to_vec()).ok()
        }
        _ => None,
    }
}

pub(super) fn gc(rules_of: &RuleSet, network: &str, valid: &[Attachment], unused_bridges: Vec<String>) {
    let (network, valid) = Kept::new(network, valid).into_owned();
    rules_of.plan(move |view| {
        let kept = Kept::new(&network, &valid);
        for v6 in [false, true] {
            let table = filter(v6);
            for rule in view.rules(table, CNI_FORWARD)?.iter().filter(|rule| kept.is_stale_rule(rule)) {
                view.delete(table, CNI_FORWARD, rule.handle);
            }
            for chain in [STAGE_1, STAGE_2] {
                for rule in view.rules(table, chain)?.iter().filter(|rule| is_of_network(rule, &network)) {
                    if bridge_of(rule).is_some_and(|bridge| unused_bridges.contains(&bridge)) {
                        view.delete(table, chain, rule.handle);
                    }
                }
            }
        }
        Ok(())
    });
}
