//! Packet rules of several plugins: those that GC collects, and those of the newer back end.

use std::sync::Arc;

use outrigger_verify_report::{Level, Unmet, Verdict};
use serde_json::{Value, json};

use super::effects::{effect, ensure};
use super::effects_meta::{mapping, reach, rules_come_and_go};
use super::needs_1_1;
use crate::profile::Effect;
use crate::scene::{Scene, Subject};

use Level::Must;

/// Masquerade rules of bridge and ptp that are collected, in both layouts.
pub(super) const MASQUERADE_GC: Effect = effect(
    "effects/masquerade-gc",
    Must,
    "GC takes the rules of ipMasq of lost containers away, and leaves the others",
    |subject| collected(subject, |config| config["ipMasq"] = json!(true)),
);

/// The same by nftables.
pub(super) const MASQUERADE_NFTABLES_GC: Effect =
    effect("effects/masquerade-nftables-gc", Must, "the same with ipMasqBackend nftables", |subject| {
        collected(subject, by_nftables)
    });

/// Masquerade by nftables.
pub(super) const MASQUERADE_NFTABLES: Effect = effect(
    "effects/masquerade-nftables",
    Must,
    "ipMasqBackend nftables makes rules without iptables, and DEL takes them away",
    |subject| {
        needs_1_1(subject)?;
        rules_come_and_go(subject, by_nftables, &["masquerade"])?;
        without_iptables(subject, by_nftables, "")
    },
);

/// portmap by nftables.
pub(super) const PORTMAP_NFTABLES: Effect = effect(
    "effects/nftables",
    Must,
    "backend nftables makes rules without iptables, and DEL takes them away",
    |subject| {
        needs_1_1(subject)?;
        rules_come_and_go(subject, mapped, &["8128", "10.78.0."])?;
        without_iptables(subject, mapped, "8128")
    },
);

/// The way into the container that portmap makes by nftables.
pub(super) const PORTMAP_NFTABLES_REACHES: Effect = effect(
    "effects/nftables-reaches-the-container",
    Must,
    "with backend nftables a connection to the host's port arrives in the container",
    |subject| {
        needs_1_1(subject)?;
        let scene = Scene::new(subject)?;
        let mut attachment = scene.attachment("c1")?;
        mapped(&mut attachment.config);
        scene.add(&attachment)?;
        reach(&scene, &attachment, 8128)
    },
);

/// Rules of portmap or firewall by nftables that are collected.
pub(super) const NFTABLES_GC: Effect = effect(
    "effects/nftables-gc",
    Must,
    "with backend nftables GC takes the rules of lost containers away, and leaves the others",
    |subject| {
        if subject.profile.name == "firewall" {
            has_back_end(subject)?;
        }
        collected(subject, |config| config["backend"] = json!("nftables"))
    },
);

/// firewall by nftables, if it can.
pub(super) const FIREWALL_NFTABLES: Effect = effect(
    "effects/nftables",
    Must,
    "backend nftables, where there is one, makes rules without iptables, and DEL takes them away",
    |subject| {
        has_back_end(subject)?;
        rules_come_and_go(subject, |config| config["backend"] = json!("nftables"), &["10.78.0.", "fd78::"])
    },
);

fn by_nftables(config: &mut Value) {
    config["ipMasq"] = json!(true);
    config["ipMasqBackend"] = json!("nftables");
}

fn mapped(config: &mut Value) {
    mapping(json!({ "hostPort": 8128, "containerPort": 80, "protocol": "tcp" }))(config);
    config["backend"] = json!("nftables");
}

/// The reference plugin has rules by iptables and by firewalld only.
fn has_back_end(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    attachment.config["backend"] = json!("nftables");
    if scene.call("ADD", &attachment).run()?.code == Some(0) && !iptables_is_used(&scene)? {
        return Ok(());
    }
    Err(Unmet::skip("it has no such back end"))
}

fn iptables_is_used(scene: &Scene) -> Result<bool, Unmet> {
    let tables = scene.host.sh("nft list tables")?;
    let of_iptables = ["ip nat", "ip6 nat", "ip filter", "ip6 filter"];
    Ok(tables.lines().any(|line| of_iptables.iter().any(|table| line.ends_with(&format!("table {table}")))))
}

/// On a fresh host the rules are there, and no table of iptables is.
fn without_iptables(subject: &Arc<Subject>, change: impl Fn(&mut Value), wanted: &str) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    change(&mut attachment.config);
    scene.add(&attachment)?;
    let rules = scene.host.sh("nft list ruleset")?;
    ensure(!rules.trim().is_empty() && rules.contains(wanted), || "there are no rules".into())?;
    ensure(!iptables_is_used(&scene)?, || "there are tables of iptables".into())
        .map_err(|unmet| unmet.with("rules", rules))
}

/// One container stays and one is lost: GC leaves the host as it was before the second.
fn collected(subject: &Arc<Subject>, change: impl Fn(&mut Value)) -> Verdict {
    needs_1_1(subject)?;
    let scene = Scene::new(subject)?;
    let mut stays = scene.attachment("c1")?;
    change(&mut stays.config);
    let result = scene.add(&stays)?;
    let before = scene.host.inventory()?;
    scene.ipam_hands_out("result", &[("10.77.0.6/24", "10.77.0.1", None)], &[])?;
    let mut lost = scene.attachment("c2")?;
    change(&mut lost.config);
    scene.add(&lost)?;
    scene.host.remove_container(&lost.container)?;
    let more = before.difference(&scene.host.inventory()?);
    ensure(more.iter().any(|line| line.starts_with("+ nft ")), || "there are no rules to collect".into())?;
    let mut config = scene.config();
    change(&mut config);
    scene.gc_with(config, &[&stays])?.success()?;
    scene.host_is(&before)?;
    scene.check(&stays, &result)?.success()
}
