//! Network configurations: lists and single plugins, as files or as text (specification, section 1).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::error::Error;
use super::locate::{Place, Step, locate};
use crate::conf::lookup;
use crate::version::numbers;
use crate::{Version, names};

/// Extension of a file that holds a list.
const LIST: &str = "conflist";
/// Extensions of files that hold one plugin's configuration.
const SINGLE: [&str; 2] = ["conf", "json"];

/// A network: a list of plugins that are called one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    /// The network's name.
    pub name: String,
    /// The version in which the plugins are talked to: the newest of `cniVersion` and `cniVersions` that this library
    /// knows.
    pub version: Version,
    /// CHECK succeeds without calling anybody.
    pub disable_check: bool,
    /// GC succeeds without calling anybody.
    pub disable_gc: bool,
    /// Plugins are those of the list only, not those of the directory with the network's name.
    pub load_only_inlined_plugins: bool,
    /// The plugins, in the order of ADD.
    pub plugins: Vec<PluginConfig>,
    /// The list's text, which goes into the cache. A single configuration is wrapped into a list.
    pub bytes: Vec<u8>,
    /// The file it came from.
    pub file: Option<PathBuf>,
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConfig {
    /// The plugin: the name of its executable.
    pub kind: String,
    /// Capabilities that the configuration claims, true or false.
    pub capabilities: BTreeMap<String, bool>,
    /// The configuration as it was written.
    pub config: Map<String, Value>,
}

/// What is wrong, and where in the text.
struct Problem<'a> {
    path: Vec<Step<'a>>,
    text: String,
}

type Checked<'a, T> = Result<T, Problem<'a>>;

impl NetworkList {
    /// Reads a file: a list if its name ends in `.conflist`, otherwise one plugin's configuration, which makes a list of
    /// one. For a list, the plugins of the directory with the network's name beside the file are added, in the order of
    /// their file names (`*.conf` only), unless it says `loadOnlyInlinedPlugins`.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, Error> {
        let file = file.as_ref();
        let bytes = read(file)?;
        let mut list = if is_list(file) { parse_list(&bytes) } else { parse_single(&bytes) }
            .map_err(|error| in_file(error, file))?;
        if is_list(file) && !list.load_only_inlined_plugins {
            let dir = file.parent().unwrap_or(Path::new(".")).join(&list.name);
            for path in files(&dir, &["conf"])? {
                list.plugins.push(parse_plugin_text(&read(&path)?).map_err(|error| in_file(error, &path))?);
            }
        }
        if list.plugins.is_empty() {
            let problem = format!("no plugins, neither in the list nor as {}/*.conf beside it", list.name);
            return Err(Error::Config { file: Some(file.to_owned()), place: None, problem });
        }
        list.file = Some(file.to_owned());
        Ok(list)
    }

    /// Parses the text of a list. It may be without plugins when they are in files of their own ([`NetworkList::load`]).
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        parse_list(text)
    }

    /// Parses the text of one plugin's configuration, which makes a list of one.
    pub fn parse_single(text: &[u8]) -> Result<Self, Error> {
        parse_single(text)
    }

    /// Parses a configuration from the cache, which may be either.
    pub fn parse_any(text: &[u8]) -> Result<Self, Error> {
        let value: Value = parse_text(text)?;
        if value.get("plugins").is_some() { parse_list(text) } else { parse_single(text) }
    }

    /// Finds a network by name, in the order of [`Order::Libcni`].
    pub fn find(dir: impl AsRef<Path>, name: &str) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let mut broken = Vec::new();
        for found in networks(dir, Order::Libcni)? {
            match found.network {
                Ok(network) if network.name == name => return Ok(network),
                Ok(_) => {}
                // A broken file of that very name must not be passed over for another.
                Err(error) if found.name.as_deref() == Some(name) => return Err(error),
                Err(error) => broken.push(error),
            }
        }
        Err(Error::NoSuchNetwork { name: name.to_owned(), dir: dir.to_owned(), broken })
    }

    /// Capabilities that some plugin of the list claims.
    pub fn capabilities(&self) -> Vec<&str> {
        let all = self.plugins.iter().flat_map(|plugin| &plugin.capabilities);
        let mut names: Vec<_> = all.filter(|(_, on)| **on).map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Which of the files of a directory counts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// libcni's, and cnitool's: lists before single configurations, each sorted by file name.
    Libcni,
    /// containerd's and CRI-O's: all files sorted by name, and the first (or the first few) are the networks of all pods.
    ByName,
}

/// A file of a configuration directory.
#[derive(Debug)]
pub struct Found {
    /// The file.
    pub file: PathBuf,
    /// The network's name, as far as it can be made out.
    pub name: Option<String>,
    /// The network, or what is wrong with it.
    pub network: Result<NetworkList, Error>,
}

