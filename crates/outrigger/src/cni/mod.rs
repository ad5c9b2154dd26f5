//! `outrigger cni`: what cnitool does, and more: calls the plugins of a network by hand, lists, explains, collects.

mod args;
mod garbage;
mod list;
mod print;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use outrigger_cni_sdk::runtime::{Attachment, Error, Event, Id, NetworkList, Runtime, split_path};
use outrigger_cni_sdk::{Code, Command, Version};
use outrigger_netlink::NetNs;
use outrigger_netlink::route::Handle;
use serde_json::Value;
use sha2::{Digest as _, Sha512};

pub(crate) use args::CniCommand;
use args::{AddArgs, AttachmentArgs, CheckArgs, DelArgs, Explain, Output, Places, StatusArgs};

use crate::{Outcome, say};

/// Where namespaces have names.
const NETNS_DIR: &str = "/run/netns";

pub(crate) fn run(command: CniCommand) -> Result<Outcome> {
    match command {
        CniCommand::Add(args) => add(&args),
        CniCommand::Del(args) => del(&args),
        CniCommand::Check(args) => check(&args),
        CniCommand::Gc(args) => garbage::run(&args),
        CniCommand::Status(args) => return status(&args),
        CniCommand::Version(args) => list::versions(&args),
        CniCommand::List(args) => list::networks(&args),
        CniCommand::Cache(args) => list::cache(&args),
    }
    .map(|()| Outcome::Done)
}

fn add(args: &AddArgs) -> Result<()> {
    let network = network(&args.places, &args.network)?;
    let netns = netns(&args.netns)?;
    let attachment = attachment(&args.attachment, Some(&netns))?;
    let runtime = runtime(&args.places, args.explain);
    if args.explain.dry_run {
        return dry_run(&runtime, Command::Add, &network, &attachment, &[], &args.places);
    }
    if runtime.cached(&network.name, &attachment).map_err(told)?.is_some() {
        bail!(
            "{} is attached to {:?} as {} already; first: outrigger cni del {} {} --ifname {}",
            attachment.container_id,
            network.name,
            attachment.ifname,
            args.network,
            args.netns,
            attachment.ifname
        );
    }
    runtime.admit(&network, &attachment).map_err(told)?;
    let made = prepare(&netns, args.create_netns)?;
    if !made {
        refuse_interface(&network, &attachment, &netns)?;
    }
    let added = match runtime.add(&network, &attachment) {
        Ok(added) => added,
        Err(error) => return Err(undo(args, &runtime, &network, &attachment, &netns, made, error)),
    };
    let for_people = args.places.output.map_or_else(|| std::io::stdout().is_terminal(), |form| form == Output::Table);
    say(&if for_people { print::result(&network, &attachment, &added.result) } else { print::pretty(&added.json) })
}

/// Makes the namespace if that is wanted, and says whether it did. One that is there must be one.
fn prepare(netns: &Path, create: bool) -> Result<bool> {
    if create && !netns.exists() {
        NetNs::create(netns)?;
        return Ok(true);
    }
    let hint = if create { "" } else { "; --create-netns makes one that is missing" };
    NetNs::open(netns).map(|_| false).with_context(|| format!("the network namespace cannot be used{hint}"))
}

/// An interface that is there already is somebody else's. ADD would fail, and the DEL that has to follow a failed ADD would
/// remove it.
fn refuse_interface(network: &NetworkList, attachment: &Attachment, netns: &Path) -> Result<()> {
    // Every namespace has one interface from the beginning, and one plugin is about that.
    if network.plugins.iter().all(|plugin| plugin.kind == "loopback") {
        return Ok(());
    }
    let found = NetNs::open(netns).and_then(|netns| Handle::in_netns(&netns)?.find_link(attachment.ifname.as_str()));
    if found.with_context(|| format!("cannot look for {} in {}", attachment.ifname, netns.display()))?.is_none() {
        return Ok(());
    }
    bail!(
        "{} is in {} already, and not as attachment {} of {:?}; choose another name with --ifname, or detach it as what it \
         is (outrigger cni cache shows who is attached)",
        attachment.ifname,
        netns.display(),
        attachment.container_id,
        network.name
    )
}

/// After a failed ADD a runtime owes a DEL.
fn undo(
    args: &AddArgs,
    runtime: &Runtime,
    network: &NetworkList,
    attachment: &Attachment,
    netns: &Path,
    made: bool,
    error: Error,
) -> anyhow::Error {
    if args.keep_failed {
        let undo = format!(
            "outrigger cni del {} {} --container-id {} --ifname {}",
            args.network, args.netns, attachment.container_id, attachment.ifname
        );
        return anyhow!("{}; what was made stays (--keep-failed), undo it with: {undo}", error.report());
    }
    let undone = runtime.del(network, attachment).err().filter(|second| !is_same(&error, second));
    let removed = if made { NetNs::remove(netns).err() } else { None };
    let removed = removed.map(|error| format!("{:#}", anyhow::Error::new(error)));
    match undone.map(|error| error.report()).into_iter().chain(removed).collect::<Vec<_>>() {
        failed if failed.is_empty() => told(error),
        failed => anyhow!("{}; undoing it failed too: {}", error.report(), failed.join("; ")),
    }
}

