//! What single chained plugins do in particular.

use std::sync::Arc;

use outrigger_verify_report::{Level, Unmet, Verdict};
use serde_json::{Value, json};

use super::effects::{changed, effect, ensure, refuses};
use super::effects_rules::{FIREWALL_NFTABLES, NFTABLES_GC, PORTMAP_NFTABLES, PORTMAP_NFTABLES_REACHES};
use crate::profile::Effect;
use crate::scene::{Attachment, Scene, Subject};

use Level::{Must, Should};

fn rules(scene: &Scene) -> Result<String, Unmet> {
    scene.host.sh("nft list ruleset")
}

pub(super) fn mapping(mapping: Value) -> impl Fn(&mut Value) {
    move |config| config["runtimeConfig"] = json!({ "portMappings": [mapping] })
}

/// ADD makes rules that hold a text; DEL takes them away again.
pub(super) fn rules_come_and_go(subject: &Arc<Subject>, change: impl Fn(&mut Value), wanted: &[&str]) -> Verdict {
    let scene = Scene::new(subject)?;
    for family in ["warm-up", "c1"] {
        let mut attachment = scene.attachment(family)?;
        change(&mut attachment.config);
        let before = scene.host.inventory()?;
        let result = scene.add(&attachment)?;
        let found = rules(&scene)?;
        for text in wanted {
            ensure(found.contains(text), || format!("no rule holds {text:?}"))
                .map_err(|unmet| unmet.with("rules", &found))?;
        }
        scene.check(&attachment, &result)?.success()?;
        scene.del(&attachment, &result)?;
        // The first time the entry chains come, and stay.
        if family == "c1" {
            scene.host_is(&before)?;
        }
    }
    Ok(())
}

