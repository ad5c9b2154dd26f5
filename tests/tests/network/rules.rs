//! Packet filter rules: the same as the peers', removable by each other, whole under concurrency, gone after DEL and GC.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use outrigger_testing::NetHost;
use outrigger_tests::eprintln_skip;
use serde_json::{Value, json};

use crate::common::{Plugins, can_run, peers_or_skip};

const NETWORK: &str = "net";

/// A private host with an interface behind which the containers' addresses are, without containers.
pub(super) fn host() -> Result<NetHost> {
    let host = NetHost::new()?;
    host.container("a")?;
    host.sh("ip route add 10.0.0.0/8 dev lo")?;
    Ok(host)
}

/// A previous result as bridge gives it.
pub(super) fn previous(number: u32) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            { "name": "cni0", "mac": "02:00:00:00:00:01" },
            { "name": "veth1", "mac": "02:00:00:00:00:02" },
            { "name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/a" },
        ],
        "ips": [
            { "address": format!("10.1.0.{number}/16"), "interface": 2 },
            { "address": format!("fd00:1::{number}/64"), "interface": 2 },
        ],
    })
}

/// A plugin's configuration with further keys.
pub(super) fn config(plugin: &str, keys: &Value) -> Value {
    let mut config = json!({ "cniVersion": "1.0.0", "name": NETWORK, "type": plugin });
    if let (Some(config), Some(keys)) = (config.as_object_mut(), keys.as_object()) {
        config.extend(keys.clone());
    }
    config
}

fn portmap(number: u32, backend: &str) -> Value {
    config(
        "portmap",
        &json!({
            "backend": backend,
            "prevResult": previous(number),
            "runtimeConfig": { "portMappings": [
                { "hostPort": 8000 + number, "containerPort": 80, "protocol": "tcp" },
                { "hostPort": 9000 + number, "containerPort": 53, "protocol": "udp" },
            ] },
        }),
    )
}

pub(super) fn call(host: &NetHost, dir: &Path, command: &str, id: &str, config: &Value) -> Result<Value> {
    let plugin = config["type"].as_str().context("type")?;
    let mut process = host.plugin(&dir.join(plugin), command, id, Path::new("/run/netns/a"), "eth0");
    NetHost::call(&mut process, config)?.ok().with_context(|| format!("{command} of {plugin} in {}", dir.display()))
}

/// GC, with the containers that are to be kept.
pub(super) fn gc(host: &NetHost, dir: &Path, config: &Value, keep: &[&str]) -> Result<()> {
    let mut config = config.clone();
    config["cniVersion"] = "1.1.0".into();
    let keep = keep.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" }));
    config["cni.dev/valid-attachments"] = keep.collect();
    if let Some(config) = config.as_object_mut() {
        config.remove("prevResult");
        config.remove("runtimeConfig");
    }
    call(host, dir, "GC", "", &config).map(drop)
}

/// All rules as iptables shows them, without the lines that change by themselves.
pub(super) fn saved(host: &NetHost) -> Result<String> {
    let text = host.sh("iptables-save; ip6tables-save")?;
    Ok(text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n"))
}

/// The lines that are of a container: by its address, or by the chain or comment of its own. The network's own address
/// is in rules and names of sets that stay.
fn of_containers(text: &str) -> Vec<&str> {
    let marks = ["10.1.0.", "fd00:1::", "CNI-DN-", "id: \\\"", "cni-br-iface"];
    let is_one = |line: &&str| {
        let rest = line.replace("10.1.0.0", "").replace("fd00:1::/64", "");
        marks.iter().any(|mark| rest.contains(mark))
    };
    text.lines().filter(is_one).collect()
}

pub(super) fn has_iptables(host: &NetHost) -> bool {
    host.sh("iptables-save >/dev/null && ip6tables-save >/dev/null").is_ok()
}

/// Configurations whose rules the peers of Debian (1.1.1) make too.
fn common_configurations() -> Vec<Value> {
    let mappings = json!([
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8081, "containerPort": 81, "protocol": "udp", "hostIP": "127.0.0.1" },
        { "hostPort": 8082, "containerPort": 82, "protocol": "sctp" },
        { "hostPort": 8083, "containerPort": 80, "protocol": "tcp", "hostIP": "::" },
    ]);
    let many: Vec<Value> =
        (1..=17).map(|port| json!({ "hostPort": 7000 + port, "containerPort": port, "protocol": "tcp" })).collect();
    let mapped = |keys: Value, mappings: Value| {
        let mut keys = keys;
        keys["prevResult"] = previous(5);
        keys["runtimeConfig"] = json!({ "portMappings": mappings });
        config("portmap", &keys)
    };
    let conditions = json!({
        "conditionsV4": ["!", "-s", "10.0.0.0/12", "-i", "eth+", "-m", "mark", "!", "--mark", "0x5/0xff"],
        "conditionsV6": ["-d", "fd00::1", "-m", "conntrack", "--ctstate", "NEW,ESTABLISHED"],
        "markMasqBit": 5,
    });
    vec![
        mapped(json!({}), mappings.clone()),
        mapped(json!({ "snat": false }), mappings.clone()),
        mapped(conditions, mappings),
        mapped(json!({}), many.into()),
        config("firewall", &json!({ "prevResult": previous(5) })),
        config("firewall", &json!({ "prevResult": previous(5), "iptablesAdminChainName": "MY-RULES" })),
        config("firewall", &json!({ "prevResult": previous(5), "ingressPolicy": "same-bridge" })),
        config("firewall", &json!({ "prevResult": previous(5), "ingressPolicy": "isolated" })),
    ]
}

