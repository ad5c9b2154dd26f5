//! Every plugin killed before its n-th outside effect, for every n, in ADD and in DEL: what it was about to do is undone
//! by a DEL, or by a GC when the container is gone.
//!
//! The effects are system calls: requests to the kernel's network stack, and changes of files. strace(1) kills the plugin
//! when it is about to make the n-th call of one kind; for the next round n grows, until a round ends unharmed. A container
//! of the same network lives on beside it and must keep all that is its own. A GC is tried at every second place.

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
/// Changes of files. What is between opening and writing is seen by the latter.
const FILES: &[&str] = &[
    "write",
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

/// What stays by design: the marks of where an allocator stopped.
const KEPT_FILES: &str = r"grep -vE '/(lock|last_reserved_ip\.[0-9]+|\.[^/]*)$'";

/// A private host, a chain, and which of its plugins is killed.
struct Sweep {
    host: NetHost,
    network: Network,
    victim: usize,
    /// What the host looks like with only the container that lives on.
    before: String,
    effects: Vec<&'static str>,
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
    /// None if the test cannot run here.
    fn new(test: &str, chain: Vec<Value>, victim: usize, effects: &[&'static [&'static str]]) -> Result<Option<Self>> {
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
        let mut sweep = Self {
            host,
            network,
            victim,
            before: String::new(),
            effects: effects.iter().flat_map(|some| some.iter().copied()).collect(),
            _plugins: plugins,
        };
        // One that comes and goes makes what is made once and stays.
        let result = sweep.attach("first")?;
        sweep.detach("first", &result)?;
        sweep.host.remove_container("first")?;
        sweep.host.container("lives")?;
        sweep.survivor().add(&sweep.host, "lives", "eth0")?;
        sweep.before = sweep.settled(None)?;
        Ok(Some(sweep))
    }

    fn attach(&self, id: &str) -> Result<Value> {
        self.host.container(id)?;
        self.network.add(&self.host, id, "eth0")
    }

    /// The network as the container that lives on sees it: it has other host ports.
    fn survivor(&self) -> Network {
        let mut network = self.network.clone();
        for plugin in &mut network.chain {
            let Some(mappings) = plugin["runtimeConfig"]["portMappings"].as_array_mut() else { continue };
            for mapping in mappings {
                mapping["hostPort"] = json!(mapping["hostPort"].as_u64().unwrap_or_default() + 10);
            }
        }
        network
    }

    fn detach(&self, id: &str, result: &Value) -> Result<()> {
        self.network.del(&self.host, id, "eth0", result)
    }

    /// Everything that a plugin could leave on the host.
    fn inventory(&self) -> Result<String> {
        self.host.sh(&format!(
            "ip -br link | awk '{{print \"link\", $1, $2}}' | sort
             ip -o addr | awk '{{print \"address\", $2, $4}}' | sort
             ip route show table all | grep -v ' dev up[01] ' | sed 's/^/route /' | sort
             ip -6 route show table all | grep -v ' dev up[01] ' | sed 's/^/route /' | sort
             tc qdisc show | grep -v noqueue | sort || true
             nft -s list ruleset 2>/dev/null
             find /run/cni /var/lib/cni -type f 2>/dev/null | {KEPT_FILES} | sort || true"
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

    /// Runs the victim's command, to be killed before its `n`-th call of `effect`.
    fn kill(&self, command: &str, id: &str, previous: &Value, effect: &str, n: usize) -> Result<PluginOutput> {
        let plugin = &self.network.chain[self.victim];
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
        traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={effect}"), "-e"]);
        traced.arg(format!("inject={effect}:signal=SIGKILL:when={n}")).arg("--").arg(&binary);
        process = traced;
        NetHost::call(&mut process, &self.network.config(plugin, previous))
    }

    /// Kills ADD everywhere.
    fn add(&self, cure: Cure) -> Result<usize> {
        self.rounds("ADD", cure, |id, effect, n| {
            self.host.container(id)?;
            let mut previous = Value::Null;
            for plugin in &self.network.chain[..self.victim] {
                previous = self.network.call(&self.host, "ADD", plugin, id, "eth0", &previous)?.ok()?;
            }
            Ok((self.kill("ADD", id, &previous, effect, n)?, Value::Null))
        })
    }

    /// Kills DEL everywhere.
    fn del(&self, cure: Cure) -> Result<usize> {
        self.rounds("DEL", cure, |id, effect, n| {
            let result = self.attach(id)?;
            for plugin in self.network.chain[self.victim + 1..].iter().rev() {
                self.network.call(&self.host, "DEL", plugin, id, "eth0", &result)?.ok()?;
            }
            Ok((self.kill("DEL", id, &result, effect, n)?, result))
        })
    }

    /// For each kind of effect: n = 1, 2, … until the plugin ends unharmed. Gives the number of kills.
    fn rounds(
        &self,
        command: &str,
        cure: Cure,
        round: impl Fn(&str, &str, usize) -> Result<(PluginOutput, Value)>,
    ) -> Result<usize> {
        let mut kills = 0;
        for effect in &self.effects {
            for n in (1..=MOST).step_by(cure.step()) {
                let id = format!("{}-{effect}-{n}", command.to_lowercase());
                let what = format!("{command} killed before {effect} number {n}, then {cure:?}");
                let (output, result) = round(&id, effect, n).with_context(|| what.clone())?;
                let unharmed = output.code.is_some();
                if unharmed {
                    output.ok().with_context(|| format!("{what}: it was not killed"))?;
                }
                self.cure(cure, &id, &result).with_context(|| what.clone())?;
                self.settled(Some(&self.before)).with_context(|| what.clone())?;
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
                self.host.remove_container(id)
            }
            Cure::Gc => {
                self.host.remove_container(id)?;
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
    sweep("portmap_by_iptables", vec![bridge(None), portmap("iptables")], 1, &[NETWORK, ANSWER]).unwrap();
}

#[test]
fn portmap_by_nftables() {
    sweep("portmap_by_nftables", vec![bridge(None), portmap("nftables")], 1, &[NETWORK, ANSWER]).unwrap();
}

#[test]
fn firewall() {
    sweep("firewall", vec![bridge(None), json!({ "type": "firewall" })], 1, &[NETWORK, ANSWER]).unwrap();
}

#[test]
fn limited_bandwidth() {
    sweep("limited_bandwidth", vec![bridge(None), bandwidth()], 1, &[NETWORK, ANSWER]).unwrap();
}

#[test]
fn tuned() {
    sweep("tuned", vec![bridge(None), tuning()], 1, &[NETWORK, FILES]).unwrap();
}

#[test]
fn source_based_routing() {
    sweep("source_based_routing", vec![bridge(None), json!({ "type": "sbr" })], 1, &[NETWORK, ANSWER]).unwrap();
}

#[test]
fn fast_chain() {
    let mut inner =
        vec![bridge(Some("iptables")), portmap("iptables"), json!({ "type": "firewall" }), bandwidth(), tuning()];
    let runtime = inner[1].as_object_mut().unwrap().remove("runtimeConfig").unwrap();
    let chain = json!({ "type": "outrigger", "capabilities": { "portMappings": true }, "runtimeConfig": runtime,
        "plugins": inner });
    sweep("fast_chain", vec![chain], 0, &[NETWORK, ANSWER]).unwrap();
}
