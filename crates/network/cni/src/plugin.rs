//! Plugins, and how one is run as a program (section 2, "Execution protocol").

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize as _;
use serde_json::{Value, json};

use crate::conf::{self, Field, lookup};
use crate::delegate::{Delegate, Delegates, Ipam};
use crate::net::{network_name, version_text};
use crate::version::{list, numbers};
use crate::{
    AddResult, Attachment, CniArgs, Code, Command, Conf, Documentation, Environment, Error, Key, Map, NetConf, Version,
    parse_config,
};

/// A plugin. Commands that it does not change keep their defaults: GC has nothing to remove, STATUS is ready.
pub trait Plugin {
    /// Its configuration.
    type Conf: Conf;
    /// One line that says what it is, printed when it is run without a command.
    const ABOUT: &'static str;
    /// The versions of the specification that it supports.
    const VERSIONS: RangeInclusive<Version> = Version::V0_1_0..=Version::NEWEST;
    /// What its page in the documentation says besides its keys.
    const DOC: Documentation = Documentation::EMPTY;

    /// Adds the container to the network, or changes what an earlier plugin did (then `call.prev()` is its result).
    fn add(&self, call: &Call<'_, Self::Conf>) -> Result<AddResult, Error>;

    /// Undoes ADD. Succeeds if there is nothing to undo; `call.netns` and `call.net.prev_result` may be none.
    fn del(&self, call: &Call<'_, Self::Conf>) -> Result<(), Error>;

    /// Fails if what ADD made is not as it was. `call.net.prev_result` is always there.
    fn check(&self, call: &Call<'_, Self::Conf>) -> Result<(), Error>;

    /// Removes whatever it made for this network that belongs to none of the valid attachments.
    fn gc(&self, call: &Call<'_, Self::Conf>, valid: &[Attachment]) -> Result<(), Error> {
        let _ = (call, valid);
        Ok(())
    }

    /// Fails with code 50 or 51 if ADD could not succeed. Runtimes ask every few seconds: it must be cheap.
    fn status(&self, call: &Call<'_, Self::Conf>) -> Result<(), Error> {
        let _ = call;
        Ok(())
    }
}

/// One call of a plugin: what it was told, and what it can ask.
pub struct Call<'a, C> {
    /// What it is to do.
    pub command: Command,
    /// The container; empty for GC and STATUS.
    pub container_id: &'a str,
    /// The interface in the container; empty for GC and STATUS.
    pub ifname: &'a str,
    /// The container's network namespace, if it was told. See also [`Self::netns`].
    pub netns: Option<&'a Path>,
    /// `CNI_ARGS`
    pub args: &'a CniArgs,
    /// The plugin's own configuration.
    pub conf: C,
    /// The common part of the configuration.
    pub net: &'a NetConf,
    env: &'a Environment,
    config: &'a Map,
    delegates: &'a dyn Delegates,
}

impl<'a, C> Call<'a, C> {
    /// The result of the plugin before; an error if there is none (code 7).
    pub fn prev(&self) -> Result<&'a AddResult, Error> {
        self.net.prev_result.as_ref().ok_or_else(|| no_result(self.command))
    }

    /// The path of the container's network namespace; an error if it was not told (code 4).
    pub fn netns(&self) -> Result<&'a Path, Error> {
        self.netns.ok_or_else(|| Error::new(Code::InvalidEnvironment, "required env variables [CNI_NETNS] missing"))
    }

    /// A value for a capability (`runtimeConfig`); none if the runtime gave none.
    pub fn runtime<T: Field>(&self, capability: &str) -> Result<Option<T>, Error> {
        conf::optional(&self.net.runtime_config, capability).map_err(|error| error.under("runtimeConfig").into())
    }

