//! What single main plugins do in particular.

use std::sync::Arc;

use outrigger_verify_report::{Level, Unmet, Verdict};
use serde_json::{Value, json};

use super::effects::{changed, effect, ensure, refuses};
use super::effects_rules::{MASQUERADE_GC, MASQUERADE_NFTABLES, MASQUERADE_NFTABLES_GC};
use crate::profile::{Effect, device};
use crate::scene::{Attachment, Scene, Subject};

use Level::{Must, Should};

fn flag(link: &Value, name: &str) -> bool {
    link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == name))
}

fn host_link(scene: &Scene, name: &str) -> Result<Value, Unmet> {
    scene.host.link(name)?.ok_or_else(|| Unmet::fail(format!("the host has no link {name}")))
}

fn inside(attachment: &Attachment) -> Result<Value, Unmet> {
    let link = attachment.container.link(&attachment.ifname)?;
    link.ok_or_else(|| Unmet::fail(format!("the container has no link {}", attachment.ifname)))
}

/// The host's end of the pair, by the result.
fn port(scene: &Scene, result: &Value) -> Result<Value, Unmet> {
    for interface in result["interfaces"].as_array().into_iter().flatten() {
        let name = interface["name"].as_str().unwrap_or_default();
        if interface["sandbox"].as_str().is_none_or(str::is_empty)
            && let Some(link) = scene.host.link(name)?
            && link["linkinfo"]["info_kind"] == "veth"
        {
            return Ok(link);
        }
    }
    Err(Unmet::fail("the result names no veth of the host").with("result", result))
}

fn forwarding() -> Result<String, Unmet> {
    Ok(fs_err::read_to_string("/proc/sys/net/ipv4/ip_forward")?)
}

fn add_changed(subject: &Arc<Subject>, change: impl Fn(&mut Value)) -> Result<(Scene, Attachment, Value), Unmet> {
    let (scene, attachment) = changed(subject, change)?;
    let result = scene.add(&attachment)?;
    Ok((scene, attachment, result))
}

fn mtu(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment, result) = add_changed(subject, |config| config["mtu"] = json!(1400))?;
    let link = inside(&attachment)?;
    ensure(link["mtu"] == 1400, || format!("the interface has an MTU of {}", link["mtu"]))?;
    scene.check(&attachment, &result)?.success()
}

fn mtu_is_text(subject: &Arc<Subject>) -> Verdict {
    refuses(subject, |config| config["mtu"] = json!("large")).map(drop)
}

const MAC: &str = "02:00:00:12:34:56";

fn mac_by_capability(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment, result) = add_changed(subject, |config| config["runtimeConfig"] = json!({ "mac": MAC }))?;
    let link = inside(&attachment)?;
    ensure(link["address"] == MAC, || format!("the interface has {}", link["address"]))?;
    scene.check(&attachment, &result)?.success()
}

fn mac_by_args(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut attachment = scene.attachment("c1")?;
    attachment.args = Some(format!("IgnoreUnknown=1;MAC={MAC}"));
    scene.add(&attachment)?;
    let link = inside(&attachment)?;
    ensure(link["address"] == MAC, || format!("the interface has {}", link["address"]))
}

fn no_ipam(subject: &Arc<Subject>) -> Verdict {
    let (scene, attachment, result) = add_changed(subject, |config| {
        config.as_object_mut().map(|config| config.remove("ipam"));
        config["isGateway"] = json!(false);
    })?;
    let found = attachment.container.addresses("eth0")?;
    ensure(found.is_empty(), || format!("the interface has {found:?}"))?;
    scene.check(&attachment, &result)?.success()?;
    scene.del(&attachment, &result)
}

