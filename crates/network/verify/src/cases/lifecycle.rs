//! A container that is really there: what the cases of all commands share.

use std::sync::Arc;

use outrigger_verify_report::{Unmet, Verdict};
use serde_json::Value;

use crate::host::Inventory;
use crate::profile::Kind;
use crate::result::{at_least, faults};
use crate::scene::{Attachment, Scene, Subject};

/// A case for each version: name, title, body.
type ByVersion = (&'static str, &'static str, fn(&Arc<Subject>, &str) -> Verdict);

/// The cases that are made for each version that a plugin supports.
pub(super) const BY_VERSION: &[ByVersion] = &[("cycle", "ADD, CHECK and DEL with a configuration of version", cycle)];

pub(super) fn not_ipam(subject: &Subject) -> bool {
    subject.profile.kind != Kind::Ipam
}

/// A new attachment, added.
pub(super) fn added(subject: &Arc<Subject>) -> Result<(Scene, Attachment, Value), Unmet> {
    let scene = Scene::new(subject)?;
    let attachment = scene.attachment("c1")?;
    let result = scene.add(&attachment)?;
    Ok((scene, attachment, result))
}

pub(super) fn without_result(attachment: &mut Attachment) {
    attachment.config.as_object_mut().map(|config| config.remove("prevResult"));
}

fn cycle(subject: &Arc<Subject>, version: &str) -> Verdict {
    if subject.profile.kind == Kind::Meta && !at_least(version, "0.3.0") {
        return Err(Unmet::skip("chains came with version 0.3.0"));
    }
    let scene = Scene::in_version(subject, version)?;
    let attachment = scene.attachment("c1")?;
    let output = scene.call("ADD", &attachment).run()?;
    // A result of these versions cannot be without an address, and loopback of old had none to tell.
    if output.code != Some(0) && subject.profile.kind == Kind::Loopback && !at_least(version, "0.3.0") {
        return Err(Unmet::skip("a result of this version needs an address"));
    }
    let result = output.result()?;
    let wrong = faults(&result, version, subject.profile.kind == Kind::Ipam);
    if !wrong.is_empty() {
        return Err(output.failure(wrong.join("; ")));
    }
    if at_least(version, "0.4.0") {
        scene.check(&attachment, &result)?.success()?;
    }
    scene.del(&attachment, &result)
}

/// Skips where one container cannot have two interfaces of a network.
pub(super) fn one_network_twice(subject: &Subject) -> Verdict {
    match subject.profile.name {
        "host-device" => Err(Unmet::skip("one device is one interface")),
        "ptp" => Err(Unmet::skip("two links to one gateway address cannot both have the route to it")),
        "flannel" | "outrigger" => Err(Unmet::skip("the inner plugins decide")),
        _ => Ok(()),
    }
}

/// The container after DEL: `lo` keeps its addresses when it is down, and sbr does not move routes back, since the
/// interface is about to go.
pub(super) fn as_before(scene: &Scene, attachment: &Attachment, inside: &Inventory) -> Verdict {
    if scene.subject.profile.kind == Kind::Loopback || scene.subject.profile.name == "sbr" {
        return Ok(());
    }
    scene.container_is(&attachment.container, inside)
}

pub(super) fn interface(attachment: &Attachment) -> Result<Value, Unmet> {
    let link = attachment.container.link(&attachment.ifname)?;
    link.ok_or_else(|| Unmet::fail(format!("the container has no link {}", attachment.ifname)))
}
