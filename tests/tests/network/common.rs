//! What the network suites share: the plugins as they are installed, the peers, and the words for what is skipped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};
use outrigger_testing::NetHost;
use outrigger_tests::{eprintln_skip, project};
use tempfile::TempDir;

/// Every name that the multi-call binary answers to.
pub(crate) const PLUGINS: &[&str] = &[
    "bandwidth",
    "bridge",
    "dhcp",
    "dummy",
    "firewall",
    "flannel",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "outrigger",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
    "win-bridge",
    "win-overlay",
];

/// The `outrigger-cni` binary: `OUTRIGGER_CNI`, else the one beside the tests, which is built if it is missing.
pub(crate) fn cni_binary() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| find_or_build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn find_or_build() -> Result<PathBuf> {
    if let Some(binary) = std::env::var_os("OUTRIGGER_CNI") {
        let binary = PathBuf::from(binary);
        ensure!(binary.is_file(), "OUTRIGGER_CNI={} is not a file", binary.display());
        return Ok(binary);
    }
    let tests = std::env::current_exe()?;
    let directory = tests.parent().and_then(Path::parent).context("target/<profile>/deps/<test>")?;
    let binary = directory.join("outrigger-cni");
    if !binary.is_file() {
        let status = Command::new("cargo")
            .args(["build", "--locked", "--quiet", "-p", "outrigger-cni"])
            .current_dir(project())
            .status()
            .context("cannot run cargo")?;
        ensure!(status.success(), "cargo build -p outrigger-cni: {status}");
    }
    ensure!(binary.is_file(), "{} is missing; build it first: cargo build -p outrigger-cni", binary.display());
    Ok(binary)
}

/// Our plugins as an operator installs them: a directory with one file under many names. The directory goes with the
/// value.
#[derive(Debug)]
pub(crate) struct Plugins {
    directory: TempDir,
}

impl Plugins {
    /// Installs [`PLUGINS`] in a scratch directory.
    pub(crate) fn install() -> Result<Self> {
        let binary = cni_binary()?;
        let directory = TempDir::with_prefix("outrigger-cni-bin-")?;
        // Hard links do not leave a file system; then one copy is made, and the links lead to that.
        let first = directory.path().join(PLUGINS[0]);
        if fs_err::hard_link(&binary, &first).is_err() {
            fs_err::copy(&binary, &first)?;
        }
        for name in &PLUGINS[1..] {
            fs_err::hard_link(&first, directory.path().join(name))?;
        }
        Ok(Self { directory })
    }

    /// The directory, for `CNI_PATH`.
    pub(crate) fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// One plugin's file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// The peers' plugins: `OUTRIGGER_CNI_PEERS`, else where Debian's package containernetworking-plugins puts them; none if
/// neither is there.
pub(crate) fn peers() -> Option<PathBuf> {
    let directory =
        std::env::var_os("OUTRIGGER_CNI_PEERS").map_or_else(|| PathBuf::from("/usr/lib/cni"), PathBuf::from);
    directory.join("bridge").is_file().then_some(directory)
}

/// True if the test can make its private host; says why not otherwise.
pub(crate) fn can_run(test: &str) -> bool {
    let root = NetHost::available();
    if !root {
        eprintln_skip(test, "it makes network namespaces, which needs root");
    }
    root
}

/// The peers' plugins, or a line that says that the test is skipped for want of them.
pub(crate) fn peers_or_skip(test: &str) -> Option<PathBuf> {
    let found = peers();
    if found.is_none() {
        eprintln_skip(test, "the peers' plugins are not installed (Debian: containernetworking-plugins)");
    }
    found
}

#[test]
fn the_binary_is_installed_under_every_name() {
    let plugins = Plugins::install().unwrap();
    let inode = |name: &str| {
        use std::os::unix::fs::MetadataExt as _;
        fs_err::metadata(plugins.path(name)).unwrap().ino()
    };
    assert!(PLUGINS.iter().all(|name| inode(name) == inode("bridge")));
    assert_eq!(fs_err::read_dir(plugins.dir()).unwrap().count(), PLUGINS.len());
    if can_run("the_binary_is_installed_under_every_name") {
        let _ = peers_or_skip("the_binary_is_installed_under_every_name");
    }
}
