//! What plugins say to what they cannot use: configurations, environments, half states. Each case has its exact code and
//! message in `data/cni_bad_input.txt`, or, where calls came before, in `data/cni_half_states.txt` (`OUTRIGGER_UPDATE=1`
//! writes them anew); standard output is one JSON error, nothing is left behind, nothing panics, nothing hangs.

mod cases;
mod halves;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, anyhow, ensure};
use outrigger_cni_verify::call::{Call, CniError, Output};
use outrigger_cni_verify::host::{Host, Inventory};
use outrigger_tests::project;
use outrigger_verify_report::Unmet;
use serde_json::Value;

use self::cases::Bad;
use self::halves::Half;
use crate::common::{PLUGINS, Plugins, can_run};
use crate::interchange::without_lots;

fn said(unmet: Unmet) -> anyhow::Error {
    match unmet {
        Unmet::Failed { reason, evidence } => {
            let seen: Vec<_> = evidence.iter().map(|seen| format!("{}: {}", seen.name, seen.text)).collect();
            anyhow!("{reason}\n{}", seen.join("\n"))
        }
        Unmet::Skipped { reason } => anyhow!("{reason}"),
    }
}

/// Whether a call may leave this line of an inventory behind: notes, locks, and what all containers share, a bridge with
/// its gateway's address and the chains that lead to those of the containers.
fn harmless(line: &str) -> bool {
    let shared = ["+ link cni0 bridge ", "- link cni0 bridge ", "+ address cni0 ", "+ route ", "+ nft ", "+ qdisc "];
    let of_container = ["10.95.0.2", "10.95.0.3", "CNI-DN-", "bad", "veth"];
    line.contains("/.outrigger/")
        || line.contains("/.networks/")
        || shared.iter().any(|shared| line.starts_with(shared))
            && !of_container.iter().any(|own| line.contains(own))
            && (!["+ route ", "+ qdisc "].iter().any(|kind| line.starts_with(kind)) || line.contains(" dev cni0 "))
}

fn left(before: &Inventory, after: &Inventory) -> Vec<String> {
    before.difference(after).into_iter().filter(|line| !harmless(line)).collect()
}

/// Calls a plugin for `eth0` of a container of this name; `env` changes variables, an empty value takes one away.
fn call(
    host: &Host,
    plugin: &str,
    command: &str,
    id: &str,
    env: &[(&'static str, String)],
    stdin: &str,
) -> Result<Output> {
    let mut call = Call::new(&host.plugins().join(plugin), command)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", format!("/run/netns/{id}"))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", host.plugins().to_string_lossy())
        .stdin(stdin.as_bytes());
    for (name, value) in env {
        call = if value.is_empty() { call.without(name) } else { call.env(name, value) };
    }
    let output = call.run().map_err(said)?;
    ensure!(!output.stderr.contains("panicked"), "{}", output.stderr);
    Ok(output)
}

/// What a call said, and what it should not have left.
struct Outcome {
    said: String,
    left: Vec<String>,
}

fn in_words(error: &CniError) -> Result<String> {
    let details = if error.details.is_empty() { String::new() } else { format!(" ({})", error.details) };
    ensure!(!error.msg.contains('\n'), "several lines: {}", error.msg);
    Ok(format!("{} | {}{details}", error.code, error.msg))
}

fn refused(bad: &Bad, plugins: &Path) -> Result<Outcome> {
    let host = Host::enter(plugins).map_err(said)?;
    let container = host.container("c1").map_err(said)?;
    host.sh(bad.setup).map_err(said)?;
    let (before, inside) = (host.inventory().map_err(said)?, container.inventory().map_err(said)?);
    let error = call(&host, bad.plugin, bad.command, "c1", &bad.env, &bad.stdin)?.error().map_err(said)?;
    let mut left = left(&before, &host.inventory().map_err(said)?);
    left.extend(inside.difference(&container.inventory().map_err(said)?));
    Ok(Outcome { said: in_words(&error)?, left })
}

/// Works through a half state: DEL and GC that succeed must leave nothing of all that came before, other calls nothing of
/// their own.
fn half(half: &Half, plugins: &Path) -> Result<Outcome> {
    let host = Host::enter(plugins).map_err(said)?;
    let containers =
        ["c1", "c9"].into_iter().map(|id| host.container(id)).collect::<Result<Vec<_>, _>>().map_err(said)?;
    let inside = || -> Result<Vec<Inventory>> {
        let there = containers.iter().filter(|container| container.path.exists());
        there.map(|container| container.inventory().map_err(said)).collect()
    };
    host.sh(half.setup).map_err(said)?;
    let (untouched, untouched_inside) = (host.inventory().map_err(said)?, inside()?);
    let mut results = BTreeMap::new();
    let with_result = |config: &Value, result: Option<&Value>| {
        let mut config = config.clone();
        if let Some(result) = result {
            config["prevResult"] = result.clone();
        }
        config
    };
    for (id, config) in &half.before {
        let plugin = config["type"].as_str().unwrap_or_default();
        let config = with_result(config, results.get(id));
        let output = call(&host, plugin, "ADD", id, &[], &config.to_string())?;
        results.insert(*id, output.result().map_err(said).with_context(|| format!("{plugin} for {id}"))?);
    }
    host.sh(half.damage).map_err(said)?;
    let (damaged, damaged_inside) = (host.inventory().map_err(said)?, inside()?);
    let mut config = with_result(&half.config, results.get("c1"));
    if half.command == "GC" {
        config["cniVersion"] = "1.1.0".into();
        config["cni.dev/valid-attachments"] = Value::Array(Vec::new());
        config.as_object_mut().map(|config| config.remove("prevResult"));
    }
    let plugin = config["type"].as_str().unwrap_or_default();
    let output = call(&host, plugin, half.command, "c1", &[], &config.to_string())?;
    let words = match output.code {
        Some(0) if half.command == "ADD" => {
            let result = output.result().map_err(said)?;
            let ips = result["ips"].as_array().into_iter().flatten();
            let ips: Vec<_> = ips.filter_map(|ip| ip["address"].as_str()).collect();
            return Ok(Outcome { said: format!("succeeds | {}", ips.join(", ")), left: Vec::new() });
        }
        Some(0) => "succeeds |".to_owned(),
        // So are the names of pairs.
        _ => without_lots(&in_words(&output.error().map_err(said)?)?),
    };
    let undone = output.code == Some(0) && ["DEL", "GC"].contains(&half.command);
    let (before, before_inside) = if undone { (&untouched, &untouched_inside) } else { (&damaged, &damaged_inside) };
    let mut left = left(before, &host.inventory().map_err(said)?);
    for (before, after) in before_inside.iter().zip(inside()?) {
        // The runtime removes the namespaces of what GC collects.
        if half.command != "GC" {
            left.extend(before.difference(&after));
        }
    }
    left.retain(|line| !half.stays.iter().any(|stays| line.contains(stays)));
    Ok(Outcome { said: words, left })
}

/// Four at a time: most of a case is waiting for namespaces to come and go.
fn outcomes<T: Sync>(cases: &[T], run: impl Fn(&T) -> Result<Outcome> + Sync) -> Vec<Result<Outcome>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let (index, Some(case)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    (index, cases.get(index))
                } {
                    // A private host goes with its thread.
                    let outcome = std::thread::scope(|scope| scope.spawn(|| run(case)).join())
                        .unwrap_or_else(|_| Err(anyhow!("a thread panicked")));
                    done.lock().expect("nobody panics with it").insert(index, outcome);
                }
            });
        }
    });
    done.into_inner().expect("nobody panics with it").into_values().collect()
}

