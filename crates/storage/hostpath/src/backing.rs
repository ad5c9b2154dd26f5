//! The directories and image files that volumes are made of: `<statedir>/<id>`.
//!
//! A volume's backing is made before its record and set aside before the record goes, so that at any moment each record
//! has its backing, and a backing without a record is one that nobody was told of. [`Backings::sweep`] tidies those up at
//! the next start.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt;

use crate::Error;
use crate::fault::Fault;
use crate::volume::{Backing, Volume, VolumeId};

/// Holds the backings of volumes that are being deleted.
const DELETED: &str = "deleted";

/// The backings in a state directory. Stateless.
#[derive(Debug, Clone)]
pub(crate) struct Backings {
    directory: PathBuf,
    fault: Fault,
}

impl Backings {
    pub(crate) fn new(directory: &Path, fault: Fault) -> Self {
        Self { directory: directory.to_owned(), fault }
    }

    pub(crate) fn path(&self, id: VolumeId) -> PathBuf {
        self.directory.join(id.to_string())
    }

    fn aside(&self, id: VolumeId) -> PathBuf {
        self.directory.join(DELETED).join(id.to_string())
    }

    /// Makes the state directory.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        Ok(fs_err::create_dir_all(self.directory.join(DELETED))?)
    }

    /// Makes the backing of a new volume; after an error nothing of it is left.
    pub(crate) fn make(&self, id: VolumeId, backing: &Backing, capacity: u64) -> Result<(), Error> {
        let path = self.path(id);
        match backing {
            Backing::Directory => {
                self.fault.effect("make the volume's directory")?;
                fs_err::create_dir(&path)?;
            }
            Backing::Image | Backing::Filesystem { .. } => {
                self.fault.effect("make the volume's image")?;
                fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            }
        }
        self.dress(&path, backing, capacity).inspect_err(|_| {
            // If this fails as well, the next start sweeps it.
            let _ = self.discard(id);
        })
    }

    fn dress(&self, path: &Path, backing: &Backing, capacity: u64) -> Result<(), Error> {
        match backing {
            Backing::Directory => {
                self.fault.effect("open the volume's directory to all")?;
                fs_err::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
            }
            Backing::Image | Backing::Filesystem { .. } => {
                self.fault.effect("size the volume's image")?;
                let file = fs_err::OpenOptions::new().write(true).open(path)?;
                file.set_len(capacity)?;
                file.sync_all()?;
            }
        }
        Ok(())
    }

    /// Removes a backing that never became a volume.
    pub(crate) fn discard(&self, id: VolumeId) -> Result<(), Error> {
        self.fault.effect("discard what was made of the volume")?;
        remove_any(&self.path(id))
    }

    /// Takes the backing out of its place in one step, so that no half-deleted volume can be used. A missing one is fine.
    pub(crate) fn set_aside(&self, id: VolumeId) -> Result<(), Error> {
        self.fault.effect("set the volume's content aside")?;
        match fs_err::rename(self.path(id), self.aside(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => Ok(result?),
        }
    }

    /// Puts it back.
    pub(crate) fn restore(&self, id: VolumeId) -> Result<(), Error> {
        self.fault.effect("put the volume's content back")?;
        Ok(fs_err::rename(self.aside(id), self.path(id))?)
    }

    /// Removes what was set aside.
    pub(crate) fn destroy(&self, id: VolumeId) -> Result<(), Error> {
        self.fault.effect("remove the volume's content")?;
        remove_any(&self.aside(id))
    }

    /// Tidies up after a stop in the middle of making or deleting volumes, and tells of records without backing.
    pub(crate) fn sweep(
        &self,
        volume: impl Fn(VolumeId) -> bool,
        volumes: &[std::sync::Arc<Volume>],
    ) -> Result<(), Error> {
        for id in ids(&self.directory.join(DELETED))? {
            if volume(id) && !self.path(id).exists() {
                tracing::info!(volume = %id, "the deletion of the volume had not been recorded; putting its content back");
                self.restore(id)?;
            } else if let Err(error) = self.destroy(id) {
                // The volume is gone for everybody. What is left of it must not keep the driver from serving the others.
                tracing::warn!(
                    path = %self.aside(id).display(), error = %crate::store::describe(&error),
                    "cannot remove the content of a deleted volume; the next start tries again"
                );
            }
        }
        for id in ids(&self.directory)? {
            if !volume(id) {
                self.sweep_unrecorded(id)?;
            }
        }
        for volume in volumes {
            if !self.path(volume.id).exists() {
                tracing::error!(
                    volume = %volume.id, name = volume.name, path = %self.path(volume.id).display(),
                    "the content of the volume is missing; it can only be deleted"
                );
            }
        }
        Ok(())
    }

    /// An empty backing without a record was never handed out. One with content should not exist, so it is left alone.
    fn sweep_unrecorded(&self, id: VolumeId) -> Result<(), Error> {
        let path = self.path(id);
        let metadata = fs_err::symlink_metadata(&path)?;
        let empty = if metadata.is_dir() { fs_err::read_dir(&path)?.next().is_none() } else { metadata.blocks() == 0 };
        if empty {
            tracing::info!(path = %path.display(), "removing the beginning of a volume that was never finished");
            self.discard(id)
        } else {
            tracing::warn!(path = %path.display(), "this belongs to no volume but has content; it is left as it is");
            Ok(())
        }
    }
}

