//! The IPAM plugins as programs: host-local under a killer and beside the original, dhcp with its daemon.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say what they skip"
)]

mod dhcp;
mod host_local;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

/// One of our plugins: the binary under its name.
fn ours(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<TempDir> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = TempDir::with_prefix("outrigger-cni-").unwrap();
        let binary = Path::new(env!("CARGO_BIN_EXE_outrigger-cni"));
        for name in ["bridge", "dhcp", "host-local", "macvlan"] {
            let path = directory.path().join(name);
            if fs_err::hard_link(binary, &path).is_err() {
                fs_err::copy(binary, &path).unwrap();
            }
        }
        directory
    });
    directory.path().join(name)
}
