//! The other side of CNI: what a container runtime does. Loads networks, calls their plugins, remembers attachments.
//!
//! Behaviour, file formats and places are libcni's, so that this library can stand in for it, beside it, and after it:
//!
//! ```no_run
//! use outrigger_cni_sdk::runtime::{Attachment, NetworkList, Runtime};
//!
//! let runtime = Runtime::builder().plugin_dirs(["/opt/cni/bin"]).cache_dir("/var/lib/cni").build();
//! let network = NetworkList::load("/etc/cni/net.d/10-pods.conflist")?;
//! let pod = Attachment::new("1f9a", "eth0").netns("/run/netns/1f9a").arg("K8S_POD_NAME", "web-0");
//! let added = runtime.add(&network, &pod)?;
//! println!("{:?}", added.result.ips);
//! runtime.del(&network, &pod)?;
//! # Ok::<(), outrigger_cni_sdk::runtime::Error>(())
//! ```
//!
//! # What the caller owes
//!
//! - One operation at a time for one container; any number for different containers. No ADD or DEL of a network beside its
//!   GC (section 2, "Garbage collection").
//! - After a failed ADD, a DEL: nothing is undone here, since the specification leaves that to the runtime.
//!
//! # Threads
//!
//! Every method blocks until the plugins have ended; [`Builder::time_limit`] bounds that. A [`Runtime`] is `Send`, `Sync`
//! and cheap to clone: an async program calls it on a thread where blocking is allowed (`spawn_blocking`). Processes are
//! started without touching the environment, directories or signal handlers of this process.
//!
//! # Where it differs from libcni on purpose
//!
//! - The cache is written whole and flushed; damaged and empty files in it are treated as absent, by all commands.
//! - DEL and CHECK fill in from the cache what the caller leaves out: `CNI_ARGS` and capabilities. Without the latter, port
//!   mappings would stay.
//! - ADD and STATUS look for all plugins before they call the first.
//! - A namespace file that is no namespace any more is handed to DEL as no namespace.
//! - GC also deletes attachments whose cache file is damaged, if the file's name leaves no doubt whose it is.
//! - A broken file in the configuration directory does not hide the networks of other files.
//! - Names are checked on every command, since they become part of a path.
//! - A plugin that hangs can be killed, and what it left running in the background is not waited for.

mod cache;
mod call;
mod config;
mod error;
pub(crate) mod exec;
mod garbage;
mod locate;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

pub use cache::{CacheFile, Cached, Damage};
pub use call::{Event, Invocation, split_path};
pub use config::{Found, NetworkList, Order, PluginConfig, networks};
pub use error::Error;
pub use garbage::{Collected, Held, LeftAlone, Plan};
pub use locate::Place;
use outrigger_netlink::NetNs;

use crate::{AddResult, Command, Delegates, Environment, Version, names};
use cache::{Cache, Lookup};
use call::Injected;
use error::several;

/// Where plugins are when nobody says otherwise.
pub const PLUGIN_DIR: &str = "/opt/cni/bin";
/// Where networks are configured when nobody says otherwise.
pub const CONFIG_DIR: &str = "/etc/cni/net.d";
/// Where attachments are remembered when nobody says otherwise.
pub const CACHE_DIR: &str = "/var/lib/cni";

/// One container's interface on one network, and what the plugins are told about it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attachment {
    /// The container (`CNI_CONTAINERID`).
    pub container_id: String,
    /// Path of its network namespace (`CNI_NETNS`). ADD and CHECK need it; DEL works without.
    pub netns: Option<PathBuf>,
    /// Name of the interface in the container (`CNI_IFNAME`).
    pub ifname: String,
    /// `CNI_ARGS`, in order.
    pub args: Vec<(String, String)>,
    /// Values of capabilities, for instance `portMappings`. Each plugin gets those that its configuration claims.
    pub capabilities: BTreeMap<String, Value>,
}

impl Attachment {
    /// An attachment without namespace and arguments.
    pub fn new(container_id: impl Into<String>, ifname: impl Into<String>) -> Self {
        Self { container_id: container_id.into(), ifname: ifname.into(), ..Self::default() }
    }

