//! `outrigger`, the fast chain: the same as the list, in one call.

use anyhow::Result;
use outrigger_testing::NetHost;
use serde_json::{Value, json};

use crate::harness::{Attachment, both, config, host, ipam, masked_result, ours, peers, root, same};

/// The plugins of a list, as they are written in it.
fn plugins() -> Vec<Value> {
    vec![
        json!({
            "type": "bridge", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": ipam(&["10.25.0.0/16", "fd00:25::/64"], &[]),
        }),
        json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } }),
        json!({ "type": "firewall" }),
        json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
        json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.IFNAME.log_martians": "1" } }),
    ]
}

/// What the runtime gives for the capabilities.
fn runtime_config() -> Value {
    json!({
        "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
        "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 8_000_000, "egressBurst": 8_000_000 },
        "mac": "02:00:00:00:00:09",
    })
}

/// The chain with everything in it, as the runtime hands it over.
fn chain(plugins: &[Value]) -> Value {
    config("outrigger", json!({ "plugins": plugins, "runtimeConfig": runtime_config() }))
}

/// One plugin of a list, as the runtime hands it over.
fn member(plugin: &Value, previous: &Value) -> Value {
    let mut plugin = plugin.clone();
    plugin["cniVersion"] = json!("1.0.0");
    plugin["name"] = json!("net");
    let values = runtime_config();
    for name in ["portMappings", "bandwidth"] {
        if plugin["capabilities"][name] == json!(true) {
            plugin["runtimeConfig"][name] = values[name].clone();
        }
    }
    if !previous.is_null() {
        plugin["prevResult"] = previous.clone();
    }
    plugin
}

fn add_list(host: &NetHost, attachment: &Attachment, plugins: &[Value]) -> Result<Value> {
    plugins.iter().try_fold(Value::Null, |previous, plugin| attachment.add(host, ours(), &member(plugin, &previous)))
}

fn filter(host: &NetHost) -> String {
    host.sh(
        "iptables-save; ip6tables-save; nft list ruleset | grep -v '^#' | wc -l; ls /run/cni /var/lib/cni 2>&1 || true",
    )
    .unwrap()
    .lines()
    .filter(|line| !line.starts_with('#'))
    .map(|line| if line.starts_with(':') { line.split('[').next().unwrap() } else { line })
    .collect::<Vec<_>>()
    .join("\n")
}

#[test]
fn the_same_as_the_list() {
    if !root() {
        return;
    }
    let attachment = Attachment::new("a");
    let (one, other) = (host().unwrap(), host().unwrap());
    let listed = add_list(&one, &attachment, &plugins()).unwrap();
    let config = chain(&plugins());
    let chained = attachment.add(&other, ours(), &config).unwrap();
    same("result", &masked_result(&listed), &masked_result(&chained)).unwrap();
    same("", &both(&one).unwrap(), &both(&other).unwrap()).unwrap();
    assert_eq!(filter(&one), filter(&other));

    attachment.after(&other, ours(), "CHECK", &config, &chained).unwrap();
    // The plugins of a list check and delete what the chain made.
    for plugin in plugins().iter().rev() {
        for command in ["CHECK", "DEL"] {
            attachment.after(&other, ours(), command, &member(plugin, &chained), &chained).unwrap();
        }
    }
    // And the chain what the list made, twice.
    for _ in 0..2 {
        attachment.after(&one, ours(), "DEL", &config, &listed).unwrap();
    }
    assert_eq!(filter(&one), filter(&other));
    assert!(!filter(&one).contains("10.25."), "{}", filter(&one));
    assert_eq!(
        one.sh("ip -br link show type veth; ip -br link show type ifb; find /var/lib/cni -name '10.*'").unwrap(),
        ""
    );
}

