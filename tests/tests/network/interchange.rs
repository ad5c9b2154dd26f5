//! The switch on a live host: what the original plugins made, ours check and remove, and the other way round; and both
//! make the same of the same input. One table drives it; the outcome is printed as a matrix.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use outrigger_cni_verify::call::{Call, Output};
use outrigger_cni_verify::host::{Container, Host, Inventory, eventually};
use outrigger_cni_verify::result::{VERSIONS, at_least};
use outrigger_tests::eprintln_skip;
use outrigger_verify_report::Unmet;
use serde_json::{Value, json};

use crate::common::{Plugins, can_run, peers_or_skip};

/// Address families of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
    Dual,
}

impl Family {
    fn name(self) -> &'static str {
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
struct Row {
    name: &'static str,
    /// Shell lines that prepare a host.
    setup: &'static str,
    ifname: &'static str,
    /// The oldest version that all its plugins accept.
    oldest: &'static str,
    chain: fn(Family) -> Vec<Value>,
}

const MASTER: &str = "ip link add m0 type veth peer name m1; ip link set m0 up; ip link set m1 up";

fn bridge(family: Family) -> Value {
    json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": family.host_local() })
}

fn masquerading(family: Family) -> Value {
    json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": family.host_local() })
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

const ROWS: &[Row] = &[
    Row {
        name: "loopback",
        setup: "true",
        ifname: "lo",
        oldest: "0.3.0",
        chain: |_| vec![json!({ "type": "loopback" })],
    },
    Row {
        name: "bridge + host-local",
        setup: "true",
        ifname: "eth0",
        oldest: "0.1.0",
        chain: |family| vec![bridge(family)],
    },
    Row {
        name: "bridge masquerading",
        setup: "true",
        ifname: "eth0",
        oldest: "0.1.0",
        chain: |family| vec![masquerading(family)],
    },
    Row {
        name: "bridge, default gateway, hairpin, mtu",
        setup: "true",
        ifname: "eth0",
        oldest: "0.1.0",
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
        chain: |family| vec![json!({ "type": "bridge", "bridge": "lan0", "ipam": family.fixed() })],
    },
    Row {
        name: "bridge, MAC spoof check",
        setup: "true",
        ifname: "eth0",
        oldest: "0.1.0",
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
        chain: |family| vec![json!({ "type": "ptp", "ipMasq": true, "mtu": 1400, "ipam": family.host_local() })],
    },
    Row {
        name: "macvlan + host-local",
        setup: MASTER,
        ifname: "eth0",
        oldest: "0.1.0",
        chain: |family| {
            vec![json!({ "type": "macvlan", "master": "m0", "mode": "private", "ipam": family.host_local() })]
        },
    },
    Row {
        name: "macvlan + static",
        setup: MASTER,
        ifname: "eth0",
        oldest: "0.1.0",
        chain: |family| vec![json!({ "type": "macvlan", "master": "m0", "mtu": 1400, "ipam": family.fixed() })],
    },
    Row {
        name: "host-device + static",
        setup: "ip link add d0 type veth peer name d1; ip link set d1 up",
        ifname: "eth0",
        oldest: "0.1.0",
        chain: |family| vec![json!({ "type": "host-device", "device": "d0", "ipam": family.fixed() })],
    },
    Row {
        name: "bridge, portmap",
        setup: "true",
        ifname: "eth0",
        oldest: "0.3.0",
        chain: |family| vec![bridge(family), portmap()],
    },
    Row {
        name: "bridge, firewall",
        setup: "true",
        ifname: "eth0",
        oldest: "0.4.0",
        chain: |family| vec![bridge(family), json!({ "type": "firewall" })],
    },
    Row {
        name: "bridge, bandwidth",
        setup: "true",
        ifname: "eth0",
        oldest: "0.3.0",
        chain: |family| vec![bridge(family), bandwidth()],
    },
    Row {
        name: "bridge, tuning",
        setup: "true",
        ifname: "eth0",
        oldest: "0.3.0",
        chain: |family| vec![bridge(family), tuning()],
    },
    Row {
        name: "bridge, sbr",
        setup: "true",
        ifname: "eth0",
        oldest: "0.3.0",
        chain: |family| vec![bridge(family), json!({ "type": "sbr" })],
    },
    Row {
        name: "ptp, portmap",
        setup: "true",
        ifname: "eth0",
        oldest: "0.3.0",
        chain: |family| vec![json!({ "type": "ptp", "ipam": family.host_local() }), portmap()],
    },
    Row {
        name: "all: bridge, portmap, firewall, bandwidth, tuning",
        setup: "true",
        ifname: "eth0",
        oldest: "0.4.0",
        chain: |family| vec![masquerading(family), portmap(), json!({ "type": "firewall" }), bandwidth(), tuning()],
    },
];

/// What may go wrong in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// The two results for one input differ.
    Result,
    /// What the two make in the kernel for one input differs.
    State,
    /// Their ADD, our CHECK.
    OurCheck,
    /// Their ADD, our DEL.
    OurDel,
    /// Our ADD, their CHECK.
    TheirCheck,
    /// Our ADD, their DEL.
    TheirDel,
}

/// A difference that is known, and why. A cell of this list must show it, so that a change is seen.
struct Known {
    rows: &'static [&'static str],
    step: Step,
    /// Versions of the configuration.
    versions: std::ops::RangeInclusive<&'static str>,
    /// Only with peers that do not know version 1.1.0.
    old_peers: bool,
    why: &'static str,
}

