//! What a plugin is told by its environment (section 2, "Parameters").

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::{Code, Error, names};

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Add a container to the network, or change what an earlier plugin did.
    Add,
    /// Undo ADD.
    Del,
    /// Look whether the container is as ADD left it; since 0.4.0.
    Check,
    /// Remove what belongs to no attachment of a list; since 1.1.0.
    Gc,
    /// Say whether the plugin can serve ADD; since 1.1.0.
    Status,
    /// Say which versions the plugin supports.
    Version,
}

impl Command {
    /// As it is written in `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version]
            .into_iter()
            .find(|command| command.as_str() == text)
    }

    /// Whether it is about one container: ADD, DEL and CHECK.
    const fn has_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The parameters of one call: the `CNI_` variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`
    pub command: Command,
    /// `CNI_CONTAINERID`; empty for GC and STATUS.
    pub container_id: String,
    /// `CNI_IFNAME`; empty for GC and STATUS.
    pub ifname: String,
    /// `CNI_NETNS`; none if it is not set or empty, which is legal for DEL.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`
    pub args: CniArgs,
    /// `CNI_PATH`: directories where plugins are, separated by `:`.
    pub path: String,
    /// `CNI_NETNS_OVERRIDE`: the container's namespace may be the plugin's own.
    pub netns_override: bool,
}

impl Environment {
    /// Reads and checks the variables. Everything that the command needs and that is missing is named in one message
    /// (code 4). Wrong names of containers and interfaces are refused too (code 4).
    pub fn read(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let get = |name: &str| match variable(name).map(OsString::into_string) {
            None => Ok(String::new()),
            Some(Ok(text)) => Ok(text),
            Some(Err(_)) => Err(Error::new(Code::InvalidEnvironment, format!("{name} is not UTF-8"))),
        };
        let command = get("CNI_COMMAND")?;
        if command.is_empty() {
            return Err(missing("CNI_COMMAND"));
        }
        let Some(command) = Command::parse(&command) else {
            return Err(Error::new(Code::InvalidEnvironment, format!("unknown CNI_COMMAND: {command}")));
        };
        let environment = Self {
            command,
            container_id: get("CNI_CONTAINERID")?,
            ifname: get("CNI_IFNAME")?,
            netns: Some(get("CNI_NETNS")?).filter(|path| !path.is_empty()).map(PathBuf::from),
            args: CniArgs::new(get("CNI_ARGS")?),
            path: get("CNI_PATH")?,
            netns_override: get("CNI_NETNS_OVERRIDE")
                .is_ok_and(|text| text == "1" || text.eq_ignore_ascii_case("true")),
        };
        environment.check()?;
        Ok(environment)
    }

    /// Checks that what the command needs is there and well formed.
    pub fn check(&self) -> Result<(), Error> {
        if self.command == Command::Version {
            return Ok(());
        }
        let container = self.command.has_container();
        if container && !self.container_id.is_empty() && names::identifier(&self.container_id).is_err() {
            return Err(Error::new(Code::InvalidEnvironment, "invalid characters in CNI_CONTAINERID")
                .details(self.container_id.clone()));
        }
        if container && !self.ifname.is_empty() {
            let wrong = |why| format!("interface name {:?} in CNI_IFNAME {why}", self.ifname);
            names::interface(&self.ifname).map_err(|why| Error::new(Code::InvalidEnvironment, wrong(why)))?;
        }
        let absent = [
            ("CNI_CONTAINERID", container && self.container_id.is_empty()),
            ("CNI_NETNS", matches!(self.command, Command::Add | Command::Check) && self.netns.is_none()),
            ("CNI_IFNAME", container && self.ifname.is_empty()),
            ("CNI_PATH", self.path.is_empty()),
        ];
        let absent: Vec<&str> = absent.iter().filter(|(_, absent)| *absent).map(|(name, _)| *name).collect();
        if absent.is_empty() { Ok(()) } else { Err(missing(&absent.join(","))) }
    }

    /// The same parameters for another command.
    #[must_use]
    pub fn with_command(&self, command: Command) -> Self {
        Self { command, ..self.clone() }
    }

    /// The directories of `CNI_PATH`.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.path.split(':').filter(|dir| !dir.is_empty()).map(Path::new)
    }

    /// The variables to set for a plugin that is started with these parameters.
    pub fn variables(&self) -> Vec<(&'static str, OsString)> {
        let mut variables = vec![
            ("CNI_COMMAND", self.command.as_str().into()),
            ("CNI_CONTAINERID", self.container_id.clone().into()),
            ("CNI_NETNS", self.netns.clone().unwrap_or_default().into()),
            ("CNI_IFNAME", self.ifname.clone().into()),
            ("CNI_ARGS", self.args.as_str().into()),
            ("CNI_PATH", self.path.clone().into()),
        ];
        if self.netns_override {
            variables.push(("CNI_NETNS_OVERRIDE", "1".into()));
        }
        variables
    }
}

fn missing(names: &str) -> Error {
    Error::new(Code::InvalidEnvironment, format!("required env variables [{names}] missing"))
}

