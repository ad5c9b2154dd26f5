//! What may go wrong on the runtime's side.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::locate::Place;
use crate::{Code, Command};

/// Why a network operation failed. What a plugin itself said is [`Error::Plugin`], with its CNI code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory of the configuration or the cache could not be read or written.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// The operation in words: `read`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A network configuration is not valid.
    #[error("{}{}{problem}", file.as_ref().map(|file| format!("{}: ", file.display())).unwrap_or_default(),
            place.map(|place| format!("{place}: ")).unwrap_or_default())]
    Config {
        /// The file; none if the configuration did not come from one.
        file: Option<PathBuf>,
        /// Where in the file.
        place: Option<Place>,
        /// What is wrong.
        problem: String,
    },
    /// The configuration directory holds no network of that name.
    #[error("no network {name:?} in {}{}", dir.display(), unreadable(broken))]
    NoSuchNetwork {
        /// The network.
        name: String,
        /// The directory that was searched.
        dir: PathBuf,
        /// Files in it that could not be understood: the network may be in one of them.
        broken: Vec<Error>,
    },
    /// What was asked for cannot be expressed, or must not be.
    #[error("{what} {value:?}: {problem}")]
    Argument {
        /// Which argument: `container id`.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No plugin directory holds the plugin.
    #[error("plugin {plugin:?} is in none of the plugin directories ({}); install it there, or name its directory",
            dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", "))]
    NoSuchPlugin {
        /// The plugin's type.
        plugin: String,
        /// The directories that were searched.
        dirs: Vec<PathBuf>,
    },
    /// A plugin could not be started or talked to.
    #[error("cannot {operation} plugin {plugin:?} ({})", path.display())]
    Exec {
        /// The operation in words: `start`.
        operation: &'static str,
        /// The plugin's type.
        plugin: String,
        /// The plugin's executable.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A plugin did not end in time and was killed.
    #[error("plugin {plugin:?} did not finish {command} within {limit:?} and was killed{}", after_timeout(*command))]
    Timeout {
        /// The plugin's type.
        plugin: String,
        /// What it was to do.
        command: Command,
        /// The limit.
        limit: Duration,
    },
    /// A plugin answered with an error, or ended without an answer.
    #[error("plugin {plugin:?} failed to {command}: {error}")]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// What it was to do.
        command: Command,
        /// What it said.
        error: crate::Error,
    },
    /// A plugin succeeded, but its answer makes no sense.
    #[error("plugin {plugin:?}, {command}: {problem}")]
    Answer {
        /// The plugin's type.
        plugin: String,
        /// What it was to do.
        command: Command,
        /// What is wrong with the answer.
        problem: String,
    },
    /// The configuration's version has no such command.
    #[error("network {network:?} has version {version}: {command} needs {needs} or newer")]
    TooOld {
        /// The network.
        network: String,
        /// Its version.
        version: crate::Version,
        /// What was wanted.
        command: Command,
        /// The first version that has it.
        needs: crate::Version,
    },
    /// There is no cached result to check against.
    #[error("no usable result of an earlier ADD of {id}/{ifname} to network {network:?} in the cache ({}){}", path.display(),
            damage.as_ref().map(|damage| format!(": {damage}")).unwrap_or_default())]
    NotCached {
        /// The network.
        network: String,
        /// The container.
        id: String,
        /// The interface.
        ifname: String,
        /// Where it would be.
        path: PathBuf,
        /// What is wrong with it, if it is there.
        damage: Option<String>,
    },
    /// Several things failed; each is told.
    #[error("{}", joined(.0))]
    Several(Vec<Error>),
}

impl Error {
    /// The CNI error code, where a plugin gave one (specification, section "Error").
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Plugin { error, .. } => Some(error.code),
            _ => None,
        }
    }

    /// The whole story in one line, causes included.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        text
    }

    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { operation, path, source }
    }
}

/// What to do about a plugin that was killed.
fn after_timeout(command: Command) -> &'static str {
    match command {
        Command::Add => "; what it did is not known: delete the attachment before another attempt",
        Command::Del | Command::Gc => "; what is left is not known: do it again",
        Command::Check | Command::Status | Command::Version => "",
    }
}

fn unreadable(broken: &[Error]) -> String {
    if broken.is_empty() {
        return String::new();
    }
    format!("; it may be in a file that cannot be understood: {}", joined(broken))
}

fn joined(errors: &[Error]) -> String {
    errors.iter().map(Error::report).collect::<Vec<_>>().join("; ")
}

/// One error of several; there is at least one.
pub(super) fn several(mut errors: Vec<Error>) -> Error {
    if errors.len() == 1 { errors.remove(0) } else { Error::Several(errors) }
}