fn masquerades(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut warm = scene.attachment("warm-up")?;
    warm.config["ipMasq"] = json!(true);
    let result = scene.add(&warm)?;
    scene.del(&warm, &result)?;
    let mut attachment = scene.attachment("c1")?;
    attachment.config["ipMasq"] = json!(true);
    let before = scene.host.inventory()?;
    let result = scene.add(&attachment)?;
    let rules = scene.host.sh("nft list ruleset")?;
    ensure(rules.contains("masquerade") || rules.contains("MASQUERADE"), || "there is no rule that masquerades".into())
        .map_err(|unmet| unmet.with("rules", rules))?;
    scene.del(&attachment, &result)?;
    scene.host_is(&before)
}

fn masquerade_without_netns(subject: &Arc<Subject>) -> Verdict {
    let scene = Scene::new(subject)?;
    let mut warm = scene.attachment("warm-up")?;
    warm.config["ipMasq"] = json!(true);
    let result = scene.add(&warm)?;
    scene.del(&warm, &result)?;
    let mut attachment = scene.attachment("c1")?;
    attachment.config["ipMasq"] = json!(true);
    let before = scene.host.inventory()?;
    let result = scene.add(&attachment)?;
    scene.host.remove_container(&attachment.container)?;
    let call = scene.call("DEL", &attachment).config(&Scene::with_result(&attachment, &result)).env("CNI_NETNS", "");
    call.run()?.success()?;
    scene.host_is(&before)
}

