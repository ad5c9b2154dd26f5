//! Calls after others, of which something is gone, damaged or in the way.

use serde_json::{Value, json};

use super::cases::{MASTER, SUBNET_ENV, good};

/// A call on a host where others came before it.
pub(super) struct Half {
    pub(super) name: String,
    /// Shell lines that prepare the host.
    pub(super) setup: &'static str,
    /// ADDs that go well, each with its container; each gets the container's previous result.
    pub(super) before: Vec<(&'static str, Value)>,
    /// Shell lines that damage what they made.
    pub(super) damage: &'static str,
    pub(super) command: &'static str,
    pub(super) config: Value,
    /// What the call need not remove.
    pub(super) stays: &'static [&'static str],
}

impl Half {
    fn staying(mut self, stays: &'static [&'static str]) -> Self {
        self.stays = stays;
        self
    }

    fn on(mut self, setup: &'static str) -> Self {
        self.setup = setup;
        self
    }
}

/// A call of the chain's last plugin for a container that was attached by the whole chain.
fn half(command: &'static str, what: &str, chain: &[Value], damage: &'static str) -> Half {
    let config = chain.last().cloned().unwrap_or_default();
    Half {
        name: format!("{}: {command}, {what}", config["type"].as_str().unwrap_or_default()),
        setup: "true",
        before: chain.iter().map(|plugin| ("c1", plugin.clone())).collect(),
        damage,
        command,
        config,
        stays: &[],
    }
}

fn with(plugin: &str, more: &Value) -> Value {
    let mut config = good(plugin);
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config
}

const NO_NETNS: &str = "umount -l /run/netns/c1; rm /run/netns/c1";
const NO_INTERFACE: &str = "ip -n c1 link del eth0";
const EMPTY_LEASE: &str = ": > /var/lib/cni/networks/bad/10.95.0.2";
const NO_INDEX: &str = "rm -rf /var/lib/cni/networks/bad/.outrigger; : > /var/lib/cni/networks/bad/.outrigger";
const NO_RULES: &str = "nft flush ruleset";
const EMPTY_BACKUP: &str = ": > /run/cni/tuning/c1_eth0.json";
const TORN_CACHE: &str = "echo '{\"name\":\"b' > /var/lib/cni/flannel/c1";

/// What plugins after bridge leave to it: the attachment itself. Notes of rules that somebody flushed are found by DEL only.
const BRIDGES: &[&str] = &["veth", "networks/bad", "eth0", "10.95.0.", "/run/cni/outrigger/firewall/"];
/// All of flannel's: GC cannot tell of which network a torn cache is; DEL without any knows of nothing to undo.
const ALL: &[&str] = &["veth", "networks/bad", "eth0", "10.95.0.", "flannel"];

