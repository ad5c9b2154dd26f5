//! Layout `iptables`: the chains and rules of the original plugin.
//!
//! PREROUTING and OUTPUT send what goes to an address of the host to `CNI-HOSTPORT-DNAT`; there, one rule for each
//! protocol and 15 ports sends it to the container's chain, which rewrites the destination. What must be masqueraded is
//! marked before, in `CNI-HOSTPORT-SETMARK`, and masqueraded in `CNI-HOSTPORT-MASQ`, which is first in POSTROUTING.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ipnet::IpNet;
use outrigger_cni_sdk::{Attachment, Error};
use outrigger_netlink::nft::xt::{self, AddressTypes, Ports, address_type};
use outrigger_netlink::nft::{NewRule, Rule, TableRef};

use super::{Mapping, Plan};
use crate::rules::iptables::{self as rules, Spec, nat};
use crate::rules::{Kept, Owner, RuleSet, RuleView, chain_name, legacy};

const DNAT: &str = "CNI-HOSTPORT-DNAT";
const SETMARK: &str = "CNI-HOSTPORT-SETMARK";
const MASQ: &str = "CNI-HOSTPORT-MASQ";
/// Made by versions of the original before 0.8.
const OLD_SNAT: &str = "CNI-HOSTPORT-SNAT";
const POSTROUTING: &str = "POSTROUTING";
/// How many ports one multiport match holds.
const PORTS: usize = 15;

pub(super) fn add(view: &mut RuleView<'_>, plan: &Plan, net: IpNet) -> Result<(), Error> {
    let v6 = net.addr().is_ipv6();
    let table = nat(v6);
    if plan.snat {
        match &plan.external_chain {
            None => ensure_masquerade(view, table, plan.mark())?,
            Some(chain) if !view.has_chain(table, chain)? => {
                return Err(Error::config(format!(
                    "externalSetMarkChain: there is no chain {chain} in table {table}: start what makes it first"
                )));
            }
            Some(_) => {}
        }
    }
    view.ensure_chain(table, DNAT)?;
    let local = AddressTypes { destination: address_type::LOCAL, ..AddressTypes::default() };
    let entry = Spec::jump(DNAT).matching([xt::addrtype(local)]).rule(None);
    for chain in ["PREROUTING", "OUTPUT"] {
        rules::ensure_shared(view, table, chain, &entry, false)?;
    }

    let chain = chain_name("DN-", &plan.network, &plan.container_id);
    let owner = plan.owner();
    let own: Vec<NewRule> = container_rules(plan, net).iter().map(|spec| spec.rule(Some(owner))).collect();
    let leading = entry_rules(plan, v6, &chain);
    if !view.ensure_chain(table, &chain)?
        && let Some(old) = view.chain(table, &chain)?
    {
        // Of another interface of the container, whose rules stay, or left by an ADD that was not followed by DEL.
        let key = owner.key();
        let made_anew = |rule: &Rule| match rules::owner_of(rule) {
            Some(found) => found == key,
            None => own.iter().chain(&leading).any(|new| rule.does(&new.expressions)),
        };
        for rule in rules::rules_around(view, table, DNAT, &old)? {
            if made_anew(&rule) {
                view.delete(table, &rule.chain, rule.handle);
            }
        }
    }
    for rule in own {
        view.append(table, &chain, &rule)?;
    }
    // Right after the chain's own rules: `jumps_to` relies on it.
    for rule in leading {
        view.append(table, DNAT, &rule)?;
    }
    Ok(())
}