const KNOWN: &[Known] = &[
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
        rows: &["bridge, sbr"],
        step: Step::TheirCheck,
        versions: "0.4.0"..="1.1.0",
        old_peers: false,
        why: "bridge's CHECK looks for the routes in the main table only, from where sbr has moved them",
    },
    Known {
        rows: &["bridge, portmap", "ptp, portmap", "all: bridge, portmap, firewall, bandwidth, tuning"],
        step: Step::TheirCheck,
        versions: "0.4.0"..="1.1.0",
        old_peers: true,
        why: "portmap's CHECK wants the rules of one family in the chains of the other",
    },
];

fn known(row: &str, version: &str, step: Step, old: bool) -> Option<&'static Known> {
    KNOWN.iter().find(|known| {
        known.rows.contains(&row)
            && known.versions.contains(&version)
            && known.step == step
            && (!known.old_peers || old)
    })
}

/// Notes of our own beside the originals' files, by which DEL and GC find things fast; they make no difference when they
/// are missing or out of date.
fn is_note(line: &str) -> bool {
    ["/.outrigger/", "/.networks/", "/run/cni/outrigger/"].iter().any(|notes| line.contains(notes))
}

/// A plugin directory as a runtime uses it.
struct Runtime<'a> {
    host: &'a Host,
    plugins: PathBuf,
    chain: Vec<Value>,
    version: &'a str,
    ifname: &'a str,
}

fn said(unmet: Unmet) -> anyhow::Error {
    match unmet {
        Unmet::Failed { reason, evidence } => {
            let stdout =
                evidence.iter().find(|seen| seen.name == "call").map(|seen| seen.text.clone()).unwrap_or_default();
            anyhow!("{reason} {}", stdout.split(" <<<").next().unwrap_or_default())
        }
        Unmet::Skipped { reason } => anyhow!("skipped: {reason}"),
    }
}

