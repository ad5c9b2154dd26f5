//! bandwidth, tuning and sbr beside the originals: the same results, the same state of kernel and files, and each side
//! checks and deletes what the other added.

use std::path::Path;

use anyhow::{Result, ensure};
use outrigger_testing::NetHost;
use serde_json::{Value, json};

use crate::attach::Network;
use crate::common::{Plugins, can_run, peers_or_skip};

/// One chain, and which of its plugins is looked at.
struct Case {
    name: &'static str,
    chain: Vec<Value>,
    /// Whether the originals' CHECK of the whole chain works at all.
    peers_check: bool,
}

fn main_plugin(subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    let routes = json!([{ "dst": "10.99.0.0/16", "gw": "10.5.0.1" }]);
    json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
        "ipam": { "type": "host-local", "ranges": ranges, "routes": routes } })
}

fn cases() -> Vec<Case> {
    let limits = |ingress: u64, egress: u64| {
        let mut plugin = json!({ "type": "bandwidth" });
        for (direction, rate) in [("ingress", ingress), ("egress", egress)] {
            if rate > 0 {
                plugin[format!("{direction}Rate")] = rate.into();
                plugin[format!("{direction}Burst")] = (rate / 3).into();
            }
        }
        plugin
    };
    let v4: &[&str] = &["10.5.0.0/24"];
    let dual: &[&str] = &["10.5.0.0/24", "fd00:5::/64"];
    let case = |name, subnets: &[&str], plugin: Value, peers_check| Case {
        name,
        chain: vec![main_plugin(subnets), plugin],
        peers_check,
    };
    let by_capability = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true }, "runtimeConfig": { "bandwidth":
        { "ingressRate": 1_000_000, "ingressBurst": 777_777, "egressRate": 123_456_789, "egressBurst": 9_876_543 } } });
    let attributes = json!({ "type": "tuning", "mac": "c2:11:22:33:44:55", "mtu": 1400, "promisc": true, "allmulti": true,
        "sysctl": { "net.ipv4.conf.all.log_martians": "1" } });
    let settings = json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1",
        "net/core/somaxconn": "500" } });
    vec![
        case("both limits", v4, limits(8_000_000, 16_000_000), true),
        case("only towards the container", v4, limits(7_777_777, 0), true),
        case("only from the container", dual, limits(0, 40_000_000_000), true),
        case("limits by capability", v4, by_capability, true),
        // 1.1.1's CHECK panics when nothing is limited.
        case("no limits", v4, limits(0, 0), false),
        // Their bridge's CHECK misses the MAC address that tuning took away.
        case("attributes", v4, attributes, false),
        // 1.1.1 does not know IFNAME in CHECK.
        case("settings", dual, settings, false),
        // Their bridge's CHECK misses the routes that sbr moved.
        case("source-based routing", dual, json!({ "type": "sbr" }), false),
        case("source-based routing, one family", v4, json!({ "type": "sbr" }), false),
    ]
}

/// What there is after ADD, without what differs from run to run.
fn state(host: &NetHost, id: &str) -> Result<String> {
    let qdiscs = host.sh("for link in $(ls /sys/class/net | sort); do echo \"$link\"; tc qdisc show dev $link; \
         tc filter show dev $link parent ffff: 2>/dev/null | grep -E 'u32|match|stolen' || true; done")?;
    let ifbs = host.sh("ip -o link show type ifb | grep -oE 'bwp[0-9a-f]+: <[A-Z,_]*> mtu [0-9]+' || true")?;
    let inside = host.container_sh(
        id,
        "ip -o link show eth0 | grep -oE '<[A-Z,_]*> mtu [0-9]+'; \
         ip rule; ip -6 rule; (ip -4 route show table all; ip -6 route show table all) | grep -v 'local fe80:'; \
         cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/conf/eth0/arp_filter \
         /proc/sys/net/ipv4/conf/all/log_martians",
    )?;
    let files = host.sh("cd /run/cni/tuning 2>/dev/null && for f in *.json; do echo; echo $f; cat $f; done || true")?;
    Ok(neutral(&format!("{qdiscs}{ifbs}{inside}{files}")))
}

/// Names and hardware addresses that are drawn by lot replaced.
fn neutral(text: &str) -> String {
    let words = text.split_inclusive([' ', '\n', '"', '@']).map(|word| {
        let bare = word.trim_end_matches([' ', '\n', '"', '@', ':']);
        let random = bare.starts_with("veth")
            || (bare.len() == 17 && bare.split(':').count() == 6 && bare != "c2:11:22:33:44:55");
        if random { word.replace(bare, "RANDOM") } else { word.to_owned() }
    });
    words.collect()
}

