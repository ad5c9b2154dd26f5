//! Mounts and loop devices of volumes. Every function may be repeated, and looks at what is really there rather than at
//! what the record says: a mount is the volume's if it shows the volume's own directory or device.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use outrigger_csi as csi;
use outrigger_sys::loopdev::{self, Attach, LoopDevice};
use outrigger_sys::mount::{self, MountFlags};
use rustix::fs::makedev;

use crate::Error;
use crate::fault::Fault;
use crate::volume::{Backing, VolumeId};

/// Mount flags of a capability, in the kernel's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountOptions {
    pub(crate) flags: MountFlags,
    /// Options that only the file system understands.
    pub(crate) data: String,
}

/// Sorts mount flags into generic ones and those of the file system. A directory volume has no file system of its own,
/// hence no options for one.
pub(crate) fn mount_options(mount_flags: &[String], own_filesystem: bool) -> Result<MountOptions, csi::Error> {
    let mut flags = MountFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in mount_flags.iter().flat_map(|flag| flag.split(',')).filter(|option| !option.is_empty()) {
        let flag = match option {
            "ro" => MountFlags::RDONLY,
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "noexec" => MountFlags::NOEXEC,
            "noatime" => MountFlags::NOATIME,
            "nodiratime" => MountFlags::NODIRATIME,
            "relatime" => MountFlags::RELATIME,
            "rw" | "suid" | "dev" | "exec" | "atime" | "diratime" | "defaults" => MountFlags::empty(),
            _ if own_filesystem => {
                data.push(option);
                MountFlags::empty()
            }
            _ => {
                return Err(csi::Error::invalid_argument(format!(
                    "mount flag {option:?} is not supported: a directory volume takes ro, nosuid, nodev, noexec, noatime, \
                     nodiratime and relatime; for options of a file system use the parameter backing: file"
                )));
            }
        };
        flags |= flag;
    }
    Ok(MountOptions { flags, data: data.join(",") })
}

/// Does to the kernel what the node calls ask for.
#[derive(Debug)]
pub(crate) struct Kernel {
    fault: Fault,
    /// Devices that were found once, to be looked at first. Each is verified before it is believed.
    known: Mutex<HashMap<(VolumeId, bool), LoopDevice>>,
}

impl Kernel {
    pub(crate) fn new(fault: Fault) -> Self {
        Self { fault, known: Mutex::default() }
    }

    /// The device of this image, attached if it was not.
    pub(crate) fn device(&self, id: VolumeId, image: &Path, read_only: bool) -> Result<LoopDevice, Error> {
        match self.find_device(id, image, read_only)? {
            Some(device) => Ok(device),
            None => self.attach(id, image, read_only),
        }
    }

    fn attach(&self, id: VolumeId, image: &Path, read_only: bool) -> Result<LoopDevice, Error> {
        self.fault.effect("attach a loop device")?;
        let device = loopdev::attach(image, Attach { read_only, direct_io: true, autoclear: false })?;
        self.known().insert((id, read_only), device);
        Ok(device)
    }

    /// The device of this image, if it is attached.
    pub(crate) fn find_device(&self, id: VolumeId, image: &Path, read_only: bool) -> Result<Option<LoopDevice>, Error> {
        let known = self.known().get(&(id, read_only)).copied();
        if let Some(device) = known
            && device.backing_file()?.as_deref() == Some(image)
            && is_usable(device, read_only)?
        {
            return Ok(Some(device));
        }
        for device in loopdev::find(image)? {
            if is_usable(device, read_only)? {
                self.known().insert((id, read_only), device);
                return Ok(Some(device));
            }
        }
        Ok(None)
    }

    /// Takes note of the devices that a look at the whole machine found for this image, so that no call has to look again.
    pub(crate) fn adopt(&self, id: VolumeId, found: &[LoopDevice]) -> Result<(), Error> {
        for &device in found {
            for read_only in [false, true] {
                if is_usable(device, read_only)? {
                    self.known().entry((id, read_only)).or_insert(device);
                }
            }
        }
        Ok(())
    }

    /// Attaches the image for writing unless a device that does so was adopted; says which was attached.
    pub(crate) fn reattach(&self, id: VolumeId, image: &Path) -> Result<Option<LoopDevice>, Error> {
        let adopted = self.known().contains_key(&(id, false));
        if adopted { Ok(None) } else { self.attach(id, image, false).map(Some) }
    }

