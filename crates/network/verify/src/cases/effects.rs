//! What single plugins do in particular.

use std::sync::Arc;

use outrigger_verify_report::{Level, Unmet, Verdict};
use serde_json::{Value, json};

pub(crate) use super::effects_main::{BRIDGE, HOST_DEVICE, LOOPBACK, MACVLAN, PTP, TAP};
pub(crate) use super::effects_meta::{BANDWIDTH, FIREWALL, PORTMAP, SBR, TUNING};
use crate::call::Output;
use crate::profile::Effect;
use crate::result::addresses;
use crate::scene::{Attachment, NETWORK, Scene, Subject};

use Level::{Must, Should};

pub(super) const fn effect(
    id: &'static str,
    level: Level,
    title: &'static str,
    body: fn(&Arc<Subject>) -> Verdict,
) -> Effect {
    Effect { id, level, title, body }
}

/// A scene and an attachment whose configuration was changed.
pub(super) fn changed(subject: &Arc<Subject>, change: impl Fn(&mut Value)) -> Result<(Scene, Attachment), Unmet> {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    change(&mut attachment.config);
    Ok((scene, attachment))
}

/// The plugin must refuse a configuration.
pub(super) fn refuses(subject: &Arc<Subject>, change: impl Fn(&mut Value)) -> Result<Output, Unmet> {
    let (scene, attachment) = changed(subject, change)?;
    Ok(scene.add_fails(&attachment)?.1)
}

/// Fails with a reason unless a condition holds.
pub(super) fn ensure(condition: bool, reason: impl FnOnce() -> String) -> Verdict {
    if condition { Ok(()) } else { Err(Unmet::fail(reason())) }
}