#[test]
fn undone_when_a_plugin_fails() {
    if !root() {
        return;
    }
    // Something of everything has been done when the last one fails.
    let mut plugins = plugins();
    plugins.push(json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.IFNAME.no_such_setting": "1" } }));
    let host = host().unwrap();
    let before = (both(&host).unwrap()["container"].clone(), filter(&host));
    let output = Attachment::new("a").call(&host, ours(), "ADD", &chain(&plugins)).unwrap();
    assert!(output.code != Some(0));
    let message = output.stdout["msg"].as_str().unwrap();
    assert!(message.starts_with("tuning (plugins[5])"), "{message}");
    let after = (both(&host).unwrap()["container"].clone(), filter(&host));
    same("container", &before.0, &after.0).unwrap();
    assert!(!after.1.contains("10.25.") && !after.1.contains("CNI-DN"), "{}", after.1);
    assert_eq!(
        host.sh("ip -br link show type veth; ip -br link show type ifb; find /var/lib/cni -name '10.*'").unwrap(),
        ""
    );
}

#[test]
fn a_second_add_leaves_the_first_alone() {
    if !root() {
        return;
    }
    let host = host().unwrap();
    let config = chain(&plugins());
    let result = Attachment::new("a").add(&host, ours(), &config).unwrap();
    let again = Attachment::new("a").call(&host, ours(), "ADD", &config).unwrap();
    assert!(again.code != Some(0));
    Attachment::new("a").after(&host, ours(), "CHECK", &config, &result).unwrap();
}

#[test]
fn bad_chains() {
    if !root() {
        return;
    }
    let host = host().unwrap();
    for (plugins, code) in [
        (vec![], 7),
        (vec![json!({})], 7),
        (vec![json!({ "type": "bridge" }), json!({ "type": "outrigger", "plugins": [] })], 7),
        (vec![json!({ "type": "bridge" }), json!({ "type": "no-such-plugin" })], 7),
        (vec![json!({ "type": "../bridge" })], 7),
        (vec![json!({ "type": "win-bridge" })], 2),
    ] {
        let output = Attachment::new("a").call(&host, ours(), "ADD", &chain(&plugins)).unwrap();
        assert_eq!(output.error_code(), Some(code), "{plugins:?} {}", output.stdout);
        assert_eq!(host.sh("ip -br link show type veth").unwrap(), "", "{plugins:?}");
    }
}

#[test]
fn others_plugins_are_executed() {
    let Some(peers) = peers().filter(|_| root()) else { return };
    let host = host().unwrap();
    // The original's firewall, by a directory of its own in front of ours.
    let dir = tempfile::tempdir().unwrap();
    for (name, target) in [
        ("outrigger", ours().join("outrigger")),
        ("bridge", ours().join("bridge")),
        ("host-local", ours().join("host-local")),
        ("firewall", peers.join("firewall")),
    ] {
        fs_err::hard_link(&target, dir.path().join(name))
            .or_else(|_| fs_err::copy(&target, dir.path().join(name)).map(drop))
            .unwrap();
    }
    let config = chain(&[plugins()[0].clone(), json!({ "type": "firewall" })]);
    let result = Attachment::new("a").add(&host, dir.path(), &config).unwrap();
    assert!(host.sh("iptables -S").unwrap().contains("CNI-FORWARD"));
    Attachment::new("a").after(&host, dir.path(), "DEL", &config, &result).unwrap();
    assert!(!filter(&host).contains("10.25."));
}

#[test]
fn garbage_and_readiness() {
    if !root() {
        return;
    }
    let host = host().unwrap();
    let mut config = chain(&plugins());
    config["cniVersion"] = json!("1.1.0");
    Attachment::new("a").add(&host, ours(), &config).unwrap();
    let nobody = Attachment { id: String::new(), container: None, ifname: String::new(), args: None };
    nobody.call(&host, ours(), "STATUS", &config).unwrap().ok().unwrap();
    assert_eq!(nobody.call(&host, ours(), "GC", &config).unwrap().error_code(), Some(7));
    config["cni.dev/valid-attachments"] = json!([]);
    nobody.call(&host, ours(), "GC", &config).unwrap().ok().unwrap();
    assert_eq!(
        host.sh("ip -br link show type veth; ip -br link show type ifb; find /var/lib/cni -name '10.*'").unwrap(),
        ""
    );
    assert!(!filter(&host).contains("10.25.") && !filter(&host).contains("CNI-DN"), "{}", filter(&host));
}
