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

/// The binary of which our plugins are names.
const HOLDER: &str = "outrigger-cni";

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

/// The files of the directory that cannot be used, by the name of their network as far as it can be made out.
pub(super) fn broken(places: &Places) -> Result<Vec<(String, Error)>> {
    let found = read(&places.config_dir, Order::Libcni).map_err(told)?;
    let broken = found.into_iter().filter_map(|found| Some((found.name, found.network.err()?)));
    Ok(broken.map(|(name, error)| (name.unwrap_or_else(|| "?".to_owned()), error)).collect())
}

/// Names of the directory's networks, also of those that are broken.
pub(super) fn names(places: &Places) -> Result<Vec<String>> {
    let found = read(&places.config_dir, Order::Libcni).map_err(told)?;
    Ok(found.into_iter().filter_map(|found| found.name).collect())
}

/// `cni list`: sorted as containerd and CRI-O do.
pub(super) fn networks(args: &ListArgs) -> Result<()> {
    let runtime = runtime(&args.places, QUIET);
    let found = read(&args.places.config_dir, Order::ByName).map_err(told)?;
    let by_name: Vec<_> = read(&args.places.config_dir, Order::Libcni)
        .map_err(told)?
        .into_iter()
        .filter_map(|found| Some((found.name?, found.file)))
        .collect();
    let missing: Vec<_> =
        found.iter().map(|entry| entry.network.as_ref().ok().and_then(|network| missing(&runtime, network))).collect();
    // containerd takes the first file or nothing. CRI-O passes over what is broken, or needs a plugin that is not there.
    let containerd = 0;
    let crio = found.iter().zip(&missing).position(|(entry, missing)| entry.network.is_ok() && missing.is_none());
    let (mut rows, mut values) = (Vec::new(), Vec::new());
    for (index, (entry, missing)) in found.iter().zip(missing).enumerate() {
        let mut problems = Vec::new();
        let (mut version, mut plugins) = (String::new(), Vec::new());
        let mut used_by = Vec::new();
        match &entry.network {
            Ok(network) => {
                version = network.version.to_string();
                plugins = network.plugins.iter().map(|plugin| plugin.kind.clone()).collect();
                problems.extend(missing);
                let first = by_name.iter().find(|(name, _)| *name == network.name).map(|(_, file)| file);
                if let Some(first) = first.filter(|first| **first != entry.file) {
                    let first = first.file_name().unwrap_or_default().to_string_lossy();
                    problems.push(format!("{first} has the same name: podman and cnitool take that one"));
                }
                used_by.extend((index == containerd).then_some("containerd"));
                used_by.extend((Some(index) == crio).then_some("CRI-O"));
            }
            Err(error) => {
                problems.push(without_file(error, &entry.file));
                if index == containerd {
                    problems.push("containerd stops here and has no network at all".to_owned());
                }
            }
        }
        rows.push(vec![
            print::or_dash(used_by.join(",")),
            entry.name.clone().unwrap_or_else(|| "?".to_owned()),
            print::or_dash(version.as_str()),
            print::or_dash(plugins.join(",")),
            entry.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            if problems.is_empty() { "ok".to_owned() } else { problems.join("; ") },
        ]);
        values.push(json!({
            "file": entry.file, "network": entry.name, "usedBy": used_by, "cniVersion": version, "plugins": plugins,
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
            // What is being written has a dot; the binary that holds our plugins is none itself.
            let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.') && name != HOLDER);
            names.extend(name.filter(|_| executable));
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
                let state = state(cached.netns().as_deref());
                let netns = cached.netns().map(|path| path.display().to_string()).unwrap_or_default();
                let live = (state != State::Unknown).then_some(state == State::Live);
                rows.push(vec![
                    cached.network.clone(),
                    cached.attachment.container_id.clone(),
                    cached.attachment.ifname.clone(),
                    print::or_dash(addresses.join(",")),
                    print::or_dash(netns.as_str()),
                    state.words().to_owned(),
                ]);
                values.push(json!({
                    "file": file.file, "network": cached.network, "containerID": cached.attachment.container_id,
                    "ifname": cached.attachment.ifname, "addresses": addresses, "netns": netns, "live": live,
                    "result": cached.result,
                }));
            }
            Err(damage) if args.network.is_none() && args.container_id.is_none() => {
                let dash = || "?".to_owned();
                rows.push(vec![dash(), dash(), dash(), dash(), dash(), format!("damaged file {name}: {damage}")]);
                values.push(json!({ "file": file.file, "problem": damage.to_string() }));
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

/// Whether an attachment's network namespace is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Live,
    Gone,
    /// It was never named, or cannot be looked at.
    Unknown,
}

impl State {
    fn words(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Gone => "namespace gone",
            Self::Unknown => "unknown",
        }
    }
}

pub(super) fn state(netns: Option<&Path>) -> State {
    match netns.map(NetNs::open) {
        Some(Ok(_)) => State::Live,
        Some(Err(error)) if error.is_namespace_gone() => State::Gone,
        Some(Err(_)) | None => State::Unknown,
    }
}