/// What host-local does.
pub(crate) const HOST_LOCAL: &[Effect] = &[
    effect("effects/first-address", Must, "the first address is the first of the range after the gateway", |subject| {
        hands_out(subject, json!({ "subnet": "10.79.0.0/24" }), "10.79.0.2/24")
    }),
    effect("effects/gateway", Must, "the gateway is the first address of the subnet", |subject| {
        let (scene, attachment) = changed(subject, |_| ())?;
        let result = scene.add(&attachment)?;
        ensure(result["ips"][0]["gateway"] == "10.79.0.1", || format!("it is {}", result["ips"][0]["gateway"]))
    }),
    effect("effects/range", Must, "rangeStart and rangeEnd bound what is handed out", |subject| {
        hands_out(
            subject,
            json!({ "subnet": "10.79.0.0/24", "rangeStart": "10.79.0.40", "rangeEnd": "10.79.0.41" }),
            "10.79.0.40/24",
        )
    }),
    effect("effects/v6", Must, "a v6 subnet works", |subject| {
        hands_out(subject, json!({ "subnet": "fd79::/64" }), "fd79::2/64")
    }),
    effect("effects/sets", Must, "one address of each set of ranges is handed out", |subject| {
        let (scene, attachment) = changed(subject, |config| {
            config["ipam"] = json!({ "type": "host-local", "ranges": [[{ "subnet": "10.79.0.0/24" }], [{ "subnet": "fd79::/64" }]] });
        })?;
        let found = addresses(&scene.add(&attachment)?);
        ensure(found == ["10.79.0.2/24", "fd79::2/64"], || format!("it handed out {found:?}"))
    }),
    effect("effects/round-robin", Must, "a released address is not handed out again at once", |subject| {
        let (scene, attachment) = changed(subject, |_| ())?;
        let result = scene.add(&attachment)?;
        scene.del(&attachment, &result)?;
        let again = addresses(&scene.add(&attachment)?);
        ensure(again == ["10.79.0.3/24"], || format!("it handed out {again:?} after {:?}", addresses(&result)))
    }),
    effect("effects/full", Must, "ADD fails when the range is used up, and works again after a DEL", full),
    effect("effects/full-status", Should, "STATUS is error 50 when the range is used up", full_status),
    effect("effects/same-attachment-twice", Must, "a second ADD of an attachment is an error", |subject| {
        let (scene, attachment) = changed(subject, |_| ())?;
        scene.add(&attachment)?;
        scene.add_fails(&attachment).map(drop)
    }),
    effect("effects/wanted-by-args", Must, "CNI_ARGS IP asks for an address", |subject| {
        let (scene, mut attachment) = changed(subject, |_| ())?;
        attachment.args = Some("IP=10.79.0.77".into());
        let found = addresses(&scene.add(&attachment)?);
        ensure(found == ["10.79.0.77/24"], || format!("it handed out {found:?}"))
    }),
    effect("effects/wanted-by-capability", Must, "the capability ips asks for an address", |subject| {
        let (scene, attachment) =
            changed(subject, |config| config["runtimeConfig"] = json!({ "ips": ["10.79.0.78"] }))?;
        let found = addresses(&scene.add(&attachment)?);
        ensure(found == ["10.79.0.78/24"], || format!("it handed out {found:?}"))
    }),
    effect("effects/wanted-but-taken", Must, "an address that is taken is not handed out again", |subject| {
        let (scene, mut attachment) = changed(subject, |_| ())?;
        attachment.args = Some("IP=10.79.0.77".into());
        scene.add(&attachment)?;
        let mut other = scene.attachment("c2")?;
        other.args = attachment.args;
        scene.add_fails(&other).map(drop)
    }),
    effect("effects/wanted-outside", Must, "a wanted address outside the range is refused", |subject| {
        let (scene, mut attachment) = changed(subject, |_| ())?;
        attachment.args = Some("IP=192.0.2.1".into());
        scene.add_fails(&attachment).map(drop)
    }),
    effect("effects/ranges-by-capability", Must, "the capability ipRanges gives ranges", |subject| {
        let (scene, attachment) = changed(subject, |config| {
            config["ipam"] = json!({ "type": "host-local" });
            config["runtimeConfig"] = json!({ "ipRanges": [[{ "subnet": "10.82.0.0/24" }]] });
        })?;
        let found = addresses(&scene.add(&attachment)?);
        ensure(found == ["10.82.0.2/24"], || format!("it handed out {found:?}"))
    }),
    effect(
        "effects/files",
        Must,
        "a lease is a file of the address's name that holds container id and interface",
        |subject| {
            let (scene, attachment) = changed(subject, |_| ())?;
            scene.add(&attachment)?;
            let text = fs_err::read_to_string(format!("/var/lib/cni/networks/{NETWORK}/10.79.0.2"))?;
            ensure(text == "c1\r\neth0", || format!("the file holds {text:?}"))
        },
    ),
    effect("effects/data-dir", Must, "dataDir moves the files", |subject| {
        let (scene, attachment) = changed(subject, |config| config["ipam"]["dataDir"] = json!("/run/leases"))?;
        scene.add(&attachment)?;
        fs_err::metadata(format!("/run/leases/{NETWORK}/10.79.0.2"))?;
        Ok(())
    }),
    effect("effects/resolv-conf", Must, "resolvConf gives the result's DNS", |subject| {
        let (scene, attachment) = changed(subject, |config| config["ipam"]["resolvConf"] = json!("/run/resolv.conf"))?;
        fs_err::write("/run/resolv.conf", "nameserver 192.0.2.53\nsearch a.example b.example\noptions ndots:3\n")?;
        let result = scene.add(&attachment)?;
        let wanted =
            json!({ "nameservers": ["192.0.2.53"], "search": ["a.example", "b.example"], "options": ["ndots:3"] });
        ensure(result["dns"] == wanted, || format!("dns is {}", result["dns"]))
    }),
    effect("effects/empty-lease-file", Must, "an empty file, as a full disk leaves it, counts as taken", |subject| {
        let (scene, attachment) = changed(subject, |_| ())?;
        fs_err::create_dir_all(format!("/var/lib/cni/networks/{NETWORK}"))?;
        fs_err::write(format!("/var/lib/cni/networks/{NETWORK}/10.79.0.2"), "")?;
        let found = addresses(&scene.add(&attachment)?);
        ensure(found == ["10.79.0.3/24"], || format!("it handed out {found:?}"))
    }),
    effect("effects/subnet-too-small", Must, "a subnet without room is refused", |subject| {
        range_refused(subject, json!({ "subnet": "10.79.0.0/31" }))
    }),
    effect("effects/subnet-has-host-bits", Must, "a subnet with host bits is refused", |subject| {
        range_refused(subject, json!({ "subnet": "10.79.0.1/24" }))
    }),
    effect("effects/subnet-is-none", Must, "a subnet that is none is refused", |subject| {
        range_refused(subject, json!({ "subnet": "ten" }))
    }),
    effect("effects/range-outside", Must, "a range outside its subnet is refused", |subject| {
        range_refused(subject, json!({ "subnet": "10.79.0.0/24", "rangeStart": "10.80.0.1" }))
    }),
    effect("effects/range-backwards", Must, "a range that ends before it starts is refused", |subject| {
        range_refused(subject, json!({ "subnet": "10.79.0.0/24", "rangeStart": "10.79.0.9", "rangeEnd": "10.79.0.3" }))
    }),
    effect("effects/ranges-overlap", Must, "sets that overlap are refused", |subject| {
        refuses(subject, |config| {
            config["ipam"] = json!({ "type": "host-local", "ranges": [[{ "subnet": "10.79.0.0/24" }], [{ "subnet": "10.79.0.128/25" }]] });
        })
        .map(drop)
    }),
    effect("effects/no-range", Must, "a configuration without ranges is refused", |subject| {
        refuses(subject, |config| config["ipam"] = json!({ "type": "host-local" })).map(drop)
    }),
];

