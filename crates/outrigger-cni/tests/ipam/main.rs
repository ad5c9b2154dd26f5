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
use std::sync::Once;

/// One of our plugins: the binary under its name, beside the others.
fn ours(name: &str) -> PathBuf {
    static INSTALLED: Once = Once::new();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ipam");
    INSTALLED.call_once(|| {
        fs_err::create_dir_all(&directory).unwrap();
        let binary = Path::new(env!("CARGO_BIN_EXE_outrigger-cni"));
        for name in ["bridge", "dhcp", "host-local", "macvlan"] {
            // Other tests do the same at this moment: each link appears whole.
            let new = directory.join(format!(".{name}-{}", std::process::id()));
            if fs_err::hard_link(binary, &new).is_err() {
                fs_err::copy(binary, &new).unwrap();
            }
            fs_err::rename(&new, directory.join(name)).unwrap();
            // Renaming a link over another one to the same file leaves both.
            let _ = fs_err::remove_file(&new);
        }
    });
    directory.join(name)
}
