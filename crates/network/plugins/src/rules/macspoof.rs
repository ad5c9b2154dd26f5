//! MAC spoof check of bridge: a container may only send frames from its own MAC address.
//!
//! The layout is the original's: table `bridge nat`, a rule in PREROUTING that sends what comes from the port to a chain
//! of the attachment, and from there to a second one that lets the address through and drops the rest.

use outrigger_cni_sdk::{Attachment, Error};
use outrigger_netlink::MacAddr;
use outrigger_netlink::nft::{
    BaseChain, Expr, Family, Handle, Hook, MetaKey, NewRule, PayloadBase, TableRef, Verdict, userdata,
};

use super::{Kept, Owner, RuleSet, RuleView, Saved};

const TABLE: TableRef<'static> = TableRef::new(Family::Bridge, "nat");
const PREROUTING: &str = "PREROUTING";
const BASE: BaseChain<'static> = BaseChain { kind: "filter", hook: Hook::Prerouting, priority: -300 };
/// Offset of the source address in an Ethernet header.
const SOURCE: u32 = 6;

struct Names {
    port: String,
    mac: String,
    comment: String,
}

impl Names {
    fn new(owner: Owner<'_>) -> Self {
        let id = format!("{}-{}", owner.container_id, owner.ifname);
        let port = format!("cni-br-iface-{id}");
        Self { mac: format!("{port}-mac"), port, comment: format!("macspoofchk-{id}") }
    }

    fn rule(&self, owner: Owner<'_>, expressions: impl IntoIterator<Item = Expr>) -> NewRule {
        let mut user_data = userdata::comment(&self.comment);
        user_data.extend(owner.user_data());
        NewRule { expressions: expressions.into_iter().collect(), user_data, ..NewRule::default() }
    }
}

fn from_port(host_interface: &str, chain: &str) -> Vec<Expr> {
    let mut name = host_interface.as_bytes().to_vec();
    name.resize(16, 0);
    let mut expressions = Expr::meta_is(MetaKey::INPUT_INTERFACE, &name, false).to_vec();
    expressions.push(Expr::jump(chain));
    expressions
}

fn from_address(mac: MacAddr) -> Vec<Expr> {
    let mut expressions = Expr::payload_is(PayloadBase::Link, SOURCE, &mac.0, false).to_vec();
    expressions.push(Expr::Verdict(Verdict::Return));
    expressions
}

fn parse(mac: &str) -> Result<MacAddr, Error> {
    mac.parse().map_err(|_| Error::internal(format!("macspoofchk: {mac:?} is not a MAC address")))
}

/// Plans the check for the port `host_interface`, behind which is a container with the address `mac`.
pub fn add(rules: &RuleSet, host_interface: &str, mac: &str, owner: Owner<'_>) -> Result<(), Error> {
    let mac = parse(mac)?;
    let owner = Saved::new(owner);
    let host_interface = host_interface.to_owned();
    rules.plan(move |view| {
        let owner = owner.borrow();
        let names = Names::new(owner);
        view.ensure_base_chain(TABLE, PREROUTING, BASE)?;
        for chain in [&names.port, &names.mac] {
            if !view.ensure_chain(TABLE, chain)? {
                view.flush(TABLE, chain);
            }
        }
        // What was left of a former attempt would let its port through.
        for rule in view.rules(TABLE, PREROUTING)?.iter() {
            if rule.target_chain() == Some(&names.port) && rule.handle != 0 {
                view.delete(TABLE, PREROUTING, rule.handle);
            }
        }
        view.append(TABLE, PREROUTING, &names.rule(owner, from_port(&host_interface, &names.port)))?;
        view.append(TABLE, &names.port, &names.rule(owner, [Expr::jump(&names.mac)]))?;
        view.append(TABLE, &names.mac, &names.rule(owner, from_address(mac)))?;
        view.append(TABLE, &names.mac, &names.rule(owner, [Expr::Verdict(Verdict::Drop)]))
    });
    Ok(())
}

/// Plans the removal of an attachment's check.
pub fn del(rules: &RuleSet, owner: Owner<'_>) {
    let owner = Saved::new(owner);
    rules.plan(move |view| {
        let names = Names::new(owner.borrow());
        remove(view, &names.port, &names.mac)
    });
}

/// Checks that the rules are there.
pub fn check(handle: &Handle, host_interface: &str, mac: &str, owner: Owner<'_>) -> Result<(), Error> {
    let mac = parse(mac)?;
    let mut view = RuleView::new(handle);
    let names = Names::new(owner);
    for (chain, wanted) in [
        (PREROUTING, from_port(host_interface, &names.port)),
        (&names.port, vec![Expr::jump(&names.mac)]),
        (&names.mac, from_address(mac)),
        (&names.mac, vec![Expr::Verdict(Verdict::Drop)]),
    ] {
        if !view.rules(TABLE, chain)?.iter().any(|rule| rule.does(&wanted)) {
            return Err(Error::internal(format!(
                "macspoofchk: a rule is missing in chain {chain} of table bridge nat: delete the container and add it again"
            )));
        }
    }
    Ok(())
}

/// Plans the removal of what belongs to a network and to none of the attachments. Rules that the original made do not say
/// of which network they are, and stay.
pub fn gc(rules: &RuleSet, network: &str, valid: &[Attachment]) {
    let (network, valid) = Kept::new(network, valid).into_owned();
    rules.plan(move |view| {
        let kept = Kept::new(&network, &valid);
        if !view.has_chain(TABLE, PREROUTING)? {
            return Ok(());
        }
        for rule in view.rules(TABLE, PREROUTING)?.iter() {
            if let Some(chain) = rule.target_chain().filter(|_| kept.is_stale_rule(rule)) {
                remove(view, chain, &format!("{chain}-mac"))?;
            }
        }
        Ok(())
    });
}

fn remove(view: &mut RuleView<'_>, port: &str, mac: &str) -> Result<(), Error> {
    if !view.has_chain(TABLE, PREROUTING)? {
        return Ok(());
    }
    let there = [view.has_chain(TABLE, port)?, view.has_chain(TABLE, mac)?];
    if there[0] {
        for rule in view.rules(TABLE, PREROUTING)?.iter() {
            if rule.target_chain() == Some(port) {
                view.delete(TABLE, PREROUTING, rule.handle);
            }
        }
        view.delete_chain(TABLE, port);
    }
    if there[1] {
        view.delete_chain(TABLE, mac);
    }
    Ok(())
}
