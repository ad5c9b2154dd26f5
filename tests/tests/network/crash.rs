//! Every plugin killed before its n-th outside effect, for every n, in ADD and in DEL: what it was about to do is undone
//! by a DEL, or by a GC when the container is gone.
//!
//! The effects are system calls: requests to the kernel's network stack, and changes of files and devices. A first round
//! tells which of them a command has. strace(1) kills the plugin when it is about to make the n-th call of one kind; for the
//! next round n grows, until a round ends unharmed. A container of the same network lives on beside it and must keep all
//! that is its own, on the host and inside, and pass CHECK. A GC is tried at every second place.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use outrigger_testing::{NetHost, PluginOutput};
use outrigger_tests::{eprintln_skip, eventually};
use serde_json::{Value, json};

use crate::attach::Network;
use crate::common::{Plugins, can_run};

/// Requests to the kernel's network stack; answers to the caller.
const NETWORK: &[&str] = &["sendto", "sendmsg"];
/// The answer to the caller, when all is done.
const ANSWER: &[&str] = &["write"];
/// Changes of files and of devices. What is between opening and writing is seen by the latter.
const FILES: &[&str] = &[
    "write",
    "ioctl",
    "utimensat",
    "symlink",
    "symlinkat",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "ftruncate",
];
/// Far more than any plugin makes of one kind; a sweep that comes here does not end.
const MOST: usize = 200;
/// Links of a removed namespace go in the background.
const PATIENCE: Duration = Duration::from_secs(10);

/// What stays by design: locks, the marks of where an allocator stopped, and notes by which things are found faster, which
/// may be out of date. An empty file of flannel's, from between opening and writing, tells no network whose it is; DEL
/// removes it.
const KEPT_FILES: &str = r"! -name lock ! -name 'last_reserved_ip.*' ! -path '*/.outrigger/*' ! -path '*/.networks/*' ! -path '/run/cni/outrigger/*' ! '(' -name '.*.tmp' -empty ')'";

/// What flannel's daemon writes.
const FLANNEL: &str = r"mkdir -p /run/flannel
printf 'FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n' > /run/flannel/subnet.env";

/// A private host, a chain, and which of its plugins is killed.
struct Sweep {
    host: NetHost,
    network: Network,
    victim: usize,
    /// What the host looks like with only the container that lives on.
    before: String,
    /// The result of the container that lives on.
    lives: Value,
    effects: Vec<&'static str>,
    /// Makes a device for each container, `hd-` and the first letters of its name, for a plugin that takes it away.
    devices: bool,
    scratch: tempfile::TempDir,
    _plugins: Plugins,
}

/// What is done after a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cure {
    /// The runtime deletes the container.
    Del,
    /// The container is gone, and nobody deletes it.
    Gc,
}

impl Cure {
    /// After a kill everywhere, or at every second place: both cures look for the same things.
    const fn step(self) -> usize {
        match self {
            Self::Del => 1,
            Self::Gc => 2,
        }
    }
}