fn neutral_result(result: &Value) -> Value {
    let mut result = result.clone();
    // Older originals print empty lists that others leave out.
    if result["dns"] == json!({}) {
        result.as_object_mut().map(|map| map.remove("dns"));
    }
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        if interface["name"].as_str().is_some_and(|name| name.starts_with("veth")) {
            interface["name"] = "RANDOM".into();
        }
        if interface["mac"] != "c2:11:22:33:44:55" {
            interface["mac"] = "RANDOM".into();
        }
    }
    result
}

/// ADD by one side on a host of its own; gives the host and the result.
fn added(network: &Network) -> Result<(NetHost, Value)> {
    let host = NetHost::new()?;
    host.container("a")?;
    host.container_sh("a", "ip link set lo up")?;
    let result = network.add(&host, "a", "eth0")?;
    Ok((host, result))
}

/// Fails if something of the meta plugin or of the attachment is left.
fn clean(host: &NetHost, what: &str) -> Result<()> {
    let all = "ip -o link | grep -E 'bwp|veth' || true; find /run/cni/tuning -name '*.json' 2>/dev/null || true";
    let left = host.sh(all)? + &host.container_sh("a", "ip -o link | grep eth0 || true")?;
    ensure!(left.is_empty(), "{what}: left behind: {left}");
    Ok(())
}

fn compare(case: &Case, ours: &Path, theirs: &Path) -> Result<()> {
    let our_network = Network::new("pods", ours, case.chain.clone());
    let their_network = our_network.served_by(theirs);
    let name = case.name;
    let (our_host, our_result) = added(&our_network)?;
    let (their_host, their_result) = added(&their_network)?;
    assert_eq!(neutral_result(&our_result), neutral_result(&their_result), "{name}: results");
    assert_eq!(state(&our_host, "a")?, state(&their_host, "a")?, "{name}: ours, then theirs");
    our_network.check(&our_host, "a", "eth0", &our_result)?;
    // What they made passes our CHECK, what we made passes theirs.
    our_network.check(&their_host, "a", "eth0", &their_result)?;
    if case.peers_check {
        their_network.check(&our_host, "a", "eth0", &our_result)?;
    }
    // Each undoes what the other did.
    our_network.del(&their_host, "a", "eth0", &their_result)?;
    clean(&their_host, "theirs deleted by us")?;
    their_network.del(&our_host, "a", "eth0", &our_result)?;
    clean(&our_host, "ours deleted by them")
}

#[test]
fn beside_the_originals() {
    if !can_run("beside_the_originals") {
        return;
    }
    let Some(theirs) = peers_or_skip("beside_the_originals") else { return };
    let ours = Plugins::install().unwrap();
    for case in cases() {
        if let Err(error) = compare(&case, ours.dir(), &theirs) {
            panic!("{}: {error:#}", case.name);
        }
    }
}

#[test]
fn attributes_come_back_whoever_deletes() {
    if !can_run("attributes_come_back_whoever_deletes") {
        return;
    }
    let Some(theirs) = peers_or_skip("attributes_come_back_whoever_deletes") else { return };
    let plugins = Plugins::install().unwrap();
    let tuning =
        json!({ "type": "tuning", "mac": "c2:11:22:33:44:55", "mtu": 1400, "promisc": true, "allmulti": true });
    for (adds, deletes) in [(plugins.dir(), theirs.as_path()), (&theirs, plugins.dir()), (plugins.dir(), plugins.dir())]
    {
        let host = NetHost::new().unwrap();
        host.container("a").unwrap();
        // An interface that outlives DEL, as those of host-device do.
        host.sh("ip link add outside type veth peer name eth0 netns /run/netns/a").unwrap();
        let look =
            || host.container_sh("a", "ip -o link show eth0 | grep -oE '(<.*> mtu [0-9]+|link/ether [0-9a-f:]+)'");
        let before = look().unwrap();
        let previous = json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/a" }] });
        let network = Network::new("pods", adds, vec![tuning.clone()]);
        let result = network.call(&host, "ADD", &tuning, "a", "eth0", &previous).unwrap().ok().unwrap();
        assert_eq!(result["interfaces"][0]["mac"], "c2:11:22:33:44:55");
        let tuned = look().unwrap();
        assert!(tuned.contains("mtu 1400") && tuned.contains("PROMISC") && tuned.contains("ALLMULTI"), "{tuned}");
        // Without prevResult, as after an ADD that failed.
        network.served_by(deletes).del(&host, "a", "eth0", &Value::Null).unwrap();
        assert_eq!(look().unwrap(), before);
    }
}

