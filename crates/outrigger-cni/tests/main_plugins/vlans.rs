//! `bridge` with VLANs, on a kernel whose bridges know them: this one, or that of a guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use outrigger_testing::NetHost;
use serde_json::{Value, json};

use crate::harness::{Attachment, config, host, ipam, masked, masked_result, ours, peers, root, same};

const V4: &str = "10.26.0.0/16";
const V6: &str = "fd00:26::/64";

/// Whether bridges of this kernel know VLANs.
fn known() -> Result<bool> {
    Ok(NetHost::new()?.sh("ip link add x type bridge vlan_filtering 1").is_ok())
}

fn vlans(host: &NetHost, link: &str) -> String {
    let all: Value = serde_json::from_str(&host.sh("bridge -j vlan").unwrap()).unwrap();
    let port = all.as_array().unwrap().iter().find(|port| port["ifname"] == link).cloned().unwrap_or_default();
    let ids = port["vlans"].as_array().cloned().unwrap_or_default();
    let show = |id: &Value| {
        let flags = id["flags"].as_array().cloned().unwrap_or_default();
        let flags: Vec<&str> = flags.iter().filter_map(Value::as_str).collect();
        let end = id["vlanEnd"].as_u64().map(|end| format!("-{end}")).unwrap_or_default();
        format!("{}{end} {}", id["vlan"], flags.join(" ")).trim().to_owned()
    };
    ids.iter().map(show).collect::<Vec<_>>().join(", ")
}

/// The same VLANs on the same ports, and each side deletes the other's. Older versions of the original leave the bridge's
/// default VLAN on the port, as newer ones do when they are told to.
fn as_the_original() -> Result<()> {
    let Some(peers) = peers() else { return Ok(()) };
    let keys = json!({
        "vlan": 100, "preserveDefaultVlan": true, "isGateway": true, "ipam": ipam(&[V4, V6], &["0.0.0.0/0"]),
    });
    let (config, attachment) = (config("bridge", keys), Attachment::new("a"));
    let mut seen = Vec::new();
    for (adder, other) in [(peers.as_path(), ours()), (ours(), peers.as_path())] {
        let host = host()?;
        let result = attachment.add(&host, adder, &config)?;
        let ports = || Ok::<_, anyhow::Error>(masked(&serde_json::from_str(&host.sh("bridge -j vlan")?)?));
        let added = ports()?;
        let addresses = host.sh("ip -o addr show cni0.100 | grep -v fe80 | sed 's/.*inet/inet/; s/scope.*//'")?;
        for dir in [adder, other] {
            attachment.after(&host, dir, "CHECK", &config, &result)?;
        }
        attachment.after(&host, other, "DEL", &config, &result)?;
        seen.push(
            json!({ "result": masked_result(&result), "added": added, "addresses": addresses, "deleted": ports()? }),
        );
    }
    same("", &seen[0], &seen[1])
}