/// `CNI_ARGS`: pairs `KEY=value` separated by `;`. Plugins that do not look at it do not fail on a malformed one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniArgs(String);

impl CniArgs {
    /// The text of the variable.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The pairs, in order; what is no pair is left out.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.split(';').filter_map(|pair| pair.split_once('='))
    }

    /// The value of a key, the last if there are several; whatever else is there.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs().filter(|(name, _)| *name == key).last().map(|(_, value)| value)
    }

    /// The values of the keys that the plugin knows, as the original SDK reads them: a pair without exactly one `=` is an
    /// error, and so is an unknown key unless `IgnoreUnknown` is true (code 4).
    pub fn known<const N: usize>(&self, keys: [&str; N]) -> Result<[Option<&str>; N], Error> {
        let wrong = |what: String| Err(Error::new(Code::InvalidEnvironment, what));
        let mut values = [None; N];
        let mut unknown = None;
        let mut ignore = false;
        if self.0.is_empty() {
            return Ok(values);
        }
        for pair in self.0.split(';') {
            let Some((key, value)) = pair.split_once('=').filter(|(_, value)| !value.contains('=')) else {
                return wrong(format!("CNI_ARGS: {pair:?} is not a pair of the form KEY=value"));
            };
            if key == "IgnoreUnknown" {
                ignore = if value.eq_ignore_ascii_case("true") || value == "1" {
                    true
                } else if value.eq_ignore_ascii_case("false") || value == "0" {
                    false
                } else {
                    return wrong(format!("CNI_ARGS: IgnoreUnknown must be true or false, got {value:?}"));
                };
            } else if let Some(index) = keys.iter().position(|known| *known == key) {
                values[index] = Some(value);
            } else {
                unknown = unknown.or(Some(key));
            }
        }
        match unknown {
            Some(key) if !ignore => wrong(format!("CNI_ARGS: unknown key {key:?}; IgnoreUnknown=true would allow it")),
            _ => Ok(values),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, Error> {
        Environment::read(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    const FULL: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "id"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/a:/b"),
    ];

    fn with<'a>(key: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
        let mut all: Vec<_> = FULL.into_iter().filter(|(name, _)| *name != key).collect();
        all.push((key, value));
        all
    }

    #[test]
    fn each_command_needs_its_variables() {
        let cases = [
            ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
            ("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
            ("DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
            ("GC", "CNI_PATH"),
            ("STATUS", "CNI_PATH"),
        ];
        for (command, names) in cases {
            let error = read(&[("CNI_COMMAND", command)]).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment);
            assert_eq!(error.msg, format!("required env variables [{names}] missing"));
        }
        assert_eq!(read(&[]).unwrap_err().msg, "required env variables [CNI_COMMAND] missing");
        assert_eq!(read(&[("CNI_COMMAND", "VERSION")]).unwrap().command, Command::Version);
        assert_eq!(read(&[("CNI_COMMAND", "add")]).unwrap_err().msg, "unknown CNI_COMMAND: add");
        let environment = read(&FULL).unwrap();
        assert_eq!(environment.paths().collect::<Vec<_>>(), [Path::new("/a"), Path::new("/b")]);
        assert_eq!(read(&with("CNI_COMMAND", "DEL")).unwrap().with_command(Command::Add), environment);
    }

    #[test]
    fn names_are_checked_where_they_are_needed() {
        for id in ["-x", ".x", "a/b", "a b", "ä", "a\n", ""] {
            assert!(read(&with("CNI_CONTAINERID", id)).is_err(), "{id:?}");
        }
        for name in ["abcdefghijklmnop", ".", "..", "a/b", "a:b", "a b", "a\u{a0}b", ""] {
            assert!(read(&with("CNI_IFNAME", name)).is_err(), "{name:?}");
        }
        for name in ["abcdefghijklmno", "-", "é", "..."] {
            assert!(read(&with("CNI_IFNAME", name)).is_ok(), "{name:?}");
        }
        assert!(read(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/"), ("CNI_IFNAME", "a b")]).is_ok());
    }

    #[test]
    fn args_as_the_original_reads_them() {
        let args = CniArgs::new("IgnoreUnknown=1;K8S_POD_NAME=a;MAC=x");
        assert_eq!(args.known(["MAC", "IP"]), Ok([Some("x"), None]));
        assert_eq!(args.get("K8S_POD_NAME"), Some("a"));
        assert_eq!(CniArgs::default().known(["MAC"]), Ok([None]));
        assert_eq!(CniArgs::new("MAC=a;MAC=b").known(["MAC"]), Ok([Some("b")]));
        assert_eq!(CniArgs::new("MAC=").known(["MAC"]), Ok([Some("")]));
        for wrong in ["MAC", "MAC=a=b", "MAC=a;", ";", "X=1", "IgnoreUnknown=maybe", "X=1;IgnoreUnknown=false"] {
            let error = CniArgs::new(wrong).known(["MAC"]).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment, "{wrong}");
        }
        // The order of pairs does not matter.
        assert!(CniArgs::new("X=1;IgnoreUnknown=TRUE").known(["MAC"]).is_ok());
    }
}
