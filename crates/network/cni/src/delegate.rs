//! Plugins that call plugins (section 4, "Plugin delegation").
//!
//! A plugin named in a configuration is searched for in `CNI_PATH`. If what is found there is this very program, or if
//! nothing is found but this program holds a plugin of that name, it runs in this process; otherwise what was found is
//! executed.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process;

use serde_json::Value;

use crate::runtime::exec::{self, Failure};
use crate::{AddResult, Attachment, Code, Command, DynPlugin, Environment, Error, Map, Step as _, Version, names};

/// The plugins in this process. `()` has none.
pub trait Delegates {
    /// The plugin of a name.
    fn builtin(&self, name: &str) -> Option<Box<dyn DynPlugin + '_>>;
}

impl Delegates for () {
    fn builtin(&self, _name: &str) -> Option<Box<dyn DynPlugin + '_>> {
        None
    }
}

/// A plugin that another one calls, with its configuration.
pub struct Delegate<'a> {
    name: Cow<'a, str>,
    config: Cow<'a, Map>,
    version: Version,
    env: &'a Environment,
    delegates: &'a dyn Delegates,
}

impl<'a> Delegate<'a> {
    /// A plugin and the configuration that it gets.
    pub fn new(name: &str, config: Map, version: Version, env: &'a Environment, delegates: &'a dyn Delegates) -> Self {
        Self { name: Cow::Owned(name.to_owned()), config: Cow::Owned(config), version, env, delegates }
    }

    pub(crate) fn borrowed(
        name: &str,
        config: &'a Map,
        version: Version,
        env: &'a Environment,
        delegates: &'a dyn Delegates,
    ) -> Self {
        Self { name: Cow::Owned(name.to_owned()), config: Cow::Borrowed(config), version, env, delegates }
    }

    /// ADD: its result.
    pub fn add(&self) -> Result<AddResult, Error> {
        self.call(Command::Add)
    }

    /// DEL.
    pub fn del(&self) -> Result<(), Error> {
        self.call(Command::Del).map(drop)
    }

    /// CHECK.
    pub fn check(&self) -> Result<(), Error> {
        self.call(Command::Check).map(drop)
    }

    /// GC: the valid attachments are in the configuration.
    pub fn gc(&self) -> Result<(), Error> {
        self.call(Command::Gc).map(drop)
    }

    /// STATUS.
    pub fn status(&self) -> Result<(), Error> {
        self.call(Command::Status).map(drop)
    }

    /// Whether it runs in this process. What it does can then be put together with what the caller does.
    pub fn is_builtin(&self) -> Result<bool, Error> {
        let binary = find_in_path(&self.name, self.env)?;
        Ok(self.builtin(binary.as_deref()).is_some())
    }

    /// Looks whether there is such a plugin, without calling it. An error if there is none (code 7).
    pub fn look_up(&self) -> Result<(), Error> {
        match find_in_path(&self.name, self.env)? {
            None if self.builtin(None).is_none() => Err(self.missing(Code::InvalidConfig)),
            _ => Ok(()),
        }
    }

    fn missing(&self, code: Code) -> Error {
        let msg = format!("there is no plugin {:?} in CNI_PATH ({})", self.name, self.env.path);
        Error::new(code, msg).details("install it, or correct the type in the configuration")
    }

    fn builtin(&self, binary: Option<&Path>) -> Option<Box<dyn DynPlugin + '_>> {
        binary.is_none_or(is_this_program).then(|| self.delegates.builtin(&self.name)).flatten()
    }

    fn call(&self, command: Command) -> Result<AddResult, Error> {
        let env = self.env.with_command(command);
        let binary = find_in_path(&self.name, &env)?;
        if let Some(plugin) = self.builtin(binary.as_deref()) {
            let result = plugin.call(&env, &self.config, self.delegates)?.unwrap_or_default();
            // The oldest versions have no place for more than one address of a family, in no process.
            if command == Command::Add && self.version < Version::V0_3_0 {
                return AddResult::from_value(&result.to_value(self.version)?);
            }
            return Ok(result);
        }
        let Some(binary) = binary else {
            let code = if command == Command::Status { Code::NotAvailable } else { Code::InvalidConfig };
            return Err(self.missing(code));
        };
        let config = serde_json::to_vec(&*self.config).step("writing the configuration")?;
        let output = execute(&binary, &env, &config)?;
        if command != Command::Add || output.trim_ascii().is_empty() {
            return Ok(AddResult::default());
        }
        let value: Value = serde_json::from_slice(&output)
            .map_err(|error| Error::new(Code::Decode, format!("the result of {} is not JSON: {error}", self.name)))?;
        AddResult::decode(&value, self.version).map_err(|error| error.during(format_args!("result of {}", self.name)))
    }
}

