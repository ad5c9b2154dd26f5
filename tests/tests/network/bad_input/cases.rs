//! The calls that must fail for what is in them or around them, without anything that was there before.

use serde_json::{Value, json};

/// What stands where a hint is wanted that only the private host can give.
pub(super) const NETNS: &str = "/run/netns/c1";

/// A call that must fail.
pub(super) struct Bad {
    pub(super) name: String,
    pub(super) plugin: &'static str,
    pub(super) command: &'static str,
    /// Variables that differ from a good call; an empty value takes the variable away.
    pub(super) env: Vec<(&'static str, String)>,
    pub(super) stdin: String,
    /// Shell lines that prepare the host.
    pub(super) setup: &'static str,
}

fn host_local() -> Value {
    json!({ "type": "host-local", "subnet": "10.95.0.0/24" })
}

/// A good configuration of each plugin, that one thing is then made wrong with.
pub(super) fn good(plugin: &str) -> Value {
    let mut config = match plugin {
        "bridge" => json!({ "bridge": "cni0", "isGateway": true, "ipam": host_local() }),
        "ptp" | "dummy" | "tap" | "host-local" => json!({ "ipam": host_local() }),
        "macvlan" | "ipvlan" => json!({ "master": "m0", "ipam": host_local() }),
        "vlan" => json!({ "master": "m0", "vlanId": 5, "ipam": host_local() }),
        "host-device" => json!({ "device": "m0", "ipam": host_local() }),
        "static" => json!({ "ipam": { "type": "static", "addresses": [{ "address": "10.95.0.2/24" }] } }),
        "dhcp" => json!({ "ipam": { "type": "dhcp", "daemonSocketPath": "/run/none.sock" } }),
        "vrf" => json!({ "vrfname": "blue" }),
        "bandwidth" => json!({ "ingressRate": 1000, "ingressBurst": 1000 }),
        "portmap" => {
            json!({ "runtimeConfig": { "portMappings": [{ "hostPort": 80, "containerPort": 80, "protocol": "tcp" }] } })
        }
        "outrigger" => json!({ "plugins": [{ "type": "loopback" }] }),
        _ => json!({}),
    };
    if ["bandwidth", "firewall", "portmap", "sbr", "tuning", "vrf"].contains(&plugin) {
        config["prevResult"] = json!({ "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": NETNS }],
            "ips": [{ "address": "10.95.0.2/24", "interface": 0 }] });
    }
    config["cniVersion"] = json!("1.0.0");
    config["name"] = json!("bad");
    config["type"] = json!(plugin);
    config
}

fn bad(name: impl Into<String>, plugin: &'static str, change: impl FnOnce(&mut Value)) -> Bad {
    let mut config = good(plugin);
    change(&mut config);
    Bad { name: name.into(), plugin, command: "ADD", env: Vec::new(), stdin: config.to_string(), setup: "true" }
}

impl Bad {
    fn on(mut self, setup: &'static str) -> Self {
        self.setup = setup;
        self
    }

    fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.push((name, value.to_owned()));
        self
    }

    fn command(mut self, command: &'static str) -> Self {
        self.command = command;
        self
    }

    fn stdin(mut self, stdin: &str) -> Self {
        stdin.clone_into(&mut self.stdin);
        self
    }
}

pub(super) const MASTER: &str = "ip link add m0 type veth peer name m1; ip link set m0 up; ip link set m1 up";
/// What flannel's daemon writes.
pub(super) const SUBNET_ENV: &str = "mkdir -p /run/flannel; printf '%s\\n' FLANNEL_NETWORK=10.95.0.0/16 \
    FLANNEL_SUBNET=10.95.0.1/24 FLANNEL_MTU=1450 FLANNEL_IPMASQ=true > /run/flannel/subnet.env";
const ETH0: &str = "ip -n c1 link add eth0 type veth peer name other";

fn key(plugin: &'static str, key: &'static str, value: Value) -> Bad {
    bad(format!("{plugin}: {key} is {value}"), plugin, |config| config[key] = value)
}

fn ipam(plugin: &'static str, key: &'static str, value: Value) -> Bad {
    bad(format!("{plugin}: ipam.{key} is {value}"), plugin, |config| config["ipam"][key] = value)
}

