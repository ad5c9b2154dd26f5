//! CHECK: true as long as nothing is damaged, and without effects.

use std::sync::Arc;

use outrigger_verify_report::{Level, Unmet, Verdict};

use super::lifecycle::{added, not_ipam, without_result};
use super::{Template, all, main_plugins, meta_plugins, template};
use crate::profile::Damage;
use crate::result::addresses;
use crate::scene::Subject;

use Level::Must;

/// The cases.
pub(super) const TEMPLATES: &[Template] = &[
    template("CHECK/after-add", "2 CHECK", Must, "CHECK succeeds after ADD and prints nothing", all, check_ok),
    template("CHECK/without-result", "2 CHECK", Must, "CHECK without prevResult fails", main_or_meta, check_without),
    template("CHECK/after-del", "2 CHECK", Must, "CHECK fails after DEL", undone_by_del, check_after_del),
    template(
        "CHECK/foreign-address",
        "2 CHECK",
        Must,
        "CHECK does not mind an address that somebody else added",
        not_ipam,
        |subject| check_tolerates(subject, "ip addr add 192.0.2.7/32 dev IF"),
    ),
    template(
        "CHECK/foreign-route",
        "2 CHECK",
        Must,
        "CHECK does not mind a route that somebody else added",
        not_ipam,
        |subject| check_tolerates(subject, "ip route add 198.51.100.0/24 dev IF"),
    ),
    template("CHECK/changes-nothing", "2 CHECK", Must, "CHECK changes nothing", all, check_pure),
];

/// An IPAM plugin has what it handed out, and lo is lo: they can check without being told.
fn main_or_meta(subject: &Subject) -> bool {
    main_plugins(subject) || meta_plugins(subject)
}

/// Plugins whose DEL takes away what CHECK looks for. Not so: sbr and static have nothing to look for, and of a chained
/// plugin that nobody knows one cannot tell.
fn undone_by_del(subject: &Subject) -> bool {
    match subject.profile.name {
        "sbr" | "static" => false,
        "generic" => !meta_plugins(subject),
        _ => true,
    }
}

fn check_ok(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment, result) = added(subject)?;
    let output = scene.check(&attachment, &result)?;
    output.success()?;
    if output.stdout.trim().is_empty() { Ok(()) } else { Err(output.failure("CHECK printed something")) }
}

fn check_without(subject: &Arc<Subject>) -> Verdict {
    let (scene, mut attachment, _) = added(subject)?;
    without_result(&mut attachment);
    if subject.profile.name == "sbr" {
        return Err(Unmet::skip("sbr's CHECK does nothing"));
    }
    scene.call("CHECK", &attachment).run()?.error().map(drop)
}

fn check_after_del(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment, result) = added(subject)?;
    scene.del(&attachment, &result)?;
    scene.check(&attachment, &result)?.error().map(drop)
}

fn check_tolerates(subject: &Arc<Subject>, line: &str) -> Verdict {
    let (scene, attachment, result) = added(subject)?;
    attachment.container.sh(&line.replace("IF", &attachment.ifname))?;
    scene.check(&attachment, &result)?.success()
}

fn check_pure(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment, result) = added(subject)?;
    let (host, inside) = (scene.host.inventory()?, attachment.container.inventory()?);
    scene.check(&attachment, &result)?;
    scene.host_is(&host)?;
    scene.container_is(&attachment.container, &inside)
}

/// CHECK after some damage.
pub(super) fn damage(subject: &Arc<Subject>, damage: &Damage) -> Verdict {
    let (scene, attachment, result) = added(subject)?;
    let nothing = result["routes"].as_array().is_none_or(Vec::is_empty);
    if damage.name == "route-gone" && nothing {
        return Err(Unmet::skip("the result has no route"));
    }
    if damage.name == "address-gone" && addresses(&result).is_empty() {
        return Err(Unmet::skip("the result has no address"));
    }
    if damage.inside {
        attachment.container.sh(damage.line)?
    } else {
        scene.host.sh(damage.line)?
    };
    scene.check(&attachment, &result)?.error().map(drop)
}
