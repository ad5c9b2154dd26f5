//! Calling plugins, and what a host and a container look like afterwards.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};
use outrigger_testing::{NetHost, PluginOutput};
use serde_json::{Map, Value, json};

/// Names under which the binary is tried here.
const NAMES: &[&str] = &[
    "bandwidth",
    "bridge",
    "firewall",
    "flannel",
    "host-local",
    "loopback",
    "outrigger",
    "portmap",
    "ptp",
    "static",
    "tuning",
];

/// Our plugins: one file under many names, in a directory that tests share with each other and with later runs.
pub(crate) fn ours() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("main-plugins");
        fs_err::create_dir_all(&directory).unwrap();
        let binary = Path::new(env!("CARGO_BIN_EXE_outrigger-cni"));
        let file = |path: &Path| fs_err::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        for name in NAMES {
            let path = directory.join(name);
            if file(&path) == file(binary) {
                continue;
            }
            // Other tests may run it, or do the same, at this moment.
            let aside = directory.join(format!(".{name}.{}", std::process::id()));
            fs_err::hard_link(binary, &aside).unwrap();
            fs_err::rename(&aside, &path).unwrap();
            // Two names of one file are not renamed into each other.
            let _ = fs_err::remove_file(&aside);
        }
        directory
    })
}

/// The original plugins: `OUTRIGGER_CNI_PEERS`, else where Debian's package puts them.
pub(crate) fn peers() -> Option<PathBuf> {
    let directory = std::env::var_os("OUTRIGGER_CNI_PEERS").map_or_else(|| "/usr/lib/cni".into(), PathBuf::from);
    let found = directory.join("bridge").is_file();
    if !found {
        eprintln!("skipped: the original plugins are not installed (Debian: containernetworking-plugins)");
    }
    found.then_some(directory)
}

/// True if private hosts can be made; says so if not.
pub(crate) fn root() -> bool {
    let root = NetHost::available();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// One attachment: what a runtime knows of it.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub id: String,
    /// Name of the container's namespace; none: not given.
    pub container: Option<String>,
    pub ifname: String,
    pub args: Option<String>,
}

impl Attachment {
    /// `eth0` of a container whose namespace and id have this name.
    pub(crate) fn new(name: &str) -> Self {
        Self { id: name.into(), container: Some(name.into()), ifname: "eth0".into(), args: None }
    }

    pub(crate) fn args(self, args: &str) -> Self {
        Self { args: Some(args.into()), ..self }
    }

    pub(crate) fn without_netns(self) -> Self {
        Self { container: None, ..self }
    }

    /// Calls a plugin of a directory.
    pub(crate) fn call(&self, host: &NetHost, dir: &Path, command: &str, config: &Value) -> Result<PluginOutput> {
        let netns = self.container.as_ref().map(|name| format!("/run/netns/{name}")).unwrap_or_default();
        let binary = dir.join(config["type"].as_str().context("type")?);
        let mut process = host.plugin(&binary, command, &self.id, Path::new(&netns), &self.ifname);
        if let Some(args) = &self.args {
            process.env("CNI_ARGS", args);
        }
        NetHost::call(&mut process, config)
    }

    /// ADD that must work.
    pub(crate) fn add(&self, host: &NetHost, dir: &Path, config: &Value) -> Result<Value> {
        self.call(host, dir, "ADD", config)?.ok().with_context(|| format!("ADD of {} {config}", dir.display()))
    }

    /// CHECK or DEL that must work, with the result of ADD.
    pub(crate) fn after(
        &self,
        host: &NetHost,
        dir: &Path,
        command: &str,
        config: &Value,
        result: &Value,
    ) -> Result<()> {
        let mut config = config.clone();
        config["prevResult"] = result.clone();
        self.call(host, dir, command, &config)?
            .ok()
            .map(drop)
            .with_context(|| format!("{command} of {} {config}", dir.display()))
    }

    /// DEL without a result, which must work.
    pub(crate) fn del(&self, host: &NetHost, dir: &Path, config: &Value) -> Result<()> {
        self.call(host, dir, "DEL", config)?
            .ok()
            .map(drop)
            .with_context(|| format!("DEL of {} {config}", dir.display()))
    }
}