    /// Frees all devices of this image. Only if none is known are all devices of the machine looked at.
    pub(crate) fn release_devices(&self, id: VolumeId, image: &Path) -> Result<(), Error> {
        let mut devices = Vec::new();
        for read_only in [false, true] {
            let known = self.known().get(&(id, read_only)).copied();
            if let Some(device) = known
                && device.backing_file()?.as_deref() == Some(image)
            {
                devices.push(device);
            }
        }
        if devices.is_empty() {
            devices = match loopdev::find(image) {
                // Somebody removed the image; the kernel shows devices of removed files under another name.
                Err(error) if error.is_missing() => Vec::new(),
                devices => devices?,
            };
        }
        for device in devices {
            self.fault.effect("detach a loop device")?;
            device.detach()?;
        }
        let mut known = self.known();
        known.remove(&(id, false));
        known.remove(&(id, true));
        Ok(())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<(VolumeId, bool), LoopDevice>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the directory `source` at `target` as well.
    pub(crate) fn bind(&self, source: &Path, target: &Path, flags: MountFlags) -> Result<(), Error> {
        if !shows_directory(target, source)? {
            self.fault.effect("bind mount")?;
            mount::bind(source, target)?;
        }
        if !flags.is_empty() {
            self.fault.effect("set flags of the mount")?;
            mount::add_flags(target, flags)?;
        }
        Ok(())
    }

    /// Shows the device at `target`, which is a file.
    pub(crate) fn bind_device(&self, device: LoopDevice, target: &Path) -> Result<(), Error> {
        if !shows_device(target, device)? {
            self.fault.effect("bind mount")?;
            mount::bind(&device.path(), target)?;
        }
        Ok(())
    }

    /// Mounts the file system on `device`.
    pub(crate) fn mount(
        &self,
        device: LoopDevice,
        target: &Path,
        fs_type: &str,
        options: &MountOptions,
    ) -> Result<(), Error> {
        if !shows_filesystem(target, device)? {
            self.fault.effect("mount")?;
            mount::mount(&device.path(), target, fs_type, options.flags, &options.data)?;
        }
        Ok(())
    }

    /// Takes everything that is mounted at `target` off. A missing target is fine.
    pub(crate) fn unmount_all(&self, target: &Path) -> Result<(), Error> {
        loop {
            match mount::is_mount_point(target) {
                Ok(true) => {
                    self.fault.effect("unmount")?;
                    mount::unmount(target)?;
                }
                Ok(false) => return Ok(()),
                Err(error) if error.is_missing() => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes an empty directory or file to mount on. One that is there is taken if it is of the right kind.
    pub(crate) fn make_target(&self, target: &Path, block: bool) -> Result<(), csi::Error> {
        if check_target(target, block)? {
            return Ok(());
        }
        self.fault.effect("make the target").map_err(Error::from)?;
        let made = if block {
            fs_err::OpenOptions::new().write(true).create_new(true).open(target).map(drop)
        } else {
            fs_err::create_dir(target)
        };
        made.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => csi::Error::failed_precondition(format!(
                "the parent of {} is not a directory: the caller has to make it first",
                target.display()
            )),
            _ => Error::from(error).into(),
        })
    }

    /// Removes a target that nothing is mounted on. It has to be empty: content would not be the volume's.
    pub(crate) fn remove_target(&self, target: &Path) -> Result<(), csi::Error> {
        let metadata = match fs_err::symlink_metadata(target) {
            Ok(metadata) => metadata,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            Err(error) => return Err(Error::from(error).into()),
        };
        let foreign = |what: &str| {
            csi::Error::failed_precondition(format!(
                "{} {what} that is not the volume's: remove it by hand",
                target.display()
            ))
        };
        self.fault.effect("remove the target").map_err(Error::from)?;
        let removed = if metadata.is_dir() {
            fs_err::remove_dir(target)
        } else if metadata.is_file() && metadata.len() == 0 {
            fs_err::remove_file(target)
        } else {
            return Err(foreign("is something"));
        };
        removed.map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty => foreign("has content"),
            _ => Error::from(error).into(),
        })
    }
}

/// Whether there is something to mount on already. What is of the wrong kind is refused, and so are symbolic links, which
/// would lead the mount elsewhere.
pub(crate) fn check_target(target: &Path, block: bool) -> Result<bool, csi::Error> {
    match fs_err::symlink_metadata(target) {
        Ok(metadata) if metadata.is_symlink() || metadata.is_dir() == block => {
            let wanted = if block { "a file" } else { "a directory" };
            Err(csi::Error::failed_precondition(format!("{} exists and is not {wanted}", target.display())))
        }
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::from(error).into()),
    }
}

/// The driver's devices do not clear themselves. One that does has been freed, and only waits for its last user.
fn is_usable(device: LoopDevice, read_only: bool) -> Result<bool, Error> {
    Ok(device.is_read_only()? == read_only && !device.is_autoclear()?)
}

/// What a path shows at present, if it shows the volume.
pub(crate) fn shows(path: &Path, backing: &Backing, source: &Path, devices: &[LoopDevice]) -> Result<bool, Error> {
    match backing {
        Backing::Directory => shows_directory(path, source),
        Backing::Image => any(devices, |device| shows_device(path, device)),
        Backing::Filesystem { .. } => any(devices, |device| shows_filesystem(path, device)),
    }
}