impl Sweep {
    /// A host on which one container was and another is. None if the test cannot run here.
    fn new(test: &str, chain: Vec<Value>, victim: usize, effects: &[&'static [&'static str]]) -> Result<Option<Self>> {
        let Some(mut sweep) = Self::fresh(test, chain, victim, effects)? else { return Ok(None) };
        // One that comes and goes makes what is made once and stays.
        sweep.come_and_go("first", None)?;
        sweep.container("lives")?;
        sweep.lives = sweep.survivor().add(&sweep.host, "lives", "eth0")?;
        sweep.before = sweep.settled(None)?;
        Ok(Some(sweep))
    }

    /// Adds a container, unless there is a result of it, and takes it away.
    fn come_and_go(&self, id: &str, result: Option<Value>) -> Result<()> {
        let result = if let Some(result) = result {
            result
        } else {
            let result = self.attach(id)?;
            self.network_of(id).check(&self.host, id, "eth0", &result)?;
            result
        };
        self.cure(Cure::Del, id, &result)
    }

    /// A host on which nothing was ever attached.
    fn fresh(
        test: &str,
        chain: Vec<Value>,
        victim: usize,
        effects: &[&'static [&'static str]],
    ) -> Result<Option<Self>> {
        let devices = chain[0]["type"] == "host-device";
        if !can_run(test) {
            return Ok(None);
        }
        if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
            eprintln_skip(test, "strace is not installed");
            return Ok(None);
        }
        let plugins = Plugins::install()?;
        let host = NetHost::new()?;
        host.sh("ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up")?;
        let network = Network::new("pods", plugins.dir(), chain);
        host.sh(FLANNEL)?;
        Ok(Some(Self {
            host,
            network,
            victim,
            before: String::new(),
            lives: Value::Null,
            effects: effects.iter().flat_map(|some| some.iter().copied()).collect(),
            devices,
            scratch: tempfile::TempDir::with_prefix("outrigger-crash-")?,
            _plugins: plugins,
        }))
    }

    fn container(&self, id: &str) -> Result<()> {
        self.host.container(id)?;
        if self.devices {
            let device = device(id);
            self.host.sh(&format!("ip link add {device} type veth peer name {device}x; ip link set {device}x up"))?;
        }
        Ok(())
    }

    /// The network's configuration for a container: each has its own device, where it takes one.
    fn network_of(&self, id: &str) -> Network {
        let mut network = self.network.clone();
        if self.devices {
            network.chain[0]["device"] = device(id).into();
        }
        network
    }

    fn attach(&self, id: &str) -> Result<Value> {
        self.container(id)?;
        self.network_of(id).add(&self.host, id, "eth0")
    }

    /// The network as the container that lives on sees it: it has other host ports.
    fn survivor(&self) -> Network {
        let mut network = self.network_of("lives");
        for plugin in &mut network.chain {
            let Some(mappings) = plugin["runtimeConfig"]["portMappings"].as_array_mut() else { continue };
            for mapping in mappings {
                mapping["hostPort"] = json!(mapping["hostPort"].as_u64().unwrap_or_default() + 10);
            }
        }
        network
    }

    fn detach(&self, id: &str, result: &Value) -> Result<()> {
        self.network_of(id).del(&self.host, id, "eth0", result)
    }

    /// Everything that a plugin could leave on the host.
    fn inventory(&self) -> Result<String> {
        self.host.sh(&format!(
            "ip -o link | awk '{{print \"link\", $2, $3 ~ /[<,]UP[,>]/}}' | sort
             ip -o addr | awk '{{print \"address\", $2, $4}}' | sort
             ip route show table all | grep -v ' dev up[01] ' | sed 's/^/route /' | sort
             ip -6 route show table all | grep -v ' dev up[01] ' | sed 's/^/route /' | sort
             tc qdisc show | grep -v noqueue | sort || true
             nft -s list ruleset 2>/dev/null
             find /run/cni /var/lib/cni ! -type d {KEPT_FILES} -exec sh -c 'echo \"file $1: $(tr \"\\r\\n\" \"  \" < $1)\"' sh {{}} \\; \
                 2>/dev/null | sort || true
             if [ -e /run/netns/lives ]; then
                 {{ ip -n lives -o addr | awk '{{print $2, $4}}'; ip -n lives route show table all; ip -n lives rule
                    ip -n lives -6 route show table all; tc -n lives qdisc show; }} | sed 's/^/lives /' | sort
             fi"
        ))
    }

    /// The inventory as soon as it is `wanted`, or at once if nothing is.
    fn settled(&self, wanted: Option<&str>) -> Result<String> {
        // Link-local addresses come a moment after a link, and the kernel's own routes when an address is known to be free.
        let inventory = || -> Result<String> {
            let all = self.inventory()?;
            Ok(all
                .lines()
                .filter(|line| !line.contains("fe80:") && !line.contains(" proto kernel "))
                .fold(String::new(), |text, line| text + line.trim_end() + "\n"))
        };
        let Some(wanted) = wanted else { return inventory() };
        eventually(PATIENCE, || {
            let is = inventory()?;
            ensure!(is == wanted, "left behind or lost:\n{}", difference(wanted, &is));
            Ok(is)
        })
    }

    /// Runs the victim's command, to be killed before its `n`-th call of `effect`; with `Trace::All` only to see which of
    /// the effects it has at all.
    fn traced(&self, command: &str, id: &str, previous: &Value, trace: &Trace<'_>) -> Result<PluginOutput> {
        let network = self.network_of(id);
        let plugin = &network.chain[self.victim];
        let binary = self.network.binary(plugin)?;
        let netns = PathBuf::from(format!("/run/netns/{id}"));
        let mut process = self.host.plugin(&binary, command, id, &netns, "eth0");
        let strace = Command::new("strace");
        let mut traced = self.host.command(strace.get_program().to_str().context("a name")?);
        for (key, value) in process.get_envs() {
            match value {
                Some(value) => traced.env(key, value),
                None => traced.env_remove(key),
            };
        }
        match trace {
            Trace::All(log) => {
                let log = log.to_str().context("a path")?;
                traced.args(["-f", "-qq", "-o", log, "-e", &format!("trace={}", self.effects.join(","))])
            }
            Trace::Kill(effect, n) => traced.args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                &format!("trace={effect}"),
                "-e",
                &format!("inject={effect}:signal=SIGKILL:when={n}"),
            ]),
        };
        traced.arg("--").arg(&binary);
        process = traced;
        NetHost::call(&mut process, &network.config(plugin, previous))
    }

    /// Kills ADD everywhere.
    fn add(&self, cure: Cure) -> Result<usize> {
        self.rounds("ADD", cure, |id, trace| {
            self.container(id)?;
            let mut previous = Value::Null;
            for plugin in &self.network.chain[..self.victim] {
                previous = self.network.call(&self.host, "ADD", plugin, id, "eth0", &previous)?.ok()?;
            }
            Ok((self.traced("ADD", id, &previous, trace)?, Value::Null))
        })
    }

    /// Kills DEL everywhere.
    fn del(&self, cure: Cure) -> Result<usize> {
        self.rounds("DEL", cure, |id, trace| {
            let result = self.attach(id)?;
            for plugin in self.network.chain[self.victim + 1..].iter().rev() {
                self.network.call(&self.host, "DEL", plugin, id, "eth0", &result)?.ok()?;
            }
            Ok((self.traced("DEL", id, &result, trace)?, result))
        })
    }

    /// For each kind of effect that the command has: n = 1, 2, … until the plugin ends unharmed. Gives the number of kills.
    fn rounds(
        &self,
        command: &str,
        cure: Cure,
        round: impl Fn(&str, &Trace<'_>) -> Result<(PluginOutput, Value)>,
    ) -> Result<usize> {
        let mut kills = 0;
        let log = self.scratch.path().join("effects");
        let id = format!("a-{}", command.to_lowercase());
        let (output, result) = round(&id, &Trace::All(&log))?;
        output.ok().with_context(|| format!("{command}, to see its effects"))?;
        self.cure(cure, &id, &result)?;
        self.settled(Some(&self.before)).with_context(|| format!("{command} unharmed, then {cure:?}"))?;
        let log = fs_err::read_to_string(log)?;
        let seen = |effect: &&&str| log.contains(&format!(" {effect}("));
        for effect in self.effects.iter().filter(seen) {
            for n in (1..=MOST).step_by(cure.step()) {
                let id = format!("{n}-{effect}-{}", command.to_lowercase());
                let what = format!("{command} killed before {effect} number {n}, then {cure:?}");
                let (output, result) = round(&id, &Trace::Kill(effect, n)).with_context(|| what.clone())?;
                let unharmed = output.code.is_some();
                if unharmed {
                    output.ok().with_context(|| format!("{what}: it was not killed"))?;
                }
                self.cure(cure, &id, &result).with_context(|| what.clone())?;
                self.settled(Some(&self.before)).with_context(|| what.clone())?;
                let lives = self.survivor().check(&self.host, "lives", "eth0", &self.lives);
                lives.with_context(|| format!("{what}: CHECK of the container that lives on"))?;
                if unharmed {
                    break;
                }
                kills += 1;
                ensure!(n + cure.step() <= MOST, "{what}: no end");
            }
        }
        Ok(kills)
    }

    fn cure(&self, cure: Cure, id: &str, result: &Value) -> Result<()> {
        match cure {
            Cure::Del => {
                self.detach(id, result)?;
                let left = self.host.container_sh(id, "ip -br link | awk '$1 != \"lo\"'; ip rule; ip -6 rule")?;
                ensure!(!left.contains("eth0") && left.lines().count() == 5, "in the container is left: {left}");
                // Once more, as runtimes do.
                self.detach(id, result)?;
                if self.devices {
                    let device = device(id);
                    self.host.sh(&format!("ip link del {device}")).context("the device did not come back")?;
                }
                self.host.remove_container(id)
            }
            Cure::Gc => {
                self.host.remove_container(id)?;
                if self.devices {
                    // Back on the host, or never left it, or destroyed with the container.
                    self.host.sh(&format!("ip link del {0} || ip link del {0}x || true", device(id)))?;
                }
                self.network.gc(&self.host, &[("lives", "eth0")])
            }
        }
    }

    /// The whole sweep. ADD with both cures; DEL with a second DEL, and with a GC.
    fn run(&self) -> Result<()> {
        let mut kills = 0;
        for cure in [Cure::Del, Cure::Gc] {
            kills += self.add(cure)?;
            kills += self.del(cure)?;
        }
        // Fewer would mean that strace did not see the effects.
        ensure!(kills >= 4, "only {kills} kills");
        Ok(())
    }
}

