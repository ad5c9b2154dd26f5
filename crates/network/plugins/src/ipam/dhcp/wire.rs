//! What the plugin and its daemon say to each other.
//!
//! The plugin connects to the daemon's socket and writes one [`Request`] as a line of JSON. For ADD the daemon first
//! writes [`Reply::Wait`], so that the plugin knows how long a server may take; then, for every command, one
//! [`Reply::Done`] or [`Reply::Failed`], a line each, and closes the connection. A plugin that goes away before that has
//! given up: the daemon then gives back what it got.
//!
//! The original's two halves speak Go's net/rpc over HTTP on the same socket. That is not understood, but recognised on
//! both sides, so that a mixed pair says what is wrong.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger_cni_sdk::{Code, Error, Map};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The socket unless the configuration or the command line says otherwise; the original's.
pub const DEFAULT_SOCKET: &str = "/run/cni/dhcp.sock";
/// The version of this protocol.
pub const PROTOCOL: u32 = 1;
/// No message is longer.
pub const LONGEST: usize = 1 << 20;
/// How long the daemon may take for anything but a server's answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the plugin wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// [`PROTOCOL`]
    pub protocol: u32,
    /// What to do.
    pub command: Command,
    /// The container.
    #[serde(default)]
    pub container: String,
    /// The network.
    #[serde(default)]
    pub network: String,
    /// The interface in the container.
    #[serde(default)]
    pub ifname: String,
    /// Path of the network namespace, absolute.
    #[serde(default)]
    pub netns: PathBuf,
    /// `CNI_ARGS`
    #[serde(default)]
    pub args: String,
    /// `ipam` of the configuration.
    #[serde(default)]
    pub ipam: Map,
    /// The attachments to keep, container and interface, for GC.
    #[serde(default)]
    pub valid: Vec<(String, String)>,
}

/// What the daemon can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Get a lease and keep it.
    Add,
    /// Give the lease back.
    Del,
    /// Say whether there is a lease.
    Check,
    /// Give back the leases of a network that are not in a list.
    Gc,
    /// Say that the daemon is there.
    Status,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// The final answer takes up to so many seconds.
    Wait(u64),
    /// It is done. The result of ADD in the form of 1.1.0, else null.
    Done(Value),
    /// It is not done.
    Failed {
        /// Code of the CNI error.
        code: u32,
        /// Its message.
        msg: String,
        /// More of it.
        #[serde(default)]
        details: String,
    },
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        Self::Failed { code: error.code.number(), msg: error.msg, details: error.details }
    }
}

/// Why the daemon gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens there.
    Absent(String),
    /// Somebody does, and the call failed.
    Call(Error),
}

impl Failure {
    /// The error for the runtime; the code if nobody listens is given.
    pub fn into_error(self, socket: &Path, absent: Code) -> Error {
        match self {
            Self::Absent(why) => Error::new(absent, format!("dhcp: no daemon listens on {}: {why}", socket.display()))
                .details("start it with `outrigger-cni dhcp daemon`, or set ipam.daemonSocketPath to its socket"),
            Self::Call(error) => error,
        }
    }
}

/// Asks the daemon.
pub fn call(socket: &Path, request: &Request) -> Result<Value, Failure> {
    let stream = UnixStream::connect(socket).map_err(|error| {
        match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::NOENT) => Failure::Absent("there is no such socket".to_owned()),
            _ => Failure::Absent(error.to_string()),
        }
    })?;
    let at = socket.display();
    let failed = |what: String| Failure::Call(Error::new(Code::Io, format!("dhcp: the daemon on {at} {what}")));
    let io = |error: std::io::Error| {
        failed(match error.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => "does not answer; restart it".to_owned(),
            _ => format!("broke off: {error}"),
        })
    };
    stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(io)?;
    let mut line = serde_json::to_vec(request).map_err(|error| failed(format!("cannot be asked: {error}")))?;
    line.push(b'\n');
    (&stream).write_all(&line).map_err(io)?;
    let mut reader = BufReader::new((&stream).take(LONGEST as u64));
    loop {
        let mut answer = Vec::new();
        reader.read_until(b'\n', &mut answer).map_err(io)?;
        if answer.starts_with(b"HTTP/") {
            let what = "is the original's, which speaks another protocol: stop it and start this package's, \
                        `outrigger-cni dhcp daemon`";
            return Err(failed(what.to_owned()));
        }
        if answer.is_empty() {
            return Err(failed("closed the connection without an answer; see its log".to_owned()));
        }
        match serde_json::from_slice(&answer) {
            Ok(Reply::Wait(seconds)) => {
                stream.set_read_timeout(Some(PATIENCE + Duration::from_secs(seconds))).map_err(io)?;
            }
            Ok(Reply::Done(value)) => return Ok(value),
            Ok(Reply::Failed { code, msg, details }) => {
                return Err(Failure::Call(Error::new(Code::from(code), msg).details(details)));
            }
            Err(error) => return Err(failed(format!("gave an answer that is none of this protocol: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_lines_of_json() {
        let text = r#"{"protocol":1,"command":"status"}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert_eq!((request.command, request.container.as_str()), (Command::Status, ""));
        let again: Request = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
        assert_eq!(again, request);
        assert_eq!(serde_json::to_string(&Reply::Wait(3)).unwrap(), r#"{"wait":3}"#);
        assert_eq!(serde_json::to_string(&Reply::Done(Value::Null)).unwrap(), r#"{"done":null}"#);
    }

    fn answered(answer: &'static str) -> Failure {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            (&stream).write_all(answer.as_bytes()).unwrap();
        });
        let request: Request = serde_json::from_str(r#"{"protocol":1,"command":"status"}"#).unwrap();
        let failure = call(&path, &request).unwrap_err();
        server.join().unwrap();
        failure
    }

    #[test]
    fn strange_daemons() {
        for (answer, text) in [
            ("HTTP/1.1 400 Bad Request\r\n\r\n", "is the original's, which speaks another protocol"),
            ("", "closed the connection without an answer"),
            ("{}\n", "none of this protocol"),
            ("{\"wait\":1}\nnonsense\n", "none of this protocol"),
            ("{\"failed\":{\"code\":11,\"msg\":\"later\"}}\n", "later"),
        ] {
            let Failure::Call(error) = answered(answer) else { panic!("{answer}") };
            assert!(error.msg.contains(text), "{error}");
        }
    }

    #[test]
    fn no_daemon() {
        let request: Request = serde_json::from_str(r#"{"protocol":1,"command":"status"}"#).unwrap();
        let path = Path::new("/nonexistent/dhcp.sock");
        let error = call(path, &request).unwrap_err().into_error(path, Code::NotAvailable);
        assert_eq!(error.code, Code::NotAvailable);
        assert_eq!(error.msg, "dhcp: no daemon listens on /nonexistent/dhcp.sock: there is no such socket");
    }
}