#[test]
fn rules_are_the_peers_and_each_removes_the_others() {
    const NAME: &str = "rules_are_the_peers_and_each_removes_the_others";
    if !can_run(NAME) {
        return;
    }
    let Some(peers) = peers_or_skip(NAME) else { return };
    let plugins = Plugins::install().unwrap();
    for config in common_configurations() {
        let mut texts = Vec::new();
        for (adds, removes) in [(peers.as_path(), plugins.dir()), (plugins.dir(), peers.as_path())] {
            let host = host().unwrap();
            if !has_iptables(&host) {
                eprintln_skip(NAME, "iptables is not installed");
                return;
            }
            if let Err(error) = call(&host, adds, "ADD", "cid", &config) {
                assert_ne!(adds, plugins.dir(), "{error:#}");
                eprintln_skip(NAME, &format!("the peers do not know one configuration: {error:#}"));
                break;
            }
            // The words of this comment changed from version to version.
            texts.push(saved(&host).unwrap().replace("same-bridge|isolated", "same-bridge"));
            call(&host, plugins.dir(), "CHECK", "cid", &config).unwrap();
            // Debian's portmap looks for IPv4 rules in the IPv6 table.
            if config["type"] != "portmap" {
                call(&host, &peers, "CHECK", "cid", &config).unwrap();
            }
            call(&host, removes, "DEL", "cid", &config).unwrap();
            let left = saved(&host).unwrap();
            assert_eq!(of_containers(&left), Vec::<&str>::new(), "{config}");
            // Twice is no error.
            call(&host, plugins.dir(), "DEL", "cid", &config).unwrap();
            assert!(call(&host, plugins.dir(), "CHECK", "cid", &config).is_err());
        }
        if let [peers, ours] = &texts[..] {
            assert_eq!(peers, ours, "{config}");
            assert!(!of_containers(ours).is_empty());
        }
    }
}

#[test]
fn a_bridges_rules_are_the_peers_and_each_removes_the_others() {
    const NAME: &str = "a_bridges_rules_are_the_peers_and_each_removes_the_others";
    if !can_run(NAME) {
        return;
    }
    let Some(peers) = peers_or_skip(NAME) else { return };
    let plugins = Plugins::install().unwrap();
    let ranges = json!([[{ "subnet": "10.1.0.0/16" }], [{ "subnet": "fd00:1::/64" }]]);
    let bridge = config(
        "bridge",
        &json!({ "isGateway": true, "ipMasq": true, "macspoofchk": true,
                 "ipam": { "type": "host-local", "ranges": ranges } }),
    );
    let mut texts = Vec::new();
    for (adds, removes) in [(peers.as_path(), plugins.dir()), (plugins.dir(), peers.as_path())] {
        let host = host().unwrap();
        let mut config = bridge.clone();
        config["prevResult"] = call(&host, adds, "ADD", "cid", &config).unwrap();
        // Names of interfaces and addresses are different each time.
        let frames = host.sh("nft list table bridge nat").unwrap();
        let frames: Vec<_> = frames
            .split_whitespace()
            .filter(|word| !word.starts_with("\"veth") && word.matches(':').count() != 5)
            .map(str::to_owned)
            .collect();
        texts.push((saved(&host).unwrap(), frames));
        call(&host, plugins.dir(), "CHECK", "cid", &config).unwrap();
        call(&host, &peers, "CHECK", "cid", &config).unwrap();
        call(&host, removes, "DEL", "cid", &config).unwrap();
        assert_eq!(of_containers(&saved(&host).unwrap()), Vec::<&str>::new());
        assert_eq!(of_containers(&host.sh("nft list table bridge nat").unwrap()), Vec::<&str>::new());
    }
    assert_eq!(texts[0], texts[1]);
    assert!(texts[0].1.iter().any(|word| word.contains("cni-br-iface-cid-eth0-mac")));
}

