//! Hosts whose iptables is iptables-legacy: what the originals made there before the switch is checked, and goes.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use outrigger_testing::NetHost;
use outrigger_tests::eprintln_skip;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Plugins, can_run, peers_or_skip};
use crate::rules::{config, gc, host, previous};

const TOOLS: [&str; 2] = ["iptables", "ip6tables"];

/// A directory in which the tools' plain names are those of iptables-legacy.
fn legacy_tools(test: &str) -> Result<Option<TempDir>> {
    let scratch = tempfile::tempdir()?;
    for tool in TOOLS {
        for action in ["", "-save", "-restore"] {
            let program = PathBuf::from(format!("/usr/sbin/{tool}-legacy{action}"));
            if !program.exists() {
                eprintln_skip(test, "iptables-legacy is not installed");
                return Ok(None);
            }
            std::os::unix::fs::symlink(program, scratch.path().join(format!("{tool}{action}")))?;
        }
    }
    Ok(Some(scratch))
}

/// Calls a plugin on a host where iptables is iptables-legacy.
fn call(host: &NetHost, dir: &Path, tools: &Path, command: &str, id: &str, config: &Value) -> Result<Value> {
    let plugin = config["type"].as_str().context("type")?;
    let mut process = host.plugin(&dir.join(plugin), command, id, Path::new("/run/netns/a"), "eth0");
    let path = std::env::var("PATH").unwrap_or_default();
    process.env("PATH", format!("{}:{path}", tools.display()));
    NetHost::call(&mut process, config)?.ok().with_context(|| format!("{command} of {plugin} in {}", dir.display()))
}

/// Rules of containers in the tables of iptables-legacy.
fn rules_of_containers(host: &NetHost) -> Result<String> {
    host.sh("(iptables-legacy-save; ip6tables-legacy-save) 2>/dev/null | \
             grep -E '10\\.1\\.0\\.[0-9]+/32|fd00:1::[0-9]+/128|CNI-DN-|id: ' || true")
}

fn configurations() -> Vec<Value> {
    let mappings = json!([
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8081, "containerPort": 81, "protocol": "udp", "hostIP": "127.0.0.1" },
    ]);
    vec![
        config("portmap", &json!({ "prevResult": previous(5), "runtimeConfig": { "portMappings": mappings } })),
        config("firewall", &json!({ "prevResult": previous(5) })),
        config("firewall", &json!({ "prevResult": previous(5), "ingressPolicy": "same-bridge" })),
    ]
}

#[test]
fn what_the_originals_made_by_iptables_legacy_is_checked_and_removed() {
    const NAME: &str = "what_the_originals_made_by_iptables_legacy_is_checked_and_removed";
    if !can_run(NAME) {
        return;
    }
    let Some(peers) = peers_or_skip(NAME) else { return };
    let Some(tools) = legacy_tools(NAME).unwrap() else { return };
    let plugins = Plugins::install().unwrap();
    for config in configurations() {
        let host = host().unwrap();
        let ours = |command, id, config: &Value| call(&host, plugins.dir(), tools.path(), command, id, config);
        for (id, number) in [("cid", 5), ("other", 6)] {
            let mut config = config.clone();
            config["prevResult"] = previous(number);
            call(&host, &peers, tools.path(), "ADD", id, &config).unwrap();
        }
        ours("CHECK", "cid", &config).unwrap();
        let both = rules_of_containers(&host).unwrap();
        assert!(both.contains("10.1.0.5"), "{both}");
        ours("DEL", "cid", &config).unwrap();
        let left = rules_of_containers(&host).unwrap();
        assert!(!left.contains("10.1.0.5") && !left.contains("id: \\\"cid"), "{left}");
        assert!(left.contains("10.1.0.6"), "{left}");
        assert!(ours("CHECK", "cid", &config).is_err());
        ours("DEL", "cid", &config).unwrap();
        // The firewall's rules do not say whose they are.
        if config["type"] == "portmap" {
            gc(&host, plugins.dir(), &config, &["other"]).unwrap();
            assert_eq!(rules_of_containers(&host).unwrap(), left);
            gc(&host, plugins.dir(), &config, &[]).unwrap();
            assert_eq!(rules_of_containers(&host).unwrap(), "");
        }
    }
}

#[test]
fn masquerading_by_iptables_legacy_is_checked_and_removed() {
    const NAME: &str = "masquerading_by_iptables_legacy_is_checked_and_removed";
    if !can_run(NAME) {
        return;
    }
    let Some(peers) = peers_or_skip(NAME) else { return };
    let Some(tools) = legacy_tools(NAME).unwrap() else { return };
    let plugins = Plugins::install().unwrap();
    let ranges = json!([[{ "subnet": "10.1.0.0/16" }], [{ "subnet": "fd00:1::/64" }]]);
    let ipam = json!({ "type": "host-local", "ranges": ranges });
    let bridge = config("bridge", &json!({ "isGateway": true, "ipMasq": true, "ipam": ipam }));
    for by_gc in [false, true] {
        let host = host().unwrap();
        let ours = |command, config: &Value| call(&host, plugins.dir(), tools.path(), command, "cid", config);
        let mut config = bridge.clone();
        config["prevResult"] = call(&host, &peers, tools.path(), "ADD", "cid", &bridge).unwrap();
        ours("CHECK", &config).unwrap();
        assert!(rules_of_containers(&host).unwrap().contains("10.1.0.2"));
        if by_gc {
            gc(&host, plugins.dir(), &bridge, &["cid"]).unwrap();
            ours("CHECK", &config).unwrap();
            gc(&host, plugins.dir(), &bridge, &[]).unwrap();
        } else {
            ours("DEL", &config).unwrap();
        }
        assert_eq!(rules_of_containers(&host).unwrap(), "");
    }
}

#[test]
fn no_tables_of_iptables_legacy_are_made() {
    if !can_run("no_tables_of_iptables_legacy_are_made") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let host = host().unwrap();
    for config in configurations() {
        for command in ["ADD", "CHECK", "DEL"] {
            call(&host, plugins.dir(), Path::new("/usr/sbin"), command, "cid", &config).unwrap();
        }
        gc(&host, plugins.dir(), &config, &[]).unwrap();
    }
    let names = host.sh("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || true").unwrap();
    assert_eq!(names, "");
}