pub(super) fn table() -> Vec<Half> {
    let masquerading = with("bridge", &json!({ "ipMasq": true }));
    let own_table = with("bridge", &json!({ "ipMasq": true, "ipMasqBackend": "nftables" }));
    let (bridge, ptp) = (good("bridge"), with("ptp", &json!({ "ipMasq": true })));
    let (macvlan, device) = (good("macvlan"), good("host-device"));
    let local = good("host-local");
    let portmap = [bridge.clone(), with("portmap", &json!({ "snat": true }))];
    let own_portmap = [bridge.clone(), with("portmap", &json!({ "backend": "nftables" }))];
    let firewall = [bridge.clone(), good("firewall")];
    let bandwidth = [bridge.clone(), with("bandwidth", &json!({ "egressRate": 8000, "egressBurst": 80000 }))];
    let tuning = [bridge.clone(), with("tuning", &json!({ "mtu": 1400 }))];
    let sbr = [bridge.clone(), good("sbr")];
    let flannel = [good("flannel")];
    let one = |config: &Value| vec![config.clone()];
    let mut table = Vec::new();

    // The main plugins, whatever of an attachment is missing.
    for command in ["DEL", "GC"] {
        for (config, damages) in [
            (&masquerading, &[NO_NETNS, NO_INTERFACE, NO_RULES, "ip link del cni0"][..]),
            (&own_table, &[NO_INTERFACE, NO_RULES]),
            (&ptp, &[NO_NETNS, NO_INTERFACE, NO_RULES]),
            (&macvlan, &[NO_NETNS, NO_INTERFACE, "ip link del m0"]),
        ] {
            let setup = if config["type"] == "macvlan" { MASTER } else { "true" };
            for damage in damages {
                let case = half(command, damage, &one(config), damage).on(setup);
                table.push(if damage.contains("m0") { case.staying(&["m0", "m1"]) } else { case });
            }
            let mut never = half(command, "ADD never came", &one(config), "true").on(setup);
            never.before.clear();
            table.push(never);
        }
        table.push(half(command, "no leases", &one(&bridge), "rm -r /var/lib/cni/networks"));
        table.push(half(command, "the index is a file", &one(&local), NO_INDEX).staying(&["bad/.outrigger"]));
        for config in [&bridge, &local] {
            let case = half(command, "the lease is empty", &one(config), EMPTY_LEASE);
            // DEL cannot tell whose it was.
            table.push(if command == "DEL" { case.staying(&["networks/bad/10.95.0.2"]) } else { case });
        }
    }
    table.push(
        half("DEL", "its name is taken on the host", &one(&device), "ip link add m0 type bridge")
            .on(MASTER)
            .staying(&["networks/bad/10.95.0.2"]),
    );
    table.push(half("DEL", "the interface is gone", &one(&device), NO_INTERFACE).on(MASTER).staying(&["m0", "m1"]));

    // The plugins after them.
    for command in ["DEL", "GC"] {
        for chain in [&portmap, &own_portmap, &firewall] {
            table.push(half(command, NO_RULES, chain, NO_RULES).staying(BRIDGES));
            table.push(half(command, NO_NETNS, chain, NO_NETNS).staying(BRIDGES));
        }
        for damage in ["iptables -t nat -F CNI-HOSTPORT-DNAT", "iptables -t nat -F PREROUTING"] {
            table.push(half(command, damage, &portmap, damage).staying(BRIDGES));
        }
        for damage in ["ip link del $(ls /sys/class/net | grep bwp)", NO_NETNS, NO_INTERFACE] {
            table.push(half(command, damage, &bandwidth, damage).staying(BRIDGES));
        }
        for damage in [EMPTY_BACKUP, "rm /run/cni/tuning/c1_eth0.json", NO_NETNS, NO_INTERFACE] {
            table.push(half(command, damage, &tuning, damage).staying(BRIDGES));
        }
        for damage in ["ip -n c1 rule del table 100", NO_NETNS, NO_INTERFACE] {
            table.push(half(command, damage, &sbr, damage).staying(BRIDGES));
        }
        for (what, damage, stays) in [
            ("the cache is torn", TORN_CACHE, if command == "GC" { &["flannel/c1"][..] } else { &[] }),
            ("no cache", "rm /var/lib/cni/flannel/c1", if command == "DEL" { ALL } else { &[] }),
            ("no file of the daemon's", "rm /run/flannel/subnet.env", &["subnet.env"]),
            ("neither", "rm /run/flannel/subnet.env; echo '{' > /var/lib/cni/flannel/c1", ALL),
            ("no namespace", NO_NETNS, &[]),
        ] {
            table.push(half(command, what, &flannel, damage).on(SUBNET_ENV).staying(stays));
        }
    }

    // CHECK sees what is gone.
    for (config, damages) in [
        (
            &masquerading,
            &[
                NO_INTERFACE,
                NO_NETNS,
                NO_RULES,
                "ip link del cni0",
                "ip -n c1 addr flush dev eth0",
                "ip link set $(ls /sys/class/net | grep veth) nomaster",
                "printf 'c9\\r\\neth0' > /var/lib/cni/networks/bad/10.95.0.2",
            ][..],
        ),
        (&ptp, &[NO_INTERFACE, NO_RULES, "ip -n c1 addr flush dev eth0"]),
        (&macvlan, &[NO_INTERFACE, "ip -n c1 addr flush dev eth0"]),
        (&device, &["ip -n c1 link set eth0 down; ip -n c1 link set eth0 name m7"]),
        (&local, &[EMPTY_LEASE, NO_INDEX]),
    ] {
        for damage in damages {
            // The kernel takes its time to remove what was in a namespace.
            table.push(half("CHECK", damage, &one(config), damage).on(MASTER).staying(&["veth"]));
        }
    }
    for (chain, damage) in [
        (&portmap, NO_RULES),
        (&portmap, "iptables -t nat -F CNI-HOSTPORT-DNAT"),
        (&own_portmap, NO_RULES),
        (&firewall, NO_RULES),
        (&firewall, "iptables -F CNI-FORWARD"),
    ] {
        table.push(half("CHECK", damage, chain, damage));
    }
    table.push(half("CHECK", "the cache is torn", &flannel, TORN_CACHE).on(SUBNET_ENV));

    // ADD meets what others left.
    for (what, setup) in [
        ("a lease is empty", "mkdir -p /var/lib/cni/networks/bad; : > /var/lib/cni/networks/bad/10.95.0.2"),
        (
            "a lease is junk",
            "mkdir -p /var/lib/cni/networks/bad; head -c 9999 /dev/zero > /var/lib/cni/networks/bad/10.95.0.2",
        ),
        ("a lease is a directory", "mkdir -p /var/lib/cni/networks/bad/10.95.0.2"),
        (
            "the last address is junk",
            "mkdir -p /var/lib/cni/networks/bad; echo ten > /var/lib/cni/networks/bad/last_reserved_ip.0",
        ),
        ("the index is a file", "mkdir -p /var/lib/cni/networks/bad; : > /var/lib/cni/networks/bad/.outrigger"),
    ] {
        let mut case = half("ADD", what, &one(&local), "true").on(setup);
        case.before.clear();
        table.push(case);
    }
    for chain in [&portmap, &own_portmap] {
        let mut case = half("ADD", &format!("the port is taken ({})", chain[1]["backend"]), chain, "true");
        case.before = vec![("c9", chain[0].clone()), ("c9", chain[1].clone()), ("c1", chain[0].clone())];
        table.push(case);
    }
    table.push(half("ADD", "a second time", &bandwidth, "true"));
    table.push(half("ADD", "a second time", &one(&bridge), "true"));
    table.push(half("ADD", "a second time", &one(&macvlan), "true").on(MASTER));
    table.push(half("ADD", "the kept settings are torn", &tuning, EMPTY_BACKUP));
    table.push(half("ADD", "the cache is torn", &flannel, "echo '{' > /var/lib/cni/flannel/c9").on(SUBNET_ENV));
    let last = table.len() - 1;
    table[last].before.clear();
    table[last].damage = "mkdir -p /var/lib/cni/flannel; echo '{' > /var/lib/cni/flannel/c1";
    table
}