impl Runtime<'_> {
    fn call(&self, command: &str, plugin: &Value, container: &Container, previous: Option<&Value>) -> Result<Output> {
        let mut config = plugin.clone();
        config["cniVersion"] = json!(self.version);
        config["name"] = json!("interchange");
        if let Some(previous) = previous.filter(|_| at_least(self.version, "0.3.0")) {
            config["prevResult"] = previous.clone();
        }
        let name = plugin["type"].as_str().context("type")?;
        Call::new(&self.plugins.join(name), command)
            .env("CNI_CONTAINERID", &container.name)
            .env("CNI_NETNS", container.path.to_string_lossy())
            .env("CNI_IFNAME", self.ifname)
            .env("CNI_PATH", self.plugins.to_string_lossy())
            .config(&config)
            .run()
            .map_err(said)
    }

    fn add(&self, container: &Container) -> Result<Value> {
        let mut result = None;
        for plugin in &self.chain {
            result = Some(self.call("ADD", plugin, container, result.as_ref())?.result().map_err(said)?);
        }
        result.context("an empty chain")
    }

    fn check(&self, container: &Container, result: &Value) -> Result<()> {
        self.chain
            .iter()
            .try_for_each(|plugin| self.call("CHECK", plugin, container, Some(result))?.success().map_err(said))
    }

    fn del(&self, container: &Container, result: &Value) -> Result<()> {
        let previous = Some(result).filter(|_| at_least(self.version, "0.4.0"));
        self.chain
            .iter()
            .rev()
            .try_for_each(|plugin| self.call("DEL", plugin, container, previous)?.success().map_err(said))
    }

    /// The same with the other's plugins.
    fn with(&self, plugins: &Path) -> Runtime<'_> {
        Runtime {
            host: self.host,
            plugins: plugins.to_owned(),
            chain: self.chain.clone(),
            version: self.version,
            ifname: self.ifname,
        }
    }
}

/// What an ADD gave and made, without what is drawn by lot.
struct Seen {
    result: String,
    state: Vec<String>,
}

fn stage<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    // A private host goes with its thread.
    std::thread::scope(|scope| scope.spawn(work).join().map_err(|_| anyhow!("a thread panicked"))?)
}

fn observe(row: &Row, family: Family, version: &str, plugins: &Path) -> Result<Seen> {
    stage(|| {
        let host = Host::enter(plugins).map_err(said)?;
        host.sh(row.setup).map_err(said)?;
        let runtime = Runtime {
            host: &host,
            plugins: host.plugins().to_owned(),
            chain: (row.chain)(family),
            version,
            ifname: row.ifname,
        };
        let container = host.container("c1").map_err(said)?;
        let result = runtime.add(&container)?;
        let mut state: Vec<_> = host
            .inventory()
            .map_err(said)?
            .lines()
            .filter(|line| !is_note(line))
            .map(|line| format!("host {line}"))
            .collect();
        state.extend(container.inventory().map_err(said)?.lines().map(|line| format!("container {line}")));
        let state = state.iter().map(|line| without_lots(line)).collect();
        Ok(Seen { result: without_lots(&format!("{:#}", without_empty(&result))), state })
    })
}

/// An empty object or list means the same as none.
fn without_empty(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().map(|(key, value)| (key.clone(), without_empty(value)));
            let kept = kept.filter(|(_, value)| *value != json!({}) && *value != json!([]) && *value != json!(""));
            Value::Object(kept.collect())
        }
        Value::Array(list) => list.iter().map(without_empty).collect(),
        other => other.clone(),
    }
}

/// Replaces random names and hardware addresses, which are drawn by lot, and queue lengths, which are the kernel's.
pub(crate) fn without_lots(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(character) = rest.chars().next() {
        let hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if rest.len() >= 12 && rest.starts_with("veth") && rest.get(4..12).is_some_and(hex) {
            out.push_str("veth*");
            rest = &rest[12..];
        } else if rest
            .get(..17)
            .is_some_and(|mac| mac.split(':').count() == 6 && mac.split(':').all(|part| part.len() == 2 && hex(part)))
            && !rest.starts_with("02:00:00:00:00:77")
        {
            out.push_str("MAC");
            rest = &rest[17..];
        } else {
            out.push(character);
            rest = &rest[character.len_utf8()..];
        }
    }
    out.split(" qlen ").next().unwrap_or_default().to_owned()
}