fn hands_out(subject: &Arc<Subject>, mut ipam: Value, wanted: &str) -> Verdict {
    ipam["type"] = json!("host-local");
    let (scene, attachment) = changed(subject, |config| config["ipam"] = ipam.clone())?;
    let found = addresses(&scene.add(&attachment)?);
    ensure(found == [wanted], || format!("it handed out {found:?}, not {wanted}"))
}

fn range_refused(subject: &Arc<Subject>, mut ipam: Value) -> Verdict {
    ipam["type"] = json!("host-local");
    refuses(subject, |config| config["ipam"] = ipam.clone()).map(drop)
}

fn small(config: &mut Value) {
    config["ipam"] = json!({ "type": "host-local", "subnet": "10.79.0.0/30" });
}

fn full(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment) = changed(subject, small)?;
    let result = scene.add(&attachment)?;
    let mut other = scene.attachment("c2")?;
    small(&mut other.config);
    let (_, output) = scene.add_fails(&other)?;
    scene.del(&attachment, &result)?;
    scene.add(&other).map(drop).map_err(|unmet| unmet.with("before that", &output.stdout))
}

fn full_status(subject: &Arc<Subject>) -> Verdict {
    super::needs_1_1(subject)?;
    let (scene, attachment) = changed(subject, small)?;
    scene.add(&attachment)?;
    let mut config = scene.config();
    small(&mut config);
    let call = crate::call::Call::new(&scene.binary(), "STATUS").env("CNI_PATH", scene.cni_path());
    call.config(&config).run()?.error_code(&[50]).map(drop)
}

/// What static does.
pub(crate) const STATIC: &[Effect] = &[
    effect("effects/addresses", Must, "all addresses of the configuration are in the result, in order", |subject| {
        let (scene, attachment) = changed(subject, |_| ())?;
        let result = scene.add(&attachment)?;
        let found = addresses(&result);
        ensure(found == ["10.80.0.2/24", "fd80::2/64"] && result["ips"][0]["gateway"] == "10.80.0.1", || {
            format!("it gave {result}")
        })
    }),
    effect("effects/routes-and-dns", Must, "routes and DNS of the configuration are in the result", |subject| {
        let (scene, attachment) = changed(subject, |config| {
            config["ipam"]["routes"] = json!([{ "dst": "198.51.100.0/24", "gw": "10.80.0.7" }]);
            config["ipam"]["dns"] = json!({ "nameservers": ["192.0.2.53"], "domain": "d.example" });
        })?;
        let result = scene.add(&attachment)?;
        ensure(
            result["dns"] == attachment.config["ipam"]["dns"]
                && result["routes"] == attachment.config["ipam"]["routes"],
            || format!("it gave {result}"),
        )
    }),
    effect("effects/args-add", Must, "CNI_ARGS IP and GATEWAY give an address", |subject| {
        let (scene, mut attachment) = changed(subject, |_| ())?;
        attachment.args = Some("IP=10.83.0.9/16;GATEWAY=10.83.0.1".into());
        let result = scene.add(&attachment)?;
        let there = |ip: &Value| ip["address"] == "10.83.0.9/16" && ip["gateway"] == "10.83.0.1";
        ensure(result["ips"].as_array().is_some_and(|ips| ips.iter().any(there)), || format!("it gave {result}"))
    }),
    effect("effects/capability-replaces", Must, "the capability ips replaces the addresses", |subject| {
        let (scene, attachment) =
            changed(subject, |config| config["runtimeConfig"] = json!({ "ips": ["10.84.0.9/16"] }))?;
        let found = addresses(&scene.add(&attachment)?);
        ensure(found == ["10.84.0.9/16"], || format!("it gave {found:?}"))
    }),
    effect("effects/no-length", Must, "an address without prefix length is refused", |subject| {
        refuses(subject, |config| config["ipam"]["addresses"][0]["address"] = json!("10.80.0.2")).map(drop)
    }),
    effect("effects/gateway-is-none", Must, "a gateway that is no address is refused", |subject| {
        refuses(subject, |config| config["ipam"]["addresses"][0]["gateway"] = json!("me")).map(drop)
    }),
];