#[test]
fn del_knows_nothing_but_names() {
    if !can_run("del_knows_nothing_but_names") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let host = host().unwrap();
    let bridge = config(
        "bridge",
        &json!({ "isGateway": true, "ipMasq": true, "macspoofchk": true,
                 "ipam": { "type": "host-local", "subnet": "10.1.0.0/16" } }),
    );
    for backend in ["iptables", "nftables"] {
        let firewall = config("firewall", &json!({ "backend": backend, "prevResult": previous(5) }));
        let mut masquerade = bridge.clone();
        masquerade["ipMasqBackend"] = backend.into();
        for mut config in [portmap(5, backend), firewall, masquerade] {
            call(&host, plugins.dir(), "ADD", "cid", &config).unwrap();
            assert_ne!(of_containers(&host.sh("nft list ruleset").unwrap()), Vec::<&str>::new(), "{config}");
            if let Some(config) = config.as_object_mut() {
                for key in ["prevResult", "runtimeConfig", "backend", "ipMasqBackend"] {
                    config.remove(key);
                }
            }
            let plugin = plugins.path(config["type"].as_str().unwrap());
            let mut process = host.plugin(&plugin, "DEL", "cid", Path::new(""), "eth0");
            NetHost::call(&mut process, &config).unwrap().ok().unwrap();
            assert_eq!(of_containers(&host.sh("nft list ruleset").unwrap()), Vec::<&str>::new(), "{backend} {config}");
        }
    }
}

#[test]
fn gc_removes_what_is_stale_and_nothing_else() {
    const NAME: &str = "gc_removes_what_is_stale_and_nothing_else";
    if !can_run(NAME) {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let mut makers: Vec<PathBuf> = vec![plugins.dir().to_owned()];
    makers.extend(peers_or_skip(NAME));
    for maker in makers {
        for backend in ["iptables", "nftables"] {
            if backend == "nftables" && maker != plugins.dir() {
                continue;
            }
            let host = host().unwrap();
            for (number, id) in [(5, "kept"), (6, "stale")] {
                call(&host, &maker, "ADD", id, &portmap(number, backend)).unwrap();
                let firewall = config("firewall", &json!({ "backend": backend, "prevResult": previous(number) }));
                call(&host, plugins.dir(), "ADD", id, &firewall).unwrap();
            }
            let mut other = portmap(7, backend);
            other["name"] = "other".into();
            call(&host, &maker, "ADD", "stale", &other).unwrap();
            for plugin in ["portmap", "firewall"] {
                gc(&host, plugins.dir(), &config(plugin, &json!({})), &["kept"]).unwrap();
            }
            let rules = host.sh("nft list ruleset; iptables-save").unwrap();
            let left = of_containers(&rules);
            assert!(!left.iter().any(|line| line.contains("10.1.0.6") || line.contains("8006")), "{left:?}");
            assert!(left.iter().any(|line| line.contains("10.1.0.7")), "{left:?}");
            call(&host, plugins.dir(), "CHECK", "kept", &portmap(5, backend)).unwrap();
            call(&host, plugins.dir(), "CHECK", "stale", &other).unwrap();
            let firewall = config("firewall", &json!({ "backend": backend, "prevResult": previous(5) }));
            call(&host, plugins.dir(), "CHECK", "kept", &firewall).unwrap();
        }
    }
}

#[test]
fn rules_that_keep_bridges_apart_end_with_the_network() {
    if !can_run("rules_that_keep_bridges_apart_end_with_the_network") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    for backend in ["iptables", "nftables"] {
        let host = host().unwrap();
        let keys = json!({ "backend": backend, "ingressPolicy": "isolated", "prevResult": previous(5) });
        let firewall = config("firewall", &keys);
        call(&host, plugins.dir(), "ADD", "cid", &firewall).unwrap();
        host.sh("ip link add cni0 type bridge; ip link add p0 type veth peer name p1; ip link set p0 master cni0")
            .unwrap();
        call(&host, plugins.dir(), "DEL", "cid", &firewall).unwrap();
        let on_bridge = || Ok::<_, anyhow::Error>(host.sh("nft list ruleset")?.matches("\"cni0\"").count());
        let before = on_bridge().unwrap();
        assert!(before > 0);
        // A container of somebody is still on the bridge.
        gc(&host, plugins.dir(), &firewall, &[]).unwrap();
        assert_eq!(on_bridge().unwrap(), before);
        host.sh("ip link del p0").unwrap();
        gc(&host, plugins.dir(), &firewall, &["other"]).unwrap();
        assert_eq!(on_bridge().unwrap(), before);
        gc(&host, plugins.dir(), &firewall, &[]).unwrap();
        assert_eq!(on_bridge().unwrap(), 0);
    }
}

#[test]
fn eight_at_once_on_a_fresh_host() {
    if !can_run("eight_at_once_on_a_fresh_host") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    for backend in ["iptables", "nftables"] {
        let host = host().unwrap();
        let each = |command: &str| -> Result<()> {
            let one = |thread: u32| -> Result<()> {
                for number in (1..=32).filter(|number| number % 8 == thread) {
                    let id = format!("c{number}");
                    let firewall = config(
                        "firewall",
                        &json!({ "backend": backend, "ingressPolicy": "same-bridge", "prevResult": previous(number) }),
                    );
                    call(&host, plugins.dir(), command, &id, &portmap(number, backend))?;
                    call(&host, plugins.dir(), command, &id, &firewall)?;
                }
                Ok(())
            };
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|thread| scope.spawn(move || one(thread))).collect();
                for thread in threads {
                    thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
                }
                Ok(())
            })
        };
        each("ADD").unwrap();
        each("CHECK").unwrap();
        let rules = host.sh("nft list ruleset").unwrap();
        // What is shared is there once for each IP version or table.
        let count = |text: &str| rules.lines().filter(|line| line.contains(text)).count();
        let shared = if backend == "iptables" {
            // Each leads from two built-in chains, or one, in two tables.
            [
                ("jump CNI-HOSTPORT-DNAT", 4),
                ("jump CNI-HOSTPORT-MASQ", 2),
                ("jump CNI-FORWARD", 2),
                ("jump CNI-ADMIN", 2),
            ]
        } else {
            [("jump hostports", 2), ("jump hairpin", 1), ("jump forward-isolation", 1), ("jump mark13", 1)]
        };
        for (text, wanted) in shared {
            assert_eq!(count(text), wanted, "{text}:\n{rules}");
        }
        each("DEL").unwrap();
        let left = host.sh("nft list ruleset").unwrap();
        assert_eq!(of_containers(&left), Vec::<&str>::new(), "{backend}");
    }
}

