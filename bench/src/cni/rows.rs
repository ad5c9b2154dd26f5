//! The chains that are measured.

use serde_json::{Value, json};

/// What a chain depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    /// Where host-local keeps its addresses.
    pub(crate) data_dir: &'a str,
    /// Number of the container; it decides over the host ports.
    pub(crate) index: usize,
    /// Whether the chain may be one of ours only.
    pub(crate) ours: bool,
}

/// One chain: the plugins of a list.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    chain: fn(&Scope<'_>) -> Vec<Value>,
}

impl Row {
    /// The plugins, with what the runtime adds for capabilities.
    pub(crate) fn chain(&self, scope: &Scope<'_>) -> Vec<Value> {
        (self.chain)(scope)
    }
}

/// Of the table, in its order.
pub(crate) const ROWS: &[Row] = &[
    Row { key: "loopback", title: "loopback", chain: |_| vec![json!({ "type": "loopback" })] },
    Row { key: "bridge", title: "bridge + host-local", chain: |scope| vec![bridge(scope, false)] },
    Row { key: "masq", title: "bridge(masq) + host-local", chain: |scope| vec![bridge(scope, true)] },
    Row { key: "masq-nft", title: "same, nftables", chain: |scope| vec![nft_bridge(scope)] },
    Row {
        key: "ptp",
        title: "ptp + host-local",
        chain: |scope| vec![json!({ "type": "ptp", "ipam": host_local(scope, &["10.5.0.0/16"]) })],
    },
    Row {
        key: "portmap",
        title: "bridge + portmap(2)",
        chain: |scope| vec![bridge(scope, false), portmap(scope, None)],
    },
    Row {
        key: "portmap-nft",
        title: "same, nftables",
        chain: |scope| vec![bridge(scope, false), portmap(scope, Some("nftables"))],
    },
    Row { key: "bandwidth", title: "bridge + bandwidth", chain: |scope| vec![bridge(scope, false), bandwidth()] },
    Row { key: "firewall", title: "bridge + firewall", chain: |scope| vec![bridge(scope, false), firewall()] },
    Row {
        key: "macvlan",
        title: "macvlan + static",
        chain: |_| {
            let ipam = json!({ "type": "static", "addresses": [{ "address": "10.9.0.2/24", "gateway": "10.9.0.1" }] });
            vec![json!({ "type": "macvlan", "master": "up0", "ipam": ipam })]
        },
    },
    Row {
        key: "dual",
        title: "bridge, dual stack",
        chain: |scope| {
            let ipam = host_local(scope, &["10.5.0.0/16", "fd00:5::/64"]);
            vec![json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam })]
        },
    },
    Row {
        key: "full",
        title: "full: bridge(masq) portmap firewall bandwidth tuning",
        chain: |scope| full(bridge(scope, true), portmap(scope, None)),
    },
    Row {
        key: "fast",
        title: "full, fast form (peers: full)",
        chain: |scope| {
            let chain = full(bridge(scope, true), portmap(scope, None));
            if scope.ours { vec![fast(chain)] } else { chain }
        },
    },
    Row {
        key: "full-nft",
        title: "full, nftables",
        chain: |scope| full(nft_bridge(scope), portmap(scope, Some("nftables"))),
    },
    Row {
        key: "fast-nft",
        title: "full, nftables, fast form (peers: full, nftables)",
        chain: |scope| {
            let chain = full(nft_bridge(scope), portmap(scope, Some("nftables")));
            if scope.ours { vec![fast(chain)] } else { chain }
        },
    },
];

/// The row of this key.
pub(crate) fn row(key: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.key == key)
}

/// IPAM by host-local with one range for each subnet.
pub(crate) fn host_local(scope: &Scope<'_>, subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    json!({ "type": "host-local", "dataDir": scope.data_dir, "ranges": ranges })
}

fn bridge(scope: &Scope<'_>, masquerade: bool) -> Value {
    let ipam = host_local(scope, &["10.5.0.0/16"]);
    json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": masquerade, "ipam": ipam })
}

fn nft_bridge(scope: &Scope<'_>) -> Value {
    let mut bridge = bridge(scope, true);
    bridge["ipMasqBackend"] = "nftables".into();
    bridge
}

fn portmap(scope: &Scope<'_>, backend: Option<&str>) -> Value {
    let port = 10_000 + 2 * scope.index;
    let mappings = json!([
        { "hostPort": port, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": port + 1, "containerPort": 53, "protocol": "udp" },
    ]);
    let mut plugin = json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true },
        "runtimeConfig": { "portMappings": mappings } });
    if let Some(backend) = backend {
        plugin["backend"] = backend.into();
    }
    plugin
}

fn firewall() -> Value {
    json!({ "type": "firewall" })
}

fn bandwidth() -> Value {
    json!({ "type": "bandwidth", "ingressRate": 80_000_000, "ingressBurst": 8_000_000,
        "egressRate": 80_000_000, "egressBurst": 8_000_000 })
}

fn full(bridge: Value, portmap: Value) -> Vec<Value> {
    let tuning = json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "500" } });
    vec![bridge, portmap, firewall(), bandwidth(), tuning]
}

/// The chain as one plugin of type `outrigger`; what the runtime gave to the inner plugins it now gives to that.
fn fast(mut chain: Vec<Value>) -> Value {
    let mut runtime = serde_json::Map::new();
    let mut capabilities = serde_json::Map::new();
    for plugin in &mut chain {
        let Some(plugin) = plugin.as_object_mut() else { continue };
        if let Some(Value::Object(given)) = plugin.remove("runtimeConfig") {
            capabilities.extend(given.keys().map(|key| (key.clone(), true.into())));
            runtime.extend(given);
        }
    }
    json!({ "type": "outrigger", "capabilities": capabilities, "runtimeConfig": runtime, "plugins": chain })
}
