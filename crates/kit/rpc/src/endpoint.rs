//! The address of a unix socket.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest path that fits `sockaddr_un.sun_path` together with its terminating zero byte.
const SUN_PATH_MAX: usize = 107;

/// The address of a unix socket.
///
/// Parses `unix:///abs/path`, `unix:/abs/path`, `unix://relative`, `unix:relative`, `/abs/path` and
/// `relative.sock`; prints as `unix://` followed by the path. Relative paths mean the process's working
/// directory at the time of use.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    path: PathBuf,
}

/// Why a text or path is not the address of a unix socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// There is no path.
    #[error("endpoint {0:?} has no path: use unix:///path/to/socket")]
    Empty(String),
    /// The scheme is not `unix`.
    #[error(
        "endpoint {endpoint:?} has the scheme {scheme:?}, only unix sockets are supported: use unix:///path/to/socket"
    )]
    Scheme {
        /// The text as given.
        endpoint: String,
        /// What stands before `://`.
        scheme: String,
    },
    /// The path has a zero byte or ends in a slash, hence names no socket.
    #[error("endpoint path {0:?} cannot name a socket: it must end in a file name and hold no zero byte")]
    NotAFile(PathBuf),
    /// The path does not fit the kernel's socket address.
    #[error(
        "endpoint path {path:?} is {length} bytes long, the kernel allows {SUN_PATH_MAX} for a unix socket: use a shorter directory"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
}

impl Endpoint {
    /// Makes the endpoint of a socket path.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, EndpointError> {
        let path = path.into();
        let bytes = path.as_os_str().as_encoded_bytes();
        if bytes.is_empty() {
            return Err(EndpointError::Empty(String::new()));
        }
        if bytes.len() > SUN_PATH_MAX {
            return Err(EndpointError::TooLong { length: bytes.len(), path });
        }
        if bytes.contains(&0) || bytes.ends_with(b"/") || path.file_name().is_none() {
            return Err(EndpointError::NotAFile(path));
        }
        Ok(Self { path })
    }

    /// The path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = if let Some(rest) = text.strip_prefix("unix://") {
            rest
        } else if let Some(rest) = text.strip_prefix("unix:") {
            rest
        } else if let Some((scheme, _)) = text.split_once("://") {
            return Err(EndpointError::Scheme { endpoint: text.to_owned(), scheme: scheme.to_owned() });
        } else {
            text
        };
        if path.is_empty() {
            return Err(EndpointError::Empty(text.to_owned()));
        }
        Self::new(path)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_names_the_same_socket() {
        for (text, path) in [
            ("unix:///run/csi.sock", "/run/csi.sock"),
            ("unix:/run/csi.sock", "/run/csi.sock"),
            ("/run/csi.sock", "/run/csi.sock"),
            ("unix://run/csi.sock", "run/csi.sock"),
            ("unix:csi.sock", "csi.sock"),
            ("csi.sock", "csi.sock"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.path(), Path::new(path), "{text}");
            assert_eq!(endpoint.to_string(), format!("unix://{path}"));
            assert_eq!(endpoint.to_string().parse::<Endpoint>().unwrap(), endpoint);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("", "has no path"),
            ("unix://", "has no path"),
            ("tcp://127.0.0.1:10000", "scheme \"tcp\""),
            ("/run/", "cannot name a socket"),
            ("/", "cannot name a socket"),
            ("..", "cannot name a socket"),
            ("/run/a\0b", "cannot name a socket"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
        let long = format!("/{}", "a".repeat(107));
        let error = Endpoint::new(&long).unwrap_err().to_string();
        assert!(error.contains("108 bytes long") && error.contains("107"), "{error}");
        assert!(Endpoint::new(&long[..107]).is_ok());
    }
}