#[test]
fn a_port_that_is_taken_is_an_error_that_says_by_whom() {
    if !can_run("a_port_that_is_taken_is_an_error_that_says_by_whom") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let host = host().unwrap();
    let config = portmap(5, "nftables");
    call(&host, plugins.dir(), "ADD", "first", &config).unwrap();
    let error = format!("{:#}", call(&host, plugins.dir(), "ADD", "second", &config).unwrap_err());
    assert!(error.contains("8005") && error.contains("id: first"), "{error}");
    // Again for the same container, as after a crash.
    call(&host, plugins.dir(), "ADD", "first", &config).unwrap();
    call(&host, plugins.dir(), "CHECK", "first", &config).unwrap();
}

#[test]
fn a_firewalls_notes_are_hints_only() {
    if !can_run("a_firewalls_notes_are_hints_only") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let host = host().unwrap();
    let mut firewall = config("firewall", &json!({ "prevResult": previous(5) }));
    let notes = "/run/cni/outrigger/firewall";
    for damage in ["true", "rm $1", ": >$1", "echo 1 >$1", "echo x >$1", "sed -i 1d $1"] {
        call(&host, plugins.dir(), "ADD", "other", &config("firewall", &json!({ "prevResult": previous(6) }))).unwrap();
        call(&host, plugins.dir(), "DEL", "other", &firewall).unwrap();
        call(&host, plugins.dir(), "ADD", "cid", &firewall).unwrap();
        assert_eq!(host.sh(&format!("cat {notes}/* | wc -l")).unwrap().trim(), "4");
        host.sh(&format!("set -- {notes}/*; {damage}")).unwrap();
        firewall.as_object_mut().unwrap().remove("prevResult");
        call(&host, plugins.dir(), "DEL", "cid", &firewall).unwrap();
        assert_eq!(of_containers(&saved(&host).unwrap()), Vec::<&str>::new(), "{damage}");
        assert_eq!(host.sh(&format!("ls {notes}")).unwrap(), "");
        firewall["prevResult"] = previous(5);
    }
}

