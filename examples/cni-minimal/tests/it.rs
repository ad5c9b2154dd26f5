//! The example plugin as a runtime calls it: on a private host, with the kernel's routing table as witness.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panicking, and say what they skip")]

use std::path::{Path, PathBuf};

use outrigger_cni_verify::{Target, profile::Kind};
use outrigger_testing::{NetHost, PluginOutput};
use outrigger_verify_report::{Filter, Format, RunOptions};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_cni-minimal");

fn call(host: &NetHost, command: &str, netns: &Path, config: &Value) -> PluginOutput {
    NetHost::call(&mut host.plugin(Path::new(BINARY), command, "id", netns, "eth0"), config).unwrap()
}

/// A host with a container that has `eth0` with an address, as the plugin before would have made it.
fn host() -> Option<(NetHost, PathBuf)> {
    if !NetHost::available() {
        eprintln!("skipped: needs root");
        return None;
    }
    let host = NetHost::new().unwrap();
    let netns = host.container("a").unwrap();
    host.sh("ip link add v0 up type veth peer name eth0 netns /run/netns/a").unwrap();
    host.container_sh(
        "a",
        "ip addr add 10.1.0.2/24 dev eth0; ip -6 addr add fd00::2/64 dev eth0 nodad; ip link set eth0 up",
    )
    .unwrap();
    Some((host, netns))
}

fn config() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "cni-minimal",
        "routes": [{"dst": "10.9.0.0/16", "gw": "10.1.0.1"}, {"dst": "fd09::/64", "gw": "fd00::1"}, {"dst": "10.8.0.0/16"}],
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/a"}],
            "ips": [{"address": "10.1.0.2/24", "interface": 0}],
            "routes": [{"dst": "0.0.0.0/0"}]
        }
    })
}

#[test]
fn routes_come_and_go() {
    let Some((host, netns)) = host() else { return };
    let result = call(&host, "ADD", &netns, &config()).ok().unwrap();
    assert_eq!(result["ips"][0], json!({"address": "10.1.0.2/24", "interface": 0}));
    assert_eq!(result["routes"][2], json!({"dst": "fd09::/64", "gw": "fd00::1"}));
    let table = || host.container_sh("a", "ip route; ip -6 route").unwrap();
    for route in ["10.9.0.0/16 via 10.1.0.1 dev eth0", "10.8.0.0/16 dev eth0", "fd09::/64 via fd00::1 dev eth0"] {
        assert!(table().contains(route), "{route} in\n{}", table());
    }
    call(&host, "CHECK", &netns, &config()).ok().unwrap();
    host.container_sh("a", "ip route del 10.9.0.0/16").unwrap();
    let output = call(&host, "CHECK", &netns, &config());
    assert_eq!(output.stdout["msg"], "the route to 10.9.0.0/16 is gone");
    // Though one is gone already, the others go; and again.
    for _ in 0..2 {
        call(&host, "DEL", &netns, &config()).ok().unwrap();
        assert!(!table().contains("10.8.0.0") && !table().contains("fd09"), "{}", table());
        assert!(table().contains("10.1.0.0/24"));
    }
}

#[test]
fn what_is_wrong_is_said() {
    let Some((host, netns)) = host() else { return };
    let code = |command: &str, netns: &Path, change: &dyn Fn(&mut Value)| {
        let mut config = config();
        change(&mut config);
        call(&host, command, netns, &config).error_code()
    };
    let gone = Path::new("/run/netns/gone");
    assert_eq!(code("ADD", &netns, &|config| config["prevResult"] = Value::Null), Some(7));
    assert_eq!(code("ADD", &netns, &|config| config["routes"] = json!([{"dst": "x"}])), Some(6));
    assert_eq!(code("ADD", gone, &|_| ()), Some(8));
    assert_eq!(
        code("ADD", &netns, &|config| config["routes"] = json!([{"dst": "10.9.0.0/16", "gw": "1.2.3.4"}])),
        Some(999)
    );
    assert_eq!(code("DEL", gone, &|_| ()), None);
    assert_eq!(code("DEL", Path::new(""), &|config| config["prevResult"] = Value::Null), None);
    host.container_sh("a", "ip link del eth0").unwrap();
    assert_eq!(code("DEL", &netns, &|_| ()), None);
    assert_eq!(code("ADD", &netns, &|_| ()), Some(999));
}

/// What `outrigger verify cni` says of it.
#[test]
fn it_conforms() {
    if !NetHost::available() {
        eprintln!("skipped: needs root");
        return;
    }
    let config = json!({ "type": "cni-minimal", "routes": [{ "dst": "10.99.0.0/16" }] });
    let target = Target { path: BINARY.into(), plugins: vec![], config: Some(config), kind: Some(Kind::Meta) };
    let cases = outrigger_cni_verify::cases(&target).unwrap();
    assert!(cases.len() > 50);
    let report =
        outrigger_verify_report::run("cni-minimal", cases, &Filter::new([""; 0]), RunOptions::default(), |_| ());
    assert!(!report.failed(true), "{}", report.print(Format::Table));
}

#[test]
fn the_manual_shows_this_example() {
    let manual = include_str!("../../../docs/write-a-cni-plugin.md");
    let source = include_str!("../src/main.rs");
    let shown: Vec<_> = manual.split("```rust\n").filter_map(|block| block.split("```").next()).collect();
    let conf = shown.iter().find(|block| block.starts_with("conf! {")).unwrap();
    assert!(source.contains(conf.trim_end()), "{conf}");
}