/// What strace does to a command.
enum Trace<'a> {
    /// Writes all effects to a file.
    All(&'a std::path::Path),
    /// Kills before the n-th call of one effect.
    Kill(&'a str, usize),
}

/// The device of a container; names of containers differ in their first eight characters.
fn device(id: &str) -> String {
    format!("hd-{}", id.chars().filter(char::is_ascii_alphanumeric).take(8).collect::<String>())
}

/// Lines of one text that the other lacks.
fn difference(wanted: &str, is: &str) -> String {
    let (wanted, is): (BTreeSet<&str>, BTreeSet<&str>) = (wanted.lines().collect(), is.lines().collect());
    let more = is.difference(&wanted).map(|line| format!("+ {line}"));
    let fewer = wanted.difference(&is).map(|line| format!("- {line}"));
    more.chain(fewer).collect::<Vec<_>>().join("\n")
}

fn ipam() -> Value {
    json!({ "type": "host-local", "ranges": [[{ "subnet": "10.5.0.0/24" }], [{ "subnet": "fd00:5::/64" }]] })
}

fn v4() -> Value {
    json!({ "type": "host-local", "subnet": "10.5.0.0/24" })
}

fn bridge(masquerade: Option<&str>) -> Value {
    let mut plugin = json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam() });
    if let Some(backend) = masquerade {
        plugin["ipMasq"] = true.into();
        plugin["ipMasqBackend"] = backend.into();
    }
    plugin
}