    /// A value passed the old way, `args.cni.<key>`.
    pub fn cni_arg<T: Field>(&self, key: &str) -> Result<Option<T>, Error> {
        match lookup(&self.net.args, "cni").filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => {
                let value = conf::object(value).and_then(|map| conf::optional(map, key));
                value.map_err(|error| error.under("args.cni").into())
            }
        }
    }

    /// The whole configuration as it was given.
    pub fn config(&self) -> &'a Map {
        self.config
    }

    /// All parameters.
    pub fn env(&self) -> &'a Environment {
        self.env
    }

    /// The plugins in this process.
    pub fn delegates(&self) -> &'a dyn Delegates {
        self.delegates
    }

    /// The IPAM plugin of the configuration.
    pub fn ipam(&self) -> Ipam<'a> {
        Ipam::new(self.net.ipam_type(), self.delegate_to("", self.config))
    }

    /// Another plugin, to be called with a configuration of its own.
    pub fn delegate(&self, name: &str, config: Map) -> Delegate<'a> {
        Delegate::new(name, config, self.net.cni_version, self.env, self.delegates)
    }

    /// Another plugin, to be called with this configuration.
    fn delegate_to(&self, name: &str, config: &'a Map) -> Delegate<'a> {
        Delegate::borrowed(name, config, self.net.cni_version, self.env, self.delegates)
    }
}

/// A [`Plugin`] of any configuration, so that they can be put in one table. Implemented for every plugin.
pub trait DynPlugin {
    /// What it is.
    fn about(&self) -> &'static str;
    /// The versions that it supports.
    fn versions(&self) -> &'static [Version];
    /// What its configuration says of itself.
    fn summary(&self) -> &'static str;
    /// The keys of its configuration.
    fn keys(&self) -> &'static [Key];
    /// The rest of its documentation.
    fn documentation(&self) -> &'static Documentation;
    /// Runs a command with a configuration that is parsed already. The result is there for ADD.
    fn call(&self, env: &Environment, config: &Map, delegates: &dyn Delegates) -> Result<Option<AddResult>, Error>;

    /// Runs a command.
    fn invoke(&self, env: &Environment, config: &[u8], delegates: &dyn Delegates) -> Result<Option<AddResult>, Error> {
        self.call(env, &parse_config(config)?, delegates)
    }
}

/// Gives the constant of a plugin an address.
struct Constants<P>(std::marker::PhantomData<P>);

impl<P: Plugin> Constants<P> {
    const DOC: &'static Documentation = &P::DOC;
}

impl<P: Plugin> DynPlugin for P {
    fn about(&self) -> &'static str {
        P::ABOUT
    }

    fn versions(&self) -> &'static [Version] {
        Version::range(*P::VERSIONS.start(), *P::VERSIONS.end())
    }

    fn summary(&self) -> &'static str {
        P::Conf::SUMMARY
    }

    fn keys(&self) -> &'static [Key] {
        P::Conf::KEYS
    }

    fn documentation(&self) -> &'static Documentation {
        Constants::<P>::DOC
    }

    fn call(&self, env: &Environment, config: &Map, delegates: &dyn Delegates) -> Result<Option<AddResult>, Error> {
        let net = admit(env.command, config, self.versions())?;
        let call = Call {
            command: env.command,
            container_id: &env.container_id,
            ifname: &env.ifname,
            netns: env.netns.as_deref(),
            args: &env.args,
            conf: P::Conf::decode(config)?,
            net: &net,
            env,
            config,
            delegates,
        };
        match env.command {
            Command::Add => return self.add(&call).map(Some),
            Command::Del => self.del(&call)?,
            Command::Check => self.check(&call)?,
            Command::Gc => self.gc(&call, &net.valid_attachments)?,
            Command::Status => self.status(&call)?,
            Command::Version => {}
        }
        Ok(None)
    }
}

fn no_result(command: Command) -> Error {
    let whose = if command == Command::Add { "a plugin before it in the list" } else { "ADD" };
    Error::config(format!("prevResult is missing: {command} of this plugin needs the result of {whose}"))
}

