//! `bridge`

use serde_json::{Value, json};

use crate::harness::{Attachment, compare, compare_with, config, host, ipam, ours, root};

const V4: &str = "10.22.0.0/16";
const V6: &str = "fd00:22::/64";

fn bridge(keys: Value) -> Value {
    config("bridge", keys)
}

fn as_the_original(keys: Value) {
    if root() {
        compare("true", &Attachment::new("a"), &bridge(keys)).unwrap();
    }
}

#[test]
fn addresses_only() {
    as_the_original(json!({ "ipam": ipam(&[V4], &[]) }));
}

#[test]
fn gateway() {
    if root() {
        // The original's CHECK compares the gateway that the result leaves out.
        let config = bridge(json!({ "isGateway": true, "ipam": ipam(&[V4], &["0.0.0.0/0", "10.96.0.0/12"]) }));
        compare_with("true", &Attachment::new("a"), &config, false).unwrap();
    }
}

#[test]
fn default_gateway() {
    as_the_original(json!({ "isDefaultGateway": true, "bridge": "br7", "ipam": ipam(&[V4], &[]) }));
}

/// Two routes to one destination by different gateways.
#[test]
fn several_gateways() {
    let route = |dst: &str, gateway: &str| json!({ "dst": dst, "gw": gateway });
    let mut ipam = ipam(&[V4, V6], &[]);
    ipam["routes"] = json!([
        route("0.0.0.0/0", "10.22.0.1"),
        route("0.0.0.0/0", "10.22.0.77"),
        route("192.168.0.0/16", "10.22.0.1"),
        route("192.168.0.0/16", "10.22.0.77"),
        route("::/0", "fd00:22::1"),
        route("::/0", "fd00:22::77"),
        route("fd99::/16", "fd00:22::1"),
        route("fd99::/16", "fd00:22::77"),
    ]);
    if root() {
        // CHECK of the original does not see the further next hops of an IPv6 route.
        let config = bridge(json!({ "isGateway": true, "ipam": ipam }));
        compare_with("true", &Attachment::new("a"), &config, false).unwrap();
    }
}

#[test]
fn dual_stack() {
    as_the_original(json!({ "isGateway": true, "ipam": ipam(&[V4, V6], &["0.0.0.0/0", "::/0"]) }));
}

#[test]
fn ipv6_only() {
    as_the_original(json!({ "isDefaultGateway": true, "ipam": ipam(&[V6], &[]) }));
}

#[test]
fn layer_2() {
    if root() {
        // The original's CHECK insists on an IPAM plugin.
        compare_with("true", &Attachment::new("a"), &bridge(json!({})), false).unwrap();
    }
}

#[test]
fn mtu_hairpin_promiscuous() {
    as_the_original(json!({ "mtu": 1400, "hairpinMode": true, "isGateway": true, "ipam": ipam(&[V4], &[]) }));
    as_the_original(json!({ "promiscMode": true, "isGateway": true, "ipam": ipam(&[V4], &[]) }));
}

#[test]
fn masquerade() {
    as_the_original(json!({ "isGateway": true, "ipMasq": true, "ipam": ipam(&[V4, V6], &["0.0.0.0/0"]) }));
}

#[test]
fn versions() {
    for version in ["0.2.0", "0.3.0", "0.3.1", "0.4.0"] {
        as_the_original(json!({ "cniVersion": version, "isGateway": true, "ipam": ipam(&[V4], &["0.0.0.0/0"]) }));
    }
}

#[test]
fn name_servers() {
    let dns = json!({ "nameservers": ["10.1.1.1"], "search": ["example.org"] });
    as_the_original(json!({ "dns": dns, "ipam": ipam(&[V4], &[]) }));
    // An empty list sets them to none, whatever ipam says.
    if !root() {
        return;
    }
    let mut ipam = ipam(&[V4], &[]);
    ipam["resolvConf"] = "/run/resolv.conf".into();
    let config = bridge(json!({ "dns": { "nameservers": [] }, "ipam": ipam }));
    compare("echo 'nameserver 10.9.9.9' >/run/resolv.conf", &Attachment::new("a"), &config).unwrap();
}

