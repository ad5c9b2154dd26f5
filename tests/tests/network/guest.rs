//! ipvlan, vlan, dummy and vrf under Debian's cloud kernel, in an emulated machine (`scripts/guest.sh`): the kernel of the
//! machine that tests run on often lacks them. These tests run in the machine; one test starts it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use outrigger_testing::NetHost;
use outrigger_tests::{eprintln_skip, project};
use serde_json::{Value, json};

use crate::common::{Plugins, can_run, cni_binary, peers};
use crate::interfaces::{Chain, call, network, scene};

const V4: &str = "10.1.0.0/24";
const V6: &str = "fd00:1::/64";

/// Where files are in the machine.
const BINARY: &str = "/test/outrigger-cni";
const TESTS: &str = "/test/network";
const PEERS: &str = "/usr/lib/cni";

/// Programs that the private hosts of the tests use.
const TOOLS: &[&str] = &["ip", "unshare", "nsenter", "mount", "umount", "ping"];

/// What of the peers' plugins is used.
const PEER_PLUGINS: &[&str] = &["bridge", "host-local", "ipvlan", "macvlan", "vlan", "vrf"];

fn program(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

/// Starts the machine and runs the tests of this file in it.
#[test]
fn under_another_kernel() {
    let name = "under_another_kernel";
    if !can_run(name) {
        return;
    }
    for tool in ["qemu-system-x86_64", "busybox", "cpio"] {
        if program(tool).is_none() {
            return eprintln_skip(name, &format!("{tool} is not installed: scripts/tools.sh test installs it"));
        }
    }
    let mut command = Command::new(project().join("scripts/guest.sh"));
    command.args(["-t", "480"]);
    let mut add = |from: &Path, to: &str| {
        command.arg("-f").arg(format!("{}={to}", from.display()));
    };
    add(&cni_binary().unwrap(), BINARY);
    add(&std::env::current_exe().unwrap(), TESTS);
    // The machine's own shell takes its own programs first, which know fewer options.
    add(&program("dash").expect("dash is Debian's sh"), "/usr/bin/sh");
    for tool in TOOLS {
        match program(tool) {
            Some(path) => add(&path, &format!("/usr/bin/{tool}")),
            None => panic!("{tool} is missing"),
        }
    }
    for plugin in PEER_PLUGINS {
        if let Some(path) = peers().map(|peers| peers.join(plugin)).filter(|path| path.exists()) {
            add(&path, &format!("{PEERS}/{plugin}"));
        }
    }
    let line = format!(
        "OUTRIGGER_CNI={BINARY} OUTRIGGER_CNI_PEERS={PEERS} RUST_BACKTRACE=0 \
         {TESTS} --ignored --test-threads 1 guest::in_the_machine"
    );
    let output = command.arg(line).stdin(Stdio::null()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(125) && text.contains("cannot download") {
        return eprintln_skip(name, "Debian's cloud kernel cannot be downloaded");
    }
    assert!(output.status.success(), "{}:\n{text}", output.status);
    assert!(text.contains(" 0 failed") && !text.contains(" 0 passed"), "{text}");
    eprintln!("{text}");
}

/// The tests that [`under_another_kernel`] runs in the machine. Left to themselves they would fail where kinds of links are
/// missing.
mod in_the_machine {
    use super::*;

    fn both() -> Result<(Plugins, Option<PathBuf>)> {
        Ok((Plugins::install()?, peers()))
    }

    fn compare(chains: &[Chain<'_>]) -> Result<()> {
        let (ours, peers) = both()?;
        let Some(peers) = peers else {
            eprintln_skip("in_the_machine", "the peers' plugins are not installed");
            return Ok(());
        };
        chains.iter().try_for_each(|chain| chain.compare(ours.dir(), &peers))
    }

    fn one(name: &str, config: Value) -> Chain<'_> {
        Chain { name, plugins: vec![config], setup: "true" }
    }

    #[test]
    #[ignore = "runs in the machine that `under_another_kernel` starts"]
    fn ipvlan_is_as_the_peers() -> Result<()> {
        let ipvlan = |mode: &str| json!({"type": "ipvlan", "master": "up0", "mode": mode});
        compare(&[
            one("l2", network(&ipvlan("l2"), &[V4])),
            one("l3, both", network(&ipvlan("l3"), &[V4, V6])),
            one("l3s", network(&json!({"type": "ipvlan", "master": "up0", "mode": "l3s", "mtu": 1400}), &[V4])),
        ])
    }

    #[test]
    #[ignore = "runs in the machine that `under_another_kernel` starts"]
    fn vlan_is_as_the_peers() -> Result<()> {
        let vlan = json!({"type": "vlan", "master": "up0", "vlanId": 5, "mtu": 1400});
        compare(&[one("both", network(&vlan, &[V4, V6]))])
    }

    #[test]
    #[ignore = "runs in the machine that `under_another_kernel` starts"]
    fn vrf_is_as_the_peers() -> Result<()> {
        let vrf = json!({"cniVersion": "1.0.0", "name": "net", "type": "vrf", "vrfname": "blue", "table": 1000});
        let below = network(&json!({"type": "macvlan", "master": "up0", "mac": "02:00:00:00:00:42"}), &[V4]);
        let (ours, peers) = both()?;
        let chain = Chain { name: "vrf", plugins: vec![below, vrf], setup: "true" };
        // The peers of Debian 12 lose the interface's routes; newer ones, and ours, put them into the VRF's table.
        if let Some(peers) = peers {
            chain.compare_results(ours.dir(), &peers)?;
        }
        Ok(())
    }

    #[test]
    #[ignore = "runs in the machine that `under_another_kernel` starts"]
    fn dummies_and_vrfs_of_ours() -> Result<()> {
        let (ours, _) = both()?;
        let host = scene()?;
        let dummy = network(&json!({"type": "dummy"}), &[V4, V6]);
        let vrf = json!({"cniVersion": "1.0.0", "name": "net", "type": "vrf", "vrfname": "blue"});
        let result = call(&host, ours.dir(), "ADD", "/run/netns/a", &dummy)?.ok()?;
        ensure!(host.container_sh("a", "ip -d link show eth0")?.contains("dummy"));
        let with = |config: &Value| {
            let mut config = config.clone();
            config["prevResult"] = result.clone();
            config
        };
        call(&host, ours.dir(), "ADD", "/run/netns/a", &with(&vrf))?.ok()?;
        let table =
            host.container_sh("a", "ip route show vrf blue; ip -6 route show vrf blue; ip -6 addr show eth0")?;
        for part in ["10.1.0.0/24", "default via 10.1.0.1", "default via fd00:1::1", "inet6 fd00:1::2/64"] {
            ensure!(table.contains(part), "{part}: {table}");
        }
        for config in [&dummy, &vrf] {
            call(&host, ours.dir(), "CHECK", "/run/netns/a", &with(config))?.ok()?;
        }
        let mut other = with(&vrf);
        other["table"] = 77.into();
        ensure!(call(&host, ours.dir(), "CHECK", "/run/netns/a", &other)?.error_code() == Some(999));
        ensure!(call(&host, ours.dir(), "ADD", "/run/netns/a", &other)?.error_code().is_some());
        for _ in 0..2 {
            for config in [&vrf, &dummy] {
                call(&host, ours.dir(), "DEL", "/run/netns/a", &with(config))?.ok()?;
            }
            ensure!(host.container_sh("a", "ip -o link | grep -v ' lo: ' | grep -c . || true")?.trim() == "0");
        }
        ensure!(host.sh("find /var/lib/cni/networks/net -name '[1f]*'")?.is_empty());
        // Addresses that belong to nobody are given back.
        call(&host, ours.dir(), "ADD", "/run/netns/a", &dummy)?.ok()?;
        let mut gc = dummy.clone();
        gc["cniVersion"] = "1.1.0".into();
        gc["cni.dev/valid-attachments"] = json!([]);
        call(&host, ours.dir(), "GC", "", &gc)?.ok()?;
        ensure!(host.sh("find /var/lib/cni/networks/net -name '[1f]*'")?.is_empty());
        Ok(())
    }

    /// A chained ipvlan takes interface and addresses of the plugin before.
    #[test]
    #[ignore = "runs in the machine that `under_another_kernel` starts"]
    fn ipvlan_in_a_chain() -> Result<()> {
        let (ours, peers) = both()?;
        let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "ipvlan"});
        config["prevResult"] = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "up1"}],
            "ips": [{"address": "10.1.0.9/24", "gateway": "10.1.0.1"}], "routes": [{"dst": "0.0.0.0/0"}]});
        let mut results = Vec::new();
        for dir in [Some(ours.dir().to_owned()), peers].into_iter().flatten() {
            let host = scene()?;
            let mut result = call(&host, &dir, "ADD", "/run/netns/a", &config)?.ok()?;
            // Before 1.9 the peers printed it empty too.
            result.as_object_mut().context("result")?.remove("dns");
            let mut checked = config.clone();
            checked["prevResult"] = result.clone();
            call(&host, ours.dir(), "CHECK", "/run/netns/a", &checked)?.ok()?;
            ensure!(host.container_sh("a", "ip addr show eth0")?.contains("inet 10.1.0.9/24"));
            call(&host, ours.dir(), "DEL", "/run/netns/a", &checked)?.ok()?;
            ensure!(host.container_sh("a", "ip link show eth0").is_err());
            results.push(result);
        }
        ensure!(results.iter().all(|result| *result == results[0]), "{results:?}");
        // A master in the container itself.
        let host = scene()?;
        host.sh("ip link set up1 netns /run/netns/a")?;
        let inner = json!({"type": "ipvlan", "master": "up1", "linkInContainer": true});
        call(&host, ours.dir(), "ADD", "/run/netns/a", &network(&inner, &[V4]))?.ok()?;
        ensure!(host.container_sh("a", "ip link show eth0")?.contains("eth0@up1"));
        Ok(())
    }

    /// Kernels such as this one look for the name of a new link in the wrong namespace: the host has an `eth0` too, and it
    /// is even the master.
    #[test]
    #[ignore = "runs in the machine that `under_another_kernel` starts"]
    fn the_host_has_an_interface_of_that_name() -> Result<()> {
        let (ours, _) = both()?;
        let host = scene()?;
        host.sh("ip link set up0 down; ip link set up0 name eth0; ip link set eth0 up")?;
        let links = || host.container_sh("a", "ip -o link | grep -v ' lo: ' | cut -d ' ' -f 2 | cut -d @ -f 1");
        for kind in ["macvlan", "ipvlan", "vlan"] {
            let config = network(&json!({"type": kind, "master": "eth0", "vlanId": 5}), &[V4]);
            let result = call(&host, ours.dir(), "ADD", "/run/netns/a", &config)?.ok().context(kind)?;
            ensure!(links()?.trim_matches(':').trim() == "eth0", "{kind}: {:?}", links());
            let again = call(&host, ours.dir(), "ADD", "/run/netns/a", &config)?;
            let text = "interface eth0 exists already in /run/netns/a: delete its attachment first";
            ensure!(again.stdout["msg"] == text, "{kind}: {again:?}");
            let mut checked = config.clone();
            checked["prevResult"] = result;
            call(&host, ours.dir(), "CHECK", "/run/netns/a", &checked)?.ok().context(kind)?;
            call(&host, ours.dir(), "DEL", "/run/netns/a", &checked)?.ok().context(kind)?;
            // Nothing is left of an ADD that fails, whenever.
            let mut late = config.clone();
            late["ipam"]["routes"] = json!([{"dst": "203.0.113.0/24", "gw": "198.51.100.1"}]);
            let output = call(&host, ours.dir(), "ADD", "/run/netns/a", &late)?;
            ensure!(output.error_code() == Some(999), "{kind}: {output:?}");
            ensure!(links()?.is_empty(), "{kind}: {:?}", links());
        }
        ensure!(host.sh("ip -o link show eth0").is_ok());
        Ok(())
    }

    /// Without a carrier IPv6 addresses never settle, and that is no reason to fail.
    #[test]
    #[ignore = "runs in the machine that `under_another_kernel` starts"]
    fn vrf_without_a_carrier_and_undone() -> Result<()> {
        let (ours, _) = both()?;
        let host = scene()?;
        host.sh("ip link set up1 down")?;
        let mut vrf = json!({"cniVersion": "1.0.0", "name": "net", "type": "vrf", "vrfname": "blue"});
        let below = network(&json!({"type": "macvlan", "master": "up0"}), &[V4, V6]);
        vrf["prevResult"] = call(&host, ours.dir(), "ADD", "/run/netns/a", &below)?.ok()?;
        call(&host, ours.dir(), "ADD", "/run/netns/a", &vrf)?.ok()?;
        let shown = || host.container_sh("a", "ip -6 addr show eth0; ip route; ip -6 route");
        ensure!(shown()?.contains("inet6 fd00:1::2/64"), "{}", shown()?);
        call(&host, ours.dir(), "DEL", "/run/netns/a", &vrf)?.ok()?;
        call(&host, ours.dir(), "DEL", "/run/netns/a", &below)?.ok()?;

        // What cannot be put back in the VRF: a route by a gateway that only the kernel knew to be on the link.
        host.sh("ip link set up1 up")?;
        vrf["prevResult"] = call(&host, ours.dir(), "ADD", "/run/netns/a", &below)?.ok()?;
        let routes = "ip route add 198.51.100.1 dev eth0 proto kernel scope link
            ip route add 203.0.113.0/24 via 198.51.100.1";
        host.container_sh("a", routes)?;
        let output = call(&host, ours.dir(), "ADD", "/run/netns/a", &vrf)?;
        ensure!(output.error_code() == Some(999), "{output:?}");
        ensure!(output.stdout["msg"].as_str().is_some_and(|text| text.contains("203.0.113.0/24")), "{output:?}");
        for part in ["inet6 fd00:1::3/64", "default via 10.1.0.1", "default via fd00:1::1"] {
            ensure!(shown()?.contains(part), "{part}: {}", shown()?);
        }
        ensure!(host.container_sh("a", "ip link show blue").is_err());
        Ok(())
    }

    /// Packets: ICMP and TCP between two containers, in each kind of network.
    #[test]
    #[ignore = "runs in the machine that `under_another_kernel` starts"]
    fn packets_arrive() -> Result<()> {
        let (ours, _) = both()?;
        for (name, first, second) in [
            ("ipvlan", json!({"type": "ipvlan", "master": "up0"}), json!({"type": "ipvlan", "master": "up0"})),
            (
                "vlan",
                json!({"type": "vlan", "master": "up0", "vlanId": 5}),
                json!({"type": "vlan", "master": "up1", "vlanId": 5}),
            ),
        ] {
            let host = scene()?;
            host.container("b")?;
            call(&host, ours.dir(), "ADD", "/run/netns/a", &network(&first, &[V4, V6]))?.ok()?;
            let result = call(&host, ours.dir(), "ADD", "/run/netns/b", &network(&second, &[V4, V6]))?.ok()?;
            for ip in result["ips"].as_array().context("ips")? {
                let address =
                    ip["address"].as_str().and_then(|address| address.split('/').next()).context("address")?;
                host.container_sh("a", &format!("ping -c 1 -W 5 {address}")).context(name)?;
                tcp(&host, address).context(name)?;
            }
        }
        // In a VRF: by a socket that is bound to it, and only by that.
        let host = scene()?;
        host.container("b")?;
        let below = |master: &str| network(&json!({"type": "macvlan", "master": master}), &[V4]);
        let mut vrf = json!({"cniVersion": "1.0.0", "name": "net", "type": "vrf", "vrfname": "blue"});
        vrf["prevResult"] = call(&host, ours.dir(), "ADD", "/run/netns/a", &below("up0"))?.ok()?;
        call(&host, ours.dir(), "ADD", "/run/netns/a", &vrf)?.ok()?;
        call(&host, ours.dir(), "ADD", "/run/netns/b", &below("up1"))?.ok()?;
        host.container_sh("a", "ping -c 1 -W 5 -I blue 10.1.0.3")?;
        ensure!(host.container_sh("a", "ping -c 1 -W 1 10.1.0.3").is_err());
        Ok(())
    }

    /// One line from a to a server in b.
    fn tcp(host: &NetHost, address: &str) -> Result<()> {
        let mut server = host.in_container("b", "nc");
        let mut server = server.args(["-l", "-p", "7777"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let deadline = Instant::now() + Duration::from_secs(20);
        // Refused until the server listens.
        while host.container_sh("a", &format!("echo hello | nc -w 5 {address} 7777")).is_err() {
            if Instant::now() > deadline {
                let _ = server.kill();
                bail!("no TCP connection to {address}");
            }
        }
        let output = server.wait_with_output()?;
        ensure!(output.stdout == b"hello\n", "{:?}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    #[test]
    #[ignore = "runs in the machine that `under_another_kernel` starts"]
    fn failures_leave_nothing() -> Result<()> {
        let (ours, _) = both()?;
        let host = scene()?;
        for (plugin, code, text) in [
            (json!({"type": "vlan"}), 7, "master is missing"),
            (json!({"type": "vlan", "master": "up0", "vlanId": 4095}), 7, "vlanId: 4095 is not from 0 to 4094"),
            (json!({"type": "vlan", "master": "up9", "vlanId": 1}), 7, "master: there is no interface up9"),
            (json!({"type": "ipvlan", "master": "up0", "mode": "l4"}), 7, "mode: mode \"l4\" is none of l2, l3, l3s"),
            (json!({"type": "vrf"}), 7, "vrfname is missing"),
            (json!({"type": "vrf", "vrfname": "blue"}), 7, "prevResult is missing"),
        ] {
            let output = call(&host, ours.dir(), "ADD", "/run/netns/a", &network(&plugin, &[V4]))?;
            ensure!(output.error_code() == Some(code), "{plugin}: {output:?}");
            ensure!(output.stdout["msg"].as_str().unwrap_or_default().starts_with(text), "{plugin}: {output:?}");
        }
        for plugin in [
            json!({"type": "vlan", "master": "up0", "vlanId": 7}),
            json!({"type": "ipvlan", "master": "up0"}),
            json!({"type": "dummy"}),
        ] {
            let mut config = network(&plugin, &[V4]);
            config["ipam"]["routes"] = json!([{"dst": "203.0.113.0/24", "gw": "198.51.100.1"}]);
            let output = call(&host, ours.dir(), "ADD", "/run/netns/a", &config)?;
            ensure!(output.error_code() == Some(999), "{plugin}: {output:?}");
            ensure!(host.container_sh("a", "ip link show eth0").is_err(), "{plugin}");
            ensure!(host.sh("find /var/lib/cni/networks/net -name '10*'")?.is_empty(), "{plugin}");
        }
        Ok(())
    }
}
