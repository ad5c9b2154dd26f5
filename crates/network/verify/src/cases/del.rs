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
    template(
        "DEL/never-added",
        "2 DEL",
        Must,
        "DEL of what was never added succeeds and changes nothing",
        all,
        del_never,
    ),
    template("DEL/without-result", "2 DEL", Must, "DEL without prevResult succeeds and cleans up", all, |subject| {
        del_unusual(subject, |attachment, _| {
            without_result(attachment);
            Ok(())
        })
    }),
    template(
        "DEL/null-result",
        "2 DEL",
        Should,
        "DEL with a prevResult of null succeeds and cleans up",
        all,
        |subject| {
            del_unusual(subject, |attachment, _| {
                attachment.config["prevResult"] = Value::Null;
                Ok(())
            })
        },
    ),
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
    scene.settled()?;
    let mut attachment = scene.attachment("c1")?;
    let (before, inside) = (scene.host.inventory()?, attachment.container.inventory()?);
    without_result(&mut attachment);
    scene.call("DEL", &attachment).run()?.success()?;
    scene.host_is(&before)?;
    scene.container_is(&attachment.container, &inside)
}

/// ADD, some change, then DEL, which must succeed and clean up the host.
fn del_unusual(subject: &Arc<Subject>, change: impl Fn(&mut Attachment, &Scene) -> Verdict) -> Verdict {
    let scene = Scene::new(subject)?;
    scene.settled()?;
    let mut attachment = scene.attachment("c1")?;
    let before = scene.host.inventory()?;
    let result = scene.add(&attachment)?;
    attachment.config["prevResult"] = result;
    change(&mut attachment, &scene)?;
    scene.call("DEL", &attachment).run()?.success()?;
    if subject.profile.name == "host-device" && attachment.container.link(&attachment.ifname)?.is_none() {
        // The device was deleted by hand: then it cannot come back.
        let left: Vec<_> = scene.host.inventory()?.lines().filter(|line| line.contains("/held/")).collect();
        return if left.is_empty() { Ok(()) } else { Err(Unmet::fail(format!("left behind: {}", left.join("; ")))) };
    }
    scene.host_is(&before)
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
    // With the namespace goes what was in it, and with the container's end of a pair the host's end.
    let own = scene.own_links(&attachment);
    crate::host::eventually(std::time::Duration::from_secs(3), || {
        let difference = went_along(before.difference(&scene.host.inventory()?), &own);
        if difference.is_empty() {
            return Ok(());
        }
        Err(Unmet::fail(format!("the host is not as it was: {}", difference.join("; "))))
    })
}

/// A difference without the suite's own links that went, and what went with them.
fn went_along(mut difference: Vec<String>, own: &[String]) -> Vec<String> {
    difference.retain(|line| {
        !(line.starts_with("- ") && link_of(line).is_some_and(|link| own.iter().any(|own| own == link)))
    });
    difference
}

/// The link that a line of a difference is about.
fn link_of(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace().skip(1);
    match words.next()? {
        "link" | "address" => words.next(),
        "route" | "qdisc" => words.find(|word| *word == "dev").and_then(|_| words.next()),
        _ => None,
    }
}

fn del_other(subject: &Arc<Subject>) -> Verdict {
    let (scene, first, result) = added(subject)?;
    scene.ipam_hands_out("result", &[("10.77.0.6/24", "10.77.0.1", None)], &[])?;
    let second = scene.attachment("c2")?;
    let other = scene.add(&second)?;
    scene.del(&first, &result)?;
    scene.check(&second, &other)?.success()?;
    scene.del(&second, &other)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_suites_own_links_may_go_with_a_namespace() {
        let own = ["up6".to_owned(), "dc1".to_owned()];
        let lines = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
        let gone = lines(&[
            "- link up6 veth mtu 1500 master - up promiscuity 0 allmulti 0 qlen 1000",
            "- address up6 10.78.0.1/24",
            "- route -4 10.78.0.0/24 table - dev up6 via -",
            "- qdisc qdisc noqueue 0: dev dc1 root refcnt 2",
        ]);
        assert!(went_along(gone, &own).is_empty());
        let damage = lines(&[
            "+ link dc1 veth mtu 1500 master - down promiscuity 0 allmulti 0 qlen 1000",
            "- address cni0 10.77.0.1/24",
            "- file /run/verify/held/c2.eth0",
            "- link dummy0 dummy mtu 1500 master - up promiscuity 0 allmulti 0 qlen 1000",
            "- qdisc qdisc tbf 1: dev m0 root",
            "- route -4 10.77.0.0/24 table - dev cni0 via -",
        ]);
        assert_eq!(went_along(damage.clone(), &own), damage);
    }
}
