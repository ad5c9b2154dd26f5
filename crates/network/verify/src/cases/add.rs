//! ADD: what it reports is there, and unusual wishes are met.

use std::sync::Arc;

use outrigger_verify_report::{Level, Unmet, Verdict};
use serde_json::{Value, json};

use super::lifecycle::{added, as_before, interface, not_ipam, one_network_twice};
use super::{Template, all, main_plugins, template};
use crate::profile::Kind;
use crate::result::faults;
use crate::scene::{Attachment, Scene, Subject};

use Level::{Must, Should};

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
        "parameters/args-malformed",
        "2 Parameters",
        Should,
        "CNI_ARGS that are no pairs are ignored, or an error that names them and leaves nothing",
        all,
        args_malformed,
    ),
    template(
        "ADD/keys-in-other-case",
        "1 Network configuration format",
        Should,
        "keys are matched without regard to case, as the reference plugins do",
        all,
        add_case,
    ),
];

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

fn args_malformed(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    scene.settled()?;
    for (number, args) in ["novalue", ";;;", "=", "a=b=c"].iter().enumerate() {
        let attachment = scene.attachment(&format!("c{number}"))?;
        let (before, inside) = (scene.host.inventory()?, attachment.container.inventory()?);
        let output = scene.call("ADD", &attachment).env("CNI_ARGS", *args).run()?;
        if output.code == Some(0) {
            let result = output.result()?;
            let wrong = faults(&result, &scene.version, subject.profile.kind == Kind::Ipam);
            if !wrong.is_empty() {
                return Err(output.failure(wrong.join("; ")));
            }
            scene.del(&attachment, &result)?;
        } else {
            // All else is as it should be, so it is these that the error has to be about.
            let error = output.error()?;
            if !format!("{} {}", error.msg, error.details).contains("ARGS") {
                return Err(output.failure("the error does not name CNI_ARGS"));
            }
        }
        scene.host_is(&before)?;
        as_before(&scene, &attachment, &inside)?;
    }
    Ok(())
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
