use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use outrigger_testing::NetHost;
use serde_json::{Value, json};

use super::ours;

const SOCKET: &str = "/run/cni/dhcp.sock";
const PIDFILE: &str = "/run/dhcp.pid";

/// A host whose `lan0` leads to a network with dnsmasq, in the container `lan`.
struct Site {
    host: NetHost,
    dnsmasq: Child,
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Option<Self> {
        if !NetHost::available() {
            eprintln!("SKIPPED: needs root");
            return None;
        }
        if Command::new("dnsmasq").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED: no dnsmasq (install dnsmasq-base)");
            return None;
        }
        let host = NetHost::new().unwrap();
        host.container("lan").unwrap();
        host.sh("ip link add lan0 type veth peer name srv netns /run/netns/lan; ip link set lan0 up").unwrap();
        host.container_sh("lan", "ip addr add 10.77.0.1/24 dev srv; ip link set srv up; ip link set lo up").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut command = host.in_container("lan", "dnsmasq");
        command.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=srv", "--bind-interfaces"]);
        command.args(["--dhcp-range=10.77.0.50,10.77.0.60,255.255.255.0,2m", "--dhcp-option=option:T1,3", "--no-ping"]);
        command.args(["--dhcp-authoritative", "--user=root", "--pid-file=/run/dnsmasq.pid"]);
        command.arg(format!("--dhcp-leasefile={}", dir.path().join("leases").display()));
        let log = fs_err::File::create(dir.path().join("log")).unwrap().into_parts().0;
        let dnsmasq = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let site = Self { host, dnsmasq, dir };
        eventually("dnsmasq is ready", || site.log().contains("DHCP, IP range"));
        Some(site)
    }

    fn log(&self) -> String {
        fs_err::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn call(&self, command: &str, container: &str) -> Result<Value, Value> {
        let plugin = ours("macvlan");
        let netns = PathBuf::from(format!("/run/netns/{container}"));
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "macvlan", "master": "lan0", "ipam": {"type": "dhcp"},
        });
        if command == "CHECK" {
            config["prevResult"] = json!({"cniVersion": "1.1.0"});
        }
        let mut process = self.host.plugin(&plugin, command, container, &netns, "eth0");
        let output = NetHost::call(&mut process, &config).unwrap();
        if output.code == Some(0) { Ok(output.stdout) } else { Err(output.stdout) }
    }

    fn daemon(&self) -> Child {
        let mut command = self.host.command(ours("dhcp"));
        command.args(["daemon", "-pidfile", PIDFILE, "-timeout", "3s"]).stdin(Stdio::null());
        let child = command.spawn().unwrap();
        eventually("the daemon is ready", || self.host.sh(&format!("test -S {SOCKET} -a -s {PIDFILE}")).is_ok());
        child
    }

    fn exists(&self, path: &str) -> bool {
        self.host.sh(&format!("test -e {path}")).is_ok()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.dnsmasq.kill();
        let _ = self.dnsmasq.wait();
    }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let (_never, pause) = mpsc::channel::<()>();
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come about: {what}");
        let _ = pause.recv_timeout(Duration::from_millis(30));
    }
}

