//! Mounting and unmounting, by the mount(2) family.
//!
//! All functions act on the caller's mount namespace and need `CAP_SYS_ADMIN`. None of them follows up on half-done
//! work except where it says so.

use std::ffi::CString;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatVfsMountFlags, StatxAttributes, StatxFlags};
use rustix::mount::UnmountFlags;

use crate::{Error, mountinfo};

pub use rustix::mount::MountFlags;

/// Makes `source` (a directory or a file) visible at `target` as well. `target` must exist and be of the same kind.
///
/// Mounts below `source` are not carried along.
pub fn bind(source: &Path, target: &Path) -> Result<(), Error> {
    rustix::mount::mount_bind(source, target).map_err(Error::on_mount("bind mount on", target))
}

/// Like [`bind`], with `flags` (for instance [`MountFlags::RDONLY`]) set on the new mount only.
///
/// The kernel needs two calls for that; if the second one fails the first is undone.
pub fn bind_with(source: &Path, target: &Path, flags: MountFlags) -> Result<(), Error> {
    bind(source, target)?;
    if flags.is_empty() {
        return Ok(());
    }
    add_flags(target, flags).inspect_err(|_| {
        // The error that matters is the first one; a mount that cannot be undone here is found by the caller's clean-up.
        let _ = unmount(target);
    })
}

/// Sets `flags` on the mount at `target` and keeps those it has.
///
/// Only the mount changes, not the file system: other mounts of the same file system stay as they are.
pub fn add_flags(target: &Path, flags: MountFlags) -> Result<(), Error> {
    let stat = rustix::fs::statvfs(target).map_err(Error::on_file("query file system of", target))?;
    let flags = MountFlags::BIND | keep(stat.f_flag) | flags;
    rustix::mount::mount_remount(target, flags, c"").map_err(Error::on_mount("remount", target))
}

/// Mounts the file system of type `filesystem` found on `source` at `target`. `options` are the file system's own,
/// separated by commas, as mount(2) takes them; generic ones such as `ro` belong into `flags`.
pub fn mount(source: &Path, target: &Path, filesystem: &str, flags: MountFlags, options: &str) -> Result<(), Error> {
    let options = CString::new(options).map_err(|_| Error::Mount {
        operation: "mount on",
        target: target.to_owned(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidInput, "a mount option holds a zero byte"),
    })?;
    rustix::mount::mount(source, target, filesystem, flags, options.as_c_str())
        .map_err(Error::on_mount("mount on", target))
}

/// Takes the topmost mount off `target`. Fails with `EBUSY` while a program uses it and with `EINVAL` where there is none.
/// A symbolic link at `target` is not followed.
pub fn unmount(target: &Path) -> Result<(), Error> {
    rustix::mount::unmount(target, UnmountFlags::NOFOLLOW).map_err(Error::on_mount("unmount", target))
}

/// Takes the topmost mount off `target` even if it is in use: it vanishes from the tree at once and from the kernel when
/// its last user has gone. Data of a file system is not flushed by this call; see [`crate::sync_filesystem`].
pub fn unmount_detach(target: &Path) -> Result<(), Error> {
    let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
    rustix::mount::unmount(target, flags).map_err(Error::on_mount("detach", target))
}

/// Whether something is mounted exactly at `path` (a symbolic link is not followed).
///
/// One system call where the kernel tells (5.8 and newer), otherwise a look through the mount table.
pub fn is_mount_point(path: &Path) -> Result<bool, Error> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::empty()).map_err(Error::on_file("query", path))?;
    if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    let path = path.canonicalize().map_err(Error::on_file("resolve", path))?;
    Ok(mountinfo::read()?.iter().any(|mount| mount.target == path))
}

/// Whether the topmost mount at `path` refuses writing.
pub fn is_read_only(path: &Path) -> Result<bool, Error> {
    let stat = rustix::fs::statvfs(path).map_err(Error::on_file("query file system of", path))?;
    Ok(stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// A bind remount sets all flags anew, so those that are to stay have to be named again.
fn keep(flags: StatVfsMountFlags) -> MountFlags {
    [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ]
    .into_iter()
    .filter(|(present, _)| flags.contains(*present))
    .fold(MountFlags::empty(), |kept, (_, flag)| kept | flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            eprintln!("skipped: mounting needs root");
        }
        root
    }

    /// Two directories, `source` with a file in it.
    fn pair() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        fs_err::create_dir(&source).unwrap();
        fs_err::create_dir(&target).unwrap();
        fs_err::write(source.join("file"), "content").unwrap();
        (dir, source, target)
    }

    #[test]
    fn bind_and_unmount() {
        if !root() {
            return;
        }
        let (_dir, source, target) = pair();
        assert!(!is_mount_point(&target).unwrap());
        bind(&source, &target).unwrap();
        assert!(is_mount_point(&target).unwrap());
        assert!(!is_read_only(&target).unwrap());
        assert_eq!(fs_err::read_to_string(target.join("file")).unwrap(), "content");
        assert!(mountinfo::read().unwrap().iter().any(|mount| mount.target == target));
        unmount(&target).unwrap();
        assert!(!is_mount_point(&target).unwrap());
        assert_eq!(unmount(&target).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn read_only_keeps_the_other_flags() {
        if !root() {
            return;
        }
        let (_dir, source, target) = pair();
        bind_with(&source, &target, MountFlags::NOSUID | MountFlags::NOEXEC).unwrap();
        add_flags(&target, MountFlags::RDONLY).unwrap();
        let mounts = mountinfo::read().unwrap();
        let mount = mounts.iter().find(|mount| mount.target == target).unwrap();
        for option in ["ro", "nosuid", "noexec"] {
            assert!(mount.options.iter().any(|found| found == option), "{option} is missing in {:?}", mount.options);
        }
        let refused = fs_err::write(target.join("other"), "x").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        fs_err::write(source.join("other"), "x").unwrap();
        unmount(&target).unwrap();
    }

    #[test]
    fn a_busy_mount_can_only_be_detached() {
        if !root() {
            return;
        }
        let (_dir, source, target) = pair();
        bind(&source, &target).unwrap();
        let user = fs_err::File::open(target.join("file")).unwrap();
        assert!(unmount(&target).unwrap_err().is_busy());
        unmount_detach(&target).unwrap();
        assert!(!is_mount_point(&target).unwrap());
        drop(user);
    }

    #[test]
    fn links_are_not_followed() {
        if !root() {
            return;
        }
        let (dir, source, target) = pair();
        let link = dir.path().join("link");
        symlink(&target, &link).unwrap();
        bind(&source, &target).unwrap();
        assert!(!is_mount_point(&link).unwrap());
        assert!(unmount(&link).is_err());
        unmount(&target).unwrap();
    }

    #[test]
    fn a_file_system_with_its_own_options() {
        if !root() {
            return;
        }
        let (_dir, _source, target) = pair();
        mount(Path::new("tmpfs"), &target, "tmpfs", MountFlags::NOSUID, "size=65536").unwrap();
        assert_eq!(crate::usage(&target).unwrap().total_bytes, 65536);
        unmount(&target).unwrap();
        let refused = mount(Path::new("tmpfs"), &target, "tmpfs", MountFlags::empty(), "no-such-option").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        assert!(refused.to_string().contains(target.to_str().unwrap()));
    }
}
