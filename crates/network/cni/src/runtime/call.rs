//! One call of one plugin: what it gets, and what its answer means.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::config::{NetworkList, PluginConfig};
use super::error::Error;
use super::exec::{self, Failure, tail};
use super::{Attachment, Id, Runtime};
use crate::{CniArgs, Code, Command, Environment, Version, names};

/// A call of a plugin: everything that it gets.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// The plugin's type.
    pub plugin: String,
    /// Its place in the list, from 0.
    pub index: usize,
    /// Its executable; none if it is not installed, or runs in this process.
    pub path: Option<PathBuf>,
    /// The parameters; [`Environment::variables`] gives them as variables. All else is inherited.
    pub environment: Environment,
    /// The configuration on its standard input.
    pub stdin: Value,
}

impl Invocation {
    /// What the plugin is to do.
    pub fn command(&self) -> Command {
        self.environment.command
    }
}

/// What happens while plugins run.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A plugin is about to be called.
    Call(&'a Invocation),
    /// What it wrote to its standard error. Without an observer this goes to the standard error of this process.
    Stderr(&'a Invocation, &'a [u8]),
    /// It ended. The error, if it is one, is also what the operation returns.
    Done(&'a Invocation, Duration, Result<(), &'a Error>),
}

/// Where the configuration of a call comes from, beside the plugin's own object.
#[derive(Debug, Default)]
pub(super) struct Injected<'a> {
    pub(super) prev_result: Option<&'a Value>,
    pub(super) valid: Option<&'a [Id]>,
}

impl Runtime {
    /// The call of the `index`-th plugin of a list.
    pub(super) fn invocation(
        &self,
        network: &NetworkList,
        index: usize,
        command: Command,
        attachment: Option<&Attachment>,
        injected: &Injected<'_>,
    ) -> Result<Invocation, Error> {
        let plugin = network.plugins.get(index).ok_or_else(|| Error::Argument {
            what: "plugin number",
            value: index.to_string(),
            problem: format!("network {:?} has {} plugins", network.name, network.plugins.len()),
        })?;
        let environment = Environment {
            command,
            container_id: attachment.map(|attachment| attachment.container_id.clone()).unwrap_or_default(),
            ifname: attachment.map(|attachment| attachment.ifname.clone()).unwrap_or_default(),
            netns: attachment.and_then(|attachment| attachment.netns.clone()),
            args: CniArgs::new(attachment.map(args).unwrap_or_default()),
            path: self.plugin_path(),
            netns_override: false,
        };
        let stdin = configuration(network, plugin, attachment, injected);
        Ok(Invocation { plugin: plugin.kind.clone(), index, path: self.find(&plugin.kind).ok(), environment, stdin })
    }

    /// Calls a plugin and gives what it printed, if it succeeded.
    pub(super) fn call(&self, invocation: &Invocation) -> Result<Vec<u8>, Error> {
        self.tell(&Event::Call(invocation));
        let start = std::time::Instant::now();
        let result = match self.in_process(invocation) {
            Some(result) => result,
            None => self.execute(invocation),
        };
        self.tell(&Event::Done(invocation, start.elapsed(), result.as_ref().map(drop)));
        result
    }

    fn execute(&self, invocation: &Invocation) -> Result<Vec<u8>, Error> {
        let (plugin, command) = (invocation.plugin.clone(), invocation.command());
        let path = match &invocation.path {
            Some(path) => path.clone(),
            None => self.find(&plugin)?,
        };
        let mut process = std::process::Command::new(&path);
        process.envs(invocation.environment.variables());
        let input = serde_json::to_vec(&invocation.stdin).expect("JSON values become JSON");
        let output = match exec::run(&mut process, &input, self.time_limit) {
            Ok(output) => output,
            Err(Failure::Io(operation, source)) => return Err(Error::Exec { operation, plugin, path, source }),
            Err(Failure::Timeout(stderr)) => {
                self.pass_on(invocation, &stderr);
                let limit = self.time_limit.unwrap_or_default();
                return Err(Error::Timeout { plugin, command, limit });
            }
        };
        self.pass_on(invocation, &output.stderr);
        if output.status.success() {
            return Ok(output.stdout);
        }
        let error = exec::own_error(&output).unwrap_or_else(|said| crate::Error::new(Code::Internal, said));
        Err(Error::Plugin { plugin, command, error })
    }

    fn pass_on(&self, invocation: &Invocation, stderr: &[u8]) {
        if !stderr.is_empty() {
            self.tell(&Event::Stderr(invocation, stderr));
        }
    }

    /// The executable of a plugin: the first regular file of that name in the plugin directories.
    pub fn find(&self, plugin: &str) -> Result<PathBuf, Error> {
        if !names::is_plugin(plugin) {
            let problem = "it must be the name of a file in a plugin directory".to_owned();
            return Err(Error::Argument { what: "plugin", value: plugin.to_owned(), problem });
        }
        exec::search(plugin, &self.plugin_dirs)
            .ok_or_else(|| Error::NoSuchPlugin { plugin: plugin.to_owned(), dirs: self.plugin_dirs.clone() })
    }
}

