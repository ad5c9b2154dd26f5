//! Delegation: what a main plugin does with the IPAM plugin of its configuration, seen by an IPAM plugin of the suite.

use std::sync::Arc;

use outrigger_verify_report::{Level, Unmet, Verdict};
use serde_json::{Value, json};

use super::lifecycle::added;
use super::{Template, delegating_plugins, needs_1_1, template};
use crate::scene::{Attachment, NETWORK, Scene, Subject};

use Level::{Must, Should};

const DELEGATION: &str = "4 Plugin Delegation";

/// The cases.
pub(super) const TEMPLATES: &[Template] = &[
    template(
        "IPAM/environment",
        DELEGATION,
        Must,
        "the IPAM plugin gets the same parameters",
        delegating_plugins,
        environment,
    ),
    template(
        "IPAM/configuration",
        DELEGATION,
        Must,
        "the IPAM plugin gets the whole configuration",
        delegating_plugins,
        configuration,
    ),
    template("IPAM/args", DELEGATION, Must, "the IPAM plugin gets CNI_ARGS", delegating_plugins, args),
    template("IPAM/del", DELEGATION, Must, "DEL is handed on, once", delegating_plugins, |subject| {
        handed_on(subject, "DEL")
    }),
    template("IPAM/check", DELEGATION, Must, "CHECK is handed on, once", delegating_plugins, |subject| {
        handed_on(subject, "CHECK")
    }),
    template(
        "IPAM/gc",
        DELEGATION,
        Must,
        "GC is handed on, with the list of valid attachments",
        delegating_plugins,
        gc,
    ),
    template("IPAM/status", DELEGATION, Must, "STATUS is handed on", delegating_plugins, status),
    template(
        "IPAM/status-error",
        DELEGATION,
        Must,
        "STATUS fails with the code of the IPAM plugin",
        delegating_plugins,
        status_error,
    ),
    template(
        "IPAM/error-is-passed-on",
        DELEGATION,
        Must,
        "ADD fails with the message of the IPAM plugin",
        delegating_plugins,
        add_error,
    ),
    template(
        "IPAM/failed-add-leaves-nothing",
        DELEGATION,
        Should,
        "ADD that fails because the IPAM plugin does leaves nothing on host and in container",
        delegating_plugins,
        nothing_left,
    ),
    template(
        "IPAM/error-code-is-passed-on",
        DELEGATION,
        Should,
        "ADD fails with the code of the IPAM plugin",
        delegating_plugins,
        add_error_code,
    ),
    template(
        "IPAM/check-error",
        DELEGATION,
        Must,
        "CHECK fails when that of the IPAM plugin does",
        delegating_plugins,
        |subject| later_error(subject, "CHECK"),
    ),
    template(
        "IPAM/del-error",
        DELEGATION,
        Should,
        "DEL fails when that of the IPAM plugin does, so that it is tried again",
        delegating_plugins,
        |subject| later_error(subject, "DEL"),
    ),
    template("IPAM/junk", DELEGATION, Must, "ADD fails when the IPAM plugin prints junk", delegating_plugins, junk),
    template(
        "IPAM/silent-failure",
        DELEGATION,
        Must,
        "ADD fails when the IPAM plugin fails without a word",
        delegating_plugins,
        silent,
    ),
    template(
        "IPAM/no-address",
        DELEGATION,
        Must,
        "ADD fails when the IPAM plugin hands out no address",
        delegating_plugins,
        no_address,
    ),
    template(
        "IPAM/missing-plugin",
        DELEGATION,
        Must,
        "ADD fails when there is no such IPAM plugin",
        delegating_plugins,
        |subject| bad_type(subject, "no-such-ipam"),
    ),
    template(
        "IPAM/path-in-type",
        DELEGATION,
        Must,
        "an IPAM type with a path in it is refused",
        delegating_plugins,
        |subject| bad_type(subject, "../verify/bin/verify-ipam"),
    ),
    template(
        "IPAM/released-when-add-fails",
        DELEGATION,
        Must,
        "the address is released when ADD fails after it was handed out",
        delegating_plugins,
        released,
    ),
    template(
        "IPAM/released-without-netns",
        DELEGATION,
        Must,
        "DEL releases the address when the namespace is gone",
        delegating_plugins,
        released_without_netns,
    ),
    template(
        "IPAM/two-families",
        DELEGATION,
        Must,
        "a v4 and a v6 address are both set",
        delegating_plugins,
        two_families,
    ),
    template(
        "IPAM/routes",
        DELEGATION,
        Must,
        "routes of the IPAM result are set, through its gateway",
        delegating_plugins,
        routes,
    ),
    template("IPAM/dns", DELEGATION, Should, "DNS of the IPAM result is in the result", delegating_plugins, dns),
    template(
        "IPAM/result-of-an-older-version",
        DELEGATION,
        Must,
        "an IPAM result of an older version is understood",
        delegating_plugins,
        older,
    ),
    template(
        "IPAM/unknown-keys",
        DELEGATION,
        Should,
        "keys that are not known in an IPAM result are no error",
        delegating_plugins,
        unknown_keys,
    ),
];

