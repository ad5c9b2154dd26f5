//! Whose rules are whose: interfaces of one container, networks on one bridge, layouts that were chosen anew.

use std::path::Path;

use anyhow::{Context as _, Result};
use outrigger_testing::NetHost;
use serde_json::{Value, json};

use crate::common::{Plugins, can_run, peers_or_skip};
use crate::rules::{self, config, gc, host, saved};

/// Calls portmap, or another plugin, for one interface of container `cid`.
fn call(host: &NetHost, dir: &Path, command: &str, ifname: &str, config: &Value) -> Result<Value> {
    let plugin = dir.join(config["type"].as_str().context("type")?);
    let mut process = host.plugin(&plugin, command, "cid", Path::new("/run/netns/a"), ifname);
    NetHost::call(&mut process, config)?.ok().with_context(|| format!("{command} of {ifname} by {}", dir.display()))
}

fn previous(ifname: &str, number: u32) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": ifname, "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/a" }],
        "ips": [
            { "address": format!("10.1.0.{number}/16"), "interface": 0 },
            { "address": format!("fd00:1::{number}/64"), "interface": 0 },
        ],
    })
}

fn portmap(backend: &str, ifname: &str, number: u32) -> Value {
    let ports = |range: std::ops::Range<u32>| -> Vec<Value> {
        range.map(|port| json!({ "hostPort": port * 100 + number, "containerPort": port, "protocol": "tcp" })).collect()
    };
    let keys = json!({ "backend": backend, "prevResult": previous(ifname, number),
        "runtimeConfig": { "portMappings": ports(80..100) } });
    config("portmap", &keys)
}

/// The lines of the ruleset, counters apart, that speak of an address.
fn lines_of(host: &NetHost, number: u32) -> Result<usize> {
    let text = host.sh("nft list ruleset")?;
    let is_one =
        |line: &&str| line.contains(&format!("10.1.0.{number}")) || line.contains(&format!("fd00:1::{number}"));
    Ok(text.lines().filter(is_one).count())
}

fn gc_keeping(host: &NetHost, dir: &Path, config: &Value, keep: &[(&str, &str)]) -> Result<()> {
    let mut config = config.clone();
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] =
        keep.iter().map(|(id, ifname)| json!({ "containerID": id, "ifname": ifname })).collect();
    call(host, dir, "GC", "", &config).map(drop)
}

#[test]
fn two_interfaces_of_one_container_have_ports_of_their_own() {
    if !can_run("two_interfaces_of_one_container_have_ports_of_their_own") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let dir = plugins.dir();
    for backend in ["iptables", "nftables"] {
        let host = host().unwrap();
        let (first, second) = (portmap(backend, "eth0", 5), portmap(backend, "net1", 6));
        call(&host, dir, "ADD", "eth0", &first).unwrap();
        let alone = saved(&host).unwrap();
        call(&host, dir, "ADD", "net1", &second).unwrap();
        let both = saved(&host).unwrap();
        // Again, as after a crash: nothing is there twice.
        call(&host, dir, "ADD", "eth0", &first).unwrap();
        call(&host, dir, "ADD", "net1", &second).unwrap();
        assert_eq!(saved(&host).unwrap().lines().count(), both.lines().count(), "{backend}");
        call(&host, dir, "CHECK", "eth0", &first).unwrap();
        call(&host, dir, "CHECK", "net1", &second).unwrap();
        call(&host, dir, "DEL", "net1", &second).unwrap();
        call(&host, dir, "CHECK", "eth0", &first).unwrap();
        assert_eq!(lines_of(&host, 6).unwrap(), 0, "{backend}");
        assert_eq!(saved(&host).unwrap(), alone, "{backend}");
        // One of them is stale.
        call(&host, dir, "ADD", "net1", &second).unwrap();
        gc_keeping(&host, dir, &second, &[("cid", "net1")]).unwrap();
        call(&host, dir, "CHECK", "net1", &second).unwrap();
        assert!(call(&host, dir, "CHECK", "eth0", &first).is_err(), "{backend}");
        assert_eq!(lines_of(&host, 5).unwrap(), 0, "{backend}");
        gc_keeping(&host, dir, &second, &[("cid", "other")]).unwrap();
        assert_eq!(lines_of(&host, 6).unwrap(), 0, "{backend}");
        assert!(!host.sh("nft list ruleset").unwrap().contains("CNI-DN-"), "{backend}");
    }
}

#[test]
fn ports_of_two_interfaces_by_the_originals_and_us() {
    const NAME: &str = "ports_of_two_interfaces_by_the_originals_and_us";
    if !can_run(NAME) {
        return;
    }
    let Some(peers) = peers_or_skip(NAME) else { return };
    let plugins = Plugins::install().unwrap();
    let ours = plugins.dir();
    let host = host().unwrap();
    let (first, second) = (portmap("iptables", "eth0", 5), portmap("iptables", "net1", 6));
    call(&host, &peers, "ADD", "eth0", &first).unwrap();
    call(&host, ours, "ADD", "net1", &second).unwrap();
    call(&host, ours, "CHECK", "eth0", &first).unwrap();
    call(&host, ours, "CHECK", "net1", &second).unwrap();
    // Ours again for the interface that the original served: its rules are replaced, not doubled.
    let before = saved(&host).unwrap();
    call(&host, ours, "ADD", "eth0", &first).unwrap();
    assert_eq!(saved(&host).unwrap().lines().count(), before.lines().count());
    call(&host, ours, "DEL", "net1", &second).unwrap();
    call(&host, ours, "CHECK", "eth0", &first).unwrap();
    call(&host, ours, "DEL", "eth0", &first).unwrap();
    assert!(!saved(&host).unwrap().contains("CNI-DN-"));
}