#[test]
fn addresses_of_the_hardware() {
    if !root() {
        return;
    }
    let asked = |keys: Value, args: Option<&str>| {
        let host = host().unwrap();
        let attachment = Attachment { args: args.map(str::to_owned), ..Attachment::new("a") };
        let result = attachment.add(&host, ours(), &bridge(keys)).unwrap();
        assert!(
            host.container_sh("a", "ip link show eth0")
                .unwrap()
                .contains(result["interfaces"][2]["mac"].as_str().unwrap())
        );
        result["interfaces"][2]["mac"].as_str().unwrap().to_owned()
    };
    let (one, two, three) = ("02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03");
    let keys = json!({ "args": { "cni": { "mac": two } }, "runtimeConfig": { "mac": three } });
    assert_eq!(asked(keys, Some(&format!("MAC={one}"))), three);
    assert_eq!(asked(json!({ "args": { "cni": { "mac": two } } }), Some(&format!("MAC={one}"))), two);
    assert_eq!(asked(json!({}), Some(&format!("IgnoreUnknown=1;K8S_POD_NAME=x;MAC={one}"))), one);
    let attachment = Attachment::new("a").args(&format!("IgnoreUnknown=1;MAC={one}"));
    compare("true", &attachment, &bridge(json!({ "ipam": ipam(&[V4], &[]) }))).unwrap();
}

#[test]
fn a_bridge_that_is_there() {
    if !root() {
        return;
    }
    let keys = json!({ "isGateway": true, "ipam": ipam(&[V4], &["0.0.0.0/0"]) });
    let setup = "ip link add cni0 type bridge; ip link add x type veth peer name y; ip link set x master cni0 up; ip link set y up";
    compare(setup, &Attachment::new("a"), &bridge(keys.clone())).unwrap();
    compare(&format!("{setup}; ip addr add 10.22.0.1/16 dev cni0"), &Attachment::new("a"), &bridge(keys.clone()))
        .unwrap();
    // An address in the way is replaced if that is wanted.
    let mut forced = keys.clone();
    forced["forceAddress"] = json!(true);
    let setup = format!("{setup}; ip addr add 10.1.1.1/24 dev cni0");
    compare(&setup, &Attachment::new("a"), &bridge(forced)).unwrap();
    let host = host().unwrap();
    host.sh(&setup).unwrap();
    let output = Attachment::new("a").call(&host, ours(), "ADD", &bridge(keys)).unwrap();
    assert_eq!(output.error_code(), Some(7));
    assert!(output.stdout["msg"].as_str().unwrap().contains("10.1.1.1/24"), "{}", output.stdout);
}

/// What an ADD must leave when it fails: nothing, except the bridge.
#[test]
fn a_failing_add_leaves_nothing() {
    if !root() {
        return;
    }
    let masq =
        json!({ "isGateway": true, "ipMasq": true, "macspoofchk": true, "ipam": ipam(&[V4, V6], &["0.0.0.0/0"]) });
    let with = |key: &str, value: Value| {
        let mut keys = masq.clone();
        keys[key] = value;
        keys
    };
    for (setup, keys, code) in [
        ("true", with("vlan", json!(4095)), 7),
        ("true", with("vlan", json!(-1)), 7),
        ("true", with("vlanTrunk", json!([{ "minID": 1 }])), 7),
        ("true", with("disableContainerInterface", json!(true)), 7),
        ("true", json!({ "hairpinMode": true, "promiscMode": true }), 7),
        ("true", with("ipMasqBackend", json!("ebtables")), 7),
        ("true", with("runtimeConfig", json!({ "mac": "no" })), 7),
        ("true", with("runtimeConfig", json!({ "mac": "01:00:5e:00:00:01" })), 7),
        ("true", with("bridge", json!("a name that is too long")), 7),
        ("true", with("mtu", json!(70000)), 999),
        ("ip link add cni0 type veth peer name x", masq.clone(), 7),
        ("ip netns exec a ip link add eth0 type veth peer name x", masq.clone(), 999),
        // A route by a gateway that cannot be reached fails after everything but the rules.
        (
            "true",
            with("ipam", {
                let mut ipam = ipam(&[V4, V6], &[]);
                ipam["routes"] = json!([{ "dst": "192.168.0.0/16", "gw": "172.16.0.1" }]);
                ipam
            }),
            999,
        ),
        ("ip link add cni0 type bridge; ip addr add 10.1.1.1/24 dev cni0", masq.clone(), 7),
    ] {
        let host = host().unwrap();
        host.sh(setup).unwrap();
        let look = || {
            let links = host.sh("ip -br link | grep -v ^cni0 | sed 's/@.*//; s/ .*//'; nft list ruleset").unwrap();
            let inside = host.container_sh("a", "ip -br link").unwrap();
            (links, inside, host.sh("find /var/lib/cni -name '10.*' -o -name 'fd*'").unwrap())
        };
        let before = look();
        let config = bridge(keys);
        let output = Attachment::new("a").call(&host, ours(), "ADD", &config).unwrap();
        assert_eq!(output.error_code(), Some(code), "{config} {}", output.stdout);
        let message = output.stdout["msg"].as_str().unwrap();
        assert!(!message.contains('\n') && !message.is_empty(), "{message}");
        eprintln!("{message}");
        assert_eq!(before, look(), "{config}");
        // And DEL after it works.
        if setup == "true" {
            let deleted = Attachment::new("a").call(&host, ours(), "DEL", &config).unwrap();
            assert!(deleted.code == Some(0) || code == 7, "{}", deleted.stdout);
        }
    }
}