#[test]
fn on_this_kernel() {
    if !root() {
        return;
    }
    if !known().unwrap() {
        eprintln!("skipped: the bridges of this kernel know no VLANs (the test in a guest shows them)");
        return;
    }
    as_the_original().unwrap();
    let host = host().unwrap();
    let trunk = json!([{ "minID": 10, "maxID": 12 }, { "id": 20 }]);
    for (keys, expected) in [
        (json!({ "vlanTrunk": trunk }), "1 PVID Egress Untagged, 10-12, 20"),
        (json!({ "vlan": 5, "vlanTrunk": trunk }), "5 PVID Egress Untagged, 10-12, 20"),
        (json!({ "vlan": 5 }), "5 PVID Egress Untagged"),
        (json!({ "vlan": 5, "preserveDefaultVlan": true }), "1 Egress Untagged, 5 PVID Egress Untagged"),
        (json!({}), "1 PVID Egress Untagged"),
    ] {
        let config = config("bridge", keys);
        let result = Attachment::new("a").add(&host, ours(), &config).unwrap();
        let port = result["interfaces"][1]["name"].as_str().unwrap();
        // Consecutive VLANs show as a range or one by one, after the version of the tool.
        let seen = vlans(&host, port).replace("10, 11, 12", "10-12");
        assert_eq!(seen, expected, "{config}");
        Attachment::new("a").del(&host, ours(), &config).unwrap();
    }
    // Packets stay in their VLAN; the gateway of a VLAN is an interface of its own.
    let gateway = |vlan: u32, subnet: &str| {
        let mut config = config("bridge", json!({ "vlan": vlan, "isGateway": true, "ipam": ipam(&[subnet], &[]) }));
        config["name"] = json!(format!("net{vlan}"));
        config
    };
    let (one, two) = (gateway(100, "10.26.0.0/24"), gateway(200, "10.26.1.0/24"));
    let first = Attachment::new("a").add(&host, ours(), &one).unwrap();
    assert_eq!(first["interfaces"][3]["name"], "cni0.100");
    Attachment::new("b").add(&host, ours(), &two).unwrap();
    host.container_sh("a", "ping -c1 -W5 10.26.0.1").unwrap();
    host.container_sh("b", "ping -c1 -W5 10.26.1.1").unwrap();
    // The same network on another VLAN does not reach it without a router.
    host.container_sh("b", "ip addr add 10.26.0.77/24 dev eth0; ping -c1 -W1 -I 10.26.0.77 10.26.0.2").unwrap_err();
    Attachment::new("a").after(&host, ours(), "CHECK", &one, &first).unwrap();
    // What a killed ADD left of a gateway's interface is finished: a pair whose port is in no VLAN, one end down.
    Attachment::new("a").after(&host, ours(), "DEL", &one, &first).unwrap();
    host.sh("ip link del cni0.100; ip link add p100 master cni0 up type veth peer name cni0.100").unwrap();
    Attachment::new("a").add(&host, ours(), &one).unwrap();
    assert_eq!(vlans(&host, "p100"), "100 PVID Egress Untagged");
    host.container_sh("a", "ping -c1 -W5 10.26.0.1").unwrap();
}

/// Runs the test above in a guest with another kernel, unless this kernel will do.
#[test]
fn in_a_guest() {
    if !root() || known().unwrap() {
        return;
    }
    let tools = ["qemu-system-x86_64", "busybox", "cpio"];
    if tools.iter().any(|tool| which(tool).is_none()) {
        eprintln!("skipped: a guest needs {}", tools.join(", "));
        return;
    }
    run_in_guest().unwrap();
}

fn which(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|file| file.is_file())
}

fn run_in_guest() -> Result<()> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let own = std::env::current_exe()?;
    let mut command = Command::new(project.join("scripts/guest.sh"));
    command.args(["-t", "300", "-f"]).arg(&own).arg("-f").arg(env!("CARGO_BIN_EXE_outrigger-cni"));
    for tool in ["ip", "bridge", "unshare", "nsenter", "mount", "umount", "ping"] {
        command.arg("-f").arg(which(tool).with_context(|| format!("{tool} is not installed"))?);
    }
    // The guest's own shell takes its built-in tools before these.
    command.arg("-f").arg(format!("{}=/usr/bin/sh", which("dash").context("dash is not installed")?.display()));
    if let Some(peers) = peers() {
        for plugin in ["bridge", "host-local"] {
            command.arg("-f").arg(peers.join(plugin));
        }
    }
    command.arg(format!("RUST_BACKTRACE=0 {} --exact vlans::on_this_kernel --nocapture", own.display()));
    let output = command.output().context("cannot run scripts/guest.sh")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(125) && String::from_utf8_lossy(&output.stderr).contains("cannot download") {
        eprintln!("skipped: the guest's kernel cannot be downloaded");
        return Ok(());
    }
    ensure!(output.status.success(), "{}\n{said}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    ensure!(!said.contains("skipped") && said.contains("1 passed"), "{said}");
    Ok(())
}
