//! `outrigger cni gc`

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use outrigger_cni_sdk::runtime::{Attachment, Cached, Collected, Held, Id, LeftAlone, NetworkList, Plan, Runtime};
use outrigger_cni_sdk::{Command, Version};
use outrigger_netlink::NetNs;
use serde_json::{Value, json};

use super::args::{GcArgs, Output};
use super::list::{State, state};
use super::{NETNS_DIR, network, print, runtime, told};
use crate::say;

/// What counts as valid.
struct Rule {
    /// Valid attachments, of all networks.
    named: Vec<Id>,
    /// Whether attachments count whose namespace is still there; then, when this host was booted.
    live: Option<SystemTime>,
    /// Whether the plugins collect too.
    plugins: bool,
    /// Names of all networks, which help to tell whose a damaged file is.
    networks: Vec<String>,
}

pub(super) fn run(args: &GcArgs) -> Result<()> {
    let runtime = runtime(&args.places, args.explain);
    let cached = runtime.attachments(None).map_err(told)?;
    let networks = networks(args, &cached)?;
    let rule = Rule {
        named: named(args)?,
        live: args.live.then(booted).transpose()?,
        plugins: !args.live || args.with_plugins,
        networks: super::list::names(&args.places)?,
    };
    // Everything is decided before anything is done, and shown as it would be done.
    let mut plans = Vec::new();
    for network in networks {
        let plan = plan(&runtime, &rule, &network)?;
        plans.push((network, plan));
    }
    if args.live && args.with_plugins {
        refuse_what_is_not_known(&cached, &plans)?;
    }
    if args.explain.dry_run {
        return preview(args, &runtime, &rule, &plans);
    }
    let mut problems = Vec::new();
    let (mut lines, mut values) = (Vec::new(), Vec::new());
    for (network, plan) in plans {
        let valid = valid(&rule, &plan);
        let mut collected = runtime.delete_stale(&network, plan);
        if rule.plugins {
            runtime.gc_by_plugins(&network, &valid, &mut collected);
        }
        let deleted: Vec<_> = collected.deleted.iter().map(ToString::to_string).collect();
        lines.push(line(&network, &collected));
        let errors: Vec<_> =
            collected.errors.iter().map(|error| format!("{}: {}", network.name, error.report())).collect();
        values.push(json!({
            "network": network.name, "deleted": deleted, "left": left(&collected.left), "plugins": collected.plugins,
            "errors": errors,
        }));
        problems.extend(errors);
    }
    match args.places.output {
        Some(Output::Json) => say(&print::pretty(&values.into()))?,
        _ => say(&lines.join("\n"))?,
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(())
}

/// The networks that are meant. A network that is configured no more, but has attachments, is known from the cache.
fn networks(args: &GcArgs, cached: &[Cached]) -> Result<Vec<NetworkList>> {
    if let Some(name) = &args.network {
        return match network(&args.places, name) {
            Ok(network) => Ok(vec![network]),
            Err(error) => {
                let known = cached.iter().find(|cached| cached.network == *name);
                known.and_then(|cached| cached.network_list().ok()).map(|network| vec![network]).ok_or(error)
            }
        };
    }
    let mut networks = super::list::all(&args.places)?;
    for cached in cached {
        if networks.iter().all(|network| network.name != cached.network) {
            networks.extend(cached.network_list().ok());
        }
    }
    Ok(networks)
}

fn named(args: &GcArgs) -> Result<Vec<Id>> {
    let mut text = args.valid.join("\n");
    if let Some(file) = &args.valid_from {
        text.push('\n');
        if file.as_os_str() == "-" {
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read the valid attachments from standard input")?;
        } else {
            text.push_str(&fs_err::read_to_string(file)?);
        }
    }
    let named = parse_named(&text, &args.ifname)?;
    // Whatever was to write the list may have failed. Who means that nothing is valid can say so.
    if named.is_empty() && !args.live && !args.none {
        bail!("no valid attachment is named, which would delete all; if that is meant: --none");
    }
    Ok(named)
}

/// Attachments, one a line; lines that begin with `#` are comments.
fn parse_named(text: &str, ifname: &str) -> Result<Vec<Id>> {
    let entries = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let ids = entries.map(|entry| {
        let (id, ifname) = entry.split_once('/').unwrap_or((entry, ifname));
        let id = Attachment::new(id, ifname).id();
        id.check().map_err(told).with_context(|| format!("valid attachment {entry:?}; nothing was deleted"))?;
        Ok(id)
    });
    ids.collect()
}

/// When this host was booted.
fn booted() -> Result<SystemTime> {
    let stat = fs_err::read_to_string("/proc/stat")?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
    Ok(UNIX_EPOCH + Duration::from_secs(seconds.context("/proc/stat does not tell when the host was booted")?))
}

fn plan(runtime: &Runtime, rule: &Rule, network: &NetworkList) -> Result<Plan> {
    let networks: Vec<&str> = rule.networks.iter().map(String::as_str).collect();
    let is_valid = |held: &Held| rule.live.is_some_and(|booted| is_live(held, booted));
    runtime.plan_gc(network, &networks, &rule.named, &is_valid).map_err(told)
}

/// Whether an attachment lives. One whose file is damaged may be of a pod that runs, or that is being attached at this
/// moment by a runtime that does not write the file at once; unless it was written before the host was booted.
fn is_live(held: &Held, booted: SystemTime) -> bool {
    match &held.damage {
        None => state(held.attachment.netns.as_deref()) != State::Gone,
        Some(_) => held.modified.is_none_or(|modified| modified >= booted),
    }
}

/// What the plugins are told to be valid.
fn valid(rule: &Rule, plan: &Plan) -> Vec<Id> {
    let held = plan.valid.iter().map(|held| held.attachment.id());
    held.chain(rule.named.iter().cloned()).collect::<BTreeSet<_>>().into_iter().collect()
}

fn left(left: &[LeftAlone]) -> Vec<Value> {
    left.iter().map(|left| json!({ "file": left.file, "why": left.why })).collect()
}

fn left_line(left: &LeftAlone) -> String {
    format!("left alone: {}: {}", left.file.display(), left.why)
}

fn line(network: &NetworkList, collected: &Collected) -> String {
    if network.disable_gc {
        return format!("{}: left alone (disableGC)", network.name);
    }
    let deleted: Vec<_> = collected.deleted.iter().map(ToString::to_string).collect();
    let deleted =
        if deleted.is_empty() { "nothing to delete".to_owned() } else { format!("deleted {}", deleted.join(", ")) };
    let plugins = match collected.plugins.as_slice() {
        [] => String::new(),
        plugins => format!("; collected by {}", plugins.join(", ")),
    };
    let mut lines = vec![format!("{}: {deleted}{plugins}", network.name)];
    lines.extend(collected.left.iter().map(|left| format!("  {}", left_line(left))));
    lines.join("\n")
}

fn preview(args: &GcArgs, runtime: &Runtime, rule: &Rule, plans: &[(NetworkList, Plan)]) -> Result<()> {
    let (mut blocks, mut values) = (Vec::new(), Vec::new());
    for (network, plan) in plans {
        let mut calls = Vec::new();
        for held in &plan.stale {
            calls.extend(runtime.explain(Command::Del, network, &held.attachment, &[]).map_err(told)?);
        }
        if rule.plugins && !network.disable_gc && network.version >= Version::V1_1_0 {
            let valid = valid(rule, plan);
            calls.extend(runtime.explain(Command::Gc, network, &Attachment::default(), &valid).map_err(told)?);
        }
        values.push(json!({
            "network": network.name, "calls": calls.iter().map(print::invocation_json).collect::<Vec<_>>(),
            "left": left(&plan.left),
        }));
        if calls.is_empty() {
            blocks.push(format!("# {}: nothing to do", network.name));
        }
        blocks.extend(calls.iter().map(print::invocation));
        blocks.extend(plan.left.iter().map(|left| format!("# {}: {}", network.name, left_line(left))));
    }
    match args.places.output {
        Some(Output::Json) => say(&print::pretty(&values.into())),
        _ => say(&blocks.join("\n\n")),
    }
}

/// A namespace that no attachment of the cache has may belong to an ADD that is under way, whose address and rules the
/// plugins would take for garbage. So would they those of an attachment of which nobody knows the name.
fn refuse_what_is_not_known(cached: &[Cached], plans: &[(NetworkList, Plan)]) -> Result<()> {
    let mut unknown: BTreeSet<String> = plans
        .iter()
        .flat_map(|(_, plan)| &plan.left)
        .map(|left| format!("{} cannot be judged ({})", left.file.display(), left.why))
        .collect();
    let held = plans.iter().flat_map(|(_, plan)| plan.valid.iter().chain(&plan.stale));
    let held = held.filter_map(|held| held.attachment.netns.clone());
    // Those of other networks too.
    let known: BTreeSet<_> = held.chain(cached.iter().filter_map(Cached::netns)).filter_map(|path| id(&path)).collect();
    if let Ok(entries) = fs_err::read_dir(NETNS_DIR) {
        let paths = entries.flatten().map(|entry| entry.path());
        let paths = paths.filter(|path| id(path).is_some_and(|id| !known.contains(&id)));
        unknown.extend(
            paths.map(|path| {
                format!("{} may be in the making, since the cache has no attachment of it", path.display())
            }),
        );
    }
    if unknown.is_empty() {
        return Ok(());
    }
    bail!(
        "the plugins' own collection is not safe now: {}; leave out --with-plugins, name the valid attachments, or run this \
         while no container starts",
        unknown.into_iter().collect::<Vec<_>>().join("; ")
    )
}

fn id(path: &Path) -> Option<(u64, u64)> {
    NetNs::open(path).ok()?.id().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_valid_is_named_line_by_line() {
        let named = parse_named("# pods\n 1f9a \n\n77c0/net1\n", "eth0").unwrap();
        assert_eq!(named.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1f9a/eth0", "77c0/net1"]);
        for wrong in ["1f9a\nerror: no such pod", "a/b/c", "/eth0", "a/", "a/a-name-that-is-16"] {
            let error = format!("{:#}", parse_named(wrong, "eth0").unwrap_err());
            assert!(error.contains("nothing was deleted"), "{wrong:?}: {error}");
        }
        assert_eq!(parse_named("\n#\n", "eth0").unwrap(), []);
    }

    #[test]
    fn a_damaged_file_is_garbage_if_it_is_older_than_the_boot() {
        let booted = booted().unwrap();
        assert!(booted < SystemTime::now() && booted > UNIX_EPOCH);
        let held = |damage: Option<&str>, modified: SystemTime| Held {
            file: "/x".into(),
            attachment: Attachment::new("c", "eth0").netns("/nowhere"),
            damage: damage.map(Into::into),
            modified: Some(modified),
        };
        let second = Duration::from_secs(1);
        assert!(is_live(&held(Some("empty"), booted), booted));
        assert!(!is_live(&held(Some("empty"), booted - second), booted));
        assert!(!is_live(&held(None, booted + second), booted), "its namespace is gone");
        let unnamed = Held { attachment: Attachment::new("c", "eth0"), ..held(None, booted) };
        assert!(is_live(&unnamed, booted), "of one that never named its namespace, nobody knows");
    }
}