/// The entries of a directory that are named like volumes.
fn ids(directory: &Path) -> Result<Vec<VolumeId>, Error> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(directory)? {
        if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.push(id);
        }
    }
    Ok(found)
}

/// Removes a file or a whole directory; a missing one is fine. Symbolic links inside are removed, not followed.
fn remove_any(path: &Path) -> Result<(), Error> {
    let removed = match fs_err::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs_err::remove_dir_all(path),
        Ok(_) => fs_err::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn backings() -> (tempfile::TempDir, Backings) {
        let dir = tempfile::tempdir().unwrap();
        let backings = Backings::new(&dir.path().join("state"), Fault::default());
        backings.prepare().unwrap();
        (dir, backings)
    }

    #[test]
    fn directories_are_open_to_all_and_images_are_sparse() {
        let (_dir, backings) = backings();
        let (directory, image) = (VolumeId::random(), VolumeId::random());
        backings.make(directory, &Backing::Directory, 1).unwrap();
        assert_eq!(fs_err::metadata(backings.path(directory)).unwrap().permissions().mode() & 0o7777, 0o777);
        backings.make(image, &Backing::Image, 64 << 20).unwrap();
        let metadata = fs_err::metadata(backings.path(image)).unwrap();
        assert_eq!((metadata.len(), metadata.blocks()), (64 << 20, 0));
        assert!(backings.make(image, &Backing::Image, 1).is_err(), "an id is used once");
        assert_eq!(fs_err::metadata(backings.path(image)).unwrap().len(), 64 << 20);
    }

    #[test]
    fn a_backing_that_cannot_be_sized_is_not_left_behind() {
        let (_dir, backings) = backings();
        let id = VolumeId::random();
        backings.make(id, &Backing::Image, u64::MAX).unwrap_err();
        assert!(!backings.path(id).exists());
    }

    #[test]
    fn a_sweep_removes_only_what_cannot_have_content() {
        let (_dir, backings) = backings();
        let [empty, image, full, kept, deleted, undeleted] = std::array::from_fn(|_| VolumeId::random());
        for id in [empty, full, kept, deleted, undeleted] {
            backings.make(id, &Backing::Directory, 0).unwrap();
        }
        backings.make(image, &Backing::Image, 1 << 20).unwrap();
        fs_err::write(backings.path(full).join("file"), "x").unwrap();
        fs_err::write(backings.path(deleted).join("file"), "x").unwrap();
        fs_err::write(backings.path(undeleted).join("file"), "x").unwrap();
        fs_err::create_dir(backings.directory.join("lost+found")).unwrap();
        backings.set_aside(deleted).unwrap();
        backings.set_aside(undeleted).unwrap();
        backings.sweep(|id| id == kept || id == undeleted, &[]).unwrap();
        let left = |id| backings.path(id).exists();
        assert!(!left(empty) && !left(image) && !left(deleted));
        assert!(left(full) && left(kept));
        assert!(backings.path(undeleted).join("file").exists());
        assert!(backings.directory.join("lost+found").exists());
        assert_eq!(fs_err::read_dir(backings.directory.join(DELETED)).unwrap().count(), 0);
    }
}