/// What a plugin gets on its standard input: its own object, and what the runtime adds (section 3, "Deriving execution
/// configuration").
fn configuration(
    network: &NetworkList,
    plugin: &PluginConfig,
    attachment: Option<&Attachment>,
    injected: &Injected<'_>,
) -> Value {
    let mut config = plugin.config.clone();
    let mut set = |key: &str, value: Value| {
        // A plugin reads keys without regard to case: another spelling of the same key must not win over ours.
        config.retain(|name, _| name == key || !name.eq_ignore_ascii_case(key));
        config.insert(key.to_owned(), value);
    };
    set("name", json!(network.name));
    set("cniVersion", json!(network.version.as_str()));
    if let Some(result) = injected.prev_result {
        set("prevResult", result.clone());
    }
    if let Some(attachment) = attachment {
        let wanted = plugin
            .capabilities
            .iter()
            .filter(|(_, on)| **on)
            .filter_map(|(name, _)| Some((name.clone(), attachment.capabilities.get(name)?.clone())));
        let runtime_config: Map<_, _> = wanted.collect();
        if !runtime_config.is_empty() {
            set("runtimeConfig", Value::Object(runtime_config));
        }
    }
    if let Some(valid) = injected.valid {
        let valid: Vec<_> =
            valid.iter().map(|id| json!({ "containerID": id.container_id, "ifname": id.ifname })).collect();
        // The second name is what readers before the specification's correction look for.
        set("cni.dev/valid-attachments", Value::Array(valid.clone()));
        set("cni.dev/attachments", Value::Array(valid));
    }
    Value::Object(config)
}

/// `CNI_ARGS` of an attachment, whatever is in them: what one ADD went through with, DEL must not refuse.
fn args(attachment: &Attachment) -> String {
    attachment.args.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(";")
}

/// Refuses arguments that plugins would not read as they are meant, or not at all.
pub(super) fn check_args(attachment: &Attachment) -> Result<(), Error> {
    let wrong = |text: &str| text.contains([';', '=', '\0']);
    match attachment.args.iter().find(|(key, value)| key.is_empty() || wrong(key) || wrong(value)) {
        None => Ok(()),
        Some((key, value)) => {
            let problem = "neither side of an argument may hold ';' or '=', and the name must not be empty".to_owned();
            Err(Error::Argument { what: "CNI argument", value: format!("{key}={value}"), problem })
        }
    }
}

/// A result in the list's version. `null` and nothing at all are an empty one; one without `cniVersion` is in the list's.
pub(super) fn result(invocation: &Invocation, version: Version, stdout: &[u8]) -> Result<Value, Error> {
    let wrong =
        |problem: String| Error::Answer { plugin: invocation.plugin.clone(), command: invocation.command(), problem };
    let value = if stdout.iter().all(u8::is_ascii_whitespace) {
        Value::Null
    } else {
        serde_json::from_slice(stdout)
            .map_err(|error| wrong(format!("the result is not JSON ({error}): {}", tail(stdout))))?
    };
    let mut object = match value {
        Value::Null => Map::new(),
        Value::Object(object) => object,
        other => return Err(wrong(format!("the result is not an object: {}", tail(other.to_string().as_bytes())))),
    };
    if object.get("cniVersion").and_then(Value::as_str).is_none_or(str::is_empty) {
        object.insert("cniVersion".to_owned(), json!(version.as_str()));
    }
    convert(Value::Object(object), version).map_err(|error| wrong(format!("the result: {error}")))
}

/// A result in another version. One that is in it already stays as it is.
pub(super) fn convert(result: Value, version: Version) -> Result<Value, crate::Error> {
    if result.get("cniVersion").and_then(Value::as_str) == Some(version.as_str()) {
        // It is looked at, so that nonsense does not reach the cache.
        crate::AddResult::from_value(&result)?;
        return Ok(result);
    }
    crate::AddResult::from_value(&result)?.to_value(version)
}

/// Versions in the answer to VERSION.
pub(super) fn versions(invocation: &Invocation, answer: Result<Vec<u8>, Error>) -> Result<Vec<String>, Error> {
    let stdout = match answer {
        Ok(stdout) => stdout,
        // Older than the command.
        Err(Error::Plugin { error, .. }) if error.msg.contains("unknown CNI_COMMAND: VERSION") => {
            return Ok(vec!["0.1.0".to_owned()]);
        }
        Err(error) => return Err(error),
    };
    let wrong =
        |problem: String| Error::Answer { plugin: invocation.plugin.clone(), command: Command::Version, problem };
    let value: Value = serde_json::from_slice(&stdout)
        .map_err(|error| wrong(format!("the answer is not JSON ({error}): {}", tail(&stdout))))?;
    let listed: Option<Vec<String>> =
        value.get("supportedVersions").and_then(|listed| serde_json::from_value(listed.clone()).ok());
    match (listed, value.get("cniVersion").and_then(Value::as_str)) {
        (_, None | Some("")) => Err(wrong("the answer has no \"cniVersion\"".to_owned())),
        (Some(listed), _) if !listed.is_empty() => Ok(listed),
        (_, Some("0.2.0")) => Ok(vec!["0.1.0".to_owned(), "0.2.0".to_owned()]),
        _ => Err(wrong("the answer has no \"supportedVersions\"".to_owned())),
    }
}

/// The plugin directories as they are written in `CNI_PATH`.
pub(super) fn join(dirs: &[PathBuf]) -> String {
    let dirs: Vec<OsString> = dirs.iter().map(|dir| dir.clone().into_os_string()).collect();
    dirs.join(std::ffi::OsStr::new(":")).to_string_lossy().into_owned()
}

/// Splits a `CNI_PATH`.
pub fn split_path(path: &str) -> Vec<PathBuf> {
    path.split(':').filter(|dir| !dir.is_empty()).map(|dir| Path::new(dir).to_owned()).collect()
}
