//! How to call the plugins that everybody knows: configurations, what they need on the host, what CHECK has to notice.

use std::fmt;

use outrigger_verify_report::{Level, Unmet, Verdict};
use serde_json::{Value, json};

use crate::cases::effects;
use crate::host::Container;
use crate::scene::{IPAM, Scene, Subject};

/// The part that a plugin plays in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Makes an interface.
    Main,
    /// Hands out addresses to a main plugin.
    Ipam,
    /// Changes what an earlier plugin made.
    Meta,
    /// Brings up `lo`.
    Loopback,
}

/// Damage that CHECK must notice.
#[derive(Debug, Clone, Copy)]
pub struct Damage {
    /// Name of the case.
    pub name: &'static str,
    /// What is damaged, in words.
    pub title: &'static str,
    /// Whether the line runs in the container.
    pub inside: bool,
    /// A shell line.
    pub line: &'static str,
}

/// A case about what one plugin does in particular.
pub struct Effect {
    /// Group and name.
    pub id: &'static str,
    /// How binding it is.
    pub level: Level,
    /// The requirement.
    pub title: &'static str,
    /// The case.
    pub body: fn(&std::sync::Arc<Subject>) -> Verdict,
}

/// How to call a plugin.
pub struct Profile {
    /// The plugin's usual name.
    pub name: &'static str,
    /// Its part.
    pub kind: Kind,
    /// `CNI_IFNAME`.
    pub ifname: &'static str,
    /// Why the cases that need a successful ADD cannot run; none if they can.
    pub no_add: Option<&'static str>,
    /// Whether it calls the IPAM plugin that its configuration names.
    pub delegates: bool,
    /// Its plugin object for a container.
    pub config: Box<dyn Fn(&str) -> Value + Send + Sync>,
    /// Makes what it needs on the host; skips if the kernel cannot.
    pub prepare: fn(&Scene) -> Verdict,
    /// Makes what it needs for each container.
    pub each: fn(&Scene, &Container) -> Verdict,
    /// What CHECK must notice.
    pub damages: &'static [Damage],
    /// What it does in particular.
    pub effects: &'static [Effect],
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

const LINK_GONE: Damage =
    Damage { name: "interface-gone", title: "the interface is gone", inside: true, line: "ip link del eth0" };
const ADDRESS_GONE: Damage = Damage {
    name: "address-gone",
    title: "the address was taken off the interface",
    inside: true,
    line: "ip addr flush dev eth0 scope global",
};
const ROUTE_GONE: Damage =
    Damage { name: "route-gone", title: "the default route is gone", inside: true, line: "ip route del default" };
/// What every plugin that makes an interface can see.
const GENERIC: &[Damage] = &[LINK_GONE, ADDRESS_GONE];
const INTERFACE: &[Damage] = &[LINK_GONE, ADDRESS_GONE, ROUTE_GONE];
const RULES: &[Damage] =
    &[Damage { name: "rules-gone", title: "the packet rules were flushed", inside: false, line: "nft flush ruleset" }];
const BANDWIDTH: &[Damage] = &[
    Damage {
        name: "ingress-shaper-gone",
        title: "the queue on the host's end of the pair is gone",
        inside: false,
        line: "for link in $(ls /sys/class/net | grep '^up'); do tc qdisc del dev $link root; done",
    },
    Damage {
        name: "egress-shaper-gone",
        title: "the interface that shapes egress is gone",
        inside: false,
        line: "for link in $(ip -o link show type ifb | sed 's/^[0-9]*: \\([^:@]*\\).*/\\1/'); do ip link del $link; done",
    },
];
const TUNING: &[Damage] = &[
    Damage { name: "mtu-changed", title: "the MTU was changed", inside: true, line: "ip link set eth0 mtu 1300" },
    Damage {
        name: "sysctl-changed",
        title: "a sysctl was changed",
        inside: true,
        line: "echo 0 > /proc/sys/net/ipv4/conf/eth0/log_martians",
    },
];
const LEASE: &[Damage] = &[Damage {
    name: "lease-gone",
    title: "the file that holds the address is gone",
    inside: false,
    line: "rm -f /var/lib/cni/networks/verify-net/10.79.0.*",
}];

/// A link of the host that others can be made on, with a far end that makes its carrier.
fn master(scene: &Scene) -> Verdict {
    scene.host.sh("ip link add m0 type veth peer name m1; ip link set m0 up; ip link set m1 up").map(drop)
}

fn master_for(scene: &Scene, kind: &str) -> Verdict {
    master(scene)?;
    if scene.host.sh(&format!("ip link add probe link m0 type {kind}; ip link del probe")).is_err() {
        return Err(Unmet::skip(format!("this kernel cannot make a link of type {kind}")));
    }
    Ok(())
}

fn link_type(scene: &Scene, kind: &str) -> Verdict {
    if scene.host.sh(&format!("ip link add probe type {kind}; ip link del probe")).is_err() {
        return Err(Unmet::skip(format!("this kernel cannot make a link of type {kind}")));
    }
    Ok(())
}

fn flannel(scene: &Scene) -> Verdict {
    for delegate in ["bridge", "host-local"] {
        if !scene.host.plugins().join(delegate).exists() {
            return Err(Unmet::skip(format!("it needs {delegate} in the same directory")));
        }
    }
    fs_err::create_dir_all("/run/flannel")?;
    let text = "FLANNEL_NETWORK=10.81.0.0/16\nFLANNEL_SUBNET=10.81.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    Ok(fs_err::write("/run/flannel/subnet.env", text)?)
}

/// The device that a container gets from host-device.
pub(crate) fn device(id: &str) -> String {
    format!("d{}", id.get(..2).unwrap_or(id))
}

fn make_device(scene: &Scene, container: &Container) -> Verdict {
    let name = device(&container.name);
    scene.host.sh(&format!("ip link add {name} type veth peer name {name}x; ip link set {name}x up")).map(drop)
}

/// A host port that no other container of a case has.
fn port(id: &str) -> u32 {
    8000 + id.bytes().fold(0, |sum, byte| (sum * 31 + u32::from(byte)) % 1000)
}

fn ipam() -> Value {
    json!({ "ipam": { "type": IPAM } })
}

fn with_ipam(mut object: Value) -> Value {
    object["ipam"] = json!({ "type": IPAM });
    object
}

impl Profile {
    fn new(name: &'static str, kind: Kind, config: impl Fn(&str) -> Value + Send + Sync + 'static) -> Self {
        Self {
            name,
            kind,
            ifname: "eth0",
            no_add: None,
            delegates: false,
            config: Box::new(config),
            prepare: |_| Ok(()),
            each: |_, _| Ok(()),
            damages: &[],
            effects: &[],
        }
    }