/// ADD with one, CHECK and DEL with the other; what went wrong.
fn cross(
    row: &Row,
    family: Family,
    version: &str,
    first: &Path,
    second: &Path,
) -> Result<(Option<String>, Option<String>)> {
    stage(|| {
        let host = Host::enter(first).map_err(said)?;
        host.sh(row.setup).map_err(said)?;
        let adder = Runtime {
            host: &host,
            plugins: host.plugins().to_owned(),
            chain: (row.chain)(family),
            version,
            ifname: row.ifname,
        };
        let other = adder.with(second);
        // What is shared and stays, a bridge or the entry chains of rules, comes with a first container.
        let warm = host.container("warm").map_err(said)?;
        let result = adder.add(&warm)?;
        adder.del(&warm, &result)?;
        host.remove_container(&warm).map_err(said)?;
        let container = host.container("c1").map_err(said)?;
        let (before, inside) = (host.inventory().map_err(said)?, container.inventory().map_err(said)?);
        let result = adder.add(&container)?;
        let check = if at_least(version, "0.4.0") { other.check(&container, &result) } else { Ok(()) };
        let mut del = other.del(&container, &result).and_then(|()| same(row, &host, &before, &container, &inside));
        if del.is_ok() {
            // Whatever the adder noted for itself must not be in the way when the container comes again.
            del = adder.add(&container).context("a second time").and_then(|result| adder.del(&container, &result));
        }
        Ok((check.err().map(|error| format!("{error:#}")), del.err().map(|error| format!("{error:#}"))))
    })
}

fn same(row: &Row, host: &Host, before: &Inventory, container: &Container, inside: &Inventory) -> Result<()> {
    let settled = eventually(std::time::Duration::from_secs(3), || {
        let mut difference = before.difference(&host.inventory()?);
        if row.name != "loopback" {
            difference.extend(inside.difference(&container.inventory()?));
        }
        difference.retain(|line| !is_note(line));
        if difference.is_empty() { Ok(()) } else { Err(Unmet::fail(format!("left behind: {}", difference.join("; ")))) }
    });
    settled.map_err(said)
}

fn supports(plugins: &Path, name: &str) -> Vec<String> {
    let answer = Call::new(&plugins.join(name), "VERSION")
        .stdin("{\"cniVersion\":\"1.0.0\"}")
        .run()
        .and_then(|output| output.result());
    let list =
        answer.map(|answer| answer["supportedVersions"].as_array().cloned().unwrap_or_default()).unwrap_or_default();
    list.iter().filter_map(|version| version.as_str().map(str::to_owned)).collect()
}

/// One cell: the steps that went wrong, each with its words.
type Cell = BTreeMap<Step, String>;

fn cell(row: &Row, family: Family, version: &str, ours: &Path, theirs: &Path) -> Result<Cell> {
    let mut cell = Cell::new();
    let (a, b) = (observe(row, family, version, theirs)?, observe(row, family, version, ours)?);
    if a.result != b.result {
        cell.insert(Step::Result, format!("theirs {}\nours {}", a.result, b.result));
    }
    let mut counts: BTreeMap<&String, i32> = BTreeMap::new();
    a.state.iter().for_each(|line| *counts.entry(line).or_default() -= 1);
    b.state.iter().for_each(|line| *counts.entry(line).or_default() += 1);
    let differing = counts.into_iter().filter(|(_, count)| *count != 0);
    let difference: Vec<_> =
        differing.map(|(line, count)| format!("{} {line}", if count > 0 { "ours" } else { "theirs" })).collect();
    if !difference.is_empty() {
        cell.insert(Step::State, difference.join("\n"));
    }
    let (check, del) = cross(row, family, version, theirs, ours)?;
    cell.extend(check.map(|why| (Step::OurCheck, why)));
    cell.extend(del.map(|why| (Step::OurDel, why)));
    let (check, del) = cross(row, family, version, ours, theirs)?;
    cell.extend(check.map(|why| (Step::TheirCheck, why)));
    cell.extend(del.map(|why| (Step::TheirDel, why)));
    Ok(cell)
}

