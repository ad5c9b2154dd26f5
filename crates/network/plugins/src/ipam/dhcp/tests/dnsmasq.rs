//! With dnsmasq.

use std::process::{Child, Command, Stdio};

use super::{Lan, Running, code, eventually, lease_files, no_threads_in};
use crate::ipam::dhcp::Dhcp;
use crate::ipam::testing::{Invocation, original, same};
use serde_json::json;

struct Dnsmasq {
    child: Child,
    log: std::path::PathBuf,
    leases: std::path::PathBuf,
}

impl Dnsmasq {
    fn start(lan: &Lan) -> Option<Self> {
        if Command::new("dnsmasq").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED: no dnsmasq (install dnsmasq-base)");
            return None;
        }
        let (log, leases) = (lan.dir.path().join("dnsmasq.log"), lan.dir.path().join("dnsmasq.leases"));
        let output = fs_err::File::create(&log).unwrap();
        let mut command = Command::new("dnsmasq");
        command.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=srv", "--bind-interfaces"]);
        // The lease is for two minutes, dnsmasq's least; to be renewed after three seconds (T1).
        command.args(["--dhcp-range=10.77.0.50,10.77.0.60,255.255.255.0,2m", "--dhcp-option=option:T1,3"]);
        command.args(["--dhcp-option=3,10.77.0.1", "--dhcp-option=26,1400"]);
        command.args(["--dhcp-option=121,192.168.9.0/24,10.77.0.7,0.0.0.0/0,10.77.0.1"]);
        command.args(["--log-dhcp", "--user=root", "--no-ping", "--dhcp-authoritative"]);
        command.arg(format!("--dhcp-leasefile={}", leases.display()));
        command.arg(format!("--pid-file={}", lan.dir.path().join("dnsmasq.pid").display()));
        command.stdout(Stdio::null()).stderr(output.into_parts().0).stdin(Stdio::null());
        let child = lan.server.run(|| command.spawn()).unwrap().unwrap();
        let dnsmasq = Self { child, log, leases };
        eventually("dnsmasq is ready", || dnsmasq.log().contains("DHCP, IP range"));
        Some(dnsmasq)
    }

    fn log(&self) -> String {
        fs_err::read_to_string(&self.log).unwrap()
    }

    fn count(&self, word: &str) -> usize {
        self.log().matches(word).count()
    }

    fn leases(&self) -> String {
        fs_err::read_to_string(&self.leases).unwrap_or_default()
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn life_of_a_lease() {
    let Some(lan) = Lan::new() else { return };
    let Some(dnsmasq) = Dnsmasq::start(&lan) else { return };
    let daemon = Running::start(lan.settings());
    let ipam = json!({
        "provide": [{"option": "host-name", "fromArg": "K8S_POD_NAME"}, {"option": "60", "value": "pods"}],
        "request": [{"option": "121"}, {"option": "26"}], "priority": 7,
    });
    let result = lan.call("ADD", "a", ipam.clone()).unwrap();
    let address = result["ips"][0]["address"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10.77.0.") && address.ends_with("/24"), "{result}");
    assert_eq!(result["ips"][0]["gateway"], "10.77.0.1");
    let routes = json!([
        {"dst": "192.168.9.0/24", "gw": "10.77.0.7", "priority": 7, "mtu": 1400},
        {"dst": "0.0.0.0/0", "gw": "10.77.0.1", "priority": 7, "mtu": 1400},
    ]);
    assert_eq!(result["routes"], routes);
    assert_eq!(lan.call("ADD", "a", ipam.clone()).unwrap(), result, "the same lease again");
    // One, or more where the machine was too slow for the first answer.
    let discovers = dnsmasq.count("DHCPDISCOVER(srv)");
    let bare = address.trim_end_matches("/24").to_owned();
    assert!(
        dnsmasq.leases().contains(&format!("{bare} web-1 00:61:2f:6c:61:6e:2f:65:74:68:30")),
        "{}",
        dnsmasq.leases()
    );
    assert!(dnsmasq.log().contains("vendor class: pods"));
    // As a main plugin does.
    Lan::ip(&lan.container, &format!("addr add {address} dev eth0"));
    lan.call("CHECK", "a", ipam.clone()).unwrap();
    eventually("the lease is renewed", || dnsmasq.count("DHCPACK(srv)") >= 2);
    assert_eq!(dnsmasq.count("DHCPDISCOVER(srv)"), discovers, "renewed, not taken anew");
    assert!(no_threads_in(lan.container.path()));
    // Another daemon goes on with it.
    drop(daemon);
    assert_eq!(lease_files(&lan), ["json"]);
    let before = dnsmasq.count("DHCPACK(srv)");
    let daemon = Running::start(lan.settings());
    lan.call("CHECK", "a", ipam.clone()).unwrap();
    eventually("the lease is renewed by the second daemon", || dnsmasq.count("DHCPACK(srv)") > before);
    assert_eq!(dnsmasq.count("DHCPDISCOVER(srv)"), discovers);
    lan.call("DEL", "a", ipam.clone()).unwrap();
    eventually("the lease is given back", || dnsmasq.log().contains(&format!("DHCPRELEASE(srv) {bare}")));
    eventually("dnsmasq has no lease", || dnsmasq.leases().is_empty());
    assert_eq!(lease_files(&lan), [""; 0]);
    assert!(code(lan.call("CHECK", "a", ipam.clone())).1.contains("no lease"));
    lan.call("DEL", "a", ipam.clone()).unwrap();

    // Collected, and given back by the next daemon.
    lan.call("ADD", "b", ipam.clone()).unwrap();
    lan.call("GC", "", ipam.clone()).unwrap();
    eventually("the collected lease is given back", || dnsmasq.leases().is_empty());
    lan.call("ADD", "c", ipam.clone()).unwrap();
    drop(daemon);
    lan.call("DEL", "c", ipam.clone()).unwrap();
    assert_eq!(lease_files(&lan), ["release"]);
    assert!(!dnsmasq.leases().is_empty());
    let daemon = Running::start(lan.settings());
    eventually("the next daemon gives it back", || dnsmasq.leases().is_empty());
    lan.call("STATUS", "", ipam).unwrap();
    assert_eq!(lease_files(&lan), [""; 0]);
    drop(daemon);
}

/// The same server, the same interface, the same client id: the same answer.
#[test]
fn same_answers_as_the_original() {
    let Some(plugin) = original("dhcp") else { return };
    let Some(lan) = Lan::new() else { return };
    let Some(dnsmasq) = Dnsmasq::start(&lan) else { return };
    let _ours = Running::start(lan.settings());
    let socket = lan.dir.path().join("original.sock");
    let mut theirs = Command::new(&plugin).args(["daemon", "-socketpath"]).arg(&socket).spawn().unwrap();
    eventually("the original's daemon listens", || socket.exists());
    let mut answers = Vec::new();
    for (version, request) in [
        ("1.0.0", json!([])),
        ("0.4.0", json!([{"option": "121"}])),
        ("0.2.0", json!([{"option": "121"}, {"option": "routers"}])),
    ] {
        let mut config = json!({
            "cniVersion": version, "name": "lan", "type": "macvlan",
            "ipam": {"type": "dhcp", "daemonSocketPath": socket, "request": request},
        });
        let invocation = |command: &'static str, config: &serde_json::Value| {
            let mut invocation = Invocation::new(command, "a", config.clone());
            invocation.netns = lan.container.path().display().to_string();
            invocation
        };
        let theirs = invocation("ADD", &config).theirs(&plugin);
        let released = dnsmasq.count("DHCPRELEASE(srv)");
        invocation("DEL", &config).theirs(&plugin).unwrap();
        eventually("the original gave it back", || dnsmasq.count("DHCPRELEASE(srv)") > released);
        config["ipam"]["daemonSocketPath"] = json!(lan.socket());
        let add = invocation("ADD", &config);
        let ours = add.ours(&Dhcp);
        invocation("DEL", &config).ours(&Dhcp).unwrap();
        eventually("we gave it back", || dnsmasq.count("DHCPRELEASE(srv)") > released + 1);
        answers.push((ours, theirs, add));
    }
    theirs.kill().unwrap();
    theirs.wait().unwrap();
    for (ours, theirs, add) in &answers {
        assert!(theirs.is_ok(), "{theirs:?}");
        same(ours, theirs, add);
    }
}