#[test]
fn connections_without_a_handshake_are_forgotten() {
    const NAME: &str = "connections_without_a_handshake_are_forgotten";
    if !can_run(NAME) {
        return;
    }
    let host = host().unwrap();
    let make = |port: u16| {
        host.sh(&format!("conntrack -I -p udp -s 10.9.0.1 -d 10.9.0.2 --sport 1000 --dport {port} --timeout 100"))
    };
    if let Err(error) = make(9005).and_then(|_| make(9999)) {
        eprintln_skip(NAME, &format!("connections cannot be made by hand: {error:#}"));
        return;
    }
    let plugins = Plugins::install().unwrap();
    call(&host, plugins.dir(), "ADD", "cid", &portmap(5, "iptables")).unwrap();
    let left = host.sh("conntrack -L -p udp").unwrap();
    assert!(!left.contains("dport=9005") && left.contains("dport=9999"), "{left}");
}

#[test]
fn the_own_table_keeps_bridges_apart() {
    if !can_run("the_own_table_keeps_bridges_apart") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let host = host().unwrap();
    let attach = |id: &str, bridge: &str, subnet: &str| -> Result<String> {
        host.container(id)?;
        let ipam = json!({ "type": "host-local", "subnet": subnet, "routes": [{ "dst": "0.0.0.0/0" }] });
        let mut config = config("bridge", &json!({ "bridge": bridge, "isGateway": true, "ipam": ipam }));
        config["name"] = bridge.into();
        let netns = PathBuf::from(format!("/run/netns/{id}"));
        let add = |config: &Value| {
            let plugin = plugins.path(config["type"].as_str().unwrap_or_default());
            NetHost::call(&mut host.plugin(&plugin, "ADD", id, &netns, "eth0"), config)?.ok()
        };
        let result = add(&config)?;
        let mut firewall = self::config(
            "firewall",
            &json!({ "backend": "nftables", "ingressPolicy": "same-bridge", "prevResult": result }),
        );
        firewall["name"] = bridge.into();
        add(&firewall)?;
        let address = result["ips"][0]["address"].as_str().context("address")?;
        Ok(address.split('/').next().unwrap_or_default().to_owned())
    };
    attach("b", "cni1", "10.2.0.0/24").unwrap();
    let near = attach("c", "cni1", "10.2.0.0/24").unwrap();
    let far = attach("d", "cni2", "10.3.0.0/24").unwrap();
    host.container_sh("b", &format!("ping -n -c 1 -W 5 {near}")).unwrap();
    assert!(host.container_sh("b", &format!("ping -n -c 1 -W 1 {far}")).is_err());
    // The rules do it, nothing else.
    host.sh("nft flush chain inet outrigger_cni forward-isolation").unwrap();
    host.container_sh("b", &format!("ping -n -c 1 -W 5 {far}")).unwrap();
}

#[test]
fn conditions_that_cannot_be_met_are_named() {
    if !can_run("conditions_that_cannot_be_met_are_named") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let host = host().unwrap();
    for (backend, conditions, word) in [
        ("iptables", json!(["-m", "set", "--match-set", "x", "src"]), "conditionsV4: -m set"),
        ("nftables", json!(["ip", "ttl", "5"]), "conditionsV4: ip ttl"),
        ("nftables", json!(["-s", "1.2.3.4"]), "syntax of iptables"),
    ] {
        let mut config = portmap(5, backend);
        config["conditionsV4"] = conditions;
        let error = format!("{:#}", call(&host, plugins.dir(), "ADD", "cid", &config).unwrap_err());
        assert!(error.contains(word) && error.contains("\"code\":7"), "{error}");
        // DEL does not care.
        call(&host, plugins.dir(), "DEL", "cid", &config).unwrap();
    }
    let mut config = portmap(5, "nftables");
    config["conditionsV4"] = json!(["ip saddr != 10.0.0.0/8 tcp sport 1-1000"]);
    call(&host, plugins.dir(), "ADD", "cid", &config).unwrap();
    call(&host, plugins.dir(), "CHECK", "cid", &config).unwrap();
    let rules = host.sh("nft list chain inet outrigger_cni conditional").unwrap();
    assert!(rules.contains("ip saddr & 255.0.0.0 != 10.0.0.0") || rules.contains("ip saddr != 10.0.0.0/8"), "{rules}");
    call(&host, plugins.dir(), "DEL", "cid", &config).unwrap();
    assert!(!host.sh("nft list chain inet outrigger_cni conditional").unwrap().contains("dnat"));
}
