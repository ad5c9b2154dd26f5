use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the kernel refused or answered, and during which operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request.
    #[error("{operation}: {}{}", ErrnoText(*errno), Explained(message.as_deref()))]
    Kernel {
        /// The operation and its object in words, for instance `create link veth0`.
        operation: String,
        /// Its answer.
        errno: Errno,
        /// Its explanation in words (extended acknowledgement), where it gave one.
        message: Option<String>,
    },
    /// A system call around the request failed.
    #[error("{operation}: {}", io_text(source))]
    Io {
        /// The operation in words.
        operation: String,
        /// The kernel's answer; its text is part of this error's.
        source: io::Error,
    },
    /// What was received, or was to be sent, does not have the form that the protocol asks for.
    #[error("malformed netlink message: {what}")]
    Malformed {
        /// What is wrong with it.
        what: String,
    },
    /// There is no such object.
    #[error("{what} does not exist")]
    NotFound {
        /// The object, for instance `link eth0`.
        what: String,
    },
    /// A network namespace cannot be used.
    #[error("network namespace {}: {problem}", path.display())]
    Namespace {
        /// Where it was looked for.
        path: PathBuf,
        /// What is wrong.
        problem: NamespaceProblem,
    },
    /// The kernel did not do in time what it does by itself.
    #[error("{operation}: not done in time")]
    Timeout {
        /// What was awaited.
        operation: String,
    },
    /// A value that no kernel would take.
    #[error("{what}")]
    Invalid {
        /// Which, and why.
        what: String,
    },
}

/// Why a path does not lead to a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceProblem {
    /// There is nothing at the path.
    #[error("there is nothing at this path")]
    Missing,
    /// There is a file that is no namespace, as is left when a namespace was unmounted.
    #[error("this is a file, not a namespace")]
    NotANamespace,
    /// There is a directory.
    #[error("this is a directory, not a namespace")]
    Directory,
    /// It is a namespace of another type.
    #[error("this is a namespace, but not one of type net")]
    OtherType,
    /// A system call failed.
    #[error("cannot {operation}: {}", io_text(source))]
    Io {
        /// The operation in words.
        operation: &'static str,
        /// The kernel's answer; its text is part of this error's.
        source: io::Error,
    },
}

impl Error {
    /// The kernel's error number, if it gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Io { source, .. } | Self::Namespace { problem: NamespaceProblem::Io { source, .. }, .. } => {
                Errno::from_io_error(source)
            }
            _ => None,
        }
    }

    /// Whether the object was missing, whichever way the kernel says that.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
            || matches!(
                self,
                Self::Kernel { errno: Errno::NODEV | Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL, .. }
            )
    }

    /// Whether the object was there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }

    /// Whether the kernel does not know this kind of object: a missing module, or a kernel built without it.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Kernel { errno: Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT, .. })
    }

    /// Whether the namespace is gone: nothing at its path, or only the file on which it was mounted.
    pub fn is_namespace_gone(&self) -> bool {
        let Self::Namespace { problem, .. } = self else { return false };
        matches!(problem, NamespaceProblem::Missing | NamespaceProblem::NotANamespace | NamespaceProblem::Directory)
    }

    pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source }
    }

    pub(crate) fn errno_of(operation: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let operation = operation.into();
        move |errno| Self::Io { operation, source: errno.into() }
    }
}

/// An error number in words. `ENOENT` gets other words than the C library's: some CNI runtimes take an error that holds
/// them as success.
struct ErrnoText(Errno);

impl fmt::Display for ErrnoText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&io_text(&self.0.into()))
    }
}

struct Explained<'a>(Option<&'a str>);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(message) => write!(f, " ({message})"),
            None => Ok(()),
        }
    }
}

fn io_text(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound {
        return "it does not exist".into();
    }
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_one_lower_case_line() {
        let error = Error::Kernel {
            operation: "create link a".into(),
            errno: Errno::EXIST,
            message: Some("try another name".into()),
        };
        assert_eq!(error.to_string(), "create link a: file exists (try another name)");
        assert!(error.is_exists() && !error.is_not_found());
        let error = Error::Kernel { operation: "read rules".into(), errno: Errno::NOENT, message: None };
        assert_eq!(error.to_string(), "read rules: it does not exist");
        assert!(error.is_not_found());
        let error = Error::Namespace { path: "/run/netns/a".into(), problem: NamespaceProblem::Missing };
        assert_eq!(error.to_string(), "network namespace /run/netns/a: there is nothing at this path");
        assert!(error.is_namespace_gone());
    }
}