/// A configuration: these keys for a network named `net`.
pub(crate) fn config(kind: &str, keys: Value) -> Value {
    let mut config = json!({ "cniVersion": "1.0.0", "name": "net", "type": kind });
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// An IPAM section with one range of addresses for each subnet.
pub(crate) fn ipam(subnets: &[&str], routes: &[&str]) -> Value {
    let range = |subnet: &&str| json!([{ "subnet": subnet }]);
    let route = |dst: &&str| json!({ "dst": dst });
    json!({
        "type": "host-local",
        "ranges": subnets.iter().map(range).collect::<Vec<_>>(),
        "routes": routes.iter().map(route).collect::<Vec<_>>(),
    })
}

/// Everything that a plugin may change in a namespace, in a form that does not depend on chance: see [`masked`].
pub(crate) fn snapshot(host: &NetHost, container: Option<&str>) -> Result<Value> {
    let sh = |line: &str| match container {
        None => host.sh(line),
        Some(name) => host.container_sh(name, line),
    };
    let mut state = Map::new();
    for (name, line) in [
        ("links", "ip -j -d link"),
        ("addresses", "ip -j addr"),
        ("routes4", "ip -j -4 route show table all"),
        ("routes6", "ip -j -6 route show table all"),
        ("vlans", "bridge -j vlan"),
        ("ports", "bridge -j -d link"),
    ] {
        let text = sh(line)?;
        let text = if text.trim().is_empty() { "[]" } else { text.trim() };
        state.insert(name.into(), masked(&serde_json::from_str(text).with_context(|| line.to_owned())?));
    }
    let settings = sh("cd /proc/sys/net; for key in ipv4/ip_forward ipv6/conf/all/forwarding ipv4/conf/*/arp_notify \
                       ipv6/conf/*/accept_dad ipv6/conf/*/accept_ra ipv6/conf/*/disable_ipv6; do echo $key=$(cat $key); done")?;
    let rules = host.sh("iptables-save -t nat 2>/dev/null | grep -v '^[#:]' || true; \
                         ip6tables-save -t nat 2>/dev/null | grep -v '^[#:]' || true")?;
    state.insert("settings".into(), lines(&settings));
    state.insert("rules".into(), lines(&rules));
    Ok(Value::Object(state))
}

fn lines(text: &str) -> Value {
    let mut lines: Vec<String> = text.lines().map(mask_text).collect();
    lines.sort();
    json!(lines)
}

/// Keys whose values are numbers that the kernel chooses, times, or what only one side sets.
const CHANCE: &[&str] = &[
    "ifindex",
    "link_index",
    "link_netnsid",
    "txqlen",
    "ifalias",
    "root_id",
    "bridge_id",
    "hello_timer",
    "gc_timer",
    "tcn_timer",
    "topology_change_timer",
    "hold_timer",
    "message_age_timer",
    "forward_delay_timer",
    "topology_change",
    "id",
    "designated_bridge",
    "designated_root",
];

/// Without what depends on chance: MAC and link-local addresses, names of veths, indices, order.
pub(crate) fn masked(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object.iter().filter(|(key, _)| !CHANCE.contains(&key.as_str()));
            kept.map(|(key, value)| (key.clone(), masked(value))).collect()
        }
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(masked).collect();
            items.sort_by_cached_key(Value::to_string);
            Value::Array(items)
        }
        Value::String(text) => Value::String(mask_text(text)),
        other => other.clone(),
    }
}

fn mask_text(text: &str) -> String {
    if text.len() == 17 && text.bytes().filter(|byte| *byte == b':').count() == 5 {
        return "MAC".into();
    }
    if text.starts_with("fe80::") && text.len() > 8 {
        return "fe80::LINK".into();
    }
    if text.starts_with("ff02::1:ff") {
        return "ff02::NODE".into();
    }
    let mut masked = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("veth") {
        masked.push_str(&rest[..at]);
        let digits = rest[at + 4..].bytes().take_while(u8::is_ascii_hexdigit).count();
        masked.push_str(if digits == 8 { "VETH" } else { &rest[at..at + 4 + digits] });
        rest = &rest[at + 4 + digits..];
    }
    masked + rest
}

/// A result without what depends on chance, in order. The oldest of the originals prints an empty `dns`.
pub(crate) fn masked_result(result: &Value) -> Value {
    fn mask(value: &Value) -> Value {
        match value {
            Value::Object(object) => object.iter().map(|(key, value)| (key.clone(), mask(value))).collect(),
            Value::Array(items) => items.iter().map(mask).collect(),
            Value::String(text) => Value::String(mask_text(text)),
            other => other.clone(),
        }
    }
    let mut result = mask(result);
    if result["dns"] == json!({}) {
        result.as_object_mut().unwrap().remove("dns");
    }
    result
}

/// Without what a bridge shows a moment after its last port went.
fn without_carrier(value: &Value) -> Value {
    masked(&strip_carrier(value))
}