/// Whether two errors tell the same.
fn is_same(first: &Error, second: &Error) -> bool {
    match (first, second) {
        (Error::Plugin { plugin, error, .. }, Error::Plugin { plugin: other, error: second, .. }) => {
            (plugin, error) == (other, second)
        }
        _ => first.report() == second.report(),
    }
}

fn del(args: &DelArgs) -> Result<()> {
    let netns = args.netns.as_deref().map(netns).transpose()?;
    let attachment = attachment(&args.attachment, netns.as_deref())?;
    let runtime = runtime(&args.places, args.explain);
    let network = match network(&args.places, &args.network) {
        Ok(network) => network,
        // Its configuration is gone, but not what was made by it.
        Err(error) => match remembered(&runtime, &args.network, &attachment) {
            Some(network) => network,
            None => return Err(error),
        },
    };
    if args.explain.dry_run {
        return dry_run(&runtime, Command::Del, &network, &attachment, &[], &args.places);
    }
    runtime.del(&network, &attachment).map_err(told)?;
    match netns {
        Some(netns) if args.remove_netns => Ok(NetNs::remove(netns)?),
        _ => Ok(()),
    }
}

fn remembered(runtime: &Runtime, network: &str, attachment: &Attachment) -> Option<NetworkList> {
    let cached = runtime.cached(network, attachment).ok().flatten()?;
    cached.network_list().ok()
}

fn check(args: &CheckArgs) -> Result<()> {
    let network = network(&args.places, &args.network)?;
    let attachment = attachment(&args.attachment, Some(&netns(&args.netns)?))?;
    let runtime = runtime(&args.places, args.explain);
    if args.explain.dry_run {
        return dry_run(&runtime, Command::Check, &network, &attachment, &[], &args.places);
    }
    runtime.check(&network, &attachment).map_err(told)
}

fn status(args: &StatusArgs) -> Result<Outcome> {
    let runtime = runtime(&args.places, args.explain);
    let (networks, broken) = match &args.network {
        Some(name) => (vec![network(&args.places, name)?], Vec::new()),
        None => (list::all(&args.places)?, list::broken(&args.places)?),
    };
    if args.explain.dry_run {
        for network in &networks {
            dry_run(&runtime, Command::Status, network, &Attachment::default(), &[], &args.places)?;
        }
        return Ok(Outcome::Done);
    }
    let answers = networks.iter().map(|network| match runtime.status(network) {
        Err(error) => (network.name.clone(), false, error.code().map(Code::number), error.report()),
        Ok(()) if network.version < Version::V1_1_0 => {
            let why = format!("the plugins are there; version {} has no STATUS to ask them", network.version);
            (network.name.clone(), true, None, why)
        }
        Ok(()) => (network.name.clone(), true, None, String::new()),
    });
    let unusable = broken.into_iter().map(|(name, error)| (name, false, None, error.report()));
    let answers: Vec<_> = answers.chain(unusable).collect();
    let rows: Vec<_> = answers
        .iter()
        .map(|(name, ready, code, why)| {
            let word = if *ready { "yes" } else { "no" };
            let code = print::or_dash(code.map(|code| code.to_string()).unwrap_or_default());
            vec![name.clone(), word.to_owned(), code, print::or_dash(why.as_str())]
        })
        .collect();
    let value = |(name, ready, code, why): &(String, bool, Option<u32>, String)| serde_json::json!({ "network": name, "ready": ready, "code": code, "why": why });
    show(&args.places, &["NETWORK", "READY", "CODE", "WHY"], &rows, answers.iter().map(value).collect())?;
    Ok(if answers.iter().all(|(_, ready, ..)| *ready) { Outcome::Done } else { Outcome::NotReady })
}

/// Prints rows as the user wants them.
fn show(places: &Places, heading: &[&str], rows: &[Vec<String>], values: Vec<Value>) -> Result<()> {
    match places.output {
        Some(Output::Json) => say(&print::pretty(&Value::Array(values))),
        _ => say(&print::table(heading, rows)),
    }
}

