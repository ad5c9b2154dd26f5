//! ADD, DEL, CHECK, GC and STATUS on containers that are really there, and what they leave behind.

use std::sync::Arc;

use outrigger_verify_report::{Level, Unmet, Verdict};
use serde_json::{Value, json};

use super::{Template, all, ipam_plugins, main_plugins, meta_plugins, needs_1_1, template};
use crate::call::Call;
use crate::host::{Container, Inventory};
use crate::profile::{Damage, Kind};
use crate::result::{addresses, at_least, faults};
use crate::scene::{Attachment, Scene, Subject};

use Level::{Must, Should};

/// A case for each version: name, title, body.
type ByVersion = (&'static str, &'static str, fn(&Arc<Subject>, &str) -> Verdict);

/// The cases that are made for each version that a plugin supports.
pub(super) const BY_VERSION: &[ByVersion] = &[("cycle", "ADD, CHECK and DEL with a configuration of version", cycle)];

fn not_ipam(subject: &Subject) -> bool {
    subject.profile.kind != Kind::Ipam
}

/// The cases.
pub(super) const TEMPLATES: &[Template] = &[
    template(
        "ADD/prints-one-result",
        "2 ADD",
        Must,
        "ADD prints one result in the form of the configuration's version",
        all,
        add_prints,
    ),
    template(
        "ADD/result-is-true",
        "2 ADD",
        Must,
        "interfaces, addresses and routes of the result are there",
        not_ipam,
        add_true,
    ),
    template("ADD/interface-is-up", "2 ADD", Must, "the interface has the wanted name and is up", main_plugins, add_up),
    template(
        "ADD/interface-name-of-fifteen-bytes",
        "2 ADD",
        Must,
        "an interface name may have 15 bytes",
        main_plugins,
        add_long_name,
    ),
    template(
        "ADD/mac-is-reported",
        "5 Success",
        Should,
        "the result has the interface's MAC address",
        main_plugins,
        add_mac,
    ),
    template(
        "ADD/sandbox-is-reported",
        "5 Success",
        Must,
        "the container's interface has sandbox, those of the host have not",
        main_plugins,
        add_sandbox,
    ),
    template(
        "ADD/second-fails-or-changes-nothing",
        "2 ADD",
        Must,
        "a second ADD of an attachment fails or changes nothing, and DEL then cleans up",
        all,
        add_twice,
    ),
    template(
        "ADD/interface-name-taken",
        "2 ADD",
        Must,
        "ADD of a name that is taken fails, and leaves that link and the host alone",
        main_plugins,
        add_taken,
    ),
    template(
        "ADD/two-interfaces",
        "2 ADD",
        Must,
        "a container can have two interfaces of one network",
        main_plugins,
        add_two,
    ),
    template(
        "ADD/unknown-keys",
        "1 Network configuration format",
        Must,
        "keys that a plugin does not know are ignored",
        all,
        |subject| add_changed(subject, |config| config["some.vendor/key"] = json!({ "a": [1, null] })),
    ),
    template(
        "ADD/large-configuration",
        "1 Network configuration format",
        Should,
        "a configuration of 1 MB is read",
        all,
        |subject| add_changed(subject, |config| config["labels"] = json!("x".repeat(1 << 20))),
    ),
    template(
        "ADD/null-keys",
        "1 Network configuration format",
        Should,
        "keys whose value is null count as left out",
        all,
        |subject| {
            add_changed(subject, |config| {
                for key in ["runtimeConfig", "args", "dns", "capabilities"] {
                    if config[key].is_null() {
                        config[key] = Value::Null;
                    }
                }
            })
        },
    ),
    template(
        "ADD/capabilities-key",
        "1 Network configuration format",
        Must,
        "the key capabilities, which runtimes leave in, does not disturb",
        all,
        |subject| {
            add_changed(subject, |config| config["capabilities"] = json!({ "portMappings": true, "x.y/z": false }))
        },
    ),
    template(
        "ADD/unknown-capability",
        "1 Network configuration format",
        Must,
        "a capability that a plugin does not know is ignored",
        all,
        |subject| {
            add_changed(subject, |config| {
                let mut runtime =
                    if config["runtimeConfig"].is_object() { config["runtimeConfig"].clone() } else { json!({}) };
                runtime["x.y/z"] = json!([{ "a": 1 }]);
                config["runtimeConfig"] = runtime;
            })
        },
    ),
    template(
        "ADD/kubernetes-args",
        "2 Parameters",
        Must,
        "the CNI_ARGS of Kubernetes runtimes do not disturb",
        all,
        add_k8s_args,
    ),
    template(
        "ADD/keys-in-other-case",
        "1 Network configuration format",
        Should,
        "keys are matched without regard to case, as the reference plugins do",
        all,
        add_case,
    ),
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
    template("CHECK/after-add", "2 CHECK", Must, "CHECK succeeds after ADD and prints nothing", all, check_ok),
    template("CHECK/without-result", "2 CHECK", Must, "CHECK without prevResult fails", main_or_meta, check_without),
    template("CHECK/after-del", "2 CHECK", Must, "CHECK fails after DEL", not_meta_sbr, check_after_del),
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
    template(
        "chain/result-is-passed-on",
        "3 Execution",
        Must,
        "a chained plugin passes on addresses, routes and DNS, and appends interfaces only",
        meta_plugins,
        chain_passes,
    ),
    template(
        "chain/without-result",
        "3 Execution",
        Must,
        "a chained plugin fails ADD without prevResult",
        meta_plugins,
        chain_without,
    ),
    template(
        "chain/null-result",
        "3 Execution",
        Must,
        "a chained plugin fails ADD with a prevResult of null",
        meta_plugins,
        |subject| chain_bad(subject, &Value::Null),
    ),
    template(
        "chain/result-is-a-text",
        "3 Execution",
        Must,
        "a prevResult that is no object is an error",
        meta_plugins,
        |subject| chain_bad(subject, &json!("result")),
    ),
    template(
        "chain/result-has-bad-address",
        "3 Execution",
        Must,
        "a prevResult with an address that is none is an error",
        meta_plugins,
        |subject| chain_bad(subject, &json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.0.0.300/24" }] })),
    ),
    template(
        "chain/unknown-keys-in-result",
        "3 Execution",
        Should,
        "keys in prevResult that a plugin does not know are no error",
        meta_plugins,
        chain_unknown,
    ),
    template(
        "concurrency/containers-at-once",
        "2 Parameters",
        Must,
        "eight containers can be added and deleted at once",
        all,
        at_once,
    ),
];

/// An IPAM plugin has what it handed out, and lo is lo: they can check without being told.
fn main_or_meta(subject: &Subject) -> bool {
    main_plugins(subject) || meta_plugins(subject)
}

/// Plugins whose ADD leaves nothing that CHECK could miss.
fn not_meta_sbr(subject: &Subject) -> bool {
    !matches!(subject.profile.name, "sbr" | "static" | "tuning" | "generic" | "loopback" | "vrf")
}

/// A new attachment, added.
pub(super) fn added(subject: &Arc<Subject>) -> Result<(Scene, Attachment, Value), Unmet> {
    let scene = Scene::new(subject)?;
    let attachment = scene.attachment("c1")?;
    let result = scene.add(&attachment)?;
    Ok((scene, attachment, result))
}

fn without_result(attachment: &mut Attachment) {
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

fn add_prints(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let attachment = scene.attachment("c1")?;
    let output = scene.call("ADD", &attachment).run()?;
    let wrong = faults(&output.result()?, &scene.version, subject.profile.kind == Kind::Ipam);
    if wrong.is_empty() { Ok(()) } else { Err(output.failure(wrong.join("; "))) }
}

fn add_true(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment, result) = added(subject)?;
    let empty = Vec::new();
    let interfaces = result["interfaces"].as_array().unwrap_or(&empty);
    for interface in interfaces {
        let name = interface["name"].as_str().unwrap_or_default();
        let inside = interface["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty());
        let link = if inside { attachment.container.link(name)? } else { scene.host.link(name)? };
        let place = if inside { "in the container" } else { "on the host" };
        let Some(link) = link else {
            return Err(Unmet::fail(format!("{name} is not {place}")).with("result", &result));
        };
        let mac = interface["mac"].as_str().unwrap_or_default();
        if !mac.is_empty() && !link["address"].as_str().is_some_and(|real| real.eq_ignore_ascii_case(mac)) {
            return Err(Unmet::fail(format!("{name} {place} has the MAC {}, not {mac}", link["address"])));
        }
    }
    for ip in result["ips"].as_array().unwrap_or(&empty) {
        let at = ip["interface"].as_u64().and_then(|at| usize::try_from(at).ok());
        let name = at.and_then(|at| interfaces.get(at)).and_then(|interface| interface["name"].as_str());
        let Some(name) = name else {
            return Err(Unmet::fail(format!("{ip} names no interface")).with("result", &result));
        };
        let address = ip["address"].as_str().unwrap_or_default();
        let found = attachment.container.addresses(name)?;
        if name != "lo" && !found.iter().any(|found| found == address) {
            return Err(Unmet::fail(format!("{name} has the addresses {found:?}, not {address}")));
        }
    }
    let routes = attachment.container.routes()?;
    for route in result["routes"].as_array().unwrap_or(&empty) {
        let dst = route["dst"].as_str().unwrap_or_default();
        let v6 = dst.contains(':');
        let shown = if dst == "0.0.0.0/0" || dst == "::/0" { "default" } else { dst };
        let there = routes.iter().any(|route| {
            route["dst"] == shown && route["gateway"].as_str().is_none_or(|gateway| gateway.contains(':') == v6)
        });
        if !there {
            return Err(Unmet::fail(format!("there is no route to {dst}")).with("routes", json!(routes)));
        }
    }
    Ok(())
}

fn interface(attachment: &Attachment) -> Result<Value, Unmet> {
    let link = attachment.container.link(&attachment.ifname)?;
    link.ok_or_else(|| Unmet::fail(format!("the container has no link {}", attachment.ifname)))
}

fn add_up(subject: &Arc<Subject>) -> Verdict {
    let (_scene, attachment, _) = added(subject)?;
    let link = interface(&attachment)?;
    let up = link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
    if up { Ok(()) } else { Err(Unmet::fail("the interface is not up").with("link", &link)) }
}

fn add_long_name(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let attachment = scene.attachment_as("c1", "fifteen-bytes-x")?;
    let result = scene.add(&attachment)?;
    interface(&attachment)?;
    scene.del(&attachment, &result)
}

/// The entry of the container's interface in a result.
fn entry<'a>(attachment: &Attachment, result: &'a Value) -> Result<&'a Value, Unmet> {
    let mut interfaces = result["interfaces"].as_array().into_iter().flatten();
    interfaces
        .find(|interface| interface["name"] == attachment.ifname.as_str())
        .ok_or_else(|| Unmet::fail(format!("the result has no interface {}", attachment.ifname)).with("result", result))
}

