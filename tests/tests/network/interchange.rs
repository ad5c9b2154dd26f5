//! The switch on a live host: what the original plugins made, ours check and remove, and the other way round; and both
//! make the same of the same input. One table drives it; the outcome is printed as a matrix.

mod rows;

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

use self::rows::{Family, ROWS, Row, known};
use crate::common::{Plugins, can_run, peers_or_skip};

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
        let mut del = other.del(&container, &result).and_then(|()| same(&host, &before, &container, &inside));
        if del.is_ok() {
            // Whatever the adder noted for itself must not be in the way when the container comes again.
            del = adder.add(&container).context("a second time").and_then(|result| adder.del(&container, &result));
        }
        Ok((check.err().map(|error| format!("{error:#}")), del.err().map(|error| format!("{error:#}"))))
    })
}

fn same(host: &Host, before: &Inventory, container: &Container, inside: &Inventory) -> Result<()> {
    let settled = eventually(std::time::Duration::from_secs(3), || {
        let mut difference = before.difference(&host.inventory()?);
        difference.extend(inside.difference(&container.inventory()?));
        // The kernel gives lo its address when it comes up, and leaves it there.
        difference.retain(|line| !is_note(line) && line != "+ address lo 127.0.0.1/8");
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
    if row.new_peers && old {
        eprintln_skip(&test, "the peers do not know version 1.1.0, and not this either");
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
    ptp_and_bandwidth "ptp, bandwidth"
    ptp_and_firewall "ptp, firewall"
    macvlan_and_tuning "macvlan, tuning"
    macvlan_and_sbr "macvlan, sbr"
    tap_with_host_local "tap + host-local"
    bridge_masquerading_by_nftables "bridge masquerading, nftables"
    ptp_masquerading_by_nftables "ptp masquerading, nftables"
    bridge_and_portmap_by_nftables "bridge, portmap, nftables"
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
            let is_check = matches!(step, Step::OurCheck | Step::TheirCheck);
            match (cell.get(&step), expected) {
                (None, None) if is_check && !at_least(version, "0.4.0") => marks.push('-'),
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
                  . as wanted, - no such command, k known failure of theirs, X failed, ! known but not so";
    println!("{legend}{matrix}\n\n{} cells", done.len());
    ensure!(faults.is_empty(), "{legend}{matrix}\n{faults}");
    Ok(())
}
