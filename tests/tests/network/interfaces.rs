//! macvlan, ipvlan, vlan, host-device, dummy, tap, vrf: against the peers' plugins field by field, each one's attachments
//! checked and removed by the other, and what goes wrong.
//!
//! This kernel has not all of these kinds; `guest.rs` runs the rest under another one.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use outrigger_testing::{NetHost, PluginOutput};
use serde_json::{Value, json};

use crate::common::{Plugins, can_run, peers_or_skip};

/// The host before anything is attached: a pair of links with known addresses, and a default route by one of them.
const SCENE: &str = "ip link add up0 address 02:00:00:00:00:10 type veth peer name up1 address 02:00:00:00:00:11
ip link set up0 up
ip link set up1 up
ip addr add 192.0.2.1/24 dev up0
ip route add default via 192.0.2.254";

/// What there is in the container after ADD, less what is different each time, and less `ndisc_notify` and
/// `keep_addr_on_down`, which the peers of Debian 12 do not set yet.
const STATE: &str = "ip -j -d addr show
ip -j -4 route show table all
ip -j -6 route show table all
for key in ipv4/conf/eth0/arp_notify ipv6/conf/eth0/disable_ipv6 \
    ipv6/conf/eth0/accept_ra; do echo \"\\\"$key $(cat /proc/sys/net/$key)\\\"\"; done";

pub(crate) fn scene() -> Result<NetHost> {
    let host = NetHost::new()?;
    host.sh(SCENE)?;
    host.container("a")?;
    Ok(host)
}

/// A network with `ipam` of host-local for these subnets, with a default route for each.
pub(crate) fn network(plugin: &Value, subnets: &[&str]) -> Value {
    let mut config = json!({"cniVersion": "1.0.0", "name": "net"});
    merge(&mut config, plugin);
    if !subnets.is_empty() {
        let ranges: Vec<_> = subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
        let default = |subnet: &&str| json!({"dst": if subnet.contains(':') { "::/0" } else { "0.0.0.0/0" }});
        let routes: Vec<_> = subnets.iter().map(default).collect();
        config["ipam"] = json!({"type": "host-local", "ranges": ranges, "routes": routes});
    }
    config
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

pub(crate) fn call(host: &NetHost, dir: &Path, command: &str, netns: &str, config: &Value) -> Result<PluginOutput> {
    let binary = dir.join(config["type"].as_str().context("type")?);
    let id = Path::new(netns).file_name().and_then(|name| name.to_str()).unwrap_or("gone").to_owned();
    NetHost::call(&mut host.plugin(&binary, command, &id, Path::new(netns), "eth0"), config)
}

fn with_previous(config: &Value, previous: &Value) -> Value {
    let mut config = config.clone();
    config["prevResult"] = previous.clone();
    config
}

/// The state of the container as JSON that can be compared. The peers of Debian 12 set the length of the transmit queue to
/// 0; newer ones, and ours, leave it to the kernel.
fn state(host: &NetHost, random_mac: bool) -> Result<Vec<Value>> {
    let text = host.container_sh("a", STATE)?;
    let mut values: Vec<Value> =
        serde_json::Deserializer::from_str(&text).into_iter().collect::<Result<_, _>>().context(text)?;
    for value in &mut values {
        for object in value.as_array_mut().into_iter().flatten() {
            let Some(map) = object.as_object_mut() else { continue };
            for volatile in ["ifindex", "link_index", "link_netnsid", "txqlen"] {
                map.remove(volatile);
            }
            if random_mac {
                map.remove("address");
            }
            let addresses = map.get_mut("addr_info").and_then(Value::as_array_mut);
            // A link-local address is made from the MAC address, and comes when the kernel finds the time.
            if let Some(addresses) = addresses {
                addresses.retain(|address| address["scope"] != "link");
            }
            // Lower layers come up when the kernel finds the time.
            map.remove("operstate");
        }
        let kernels_own = |route: &Value| {
            let dst = route["dst"].as_str().unwrap_or_default();
            dst.starts_with("fe80") || dst.starts_with("ff00") || dst == "multicast"
        };
        if let Some(routes) = value.as_array_mut() {
            routes.retain(|route| !kernels_own(route));
        }
    }
    Ok(values)
}

/// What is left on the host, which must not change by an attachment that came and went.
fn leftovers(host: &NetHost) -> Result<String> {
    let files = host.sh("find /var/lib/cni -type f ! -name lock ! -name 'last_reserved_ip*'")?;
    let links = host.sh("ip -o link show | sed 's/.*: \\([a-z0-9]*\\)[@:].*/\\1/' | sort | tr '\\n' ' '")?;
    let inside = host.container_sh("a", "ip -o link show | cut -d ' ' -f 2")?;
    Ok(format!("{files}{links}{inside}"))
}

/// A chain of plugins and what is special about it.
pub(crate) struct Chain<'a> {
    pub name: &'a str,
    pub plugins: Vec<Value>,
    /// Run on the host before ADD.
    pub setup: &'a str,
}

