//! DEL: nothing is left, whatever the host looks like by now.

use std::sync::Arc;

use outrigger_verify_report::{Level, Unmet, Verdict};
use serde_json::{Value, json};

use super::lifecycle::{added, as_before, interface, one_network_twice, without_result};
use super::{Template, all, main_plugins, template};
use crate::scene::{Attachment, Scene, Subject};

use Level::{Must, Should};

/// The cases.
pub(super) const TEMPLATES: &[Template] = &[
    template("DEL/leaves-nothing", "2 DEL", Must, "after DEL host and container are as before ADD", all, del_clean),
    template("DEL/prints-nothing", "2 DEL", Should, "DEL prints nothing on standard output", all, del_quiet),
    template("DEL/twice", "2 DEL", Must, "a second DEL succeeds", all, del_twice),
    template("DEL/never-added", "2 DEL", Must, "DEL of what was never added succeeds", all, del_never),
    template("DEL/without-result", "2 DEL", Must, "DEL without prevResult succeeds and cleans up", all, |subject| {
        del_unusual(subject, |attachment, _| {
            without_result(attachment);
            Ok(())
        })
    }),
    template("DEL/null-result", "2 DEL", Should, "DEL with a prevResult of null succeeds", all, |subject| {
        del_unusual_loose(subject, |attachment| attachment.config["prevResult"] = Value::Null)
    }),
    template(
        "DEL/netns-empty",
        "2 DEL",
        Must,
        "DEL with an empty CNI_NETNS succeeds and cleans up the host",
        all,
        |subject| del_gone(subject, Gone::Unset, true),
    ),
    template(
        "DEL/netns-gone",
        "2 DEL",
        Must,
        "DEL succeeds and cleans up the host when the namespace is gone",
        all,
        |subject| del_gone(subject, Gone::File, true),
    ),
    template(
        "DEL/netns-gone-without-result",
        "2 DEL",
        Must,
        "the same without prevResult, as after a crash of the runtime",
        all,
        |subject| del_gone(subject, Gone::File, false),
    ),
    template(
        "DEL/netns-path-is-a-file",
        "2 DEL",
        Should,
        "DEL succeeds when only the file of the namespace is left, as after a reboot",
        all,
        |subject| del_gone(subject, Gone::Plain, true),
    ),
    template(
        "DEL/interface-gone",
        "2 DEL",
        Must,
        "DEL succeeds and cleans up when the interface was taken away",
        main_plugins,
        |subject| {
            del_unusual(subject, |attachment, _| {
                attachment.container.sh(&format!("ip link del {}", attachment.ifname)).map(drop)
            })
        },
    ),
    template("DEL/without-capabilities", "2 DEL", Should, "DEL without runtimeConfig cleans up", all, |subject| {
        del_unusual(subject, |attachment, _| {
            attachment.config.as_object_mut().map(|config| config.remove("runtimeConfig"));
            Ok(())
        })
    }),
    template(
        "DEL/other-container-stays",
        "2 DEL",
        Must,
        "DEL leaves another container of the network alone",
        all,
        del_other,
    ),
    template(
        "DEL/other-interface-stays",
        "2 DEL",
        Must,
        "DEL leaves another interface of the container alone",
        main_plugins,
        del_other_interface,
    ),
];

fn del_clean(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    scene.settled()?;
    let attachment = scene.attachment("c1")?;
    let (before, inside) = (scene.host.inventory()?, attachment.container.inventory()?);
    let result = scene.add(&attachment)?;
    scene.del(&attachment, &result)?;
    scene.host_is(&before)?;
    as_before(&scene, &attachment, &inside)
}

fn del_quiet(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment, result) = added(subject)?;
    let output = scene.call("DEL", &attachment).config(&Scene::with_result(&attachment, &result)).run()?;
    output.success()?;
    if output.stdout.trim().is_empty() { Ok(()) } else { Err(output.failure("DEL printed something")) }
}

fn del_twice(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment, result) = added(subject)?;
    scene.del(&attachment, &result)?;
    scene.del(&attachment, &result)
}

fn del_never(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    without_result(&mut attachment);
    scene.call("DEL", &attachment).run()?.success()
}