#[test]
fn check_sees_what_was_changed_behind_its_back() {
    if !can_run("check_sees_what_was_changed_behind_its_back") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let network = |plugin: Value| Network::new("pods", plugins.dir(), vec![main_plugin(&["10.5.0.0/24"]), plugin]);
    let limits = json!({ "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000,
        "egressBurst": 800_000 });
    let tuning = json!({ "type": "tuning", "mtu": 1400, "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } });
    let host_end = "$(ls /sys/class/net | grep veth)";
    for (plugin, in_container, damage) in [
        (&limits, false, format!("tc qdisc del dev {host_end} root")),
        (&limits, false, format!("tc qdisc replace dev {host_end} root tbf rate 1mbit burst 10k latency 25ms")),
        (&limits, false, format!("tc qdisc del dev {host_end} ingress")),
        (&limits, false, "ip link del $(ls /sys/class/net | grep bwp)".to_owned()),
        (&tuning, true, "ip link set eth0 mtu 1300".to_owned()),
        (&tuning, true, "echo 0 > /proc/sys/net/ipv4/conf/eth0/arp_filter".to_owned()),
        (&json!({ "type": "sbr" }), true, "ip rule del table 100".to_owned()),
        (&json!({ "type": "sbr" }), true, "ip route flush table 100".to_owned()),
    ] {
        let network = network(plugin.clone());
        let (host, result) = added(&network).unwrap();
        network.check(&host, "a", "eth0", &result).unwrap();
        if in_container { host.container_sh("a", &damage) } else { host.sh(&damage) }.unwrap();
        let output = network.call(&host, "CHECK", &network.chain[1], "a", "eth0", &result).unwrap();
        assert_eq!(output.error_code(), Some(999), "after {damage}: {output:?}");
        network.del(&host, "a", "eth0", &result).unwrap();
        clean(&host, &damage).unwrap();
    }
}

#[test]
fn two_interfaces_of_a_container_on_one_network_are_limited_each() {
    if !can_run("two_interfaces_of_a_container_on_one_network_are_limited_each") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let limits = json!({ "type": "bandwidth", "egressRate": 8_000_000, "egressBurst": 800_000 });
    let network = Network::new("pods", plugins.dir(), vec![main_plugin(&["10.5.0.0/24"]), limits]);
    // A second default route is refused; this is about the limits.
    let mut second = network.clone();
    second.chain[0]["isDefaultGateway"] = false.into();
    second.chain[0]["ipam"]["routes"] = json!([]);
    let (host, first_result) = added(&network).unwrap();
    let second_result = second.add(&host, "a", "net1").unwrap();
    let names = |result: &Value| result["interfaces"][3]["name"].as_str().unwrap().to_owned();
    assert_ne!(names(&first_result), names(&second_result));
    network.check(&host, "a", "eth0", &first_result).unwrap();
    second.check(&host, "a", "net1", &second_result).unwrap();
    // A second ADD of the same one is refused and changes nothing.
    let again = network.call(&host, "ADD", &network.chain[1], "a", "eth0", &first_result).unwrap();
    assert_eq!(again.error_code(), Some(999), "{again:?}");
    network.check(&host, "a", "eth0", &first_result).unwrap();
    second.del(&host, "a", "net1", &second_result).unwrap();
    network.check(&host, "a", "eth0", &first_result).unwrap();
    // GC keeps what is valid, then does not.
    network.gc(&host, &[("a", "eth0")]).unwrap();
    network.check(&host, "a", "eth0", &first_result).unwrap();
    host.remove_container("a").unwrap();
    network.gc(&host, &[]).unwrap();
    assert_eq!(host.sh("ip -o link show type ifb").unwrap(), "");
}

#[test]
fn the_allow_list_is_asked_before_anything_is_done() {
    if !can_run("the_allow_list_is_asked_before_anything_is_done") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let tuning = |key: &str| json!({ "type": "tuning", "mtu": 1400, "sysctl": { key: "1" } });
    let host = NetHost::new().unwrap();
    host.sh("mkdir -p /etc/cni/tuning; printf '%s\\n' '^net\\.ipv4\\.conf\\.[A-Z]+\\.arp_' > /etc/cni/tuning/allowlist.conf").unwrap();
    host.container("a").unwrap();
    host.sh("ip link add outside type veth peer name eth0 netns /run/netns/a").unwrap();
    let network = Network::new("pods", plugins.dir(), vec![]).version("1.1.0");
    let previous =
        json!({ "cniVersion": "1.1.0", "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/a", "mtu": 1500 }] });
    let add = |key: &str| network.call(&host, "ADD", &tuning(key), "a", "eth0", &previous).unwrap();
    let refused = add("net.ipv4.conf.IFNAME.log_martians");
    assert_eq!(refused.error_code(), Some(7), "{refused:?}");
    assert!(host.container_sh("a", "ip link show eth0").unwrap().contains("mtu 1500"));
    let allowed = add("net.ipv4.conf.IFNAME.arp_filter").ok().unwrap();
    assert_eq!(allowed["interfaces"][0]["mtu"], 1400);
    // A list that cannot be read allows nothing, and STATUS says so.
    host.sh("echo '(' > /etc/cni/tuning/allowlist.conf").unwrap();
    assert_eq!(add("net.ipv4.conf.IFNAME.arp_filter").error_code(), Some(7));
    let status = network.call(&host, "STATUS", &tuning("net.x"), "a", "eth0", &Value::Null).unwrap();
    assert_eq!(status.error_code(), Some(50), "{status:?}");
}