impl Chain<'_> {
    fn random_mac(&self) -> bool {
        self.plugins[0]["type"] == "macvlan" && self.plugins[0]["mac"].is_null()
    }

    /// ADD by the plugins of one directory; the state; CHECK and DEL by those of the other.
    fn attach(&self, add: &Path, remove: &Path, check: bool) -> Result<(Value, Vec<Value>)> {
        let host = scene()?;
        host.sh(self.setup)?;
        let before = leftovers(&host)?;
        let mut result = Value::Null;
        for plugin in &self.plugins {
            let config = if result.is_null() { plugin.clone() } else { with_previous(plugin, &result) };
            result = call(&host, add, "ADD", "/run/netns/a", &config)?.ok().context("ADD")?;
        }
        let state = state(&host, self.random_mac())?;
        for plugin in self.plugins.iter().filter(|_| check) {
            let config = with_previous(plugin, &result);
            call(&host, remove, "CHECK", "/run/netns/a", &config)?.ok().context("CHECK")?;
        }
        for plugin in self.plugins.iter().rev() {
            let config = with_previous(plugin, &result);
            call(&host, remove, "DEL", "/run/netns/a", &config)?.ok().context("DEL")?;
        }
        let after = leftovers(&host)?;
        ensure!(after == before, "left behind:\n{after}\nbefore:\n{before}");
        // Before 1.9 the peers printed it empty too.
        if result["dns"] == json!({}) {
            result.as_object_mut().map(|map| map.remove("dns"));
        }
        if self.random_mac() {
            result["interfaces"][0]["mac"] = "random".into();
        }
        Ok((result, state))
    }

    /// Ours and the peers' do the same, and undo each other's.
    pub(crate) fn compare(&self, ours: &Path, peers: &Path) -> Result<()> {
        self.compare_with(ours, peers, true)
    }

    /// As [`Chain::compare`], where what the peers' ADD makes is known not to last until CHECK: results are compared, and
    /// DEL, but not the state.
    pub(crate) fn compare_results(&self, ours: &Path, peers: &Path) -> Result<()> {
        self.compare_with(ours, peers, false)
    }

    fn compare_with(&self, ours: &Path, peers: &Path, check: bool) -> Result<()> {
        let added = |by: &str| format!("{}: added by {by}", self.name);
        let theirs = self.attach(peers, ours, check).with_context(|| added("the peers'"))?;
        let ours = self.attach(ours, peers, check).with_context(|| added("ours"))?;
        assert_eq!(ours.0, theirs.0, "{}: result", self.name);
        for (ours, theirs) in ours.1.iter().zip(&theirs.1).filter(|_| check) {
            assert_eq!(ours, theirs, "{}: state", self.name);
        }
        Ok(())
    }
}

fn one(name: &str, config: Value) -> Chain<'_> {
    Chain { name, plugins: vec![config], setup: "true" }
}