pub(super) fn table() -> Vec<Bad> {
    let keep = |_: &mut Value| ();
    let mut table = Vec::new();
    // The environment.
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"] {
        table.push(bad(format!("without {name}"), "bridge", keep).env(name, ""));
    }
    for id in ["../x", "a/b", "-x", ".x", "a b", "a\nb"] {
        table.push(bad(format!("container id {id:?}"), "bridge", keep).env("CNI_CONTAINERID", id));
    }
    for ifname in ["sixteen-bytes-xx", "..", ".", "a/b", "a:b", "a b"] {
        table.push(bad(format!("interface name {ifname:?}"), "ptp", keep).env("CNI_IFNAME", ifname));
    }
    for command in ["add", "FROB", "ADD ", "VERSION2"] {
        table.push(bad(format!("command {command:?}"), "ptp", keep).command(command));
    }
    for args in ["novalue", "=x", "a=b=c", "A=1;;B"] {
        table.push(bad(format!("CNI_ARGS {args:?}"), "host-local", keep).env("CNI_ARGS", args));
    }
    table.push(bad("CNI_ARGS MAC is none", "bridge", keep).env("CNI_ARGS", "MAC=zz"));
    table.push(bad("CNI_ARGS IP is none", "host-local", keep).env("CNI_ARGS", "IP=ten"));
    table.push(bad("CNI_ARGS IP is outside", "host-local", keep).env("CNI_ARGS", "IP=192.0.2.1"));
    table.push(bad("CNI_ARGS IP is the gateway", "host-local", keep).env("CNI_ARGS", "IP=10.95.0.1"));
    table.push(bad("CNI_ARGS IP has no length", "static", keep).env("CNI_ARGS", "IP=10.95.0.7"));
    // Namespaces.
    for plugin in ["bridge", "ptp", "loopback", "macvlan", "host-device", "tuning", "sbr"] {
        table.push(
            bad(format!("{plugin}: no such namespace"), plugin, keep).env("CNI_NETNS", "/run/netns/none").on(MASTER),
        );
        table.push(
            bad(format!("{plugin}: a file for a namespace"), plugin, keep).env("CNI_NETNS", "/etc/hostname").on(MASTER),
        );
    }
    table.push(bad("a mount namespace for a network namespace", "ptp", keep).env("CNI_NETNS", "/proc/self/ns/mnt"));
    table.push(bad("a directory for a namespace", "ptp", keep).env("CNI_NETNS", "/run/netns"));
    table.push(bad("the host's own namespace", "ptp", keep).env("CNI_NETNS", "/proc/self/ns/net"));
    // Standard input.
    for (name, stdin) in [
        ("empty", ""),
        ("junk", "junk"),
        ("a list", "[]"),
        ("a number", "7"),
        ("null", "null"),
        ("half", "{\"name\":"),
        ("trailing junk", "{\"cniVersion\":\"1.0.0\",\"name\":\"x\"} x"),
        ("a text", "\"x\""),
        ("no name", "{\"cniVersion\":\"1.0.0\"}"),
        ("version 9.9.9", "{\"cniVersion\":\"9.9.9\",\"name\":\"x\"}"),
        ("version is a number", "{\"cniVersion\":1,\"name\":\"x\"}"),
        ("version is no version", "{\"cniVersion\":\"new\",\"name\":\"x\"}"),
        ("name is a number", "{\"cniVersion\":\"1.0.0\",\"name\":1}"),
        ("name climbs", "{\"cniVersion\":\"1.0.0\",\"name\":\"../x\"}"),
        ("name is empty", "{\"cniVersion\":\"1.0.0\",\"name\":\"\"}"),
    ] {
        table.push(bad(format!("standard input is {name}"), "bridge", keep).stdin(stdin));
    }
    table.push(bad("DEL: standard input is junk", "bridge", keep).command("DEL").stdin("junk"));
    table.push(bad("GC of an old configuration", "bridge", keep).command("GC"));
    table.push(bad("STATUS of an old configuration", "host-local", keep).command("STATUS"));
    table.push(
        bad("CHECK of an old configuration", "bridge", |config| config["cniVersion"] = json!("0.3.1")).command("CHECK"),
    );
    table.push(bad("GC without a list", "host-local", |config| config["cniVersion"] = json!("1.1.0")).command("GC"));
    for plugin in ["bridge", "ptp", "macvlan", "host-device", "tuning", "portmap", "firewall", "bandwidth"] {
        let drop_result = |config: &mut Value| drop(config.as_object_mut().map(|config| config.remove("prevResult")));
        table.push(bad(format!("{plugin}: CHECK without prevResult"), plugin, drop_result).command("CHECK").on(MASTER));
    }
    // Keys of the wrong type or out of range.
    for (plugin, name, value) in [
        ("bridge", "bridge", json!(7)),
        ("bridge", "bridge", json!("a-name-that-is-too-long")),
        ("bridge", "bridge", json!("a/b")),
        ("bridge", "mtu", json!("large")),
        ("bridge", "mtu", json!(-1)),
        ("bridge", "mtu", json!(1.5)),
        ("bridge", "mtu", json!(1_u64 << 40)),
        ("bridge", "isGateway", json!("perhaps")),
        ("bridge", "isGateway", json!(1)),
        ("bridge", "hairpinMode", json!([])),
        ("bridge", "vlan", json!(4095)),
        ("bridge", "vlan", json!(-1)),
        ("bridge", "vlan", json!("five")),
        ("bridge", "vlanTrunk", json!([{ "id": 5000 }])),
        ("bridge", "vlanTrunk", json!([{ "minID": 9, "maxID": 3 }])),
        ("bridge", "ipMasq", json!({})),
        ("bridge", "ipam", json!([])),
        ("bridge", "ipam", json!("host-local")),
        ("bridge", "dns", json!("192.0.2.53")),
        ("bridge", "runtimeConfig", json!([])),
        ("bridge", "runtimeConfig", json!({ "mac": "zz" })),
        ("bridge", "prevResult", json!("x")),
        ("ptp", "mtu", json!("large")),
        ("ptp", "mtu", json!(1_u64 << 40)),
        ("ptp", "ipMasq", json!("so")),
        ("macvlan", "mode", json!("warp")),
        ("macvlan", "mode", json!(1)),
        ("macvlan", "mtu", json!(9000)),
        ("macvlan", "master", json!("none0")),
        ("macvlan", "master", json!(1)),
        ("macvlan", "mac", json!("zz")),
        ("ipvlan", "mode", json!("l9")),
        ("ipvlan", "master", json!("none0")),
        ("vlan", "vlanId", json!(5000)),
        ("vlan", "vlanId", json!(-1)),
        ("vlan", "master", json!("none0")),
        ("vlan", "master", json!("")),
        ("host-device", "device", json!("none0")),
        ("host-device", "device", json!(1)),
        ("host-device", "device", json!("")),
        ("vrf", "vrfname", json!("")),
        ("vrf", "vrfname", json!("a-name-that-is-too-long")),
        ("vrf", "table", json!("one")),
        (
            "portmap",
            "runtimeConfig",
            json!({ "portMappings": [{ "hostPort": 70000, "containerPort": 80, "protocol": "tcp" }] }),
        ),
        (
            "portmap",
            "runtimeConfig",
            json!({ "portMappings": [{ "hostPort": 80, "containerPort": -1, "protocol": "tcp" }] }),
        ),
        (
            "portmap",
            "runtimeConfig",
            json!({ "portMappings": [{ "hostPort": 80, "containerPort": 80, "protocol": "ipx" }] }),
        ),
        (
            "portmap",
            "runtimeConfig",
            json!({ "portMappings": [{ "hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": "ten" }] }),
        ),
        ("portmap", "runtimeConfig", json!({ "portMappings": "80:80" })),
        ("portmap", "markMasqBit", json!(32)),
        ("portmap", "markMasqBit", json!(-1)),
        ("portmap", "backend", json!("abacus")),
        ("portmap", "snat", json!("so")),
        ("portmap", "prevResult", json!(7)),
        ("portmap", "prevResult", Value::Null),
        ("firewall", "backend", json!("abacus")),
        ("firewall", "ingressPolicy", json!("maybe")),
        ("firewall", "iptablesAdminChainName", json!(7)),
        ("firewall", "prevResult", json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.0.0.300/24" }] })),
        ("firewall", "prevResult", Value::Null),
        ("bandwidth", "ingressRate", json!(-1)),
        ("bandwidth", "ingressBurst", json!(0)),
        ("bandwidth", "ingressRate", json!("fast")),
        ("bandwidth", "egressRate", json!(5)),
        ("bandwidth", "ingressBurst", json!(1_u64 << 40)),
        ("bandwidth", "prevResult", Value::Null),
        ("tuning", "sysctl", json!([])),
        ("tuning", "sysctl", json!({ "kernel.hostname": "x" })),
        ("tuning", "sysctl", json!({ "net/../kernel/hostname": "x" })),
        ("tuning", "sysctl", json!({ "net.ipv4.none": "1" })),
        ("tuning", "mac", json!("zz")),
        ("tuning", "mtu", json!("large")),
        ("tuning", "promisc", json!("so")),
        ("tuning", "prevResult", Value::Null),
        ("sbr", "prevResult", Value::Null),
        ("sbr", "table", json!("one")),
        ("vrf", "prevResult", Value::Null),
        ("outrigger", "plugins", json!([])),
        ("outrigger", "plugins", json!("bridge")),
        ("outrigger", "plugins", json!([{ "type": "../x" }])),
        ("outrigger", "plugins", json!([{ "type": "no-such" }])),
        ("outrigger", "plugins", json!([{ "type": "outrigger" }])),
        ("outrigger", "plugins", json!([{}])),
        ("flannel", "subnetFile", json!("/run/none.env")),
        ("flannel", "delegate", json!("bridge")),
    ] {
        table.push(key(plugin, name, value).on("ip link add m0 type veth peer name m1; ip link set m0 up; ip -n c1 link add eth0 type veth peer name other"));
    }
    for (name, value) in [
        ("subnet", json!("ten")),
        ("subnet", json!("10.95.0.1/24")),
        ("subnet", json!("10.95.0.0/31")),
        ("subnet", json!("fd95::/127")),
        ("subnet", json!(7)),
        ("rangeStart", json!("10.96.0.1")),
        ("rangeEnd", json!("10.96.0.1")),
        ("rangeStart", json!("ten")),
        ("gateway", json!("ten")),
        ("ranges", json!([[{ "subnet": "10.95.0.128/25" }]])),
        ("ranges", json!("all")),
        ("ranges", json!([[]])),
        ("routes", json!([{ "dst": "ten" }])),
        ("routes", json!([{ "dst": "0.0.0.0/0", "gw": "ten" }])),
        ("resolvConf", json!("/run/none.conf")),
        ("dataDir", json!("/proc/none")),
        ("type", json!("")),
        ("type", json!("../host-local")),
        ("type", json!("no-such-ipam")),
        ("type", json!(7)),
    ] {
        let plugin = if name == "type" { "ptp" } else { "host-local" };
        table.push(ipam(plugin, name, value));
    }
    for (name, value) in [
        ("addresses", json!([{ "address": "10.95.0.2" }])),
        ("addresses", json!([{ "address": "ten/24" }])),
        ("addresses", json!("ten")),
        ("addresses", json!([{ "address": "10.95.0.2/33" }])),
        ("addresses", json!([{ "address": "10.95.0.2/24", "gateway": "ten" }])),
        ("routes", json!([{ "gw": "10.95.0.1" }])),
    ] {
        table.push(ipam("static", name, value));
    }
    // Half states.
    table.push(
        bad("the bridge's name is another link's", "bridge", keep).on("ip link add cni0 type veth peer name cni1"),
    );
    table.push(bad("the interface's name is taken", "bridge", keep).on(ETH0));
    table.push(bad("ptp: the interface's name is taken", "ptp", keep).on(ETH0));
    table.push(
        bad("macvlan: the interface's name is taken", "macvlan", keep)
            .on("ip link add m0 type veth peer name m1; ip -n c1 link add eth0 type veth peer name other"),
    );
    table.push(bad("host-device: the device is lo", "host-device", |config| config["device"] = json!("lo")));
    table.push(
        bad("the bridge has another gateway", "bridge", keep)
            .on("ip link add cni0 type bridge; ip addr add 10.95.0.254/24 dev cni0"),
    );
    table.push(bad("hairpin and promiscuous", "bridge", |config| {
        config["hairpinMode"] = json!(true);
        config["promiscMode"] = json!(true);
    }));
    table.push(bad("two marks", "portmap", |config| {
        config["markMasqBit"] = json!(5);
        config["externalSetMarkChain"] = json!("X");
    }));
    table.push(
        bad("the range is used up", "host-local", |config| config["ipam"]["subnet"] = json!("10.95.0.0/30"))
            .on("mkdir -p /var/lib/cni/networks/bad; printf 'x\\r\\neth0' > /var/lib/cni/networks/bad/10.95.0.2"),
    );
    table.push(
        bad("the range is used up, STATUS", "host-local", |config| {
            config["ipam"]["subnet"] = json!("10.95.0.0/30");
            config["cniVersion"] = json!("1.1.0");
        })
        .command("STATUS")
        .on("mkdir -p /var/lib/cni/networks/bad; printf 'x\\r\\neth0' > /var/lib/cni/networks/bad/10.95.0.2"),
    );
    table.push(
        bad("the attachment has an address", "host-local", keep)
            .on("mkdir -p /var/lib/cni/networks/bad; printf 'c1\\r\\neth0' > /var/lib/cni/networks/bad/10.95.0.2"),
    );
    table
        .push(bad("the state directory is read-only", "host-local", keep).on("mount -t tmpfs -o ro none /var/lib/cni"));
    table.push(
        bad("the state directory is a file", "host-local", keep)
            .on("mkdir -p /var/lib/cni; touch /var/lib/cni/networks"),
    );
    for delegate in [json!({ "name": "x" }), json!({ "ipam": {} }), json!({ "type": 7 }), json!({ "type": "flannel" })]
    {
        table.push(key("flannel", "delegate", delegate).on(SUBNET_ENV));
    }
    table.push(
        bad("flannel: half of the daemon's file", "flannel", keep)
            .on("mkdir -p /run/flannel; echo FLANNEL_NETWORK=10.95.0.0/16 > /run/flannel/subnet.env"),
    );
    table.push(bad("dhcp without its daemon", "dhcp", keep));
    table.push(
        bad("CHECK of an address that is nobody's", "host-local", |config| {
            config["prevResult"] = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.95.0.2/24" }] });
        })
        .command("CHECK"),
    );
    for plugin in ["win-bridge", "win-overlay"] {
        table.push(bad(format!("{plugin} on Linux"), plugin, keep));
    }
    table
}