/// Checks that the command may be run with the configuration, and reads its common part.
fn admit(command: Command, config: &Map, supported: &[Version]) -> Result<NetConf, Error> {
    network_name(config)?;
    check_version(command, version_text(config)?, supported)?;
    if command == Command::Gc && lookup(config, "cni.dev/valid-attachments").is_none() {
        // Taken for an empty list it would remove everything.
        return Err(Error::config("cni.dev/valid-attachments is missing: GC needs the list of what to keep"));
    }
    let net = NetConf::decode(config, !matches!(command, Command::Add | Command::Check))?;
    if command == Command::Check && net.prev_result.is_none() {
        return Err(no_result(command));
    }
    Ok(net)
}

fn check_version(command: Command, wanted: &str, supported: &[Version]) -> Result<(), Error> {
    let incompatible = |msg: String| {
        let quoted: Vec<_> = supported.iter().map(|version| format!("{:?}", version.as_str())).collect();
        let details = format!("config is {wanted:?}, plugin supports [{}]", quoted.join(" "));
        Err(Error::new(Code::IncompatibleVersion, msg).details(details))
    };
    let since = match command {
        Command::Check => Version::V0_4_0,
        Command::Gc | Command::Status => Version::V1_1_0,
        _ => Version::V0_1_0,
    };
    if since > Version::V0_1_0 {
        let Some(asked) = numbers(wanted) else {
            return Err(Error::new(Code::Decode, format!("cniVersion: {wanted:?} is not a version")));
        };
        if numbers(since.as_str()) > Some(asked) {
            return incompatible(format!("config version does not allow {command}"));
        }
        if supported.last().and_then(|version| numbers(version.as_str())) < Some(asked) {
            return incompatible(format!("plugin version does not allow {command}"));
        }
    }
    match wanted.parse() {
        Ok(version) if supported.contains(&version) => Ok(()),
        _ => incompatible("incompatible CNI versions".to_owned()),
    }
}

/// The largest configuration that is read: far more than any real one, far less than what would hurt the node.
const CONFIG_LIMIT: u64 = 16 << 20;

/// Runs a plugin as this program.
pub fn main(plugin: &impl Plugin) -> ExitCode {
    main_with(plugin, &())
}

/// Runs a plugin as this program, with others that it can call in this process.
pub fn main_with(plugin: &dyn DynPlugin, delegates: &dyn Delegates) -> ExitCode {
    report_panics();
    let variable = |name: &str| std::env::var_os(name);
    // Without the buffers of the standard library's handles: there is one read and one write.
    let (stdin, stdout) = (descriptor(rustix::stdio::stdin()), descriptor(rustix::stdio::stdout()));
    // No standard output, nobody to tell.
    let (Ok(mut stdin), Ok(mut stdout)) = (stdin, stdout) else { return ExitCode::FAILURE };
    ExitCode::from(run(plugin, delegates, &variable, &mut stdin, &mut stdout, &mut std::io::stderr()))
}

fn descriptor(fd: std::os::fd::BorrowedFd<'_>) -> std::io::Result<File> {
    fd.try_clone_to_owned().map(File::from)
}

/// A panic is an error like others to the runtime: it gets a code and a message on standard output. The outcome is open
/// then, and the runtime calls DEL.
fn report_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        let place = info.location().map(|place| format!(" at {}:{}", place.file(), place.line())).unwrap_or_default();
        let error = Error::internal(format!("the plugin panicked{place}: {text}; please report this"));
        if let Ok(mut stdout) = descriptor(rustix::stdio::stdout()) {
            print(&mut stdout, &error.to_value(Version::NEWEST));
        }
        #[expect(clippy::exit, reason = "a hook returns to the panic, which would add its own end to ours")]
        std::process::exit(1);
    }));
}