fn add_mac(subject: &Arc<Subject>) -> Verdict {
    let (_scene, attachment, result) = added(subject)?;
    let (told, link) = (entry(&attachment, &result)?, interface(&attachment)?);
    let told = told["mac"].as_str().unwrap_or_default();
    if link["address"].as_str().is_some_and(|real| real.eq_ignore_ascii_case(told)) {
        return Ok(());
    }
    Err(Unmet::fail(format!("the result says {told:?}, the link has {}", link["address"])))
}

fn add_sandbox(subject: &Arc<Subject>) -> Verdict {
    let (_scene, attachment, result) = added(subject)?;
    for interface in result["interfaces"].as_array().into_iter().flatten() {
        let sandbox = interface["sandbox"].as_str().unwrap_or_default();
        let wanted =
            if interface["name"] == attachment.ifname.as_str() { attachment.container.path.to_str() } else { Some("") };
        if wanted != Some(sandbox) {
            return Err(
                Unmet::fail(format!("{} has the sandbox {sandbox:?}", interface["name"])).with("result", &result)
            );
        }
    }
    entry(&attachment, &result).map(drop)
}

fn add_twice(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    scene.settled()?;
    let attachment = scene.attachment("c1")?;
    let before = scene.host.inventory()?;
    let inside = attachment.container.inventory()?;
    let result = scene.add(&attachment)?;
    let held = (scene.host.inventory()?, attachment.container.inventory()?);
    let again = scene.call("ADD", &attachment).run()?;
    if again.code == Some(0) {
        again.result()?;
        // Rules of a chained plugin that are there twice do no harm, as long as one DEL takes both.
        if subject.profile.kind != Kind::Meta {
            scene.host_is(&held.0)?;
            scene.container_is(&attachment.container, &held.1)?;
        }
    } else {
        again.error()?;
    }
    scene.del(&attachment, &result)?;
    scene.host_is(&before)?;
    as_before(&scene, &attachment, &inside)
}