fn portmap(backend: &str) -> Value {
    let mappings = json!([
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 5300, "containerPort": 53, "protocol": "udp" },
    ]);
    json!({ "type": "portmap", "backend": backend, "capabilities": { "portMappings": true },
        "runtimeConfig": { "portMappings": mappings } })
}

fn bandwidth() -> Value {
    json!({ "type": "bandwidth", "ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": 80_000_000,
        "egressBurst": 8_000_000 })
}

fn tuning() -> Value {
    json!({ "type": "tuning", "mtu": 1400, "promisc": true, "sysctl": { "net.core.somaxconn": "500" } })
}

fn sweep(test: &str, chain: Vec<Value>, victim: usize, effects: &[&'static [&'static str]]) -> Result<()> {
    match Sweep::new(test, chain, victim, effects)? {
        Some(sweep) => sweep.run(),
        None => Ok(()),
    }
}

#[test]
fn bridge_with_masquerade() {
    sweep("bridge_with_masquerade", vec![bridge(Some("iptables"))], 0, &[NETWORK, ANSWER]).unwrap();
}

#[test]
fn bridge_with_masquerade_by_nftables() {
    sweep("bridge_with_masquerade_by_nftables", vec![bridge(Some("nftables"))], 0, &[NETWORK, ANSWER]).unwrap();
}

#[test]
fn ptp() {
    // IPv4 alone: with IPv6 each ADD waits for the kernel's check that nobody else has the address.
    sweep("ptp", vec![json!({ "type": "ptp", "ipMasq": true, "ipam": v4() })], 0, &[NETWORK, ANSWER]).unwrap();
}

#[test]
fn macvlan() {
    sweep("macvlan", vec![json!({ "type": "macvlan", "master": "up0", "ipam": v4() })], 0, &[NETWORK, ANSWER]).unwrap();
}

