use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::Error;

/// Space and inodes of the file system that holds a path, as `df` shows them. Space is in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Size of the file system.
    pub total_bytes: u64,
    /// Bytes in use: total less free, hence with what only root may take counted as free.
    pub used_bytes: u64,
    /// Bytes an unprivileged program can still write.
    pub available_bytes: u64,
    /// Number of inodes; 0 on file systems without a fixed number.
    pub total_inodes: u64,
    /// Inodes in use.
    pub used_inodes: u64,
    /// Inodes an unprivileged program can still take.
    pub available_inodes: u64,
}

/// Asks the file system that holds `path` for its space and inodes (statvfs).
pub fn usage(path: &Path) -> Result<Usage, Error> {
    let stat = rustix::fs::statvfs(path).map_err(Error::on_file("query file system of", path))?;
    Ok(Usage {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        used_bytes: stat.f_blocks.saturating_sub(stat.f_bfree).saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_inodes: stat.f_files,
        used_inodes: stat.f_files.saturating_sub(stat.f_ffree),
        available_inodes: stat.f_favail,
    })
}

/// Writes everything that the file system of `path` still holds in memory to its device (syncfs).
///
/// `path` must be readable; a mount point names the file system mounted on it.
pub fn sync_filesystem(path: &Path) -> Result<(), Error> {
    let file = File::open(path).map_err(Error::on_file("open", path))?;
    rustix::fs::syncfs(&file).map_err(Error::on_file("sync file system of", path))
}

/// Size in bytes of a block device (or of a regular file), by seeking to its end.
pub fn block_device_size(path: &Path) -> Result<u64, Error> {
    let mut file = File::open(path).map_err(Error::on_file("open", path))?;
    file.seek(SeekFrom::End(0)).map_err(Error::on_file("find the end of", path))
}

/// Reads a whole file. Not by `fs_err`: it hides the error number, by which callers here decide, and the path that it adds
/// is in [`Error`] already.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_adds_up() {
        let dir = tempfile::tempdir().unwrap();
        let usage = usage(dir.path()).unwrap();
        assert!(usage.total_bytes > 0);
        assert!(usage.used_bytes + usage.available_bytes <= usage.total_bytes);
        assert!(usage.used_inodes <= usage.total_inodes);
    }

    #[test]
    fn missing_path_is_named() {
        let error = usage(Path::new("/nonexistent/volume")).unwrap_err();
        assert!(error.is_missing());
        assert!(error.to_string().contains("/nonexistent/volume"), "{error}");
        assert!(sync_filesystem(Path::new("/nonexistent/volume")).is_err());
    }

    #[test]
    fn size_of_a_sparse_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(5 << 20).unwrap();
        assert_eq!(block_device_size(file.path()).unwrap(), 5 << 20);
    }
}