const V4: &str = "10.1.0.0/24";
const V6: &str = "fd00:1::/64";

#[test]
fn macvlan_is_as_the_peers() {
    let Some(peers) = can_run("macvlan_is_as_the_peers").then(|| peers_or_skip("macvlan_is_as_the_peers")).flatten()
    else {
        return;
    };
    let ours = Plugins::install().unwrap();
    let macvlan = |more: Value| {
        let mut config = json!({"type": "macvlan", "master": "up0"});
        merge(&mut config, &more);
        config
    };
    let dns = json!({"nameservers": ["192.0.2.53"]});
    for chain in [
        one("without ipam", network(&macvlan(json!({})), &[])),
        one("v4", network(&macvlan(json!({"dns": dns})), &[V4])),
        one("v6", network(&macvlan(json!({"mode": "vepa"})), &[V6])),
        one("both", network(&macvlan(json!({"mode": "private", "mtu": 1400})), &[V4, V6])),
        one("with a MAC address", network(&macvlan(json!({"mac": "02:00:00:00:00:42"})), &[V4])),
        one("by the default route", network(&json!({"type": "macvlan", "mode": "passthru"}), &[V4])),
    ] {
        chain.compare(ours.dir(), &peers).unwrap();
    }
}

#[test]
fn host_device_is_as_the_peers() {
    let name = "host_device_is_as_the_peers";
    let Some(peers) = can_run(name).then(|| peers_or_skip(name)).flatten() else { return };
    let ours = Plugins::install().unwrap();
    for chain in [
        one("without ipam", network(&json!({"type": "host-device", "device": "up1"}), &[])),
        one("v4", network(&json!({"type": "host-device", "device": "up1", "dns": {"domain": "x"}}), &[V4])),
        one("both, by MAC", network(&json!({"type": "host-device", "hwaddr": "02:00:00:00:00:11"}), &[V4, V6])),
        Chain {
            setup: "ip link add name eth0 type bridge",
            ..one("name taken on the host", network(&json!({"type": "host-device", "device": "up1"}), &[V4]))
        },
    ] {
        chain.compare(ours.dir(), &peers).unwrap();
    }
}