/// What bridge does.
pub(crate) const BRIDGE: &[Effect] = &[
    effect("effects/bridge", Must, "the bridge is there, up, and the host's end is a port of it", |subject| {
        let (scene, _, result) = add_changed(subject, |_| ())?;
        let bridge = host_link(&scene, "cni0")?;
        ensure(bridge["linkinfo"]["info_kind"] == "bridge" && flag(&bridge, "UP"), || format!("cni0 is {bridge}"))?;
        let port = port(&scene, &result)?;
        ensure(port["master"] == "cni0", || format!("the host's end has the master {}", port["master"]))
    }),
    effect(
        "effects/result-order",
        Must,
        "interfaces are bridge, host's end, container's end; addresses are of the third",
        |subject| {
            let (_, _, result) = add_changed(subject, |_| ())?;
            let names: Vec<_> = result["interfaces"].as_array().into_iter().flatten().map(|one| &one["name"]).collect();
            ensure(
                names.len() == 3 && names[0] == "cni0" && names[2] == "eth0" && result["ips"][0]["interface"] == 2,
                || result.to_string(),
            )
        },
    ),
    effect(
        "effects/gateway",
        Must,
        "isGateway gives the bridge the gateway's address and lets the host forward",
        |subject| {
            let (scene, _, _) = add_changed(subject, |_| ())?;
            let addresses = scene.host.sh("ip -o -4 addr show dev cni0")?;
            ensure(addresses.contains("10.77.0.1/24"), || format!("cni0 has {addresses:?}"))?;
            let forward = forwarding()?;
            ensure(forward.trim() == "1", || "net.ipv4.ip_forward is 0".into())
        },
    ),
    effect("effects/no-gateway", Must, "without isGateway the bridge has no address", |subject| {
        let (scene, _, _) = add_changed(subject, |config| config["isGateway"] = json!(false))?;
        let addresses = scene.host.sh("ip -o -4 addr show dev cni0")?;
        ensure(addresses.trim().is_empty(), || format!("cni0 has {addresses:?}"))
    }),
    effect("effects/default-gateway", Must, "isDefaultGateway adds a default route", |subject| {
        let scene = Scene::new(subject)?;
        scene.ipam_hands_out("result", &[("10.77.0.5/24", "10.77.0.1", None)], &[])?;
        let mut attachment = scene.attachment("c1")?;
        attachment.config["isDefaultGateway"] = json!(true);
        let result = scene.add(&attachment)?;
        let routes = attachment.container.routes()?;
        let there = routes.iter().any(|route| route["dst"] == "default" && route["gateway"] == "10.77.0.1");
        ensure(there, || format!("routes are {routes:?}"))?;
        scene.check(&attachment, &result)?.success()
    }),
    effect(
        "effects/two-default-gateways",
        Must,
        "isDefaultGateway is refused when IPAM gives a default route too, or there is one default route",
        |subject| {
            let (scene, attachment) = changed(subject, |config| config["isDefaultGateway"] = json!(true))?;
            let output = scene.call("ADD", &attachment).run()?;
            if output.code != Some(0) {
                return output.error().map(drop);
            }
            let routes = attachment.container.routes()?;
            let count = routes.iter().filter(|route| route["dst"] == "default").count();
            ensure(count == 1, || format!("there are {count} default routes"))
        },
    ),
    effect("effects/gateway-differs", Must, "another gateway address on the same bridge is refused", |subject| {
        let (scene, _, _) = add_changed(subject, |_| ())?;
        scene.ipam_hands_out("result", &[("10.77.0.6/24", "10.77.0.254", None)], &[])?;
        let other = scene.attachment("c2")?;
        scene.add_fails(&other).map(drop)
    }),
    effect("effects/force-address", Must, "forceAddress replaces the bridge's address", |subject| {
        let (scene, _, _) = add_changed(subject, |_| ())?;
        scene.ipam_hands_out("result", &[("10.85.0.6/24", "10.85.0.1", None)], &[])?;
        let mut other = scene.attachment("c2")?;
        other.config["forceAddress"] = json!(true);
        scene.add(&other)?;
        let addresses = scene.host.sh("ip -o -4 addr show dev cni0")?;
        ensure(addresses.contains("10.85.0.1/24") && !addresses.contains("10.77.0.1/24"), || {
            format!("cni0 has {addresses:?}")
        })
    }),
    effect("effects/mtu", Must, "mtu is that of the interface", mtu),
    effect("effects/mtu-is-a-text", Must, "an mtu that is a text is refused", mtu_is_text),
    effect("effects/hairpin", Must, "hairpinMode is set on the port", |subject| {
        let (scene, _, result) = add_changed(subject, |config| config["hairpinMode"] = json!(true))?;
        let port = port(&scene, &result)?;
        ensure(port["linkinfo"]["info_slave_data"]["hairpin"] == true, || format!("the port is {port}"))
    }),
    effect("effects/promiscuous", Must, "promiscMode is set on the bridge", |subject| {
        let (scene, _, _) = add_changed(subject, |config| config["promiscMode"] = json!(true))?;
        let bridge = host_link(&scene, "cni0")?;
        ensure(flag(&bridge, "PROMISC"), || format!("cni0 is {bridge}"))
    }),
    effect("effects/hairpin-and-promiscuous", Must, "hairpinMode together with promiscMode is refused", |subject| {
        refuses(subject, |config| {
            config["hairpinMode"] = json!(true);
            config["promiscMode"] = json!(true);
        })
        .map(drop)
    }),
    effect("effects/vlan", Must, "vlan is the port's untagged VLAN", |subject| {
        let (scene, attachment) = changed(subject, |config| config["vlan"] = json!(100))?;
        if scene.host.sh("ip link add probe type bridge vlan_filtering 1; ip link del probe").is_err() {
            return Err(Unmet::skip("this kernel's bridges cannot filter VLANs"));
        }
        let result = scene.add(&attachment)?;
        let name = port(&scene, &result)?["ifname"].as_str().unwrap_or_default().to_owned();
        let vlans = scene.host.sh(&format!("bridge vlan show dev {name}"))?;
        ensure(vlans.contains("100 PVID Egress Untagged"), || format!("its VLANs are {vlans}"))
    }),
    effect("effects/vlan-out-of-range", Must, "a VLAN above 4094 is refused", |subject| {
        refuses(subject, |config| config["vlan"] = json!(4095)).map(drop)
    }),
    effect(
        "effects/bridge-is-no-bridge",
        Must,
        "a link of that name that is no bridge is refused, and stays",
        |subject| {
            let scene = Scene::new(subject)?;
            scene.host.sh("ip link add cni0 type veth peer name cni1")?;
            let attachment = scene.attachment("c1")?;
            scene.add_fails(&attachment)?;
            ensure(host_link(&scene, "cni0")?["linkinfo"]["info_kind"] == "veth", || "it is gone".into())
        },
    ),
    effect("effects/mac-by-capability", Must, "the capability mac sets the interface's MAC", mac_by_capability),
    effect("effects/mac-by-args", Must, "CNI_ARGS MAC sets the interface's MAC", mac_by_args),
    effect("effects/mac-is-none", Must, "a MAC that is none is refused", |subject| {
        refuses(subject, |config| config["runtimeConfig"] = json!({ "mac": "not-a-mac" })).map(drop)
    }),
    effect("effects/layer-2", Must, "without ipam the interface has no address", no_ipam),
    effect("effects/masquerade", Must, "ipMasq makes rules, and DEL takes them away", masquerades),
    effect(
        "effects/masquerade-without-netns",
        Must,
        "DEL takes the rules of ipMasq away when the namespace is gone",
        masquerade_without_netns,
    ),
    MASQUERADE_GC,
    MASQUERADE_NFTABLES,
    MASQUERADE_NFTABLES_GC,
    effect("effects/mac-spoof-check", Must, "macspoofchk makes rules, and DEL takes them away", |subject| {
        let scene = Scene::new(subject)?;
        let mut warm = scene.attachment("warm-up")?;
        warm.config["macspoofchk"] = json!(true);
        let result = scene.add(&warm)?;
        scene.del(&warm, &result)?;
        let mut attachment = scene.attachment("c1")?;
        attachment.config["macspoofchk"] = json!(true);
        let before = scene.host.inventory()?;
        let result = scene.add(&attachment)?;
        let rules = scene.host.sh("nft list ruleset")?;
        let mac = inside(&attachment)?["address"].as_str().unwrap_or("?").to_owned();
        ensure(rules.contains(&mac), || "no rule holds the interface's MAC".into())
            .map_err(|unmet| unmet.with("rules", rules))?;
        scene.del(&attachment, &result)?;
        scene.host_is(&before)
    }),
];