fn dry_run(
    runtime: &Runtime,
    command: Command,
    network: &NetworkList,
    attachment: &Attachment,
    valid: &[Id],
    places: &Places,
) -> Result<()> {
    let calls = runtime.explain(command, network, attachment, valid).map_err(told)?;
    match places.output {
        Some(Output::Json) => say(&print::pretty(&calls.iter().map(print::invocation_json).collect())),
        _ => say(&calls.iter().map(print::invocation).collect::<Vec<_>>().join("\n\n")),
    }
}

fn runtime(places: &Places, explain: Explain) -> Runtime {
    let builder = Runtime::builder().plugin_dirs(split_path(&places.plugin_dirs)).cache_dir(&places.cache_dir);
    let builder = builder.observer(move |event| {
        // Whoever reads it may have left; the plugin's work counts.
        let mut stderr = std::io::stderr().lock();
        let _ = match event {
            Event::Call(call) if explain.explain => writeln!(stderr, "{}\n", print::invocation(call)),
            Event::Done(call, took, result) if explain.explain => {
                let word = if result.is_ok() { "succeeded" } else { "failed" };
                writeln!(stderr, "# {} by {:?} {word} after {took:.1?}\n", call.command(), call.plugin)
            }
            Event::Stderr(_, text) => stderr.write_all(text),
            _ => Ok(()),
        };
    });
    match places.timeout {
        Some(limit) => builder.time_limit(limit).build(),
        None => builder.build(),
    }
}

/// A network by its name, or from a file.
fn network(places: &Places, name: &str) -> Result<NetworkList> {
    if name.contains('/') {
        return NetworkList::load(name).map_err(told);
    }
    NetworkList::find(&places.config_dir, name).map_err(told)
}

/// A network namespace's path: a word without `/` is a name.
fn netns(name: &str) -> Result<PathBuf> {
    if name.is_empty() {
        bail!("the network namespace is empty; give a name, or a path");
    }
    if !name.contains('/') {
        return Ok(Path::new(NETNS_DIR).join(name));
    }
    std::path::absolute(name).with_context(|| format!("network namespace {name:?}"))
}

fn attachment(args: &AttachmentArgs, netns: Option<&Path>) -> Result<Attachment> {
    let id = match (&args.container_id, netns) {
        (Some(id), _) => id.clone(),
        (None, Some(netns)) => default_id(netns),
        (None, None) => bail!("name the container with --container-id"),
    };
    let mut attachment = Attachment::new(id, &args.ifname);
    attachment.netns = netns.map(Path::to_owned);
    for pair in args.args.as_deref().unwrap_or_default().split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            bail!("--args or CNI_ARGS: {pair:?} is no pair; write KEY=VALUE;KEY=VALUE");
        };
        attachment.args.push((key.to_owned(), value.to_owned()));
    }
    if let Some(text) = args.cap_args.as_deref().filter(|text| !text.trim().is_empty()) {
        attachment.capabilities = serde_json::from_str(text)
            .context("--cap-args or CAP_ARGS must be a JSON object, capability by capability")?;
    }
    Ok(attachment)
}

/// The container id that cnitool makes for a namespace.
fn default_id(netns: &Path) -> String {
    let digest = Sha512::digest(netns.as_os_str().as_encoded_bytes());
    digest.iter().take(10).fold("cnitool-".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

/// The library's error with its causes told once.
fn told(error: Error) -> anyhow::Error {
    anyhow::Error::new(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(cni_args: Option<&str>, capabilities: Option<&str>) -> AttachmentArgs {
        AttachmentArgs {
            ifname: "eth0".into(),
            container_id: None,
            args: cni_args.map(Into::into),
            cap_args: capabilities.map(Into::into),
        }
    }

    #[test]
    fn the_container_id_is_cnitools() {
        assert_eq!(default_id(Path::new("/var/run/netns/testing")), "cnitool-77383ca0a0715733ca6f");
    }

    #[test]
    fn namespaces_have_names_or_paths() {
        assert_eq!(netns("blue").unwrap(), Path::new("/run/netns/blue"));
        assert_eq!(netns("/proc/1/ns/net").unwrap(), Path::new("/proc/1/ns/net"));
        assert!(netns("./x").unwrap().is_absolute());
        assert!(netns("").is_err());
    }

    #[test]
    fn arguments_are_read_or_refused() {
        let netns = Path::new("/run/netns/x");
        let attachment = attachment(&args(Some("A=1;;B=x"), Some(r#"{"mac":"x"}"#)), Some(netns)).unwrap();
        assert_eq!(attachment.args, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x".to_owned())]);
        assert_eq!(attachment.capabilities["mac"], "x");
        assert!(super::attachment(&args(Some("A"), None), Some(netns)).is_err());
        assert!(super::attachment(&args(None, Some("[]")), Some(netns)).is_err());
        assert!(super::attachment(&args(None, None), None).is_err());
        assert!(super::attachment(&args(None, Some("")), Some(netns)).unwrap().capabilities.is_empty());
    }
}