/// Compares what was said with a file of `data/`.
fn compare<'a>(file: &str, dir: &Path, outcomes: impl Iterator<Item = (&'a str, Result<Outcome>)>) -> Result<()> {
    let (mut seen, mut faults) = (String::new(), String::new());
    for (name, outcome) in outcomes {
        match outcome {
            Ok(outcome) => {
                // Directories of the test are drawn by lot.
                let text = outcome.said.replace(&dir.display().to_string(), "PLUGINS");
                let _ = writeln!(seen, "{} | {}", name.escape_debug(), text.escape_debug());
                if !outcome.left.is_empty() {
                    let _ = writeln!(faults, "{name}: left behind: {}", outcome.left.join("; "));
                }
            }
            Err(error) => drop(writeln!(faults, "{name}: {error:#}")),
        }
    }
    let file = project().join("tests/tests/data").join(file);
    if std::env::var_os("OUTRIGGER_UPDATE").is_some() {
        fs_err::write(&file, &seen)?;
    }
    ensure!(faults.is_empty(), "{faults}");
    let wanted = fs_err::read_to_string(&file)?;
    let different: Vec<_> = seen.lines().filter(|line| !wanted.lines().any(|wanted| wanted == *line)).collect();
    ensure!(
        seen == wanted,
        "codes or messages are not those of {}; look, then OUTRIGGER_UPDATE=1:\n{}",
        file.display(),
        different.join("\n")
    );
    Ok(())
}

#[test]
fn bad_input_is_refused_with_code_and_message() -> Result<()> {
    if !can_run("bad_input_is_refused_with_code_and_message") {
        return Ok(());
    }
    let plugins = Plugins::install()?;
    let table = cases::table();
    ensure!(table.len() >= 120 && table.iter().all(|bad| PLUGINS.contains(&bad.plugin)), "{} cases", table.len());
    let outcomes = outcomes(&table, |bad| refused(bad, plugins.dir()));
    compare("cni_bad_input.txt", plugins.dir(), table.iter().map(|bad| bad.name.as_str()).zip(outcomes))
}

#[test]
fn half_states_are_undone_or_named() -> Result<()> {
    if !can_run("half_states_are_undone_or_named") {
        return Ok(());
    }
    let plugins = Plugins::install()?;
    let table = halves::table();
    let outcomes = outcomes(&table, |case| half(case, plugins.dir()));
    compare("cni_half_states.txt", plugins.dir(), table.iter().map(|half| half.name.as_str()).zip(outcomes))
}