#[test]
fn the_allow_list_counts_for_arguments_too() {
    if !can_run("the_allow_list_counts_for_arguments_too") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let host = NetHost::new().unwrap();
    host.sh("mkdir -p /etc/cni/tuning; echo '^net\\.core\\.somaxconn$' > /etc/cni/tuning/allowlist.conf").unwrap();
    host.container("a").unwrap();
    let network = Network::new("pods", plugins.dir(), vec![]);
    let previous = json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/a" }] });
    let add = |key: &str| {
        let tuning = json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "600" },
            "args": { "cni": { "sysctl": { key: "1" } } } });
        network.call(&host, "ADD", &tuning, "a", "eth0", &previous).unwrap()
    };
    let refused = add("net.ipv4.ip_forward");
    assert_eq!(refused.error_code(), Some(7), "{refused:?}");
    let is = |key: &str| host.container_sh("a", &format!("cat /proc/sys/net/{key}")).unwrap().trim().to_owned();
    assert_eq!(is("ipv4/ip_forward"), "0");
    assert_ne!(is("core/somaxconn"), "600");
    add("net.core.somaxconn").ok().unwrap();
}

#[test]
fn what_cannot_be_set_back_does_not_hold_up_del() {
    if !can_run("what_cannot_be_set_back_does_not_hold_up_del") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let host = NetHost::new().unwrap();
    host.container("a").unwrap();
    host.sh("ip link add below type veth peer name other; ip link add eth0 link below netns /run/netns/a type macvlan")
        .unwrap();
    let tuning = json!({ "type": "tuning", "mtu": 1300, "allmulti": true, "txQLen": 77 });
    let network = Network::new("pods", plugins.dir(), vec![tuning.clone()]);
    let previous = json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/a" }] });
    network.call(&host, "ADD", &tuning, "a", "eth0", &previous).unwrap().ok().unwrap();
    // The interface had 1500, which it can have no more.
    host.sh("ip link set below mtu 1400").unwrap();
    network.del(&host, "a", "eth0", &Value::Null).unwrap();
    let link = host.container_sh("a", "ip -d link show eth0").unwrap();
    assert!(link.contains("mtu 1300") && link.contains("qlen 1000") && !link.contains("ALLMULTI"), "{link}");
    assert_eq!(host.sh("ls /run/cni/tuning").unwrap(), "");
}

#[test]
fn a_second_add_keeps_what_the_first_one_found() {
    if !can_run("a_second_add_keeps_what_the_first_one_found") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let host = NetHost::new().unwrap();
    host.container("a").unwrap();
    let veth = "ip link add outside type veth peer name eth0 netns /run/netns/a";
    host.sh(veth).unwrap();
    let tuning = json!({ "type": "tuning", "mtu": 1300, "dataDir": "" });
    let network = Network::new("pods", plugins.dir(), vec![tuning.clone()]);
    let previous = json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/a" }] });
    let add = |tuning: &Value| network.call(&host, "ADD", tuning, "a", "eth0", &previous).unwrap().ok();
    let mtu = || host.container_sh("a", "cat /proc/sys/net/ipv6/conf/eth0/mtu").unwrap().trim().to_owned();
    add(&tuning).unwrap();
    assert!(host.sh("ls /run/cni/tuning").unwrap().contains("a_eth0.json"), "an empty dataDir is the default");
    add(&tuning).unwrap();
    // One that fails leaves what the first one kept: a multicast address is none for an interface.
    assert!(add(&json!({ "type": "tuning", "mtu": 1200, "mac": "01:00:5e:00:00:01" })).is_err());
    assert_eq!(mtu(), "1300");
    network.del(&host, "a", "eth0", &Value::Null).unwrap();
    assert_eq!(mtu(), "1500");
    // A namespace of the same name, made anew without DEL: nothing of the old interface counts.
    add(&tuning).unwrap();
    host.remove_container("a").unwrap();
    host.sh("ip link del outside 2>/dev/null || true").unwrap();
    host.container("a").unwrap();
    host.sh(&format!("{veth}; nsenter --net=/run/netns/a ip link set eth0 mtu 1450")).unwrap();
    add(&tuning).unwrap();
    network.del(&host, "a", "eth0", &Value::Null).unwrap();
    assert_eq!(mtu(), "1450");
}