/// The chains that a container may have, each behind the one that leads to it.
pub(super) fn chains(network: &str, container_id: &str) -> [(&'static str, String); 2] {
    [("DN-", DNAT), ("SN-", OLD_SNAT)].map(|(prefix, entry)| (entry, chain_name(prefix, network, container_id)))
}

pub(super) fn del(view: &mut RuleView<'_>, owner: Owner<'_>) -> Result<(), Error> {
    for v6 in [false, true] {
        for (entry, chain) in chains(owner.network, owner.container_id) {
            rules::remove_owned(view, nat(v6), entry, &chain, owner)?;
        }
    }
    Ok(())
}

pub(super) fn check(view: &mut RuleView<'_>, plan: &Plan, net: IpNet) -> Result<(), Error> {
    let v6 = net.addr().is_ipv6();
    let table = nat(v6);
    let name = chain_name("DN-", &plan.network, &plan.container_id);
    let missing = |what: String| {
        Err(Error::internal(format!("{what} of table {table} is missing: delete the container and add it again")))
    };
    let Some(chain) = view.chain(table, &name)? else { return missing(format!("chain {name}")) };
    let there = view.rules(table, &name)?;
    for spec in container_rules(plan, net) {
        let wanted = spec.rule(None);
        if !there.iter().any(|rule| rule.does(&wanted.expressions)) {
            return missing(format!("a rule in chain {name}"));
        }
    }
    let mut entries = Vec::new();
    for handle in rules::jumps_to(view, table, DNAT, &chain)? {
        entries.extend(view.rule(table, DNAT, handle)?);
    }
    for wanted in entry_rules(plan, v6, &name) {
        if !entries.iter().any(|rule| rule.does(&wanted.expressions)) {
            return missing(format!("a rule in chain {DNAT}"));
        }
    }
    Ok(())
}

/// Whether the original made the rules through iptables-legacy.
pub(super) fn is_in_legacy(plan: &Plan, net: IpNet) -> Result<bool, Error> {
    let v6 = net.addr().is_ipv6();
    let Some(table) = legacy::table(v6, "nat")? else { return Ok(false) };
    let chain = chain_name("DN-", &plan.network, &plan.container_id);
    let is_mapped = |mapping: &Mapping| {
        let host_port = mapping.host_port.to_string();
        let destination = SocketAddr::new(net.addr(), mapping.container_port).to_string();
        let protocol = rules::protocol_name(mapping.protocol);
        table.has(&chain, |line| {
            line.value("-p") == Some(protocol)
                && line.value("--dport") == Some(&host_port)
                && line.value("--to-destination") == Some(&destination)
        })
    };
    let mut wanted = plan.mappings.iter().filter(|mapping| mapping.host_address(v6).is_ok());
    Ok(table.has(DNAT, |line| line.target() == Some(&chain)) && wanted.all(is_mapped))
}

pub(super) fn gc(rules_of: &RuleSet, network: &str, valid: &[Attachment]) {
    let (network, valid) = Kept::new(network, valid).into_owned();
    rules_of.afterwards({
        let (network, valid) = (network.clone(), valid.clone());
        move |_| legacy::remove_stale("nat", DNAT, "CNI-DN-", "dnat ", &Kept::new(&network, &valid))
    });
    rules_of.plan(move |view| {
        let kept = Kept::new(&network, &valid);
        for v6 in [false, true] {
            let table = nat(v6);
            let mut doomed = BTreeSet::new();
            let mut stale = Vec::new();
            let mut needed = BTreeSet::new();
            for rule in view.table_rules(table)? {
                // The rules that lead to the chain have the comment; a chain to which none leads has our user data.
                let chain = if rule.chain == DNAT { rule.target_chain() } else { Some(rule.chain.as_str()) };
                let Some(chain) = chain.filter(|chain| chain.starts_with("CNI-DN-")).map(str::to_owned) else {
                    continue;
                };
                if rule.comment().is_some_and(|comment| kept.is_stale_comment("dnat ", comment)) {
                    doomed.insert(chain);
                } else if kept.is_stale_rule(&rule) {
                    stale.push((chain, rule));
                } else {
                    needed.insert(chain);
                }
            }
            // Interfaces of one container share a chain.
            for (chain, rule) in stale {
                if !needed.contains(&chain) {
                    doomed.insert(chain);
                } else if !doomed.contains(&chain) {
                    view.delete(table, &rule.chain, rule.handle);
                }
            }
            for chain in doomed {
                rules::remove_chain(view, table, DNAT, &chain)?;
            }
        }
        Ok(())
    });
}

/// The two chains that mark packets and masquerade those that are marked.
fn ensure_masquerade(view: &mut RuleView<'_>, table: TableRef<'static>, mark: u32) -> Result<(), Error> {
    let v6 = table == nat(true);
    let set_mark = Spec::target(xt::set_mark(mark, mark)).comment("CNI portfwd masquerade mark").rule(None);
    view.ensure_chain(table, SETMARK)?;
    rules::append_unique(view, table, SETMARK, &set_mark)?;

    let masquerade = Spec::target(xt::masquerade(v6)).matching(rules::mark(mark, mark, false)).rule(None);
    let fresh = view.ensure_chain(table, MASQ)?;
    let own = view.rules(table, MASQ)?.len();
    rules::append_unique(view, table, MASQ, &masquerade)?;
    // POSTROUTING may be long. Whether a rule leads here shows in the chain's count of uses.
    let led_to =
        !fresh && view.chain(table, MASQ)?.is_some_and(|chain| usize::try_from(chain.uses).unwrap_or_default() > own);
    if !led_to {
        let jump = Spec::jump(MASQ).comment("CNI portfwd requiring masquerade").rule(None);
        rules::ensure_shared(view, table, POSTROUTING, &jump, true)?;
    }
    Ok(())
}

/// Rules of the container's own chain.
fn container_rules(plan: &Plan, net: IpNet) -> Vec<Spec> {
    let v6 = net.addr().is_ipv6();
    let set_mark = plan.external_chain.as_deref().unwrap_or(SETMARK);
    let mut list = Vec::with_capacity(3 * plan.mappings.len());
    for mapping in &plan.mappings {
        let Ok(host) = mapping.host_address(v6) else { continue };
        let base = |spec: Spec| {
            let port = rules::port(mapping.protocol, true, (mapping.host_port, mapping.host_port), false);
            let spec = spec.protocol(mapping.protocol).matching(port);
            match host {
                Some(host) => spec.to(rules::host(host)),
                None => spec,
            }
        };
        if plan.snat {
            // From everywhere: no test of the source.
            let marking = Spec::jump(set_mark);
            list.push(base(if plan.masq_all { marking } else { marking.from(net) }));
            if !v6 && !plan.masq_all {
                let loopback = rules::host(std::net::Ipv4Addr::LOCALHOST.into());
                list.push(base(Spec::jump(set_mark).from(loopback)));
            }
        }
        list.push(base(Spec::target(xt::dnat(net.addr(), mapping.container_port))));
    }
    list
}

/// Rules of the common chain that lead to the container's.
fn entry_rules(plan: &Plan, v6: bool, chain: &str) -> Vec<NewRule> {
    let comment = trimmed(format!("dnat name: \"{}\" id: \"{}\"", plan.network, plan.container_id));
    let mut list = Vec::new();
    // In the order of the protocols' names, as the original does.
    for protocol in [rules::SCTP, rules::TCP, rules::UDP] {
        let of_protocol = |mapping: &&Mapping| mapping.protocol == protocol;
        let ports: Vec<_> = plan.mappings.iter().filter(of_protocol).map(|m| (m.host_port, m.host_port)).collect();
        for ports in ports.chunks(PORTS) {
            let multiport = xt::multiport(Ports::Destination, ports, false);
            let spec = Spec::jump(chain).protocol(protocol).comment(&comment).matching(multiport);
            list.push(plan.conditions[usize::from(v6)].apply(spec).rule(Some(plan.owner())));
        }
    }
    list
}

/// As the original shortens comments.
fn trimmed(mut comment: String) -> String {
    if comment.len() > xt::MAX_COMMENT {
        comment.truncate(253);
        comment.push_str("...");
    }
    comment
}
