//! The client's side of a connection.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};
use tonic::transport::{Channel, Endpoint as Target, Uri};
use tower::service_fn;

use crate::Endpoint;

/// The first pause between two tries; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(20);
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody accepted within the time given.
    #[error("nobody accepts connections on {endpoint} after {timeout:?}: is the driver running?")]
    Timeout {
        /// The address.
        endpoint: Endpoint,
        /// The time given.
        timeout: Duration,
        /// What the last try met.
        #[source]
        source: io::Error,
    },
    /// It cannot work however long one waits, for instance because of missing permission.
    #[error("cannot connect to {endpoint}")]
    Refused {
        /// The address.
        endpoint: Endpoint,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The socket accepted, but no HTTP/2 connection could be made.
    #[error("cannot start HTTP/2 on {endpoint}")]
    Transport {
        /// The address.
        endpoint: Endpoint,
        /// The cause.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Connects to `endpoint`; waits up to `timeout` for the socket to appear and to accept.
///
/// A channel that loses its connection makes a new one with the next call.
pub async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Channel, ConnectError> {
    let deadline = Instant::now() + timeout;
    let expired = |source| ConnectError::Timeout { endpoint: endpoint.clone(), timeout, source };
    let mut pause = PAUSE;
    loop {
        let error = match timeout_at(deadline, UnixStream::connect(endpoint.path())).await {
            Ok(Ok(_)) => break,
            Ok(Err(error)) => error,
            Err(_) => return Err(expired(io::ErrorKind::TimedOut.into())),
        };
        let passing = match error.kind() {
            // A socket that is not served yet; any other file refuses for ever.
            io::ErrorKind::ConnectionRefused => {
                fs_err::metadata(endpoint.path()).map_or(true, |meta| meta.file_type().is_socket())
            }
            io::ErrorKind::NotFound | io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => true,
            _ => false,
        };
        if !passing {
            return Err(ConnectError::Refused { endpoint: endpoint.clone(), source: error });
        }
        if timeout_at(deadline, tokio::time::sleep(pause)).await.is_err() {
            return Err(expired(error));
        }
        pause = PAUSE_MAX.min(pause * 2);
    }
    let path = endpoint.path().to_owned();
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let connected = timeout_at(deadline, target().connect_with_connector(connector)).await;
    connected
        .map_err(|_| expired(io::ErrorKind::TimedOut.into()))?
        .map_err(|source| ConnectError::Transport { endpoint: endpoint.clone(), source })
}

/// A channel to `endpoint` that connects with the first call and again whenever the connection is lost.
///
/// A call fails with `Unavailable` while nobody accepts. Must be called within a tokio runtime.
pub fn connect_lazy(endpoint: &Endpoint) -> Channel {
    let path = endpoint.path().to_owned();
    target().connect_with_connector_lazy(service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

/// What goes into `:scheme` and `:authority`; `localhost` is what every gRPC server takes on a unix socket.
fn target() -> Target {
    Target::from_static("http://localhost")
}