fn any(devices: &[LoopDevice], shows: impl Fn(LoopDevice) -> Result<bool, Error>) -> Result<bool, Error> {
    for device in devices {
        if shows(*device)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether both paths lead to one directory, by way of a mount at `target`.
fn shows_directory(target: &Path, source: &Path) -> Result<bool, Error> {
    let Some(target_metadata) = metadata(target)? else { return Ok(false) };
    let Some(source_metadata) = metadata(source)? else { return Ok(false) };
    let same = (target_metadata.dev(), target_metadata.ino()) == (source_metadata.dev(), source_metadata.ino());
    Ok(same && mount::is_mount_point(target)?)
}

fn shows_device(target: &Path, device: LoopDevice) -> Result<bool, Error> {
    let Some(metadata) = metadata(target)? else { return Ok(false) };
    Ok(metadata.file_type().is_block_device() && metadata.rdev() == number(device))
}

fn shows_filesystem(target: &Path, device: LoopDevice) -> Result<bool, Error> {
    let Some(metadata) = metadata(target)? else { return Ok(false) };
    Ok(metadata.dev() == number(device))
}

/// Loop devices have major number 7.
fn number(device: LoopDevice) -> u64 {
    makedev(7, device.number())
}

fn metadata(path: &Path) -> Result<Option<std::fs::Metadata>, Error> {
    match fs_err::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A path from a request, if the driver may mount there: absolute, without `..`, not the root, and outside of the state
/// directory.
///
/// The answer is the path in its shortest form, without doubled or trailing slashes.
pub(crate) fn usable(path: &str, field: &str, state_dir: &Path) -> Result<String, csi::Error> {
    let refuse = |problem: &str| Err(csi::Error::invalid_argument(format!("{field} {path:?} {problem}")));
    let given = Path::new(path);
    if !given.is_absolute() {
        return refuse("is not absolute");
    }
    if given.components().any(|component| component == std::path::Component::ParentDir) {
        return refuse("goes up by \"..\"");
    }
    if path.contains('\0') {
        return refuse("holds a zero byte");
    }
    if given.parent().is_none() {
        return refuse("is the root directory");
    }
    if given.starts_with(state_dir) || state_dir.starts_with(given) {
        return refuse("is in, or above, the driver's state directory");
    }
    let shortest: PathBuf = given.components().collect();
    Ok(shortest.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_flags_are_sorted() {
        let flags = |text: &[&str]| text.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
        let options = mount_options(&flags(&["noexec,nodev", "ro", "rw", "commit=5", "discard"]), true).unwrap();
        assert_eq!(options.flags, MountFlags::NOEXEC | MountFlags::NODEV | MountFlags::RDONLY);
        assert_eq!(options.data, "commit=5,discard");
        let error = mount_options(&flags(&["noexec", "commit=5"]), false).unwrap_err();
        assert!(error.to_string().contains("commit=5"));
        assert_eq!(
            mount_options(&[], false).unwrap(),
            MountOptions { flags: MountFlags::empty(), data: String::new() }
        );
    }

    #[test]
    fn paths_that_must_not_be_mounted_on() {
        let state = Path::new("/var/lib/state");
        assert!(usable("/var/lib/kubelet/pods/1/mount", "target_path", state).is_ok());
        assert_eq!(usable("/var//lib/./state-2/", "target_path", state).unwrap(), "/var/lib/state-2");
        for path in [
            "",
            "relative",
            "/a/../b",
            "/",
            "/var/lib/state",
            "/var/lib/state/x",
            "/var/lib",
            "/var/lib/state/",
            "/a\0b",
        ] {
            let error = usable(path, "target_path", state).unwrap_err();
            assert!(error.to_string().starts_with("target_path"), "{path:?}: {error}");
        }
    }

    #[test]
    fn targets_are_made_and_removed_but_never_content() {
        let kernel = Kernel::new(Fault::default());
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        for block in [false, true] {
            kernel.make_target(&target, block).unwrap();
            kernel.make_target(&target, block).unwrap();
            assert!(kernel.make_target(&target, !block).is_err());
            kernel.remove_target(&target).unwrap();
            kernel.remove_target(&target).unwrap();
        }
        kernel.make_target(&target, false).unwrap();
        fs_err::write(target.join("file"), "x").unwrap();
        assert!(kernel.remove_target(&target).unwrap_err().to_string().contains("has content"));
        assert!(kernel.remove_target(&target.join("file")).is_err());
        assert!(target.join("file").exists());
        assert!(kernel.make_target(&dir.path().join("a/b"), false).unwrap_err().to_string().contains("parent"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(kernel.make_target(&link, false).is_err());
    }
}