/// The IPAM plugin of a configuration. Without one, every command but ADD does nothing.
pub struct Ipam<'a> {
    delegate: Option<Delegate<'a>>,
}

impl<'a> Ipam<'a> {
    pub(crate) fn new(name: Option<&str>, mut delegate: Delegate<'a>) -> Self {
        let delegate = name.map(|name| {
            delegate.name = Cow::Owned(name.to_owned());
            delegate
        });
        Self { delegate }
    }

    /// Whether the configuration names one.
    pub fn is_configured(&self) -> bool {
        self.delegate.is_some()
    }

    /// Takes addresses. They are given back when the lease is dropped, unless [`Lease::keep`] is called. A result without
    /// addresses is an error.
    pub fn add(self) -> Result<Lease<'a>, Error> {
        let Some(delegate) = &self.delegate else {
            return Err(Error::config("ipam.type is missing: this plugin needs an IPAM plugin"));
        };
        let result = delegate.add()?;
        let lease = Lease { result, ipam: Some(self) };
        if lease.result.ips.is_empty() {
            return Err(Error::internal("the IPAM plugin gave no IP address"));
        }
        Ok(lease)
    }

    /// Gives back what the attachment has.
    pub fn del(&self) -> Result<(), Error> {
        self.delegate.as_ref().map_or(Ok(()), Delegate::del)
    }

    /// Checks that the attachment still has its addresses.
    pub fn check(&self) -> Result<(), Error> {
        self.delegate.as_ref().map_or(Ok(()), Delegate::check)
    }

    /// Gives back what belongs to no valid attachment.
    pub fn gc(&self, valid: &[Attachment]) -> Result<(), Error> {
        // The list is in the configuration already; taking it keeps callers from forgetting that GC is about it.
        let _ = valid;
        self.delegate.as_ref().map_or(Ok(()), Delegate::gc)
    }

    /// Asks whether it has addresses to give.
    pub fn status(&self) -> Result<(), Error> {
        self.delegate.as_ref().map_or(Ok(()), Delegate::status)
    }
}

/// Addresses that go back when this is dropped, so that an ADD that fails later does not leak them.
#[must_use = "dropping a lease gives its addresses back"]
pub struct Lease<'a> {
    /// What the IPAM plugin gave.
    pub result: AddResult,
    ipam: Option<Ipam<'a>>,
}

impl Lease<'_> {
    /// Keeps the addresses.
    pub fn keep(mut self) -> AddResult {
        self.ipam = None;
        std::mem::take(&mut self.result)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(ipam) = &self.ipam {
            // The error to report is the one that led here; the runtime calls DEL after a failed ADD, which tries again.
            let _ = ipam.del();
        }
    }
}

/// Searches the directories of `CNI_PATH` for a plugin. An error if the name cannot be one (code 7).
pub fn find_in_path(name: &str, env: &Environment) -> Result<Option<PathBuf>, Error> {
    if !names::is_plugin(name) {
        return Err(Error::config(format!("{name:?} is not the name of a plugin")));
    }
    Ok(exec::search(name, env.paths()))
}

/// Whether a file is the program that runs, under whatever name.
fn is_this_program(path: &Path) -> bool {
    thread_local! {
        static OWN: OnceCell<Option<(u64, u64)>> = const { OnceCell::new() };
    }
    let id = |path: &Path| rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let own = OWN.with(|own| *own.get_or_init(|| id(Path::new("/proc/self/exe"))));
    own.is_some() && own == id(path)
}

/// Executes a plugin and gives its standard output; its error if it fails. Its standard error is passed on.
pub fn execute(binary: &Path, env: &Environment, config: &[u8]) -> Result<Vec<u8>, Error> {
    let name = binary.file_name().unwrap_or_default().to_string_lossy();
    let mut command = process::Command::new(binary);
    command.envs(env.variables());
    if !env.netns_override {
        command.env_remove("CNI_NETNS_OVERRIDE");
    }
    let output = exec::run_in_our_group(&mut command, config, None).map_err(|failure| match failure {
        Failure::Io(what, error) => Error::new(Code::Io, format!("cannot {what} {}: {error}", binary.display())),
        Failure::Timeout(_) => Error::internal(format!("{} took too long", binary.display())),
    })?;
    let own = if output.status.success() { None } else { Some(exec::own_error(&output)) };
    // What it wrote there is in the text if that is all there is.
    if !matches!(own, Some(Err(_))) {
        let _ = std::io::stderr().write_all(&output.stderr);
    }
    match own {
        None => Ok(output.stdout),
        Some(Ok(error)) => Err(error),
        Some(Err(said)) => Err(Error::internal(format!("plugin {name} failed without an error of its own: {said}"))),
    }
}

#[cfg(test)]
mod tests;