    /// The same with a network namespace.
    #[must_use]
    pub fn netns(mut self, path: impl Into<PathBuf>) -> Self {
        self.netns = Some(path.into());
        self
    }

    /// The same with one more pair in `CNI_ARGS`.
    #[must_use]
    pub fn arg(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.args.push((key.into(), value.into()));
        self
    }

    /// The same with a capability's value.
    #[must_use]
    pub fn capability(mut self, name: impl Into<String>, value: Value) -> Self {
        self.capabilities.insert(name.into(), value);
        self
    }

    /// Takes what the caller left out from what is remembered, and gives the result.
    fn complete(&mut self, cached: Cached) -> Option<Value> {
        if self.args.is_empty() {
            self.args = cached.attachment.args;
        }
        if self.capabilities.is_empty() {
            self.capabilities = cached.attachment.capabilities;
        }
        cached.result
    }

    /// Its identity within a network.
    pub fn id(&self) -> Id {
        Id { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }
}

/// Identity of an attachment within a network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// The container.
    pub container_id: String,
    /// The interface.
    pub ifname: String,
}

impl Id {
    /// Checks that both parts are names that an attachment can have.
    pub fn check(&self) -> Result<(), Error> {
        let wrong =
            |what, value: &str, why| Error::Argument { what, value: value.to_owned(), problem: format!("it {why}") };
        names::identifier(&self.container_id).map_err(|why| wrong("container id", &self.container_id, why))?;
        names::interface(&self.ifname).map_err(|why| wrong("interface name", &self.ifname, why))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// What ADD made.
#[derive(Debug, Clone, PartialEq)]
pub struct Added {
    /// The result.
    pub result: AddResult,
    /// The same as the last plugin printed it, in the version of the network.
    pub json: Value,
}

/// Plugins that run in this process. Made anew for each call: they may hold sockets of a namespace.
type InProcess = Arc<dyn Fn() -> Box<dyn Delegates> + Send + Sync>;
type Observer = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

/// Calls plugins. See the [module](self).
#[derive(Clone)]
pub struct Runtime {
    plugin_dirs: Vec<PathBuf>,
    cache: Cache,
    time_limit: Option<Duration>,
    observer: Option<Observer>,
    in_process: Option<InProcess>,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("plugin_dirs", &self.plugin_dirs)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

/// Sets up a [`Runtime`].
#[derive(Clone, Default)]
pub struct Builder {
    plugin_dirs: Vec<PathBuf>,
    cache_dir: Option<PathBuf>,
    time_limit: Option<Duration>,
    observer: Option<Observer>,
    in_process: Option<InProcess>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("plugin_dirs", &self.plugin_dirs).finish_non_exhaustive()
    }
}

impl Builder {
    /// Directories where plugins are, in the order of search [default: [`PLUGIN_DIR`]].
    #[must_use]
    pub fn plugin_dirs<P: Into<PathBuf>>(mut self, dirs: impl IntoIterator<Item = P>) -> Self {
        self.plugin_dirs = dirs.into_iter().map(Into::into).collect();
        self
    }

    /// Where attachments are remembered [default: [`CACHE_DIR`]].
    #[must_use]
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(dir.into());
        self
    }

    /// How long one plugin may take before it is killed [default: as long as it likes, as with libcni]. A plugin that
    /// waits for a lease may need a minute; one that was killed has left something half done.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Is told what happens while plugins run, in place of passing on their standard error.
    #[must_use]
    pub fn observer(mut self, observer: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Plugins that run in this process where no plugin directory holds one of that name.
    #[must_use]
    pub fn in_process(mut self, plugins: impl Fn() -> Box<dyn Delegates> + Send + Sync + 'static) -> Self {
        self.in_process = Some(Arc::new(plugins));
        self
    }

    /// The runtime.
    pub fn build(self) -> Runtime {
        let plugin_dirs = if self.plugin_dirs.is_empty() { vec![PathBuf::from(PLUGIN_DIR)] } else { self.plugin_dirs };
        let cache = Cache::new(self.cache_dir.unwrap_or_else(|| PathBuf::from(CACHE_DIR)));
        Runtime {
            plugin_dirs,
            cache,
            time_limit: self.time_limit,
            observer: self.observer,
            in_process: self.in_process,
        }
    }
}

impl Runtime {
    /// A runtime to set up.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Adds a container to a network (section 3, "Adding an attachment"): each plugin in turn, with the result of the one
    /// before. The result is remembered. If it fails, call [`Runtime::del`].
    pub fn add(&self, network: &NetworkList, attachment: &Attachment) -> Result<Added, Error> {
        self.admit(network, attachment)?;
        let mut result = None;
        for index in 0..network.plugins.len() {
            let injected = Injected { prev_result: result.as_ref(), valid: None };
            let invocation = self.invocation(network, index, Command::Add, Some(attachment), &injected)?;
            let stdout = self.call(&invocation)?;
            result = Some(call::result(&invocation, network.version, &stdout)?);
        }
        let json = result.unwrap_or(Value::Null);
        let result = AddResult::from_value(&json).map_err(|error| Error::Argument {
            what: "network",
            value: network.name.clone(),
            problem: error.to_string(),
        })?;
        self.cache.put(&Cached {
            network: network.name.clone(),
            attachment: attachment.clone(),
            config: network.bytes.clone(),
            result: Some(json.clone()),
        })?;
        Ok(Added { result, json })
    }

    /// What can be told of an ADD without doing anything: whether the attachment can be named and remembered, and whether
    /// all plugins are there. ADD begins with this.
    pub fn admit(&self, network: &NetworkList, attachment: &Attachment) -> Result<(), Error> {
        self.cache.path(&network.name, attachment)?;
        need_netns(attachment)?;
        call::check_args(attachment)?;
        self.find_all(network)
    }

    /// Removes a container from a network (section 3, "Deleting an attachment"): each plugin in reverse, until one fails:
    /// an address, say, must not be free again while rules still lead to it. The cache is forgotten once all of them
    /// succeeded. Succeeds for what is gone already.
    pub fn del(&self, network: &NetworkList, attachment: &Attachment) -> Result<(), Error> {
        let (mut attachment, result) = self.remembered(network, attachment)?;
        attachment.netns = attachment.netns.filter(|path| !is_left_over(path));
        for index in (0..network.plugins.len()).rev() {
            let injected = Injected { prev_result: result.as_ref(), valid: None };
            self.call(&self.invocation(network, index, Command::Del, Some(&attachment), &injected)?)?;
        }
        self.cache.remove(&network.name, &attachment)
    }

    /// Checks that a container's attachment is as ADD left it (section 3, "Checking an attachment"). Quietly succeeds where
    /// the list says `disableCheck`.
    pub fn check(&self, network: &NetworkList, attachment: &Attachment) -> Result<(), Error> {
        needs(network, Command::Check, Version::V0_4_0)?;
        if network.disable_check {
            return Ok(());
        }
        let path = self.cache.path(&network.name, attachment)?;
        need_netns(attachment)?;
        let absent = |damage| Error::NotCached {
            network: network.name.clone(),
            id: attachment.container_id.clone(),
            ifname: attachment.ifname.clone(),
            path,
            damage,
        };
        let mut attachment = attachment.clone();
        let result = match self.cache.get(&network.name, &attachment)? {
            Lookup::Absent => return Err(absent(None)),
            Lookup::Damaged(damage) => return Err(absent(Some(damage))),
            Lookup::Found(cached) => {
                match attachment.complete(*cached).map(|result| call::convert(result, network.version)) {
                    Some(Ok(result)) => result,
                    Some(Err(error)) => return Err(absent(Some(error.to_string()))),
                    None => return Err(absent(Some("it holds no result".to_owned()))),
                }
            }
        };
        for index in 0..network.plugins.len() {
            let injected = Injected { prev_result: Some(&result), valid: None };
            self.call(&self.invocation(network, index, Command::Check, Some(&attachment), &injected)?)?;
        }
        Ok(())
    }

    /// Asks whether ADD can be served (section 3, "Checking the status"): the first plugin's complaint. Networks of versions
    /// before 1.1.0 are ready, as far as one can know, if all plugins are there.
    pub fn status(&self, network: &NetworkList) -> Result<(), Error> {
        self.find_all(network)?;
        if network.version < Version::V1_1_0 {
            return Ok(());
        }
        for index in 0..network.plugins.len() {
            self.call(&self.invocation(network, index, Command::Status, None, &Injected::default())?)?;
        }
        Ok(())
    }

    /// Versions that a plugin supports, as it says. Those that are too old to be asked are recognised.
    pub fn versions(&self, plugin: &str) -> Result<Vec<String>, Error> {
        let invocation = Invocation {
            plugin: plugin.to_owned(),
            index: 0,
            path: self.find(plugin).ok(),
            // Plugins of the first version insist on values, whatever they are asked.
            environment: Environment {
                command: Command::Version,
                container_id: String::new(),
                ifname: "dummy".to_owned(),
                netns: Some(PathBuf::from("dummy")),
                args: crate::CniArgs::default(),
                path: "dummy".to_owned(),
                netns_override: false,
            },
            stdin: serde_json::json!({ "cniVersion": Version::NEWEST.as_str() }),
        };
        let answer = self.call(&invocation);
        call::versions(&invocation, answer)
    }

    /// Checks that every plugin of a network is installed and supports its version, and gives the capabilities that the
    /// network claims.
    pub fn validate(&self, network: &NetworkList) -> Result<Vec<String>, Error> {
        let mut errors = Vec::new();
        for plugin in &network.plugins {
            match self.versions(&plugin.kind) {
                Ok(versions) if versions.iter().any(|version| version == network.version.as_str()) => {}
                Ok(versions) => errors.push(Error::Answer {
                    plugin: plugin.kind.clone(),
                    command: Command::Version,
                    problem: format!(
                        "it does not support version {} of network {:?}, only {}",
                        network.version,
                        network.name,
                        versions.join(", ")
                    ),
                }),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(several(errors));
        }
        Ok(network.capabilities().into_iter().map(ToOwned::to_owned).collect())
    }

    /// What is remembered of an attachment; none also if its file is damaged.
    pub fn cached(&self, network: &str, attachment: &Attachment) -> Result<Option<Cached>, Error> {
        Ok(match self.cache.get(network, attachment)? {
            Lookup::Found(cached) => Some(*cached),
            Lookup::Absent | Lookup::Damaged(_) => None,
        })
    }

    /// Attachments that are remembered, of one container or of all. Damaged files are passed over.
    pub fn attachments(&self, container_id: Option<&str>) -> Result<Vec<Cached>, Error> {
        let all = self.cache.files()?.into_iter().filter_map(|file| file.content.ok());
        Ok(all.filter(|cached| container_id.is_none_or(|id| cached.attachment.container_id == id)).collect())
    }

    /// Every file of the cache, the damaged ones too.
    pub fn cache_files(&self) -> Result<Vec<CacheFile>, Error> {
        self.cache.files()
    }

    /// What each plugin of a network would get, in the order of the calls; nobody is called. For ADD the results in between
    /// are not known: `prevResult` says from whom it will come.
    pub fn explain(
        &self,
        command: Command,
        network: &NetworkList,
        attachment: &Attachment,
        valid: &[Id],
    ) -> Result<Vec<Invocation>, Error> {
        let about_container = matches!(command, Command::Add | Command::Del | Command::Check);
        let (mut attachment, cached) = match command {
            Command::Del | Command::Check => self.remembered(network, attachment)?,
            _ => (attachment.clone(), None),
        };
        if command == Command::Del {
            attachment.netns = attachment.netns.filter(|path| !is_left_over(path));
        }
        let mut order: Vec<usize> = (0..network.plugins.len()).collect();
        if command == Command::Del {
            order.reverse();
        }
        let mut calls = Vec::new();
        for index in order {
            let before =
                index.checked_sub(1).map(|before| Value::from(format!("(result of {})", network.plugins[before].kind)));
            let prev_result = match command {
                Command::Add => before.as_ref(),
                Command::Del | Command::Check => cached.as_ref(),
                _ => None,
            };
            let injected = Injected { prev_result, valid: (command == Command::Gc).then_some(valid) };
            let attachment = about_container.then_some(&attachment);
            calls.push(self.invocation(network, index, command, attachment, &injected)?);
        }
        Ok(calls)
    }

    /// The attachment with what the caller left out, and the result to hand to the plugins, both as far as the cache knows
    /// them.
    fn remembered(&self, network: &NetworkList, given: &Attachment) -> Result<(Attachment, Option<Value>), Error> {
        let mut attachment = given.clone();
        let Lookup::Found(cached) = self.cache.get(&network.name, given)? else { return Ok((attachment, None)) };
        let wanted = network.version >= Version::V0_4_0;
        let result = attachment
            .complete(*cached)
            .filter(|_| wanted)
            .and_then(|result| call::convert(result, network.version).ok());
        Ok((attachment, result))
    }

    fn plugin_path(&self) -> String {
        call::join(&self.plugin_dirs)
    }

    fn tell(&self, event: &Event<'_>) {
        match (&self.observer, event) {
            (Some(observer), event) => observer(event),
            (None, Event::Stderr(_, text)) => drop(std::io::stderr().write_all(text)),
            (None, _) => {}
        }
    }

    /// An error if a plugin of the network is missing.
    fn find_all(&self, network: &NetworkList) -> Result<(), Error> {
        network.plugins.iter().try_for_each(|plugin| {
            let found = self.find(&plugin.kind).map(drop);
            found.or_else(|error| if self.is_in_process(&plugin.kind) { Ok(()) } else { Err(error) })
        })
    }

    fn is_in_process(&self, plugin: &str) -> bool {
        self.in_process.as_ref().is_some_and(|plugins| plugins().builtin(plugin).is_some())
    }

    /// Runs a plugin of this process, if there is one and none is installed.
    fn in_process(&self, invocation: &Invocation) -> Option<Result<Vec<u8>, Error>> {
        if invocation.path.is_some() {
            return None;
        }
        let delegates = self.in_process.as_ref()?();
        let plugin = delegates.builtin(&invocation.plugin)?;
        if invocation.command() == Command::Version {
            let versions: Vec<_> = plugin.versions().iter().map(ToString::to_string).collect();
            let answer = serde_json::json!({ "cniVersion": Version::NEWEST.as_str(), "supportedVersions": versions });
            return Some(Ok(answer.to_string().into_bytes()));
        }
        let config = serde_json::to_vec(&invocation.stdin).expect("JSON values become JSON");
        let result = plugin.invoke(&invocation.environment, &config, &*delegates).and_then(|result| {
            let version =
                invocation.stdin["cniVersion"].as_str().unwrap_or_default().parse().unwrap_or(Version::NEWEST);
            let value = result.map(|result| result.to_value(version)).transpose()?;
            Ok(value.map(|value| value.to_string().into_bytes()).unwrap_or_default())
        });
        let (plugin, command) = (invocation.plugin.clone(), invocation.command());
        Some(result.map_err(|error| Error::Plugin { plugin, command, error }))
    }
}

/// Whether the file of a namespace outlived it: after a reboot, or an unmount, an ordinary file is in its place. The
/// plugins in Go fail on that for ever, while no namespace at all is fine with them.
fn is_left_over(netns: &Path) -> bool {
    netns.exists() && NetNs::open(netns).is_err_and(|error| error.is_namespace_gone())
}

fn need_netns(attachment: &Attachment) -> Result<(), Error> {
    if attachment.netns.as_ref().is_some_and(|path| !path.as_os_str().is_empty()) {
        return Ok(());
    }
    let problem = "its network namespace is missing".to_owned();
    Err(Error::Argument { what: "container", value: attachment.container_id.clone(), problem })
}

fn needs(network: &NetworkList, command: Command, needs: Version) -> Result<(), Error> {
    if network.version >= needs {
        return Ok(());
    }
    Err(Error::TooOld { network: network.name.clone(), version: network.version, command, needs })
}

#[cfg(test)]
mod tests;