/// What ptp does.
pub(crate) const PTP: &[Effect] = &[
    effect(
        "effects/host-route",
        Must,
        "the host has a route to the container through its end of the pair",
        |subject| {
            let (scene, _, result) = add_changed(subject, |_| ())?;
            let name = port(&scene, &result)?["ifname"].clone();
            let routes = scene.host.ip("route show")?;
            let there = routes.iter().any(|route| route["dst"] == "10.77.0.5" && route["dev"] == name);
            ensure(there, || format!("routes are {routes:?}"))
        },
    ),
    effect("effects/gateway", Must, "the host's end has the gateway's address, alone", |subject| {
        let (scene, _, _) = add_changed(subject, |_| ())?;
        let addresses = scene.host.sh("ip -o -4 addr show")?;
        ensure(addresses.contains("10.77.0.1/32"), || format!("addresses are {addresses}"))?;
        ensure(forwarding()?.trim() == "1", || "net.ipv4.ip_forward is 0".into())
    }),
    effect("effects/reaches-the-gateway", Must, "the container reaches its gateway", |subject| {
        let (_scene, attachment, _) = add_changed(subject, |_| ())?;
        attachment.container.sh("ping -c 1 -W 2 10.77.0.1").map(drop)
    }),
    effect("effects/mtu", Must, "mtu is that of the interface", mtu),
    effect("effects/mtu-is-a-text", Must, "an mtu that is a text is refused", mtu_is_text),
    effect("effects/masquerade", Must, "ipMasq makes rules, and DEL takes them away", masquerades),
    effect(
        "effects/masquerade-without-netns",
        Must,
        "DEL takes the rules of ipMasq away when the namespace is gone",
        masquerade_without_netns,
    ),
    MASQUERADE_GC,
    MASQUERADE_NFTABLES,
    MASQUERADE_NFTABLES_GC,
    effect("effects/ipam-is-wanted", Must, "a configuration without ipam is refused", |subject| {
        refuses(subject, |config| drop(config.as_object_mut().map(|config| config.remove("ipam")))).map(drop)
    }),
];