/// nsenter execs: its process is the daemon's.
fn terminate(mut daemon: Child) {
    assert!(Command::new("kill").arg(daemon.id().to_string()).status().unwrap().success());
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn macvlan_on_a_network_with_a_server() {
    let Some(site) = Site::new() else { return };
    site.host.container("c").unwrap();
    let error = site.call("ADD", "c").unwrap_err();
    assert_eq!(error["code"], 50, "{error}");
    let daemon = site.daemon();
    assert_eq!(site.host.sh(&format!("cat {PIDFILE}")).unwrap(), daemon.id().to_string());
    site.call("STATUS", "c").unwrap();
    let result = site.call("ADD", "c").unwrap();
    let address = result["ips"][0]["address"].as_str().unwrap().trim_end_matches("/24").to_owned();
    assert!(site.host.container_sh("c", "ip -4 addr show dev eth0").unwrap().contains(&address));
    site.host.container_sh("c", "ping -c 1 -W 5 10.77.0.1").unwrap();
    eventually("renewed", || site.log().matches("DHCPACK(srv)").count() >= 2);
    // Ended by the service manager, its leases stay; DEL does without it.
    terminate(daemon);
    assert!(!site.exists(SOCKET) && !site.exists(PIDFILE));
    site.call("DEL", "c").unwrap();
    let daemon = site.daemon();
    eventually("given back by the next daemon", || {
        site.log().contains(&format!("DHCPRELEASE(srv) {address}")) || {
            // macvlan takes the interface away after IPAM: then the server cannot be told.
            site.host.sh("ls /run/cni/dhcp.leases").unwrap().is_empty()
        }
    });
    site.call("ADD", "c").unwrap();
    let mut daemon = daemon;
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    // A dead daemon's socket is in the way of nobody, and its lease is kept on.
    let second = site.daemon();
    let before = site.log().matches("DHCPACK(srv)").count();
    eventually("renewed by the next daemon", || site.log().matches("DHCPACK(srv)").count() > before);
    site.call("DEL", "c").unwrap();
    eventually("given back", || site.log().contains("DHCPRELEASE(srv)"));
    terminate(second);
}

#[test]
fn bridge_on_a_network_with_a_server() {
    let Some(site) = Site::new() else { return };
    site.host.container("c").unwrap();
    site.host.sh("ip link add br0 type bridge; ip link set lan0 master br0; ip link set br0 up").unwrap();
    let daemon = site.daemon();
    let config =
        json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0", "ipam": {"type": "dhcp"}});
    let call = |command: &str| {
        let (plugin, netns) = (ours("bridge"), PathBuf::from("/run/netns/c"));
        NetHost::call(&mut site.host.plugin(&plugin, command, "c", &netns, "eth0"), &config).unwrap().ok()
    };
    let result = call("ADD").unwrap();
    assert!(result["ips"][0]["address"].as_str().unwrap().starts_with("10.77.0."), "{result}");
    site.host.container_sh("c", "ping -c 1 -W 5 10.77.0.1").unwrap();
    call("DEL").unwrap();
    eventually("the server is told before the interface goes", || site.log().contains("DHCPRELEASE(srv)"));
    call("DEL").unwrap();
    terminate(daemon);
}

#[test]
fn eight_at_a_time_in_every_version() {
    let Some(site) = Site::new() else { return };
    let daemon = site.daemon();
    let versions = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0", "1.1.0"];
    let names: Vec<String> = (0..versions.len()).map(|index| format!("c{index}")).collect();
    for name in &names {
        site.host.container(name).unwrap();
    }
    let call = |command: &'static str| -> Vec<Value> {
        std::thread::scope(|scope| {
            let site = &site;
            let one = |(name, version): (&'_ String, &'_ str)| {
                let (name, version) = (name.clone(), version.to_owned());
                scope.spawn(move || {
                    let ipam = json!({"type": "dhcp", "request": [{"skipDefault": false}]});
                    let config = json!({
                        "cniVersion": version, "name": "net", "type": "macvlan", "master": "lan0", "ipam": ipam,
                    });
                    let netns = PathBuf::from(format!("/run/netns/{name}"));
                    let mut process = site.host.plugin(&ours("macvlan"), command, &name, &netns, "eth0");
                    NetHost::call(&mut process, &config).unwrap().ok().unwrap()
                })
            };
            let calls: Vec<_> = names.iter().zip(versions).map(one).collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        })
    };
    let address = |result: &Value| {
        let old = result["ip4"]["ip"].as_str();
        old.or_else(|| result["ips"][0]["address"].as_str()).unwrap().to_owned()
    };
    let mut addresses: Vec<String> = call("ADD").iter().map(address).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), versions.len());
    for name in &names {
        site.host.container_sh(name, "ping -c 1 -W 5 10.77.0.1").unwrap();
    }
    call("DEL");
    eventually("all are given back", || site.log().matches("DHCPRELEASE(srv)").count() == versions.len());
    assert_eq!(site.host.sh("ls /run/cni/dhcp.leases").unwrap(), "");
    terminate(daemon);
}

#[test]
fn a_socket_of_the_service_manager() {
    let Some(site) = Site::new() else { return };
    site.host.container("c").unwrap();
    let script = "import os, socket, sys\n\
        os.makedirs('/run/cni', exist_ok=True)\n\
        s = socket.socket(socket.AF_UNIX)\n\
        s.bind('/run/cni/dhcp.sock')\n\
        s.listen()\n\
        os.dup2(s.fileno(), 3)\n\
        os.set_inheritable(3, True)\n\
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n\
        os.execv(sys.argv[1], [sys.argv[1], 'daemon'])\n";
    let mut command = site.host.command("python3");
    let daemon = command.args(["-c", script]).arg(ours("dhcp")).stdin(Stdio::null()).spawn().unwrap();
    eventually("the socket is there", || site.exists(SOCKET));
    let result = site.call("ADD", "c").unwrap();
    assert!(result["ips"][0]["address"].as_str().unwrap().starts_with("10.77.0."), "{result}");
    site.call("DEL", "c").unwrap();
    terminate(daemon);
    assert!(site.exists(SOCKET), "it is the service manager's");
}
