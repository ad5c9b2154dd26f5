//! `outrigger cni gc`

use std::collections::BTreeSet;
use std::io::Read as _;

use anyhow::{Context as _, Result, bail};
use outrigger_cni_sdk::Command;
use outrigger_cni_sdk::runtime::{Attachment, Cached, Collected, Id, NetworkList, Runtime};
use outrigger_netlink::NetNs;
use serde_json::json;

use super::args::{GcArgs, Output};
use super::list::is_live;
use super::{NETNS_DIR, dry_run, network, print, runtime, told};
use crate::say;

/// What is to happen to the networks.
struct Plan {
    /// Valid attachments, of all networks.
    named: BTreeSet<Id>,
    live: bool,
    /// Whether the plugins collect too.
    plugins: bool,
}

pub(super) fn run(args: &GcArgs) -> Result<()> {
    let runtime = runtime(&args.places, args.explain);
    let cached = runtime.attachments(None).map_err(told)?;
    let networks = networks(args, &cached)?;
    let plan = Plan { named: named(args)?, live: args.live, plugins: !args.live || args.with_plugins };
    if args.live && args.with_plugins {
        refuse_unknown_namespaces(&cached)?;
    }
    if args.explain.dry_run {
        for network in &networks {
            preview(args, &runtime, &plan, network, &cached)?;
        }
        return Ok(());
    }
    let mut problems = Vec::new();
    let (mut lines, mut values) = (Vec::new(), Vec::new());
    for network in &networks {
        let collected = collect(&runtime, &plan, network, &cached);
        let deleted: Vec<_> = collected.deleted.iter().map(ToString::to_string).collect();
        lines.push(line(network, &collected));
        let errors: Vec<_> =
            collected.errors.iter().map(|error| format!("{}: {}", network.name, error.report())).collect();
        values.push(
            json!({ "network": network.name, "deleted": deleted, "plugins": collected.plugins, "errors": errors }),
        );
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

fn named(args: &GcArgs) -> Result<BTreeSet<Id>> {
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
    let entries = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let ids = entries.map(|entry| {
        let (id, ifname) = entry.split_once('/').unwrap_or((entry, &args.ifname));
        Attachment::new(id, ifname).id()
    });
    Ok(ids.collect())
}

/// Valid attachments of one network.
fn valid(plan: &Plan, network: &NetworkList, cached: &[Cached]) -> Vec<Id> {
    let mut valid = plan.named.clone();
    if plan.live {
        let live = cached.iter().filter(|cached| cached.network == network.name && is_live(cached));
        valid.extend(live.map(|cached| cached.attachment.id()));
    }
    valid.into_iter().collect()
}

fn collect(runtime: &Runtime, plan: &Plan, network: &NetworkList, cached: &[Cached]) -> Collected {
    let valid = valid(plan, network, cached);
    if plan.plugins { runtime.gc(network, &valid) } else { runtime.delete_invalid(network, &valid) }
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
    format!("{}: {deleted}{plugins}", network.name)
}

fn preview(args: &GcArgs, runtime: &Runtime, plan: &Plan, network: &NetworkList, cached: &[Cached]) -> Result<()> {
    let valid = valid(plan, network, cached);
    for cached in cached.iter().filter(|cached| cached.network == network.name) {
        if !valid.contains(&cached.attachment.id()) {
            dry_run(runtime, Command::Del, network, &cached.attachment, &[], &args.places)?;
        }
    }
    if plan.plugins && network.version >= outrigger_cni_sdk::Version::V1_1_0 {
        dry_run(runtime, Command::Gc, network, &Attachment::default(), &valid, &args.places)?;
    }
    Ok(())
}

/// A namespace that no attachment of the cache has may belong to an ADD that is under way, whose address and rules the
/// plugins would take for garbage.
fn refuse_unknown_namespaces(cached: &[Cached]) -> Result<()> {
    let known: BTreeSet<_> = cached.iter().filter_map(|cached| id(&cached.netns()?)).collect();
    let Ok(entries) = fs_err::read_dir(NETNS_DIR) else { return Ok(()) };
    let unknown: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| id(path).is_some_and(|id| !known.contains(&id)))
        .map(|path| path.display().to_string())
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    bail!(
        "the plugins' own collection is not safe now: {} may be in the making, since the cache has no attachment of it; \
         leave out --with-plugins, name the valid attachments, or run this while no container starts",
        unknown.join(", ")
    )
}

fn id(path: &std::path::Path) -> Option<(u64, u64)> {
    NetNs::open(path).ok()?.id().ok()
}