fn macvlan_mode(subject: &Arc<Subject>, mode: &str) -> Verdict {
    let (scene, attachment, result) = add_changed(subject, |config| config["mode"] = json!(mode))?;
    let link = inside(&attachment)?;
    ensure(link["linkinfo"]["info_data"]["mode"] == mode, || format!("the interface is {}", link["linkinfo"]))?;
    scene.check(&attachment, &result)?.success()
}

/// What macvlan does.
pub(crate) const MACVLAN: &[Effect] = &[
    effect("effects/mode-bridge", Must, "mode bridge", |subject| macvlan_mode(subject, "bridge")),
    effect("effects/mode-private", Must, "mode private", |subject| macvlan_mode(subject, "private")),
    effect("effects/mode-vepa", Must, "mode vepa", |subject| macvlan_mode(subject, "vepa")),
    effect("effects/mode-passthru", Must, "mode passthru", |subject| macvlan_mode(subject, "passthru")),
    effect("effects/mode-unknown", Must, "an unknown mode is refused", |subject| {
        refuses(subject, |config| config["mode"] = json!("warp")).map(drop)
    }),
    effect("effects/master-missing", Must, "a master that is not there is refused", |subject| {
        refuses(subject, |config| config["master"] = json!("nope0")).map(drop)
    }),
    effect(
        "effects/master-by-default-route",
        Must,
        "without master it is the interface of the default route",
        |subject| {
            let scene = Scene::new(subject)?;
            scene.host.sh("ip addr add 192.0.2.2/24 dev m0; ip route add default via 192.0.2.1")?;
            let mut attachment = scene.attachment("c1")?;
            attachment.config.as_object_mut().map(|config| config.remove("master"));
            let result = scene.add(&attachment)?;
            let (link, master) = (inside(&attachment)?, host_link(&scene, "m0")?);
            ensure(link["link_index"] == master["ifindex"], || format!("the interface is {link}"))?;
            scene.del(&attachment, &result)
        },
    ),
    effect(
        "effects/del-without-master",
        Must,
        "DEL succeeds and releases the address when the master is gone",
        |subject| {
            let (scene, attachment, result) = add_changed(subject, |_| ())?;
            scene.host.sh("ip link del m0")?;
            scene.del(&attachment, &result)?;
            ensure(!scene.ipam_calls("DEL")?.is_empty(), || "the IPAM plugin was not called with DEL".into())
        },
    ),
    effect(
        "effects/del-without-default-route",
        Must,
        "DEL without master in the configuration needs no default route",
        |subject| {
            let scene = Scene::new(subject)?;
            scene.host.sh("ip addr add 192.0.2.2/24 dev m0; ip route add default via 192.0.2.1")?;
            let mut attachment = scene.attachment("c1")?;
            attachment.config.as_object_mut().map(|config| config.remove("master"));
            let result = scene.add(&attachment)?;
            scene.host.sh("ip route del default")?;
            scene.del(&attachment, &result)?;
            ensure(!scene.ipam_calls("DEL")?.is_empty(), || "the IPAM plugin was not called with DEL".into())
        },
    ),
    effect("effects/mtu", Must, "mtu is that of the interface", mtu),
    effect("effects/mtu-above-master", Must, "an mtu above the master's is refused", |subject| {
        refuses(subject, |config| config["mtu"] = json!(9000)).map(drop)
    }),
    effect("effects/mac-by-capability", Must, "the capability mac sets the interface's MAC", mac_by_capability),
    effect("effects/mac-by-args", Should, "CNI_ARGS MAC sets the interface's MAC", mac_by_args),
    effect("effects/layer-2", Must, "without ipam the interface has no address", no_ipam),
];