#[test]
fn tap_devices() {
    if !can_run("tap_devices") {
        return;
    }
    let ours = Plugins::install().unwrap();
    let host = scene().unwrap();
    host.container_sh("a", "ip link add name br0 type bridge").unwrap();
    let before = leftovers(&host).unwrap();
    let config = json!({"type": "tap", "multiQueue": true, "mtu": 1400, "owner": 4242, "group": 4243, "bridge": "br0",
        "runtimeConfig": {"mac": "02:00:00:00:00:42"}});
    let config = network(&config, &[V4]);
    let result = call(&host, ours.dir(), "ADD", "/run/netns/a", &config).unwrap().ok().unwrap();
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:42");
    let shown = host.container_sh("a", "ip -d link show eth0").unwrap();
    for part in ["mtu 1400", "master br0", "tun type tap", "multi_queue", "user 4242", "group 4243", "persist on"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let error = call(&host, ours.dir(), "ADD", "/run/netns/a", &config).unwrap();
    assert_eq!(error.error_code(), Some(999), "{error:?}");
    let config = with_previous(&config, &result);
    call(&host, ours.dir(), "CHECK", "/run/netns/a", &config).unwrap().ok().unwrap();
    call(&host, ours.dir(), "DEL", "/run/netns/a", &config).unwrap().ok().unwrap();
    assert_eq!(leftovers(&host).unwrap(), before);
    let wrong = network(&json!({"type": "tap", "bridge": "br7"}), &[]);
    let error = call(&host, ours.dir(), "ADD", "/run/netns/a", &wrong).unwrap();
    assert_eq!(error.stdout["msg"], "bridge: there is no bridge br7 in the container; make it first");
    assert_eq!(leftovers(&host).unwrap(), before);
}

/// ADD fails and leaves nothing behind: no interface, no address that is taken.
#[test]
fn a_failing_add_leaves_nothing() {
    if !can_run("a_failing_add_leaves_nothing") {
        return;
    }
    let ours = Plugins::install().unwrap();
    let unreachable = json!([{"dst": "203.0.113.0/24", "gw": "198.51.100.1"}]);
    let macvlan = json!({"type": "macvlan", "master": "up1"});
    let device = json!({"type": "host-device", "device": "up1"});
    for plugin in [macvlan.clone(), device, json!({"type": "tap"})] {
        let host = scene().unwrap();
        let before = leftovers(&host).unwrap();
        let mut late = network(&plugin, &[V4]);
        late["ipam"]["routes"] = unreachable.clone();
        let mut early = network(&plugin, &[]);
        early["ipam"] = json!({"type": "there-is-none"});
        for (config, text) in [(late, "add route 203.0.113.0/24"), (early, "there-is-none")] {
            let output = call(&host, ours.dir(), "ADD", "/run/netns/a", &config).unwrap();
            assert!(
                output.error_code().is_some() && output.stdout["msg"].as_str().unwrap().contains(text),
                "{output:?}"
            );
            assert_eq!(leftovers(&host).unwrap(), before, "{plugin}");
            assert!(host.sh("ip link show up1").unwrap().contains("state UP"));
        }
    }
    let host = scene().unwrap();
    let before = leftovers(&host).unwrap();
    for (more, code, text) in [
        (json!({"master": "nothing"}), 7, "master: there is no interface nothing"),
        (json!({"mode": "l2"}), 7, "mode: mode \"l2\" is none of private, vepa, bridge, passthru"),
        (json!({"mtu": 9000}), 7, "mtu: 9000 is more than the 1500 of master up1"),
        (json!({"mac": "x"}), 7, "mac: \"x\" is not a hardware address"),
    ] {
        let mut config = network(&macvlan, &[V4]);
        merge(&mut config, &more);
        let output = call(&host, ours.dir(), "ADD", "/run/netns/a", &config).unwrap();
        assert_eq!(output.error_code(), Some(code), "{output:?}");
        assert!(output.stdout["msg"].as_str().unwrap().starts_with(text), "{output:?}");
    }
    host.container_sh("a", "ip link add name eth0 type bridge").unwrap();
    for plugin in [macvlan, json!({"type": "host-device", "device": "up1"}), json!({"type": "tap"})] {
        let output = call(&host, ours.dir(), "ADD", "/run/netns/a", &network(&plugin, &[V4])).unwrap();
        let text = "interface eth0 exists already in /run/netns/a: delete its attachment first";
        assert_eq!(output.stdout["msg"], text, "{plugin}");
    }
    host.container_sh("a", "ip link del eth0").unwrap();
    assert_eq!(leftovers(&host).unwrap(), before);
}

/// DEL with less and less: no master, no namespace, nothing. Addresses go back each time.
#[test]
fn del_needs_nothing() {
    if !can_run("del_needs_nothing") {
        return;
    }
    let ours = Plugins::install().unwrap();
    let config = network(&json!({"type": "macvlan", "master": "up1"}), &[V4]);
    let taken = |host: &NetHost| host.sh("ls /var/lib/cni/networks/net | grep -c '^10' || true").unwrap();

    let host = scene().unwrap();
    call(&host, ours.dir(), "ADD", "/run/netns/a", &config).unwrap().ok().unwrap();
    host.sh("ip link del up0; ip route flush all").unwrap();
    assert_eq!(taken(&host), "1\n");
    let mut without_master = config.clone();
    without_master.as_object_mut().unwrap().remove("master");
    without_master["mode"] = "nonsense".into();
    for _ in 0..2 {
        call(&host, ours.dir(), "DEL", "/run/netns/a", &without_master).unwrap().ok().unwrap();
        assert_eq!(taken(&host), "0\n");
    }

    for (plugin, netns) in [
        (json!({"type": "macvlan", "master": "up1"}), ""),
        (json!({"type": "host-device", "device": "up1"}), ""),
        (json!({"type": "host-device", "device": "up1"}), "/run/netns/vanished"),
        (json!({"type": "ipvlan"}), ""),
        (json!({"type": "vlan"}), "/run/netns/vanished"),
        (json!({"type": "dummy"}), "/var/lib/cni"),
        (json!({"type": "tap"}), ""),
    ] {
        let host = scene().unwrap();
        // The address is taken as by an attachment of this container.
        let config = network(&plugin, &[V4]);
        let id = Path::new(netns).file_name().and_then(|name| name.to_str()).unwrap_or("gone").to_owned();
        let text =
            format!("mkdir -p /var/lib/cni/networks/net; printf '{id}\\r\\neth0' > /var/lib/cni/networks/net/10.1.0.2");
        host.sh(&text).unwrap();
        for _ in 0..2 {
            call(&host, ours.dir(), "DEL", netns, &config).unwrap().ok().with_context(|| plugin.to_string()).unwrap();
            assert_eq!(taken(&host), "0\n", "{plugin}");
        }
    }
}

/// Hardware that the kernel gave back when its namespace ended gets its name again.
#[test]
fn stray_devices_get_their_names_back() {
    if !can_run("stray_devices_get_their_names_back") {
        return;
    }
    let ours = Plugins::install().unwrap();
    let host = scene().unwrap();
    host.sh("ip link set up1 down; ip link set up1 name eth0 alias up1; ip link set eth0 up").unwrap();
    let config = network(&json!({"type": "host-device", "device": "up1"}), &[]);
    call(&host, ours.dir(), "DEL", "/run/netns/vanished", &config).unwrap().ok().unwrap();
    let shown = host.sh("ip link show up1").unwrap();
    assert!(!shown.contains("alias"), "{shown}");
    assert!(host.sh("ip link show eth0").is_err());
    // An interface of the container that did not come from the host stays where it is.
    host.container_sh("a", "ip link add name eth0 alias cni:net/a/eth0 type bridge").unwrap();
    call(&host, ours.dir(), "DEL", "/run/netns/a", &config).unwrap().ok().unwrap();
    assert!(host.container_sh("a", "ip link show eth0").is_ok());
}

/// The same for devices that are not configured by their names; and the note that ADD makes is the name on the host.
#[test]
fn strays_are_found_by_any_key() {
    if !can_run("strays_are_found_by_any_key") {
        return;
    }
    let ours = Plugins::install().unwrap();
    let host = scene().unwrap();
    let mut config = network(&json!({"type": "host-device", "hwaddr": "02:00:00:00:00:11"}), &[]);
    let stray = |name: &str| {
        host.sh(&format!("ip link set up1 down; ip link set up1 name {name} alias up1")).unwrap();
    };
    let is_back = || {
        let shown = host.sh("ip link show up1").unwrap();
        assert!(!shown.contains("alias"), "{shown}");
    };
    for name in ["eth0", "dev0"] {
        stray(name);
        call(&host, ours.dir(), "DEL", "/run/netns/vanished", &config).unwrap().ok().unwrap();
        is_back();
        stray(name);
        call(&host, ours.dir(), "ADD", "/run/netns/a", &config).unwrap().ok().unwrap();
        call(&host, ours.dir(), "DEL", "/run/netns/a", &config).unwrap().ok().unwrap();
        is_back();
    }
    config["cniVersion"] = "1.1.0".into();
    config["cni.dev/valid-attachments"] = json!([]);
    for keys in [config.clone(), with_device(&config)] {
        stray("net7");
        call(&host, ours.dir(), "GC", "", &keys).unwrap().ok().unwrap();
        is_back();
    }
    // What is in use with an administrator's note keeps its name.
    host.sh("ip link set up1 down; ip link set up1 name eth0 alias uplink; ip link set eth0 up").unwrap();
    for (command, netns) in
        [("DEL", "/run/netns/vanished"), ("GC", ""), ("ADD", "/run/netns/a"), ("DEL", "/run/netns/a")]
    {
        call(&host, ours.dir(), command, netns, &config).unwrap().ok().unwrap();
    }
    host.sh("ip link show eth0").unwrap();
}

fn with_device(config: &Value) -> Value {
    let mut config = config.clone();
    config["hwaddr"] = Value::Null;
    config["device"] = "up1".into();
    config
}

/// CHECK sees what others changed; STATUS and GC say what is.
#[test]
fn check_status_and_gc() {
    if !can_run("check_status_and_gc") {
        return;
    }
    let ours = Plugins::install().unwrap();
    let host = scene().unwrap();
    let mut config = network(&json!({"type": "macvlan", "master": "up1"}), &[V4]);
    config["cniVersion"] = "1.1.0".into();
    let status = |config: &Value| call(&host, ours.dir(), "STATUS", "", config).unwrap().error_code();
    assert_eq!(status(&config), None);
    let result = call(&host, ours.dir(), "ADD", "/run/netns/a", &config).unwrap().ok().unwrap();
    let checked = with_previous(&config, &result);
    let check = || call(&host, ours.dir(), "CHECK", "/run/netns/a", &checked).unwrap().error_code();
    assert_eq!(check(), None);
    for (spoil, mend) in [
        ("ip addr del 10.1.0.2/24 dev eth0", "ip addr add 10.1.0.2/24 dev eth0; ip route add default via 10.1.0.1"),
        ("ip route del default", "ip route add default via 10.1.0.1"),
        ("ip link set eth0 type macvlan mode private", "ip link set eth0 type macvlan mode bridge"),
    ] {
        host.container_sh("a", spoil).unwrap();
        assert_eq!(check(), Some(999), "{spoil}");
        host.container_sh("a", mend).unwrap();
        assert_eq!(check(), None, "{mend}");
    }
    host.container_sh("a", "ip link set eth0 address 02:00:00:00:00:99").unwrap();
    assert_eq!(check(), Some(999));
    config["cni.dev/valid-attachments"] = json!([{"containerID": "other", "ifname": "eth0"}]);
    call(&host, ours.dir(), "GC", "", &config).unwrap().ok().unwrap();
    assert_eq!(host.sh("ls /var/lib/cni/networks/net | grep -c '^10' || true").unwrap(), "0\n");
    host.sh("ip link del up0").unwrap();
    assert_eq!(status(&config), Some(50));
}

/// Another station has the address: ADD fails and gives it back. And what has no carrier is not waited for.
#[test]
fn duplicates_are_refused_and_no_carrier_is_no_reason_to_wait() {
    if !can_run("duplicates_are_refused_and_no_carrier_is_no_reason_to_wait") {
        return;
    }
    let ours = Plugins::install().unwrap();
    let host = scene().unwrap();
    let before = leftovers(&host).unwrap();
    host.sh("ip addr add fd00:1::2/64 dev up1 nodad").unwrap();
    let config = network(&json!({"type": "macvlan", "master": "up0"}), &[V6]);
    let output = call(&host, ours.dir(), "ADD", "/run/netns/a", &config).unwrap();
    let text = output.stdout["msg"].as_str().unwrap_or_default();
    assert!(text.starts_with("another station on the network of eth0 has the address fd00:1::2/64"), "{output:?}");
    assert_eq!(leftovers(&host).unwrap(), before);

    let config = network(&json!({"type": "tap"}), &[V4, V6]);
    let start = std::time::Instant::now();
    call(&host, ours.dir(), "ADD", "/run/netns/a", &config).unwrap().ok().unwrap();
    assert!(start.elapsed() < std::time::Duration::from_secs(4), "it waited for the carrier of a tap");
}