fn strip_carrier(value: &Value) -> Value {
    match value {
        Value::Object(object) => object
            .iter()
            .filter(|(key, _)| !matches!(key.as_str(), "flags" | "operstate" | "state"))
            .map(|(key, value)| (key.clone(), strip_carrier(value)))
            .collect(),
        Value::Array(items) => items.iter().map(strip_carrier).collect(),
        other => other.clone(),
    }
}

/// Says where two values differ.
pub(crate) fn same(what: &str, theirs: &Value, ours: &Value) -> Result<()> {
    fn differences(path: &str, theirs: &Value, ours: &Value, found: &mut Vec<String>) {
        match (theirs, ours) {
            (Value::Object(a), Value::Object(b)) => {
                for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                    let at = |object: &Map<String, Value>| object.get(key).cloned().unwrap_or(json!("(absent)"));
                    differences(&format!("{path}.{key}"), &at(a), &at(b), found);
                }
            }
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
                for (index, (a, b)) in a.iter().zip(b).enumerate() {
                    differences(&format!("{path}[{index}]"), a, b, found);
                }
            }
            (a, b) if a != b => found.push(format!("{path}: theirs {a}, ours {b}")),
            _ => {}
        }
    }
    let mut found = Vec::new();
    differences(what, theirs, ours, &mut found);
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

/// A host with the containers `a` and `b`.
pub(crate) fn host() -> Result<NetHost> {
    let host = NetHost::new()?;
    // Looking for duplicates of the host's own link-local addresses takes a second or two each time.
    host.sh("echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")?;
    for name in ["a", "b"] {
        host.container(name)?;
        host.container_sh(name, "ip link set lo up")?;
    }
    Ok(host)
}

/// What is compared of a host and of container `a`, once carriers and IPv6 addresses have settled: plugins do not wait
/// for all of that.
pub(crate) fn both(host: &NetHost) -> Result<Value> {
    let settled =
        "! ip link show type veth | grep -q 'NO-CARRIER\\|LOWERLAYERDOWN' && test -z \"$(ip -6 addr show tentative)\"";
    for inside in ["true", "nsenter --net=/run/netns/a"] {
        let inside = if inside == "true" { "" } else { inside };
        host.sh(&format!("timeout 10 {inside} sh -c 'until {}; do sleep 0.02; done'", settled.replace('\'', "'\\''")))?;
    }
    Ok(json!({ "host": snapshot(host, None)?, "container": snapshot(host, Some("a"))? }))
}

/// Runs the same configuration through the original plugins and through ours, each on a host of its own, and compares the
/// result of ADD and the state after it, after CHECK, and after DEL. Then ours check and delete what theirs made, and the
/// reverse.
pub(crate) fn compare(setup: &str, attachment: &Attachment, config: &Value) -> Result<()> {
    compare_with(setup, attachment, config, true)
}

/// As [`compare`]. CHECK of the original fails wrongly for some configurations, which `original_checks` tells.
pub(crate) fn compare_with(setup: &str, attachment: &Attachment, config: &Value, original_checks: bool) -> Result<()> {
    let Some(peers) = peers() else { return Ok(()) };
    let sides = [peers.as_path(), ours()];
    let mut results = Vec::new();
    for (adder, other) in [(0, 1), (1, 0)] {
        let host = host()?;
        host.sh(setup)?;
        let result = attachment.add(&host, sides[adder], config)?;
        let added = both(&host)?;
        if config["cniVersion"].as_str() >= Some("0.4.0") {
            for (dir, checks) in [(sides[0], original_checks), (sides[1], true)] {
                if checks {
                    attachment.after(&host, dir, "CHECK", config, &result)?;
                }
            }
            same("after CHECK", &added, &both(&host)?)?;
        }
        // The other side cleans up.
        attachment.after(&host, sides[other], "DEL", config, &result)?;
        let deleted = without_carrier(&both(&host)?);
        // The own side, too, and again.
        host.sh("umount /run/netns/a; rm /run/netns/a")?;
        host.container("a")?;
        host.container_sh("a", "ip link set lo up")?;
        let again = attachment.add(&host, sides[adder], config)?;
        for _ in 0..2 {
            attachment.after(&host, sides[adder], "DEL", config, &again)?;
        }
        let own = without_carrier(&both(&host)?);
        let leases = host.sh("find /var/lib/cni -type f -name '[0-9a-f]*[.:]*' | sort")?;
        ensure!(leases.is_empty(), "addresses are left: {leases}");
        results.push(json!({ "result": masked_result(&result), "added": added, "deleted": deleted, "own": own }));
    }
    same("", &results[0], &results[1])
}
