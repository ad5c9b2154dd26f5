//! Releases what a lab took from the kernel: mounts of its volumes and loop devices on its files.
//!
//! A plugin's mounts outlive its process, which is right while a cluster runs (a driver's restart must not take volumes
//! from under pods) and wrong once the lab is down. The lab's directory tells what belongs to it, so this works as well
//! after everything was killed.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use outrigger_sys::mountinfo::{self, Mount};
use outrigger_sys::{loopdev, mount};

use super::layout::Layout;

/// A mount that somebody works in: its name is gone, the mount itself goes with its last user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lingering {
    /// Where it was mounted.
    pub target: PathBuf,
}

impl fmt::Display for Lingering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is in use: it is detached, and released when its last user is gone", self.target.display())
    }
}

/// Unmounts and detaches; goes on after a failure and reports all of them in the end. Gives what is still in use.
pub(crate) fn release(layout: &Layout) -> Result<Vec<Lingering>> {
    let root = layout.root().canonicalize()?;
    let loops: Vec<(loopdev::LoopDevice, PathBuf)> =
        loopdev::attached()?.into_iter().filter(|(_, backing)| backing.starts_with(&root)).collect();
    let devices: BTreeSet<PathBuf> = loops.iter().map(|(device, _)| device.path()).collect();
    let mut failures = Vec::new();
    let mut lingering = Vec::new();
    for target in belonging(&mountinfo::read()?, &root, &devices) {
        if let Err(error) = mount::unmount(&target) {
            if !error.is_busy() {
                failures.push(format!("{error}"));
                continue;
            }
            // Somebody works in it. The volume's files stay; the name goes now and the mount with its last user.
            match mount::unmount_detach(&target) {
                Ok(()) => lingering.push(Lingering { target }),
                Err(error) => failures.push(format!("{error}")),
            }
        }
    }
    for (device, _) in loops {
        if let Err(error) = device.detach()
            && !error.is_missing()
        {
            failures.push(format!("{error}"));
        }
    }
    if failures.is_empty() { Ok(lingering) } else { bail!("could not release everything: {}", failures.join("; ")) }
}

/// The mounts below `root`, of directories below `root`, and of the given devices; those mounted last come first.
fn belonging(mounts: &[Mount], root: &Path, devices: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    // A bind mount shows which directory of its filesystem it is, so first: what is `root` called within its filesystem?
    let home = mounts
        .iter()
        .filter(|mount| root.starts_with(&mount.target))
        .max_by_key(|mount| mount.target.as_os_str().len());
    let inside = home.and_then(|home| {
        let below = root.strip_prefix(&home.target).ok()?;
        Some((home.device, home.root.join(below)))
    });
    mounts
        .iter()
        .rev()
        .filter(|mount| {
            let below = mount.target.starts_with(root);
            let bound =
                inside.as_ref().is_some_and(|(device, path)| mount.device == *device && mount.root.starts_with(path));
            // A raw block volume is the device's node in /dev, bound onto a file.
            let node = mount.filesystem == "devtmpfs"
                && mount.root.strip_prefix("/").is_ok_and(|name| devices.contains(&Path::new("/dev").join(name)));
            below || bound || node || devices.contains(&mount.source)
        })
        .map(|mount| mount.target.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
20 1 254:0 / / rw,relatime - ext4 /dev/vda rw
21 20 0:5 / /dev rw - devtmpfs devtmpfs rw
30 20 254:0 /var/lib/lab/csi-data/volumes/a /mnt/a rw - ext4 /dev/vda rw
31 20 254:0 /var/lib/labour /mnt/other rw - ext4 /dev/vda rw
32 20 7:3 / /mnt/filesystem rw - ext4 /dev/loop3 rw
33 20 0:5 /loop3 /mnt/raw rw - devtmpfs devtmpfs rw
34 20 0:5 /loop4 /mnt/foreign rw - devtmpfs devtmpfs rw
35 20 0:40 / /var/lib/lab/scratch rw - tmpfs tmpfs rw
";

    #[test]
    fn takes_what_is_the_labs_and_nothing_else() {
        let mounts = mountinfo::parse(TABLE.as_bytes()).unwrap();
        let devices = BTreeSet::from([PathBuf::from("/dev/loop3")]);
        let targets = belonging(&mounts, Path::new("/var/lib/lab"), &devices);
        let expected = ["/var/lib/lab/scratch", "/mnt/raw", "/mnt/filesystem", "/mnt/a"].map(PathBuf::from);
        assert_eq!(targets, expected, "newest first, and neither /mnt/other nor /mnt/foreign");
    }
}
