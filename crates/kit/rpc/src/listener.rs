//! Binding a unix socket so that nobody ever sees it half made, and never over a live one.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::Stream;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

use crate::{Connection, Endpoint};

/// How long another process may be in the middle of binding in the same directory.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How long to wait between two tries for that.
const LOCK_RETRY: Duration = Duration::from_millis(10);
/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;
/// How long to leave the kernel alone when it is out of descriptors or memory for one more connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// A process accepts connections there.
    #[error("{endpoint} is in use: another process listens there; stop it or choose another path")]
    InUse {
        /// The address asked for.
        endpoint: Endpoint,
    },
    /// Something that is no socket has the name; it is left alone.
    #[error("{path:?} exists and is {what}, not a socket: remove it or choose another path")]
    NotASocket {
        /// What was found.
        path: PathBuf,
        /// Its type, for instance `a directory`.
        what: &'static str,
    },
    /// The directory does not exist or cannot be opened.
    #[error("cannot open {path:?}, the directory of the socket: it must exist before the socket is bound")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another process keeps the directory locked.
    #[error("another process has been binding a socket in {path:?} for more than {} seconds", LOCK_WAIT.as_secs())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A step failed.
    #[error("cannot {step} {path:?}")]
    Io {
        /// The step, for instance `bind`.
        step: &'static str,
        /// The object of the step.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A bound unix socket, mode 0600. Dropping it, or the stream made of it, removes the socket file if it is still ours.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    name: Name,
}

/// The name in the file system; removed on drop.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    /// The device and inode of our socket file, to tell it from one that replaced it.
    identity: (u64, u64),
}

impl Listener {
    /// Binds a socket at `endpoint` and listens.
    ///
    /// The socket is made under a hidden temporary name in the same directory and renamed when it listens, so a
    /// plugin watcher never finds one that refuses. A socket file that nobody listens on is replaced. While it
    /// looks and renames, an advisory lock on the directory (`flock`) keeps others that bind this way out.
    pub async fn bind(endpoint: &Endpoint) -> Result<Self, BindError> {
        let path = std::path::absolute(endpoint.path()).map_err(|source| BindError::Io {
            step: "resolve",
            path: endpoint.path().to_owned(),
            source,
        })?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let lock = lock(directory).await?;
        refuse_if_taken(endpoint, &path).await?;
        let temporary = directory.join(format!(".{}-{}~", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        let bound = bind_at(&temporary, &lock).and_then(|bound| {
            fs_err::rename(&temporary, &path).map_err(|source| BindError::Io {
                step: "rename the new socket to",
                path: path.clone(),
                source,
            })?;
            Ok(bound)
        });
        if bound.is_err() {
            // Best effort: it may not have been made at all.
            let _ = fs_err::remove_file(&temporary);
        }
        let (listener, identity) = bound?;
        Ok(Self { listener, name: Name { path, identity } })
    }

    /// The connections as they come; the stream never ends and never fails.
    ///
    /// Out of file descriptors or memory it logs, pauses and goes on: those who wait stay in the backlog.
    pub fn incoming(self) -> impl Stream<Item = io::Result<Connection>> + Send {
        futures_util::stream::unfold(self, |this| async {
            loop {
                match this.listener.accept().await {
                    Ok((stream, _)) => return Some((Ok(Connection::new(stream)), this)),
                    Err(error) => {
                        tracing::warn!(socket = %this.name.path.display(), %error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
    }
}

/// Makes temporary names unique within the process.
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Locks a directory against others who bind in it; the lock ends with the file.
async fn lock(directory: &Path) -> Result<File, BindError> {
    let fail = |source| BindError::Directory { path: directory.to_owned(), source };
    let file = File::open(directory).map_err(fail)?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                tokio::time::sleep(LOCK_RETRY).await;
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(BindError::Locked { path: directory.to_owned() });
            }
            // Some network file systems have no locks; a race there is no worse than without this code.
            Err(std::fs::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => return Ok(file),
            Err(std::fs::TryLockError::Error(error)) => return Err(fail(error)),
        }
    }
}

/// Fails unless `path` is free or a socket that nobody listens on.
async fn refuse_if_taken(endpoint: &Endpoint, path: &Path) -> Result<(), BindError> {
    let fail = |step, source| BindError::Io { step, path: path.to_owned(), source };
    let kind = match fs_err::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail("look at", error)),
    };
    if !kind.is_socket() {
        let what = if kind.is_dir() {
            "a directory"
        } else if kind.is_symlink() {
            "a symbolic link"
        } else if kind.is_file() {
            "a regular file"
        } else {
            "a device or pipe"
        };
        return Err(BindError::NotASocket { path: path.to_owned(), what });
    }
    match UnixStream::connect(endpoint.path()).await {
        Ok(_) => Err(BindError::InUse { endpoint: endpoint.clone() }),
        Err(error) => match error.kind() {
            // Nobody listens, or it went away meanwhile.
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Ok(()),
            // Its backlog is full: it is alive.
            io::ErrorKind::WouldBlock => Err(BindError::InUse { endpoint: endpoint.clone() }),
            _ => Err(fail("find out whether somebody listens on", error)),
        },
    }
}

/// Binds and listens at `path`, whose directory is open as `directory`; gives the file's device and inode too.
fn bind_at(path: &Path, directory: &File) -> Result<(UnixListener, (u64, u64)), BindError> {
    let fail = |step, source: io::Error| BindError::Io { step, path: path.to_owned(), source };
    // The temporary name may be longer than the final one: reach it through the open directory if it does not fit.
    let address = SocketAddrUnix::new(path).or_else(|_| {
        let name = path.file_name().unwrap_or_default();
        SocketAddrUnix::new(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name))
    });
    let address = address.map_err(|error| fail("make the address of", error.into()))?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(|error| fail("make", error.into()))?;
    rustix::net::bind(&socket, &address).map_err(|error| fail("bind", error.into()))?;
    // Until it listens nobody can connect, whatever the mode that the umask left.
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR).map_err(|error| fail("set the mode of", error.into()))?;
    rustix::net::listen(&socket, BACKLOG).map_err(|error| fail("listen on", error.into()))?;
    let listener = UnixListener::from_std(socket.into()).map_err(|error| fail("register", error))?;
    let meta = fs_err::symlink_metadata(path).map_err(|error| fail("look at", error))?;
    Ok((listener, (meta.dev(), meta.ino())))
}

impl Drop for Name {
    fn drop(&mut self) {
        // The lock keeps a successor from renaming its socket into place between the look and the removal. If
        // somebody binds right now, going on without it is better than leaving a dead socket behind.
        let directory = self.path.parent().and_then(|directory| File::open(directory).ok());
        let _locked = directory.as_ref().map(File::try_lock);
        let ours = fs_err::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if ours && let Err(error) = fs_err::remove_file(&self.path) {
            tracing::warn!(%error, "cannot remove the socket");
        }
    }
}