/// Runs a plugin with all its surroundings given, and gives its exit code. Without a command, and that is all that is
/// missing, it says on standard error what it is.
pub fn run(
    plugin: &dyn DynPlugin,
    delegates: &dyn Delegates,
    variable: &dyn Fn(&str) -> Option<OsString>,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    if variable("CNI_COMMAND").is_none_or(|command| command.is_empty()) {
        let versions = list(plugin.versions());
        let _ = writeln!(stderr, "{}\nCNI protocol versions supported: {versions}", plugin.about());
        return 0;
    }
    let mut version = plugin.versions().last().copied().unwrap_or(Version::NEWEST);
    let answer = answer(plugin, delegates, variable, stdin, &mut version);
    let (value, code) = match answer {
        Ok(None) => return 0,
        Ok(Some(value)) => (value, 0),
        Err(error) => (error.to_value(version), 1),
    };
    if print(stdout, &value) { code } else { 1 }
}

/// What goes to standard output. `version` becomes the configuration's as soon as it is known.
fn answer(
    plugin: &dyn DynPlugin,
    delegates: &dyn Delegates,
    variable: &dyn Fn(&str) -> Option<OsString>,
    stdin: &mut dyn Read,
    version: &mut Version,
) -> Result<Option<Value>, Error> {
    let env = Environment::read(variable)?;
    if env.command == Command::Version {
        let supported: Vec<_> = plugin.versions().iter().map(|version| version.as_str()).collect();
        return Ok(Some(json!({ "cniVersion": Version::NEWEST.as_str(), "supportedVersions": supported })));
    }
    let config = parse_config(&read(stdin)?)?;
    if let Ok(known) = version_text(&config).unwrap_or_default().parse() {
        *version = known;
    }
    let check_netns = || if env.netns_override { Ok(()) } else { refuse_own_netns(env.netns.as_deref()) };
    // Before anything is made, though the original looks only afterwards.
    if env.command == Command::Add {
        check_netns()?;
    }
    let result = plugin.call(&env, &config, delegates)?;
    // Afterwards: what is there is removed in any case.
    if env.command == Command::Del {
        check_netns()?;
    }
    result.map(|result| result.to_value(*version)).transpose()
}

fn read(stdin: &mut dyn Read) -> Result<Vec<u8>, Error> {
    let mut config = Vec::with_capacity(4096);
    match stdin.take(CONFIG_LIMIT + 1).read_to_end(&mut config) {
        Err(error) => Err(Error::new(Code::Io, format!("error reading from stdin: {error}"))),
        Ok(_) if config.len() as u64 > CONFIG_LIMIT => Err(Error::new(
            Code::Decode,
            format!("the network configuration is larger than {} MiB", CONFIG_LIMIT >> 20),
        )),
        Ok(_) => Ok(config),
    }
}

/// A plugin that moves an interface into its own namespace would change the host (code 8). A path that cannot be looked
/// at is the plugin's to refuse: DEL must cope with it.
fn refuse_own_netns(netns: Option<&Path>) -> Result<(), Error> {
    let Some(netns) = netns.and_then(|path| rustix::fs::stat(path).ok()) else { return Ok(()) };
    let own = rustix::fs::stat("/proc/self/ns/net")
        .map_err(|error| Error::new(Code::InvalidNetns, format!("cannot look at the plugin's own netns: {error}")))?;
    if (netns.st_dev, netns.st_ino) == (own.st_dev, own.st_ino) {
        let msg = "plugin's netns and netns from CNI_NETNS should not be the same";
        return Err(Error::new(Code::InvalidNetns, msg).details("CNI_NETNS_OVERRIDE=1 allows it"));
    }
    Ok(())
}

/// Writes JSON with four spaces of indentation and without a final newline, as the original does, in one go.
fn print(stdout: &mut dyn Write, value: &Value) -> bool {
    let mut text = Vec::with_capacity(1024);
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter));
    written.is_ok() && stdout.write_all(&text).is_ok() && stdout.flush().is_ok()
}

#[cfg(test)]
mod tests;