/// ADD, some change, then DEL, which must succeed and clean up the host.
fn del_unusual(subject: &Arc<Subject>, change: impl Fn(&mut Attachment, &Scene) -> Verdict) -> Verdict {
    let scene = Scene::new(subject)?;
    scene.settled()?;
    let mut attachment = scene.attachment("c1")?;
    let before = scene.host.inventory()?;
    let result = scene.add(&attachment)?;
    let chained = attachment.config["prevResult"].is_object();
    attachment.config["prevResult"] = result;
    change(&mut attachment, &scene)?;
    let _ = chained;
    scene.call("DEL", &attachment).run()?.success()?;
    if subject.profile.name == "host-device" && attachment.container.link(&attachment.ifname)?.is_none() {
        // The device was deleted by hand: then it cannot come back.
        let left: Vec<_> = scene.host.inventory()?.lines().filter(|line| line.contains("/held/")).collect();
        return if left.is_empty() { Ok(()) } else { Err(Unmet::fail(format!("left behind: {}", left.join("; ")))) };
    }
    scene.host_is(&before)
}

fn del_unusual_loose(subject: &Arc<Subject>, change: impl Fn(&mut Attachment)) -> Verdict {
    let (scene, mut attachment, _) = added(subject)?;
    change(&mut attachment);
    scene.call("DEL", &attachment).run()?.success()
}

/// How a namespace is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gone {
    Unset,
    File,
    Plain,
}

fn del_gone(subject: &Arc<Subject>, gone: Gone, with_result: bool) -> Verdict {
    let scene = Scene::new(subject)?;
    scene.settled()?;
    let attachment = scene.attachment("c1")?;
    let before = scene.host.inventory()?;
    let result = scene.add(&attachment)?;
    let mut call = scene.call("DEL", &attachment);
    let mut config = Scene::with_result(&attachment, &result);
    if !with_result {
        config.as_object_mut().map(|config| config.remove("prevResult"));
    }
    call = call.config(&config);
    scene.host.remove_container(&attachment.container)?;
    match gone {
        Gone::Unset => call = call.env("CNI_NETNS", ""),
        Gone::Plain => fs_err::write(&attachment.container.path, "")?,
        Gone::File => {}
    }
    call.run()?.success()?;
    if gone == Gone::Plain {
        fs_err::remove_file(&attachment.container.path)?;
    }
    // With the namespace go the container's ends of pairs, and with those the host's ends; devices come back by the
    // kernel's hand, or are destroyed if they were virtual.
    let lost = |line: &String| {
        let virtual_link = ["up", "d", "m"].iter().any(|prefix| line[2..].starts_with(&format!("link {prefix}")));
        let of_link =
            line[2..].starts_with("address ") || line[2..].starts_with("route ") || line[2..].starts_with("qdisc ");
        line.starts_with("- ") && (virtual_link || of_link)
    };
    crate::host::eventually(std::time::Duration::from_secs(3), || {
        let mut difference = before.difference(&scene.host.inventory()?);
        difference.retain(|line| !lost(line) && !line[2..].starts_with("link d"));
        if difference.is_empty() {
            return Ok(());
        }
        Err(Unmet::fail(format!("the host is not as it was: {}", difference.join("; "))))
    })
}

fn del_other(subject: &Arc<Subject>) -> Verdict {
    let (scene, first, result) = added(subject)?;
    scene.ipam_hands_out("result", &[("10.77.0.6/24", "10.77.0.1", None)], &[])?;
    let second = scene.attachment("c2")?;
    let other = if subject.profile.name == "static" { result.clone() } else { scene.add(&second)? };
    scene.del(&first, &result)?;
    if subject.profile.name != "static" {
        scene.check(&second, &other)?.success()?;
        scene.del(&second, &other)?;
    }
    Ok(())
}

fn del_other_interface(subject: &Arc<Subject>) -> Verdict {
    let (scene, first, result) = added(subject)?;
    one_network_twice(subject)?;
    scene.ipam_hands_out("result", &[("10.77.0.6/24", "10.77.0.1", None)], &[])?;
    let mut second = Attachment { ifname: "net1".into(), ..first.clone() };
    if subject.profile.name == "vlan" {
        second.config["vlanId"] = json!(77);
    }
    let other = scene.add(&second)?;
    scene.del(&first, &result)?;
    interface(&second)?;
    scene.check(&second, &other)?.success()
}
