//! What a test left behind.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// A picture of what tests may leave behind, to be taken before and compared after:
///
/// - mounts (`/proc/self/mountinfo`),
/// - loop devices with a backing file (`/sys/block`),
/// - bound unix sockets (`/proc/net/unix`),
/// - files and directories below the given directories.
///
/// Of the first three only what lies below those directories counts, as other tests run at the same time; without
/// directories, all of it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaks {
    dirs: Vec<PathBuf>,
    found: BTreeSet<String>,
}

impl Leaks {
    /// Takes the picture.
    pub fn snapshot<P: AsRef<Path>>(dirs: impl IntoIterator<Item = P>) -> Result<Self> {
        let dirs: Vec<PathBuf> = dirs.into_iter().map(|dir| dir.as_ref().to_owned()).collect();
        let mut found = BTreeSet::new();
        let ours = |path: &str| dirs.is_empty() || dirs.iter().any(|dir| Path::new(path).starts_with(dir));
        for point in mount_points(&fs_err::read_to_string("/proc/self/mountinfo")?) {
            if ours(&point) {
                found.insert(format!("mount {point}"));
            }
        }
        for (device, file) in loop_devices(Path::new("/sys/block"))? {
            if ours(&file) {
                found.insert(format!("loop device {device} of {file}"));
            }
        }
        for path in sockets(&fs_err::read_to_string("/proc/net/unix")?) {
            if ours(&path) {
                found.insert(format!("socket {path}"));
            }
        }
        for dir in &dirs {
            files(dir, &mut found)?;
        }
        Ok(Self { dirs, found })
    }

    /// What is there now and was not when this picture was taken, one sentence part each.
    pub fn since(&self) -> Result<Vec<String>> {
        let now = Self::snapshot(&self.dirs)?;
        Ok(now.found.difference(&self.found).cloned().collect())
    }

    /// Fails with a list if something is there now that was not when this picture was taken.
    pub fn assert_none_since(&self) -> Result<()> {
        let left = self.since()?;
        ensure!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
        Ok(())
    }
}

/// The mount points of a mountinfo text.
fn mount_points(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape)
}

/// Undoes the octal escapes of the kernel for space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The loop devices with a backing file, and that file.
fn loop_devices(block: &Path) -> Result<Vec<(String, String)>> {
    let mut out = Vec::new();
    // There is no /sys in some sandboxes, and no loop devices then.
    let Ok(entries) = fs_err::read_dir(block) else {
        return Ok(out);
    };
    for entry in entries {
        let entry = entry.context("cannot list block devices")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("loop")
            && let Ok(file) = fs_err::read_to_string(entry.path().join("loop/backing_file"))
        {
            let file = file.trim_end_matches('\n');
            out.push((name, file.strip_suffix(" (deleted)").unwrap_or(file).to_owned()));
        }
    }
    Ok(out)
}

/// The paths of bound sockets in a text like that of /proc/net/unix.
fn sockets(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(7))
        .filter(|path| path.starts_with('/'))
        .map(str::to_owned)
}

fn files(dir: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    // A directory that is gone has left nothing behind.
    let Ok(entries) = fs_err::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry.context("cannot list files")?;
        let path = entry.path();
        found.insert(format!("file {}", path.as_os_str().as_bytes().escape_ascii()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ScratchDir;
    use std::os::unix::net::UnixListener;

    #[test]
    fn files_and_sockets_are_found_and_forgotten() {
        let scratch = ScratchDir::new().unwrap();
        fs_err::write(scratch.join("before"), "").unwrap();
        let before = Leaks::snapshot([scratch.path()]).unwrap();
        before.assert_none_since().unwrap();
        fs_err::create_dir(scratch.join("d")).unwrap();
        fs_err::write(scratch.join("d/f"), "").unwrap();
        let listener = UnixListener::bind(scratch.join("s")).unwrap();
        let left = before.since().unwrap();
        let at = scratch.path().display();
        assert_eq!(
            left,
            [format!("file {at}/d"), format!("file {at}/d/f"), format!("file {at}/s"), format!("socket {at}/s")]
        );
        let error = before.assert_none_since().unwrap_err().to_string();
        assert!(error.contains("d/f"), "{error}");
        drop(listener);
        fs_err::remove_file(scratch.join("s")).unwrap();
        fs_err::remove_dir_all(scratch.join("d")).unwrap();
        before.assert_none_since().unwrap();
    }

    #[test]
    fn mounts_are_found() {
        let scratch = ScratchDir::new().unwrap();
        let before = Leaks::snapshot([scratch.path()]).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        if rustix::mount::mount("none", scratch.path(), "tmpfs", flags, None).is_err() {
            eprintln!("skipped: mounting needs CAP_SYS_ADMIN");
            return;
        }
        let left = before.since();
        rustix::mount::unmount(scratch.path(), rustix::mount::UnmountFlags::empty()).unwrap();
        assert_eq!(left.unwrap(), [format!("mount {}", scratch.path().display())]);
        before.assert_none_since().unwrap();
    }

    #[test]
    fn kernel_texts_are_read() {
        let line = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_points(line).collect::<Vec<_>>(), ["/mnt 2"]);
        let text = "Num RefCount Protocol Flags Type St Inode Path\n0: 2 0 10000 1 1 7 /run/a\n0: 2 0 0 1 1 8 @x\n0: 2 0 0 1 1 9\n";
        assert_eq!(sockets(text).collect::<Vec<_>>(), ["/run/a"]);
    }
}