#[test]
fn deleting_without_a_namespace() {
    if !root() {
        return;
    }
    let config = bridge(json!({ "isGateway": true, "ipMasq": true, "ipam": ipam(&[V4, V6], &["0.0.0.0/0"]) }));
    for (how, attachment) in [
        ("not given", Attachment::new("a").without_netns()),
        ("gone", Attachment::new("a")),
        ("only its file is left", Attachment::new("a")),
    ] {
        let host = host().unwrap();
        Attachment::new("a").add(&host, ours(), &config).unwrap();
        match how {
            "gone" => host.remove_container("a").unwrap(),
            "only its file is left" => drop(host.sh("umount /run/netns/a").unwrap()),
            _ => {}
        }
        for _ in 0..2 {
            attachment.del(&host, ours(), &config).unwrap();
            assert_eq!(host.sh("ip -br link show type veth; find /var/lib/cni -name '10.*'").unwrap(), "", "{how}");
            assert!(!host.sh("iptables-save; ip6tables-save").unwrap().contains("CNI-"), "{how}");
        }
    }
}

#[test]
fn garbage_is_collected() {
    if !root() {
        return;
    }
    let host = host().unwrap();
    let keys = json!({ "cniVersion": "1.1.0", "isGateway": true, "ipMasq": true, "macspoofchk": true, "ipam": ipam(&[V4], &[]) });
    let config = bridge(keys.clone());
    let mut other = config.clone();
    other["name"] = json!("other");
    other["bridge"] = json!("cni1");
    other["ipam"] = ipam(&["10.99.0.0/24"], &[]);
    Attachment::new("a").add(&host, ours(), &config).unwrap();
    let kept = Attachment::new("b").add(&host, ours(), &config).unwrap();
    let second = Attachment { ifname: "eth1".into(), ..Attachment::new("b") };
    second.add(&host, ours(), &other).unwrap();

    let mut gc = config.clone();
    gc["cni.dev/valid-attachments"] = json!([{ "containerID": "b", "ifname": "eth0" }]);
    let nobody = Attachment { id: String::new(), container: None, ifname: String::new(), args: None };
    for _ in 0..2 {
        nobody.call(&host, ours(), "GC", &gc).unwrap().ok().unwrap();
        assert_eq!(host.sh("ip -br link show type veth | wc -l").unwrap().trim(), "2");
        assert_eq!(host.sh("ls /var/lib/cni/networks/net | grep ^10 | wc -l").unwrap().trim(), "1");
        assert_eq!(host.sh("iptables -t nat -S | grep -c '^-N CNI-'").unwrap().trim(), "2");
    }
    assert!(!host.container_sh("a", "ip -br link").unwrap().contains("eth0"));
    Attachment::new("b").after(&host, ours(), "CHECK", &config, &kept).unwrap();
    nobody.call(&host, ours(), "STATUS", &config).unwrap().ok().unwrap();
    let mut wrong = config.clone();
    wrong["bridge"] = json!("lo");
    assert_eq!(nobody.call(&host, ours(), "STATUS", &wrong).unwrap().error_code(), Some(50));
}