fn add_taken(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    scene.settled()?;
    let attachment = scene.attachment("c1")?;
    attachment.container.sh("ip link add eth0 type veth peer name other; ip addr add 192.0.2.9/32 dev eth0")?;
    let (before, inside) = (scene.host.inventory()?, attachment.container.inventory()?);
    scene.add_fails(&attachment)?;
    scene.container_is(&attachment.container, &inside)?;
    scene.host_is(&before)
}

/// Skips where one container cannot have two interfaces of a network.
fn one_network_twice(subject: &Subject) -> Verdict {
    match subject.profile.name {
        "host-device" => Err(Unmet::skip("one device is one interface")),
        "ptp" => Err(Unmet::skip("two links to one gateway address cannot both have the route to it")),
        "flannel" | "outrigger" => Err(Unmet::skip("the inner plugins decide")),
        _ => Ok(()),
    }
}

fn add_two(subject: &Arc<Subject>) -> Verdict {
    let (scene, first, result) = added(subject)?;
    one_network_twice(subject)?;
    scene.ipam_hands_out("result", &[("10.77.0.6/24", "10.77.0.1", None)], &[])?;
    let second = Attachment { ifname: "net1".into(), ..first.clone() };
    let mut second = second;
    if subject.profile.name == "vlan" {
        second.config["vlanId"] = json!(77);
    }
    let other = scene.add(&second)?;
    interface(&first)?;
    interface(&second)?;
    scene.del(&second, &other)?;
    scene.del(&first, &result)
}

