//! What DEL and GC take away and in which order: told by an IPAM plugin that writes down what it meets.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use outrigger_testing::NetHost;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Attachment, config, host, ours, peers, root};

/// The address that [`SCRIPT`] gives, as the beginning of those in rules.
const ADDRESS: &str = "10.77.0.9";

/// An IPAM plugin with one address, and a main plugin that does nothing: notes the command, the rules that name the address,
/// and the interfaces that are there.
const SCRIPT: &str = r#"#!/bin/sh
cat >/dev/null
rules=$(nft list ruleset 2>/dev/null | grep -cF 10.77.0.9)
links=$(ip -o link show type veth | wc -l)
inside=$(if test -e "$CNI_NETNS"; then nsenter --net="$CNI_NETNS" ip -o link show eth0 2>/dev/null | wc -l; else echo 0; fi)
echo "$CNI_COMMAND rules $rules links $links inside $inside" >>"${0%/*}/log"
if test "$CNI_COMMAND" = ADD; then
    echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.77.0.9/24", "gateway": "10.77.0.1"}]}'
fi
"#;

/// Plugins by name, and the script as `recorder`.
struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let binary = ours().join("bridge");
        for name in ["bridge", "firewall", "macvlan", "outrigger", "portmap", "ptp", "tap"] {
            let path = directory.path().join(name);
            fs_err::hard_link(&binary, &path).or_else(|_| fs_err::copy(&binary, &path).map(drop)).unwrap();
        }
        let script = directory.path().join("recorder");
        fs_err::write(&script, SCRIPT).unwrap();
        fs_err::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// What the script wrote since this was asked last.
    fn log(&self) -> Vec<String> {
        let log = self.path().join("log");
        let text = fs_err::read_to_string(&log).unwrap_or_default();
        let _ = fs_err::remove_file(log);
        text.lines().map(str::to_owned).collect()
    }

    fn add(&self, host: &NetHost, config: &Value) -> Value {
        Attachment::new("a").add(host, self.path(), config).unwrap()
    }

    fn gc(&self, host: &NetHost, config: &Value) -> outrigger_testing::PluginOutput {
        let mut config = config.clone();
        config["cniVersion"] = "1.1.0".into();
        config["cni.dev/valid-attachments"] = json!([]);
        let nobody = Attachment { id: String::new(), container: None, ifname: String::new(), args: None };
        nobody.call(host, self.path(), "GC", &config).unwrap()
    }
}

fn recorded(kind: &str, mut keys: Value) -> Value {
    keys["ipam"] = json!({ "type": "recorder" });
    config(kind, keys)
}

/// bridge, portmap and firewall in one call.
fn chain() -> Value {
    config(
        "outrigger",
        json!({
            "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] },
            "plugins": [
                { "type": "bridge", "ipMasq": true, "isGateway": true, "ipam": { "type": "recorder" } },
                { "type": "portmap", "capabilities": { "portMappings": true } },
                { "type": "firewall" },
            ],
        }),
    )
}

fn rules_of_the_container(host: &NetHost) -> String {
    host.sh(&format!("nft list ruleset | grep -F -e {ADDRESS} -e cni-br-iface || true")).unwrap()
}

/// Whoever gets an address next must not meet the rules or the interface of the one before.
#[test]
fn addresses_are_released_last() {
    if !root() {
        return;
    }
    let directory = Directory::new();
    for config in [
        recorded("bridge", json!({ "ipMasq": true, "macspoofchk": true })),
        recorded("bridge", json!({ "ipMasq": true, "ipMasqBackend": "nftables" })),
        recorded("ptp", json!({ "ipMasq": true })),
        chain(),
    ] {
        for command in ["DEL", "GC"] {
            let host = host().unwrap();
            let result = directory.add(&host, &config);
            assert_ne!(rules_of_the_container(&host), "", "{config}");
            directory.log();
            if command == "DEL" {
                Attachment::new("a").after(&host, directory.path(), "DEL", &config, &result).unwrap();
            } else {
                directory.gc(&host, &config).ok().unwrap();
            }
            assert_eq!(directory.log(), [format!("{command} rules 0 links 0 inside 0")], "{config}");
            assert_eq!(rules_of_the_container(&host), "", "{config}");
        }
    }
    // Those whose interface is in the container alone.
    for config in [recorded("macvlan", json!({ "master": "up0" })), recorded("tap", json!({}))] {
        let host = host().unwrap();
        host.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up").unwrap();
        directory.add(&host, &config);
        directory.log();
        Attachment::new("a").del(&host, directory.path(), &config).unwrap();
        assert_eq!(directory.log(), ["DEL rules 0 links 2 inside 0"], "{config}");
    }
}

/// An address whose rules could not be removed is kept.
#[test]
fn addresses_stay_while_their_rules_do() {
    if !root() {
        return;
    }
    let directory = Directory::new();
    let host = host().unwrap();
    host.sh("iptables -t nat -N MINE").unwrap();
    for config in [recorded("bridge", json!({ "ipMasq": true, "ipMasqBackend": "iptables" })), chain()] {
        let result = directory.add(&host, &config);
        // A chain to which another rule leads cannot be removed.
        let name = host.sh("iptables -t nat -S POSTROUTING | grep -o 'CNI-[0-9a-f]*$'").unwrap();
        let lead = |how: &str| host.sh(&format!("iptables -t nat {how} MINE -j {name}")).unwrap();
        lead("-A");
        directory.log();
        let output = directory.gc(&host, &config);
        assert!(output.code != Some(0), "{config}");
        // The others' rules went all the same.
        let left = rules_of_the_container(&host);
        assert!(!left.contains("dport 8080") && !left.contains("ct state"), "{left}");
        let mut again = config.clone();
        again["prevResult"] = result;
        let output = Attachment::new("a").call(&host, directory.path(), "DEL", &again).unwrap();
        assert!(output.code != Some(0), "{config}");
        assert_eq!(directory.log(), Vec::<String>::new(), "{config}");
        lead("-D");
        Attachment::new("a").del(&host, directory.path(), &again).unwrap();
        assert_eq!(directory.log(), ["DEL rules 0 links 0 inside 0"], "{config}");
        assert_eq!(rules_of_the_container(&host), "");
    }
}