/// The networks of a directory. One that is missing has none.
pub fn networks(dir: impl AsRef<Path>, order: Order) -> Result<Vec<Found>, Error> {
    let dir = dir.as_ref();
    let paths = match order {
        Order::ByName => files(dir, &[LIST, SINGLE[0], SINGLE[1]])?,
        Order::Libcni => {
            let mut paths = files(dir, &[LIST])?;
            paths.extend(files(dir, &SINGLE)?);
            paths
        }
    };
    let found = paths.into_iter().map(|file| {
        let network = NetworkList::load(&file);
        let name = match &network {
            Ok(network) => Some(network.name.clone()),
            Err(_) => read(&file).ok().and_then(|text| name_of(&text)),
        };
        Found { file, name, network }
    });
    Ok(found.collect())
}

/// Name of a network whose configuration may be wrong otherwise.
fn name_of(text: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(text).ok()?;
    Some(value.get("name")?.as_str()?.to_owned())
}

fn is_list(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == LIST)
}

/// Files of a directory with one of the extensions, sorted by name.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read", dir)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::file("read", dir))?;
        let path = entry.path();
        let wanted = path.extension().and_then(|found| found.to_str()).is_some_and(|found| extensions.contains(&found));
        // A symbolic link counts by its name, whatever it leads to: configurations are often linked into place.
        if wanted && !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut file| file.read_to_end(&mut text));
    read.map(|_| text).map_err(Error::file("read", path))
}

fn in_file(error: Error, path: &Path) -> Error {
    match error {
        Error::Config { file: None, place, problem } => Error::Config { file: Some(path.to_owned()), place, problem },
        other => other,
    }
}

fn parse_text(text: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(text).map_err(|error| {
        let place = Place { line: error.line(), column: error.column() };
        let whole = error.to_string();
        // The place is told once, in front.
        let problem = whole.rsplit_once(" at line ").map_or(whole.as_str(), |(problem, _)| problem);
        Error::Config { file: None, place: Some(place), problem: format!("not JSON: {problem}") }
    })
}

fn located<T>(text: &[u8], checked: Checked<'_, T>) -> Result<T, Error> {
    checked.map_err(|problem| Error::Config {
        file: None,
        place: Some(locate(text, &problem.path)),
        problem: problem.text,
    })
}

fn parse_list(text: &[u8]) -> Result<NetworkList, Error> {
    let value = parse_text(text)?;
    let list = located(text, list(&value))?;
    Ok(NetworkList { bytes: text.to_owned(), ..list })
}

fn parse_single(text: &[u8]) -> Result<NetworkList, Error> {
    let value = parse_text(text)?;
    located(text, single(&value))
}

fn parse_plugin_text(text: &[u8]) -> Result<PluginConfig, Error> {
    let value = parse_text(text)?;
    located(text, plugin(&value, &[]))
}

fn problem<'a, T>(path: &[Step<'a>], text: impl Into<String>) -> Checked<'a, T> {
    Err(Problem { path: path.to_vec(), text: text.into() })
}

fn object<'v, 'a>(value: &'v Value, path: &[Step<'a>], what: &str) -> Checked<'a, &'v Map<String, Value>> {
    match value.as_object() {
        Some(object) => Ok(object),
        None => problem(path, format!("{what} must be an object, not {}", kind(value))),
    }
}

fn list(value: &Value) -> Checked<'static, NetworkList> {
    let object = object(value, &[], "the configuration")?;
    let name = match object.get("name") {
        None => return problem(&[], "\"name\" is missing"),
        Some(name) => name_checked(name, &[Step::Key("name")])?,
    };
    let version = list_version(object)?;
    let load_only_inlined_plugins = flag(object, "loadOnlyInlinedPlugins")?;
    let mut list = NetworkList {
        name,
        version,
        disable_check: flag(object, "disableCheck")?,
        disable_gc: flag(object, "disableGC")?,
        load_only_inlined_plugins,
        plugins: Vec::new(),
        bytes: Vec::new(),
        file: None,
    };
    let path = [Step::Key("plugins")];
    match object.get("plugins") {
        None if load_only_inlined_plugins => {
            return problem(&[], "\"loadOnlyInlinedPlugins\" is true, but there are no \"plugins\"");
        }
        None if object.contains_key("type") => {
            return problem(
                &[],
                "this is one plugin's configuration: name the file *.conf, or put it into \"plugins\"",
            );
        }
        None => {}
        Some(Value::Array(plugins)) if plugins.is_empty() => {
            return problem(&path, "\"plugins\" is empty: leave it out if the plugins are in files of their own");
        }
        Some(Value::Array(plugins)) => {
            for (index, value) in plugins.iter().enumerate() {
                list.plugins.push(plugin(value, &[path[0], Step::Index(index)])?);
            }
        }
        Some(other) => return problem(&path, format!("\"plugins\" must be an array, not {}", kind(other))),
    }
    Ok(list)
}