fn add_changed(subject: &Arc<Subject>, change: impl Fn(&mut Value)) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    change(&mut attachment.config);
    let result = scene.add(&attachment)?;
    scene.del(&attachment, &result)
}

fn add_k8s_args(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u";
    attachment.args = Some(args.into());
    let result = scene.add(&attachment)?;
    scene.check(&attachment, &result)?.success()?;
    scene.del(&attachment, &result)
}

fn add_case(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    let Value::Object(config) = &attachment.config else { return Ok(()) };
    let renamed = config.iter().map(|(key, value)| {
        let key = if key.contains('.') { key.clone() } else { key.to_uppercase() };
        (key, value.clone())
    });
    attachment.config = renamed.collect::<serde_json::Map<_, _>>().into();
    let output = scene.call("ADD", &attachment).run()?;
    let result = output.result()?;
    let wrong = faults(&result, &scene.version, subject.profile.kind == Kind::Ipam);
    if wrong.is_empty() {
        scene.call("DEL", &attachment).run()?.success()
    } else {
        Err(output.failure(wrong.join("; ")))
    }
}

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

/// The container after DEL: `lo` keeps its addresses when it is down, and sbr does not move routes back, since the
/// interface is about to go.
fn as_before(scene: &Scene, attachment: &Attachment, inside: &Inventory) -> Verdict {
    if scene.subject.profile.kind == Kind::Loopback || scene.subject.profile.name == "sbr" {
        return Ok(());
    }
    scene.container_is(&attachment.container, inside)
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
    if damage.inside {
        attachment.container.sh(damage.line)?
    } else {
        scene.host.sh(damage.line)?
    };
    scene.check(&attachment, &result)?.error().map(drop)
}

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

/// The lines of the host that a GC must have taken away: what is not a link of a namespace that is gone.
fn lost(scene: &Scene, container: &Container) -> Verdict {
    scene.host.remove_container(container)
}

fn gc_removes(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    let scene = Scene::new(subject)?;
    scene.settled()?;
    let before = scene.host.inventory()?;
    let attachment = scene.attachment("c1")?;
    scene.add(&attachment)?;
    lost(&scene, &attachment.container)?;
    scene.gc(&[])?.success()?;
    gone_but_devices(&scene, &before)
}

fn gone_but_devices(scene: &Scene, before: &Inventory) -> Verdict {
    crate::host::eventually(std::time::Duration::from_secs(3), || {
        let mut difference = before.difference(&scene.host.inventory()?);
        // The suite's own device for host-device.
        difference.retain(|line| !(line[2..].starts_with("link d") || line.contains(" dev dc1")));
        if difference.is_empty() {
            return Ok(());
        }
        Err(Unmet::fail(format!("left behind: {}", difference.join("; "))))
    })
}