/// What portmap does.
pub(crate) const PORTMAP: &[Effect] = &[
    effect("effects/tcp", Must, "a TCP mapping makes a rule, and DEL takes it away", |subject| {
        rules_come_and_go(
            subject,
            mapping(json!({ "hostPort": 8123, "containerPort": 80, "protocol": "tcp" })),
            &["8123", ":80"],
        )
    }),
    effect("effects/udp", Must, "a UDP mapping makes a rule, and DEL takes it away", |subject| {
        rules_come_and_go(
            subject,
            mapping(json!({ "hostPort": 8124, "containerPort": 53, "protocol": "udp" })),
            &["8124", ":53"],
        )
    }),
    effect("effects/sctp", Must, "an SCTP mapping makes a rule, and DEL takes it away", |subject| {
        rules_come_and_go(
            subject,
            mapping(json!({ "hostPort": 8125, "containerPort": 99, "protocol": "sctp" })),
            &["8125", ":99"],
        )
    }),
    effect("effects/host-address", Must, "hostIP is in the rule", |subject| {
        rules_come_and_go(
            subject,
            mapping(json!({ "hostPort": 8126, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.44" })),
            &["8126", "192.0.2.44"],
        )
    }),
    effect("effects/many", Must, "forty mappings make rules, and DEL takes them away", |subject| {
        let change = |config: &mut Value| {
            let many: Vec<_> = (0..40)
                .map(|port| json!({ "hostPort": 9000 + port, "containerPort": 80, "protocol": "tcp" }))
                .collect();
            config["runtimeConfig"] = json!({ "portMappings": many });
        };
        rules_come_and_go(subject, change, &["9000", "9039"])
    }),
    effect("effects/without-snat", Must, "snat false makes a rule, and DEL takes it away", |subject| {
        let change = |config: &mut Value| config["snat"] = json!(false);
        rules_come_and_go(subject, change, &["dport"])
    }),
    effect("effects/v4-only", Must, "CHECK of a container with a v4 address only succeeds", |subject| {
        let (scene, attachment) = changed(subject, |config| {
            if let Some(ips) = config["prevResult"]["ips"].as_array_mut() {
                ips.truncate(1);
            }
        })?;
        let result = scene.add(&attachment)?;
        scene.check(&attachment, &result)?.success()
    }),
    effect("effects/no-mappings", Must, "without mappings the result is passed on and nothing is made", |subject| {
        let (scene, attachment) = changed(subject, |config| config["runtimeConfig"] = json!({}))?;
        let before = scene.host.inventory()?;
        let result = scene.add(&attachment)?;
        ensure(result["ips"] == attachment.config["prevResult"]["ips"], || result.to_string())?;
        scene.host_is(&before)
    }),
    effect(
        "effects/reaches-the-container",
        Must,
        "a connection to the host's port arrives in the container",
        |subject| {
            let (scene, attachment) =
                changed(subject, mapping(json!({ "hostPort": 8127, "containerPort": 80, "protocol": "tcp" })))?;
            scene.add(&attachment)?;
            reach(&scene, &attachment, 8127)
        },
    ),
    PORTMAP_NFTABLES,
    PORTMAP_NFTABLES_REACHES,
    NFTABLES_GC,
    effect("effects/port-out-of-range", Must, "a host port above 65535 is refused", |subject| {
        refuses(subject, mapping(json!({ "hostPort": 70000, "containerPort": 80, "protocol": "tcp" }))).map(drop)
    }),
    effect("effects/mark-bit-out-of-range", Must, "a markMasqBit above 31 is refused", |subject| {
        refuses(subject, |config| config["markMasqBit"] = json!(32)).map(drop)
    }),
    effect("effects/two-marks", Must, "markMasqBit together with externalSetMarkChain is refused", |subject| {
        refuses(subject, |config| {
            config["markMasqBit"] = json!(5);
            config["externalSetMarkChain"] = json!("KUBE-MARK-MASQ");
        })
        .map(drop)
    }),
];

/// Listens in the container and connects from the host to a port of its own; python is what every host of tests has.
pub(super) fn reach(scene: &Scene, attachment: &Attachment, port: u16) -> Verdict {
    if scene.host.sh("command -v python3 >/dev/null").is_err() {
        return Err(Unmet::skip("python3 is wanted for the far end"));
    }
    let program = format!(
        r#"
import os, socket
home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
there = os.open("{}", os.O_RDONLY)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.setns(there, 0x40000000) == 0
server = socket.socket(); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("0.0.0.0", 80)); server.listen(1); server.settimeout(5)
assert libc.setns(home, 0x40000000) == 0
client = socket.create_connection(("10.78.0.1", {port}), timeout=5)
conn, _ = server.accept(); conn.sendall(b"hello"); assert client.recv(5) == b"hello"
"#,
        attachment.container.path.display()
    );
    fs_err::write("/run/verify/reach.py", program)?;
    let reached = scene.host.sh("exec 2>&1; timeout 10 python3 /run/verify/reach.py");
    let seen = rules(scene)?;
    reached.map(drop).map_err(|_| Unmet::fail("the connection did not arrive").with("rules", seen))
}

/// What firewall does.
pub(crate) const FIREWALL: &[Effect] = &[
    effect("effects/rules", Must, "both addresses get rules, and DEL takes them away", |subject| {
        rules_come_and_go(subject, |_| (), &["10.78.0.", "fd78::"])
    }),
    effect("effects/entry-chain-is-first", Must, "the first rule of FORWARD leads to the plugin's chain", |subject| {
        let (scene, attachment) = changed(subject, |_| ())?;
        scene.add(&attachment)?;
        let listing = scene.host.sh("iptables -S FORWARD")?;
        let first = listing.lines().find(|line| line.starts_with("-A")).unwrap_or_default();
        ensure(first.contains("-j CNI-FORWARD"), || format!("FORWARD is {listing}"))
    }),
    effect("effects/admin-chain", Must, "the administrator's chain comes before the plugin's rules", |subject| {
        let (scene, attachment) = changed(subject, |config| config["iptablesAdminChainName"] = json!("MY-ADMIN"))?;
        scene.add(&attachment)?;
        let listing = scene.host.sh("iptables -S CNI-FORWARD")?;
        let first = listing.lines().find(|line| line.starts_with("-A")).unwrap_or_default();
        ensure(first.contains("-j MY-ADMIN"), || format!("CNI-FORWARD is {listing}"))
    }),
    effect("effects/same-bridge", Must, "ingressPolicy same-bridge isolates bridges from each other", |subject| {
        let (scene, attachment) = changed(subject, |config| config["ingressPolicy"] = json!("same-bridge"))?;
        scene.host.sh("ip link add cni9 type bridge; ip link set cni9 up; for l in $(ls /sys/class/net | grep ^up); do ip link set $l master cni9; done")?;
        let mut attachment = attachment;
        let mac = scene.host.link("cni9")?.map_or(Value::Null, |link| link["address"].clone());
        let mut interfaces = vec![json!({ "name": "cni9", "mac": mac })];
        interfaces.extend(attachment.config["prevResult"]["interfaces"].as_array().cloned().unwrap_or_default());
        attachment.config["prevResult"]["interfaces"] = interfaces.into();
        for ip in attachment.config["prevResult"]["ips"].as_array_mut().into_iter().flatten() {
            ip["interface"] = json!(2);
        }
        scene.add(&attachment)?;
        let listing = scene.host.sh("iptables-save -t filter")?;
        ensure(listing.contains("CNI-ISOLATION-STAGE-1") && listing.contains("cni9"), || format!("rules are {listing}"))
    }),
    effect("effects/backend-unknown", Should, "an unknown backend is refused", |subject| {
        refuses(subject, |config| config["backend"] = json!("abacus")).map(drop)
    }),
    FIREWALL_NFTABLES,
    NFTABLES_GC,
    effect("effects/policy-unknown", Should, "an unknown ingressPolicy is refused", |subject| {
        refuses(subject, |config| config["ingressPolicy"] = json!("maybe")).map(drop)
    }),
];

fn shaped(scene: &Scene) -> Result<String, Unmet> {
    scene.host.sh("tc qdisc show")
}

/// What bandwidth does.
pub(crate) const BANDWIDTH: &[Effect] = &[
    effect("effects/ingress", Must, "ingress is shaped by a token bucket on the host's end", |subject| {
        let (scene, attachment) = changed(subject, |_| ())?;
        scene.add(&attachment)?;
        let found = shaped(&scene)?;
        ensure(
            found.lines().any(|line| line.contains("tbf") && line.contains("dev up") && line.contains("rate 8Mbit")),
            || found,
        )
    }),
    effect("effects/egress", Must, "egress is shaped by a token bucket on an ifb, which the result names", |subject| {
        let (scene, attachment) = changed(subject, |_| ())?;
        let result = scene.add(&attachment)?;
        let found = shaped(&scene)?;
        let name = result["interfaces"]
            .as_array()
            .and_then(|all| all.last())
            .and_then(|last| last["name"].as_str())
            .unwrap_or("?");
        let wanted = format!("dev {name}");
        ensure(
            found.lines().any(|line| line.contains("tbf") && line.contains(&wanted) && line.contains("rate 4Mbit")),
            || found,
        )
    }),
    effect("effects/capability", Must, "the capability bandwidth sets the rates", |subject| {
        let (scene, attachment) = changed(subject, |config| {
            for key in ["ingressRate", "ingressBurst", "egressRate", "egressBurst"] {
                config.as_object_mut().map(|config| config.remove(key));
            }
            config["runtimeConfig"] = json!({ "bandwidth": { "ingressRate": 2_000_000, "ingressBurst": 200_000 } });
        })?;
        scene.add(&attachment)?;
        let found = shaped(&scene)?;
        ensure(found.contains("rate 2Mbit") && !found.contains("bwp"), || found)
    }),
    effect("effects/nothing-to-shape", Must, "without rates nothing is made", |subject| {
        let (scene, attachment) = changed(subject, |config| {
            for key in ["ingressRate", "ingressBurst", "egressRate", "egressBurst"] {
                config.as_object_mut().map(|config| config.remove(key));
            }
        })?;
        let before = scene.host.inventory()?;
        scene.add(&attachment)?;
        scene.host_is(&before)
    }),
    effect("effects/rate-without-burst", Must, "a rate without burst is refused", |subject| {
        refuses(subject, |config| config["ingressBurst"] = json!(0)).map(drop)
    }),
    effect("effects/burst-without-rate", Must, "a burst without rate is refused", |subject| {
        refuses(subject, |config| config["egressRate"] = json!(0)).map(drop)
    }),
    effect("effects/burst-too-large", Must, "a burst beyond what the kernel holds is refused", |subject| {
        refuses(subject, |config| config["ingressBurst"] = json!(64_u64 << 30)).map(drop)
    }),
];

fn inside(attachment: &Attachment) -> Result<Value, Unmet> {
    attachment.container.link("eth0")?.ok_or_else(|| Unmet::fail("eth0 is gone"))
}

fn tuned(subject: &Arc<Subject>, key: &str, value: Value, seen: fn(&Value) -> Value, wanted: Value) -> Verdict {
    let (scene, attachment) = changed(subject, |config| {
        for key in ["sysctl", "mtu", "promisc"] {
            config.as_object_mut().map(|config| config.remove(key));
        }
        config[key] = value.clone();
    })?;
    let before = seen(&inside(&attachment)?);
    let result = scene.add(&attachment)?;
    let now = seen(&inside(&attachment)?);
    ensure(now == wanted, || format!("it is {now}, not {wanted}"))?;
    scene.check(&attachment, &result)?.success()?;
    scene.del(&attachment, &result)?;
    let after = seen(&inside(&attachment)?);
    ensure(after == before, || format!("DEL left {after}; before ADD it was {before}"))
}

/// What tuning does.
pub(crate) const TUNING: &[Effect] = &[
    effect("effects/mtu", Must, "mtu is set, and restored by DEL", |subject| {
        tuned(subject, "mtu", json!(1350), |link| link["mtu"].clone(), json!(1350))
    }),
    effect("effects/mac", Must, "mac is set, and restored by DEL", |subject| {
        tuned(subject, "mac", json!("02:00:00:77:77:77"), |link| link["address"].clone(), json!("02:00:00:77:77:77"))
    }),
    effect("effects/promiscuous", Must, "promisc is set, and restored by DEL", |subject| {
        tuned(subject, "promisc", json!(true), |link| json!(link["promiscuity"] == 1), json!(true))
    }),
    effect("effects/all-multicast", Must, "allmulti is set, and restored by DEL", |subject| {
        tuned(subject, "allmulti", json!(true), |link| json!(link["allmulti"] == 1), json!(true))
    }),
    effect("effects/queue-length", Should, "txQLen is set, and restored by DEL", |subject| {
        tuned(subject, "txQLen", json!(77), |link| link["txqlen"].clone(), json!(77))
    }),
    effect("effects/mac-in-result", Must, "the result has the new MAC", |subject| {
        let (scene, attachment) = changed(subject, |config| config["mac"] = json!("02:00:00:77:77:77"))?;
        let result = scene.add(&attachment)?;
        ensure(result["interfaces"][1]["mac"] == "02:00:00:77:77:77", || result.to_string())
    }),
    effect("effects/sysctl", Must, "a sysctl is set", |subject| {
        let (scene, attachment) = changed(subject, |_| ())?;
        scene.add(&attachment)?;
        let value = attachment.container.sh("cat /proc/sys/net/ipv4/conf/eth0/log_martians")?;
        ensure(value.trim() == "1", || format!("it is {value}"))
    }),
    effect("effects/sysctl-ifname", Must, "IFNAME in a sysctl is the interface, in CHECK too", |subject| {
        let (scene, attachment) =
            changed(subject, |config| config["sysctl"] = json!({ "net.ipv4.conf.IFNAME.log_martians": "1" }))?;
        let result = scene.add(&attachment)?;
        let value = attachment.container.sh("cat /proc/sys/net/ipv4/conf/eth0/log_martians")?;
        ensure(value.trim() == "1", || format!("it is {value}"))?;
        scene.check(&attachment, &result)?.success()
    }),
    effect("effects/sysctl-outside-net", Must, "a sysctl outside net is refused", |subject| {
        refuses(subject, |config| config["sysctl"] = json!({ "kernel.hostname": "x" })).map(drop)
    }),
    effect("effects/sysctl-climbs", Must, "a sysctl that climbs out of net is refused", |subject| {
        refuses(subject, |config| config["sysctl"] = json!({ "net/../kernel/hostname": "x" })).map(drop)
    }),
    effect("effects/sysctl-unknown", Must, "a sysctl that does not exist is refused", |subject| {
        refuses(subject, |config| config["sysctl"] = json!({ "net.ipv4.no_such_thing": "1" })).map(drop)
    }),
    effect("effects/mac-is-none", Must, "a MAC that is none is refused", |subject| {
        refuses(subject, |config| config["mac"] = json!("xx")).map(drop)
    }),
];

/// What sbr does.
pub(crate) const SBR: &[Effect] = &[
    effect("effects/rules-go", Must, "DEL takes the rules away", |subject| {
        let (scene, attachment) = changed(subject, |_| ())?;
        let before = attachment.container.sh("ip -4 rule show; ip -6 rule show")?;
        let result = scene.add(&attachment)?;
        scene.del(&attachment, &result)?;
        let after = attachment.container.sh("ip -4 rule show; ip -6 rule show")?;
        ensure(after == before, || format!("rules are {after}"))
    }),
    effect(
        "effects/rule-and-table",
        Must,
        "traffic from the address looks up a table that holds the interface's routes",
        |subject| {
            let (scene, attachment) = changed(subject, |_| ())?;
            scene.add(&attachment)?;
            let rules = attachment.container.sh("ip rule show")?;
            let rule = rules.lines().find(|line| line.contains("from 10.78.0.")).unwrap_or_default();
            let table = rule.split_whitespace().last().unwrap_or("?").to_owned();
            let routes = attachment.container.sh(&format!("ip route show table {table}")).unwrap_or_default();
            ensure(routes.contains("default via 10.78.0.1"), || {
                format!("rules are {rules}, table {table} has {routes}")
            })
        },
    ),
    effect("effects/main-table", Must, "the interface's default route is not in the main table any more", |subject| {
        let (scene, attachment) = changed(subject, |_| ())?;
        scene.add(&attachment)?;
        let routes = attachment.container.sh("ip route show table main")?;
        ensure(!routes.contains("default"), || format!("the main table has {routes}"))
    }),
    effect("effects/table", Should, "table chooses the table", |subject| {
        let (scene, attachment) = changed(subject, |config| config["table"] = json!(321))?;
        scene.add(&attachment)?;
        let rules = attachment.container.sh("ip rule show")?;
        ensure(rules.contains("lookup 321"), || format!("rules are {rules}"))
    }),
];
