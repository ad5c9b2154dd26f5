//! What is there: networks, plugins, attachments.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use outrigger_cni_sdk::AddResult;
use outrigger_cni_sdk::runtime::{Cached, Error, NetworkList, Order, Runtime, networks as read, split_path};
use outrigger_netlink::NetNs;
use serde_json::json;

use super::args::{CacheArgs, Explain, ListArgs, Places, VersionArgs};
use super::{print, runtime, show, told};
use crate::say;

const QUIET: Explain = Explain { explain: false, dry_run: false };

/// Every network of the directory that can be read.
pub(super) fn all(places: &Places) -> Result<Vec<NetworkList>> {
    let found = read(&places.config_dir, Order::Libcni).map_err(told)?;
    let mut networks: Vec<NetworkList> = Vec::new();
    for network in found.into_iter().filter_map(|found| found.network.ok()) {
        // Of several with one name only the first can be used.
        if networks.iter().all(|known| known.name != network.name) {
            networks.push(network);
        }
    }
    Ok(networks)
}

/// `cni list`: sorted as containerd and CRI-O do, of which the first valid one is what pods get.
pub(super) fn networks(args: &ListArgs) -> Result<()> {
    let runtime = runtime(&args.places, QUIET);
    let found = read(&args.places.config_dir, Order::ByName).map_err(told)?;
    let by_name: Vec<_> = read(&args.places.config_dir, Order::Libcni)
        .map_err(told)?
        .into_iter()
        .filter_map(|found| Some((found.name?, found.file)))
        .collect();
    let mut pods_get = Some(());
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    for entry in found {
        let mut problems = Vec::new();
        let (mut version, mut plugins) = (String::new(), Vec::new());
        match &entry.network {
            Ok(network) => {
                version = network.version.to_string();
                plugins = network.plugins.iter().map(|plugin| plugin.kind.clone()).collect();
                problems.extend(missing(&runtime, network));
                let first = by_name.iter().find(|(name, _)| *name == network.name).map(|(_, file)| file);
                if let Some(first) = first.filter(|first| **first != entry.file) {
                    problems.push(format!("hidden by {}, which has the same name", first.display()));
                }
            }
            Err(error) => problems.push(without_file(error, &entry.file)),
        }
        let is_pods = entry.network.is_ok() && pods_get.take().is_some();
        rows.push(vec![
            if is_pods { "pods".to_owned() } else { "-".to_owned() },
            entry.name.clone().unwrap_or_else(|| "?".to_owned()),
            print::or_dash(version.as_str()),
            print::or_dash(plugins.join(",")),
            entry.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            if problems.is_empty() { "ok".to_owned() } else { problems.join("; ") },
        ]);
        values.push(json!({
            "file": entry.file, "network": entry.name, "pods": is_pods, "cniVersion": version, "plugins": plugins,
            "problems": problems,
        }));
    }
    if rows.is_empty() && args.places.output != Some(super::Output::Json) {
        return say(&format!("no networks in {}", args.places.config_dir.display()));
    }
    show(&args.places, &["USED BY", "NETWORK", "VERSION", "PLUGINS", "FILE", "STATE"], &rows, values)
}

/// Plugins of a network that are not installed.
fn missing(runtime: &Runtime, network: &NetworkList) -> Option<String> {
    let kinds = network.plugins.iter().map(|plugin| plugin.kind.as_str());
    let missing: BTreeSet<_> = kinds.filter(|kind| runtime.find(kind).is_err()).collect();
    let names: Vec<_> = missing.into_iter().collect();
    (!names.is_empty()).then(|| format!("not installed: {}", names.join(", ")))
}

/// An error of a file whose name stands beside it.
fn without_file(error: &Error, shown: &Path) -> String {
    match error {
        Error::Config { file: Some(file), place, problem } if file == shown => match place {
            Some(place) => format!("{place}: {problem}"),
            None => problem.clone(),
        },
        other => other.report(),
    }
}