#[test]
fn gc_frees_the_masqueraded_address_of_one_interface() {
    if !can_run("gc_frees_the_masqueraded_address_of_one_interface") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let dir = plugins.dir();
    for backend in ["iptables", "nftables"] {
        let host = host().unwrap();
        let ipam = json!({ "type": "host-local", "subnet": "10.1.0.0/16", "rangeStart": "10.1.0.5" });
        let keys = json!({ "isGateway": true, "ipMasq": true, "ipMasqBackend": backend, "ipam": ipam });
        let bridge = config("bridge", &keys);
        for ifname in ["eth0", "net1"] {
            call(&host, dir, "ADD", ifname, &bridge).unwrap();
        }
        let rules_of = |number| lines_of(&host, number).unwrap();
        assert!(rules_of(5) > 0 && rules_of(6) > 0, "{backend}");
        gc_keeping(&host, dir, &bridge, &[("cid", "net1")]).unwrap();
        assert_eq!(rules_of(5), 0, "{backend}");
        assert!(rules_of(6) > 0, "{backend}");
        gc_keeping(&host, dir, &bridge, &[]).unwrap();
        assert_eq!(rules_of(6), 0, "{backend}");
        assert!(!saved(&host).unwrap().contains("id: \\\"cid"), "{backend}");
    }
}

#[test]
fn gc_of_one_network_leaves_the_isolation_of_another_on_its_bridge() {
    if !can_run("gc_of_one_network_leaves_the_isolation_of_another_on_its_bridge") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    for backend in ["iptables", "nftables"] {
        let host = host().unwrap();
        host.sh("ip link add cni0 type bridge; ip link add p0 type veth peer name p1; ip link set p0 master cni0")
            .unwrap();
        let firewall = |network: &str, number| {
            let keys = json!({ "name": network, "backend": backend, "ingressPolicy": "isolated",
                "prevResult": rules::previous(number) });
            config("firewall", &keys)
        };
        let (first, second) = (firewall("first", 5), firewall("second", 6));
        rules::call(&host, plugins.dir(), "ADD", "one", &first).unwrap();
        rules::call(&host, plugins.dir(), "ADD", "two", &second).unwrap();
        rules::call(&host, plugins.dir(), "DEL", "one", &first).unwrap();
        gc(&host, plugins.dir(), &first, &[]).unwrap();
        rules::call(&host, plugins.dir(), "CHECK", "two", &second).unwrap();
    }
}

#[test]
fn a_firewall_that_is_older_than_the_choice_of_the_back_end_is_checked() {
    if !can_run("a_firewall_that_is_older_than_the_choice_of_the_back_end_is_checked") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let firewall = |backend: &str| {
        config(
            "firewall",
            &json!({ "backend": backend, "ingressPolicy": "isolated", "prevResult": rules::previous(5) }),
        )
    };
    for (before, after) in [("iptables", "nftables"), ("nftables", "iptables")] {
        let host = host().unwrap();
        rules::call(&host, plugins.dir(), "ADD", "cid", &firewall(before)).unwrap();
        rules::call(&host, plugins.dir(), "CHECK", "cid", &firewall(after)).unwrap();
        rules::call(&host, plugins.dir(), "DEL", "cid", &firewall(after)).unwrap();
        assert!(rules::call(&host, plugins.dir(), "CHECK", "cid", &firewall(after)).is_err());
    }
}

#[test]
fn a_firewalls_notes_end_with_gc_whoever_deleted() {
    const NAME: &str = "a_firewalls_notes_end_with_gc_whoever_deleted";
    if !can_run(NAME) {
        return;
    }
    let Some(peers) = peers_or_skip(NAME) else { return };
    let plugins = Plugins::install().unwrap();
    let host = host().unwrap();
    let notes = || host.sh("ls /run/cni/outrigger/firewall | wc -l").unwrap().trim().to_owned();
    let firewall = |number| config("firewall", &json!({ "prevResult": rules::previous(number) }));
    for (id, number) in [("kept", 5), ("gone", 6)] {
        rules::call(&host, plugins.dir(), "ADD", id, &firewall(number)).unwrap();
    }
    rules::call(&host, &peers, "DEL", "gone", &firewall(6)).unwrap();
    assert_eq!(notes(), "2");
    gc(&host, plugins.dir(), &firewall(5), &["kept"]).unwrap();
    assert_eq!(notes(), "1");
    rules::call(&host, plugins.dir(), "CHECK", "kept", &firewall(5)).unwrap();
}