    /// A main plugin that delegates to IPAM.
    fn main(name: &'static str, config: impl Fn(&str) -> Value + Send + Sync + 'static) -> Self {
        Self { delegates: true, damages: INTERFACE, ..Self::new(name, Kind::Main, config) }
    }

    /// The profile of a plugin known by its name.
    pub fn known(name: &str) -> Option<Self> {
        Some(match name {
            "bridge" => Self {
                effects: effects::BRIDGE,
                ..Self::main("bridge", |_| with_ipam(json!({ "bridge": "cni0", "isGateway": true })))
            },
            "ptp" => Self { effects: effects::PTP, ..Self::main("ptp", |_| ipam()) },
            "macvlan" => Self {
                prepare: |scene| master_for(scene, "macvlan"),
                effects: effects::MACVLAN,
                ..Self::main("macvlan", |_| with_ipam(json!({ "master": "m0" })))
            },
            "ipvlan" => Self {
                prepare: |scene| master_for(scene, "ipvlan"),
                ..Self::main("ipvlan", |_| with_ipam(json!({ "master": "m0" })))
            },
            "vlan" => Self {
                prepare: |scene| master_for(scene, "vlan id 7"),
                ..Self::main("vlan", |id| with_ipam(json!({ "master": "m0", "vlanId": 1 + port(id) % 4000 })))
            },
            "dummy" => Self { prepare: |scene| link_type(scene, "dummy"), ..Self::main("dummy", |_| ipam()) },
            "tap" => Self { prepare: tap, effects: effects::TAP, ..Self::main("tap", |_| ipam()) },
            "host-device" => Self {
                each: make_device,
                effects: effects::HOST_DEVICE,
                ..Self::main("host-device", |id| with_ipam(json!({ "device": device(id) })))
            },
            "flannel" => Self {
                prepare: flannel,
                damages: INTERFACE,
                ..Self::new("flannel", Kind::Main, |_| json!({ "delegate": { "isDefaultGateway": true } }))
            },
            "outrigger" => Self {
                damages: INTERFACE,
                ..Self::new("outrigger", Kind::Main, |id| {
                    json!({ "capabilities": { "portMappings": true },
                        "runtimeConfig": { "portMappings": [{ "hostPort": port(id), "containerPort": 80, "protocol": "tcp" }] },
                        "plugins": [
                            { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": { "type": IPAM } },
                            { "type": "portmap", "capabilities": { "portMappings": true } },
                        ] })
                })
            },
            "loopback" => Self {
                ifname: "lo",
                damages: &[Damage { name: "lo-down", title: "lo is down", inside: true, line: "ip link set lo down" }],
                effects: effects::LOOPBACK,
                ..Self::new("loopback", Kind::Loopback, |_| json!({}))
            },
            "host-local" => Self {
                damages: LEASE,
                effects: effects::HOST_LOCAL,
                ..Self::new("host-local", Kind::Ipam, |_| {
                    json!({ "type": "ptp", "ipam": { "type": "host-local", "subnet": "10.79.0.0/24",
                        "routes": [{ "dst": "0.0.0.0/0" }] } })
                })
            },
            "static" => Self {
                effects: effects::STATIC,
                ..Self::new("static", Kind::Ipam, |_| {
                    json!({ "type": "ptp", "ipam": { "type": "static",
                        "addresses": [{ "address": "10.80.0.2/24", "gateway": "10.80.0.1" }, { "address": "fd80::2/64" }],
                        "routes": [{ "dst": "0.0.0.0/0" }] } })
                })
            },
            "dhcp" => Self {
                no_add: Some("it needs its daemon and a DHCP server"),
                ..Self::new("dhcp", Kind::Ipam, |_| json!({ "type": "macvlan", "ipam": { "type": "dhcp" } }))
            },
            "portmap" => Self {
                damages: RULES,
                effects: effects::PORTMAP,
                ..Self::new("portmap", Kind::Meta, |id| {
                    json!({ "capabilities": { "portMappings": true }, "runtimeConfig": { "portMappings":
                        [{ "hostPort": port(id), "containerPort": 80, "protocol": "tcp" }] } })
                })
            },
            "firewall" => {
                Self { damages: RULES, effects: effects::FIREWALL, ..Self::new("firewall", Kind::Meta, |_| json!({})) }
            }
            "bandwidth" => Self {
                prepare: |scene| link_type(scene, "ifb"),
                damages: BANDWIDTH,
                effects: effects::BANDWIDTH,
                ..Self::new(
                    "bandwidth",
                    Kind::Meta,
                    |_| json!({ "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 400_000 }),
                )
            },
            "tuning" => Self {
                damages: TUNING,
                effects: effects::TUNING,
                ..Self::new(
                    "tuning",
                    Kind::Meta,
                    |_| json!({ "sysctl": { "net.ipv4.conf.eth0.log_martians": "1" }, "mtu": 1400, "promisc": true }),
                )
            },
            "sbr" => Self { effects: effects::SBR, ..Self::new("sbr", Kind::Meta, |_| json!({})) },
            "vrf" => Self {
                prepare: |scene| link_type(scene, "vrf table 99"),
                ..Self::new("vrf", Kind::Meta, |_| json!({ "vrfname": "blue" }))
            },
            _ => return None,
        })
    }

    /// The profile of a plugin that nobody knows, from a plugin object that works for it.
    pub fn generic(kind: Kind, config: Option<Value>) -> Self {
        let no_add = config.is_none().then_some("a configuration that works is wanted for it: --config FILE");
        let config = config.unwrap_or_else(|| json!({}));
        let delegates = kind == Kind::Main && config["ipam"]["type"].is_string();
        let ifname = if kind == Kind::Loopback { "lo" } else { "eth0" };
        let damages = if kind == Kind::Main { GENERIC } else { &[] };
        Self { ifname, no_add, delegates, damages, ..Self::new("generic", kind, move |_| config.clone()) }
    }
}

fn tap(scene: &Scene) -> Verdict {
    if scene.host.sh("ip tuntap add probe mode tap; ip link del probe").is_err() {
        return Err(Unmet::skip("this kernel cannot make tap links"));
    }
    Ok(())
}