/// All cells of a row; a test each, so that they run side by side and fail by name.
fn row(name: &str) -> Result<()> {
    let test = format!("interchange of {name}");
    if !can_run(&test) {
        return Ok(());
    }
    let Some(theirs) = peers_or_skip(&test) else { return Ok(()) };
    let plugins = Plugins::install()?;
    let old = !supports(&theirs, "bridge").iter().any(|version| version == "1.1.0");
    let row = ROWS.iter().find(|row| row.name == name).context("no such row")?;
    let names: Vec<_> =
        (row.chain)(Family::V4).iter().filter_map(|plugin| plugin["type"].as_str().map(str::to_owned)).collect();
    if let Some(missing) = names.iter().find(|name| supports(&theirs, name).is_empty()) {
        eprintln_skip(&test, &format!("the peers have no {missing}"));
        return Ok(());
    }
    let mut done = Vec::new();
    for version in VERSIONS.iter().filter(|version| at_least(version, row.oldest)) {
        if names.iter().any(|name| !supports(&theirs, name).iter().any(|theirs| theirs == version)) {
            continue;
        }
        // Every version with both families; each family alone with the newest that all peers have.
        let families: &[Family] = match *version {
            _ if row.name == "loopback" => &[Family::V4],
            "1.0.0" => &[Family::V4, Family::V6, Family::Dual],
            _ => &[Family::Dual],
        };
        for family in families {
            done.push((row.name, *version, *family, cell(row, *family, version, plugins.dir(), &theirs)));
        }
    }
    ensure!(!done.is_empty(), "nothing to try");
    judge(&done, old)
}

macro_rules! rows {
    ($($test:ident $name:literal)+) => {
        $(#[test]
        fn $test() -> Result<()> {
            row($name)
        })+

        #[test]
        fn every_row_has_a_test() {
            assert_eq!([$($name),+].to_vec(), ROWS.iter().map(|row| row.name).collect::<Vec<_>>());
        }
    };
}

rows! {
    loopback "loopback"
    bridge_with_host_local "bridge + host-local"
    bridge_masquerading "bridge masquerading"
    bridge_with_default_gateway "bridge, default gateway, hairpin, mtu"
    bridge_with_static "bridge + static, no gateway"
    bridge_with_mac_spoof_check "bridge, MAC spoof check"
    ptp_masquerading "ptp masquerading"
    macvlan_with_host_local "macvlan + host-local"
    macvlan_with_static "macvlan + static"
    host_device_with_static "host-device + static"
    bridge_and_portmap "bridge, portmap"
    bridge_and_firewall "bridge, firewall"
    bridge_and_bandwidth "bridge, bandwidth"
    bridge_and_tuning "bridge, tuning"
    bridge_and_sbr "bridge, sbr"
    ptp_and_portmap "ptp, portmap"
    all_in_one_chain "all: bridge, portmap, firewall, bandwidth, tuning"
}

type Done = Vec<(&'static str, &'static str, Family, Result<Cell>)>;

#[expect(clippy::print_stdout, reason = "the matrix is what a reader of the test wants to see")]
fn judge(done: &Done, old: bool) -> Result<()> {
    let mut matrix = String::new();
    let mut faults = String::new();
    let mut row_of = "";
    for (row, version, family, outcome) in done {
        if row_of != *row {
            let _ = write!(matrix, "\n{row:50}");
            row_of = row;
        }
        let cell = match outcome {
            Ok(cell) => cell,
            Err(error) => {
                let _ = write!(matrix, " {version}/{}:ADD", family.name());
                let _ = writeln!(faults, "\n{row} {version} {}: {error:#}", family.name());
                continue;
            }
        };
        let mut marks = String::new();
        for step in [Step::Result, Step::State, Step::OurCheck, Step::OurDel, Step::TheirCheck, Step::TheirDel] {
            let expected = known(row, version, step, old);
            match (cell.get(&step), expected) {
                (None, None) => marks.push('.'),
                (Some(_), Some(_)) => marks.push('k'),
                (Some(why), None) => {
                    marks.push('X');
                    let _ = writeln!(faults, "\n{row} {version} {} {step:?}: {why}", family.name());
                }
                (None, Some(known)) => {
                    marks.push('!');
                    let text = "this is known to fail, but did not";
                    let _ = writeln!(faults, "\n{row} {version} {} {step:?}: {text}: {}", family.name(), known.why);
                }
            }
        }
        let _ = write!(matrix, " {version}/{}:{marks}", family.name());
    }
    let legend = "each cell: same result, same state, our CHECK and DEL of theirs, their CHECK and DEL of ours; \
                  . as wanted, k known failure of theirs, X failed, ! known but not so";
    println!("{legend}{matrix}\n\n{} cells", done.len());
    ensure!(faults.is_empty(), "{legend}{matrix}\n{faults}");
    Ok(())
}
