//! Which chains are tried, and what is known of the originals.

use serde_json::{Value, json};

use super::Step;

/// Address families of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
    Dual,
}

impl Family {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::Dual => "dual",
        }
    }

    fn pick<T>(self, v4: T, v6: T) -> Vec<T> {
        match self {
            Self::V4 => vec![v4],
            Self::V6 => vec![v6],
            Self::Dual => vec![v4, v6],
        }
    }

    fn host_local(self) -> Value {
        json!({ "type": "host-local",
            "ranges": self.pick(json!([{ "subnet": "10.90.0.0/24" }]), json!([{ "subnet": "fd90::/64" }])),
            "routes": self.pick(json!({ "dst": "0.0.0.0/0" }), json!({ "dst": "::/0" })) })
    }

    fn fixed(self) -> Value {
        json!({ "type": "static",
            "addresses": self.pick(
                json!({ "address": "10.91.0.5/24", "gateway": "10.91.0.1" }),
                json!({ "address": "fd91::5/64", "gateway": "fd91::1" }),
            ),
            "routes": self.pick(json!({ "dst": "192.0.2.0/24" }), json!({ "dst": "2001:db8::/32" })),
            "dns": { "nameservers": ["192.0.2.53"] } })
    }
}

/// A chain that both have.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// Shell lines that prepare a host.
    pub(super) setup: &'static str,
    pub(super) ifname: &'static str,
    /// The oldest version that all its plugins accept; for combinations of plugins that other rows have by themselves, one
    /// that all still use.
    pub(super) oldest: &'static str,
    /// Peers that do not know version 1.1.0 do not have it.
    pub(super) new_peers: bool,
    pub(super) chain: fn(Family) -> Vec<Value>,
}

const MASTER: &str = "ip link add m0 type veth peer name m1; ip link set m0 up; ip link set m1 up";

fn bridge(family: Family) -> Value {
    json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": family.host_local() })
}

fn masquerading(family: Family) -> Value {
    json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": family.host_local() })
}

fn ptp(family: Family) -> Value {
    json!({ "type": "ptp", "ipam": family.host_local() })
}

fn macvlan(family: Family) -> Value {
    json!({ "type": "macvlan", "master": "m0", "ipam": family.host_local() })
}

fn with(mut plugin: Value, key: &str, value: impl Into<Value>) -> Value {
    plugin[key] = value.into();
    plugin
}

fn portmap() -> Value {
    json!({ "type": "portmap", "capabilities": { "portMappings": true }, "runtimeConfig": { "portMappings": [
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8053, "containerPort": 53, "protocol": "udp" },
    ] } })
}