fn last_call(scene: &Scene, command: &str) -> Result<(String, Value), Unmet> {
    let mut calls = scene.ipam_calls(command)?;
    let call = calls.pop().ok_or_else(|| Unmet::fail(format!("the IPAM plugin was not called with {command}")))?;
    if calls.is_empty() {
        Ok(call)
    } else {
        Err(Unmet::fail(format!("the IPAM plugin was called with {command} more than once")))
    }
}

fn environment(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment, _) = added(subject)?;
    let (environment, _) = last_call(&scene, "ADD")?;
    let netns = attachment.container.path.to_string_lossy().into_owned();
    let path = scene.cni_path();
    let wanted =
        [("CNI_CONTAINERID", "c1"), ("CNI_NETNS", &netns), ("CNI_IFNAME", &attachment.ifname), ("CNI_PATH", &path)];
    for (name, value) in wanted {
        if !environment.lines().any(|line| line == format!("{name}={value}")) {
            return Err(
                Unmet::fail(format!("the IPAM plugin did not get {name}={value}")).with("environment", environment)
            );
        }
    }
    Ok(())
}

fn configuration(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    attachment.config["x.y/z"] = json!([1, "two"]);
    attachment.config["ipam"]["own"] = json!({ "a": null });
    scene.add(&attachment)?;
    let (_, config) = last_call(&scene, "ADD")?;
    for key in ["cniVersion", "name", "type", "x.y/z", "ipam"] {
        if config[key] != attachment.config[key] {
            return Err(Unmet::fail(format!("{key} is not as in the main plugin's configuration")).with("got", &config));
        }
    }
    Ok(())
}

fn args(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    attachment.args = Some("IgnoreUnknown=1;A=b".into());
    scene.add(&attachment)?;
    let (environment, _) = last_call(&scene, "ADD")?;
    if environment.lines().any(|line| line == "CNI_ARGS=IgnoreUnknown=1;A=b") {
        return Ok(());
    }
    Err(Unmet::fail("the IPAM plugin did not get CNI_ARGS").with("environment", environment))
}

fn handed_on(subject: &Arc<Subject>, command: &str) -> Verdict {
    let (scene, attachment, result) = added(subject)?;
    let config = Scene::with_result(&attachment, &result);
    scene.call(command, &attachment).config(&config).run()?.success()?;
    let (environment, config) = last_call(&scene, command)?;
    if config["name"] != NETWORK || !environment.contains("CNI_CONTAINERID=c1") {
        return Err(Unmet::fail("the call of the IPAM plugin lacks the name or the container").with("got", &config));
    }
    Ok(())
}

fn gc(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    let (scene, attachment, _) = added(subject)?;
    scene.gc(&[&attachment])?.success()?;
    let (_, config) = last_call(&scene, "GC")?;
    let wanted = json!([{ "containerID": attachment.id, "ifname": attachment.ifname }]);
    if config["cni.dev/valid-attachments"] == wanted {
        return Ok(());
    }
    Err(Unmet::fail("the IPAM plugin did not get the list").with("got", &config))
}

fn status(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    let scene = Scene::new(subject)?;
    scene.status()?.success()?;
    last_call(&scene, "STATUS").map(drop)
}

fn status_error(subject: &Arc<Subject>) -> Verdict {
    needs_1_1(subject)?;
    let scene = Scene::new(subject)?;
    scene.ipam_fails("STATUS", r#"{"cniVersion":"1.1.0","code":50,"msg":"no addresses today"}"#)?;
    scene.status()?.error_code(&[50]).map(drop)
}

const REFUSAL: &str = r#"{"cniVersion":"1.0.0","code":117,"msg":"quota of the tenant is used up","details":"ask"}"#;

/// A scene on which shared things exist, and an attachment.
fn ready(subject: &Arc<Subject>) -> Result<(Scene, Attachment), Unmet> {
    let scene = Scene::new(subject)?;
    scene.settled()?;
    let attachment = scene.attachment("c1")?;
    Ok((scene, attachment))
}

fn add_error(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment) = ready(subject)?;
    scene.ipam_fails("ADD", REFUSAL)?;
    let (_, output) = scene.add_fails(&attachment)?;
    if output.error()?.msg.contains("quota of the tenant is used up") {
        return Ok(());
    }
    Err(output.failure("the message does not hold that of the IPAM plugin"))
}

fn add_error_code(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment) = ready(subject)?;
    scene.ipam_fails("ADD", REFUSAL)?;
    scene.call("ADD", &attachment).run()?.error_code(&[117]).map(drop)
}

fn later_error(subject: &Arc<Subject>, command: &str) -> Verdict {
    let (scene, attachment, result) = added(subject)?;
    scene.ipam_fails(command, REFUSAL)?;
    let config = Scene::with_result(&attachment, &result);
    scene.call(command, &attachment).config(&config).run()?.error().map(drop)
}

fn junk(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment) = ready(subject)?;
    fs_err::write("/run/verify/result", "hello, world")?;
    scene.add_fails(&attachment).map(drop)
}