fn gc_mixed(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    if subject.profile.name == "static" {
        return Err(Unmet::skip("static holds nothing"));
    }
    let (scene, first, result) = added(subject)?;
    let host = scene.host.inventory()?;
    scene.ipam_hands_out("result", &[("10.77.0.6/24", "10.77.0.1", None)], &[])?;
    let second = scene.attachment("c2")?;
    scene.add(&second)?;
    lost(&scene, &second.container)?;
    scene.gc(&[&first])?.success()?;
    scene.check(&first, &result)?.success()?;
    crate::host::eventually(std::time::Duration::from_secs(3), || {
        let mut difference = host.difference(&scene.host.inventory()?);
        difference.retain(|line| !(line[2..].starts_with("link d") || line.contains(" dev dc2")));
        if difference.is_empty() {
            return Ok(());
        }
        Err(Unmet::fail(format!("the host is not as before the lost container: {}", difference.join("; "))))
    })
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

fn chain_passes(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    let dns = json!({ "nameservers": ["192.0.2.53"], "domain": "d.example", "search": ["s.example"], "options": ["ndots:2"] });
    attachment.config["prevResult"]["dns"] = dns;
    let before = attachment.config["prevResult"].clone();
    let after = scene.add(&attachment)?;
    if addresses(&before) != addresses(&after) {
        return Err(Unmet::fail("the addresses are not those of prevResult")
            .with("before", &before)
            .with("after", &after));
    }
    for key in ["dns", "ips"] {
        if before[key] != after[key] {
            return Err(Unmet::fail(format!("{key} was changed")).with("before", &before).with("after", &after));
        }
    }
    // A chained plugin may add routes of its own; to move routes is what sbr is for.
    let routes = |result: &Value| result["routes"].as_array().cloned().unwrap_or_default();
    if subject.profile.name != "sbr" && !routes(&after).starts_with(&routes(&before)) {
        return Err(Unmet::fail("routes were changed or inserted").with("before", &before).with("after", &after));
    }
    let names = |result: &Value| -> Vec<Value> {
        result["interfaces"].as_array().into_iter().flatten().map(|interface| interface["name"].clone()).collect()
    };
    let (old, new) = (names(&before), names(&after));
    if new.starts_with(&old) {
        return Ok(());
    }
    Err(Unmet::fail("interfaces were changed or inserted").with("before", &before).with("after", &after))
}

fn chain_without(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    without_result(&mut attachment);
    scene.add_fails(&attachment).map(drop)
}

fn chain_bad(subject: &Arc<Subject>, result: &Value) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    attachment.config["prevResult"] = result.clone();
    scene.add_fails(&attachment).map(drop)
}

fn chain_unknown(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    attachment.config["prevResult"]["x.y/z"] = json!({ "a": 1 });
    attachment.config["prevResult"]["interfaces"][0]["x.y/z"] = json!([1]);
    let result = scene.add(&attachment)?;
    scene.del(&attachment, &result)
}

fn at_once(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    scene.settled()?;
    let mut attachments = Vec::new();
    for number in 0..8 {
        let id = format!("p{number}");
        let address = format!("10.77.0.{}/24", 20 + number);
        scene.ipam_hands_out(&format!("result.{id}"), &[(&address, "10.77.0.1", None)], &[("0.0.0.0/0", "")])?;
        attachments.push(scene.attachment(&id)?);
    }
    let before = scene.host.inventory()?;
    let each = |work: &(dyn Fn(&Attachment) -> Result<Value, Unmet> + Sync)| -> Result<Vec<Value>, Unmet> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = attachments.iter().map(|attachment| scope.spawn(move || work(attachment))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Value, Unmet>>| {
                thread.join().unwrap_or_else(|_| Err(Unmet::fail("a thread of the suite panicked")))
            };
            threads.into_iter().map(join).collect()
        })
    };
    let results = each(&|attachment| scene.add(attachment))?;
    if ipam_plugins(subject) && subject.profile.name != "static" {
        let mut all: Vec<_> = results.iter().flat_map(addresses).collect();
        all.sort();
        let count = all.len();
        all.dedup();
        if all.len() != count {
            return Err(Unmet::fail(format!("an address was handed out twice: {results:?}")));
        }
    }
    for (attachment, result) in attachments.iter().zip(&results) {
        scene.check(attachment, result)?.success()?;
    }
    each(&|attachment| {
        let result = results[attachments.iter().position(|other| other.id == attachment.id).unwrap_or(0)].clone();
        scene.del(attachment, &result).map(|()| Value::Null)
    })?;
    scene.host_is(&before)
}