fn bandwidth() -> Value {
    json!({ "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 400_000 })
}

fn tuning() -> Value {
    json!({ "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.log_martians": "1" }, "mtu": 1400, "mac": "02:00:00:00:00:77" })
}

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "loopback",
        setup: "true",
        ifname: "lo",
        oldest: "0.3.0",
        new_peers: false,
        chain: |_| vec![json!({ "type": "loopback" })],
    },
    Row {
        name: "bridge + host-local",
        setup: "true",
        ifname: "eth0",
        oldest: "0.1.0",
        new_peers: false,
        chain: |family| vec![bridge(family)],
    },
    Row {
        name: "bridge masquerading",
        setup: "true",
        ifname: "eth0",
        oldest: "0.1.0",
        new_peers: false,
        chain: |family| vec![masquerading(family)],
    },
    Row {
        name: "bridge, default gateway, hairpin, mtu",
        setup: "true",
        ifname: "eth0",
        oldest: "0.1.0",
        new_peers: false,
        chain: |family| {
            let mut ipam = family.host_local();
            ipam.as_object_mut().map(|ipam| ipam.remove("routes"));
            vec![json!({ "type": "bridge", "isDefaultGateway": true, "hairpinMode": true, "mtu": 1300, "ipam": ipam })]
        },
    },
    Row {
        name: "bridge + static, no gateway",
        setup: "true",
        ifname: "net1",
        oldest: "0.1.0",
        new_peers: false,
        chain: |family| vec![json!({ "type": "bridge", "bridge": "lan0", "ipam": family.fixed() })],
    },
    Row {
        name: "bridge, MAC spoof check",
        setup: "true",
        ifname: "eth0",
        oldest: "0.1.0",
        new_peers: false,
        chain: |family| {
            vec![
                json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "macspoofchk": true, "ipam": family.host_local() }),
            ]
        },
    },
    Row {
        name: "ptp masquerading",
        setup: "true",
        ifname: "eth0",
        oldest: "0.1.0",
        new_peers: false,
        chain: |family| vec![json!({ "type": "ptp", "ipMasq": true, "mtu": 1400, "ipam": family.host_local() })],
    },
    Row {
        name: "macvlan + host-local",
        setup: MASTER,
        ifname: "eth0",
        oldest: "0.1.0",
        new_peers: false,
        chain: |family| {
            vec![json!({ "type": "macvlan", "master": "m0", "mode": "private", "ipam": family.host_local() })]
        },
    },
    Row {
        name: "macvlan + static",
        setup: MASTER,
        ifname: "eth0",
        oldest: "0.1.0",
        new_peers: false,
        chain: |family| vec![json!({ "type": "macvlan", "master": "m0", "mtu": 1400, "ipam": family.fixed() })],
    },
    Row {
        name: "host-device + static",
        setup: "ip link add d0 type veth peer name d1; ip link set d1 up",
        ifname: "eth0",
        oldest: "0.1.0",
        new_peers: false,
        chain: |family| vec![json!({ "type": "host-device", "device": "d0", "ipam": family.fixed() })],
    },
    Row {
        name: "bridge, portmap",
        setup: "true",
        ifname: "eth0",
        oldest: "0.3.0",
        new_peers: false,
        chain: |family| vec![bridge(family), portmap()],
    },
    Row {
        name: "bridge, firewall",
        setup: "true",
        ifname: "eth0",
        oldest: "0.4.0",
        new_peers: false,
        chain: |family| vec![bridge(family), json!({ "type": "firewall" })],
    },
    Row {
        name: "bridge, bandwidth",
        setup: "true",
        ifname: "eth0",
        oldest: "0.3.0",
        new_peers: false,
        chain: |family| vec![bridge(family), bandwidth()],
    },
    Row {
        name: "bridge, tuning",
        setup: "true",
        ifname: "eth0",
        oldest: "0.3.0",
        new_peers: false,
        chain: |family| vec![bridge(family), tuning()],
    },
    Row {
        name: "bridge, sbr",
        setup: "true",
        ifname: "eth0",
        oldest: "0.3.0",
        new_peers: false,
        chain: |family| vec![bridge(family), json!({ "type": "sbr" })],
    },
    Row {
        name: "ptp, portmap",
        setup: "true",
        ifname: "eth0",
        oldest: "0.3.0",
        new_peers: false,
        chain: |family| vec![ptp(family), portmap()],
    },
    Row {
        name: "ptp, bandwidth",
        setup: "true",
        ifname: "eth0",
        oldest: "1.0.0",
        new_peers: false,
        chain: |family| vec![ptp(family), bandwidth()],
    },
    Row {
        name: "ptp, firewall",
        setup: "true",
        ifname: "eth0",
        oldest: "1.0.0",
        new_peers: false,
        chain: |family| vec![ptp(family), json!({ "type": "firewall" })],
    },
    Row {
        name: "macvlan, tuning",
        setup: MASTER,
        ifname: "eth0",
        oldest: "1.0.0",
        new_peers: false,
        chain: |family| vec![macvlan(family), tuning()],
    },
    Row {
        name: "macvlan, sbr",
        setup: MASTER,
        ifname: "eth0",
        oldest: "1.0.0",
        new_peers: false,
        chain: |family| vec![macvlan(family), json!({ "type": "sbr" })],
    },
    Row {
        name: "tap + host-local",
        setup: "true",
        ifname: "eth0",
        oldest: "1.0.0",
        new_peers: true,
        chain: |family| vec![json!({ "type": "tap", "multiQueue": true, "mtu": 1400, "ipam": family.host_local() })],
    },
    Row {
        name: "bridge masquerading, nftables",
        setup: "true",
        ifname: "eth0",
        oldest: "1.0.0",
        new_peers: true,
        chain: |family| vec![with(masquerading(family), "ipMasqBackend", "nftables")],
    },
    Row {
        name: "ptp masquerading, nftables",
        setup: "true",
        ifname: "eth0",
        oldest: "1.0.0",
        new_peers: true,
        chain: |family| vec![with(with(ptp(family), "ipMasq", true), "ipMasqBackend", "nftables")],
    },
    Row {
        name: "bridge, portmap, nftables",
        setup: "true",
        ifname: "eth0",
        oldest: "1.0.0",
        new_peers: true,
        chain: |family| vec![bridge(family), with(portmap(), "backend", "nftables")],
    },
    Row {
        name: "all: bridge, portmap, firewall, bandwidth, tuning",
        setup: "true",
        ifname: "eth0",
        oldest: "0.4.0",
        new_peers: false,
        chain: |family| vec![masquerading(family), portmap(), json!({ "type": "firewall" }), bandwidth(), tuning()],
    },
];