/// `cni version`
pub(super) fn versions(args: &VersionArgs) -> Result<()> {
    let runtime = runtime(&args.places, QUIET);
    let plugins = if args.plugins.is_empty() { installed(&args.places) } else { args.plugins.clone() };
    let (mut rows, mut values, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for plugin in plugins {
        let path = runtime.find(&plugin).map(|path| path.display().to_string()).unwrap_or_default();
        let (versions, problem) = match runtime.versions(&plugin) {
            Ok(versions) => (versions, String::new()),
            Err(error) => {
                let report = error.report();
                errors.push(error);
                (Vec::new(), report)
            }
        };
        let told = if problem.is_empty() { versions.join(" ") } else { problem.clone() };
        rows.push(vec![plugin.clone(), print::or_dash(path.as_str()), told]);
        values.push(json!({ "plugin": plugin, "path": path, "supportedVersions": versions, "problem": problem }));
    }
    // One that was asked for by name must answer; in a whole directory there may be anything.
    match errors.into_iter().next() {
        Some(error) if args.plugins.len() == 1 => Err(told(error)),
        _ => show(&args.places, &["PLUGIN", "PATH", "VERSIONS"], &rows, values),
    }
}

/// Names of the executables in the plugin directories.
fn installed(places: &Places) -> Vec<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut names = BTreeSet::new();
    for dir in split_path(&places.plugin_dirs) {
        let Ok(entries) = fs_err::read_dir(dir) else { continue };
        for entry in entries.flatten() {
            let executable = fs_err::metadata(entry.path())
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
            // dhcp's daemon and the like answer as plugins too; only what is no name at all is left out.
            if let (true, Ok(name)) = (executable, entry.file_name().into_string()) {
                names.insert(name);
            }
        }
    }
    names.into_iter().collect()
}

/// `cni cache`
pub(super) fn cache(args: &CacheArgs) -> Result<()> {
    let runtime = runtime(&args.places, QUIET);
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    for file in runtime.cache_files().map_err(told)? {
        let name = file.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        match file.content {
            Ok(cached) if wanted(args, &cached) => {
                let addresses = addresses(&cached);
                let netns = cached.netns().map(|path| path.display().to_string()).unwrap_or_default();
                let state = if is_live(&cached) { "live" } else { "namespace gone" };
                rows.push(vec![
                    cached.network.clone(),
                    cached.attachment.container_id.clone(),
                    cached.attachment.ifname.clone(),
                    print::or_dash(addresses.join(",")),
                    print::or_dash(netns.as_str()),
                    state.to_owned(),
                ]);
                values.push(json!({
                    "file": file.file, "network": cached.network, "containerID": cached.attachment.container_id,
                    "ifname": cached.attachment.ifname, "addresses": addresses, "netns": netns, "live": is_live(&cached),
                    "result": cached.result,
                }));
            }
            Err(damage) if args.network.is_none() && args.container_id.is_none() => {
                let dash = || "?".to_owned();
                rows.push(vec![dash(), dash(), dash(), dash(), dash(), format!("damaged file {name}: {damage}")]);
                values.push(json!({ "file": file.file, "problem": damage }));
            }
            Ok(_) | Err(_) => {}
        }
    }
    show(&args.places, &["NETWORK", "CONTAINER", "IFNAME", "ADDRESSES", "NAMESPACE", "STATE"], &rows, values)
}

fn wanted(args: &CacheArgs, cached: &Cached) -> bool {
    args.network.as_ref().is_none_or(|network| *network == cached.network)
        && args.container_id.as_ref().is_none_or(|id| *id == cached.attachment.container_id)
}

fn addresses(cached: &Cached) -> Vec<String> {
    let result = cached.result.as_ref().and_then(|result| AddResult::from_value(result).ok());
    result.map(|result| result.ips.iter().map(|ip| ip.address.to_string()).collect()).unwrap_or_default()
}

/// Whether the attachment's network namespace is still there. Of one that never named it, nobody knows.
pub(super) fn is_live(cached: &Cached) -> bool {
    cached.netns().is_none_or(|path| !NetNs::open(path).is_err_and(|error| error.is_namespace_gone()))
}
