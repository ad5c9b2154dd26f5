//! GC and STATUS: what is lost goes, what is valid stays, and readiness is told truly.

use std::sync::Arc;

use outrigger_verify_report::{Level, Unmet, Verdict};
use serde_json::json;

use super::lifecycle::{added, without_result};
use super::{Template, all, needs_1_1, template};
use crate::call::Call;
use crate::scene::{Scene, Subject};

use Level::{Must, Should};

/// The cases.
pub(super) const TEMPLATES: &[Template] = &[
    template("GC/nothing-to-do", "2 GC", Must, "GC of a network without attachments succeeds", all, gc_empty),
    template("GC/keeps-valid", "2 GC", Must, "GC leaves valid attachments alone", all, gc_keeps),
    template(
        "GC/removes-lost",
        "2 GC",
        Must,
        "GC removes what is left of attachments that are not valid",
        all,
        gc_removes,
    ),
    template("GC/removes-lost-only", "2 GC", Must, "GC removes lost attachments and keeps the others", all, gc_mixed),
    template("GC/other-network", "2 GC", Must, "GC leaves other networks alone", all, gc_other),
    template("GC/twice", "2 GC", Must, "a second GC succeeds", all, gc_twice),
    template(
        "GC/without-list",
        "2 GC",
        Should,
        "GC without a list of valid attachments removes nothing",
        all,
        gc_no_list,
    ),
    template("STATUS/ready", "2 STATUS", Must, "STATUS succeeds when ADD would", all, status_ready),
    template("STATUS/changes-nothing", "2 STATUS", Must, "STATUS changes nothing", all, status_pure),
];

fn gc_empty(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    let scene = Scene::new(subject)?;
    let output = scene.gc(&[])?;
    output.success()?;
    if output.stdout.trim().is_empty() { Ok(()) } else { Err(output.failure("GC printed something")) }
}

fn gc_keeps(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    let (scene, attachment, result) = added(subject)?;
    let (host, inside) = (scene.host.inventory()?, attachment.container.inventory()?);
    scene.gc(&[&attachment])?.success()?;
    scene.host_is(&host)?;
    scene.container_is(&attachment.container, &inside)?;
    scene.check(&attachment, &result)?.success()?;
    scene.del(&attachment, &result)
}

/// Skips where there is nothing to collect: all that ADD made goes with the container.
fn holds_something(subject: &Subject) -> Verdict {
    match subject.profile.name {
        "loopback" | "sbr" | "static" | "vrf" => Err(Unmet::skip("nothing of it outlives the container")),
        _ => Ok(()),
    }
}

fn gc_removes(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    holds_something(subject)?;
    let scene = Scene::new(subject)?;
    scene.settled()?;
    let before = scene.host.inventory()?;
    let attachment = scene.attachment("c1")?;
    scene.add(&attachment)?;
    scene.host.remove_container(&attachment.container)?;
    scene.gc(&[])?.success()?;
    scene.host_is(&before)
}

fn gc_mixed(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    holds_something(subject)?;
    let (scene, first, result) = added(subject)?;
    let host = scene.host.inventory()?;
    scene.ipam_hands_out("result", &[("10.77.0.6/24", "10.77.0.1", None)], &[])?;
    let second = scene.attachment("c2")?;
    scene.add(&second)?;
    scene.host.remove_container(&second.container)?;
    scene.gc(&[&first])?.success()?;
    scene.check(&first, &result)?.success()?;
    scene.host_is(&host)
}

fn gc_other(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    let (scene, attachment, result) = added(subject)?;
    let (host, inside) = (scene.host.inventory()?, attachment.container.inventory()?);
    let mut config = scene.config();
    config["name"] = json!("other-net");
    config["cni.dev/valid-attachments"] = json!([]);
    Call::new(&scene.binary(), "GC").env("CNI_PATH", scene.cni_path()).config(&config).run()?.success()?;
    scene.host_is(&host)?;
    scene.container_is(&attachment.container, &inside)?;
    scene.check(&attachment, &result)?.success()
}

fn gc_twice(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    let (scene, attachment, _) = added(subject)?;
    scene.gc(&[])?.success()?;
    scene.gc(&[])?.success()?;
    let mut attachment = attachment;
    without_result(&mut attachment);
    scene.call("DEL", &attachment).run()?.success()
}

fn gc_no_list(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    let (scene, attachment, result) = added(subject)?;
    let host = scene.host.inventory()?;
    let output = Call::new(&scene.binary(), "GC").env("CNI_PATH", scene.cni_path()).config(&scene.config()).run()?;
    if output.code != Some(0) {
        output.error()?;
    }
    scene.host_is(&host)?;
    scene.check(&attachment, &result)?.success()
}

fn status_ready(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    let scene = Scene::new(subject)?;
    let output = scene.status()?;
    output.success()?;
    if output.stdout.trim().is_empty() { Ok(()) } else { Err(output.failure("STATUS printed something")) }
}

fn status_pure(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    let scene = Scene::new(subject)?;
    let host = scene.host.inventory()?;
    scene.status()?;
    scene.host_is(&host)
}