#[test]
fn eight_at_once_on_a_fresh_bridge() {
    if !root() {
        return;
    }
    let host = host().unwrap();
    let config = bridge(json!({ "isDefaultGateway": true, "ipMasq": true, "ipam": ipam(&[V4, V6], &[]) }));
    let names: Vec<String> = (0..8).map(|number| format!("c{number}")).collect();
    for name in &names {
        host.container(name).unwrap();
    }
    let each = |command: &'static str| {
        std::thread::scope(|scope| {
            let calls: Vec<_> = names
                .iter()
                .map(|name| scope.spawn(|| Attachment::new(name).call(&host, ours(), command, &config).unwrap().ok()))
                .collect();
            calls.into_iter().map(|call| call.join().unwrap().unwrap()).collect::<Vec<_>>()
        })
    };
    let results = each("ADD");
    let mut addresses: Vec<&str> = results.iter().map(|result| result["ips"][0]["address"].as_str().unwrap()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 8);
    let macs: Vec<&Value> = results.iter().map(|result| &result["interfaces"][0]["mac"]).collect();
    assert!(macs.iter().all(|mac| *mac == macs[0]), "{macs:?}");
    for (name, result) in names.iter().zip(&results) {
        Attachment::new(name).after(&host, ours(), "CHECK", &config, result).unwrap();
    }
    host.container_sh("c0", "ping -c1 -W2 10.22.0.1").unwrap();
    each("DEL");
    assert_eq!(host.sh("ip -br link show type veth; find /var/lib/cni -name '10.*'").unwrap(), "");
    assert!(!host.sh("iptables-save; ip6tables-save").unwrap().contains("CNI-"));
}

#[test]
fn packets() {
    if !root() {
        return;
    }
    let host = host().unwrap();
    let config = bridge(json!({ "isDefaultGateway": true, "ipam": ipam(&[V4, V6], &[]) }));
    let address = |result: &Value, index: usize| {
        result["ips"][index]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
    };
    Attachment::new("a").add(&host, ours(), &config).unwrap();
    let other = Attachment::new("b").add(&host, ours(), &config).unwrap();
    for target in [address(&other, 0), address(&other, 1), "10.22.0.1".into(), "fd00:22::1".into()] {
        host.container_sh("a", &format!("ping -c2 -i0.2 -W2 {target}")).unwrap();
    }
    // Isolated ports reach the gateway, not each other.
    let mut isolated = config.clone();
    isolated["portIsolation"] = json!(true);
    for name in ["a", "b"] {
        Attachment::new(name).del(&host, ours(), &config).unwrap();
    }
    Attachment::new("a").add(&host, ours(), &isolated).unwrap();
    let other = Attachment::new("b").add(&host, ours(), &isolated).unwrap();
    host.container_sh("a", "ping -c1 -W2 10.22.0.1").unwrap();
    host.container_sh("a", &format!("ping -c1 -W1 {}", address(&other, 0))).unwrap_err();
}

#[test]
fn keys_that_came_later() {
    if !root() {
        return;
    }
    let host = host().unwrap();
    // An interface without addresses that is left down.
    let config = bridge(json!({ "disableContainerInterface": true }));
    let result = Attachment::new("a").add(&host, ours(), &config).unwrap();
    assert!(host.container_sh("a", "ip -br link show eth0").unwrap().contains("DOWN"));
    Attachment::new("a").after(&host, ours(), "CHECK", &config, &result).unwrap();
    Attachment::new("a").del(&host, ours(), &config).unwrap();
    // Duplicate detection.
    let config = bridge(json!({ "enabledad": true, "ipam": ipam(&[V6], &[]) }));
    Attachment::new("a").add(&host, ours(), &config).unwrap();
    let settings = "cat /proc/sys/net/ipv6/conf/eth0/accept_dad /proc/sys/net/ipv6/conf/eth0/enhanced_dad";
    assert_eq!(host.container_sh("a", settings).unwrap(), "1\n1\n");
    assert_eq!(host.container_sh("a", "ip -6 addr show tentative").unwrap(), "");
    Attachment::new("a").del(&host, ours(), &config).unwrap();
    // Attributes of routes, of version 1.1.0.
    let mut keys = json!({ "cniVersion": "1.1.0", "isGateway": true, "ipam": ipam(&[V4], &[]) });
    keys["ipam"]["routes"] = json!([
        { "dst": "10.50.0.0/16", "mtu": 1200, "advmss": 1100, "priority": 42 },
        { "dst": "10.51.0.0/16", "table": 77 },
        { "dst": "10.52.0.0/16", "scope": 253 },
    ]);
    let config = bridge(keys);
    let result = Attachment::new("a").add(&host, ours(), &config).unwrap();
    let routes = host.container_sh("a", "ip route; ip route show table 77").unwrap();
    assert!(routes.contains("10.50.0.0/16 via 10.22.0.1 dev eth0 metric 42 mtu 1200 advmss 1100"), "{routes}");
    assert!(routes.contains("10.51.0.0/16 via 10.22.0.1 dev eth0"), "{routes}");
    assert!(routes.contains("10.52.0.0/16 dev eth0 scope link"), "{routes}");
    Attachment::new("a").after(&host, ours(), "CHECK", &config, &result).unwrap();
    host.container_sh("a", "ip route flush table 77").unwrap();
    Attachment::new("a").after(&host, ours(), "CHECK", &config, &result).unwrap_err();
}