#[test]
fn files_of_host_local() {
    sweep("files_of_host_local", vec![bridge(None)], 0, &[FILES]).unwrap();
}

#[test]
fn portmap_by_iptables() {
    sweep("portmap_by_iptables", vec![bridge(None), portmap("iptables")], 1, &[NETWORK, FILES]).unwrap();
}

#[test]
fn portmap_by_nftables() {
    sweep("portmap_by_nftables", vec![bridge(None), portmap("nftables")], 1, &[NETWORK, FILES]).unwrap();
}

#[test]
fn firewall() {
    sweep("firewall", vec![bridge(None), json!({ "type": "firewall" })], 1, &[NETWORK, FILES]).unwrap();
}

#[test]
fn limited_bandwidth() {
    sweep("limited_bandwidth", vec![bridge(None), bandwidth()], 1, &[NETWORK, FILES]).unwrap();
}

#[test]
fn tuned() {
    sweep("tuned", vec![bridge(None), tuning()], 1, &[NETWORK, FILES]).unwrap();
}

#[test]
fn source_based_routing() {
    sweep("source_based_routing", vec![bridge(None), json!({ "type": "sbr" })], 1, &[NETWORK, FILES]).unwrap();
}

#[test]
fn fast_chain() {
    let mut inner =
        vec![bridge(Some("iptables")), portmap("iptables"), json!({ "type": "firewall" }), bandwidth(), tuning()];
    let runtime = inner[1].as_object_mut().unwrap().remove("runtimeConfig").unwrap();
    let chain = json!({ "type": "outrigger", "capabilities": { "portMappings": true }, "runtimeConfig": runtime,
        "plugins": inner });
    sweep("fast_chain", vec![chain], 0, &[NETWORK, FILES]).unwrap();
}

#[test]
fn tap() {
    sweep("tap", vec![json!({ "type": "tap", "ipam": v4() })], 0, &[NETWORK, FILES]).unwrap();
}

#[test]
fn host_device() {
    sweep("host_device", vec![json!({ "type": "host-device", "ipam": v4() })], 0, &[NETWORK, ANSWER]).unwrap();
}

#[test]
fn flannel() {
    let chain = json!({ "type": "flannel", "delegate": { "isDefaultGateway": true } });
    sweep("flannel", vec![chain], 0, &[FILES]).unwrap();
}

#[test]
fn addresses_by_static() {
    let ipam = json!({ "type": "static", "addresses": [{ "address": "10.5.0.77/24" }] });
    let chain = json!({ "type": "macvlan", "master": "up0", "ipam": ipam });
    sweep("addresses_by_static", vec![chain], 0, &[NETWORK, ANSWER]).unwrap();
}

/// On a host where nothing was ever attached: what is made once and stays is made by the next ADD, if not by this one.
#[test]
fn first_container_of_a_host() {
    first("first_container_of_a_host").unwrap();
}

fn first(test: &str) -> Result<()> {
    let fresh = || Sweep::fresh(test, vec![bridge(Some("iptables"))], 0, &[NETWORK, FILES]);
    let Some(model) = fresh()? else { return Ok(()) };
    model.container("a")?;
    let log = model.scratch.path().join("effects");
    let result = model.traced("ADD", "a", &Value::Null, &Trace::All(&log))?.ok()?;
    model.come_and_go("a", Some(result))?;
    let (wanted, log) = (model.settled(None)?, fs_err::read_to_string(log)?);
    let mut kills = 0;
    for effect in model.effects.iter().filter(|effect| log.contains(&format!(" {effect}("))) {
        // Each place has a host of its own; a third of them are enough beside the other sweeps.
        for n in (1..=MOST).step_by(3) {
            let what = format!("the first ADD killed before {effect} number {n}");
            let sweep = fresh()?.context("a host, as before")?;
            sweep.container("a")?;
            let unharmed = sweep.traced("ADD", "a", &Value::Null, &Trace::Kill(effect, n))?.code.is_some();
            sweep.come_and_go("a", Some(Value::Null)).with_context(|| what.clone())?;
            sweep.come_and_go("b", None).with_context(|| what.clone())?;
            sweep.settled(Some(&wanted)).with_context(|| what.clone())?;
            if unharmed {
                break;
            }
            kills += 1;
        }
    }
    ensure!(kills >= 4, "only {kills} kills");
    Ok(())
}