/// The configuration may have asked for rules when it was another.
#[test]
fn rules_go_although_the_configuration_no_longer_asks_for_them() {
    if !root() {
        return;
    }
    let directory = Directory::new();
    for (kind, keys) in [
        ("bridge", json!({ "ipMasq": true, "macspoofchk": true })),
        ("bridge", json!({ "ipMasq": true, "ipMasqBackend": "nftables", "macspoofchk": true })),
        ("ptp", json!({ "ipMasq": true })),
    ] {
        for command in ["DEL", "GC"] {
            let host = host().unwrap();
            directory.add(&host, &recorded(kind, keys.clone()));
            assert_ne!(rules_of_the_container(&host), "");
            let plain = recorded(kind, json!({}));
            if command == "DEL" {
                Attachment::new("a").del(&host, directory.path(), &plain).unwrap();
            } else {
                directory.gc(&host, &plain).ok().unwrap();
            }
            assert_eq!(rules_of_the_container(&host), "", "{kind} {keys} {command}");
        }
    }
}

/// An interface that somebody renamed in the container is found by the mark of its other end.
#[test]
fn a_renamed_interface_goes_too() {
    if !root() {
        return;
    }
    let directory = Directory::new();
    for kind in ["bridge", "ptp"] {
        let host = host().unwrap();
        let config = recorded(kind, json!({}));
        directory.add(&host, &config);
        directory.log();
        host.container_sh("a", "ip link set eth0 down; ip link set eth0 name other0").unwrap();
        Attachment::new("a").del(&host, directory.path(), &config).unwrap();
        assert_eq!(directory.log(), ["DEL rules 0 links 0 inside 0"]);
    }
}

/// A second ADD gives nothing of the live attachment back.
#[test]
fn a_second_add_keeps_the_address_of_the_first() {
    if !root() {
        return;
    }
    let directory = Directory::new();
    let host = host().unwrap();
    host.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up").unwrap();
    for config in [
        recorded("bridge", json!({})),
        recorded("ptp", json!({})),
        recorded("macvlan", json!({ "master": "up0" })),
        recorded("tap", json!({})),
    ] {
        directory.add(&host, &config);
        directory.log();
        let output = Attachment::new("a").call(&host, directory.path(), "ADD", &config).unwrap();
        let message = output.stdout["msg"].as_str().unwrap();
        assert!(message.contains("eth0 exists already"), "{config}: {message}");
        assert_eq!(directory.log(), Vec::<String>::new(), "{config}");
        Attachment::new("a").del(&host, directory.path(), &config).unwrap();
    }
}

/// The same of a chain whose first plugin is another's: its ADD fails since the attachment exists, and DEL would take that
/// away.
#[test]
fn a_second_add_to_a_chain_of_anothers_plugin_keeps_the_first() {
    let Some(peers) = peers().filter(|_| root()) else { return };
    let directory = Directory::new();
    fs_err::remove_file(directory.path().join("bridge")).unwrap();
    fs_err::copy(peers.join("bridge"), directory.path().join("bridge")).unwrap();
    let host = host().unwrap();
    directory.add(&host, &chain());
    let output = Attachment::new("a").call(&host, directory.path(), "ADD", &chain()).unwrap();
    assert!(output.code != Some(0));
    assert!(host.container_sh("a", "ip link show eth0").is_ok());
    assert_ne!(rules_of_the_container(&host), "");
    Attachment::new("a").del(&host, directory.path(), &chain()).unwrap();
    assert!(host.container_sh("a", "ip link show eth0").is_err());
    assert_eq!(rules_of_the_container(&host), "");
}

/// Nothing of a chain is called if one of its plugins is not installed.
#[test]
fn a_chain_that_lacks_a_plugin_is_not_begun() {
    if !root() {
        return;
    }
    let directory = Directory::new();
    let host = host().unwrap();
    let config = config("outrigger", json!({ "plugins": [{ "type": "recorder" }, { "type": "there-is-none" }] }));
    let output = Attachment::new("a").call(&host, directory.path(), "ADD", &config).unwrap();
    assert_eq!(output.error_code(), Some(7), "{output:?}");
    assert_eq!(directory.log(), Vec::<String>::new());
}

/// The kernel would make `a0` of `a%d`, which nobody finds again.
#[test]
fn a_name_with_a_percent_sign_is_refused() {
    if !root() {
        return;
    }
    let directory = Directory::new();
    let host = host().unwrap();
    host.sh("ip link add up0 type veth peer name up1").unwrap();
    for (kind, keys) in
        [("bridge", json!({})), ("ptp", json!({})), ("macvlan", json!({ "master": "up0" })), ("tap", json!({}))]
    {
        let attachment = Attachment { ifname: "a%d".into(), ..Attachment::new("a") };
        let output = attachment.call(&host, directory.path(), "ADD", &recorded(kind, keys)).unwrap();
        assert_eq!(output.error_code(), Some(4), "{kind}: {output:?}");
        assert_eq!(host.container_sh("a", "ip -o link | grep -vc ' lo: ' || true").unwrap(), "0\n", "{kind}");
        attachment.del(&host, directory.path(), &recorded(kind, json!({ "master": "up0" }))).unwrap();
    }
}
