//! Test support: scratch directories, child processes, leak checks.
//!
//! - [`ScratchDir`]: a directory that goes with its value.
//! - [`Process`]: a child process that is watched, stopped and never outlives the test.
//! - [`Leaks`]: what a test left behind: mounts, loop devices, sockets, files.
//! - [`NetHost`]: network and mount namespaces that stand for a host, and containers in them.
//! - [`free_port`]: a TCP port that nobody uses.

mod leaks;
mod net;
mod process;

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

pub use leaks::Leaks;
pub use net::{NetHost, PluginOutput};
pub use process::Process;

/// A directory for one test, removed with all that is in it when this is dropped.
///
/// Its path is short, so that unix sockets fit in.
#[derive(Debug)]
pub struct ScratchDir {
    dir: tempfile::TempDir,
}

impl ScratchDir {
    /// Makes an empty directory in the system's place for temporary files.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("or-").rand_bytes(6).tempdir();
        Ok(Self { dir: dir.context("cannot make a scratch directory")? })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path below the directory.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }
}

/// A TCP port of the loopback interface that nobody uses now. Another process may take it before the caller does:
/// prefer to bind port 0 and ask for the port.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot bind a port")?;
    Ok(listener.local_addr().context("cannot find out the port")?.port())
}