/// The runtime has to call DEL after a failed ADD, so this is courtesy; but not every runtime does.
fn nothing_left(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment) = ready(subject)?;
    scene.ipam_fails("ADD", REFUSAL)?;
    let (before, inside) = (scene.host.inventory()?, attachment.container.inventory()?);
    scene.add_fails(&attachment)?;
    scene.container_is(&attachment.container, &inside)?;
    scene.host_is(&before)
}

fn silent(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment) = ready(subject)?;
    scene.ipam_fails("ADD", "")?;
    scene.add_fails(&attachment).map(drop)
}

fn no_address(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment) = ready(subject)?;
    scene.ipam_hands_out("result", &[], &[])?;
    scene.add_fails(&attachment).map(drop)
}

fn bad_type(subject: &Arc<Subject>, name: &str) -> Verdict {
    let (scene, mut attachment) = ready(subject)?;
    attachment.config["ipam"]["type"] = json!(name);
    scene.add_fails(&attachment).map(drop)
}

fn released(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment) = ready(subject)?;
    // A route that the kernel refuses: there is no way to its gateway.
    scene.ipam_hands_out("result", &[("10.77.0.5/24", "10.77.0.1", None)], &[("198.51.100.0/24", "192.0.2.1")])?;
    let output = scene.call("ADD", &attachment).run()?;
    output.error()?;
    if scene.ipam_calls("DEL")?.is_empty() {
        return Err(output.failure("the IPAM plugin was not called with DEL"));
    }
    Ok(())
}

fn released_without_netns(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment, result) = added(subject)?;
    scene.host.remove_container(&attachment.container)?;
    scene.del(&attachment, &result)?;
    if scene.ipam_calls("DEL")?.is_empty() {
        return Err(Unmet::fail("the IPAM plugin was not called with DEL"));
    }
    Ok(())
}

fn two_families(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let ips = [("10.77.0.5/24", "10.77.0.1", None), ("fd77::5/64", "fd77::1", None)];
    scene.ipam_hands_out("result", &ips, &[("0.0.0.0/0", ""), ("::/0", "")])?;
    let attachment = scene.attachment("c1")?;
    let result = scene.add(&attachment)?;
    let found = attachment.container.addresses(&attachment.ifname)?;
    if found != ["10.77.0.5/24", "fd77::5/64"] && found != ["10.77.0.5/32", "fd77::5/128"] {
        return Err(Unmet::fail(format!("the interface has {found:?}")).with("result", &result));
    }
    let routes = attachment.container.routes()?;
    if routes.iter().filter(|route| route["dst"] == "default").count() != 2 {
        return Err(Unmet::fail("there is not one default route for each family").with("routes", json!(routes)));
    }
    scene.check(&attachment, &result)?.success()?;
    scene.del(&attachment, &result)
}

fn routes(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let ips = [("10.77.0.5/24", "10.77.0.1", None)];
    scene.ipam_hands_out("result", &ips, &[("198.51.100.0/24", ""), ("203.0.113.0/24", "10.77.0.254")])?;
    let attachment = scene.attachment("c1")?;
    scene.add(&attachment)?;
    let routes = attachment.container.routes()?;
    for (dst, gateway) in [("198.51.100.0/24", "10.77.0.1"), ("203.0.113.0/24", "10.77.0.254")] {
        let there = routes.iter().any(|route| route["dst"] == dst && route["gateway"] == gateway);
        if !there {
            return Err(Unmet::fail(format!("no route to {dst} through {gateway}")).with("routes", json!(routes)));
        }
    }
    Ok(())
}

fn dns(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut answer = crate::result::make(&scene.version, &[], &[("10.77.0.5/24", "10.77.0.1", None)], &[]);
    answer["dns"] = json!({ "nameservers": ["192.0.2.53"], "domain": "d.example" });
    fs_err::write("/run/verify/result", answer.to_string())?;
    let attachment = scene.attachment("c1")?;
    let result = scene.add(&attachment)?;
    if result["dns"]["nameservers"] == answer["dns"]["nameservers"] {
        return Ok(());
    }
    Err(Unmet::fail("the result does not hold the IPAM plugin's nameservers").with("result", &result))
}

fn older(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let answer = crate::result::make("0.2.0", &[], &[("10.77.0.5/24", "10.77.0.1", None)], &[("0.0.0.0/0", "")]);
    fs_err::write("/run/verify/result", answer.to_string())?;
    let attachment = scene.attachment("c1")?;
    let result = scene.add(&attachment)?;
    let found = crate::result::addresses(&result);
    if found.len() == 1 { Ok(()) } else { Err(Unmet::fail("the address got lost").with("result", &result)) }
}

fn unknown_keys(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut answer = crate::result::make(&scene.version, &[], &[("10.77.0.5/24", "10.77.0.1", None)], &[]);
    answer["x.y/z"] = json!({ "a": 1 });
    answer["ips"][0]["x.y/z"] = json!(1);
    fs_err::write("/run/verify/result", answer.to_string())?;
    let attachment = scene.attachment("c1")?;
    scene.add(&attachment).map(drop)
}