/// What tap does.
pub(crate) const TAP: &[Effect] = &[
    effect("effects/kind", Must, "the interface is a persistent tap", |subject| {
        let (_scene, attachment, _) = add_changed(subject, |_| ())?;
        let link = inside(&attachment)?;
        let data = &link["linkinfo"]["info_data"];
        ensure(link["linkinfo"]["info_kind"] == "tun" && data["type"] == "tap" && data["persist"] == true, || {
            link.to_string()
        })
    }),
    effect("effects/multi-queue", Must, "multiQueue is set", |subject| {
        let (_scene, attachment, _) = add_changed(subject, |config| config["multiQueue"] = json!(true))?;
        let link = inside(&attachment)?;
        ensure(link["linkinfo"]["info_data"]["multi_queue"] == true, || link.to_string())
    }),
    effect("effects/owner", Must, "owner and group are set", |subject| {
        let (_scene, attachment, _) = add_changed(subject, |config| {
            config["owner"] = json!(1234);
            config["group"] = json!(4321);
        })?;
        let link = inside(&attachment)?;
        let data = &link["linkinfo"]["info_data"];
        let is = |value: &Value, wanted: u64| {
            *value == wanted || value.as_str().and_then(|text| text.parse().ok()) == Some(wanted)
        };
        ensure(is(&data["user"], 1234) && is(&data["group"], 4321), || link.to_string())
    }),
    effect("effects/mtu", Must, "mtu is that of the interface", mtu),
    effect("effects/mac-by-capability", Must, "the capability mac sets the interface's MAC", mac_by_capability),
];

/// What host-device does.
pub(crate) const HOST_DEVICE: &[Effect] = &[
    effect(
        "effects/moves",
        Must,
        "the device is in the container under the wanted name, and not on the host",
        |subject| {
            let (scene, attachment, _) = add_changed(subject, |_| ())?;
            inside(&attachment)?;
            ensure(scene.host.link(&device("c1"))?.is_none(), || "it is still on the host".into())
        },
    ),
    effect("effects/moves-back", Must, "DEL moves the device back under its old name", |subject| {
        let (scene, attachment, result) = add_changed(subject, |_| ())?;
        scene.del(&attachment, &result)?;
        ensure(attachment.container.link("eth0")?.is_none(), || "it is still in the container".into())?;
        host_link(&scene, &device("c1")).map(drop)
    }),
    effect("effects/by-hardware-address", Must, "hwaddr chooses the device", |subject| {
        let scene = Scene::new(subject)?;
        let mut attachment = scene.attachment("c1")?;
        let mac = host_link(&scene, &device("c1"))?["address"].clone();
        attachment.config.as_object_mut().map(|config| config.remove("device"));
        attachment.config["hwaddr"] = mac;
        let result = scene.add(&attachment)?;
        inside(&attachment)?;
        scene.del(&attachment, &result)?;
        host_link(&scene, &device("c1")).map(drop)
    }),
    effect("effects/device-missing", Must, "a device that is not there is refused", |subject| {
        refuses(subject, |config| config["device"] = json!("nope0")).map(drop)
    }),
    effect("effects/no-choice", Must, "a configuration that chooses no device is refused", |subject| {
        refuses(subject, |config| drop(config.as_object_mut().map(|config| config.remove("device")))).map(drop)
    }),
    effect("effects/layer-2", Must, "without ipam the interface has no address", no_ipam),
];

/// What loopback does.
pub(crate) const LOOPBACK: &[Effect] = &[
    effect("effects/up", Must, "lo is up after ADD", |subject| {
        let (_scene, attachment, _) = add_changed(subject, |_| ())?;
        ensure(flag(&inside(&attachment)?, "UP"), || "lo is down".into())
    }),
    effect("effects/address", Must, "the result has 127.0.0.1/8", |subject| {
        let (_, _, result) = add_changed(subject, |_| ())?;
        let found = crate::result::addresses(&result);
        ensure(found.iter().any(|address| address == "127.0.0.1/8"), || format!("it has {found:?}"))
    }),
    effect("effects/down", Must, "lo is down after DEL", |subject| {
        let (scene, attachment, result) = add_changed(subject, |_| ())?;
        scene.del(&attachment, &result)?;
        ensure(!flag(&inside(&attachment)?, "UP"), || "lo is still up".into())
    }),
];