#[test]
fn what_is_missing_is_told() {
    if !root() {
        return;
    }
    let config = bridge(json!({ "isGateway": true, "ipMasq": true, "ipam": ipam(&[V4], &["0.0.0.0/0"]) }));
    for (damage, inside, word) in [
        ("ip link del eth0", true, "eth0"),
        ("ip addr del 10.22.0.2/16 dev eth0", true, "10.22.0.2/16"),
        ("ip route del default", true, "0.0.0.0/0"),
        ("ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:77", true, "02:00:00:00:00:77"),
        ("ip link del cni0", false, "cni0"),
        ("for port in $(ls /sys/class/net/cni0/brif); do ip link set $port nomaster; done", false, "cni0"),
        ("iptables -t nat -F; iptables -t nat -X", false, "masquerade"),
        ("rm /var/lib/cni/networks/net/10.22.0.2", false, "10.22"),
    ] {
        let host = host().unwrap();
        let attachment = Attachment::new("a");
        let result = attachment.add(&host, ours(), &config).unwrap();
        // What others add is fine.
        host.container_sh("a", "ip addr add 10.77.0.1/24 dev eth0; ip route add 10.78.0.0/24 dev eth0").unwrap();
        attachment.after(&host, ours(), "CHECK", &config, &result).unwrap();
        if inside {
            host.container_sh("a", damage).unwrap()
        } else {
            host.sh(damage).unwrap()
        };
        let mut check = config.clone();
        check["prevResult"] = result.clone();
        let output = attachment.call(&host, ours(), "CHECK", &check).unwrap();
        let message = output.stdout["msg"].as_str().unwrap_or_default().to_owned();
        assert!(output.code == Some(1) && (message.contains(word) || word == "10.22"), "{damage}: {}", output.stdout);
        // And DEL copes with it.
        attachment.after(&host, ours(), "DEL", &config, &result).unwrap();
    }
}

#[test]
fn a_duplicate_address_is_found() {
    if !root() {
        return;
    }
    let host = host().unwrap();
    let fixed = json!({ "type": "static", "addresses": [{ "address": "fd00:29::5/64" }] });
    let config = bridge(json!({ "enabledad": true, "ipam": fixed }));
    Attachment::new("a").add(&host, ours(), &config).unwrap();
    let output = Attachment::new("b").call(&host, ours(), "ADD", &config).unwrap();
    assert_eq!(output.error_code(), Some(999), "{}", output.stdout);
    assert!(output.stdout["msg"].as_str().unwrap().contains("fd00:29::5/64"), "{}", output.stdout);
    assert_eq!(host.container_sh("b", "ip -br link | wc -l").unwrap().trim(), "1");
}

#[test]
fn frames_from_another_hardware_address_are_dropped() {
    if !root() {
        return;
    }
    let config = bridge(json!({ "macspoofchk": true, "isGateway": true, "ipam": ipam(&[V4], &[]) }));
    let host = host().unwrap();
    let result = Attachment::new("a").add(&host, ours(), &config).unwrap();
    let own = result["interfaces"][2]["mac"].as_str().unwrap();
    let ping = "ping -c1 -W1 10.22.0.1";
    host.container_sh("a", ping).unwrap();
    host.container_sh("a", "ip link set eth0 address 02:00:00:00:00:99; ip neigh flush dev eth0").unwrap();
    host.container_sh("a", ping).unwrap_err();
    host.container_sh("a", &format!("ip link set eth0 address {own}; ip neigh flush dev eth0; {ping}")).unwrap();
    Attachment::new("a").after(&host, ours(), "CHECK", &config, &result).unwrap();
    host.sh("nft flush ruleset").unwrap();
    Attachment::new("a").call(&host, ours(), "CHECK", &config).unwrap().ok().unwrap_err();
    Attachment::new("a").after(&host, ours(), "DEL", &config, &result).unwrap();
}