fn single(value: &Value) -> Checked<'static, NetworkList> {
    let object = object(value, &[], "the configuration")?;
    if lookup(object, "type").is_none() && object.contains_key("plugins") {
        return problem(&[], "this is a list of plugins: name the file *.conflist");
    }
    let plugin = plugin(value, &[])?;
    let name = match lookup(object, "name") {
        None => return problem(&[], "\"name\" is missing"),
        Some(name) => name_checked(name, &[Step::Key("name")])?,
    };
    let (text, version) = match lookup(object, "cniVersion") {
        None | Some(Value::Null) => (String::new(), Version::V0_1_0),
        Some(value) => {
            let path = [Step::Key("cniVersion")];
            let text = text(value, "\"cniVersion\"", &path)?;
            (text.to_owned(), parse_version(text, &path)?)
        }
    };
    let whole = json!({ "cniVersion": text, "name": name, "plugins": [object] });
    Ok(NetworkList {
        name,
        version,
        disable_check: false,
        disable_gc: false,
        load_only_inlined_plugins: false,
        plugins: vec![plugin],
        bytes: whole.to_string().into_bytes(),
        file: None,
    })
}

fn plugin<'a>(value: &Value, path: &[Step<'a>]) -> Checked<'a, PluginConfig> {
    let below = |key: &'static str| [path, &[Step::Key(key)]].concat();
    let object = object(value, path, "a plugin's configuration")?;
    let kind = match lookup(object, "type") {
        None | Some(Value::Null) => return problem(path, "\"type\" is missing: the name of the plugin"),
        Some(value) => text(value, "\"type\"", &below("type"))?,
    };
    if kind.contains('/') {
        return problem(&below("type"), format!("\"type\" {kind:?} is a path; only the name of a plugin is allowed"));
    }
    if !names::is_plugin(kind) {
        return problem(&below("type"), format!("\"type\" is {kind:?}: it must be the name of a plugin"));
    }
    let mut capabilities = BTreeMap::new();
    match lookup(object, "capabilities") {
        None | Some(Value::Null) => {}
        Some(Value::Object(claims)) => {
            for (name, claim) in claims {
                match claim {
                    Value::Bool(claim) => drop(capabilities.insert(name.clone(), *claim)),
                    Value::Null => {}
                    other => {
                        let text = format!("capability {name:?} must be true or false, not {}", self::kind(other));
                        return problem(&below("capabilities"), text);
                    }
                }
            }
        }
        Some(other) => {
            let text = format!("\"capabilities\" must be an object, not {}", self::kind(other));
            return problem(&below("capabilities"), text);
        }
    }
    Ok(PluginConfig { kind: kind.to_owned(), capabilities, config: object.clone() })
}

fn list_version(object: &Map<String, Value>) -> Checked<'static, Version> {
    let path = [Step::Key("cniVersion")];
    let one = match object.get("cniVersion") {
        None => None,
        Some(value) => Some(text(value, "\"cniVersion\"", &path)?),
    };
    let Some(several) = object.get("cniVersions") else {
        return one.map_or(Ok(Version::V0_1_0), |one| parse_version(one, &path));
    };
    let path = [Step::Key("cniVersions")];
    let Value::Array(several) = several else {
        return problem(&path, format!("\"cniVersions\" must be an array, not {}", kind(several)));
    };
    let mut known = Vec::new();
    for (index, value) in several.iter().enumerate() {
        let path = [path[0], Step::Index(index)];
        let text = text(value, "an entry of \"cniVersions\"", &path)?;
        if numbers(text).is_none() {
            return problem(&path, format!("{text:?} is not a version; write it like 1.0.0"));
        }
        // Versions of the future are offered to others.
        known.extend(text.parse::<Version>().ok());
    }
    known.extend(one.filter(|one| !one.is_empty()).and_then(|one| one.parse::<Version>().ok()));
    match known.into_iter().max() {
        Some(version) => Ok(version),
        None if one.is_none() && several.is_empty() => Ok(Version::V0_1_0),
        None => problem(&path, format!("none of the versions is one that this knows: {}", supported())),
    }
}

fn parse_version(text: &str, path: &[Step<'static>]) -> Checked<'static, Version> {
    if text.is_empty() {
        return Ok(Version::V0_1_0);
    }
    match text.parse() {
        Ok(version) => Ok(version),
        Err(_) => problem(path, format!("\"cniVersion\" {text:?} is none that this knows: {}", supported())),
    }
}

fn supported() -> String {
    Version::ALL.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn name_checked(value: &Value, path: &[Step<'static>]) -> Checked<'static, String> {
    let name = text(value, "\"name\"", path)?;
    match names::identifier(name) {
        Ok(()) => Ok(name.to_owned()),
        Err(why) => problem(path, format!("network name {name:?} {why}")),
    }
}

fn text<'v, 'a>(value: &'v Value, what: &str, path: &[Step<'a>]) -> Checked<'a, &'v str> {
    match value.as_str() {
        Some(text) => Ok(text),
        None => problem(path, format!("{what} must be a string, not {}", kind(value))),
    }
}

/// A boolean, which may be written as a string.
fn flag(object: &Map<String, Value>, key: &'static str) -> Checked<'static, bool> {
    match object.get(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => problem(&[Step::Key(key)], format!("{key:?} must be true or false, not {other}")),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