/// A difference that is known, and why. A cell of this list must show it, so that a change is seen.
pub(super) struct Known {
    pub(super) rows: &'static [&'static str],
    pub(super) step: Step,
    /// Versions of the configuration.
    pub(super) versions: std::ops::RangeInclusive<&'static str>,
    /// Only with peers that do not know version 1.1.0.
    pub(super) old_peers: bool,
    pub(super) why: &'static str,
}

pub(super) const KNOWN: &[Known] = &[
    Known {
        rows: &["loopback"],
        step: Step::Result,
        versions: "0.3.0"..="0.4.0",
        old_peers: false,
        why: "loopback prints the form of 1.0.0 under any version",
    },
    Known {
        rows: &["bridge + static, no gateway"],
        step: Step::Result,
        versions: "0.1.0"..="1.1.0",
        old_peers: true,
        why: "bridge drops the DNS that IPAM gives; ours passes it on",
    },
    Known {
        rows: &["bridge + static, no gateway", "macvlan + static", "host-device + static"],
        step: Step::TheirCheck,
        versions: "0.4.0"..="1.1.0",
        old_peers: true,
        why: "CHECK looks for a route without gateway, although ADD took the address's gateway for it",
    },
    Known {
        rows: &["bridge, sbr", "macvlan, sbr"],
        step: Step::TheirCheck,
        versions: "0.4.0"..="1.1.0",
        old_peers: false,
        why: "CHECK looks for the routes in the main table only, from where sbr has moved them",
    },
    Known {
        rows: &["bridge, portmap", "ptp, portmap", "all: bridge, portmap, firewall, bandwidth, tuning"],
        step: Step::TheirCheck,
        versions: "0.4.0"..="1.1.0",
        old_peers: true,
        why: "portmap's CHECK wants the rules of one family in the chains of the other",
    },
    Known {
        rows: &["bridge masquerading, nftables", "ptp masquerading, nftables", "bridge, portmap, nftables"],
        step: Step::State,
        versions: "1.0.0"..="1.1.0",
        old_peers: false,
        why: "each has a table of its own in nftables; ours keeps addresses and ports in sets and maps",
    },
    Known {
        rows: &["bridge, portmap, nftables"],
        step: Step::TheirCheck,
        versions: "1.0.0"..="1.1.0",
        old_peers: false,
        why: "CHECK looks into the table of the originals only; ours looks into both",
    },
    Known {
        rows: &["bridge masquerading, nftables", "ptp masquerading, nftables", "bridge, portmap, nftables"],
        step: Step::TheirDel,
        versions: "1.0.0"..="1.1.0",
        old_peers: false,
        why: "DEL looks into the table of the originals only: docs/network.md says what to do",
    },
];

pub(super) fn known(row: &str, version: &str, step: Step, old: bool) -> Option<&'static Known> {
    KNOWN.iter().find(|known| {
        known.rows.contains(&row)
            && known.versions.contains(&version)
            && known.step == step
            && (!known.old_peers || old)
    })
}
