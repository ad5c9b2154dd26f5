use std::io;
use std::path::{Path, PathBuf};

/// What the kernel refused, and on which object.
///
/// Every variant that stems from a system call keeps its [`io::Error`] as source, so that
/// [`Error::raw_os_error`] can tell `EBUSY` from `ENOENT`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on a loop device or on `/dev/loop-control` failed.
    #[error("{operation} of loop device {}", device.display())]
    Loop {
        /// The operation in words, for instance `configure`.
        operation: &'static str,
        /// The device node.
        device: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Every free loop device that the kernel offered was taken by someone else before it could be configured.
    #[error("no loop device for {}: {attempts} devices in a row were taken by other programs", backing.display())]
    LoopContention {
        /// The file that was to be attached.
        backing: PathBuf,
        /// How many devices were tried.
        attempts: u32,
    },
    /// A mount, remount or unmount failed.
    #[error("{operation} {}", target.display())]
    Mount {
        /// The operation in words, for instance `bind mount on`.
        operation: &'static str,
        /// The mount point.
        target: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Opening, reading or querying a file failed.
    #[error("{operation} {}", path.display())]
    File {
        /// The operation in words, for instance `read`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A line of a mount table does not have the form that proc(5) describes.
    #[error("mount table line {line}: {reason}")]
    MountTable {
        /// The line, counted from 1.
        line: usize,
        /// What was wrong with it.
        reason: &'static str,
    },
}

impl Error {
    /// The `errno` behind this error, if there was one.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Loop { source, .. } | Self::Mount { source, .. } | Self::File { source, .. } => source.raw_os_error(),
            Self::LoopContention { .. } | Self::MountTable { .. } => None,
        }
    }

    /// Whether the object was in use (`EBUSY`).
    pub fn is_busy(&self) -> bool {
        self.raw_os_error() == Some(libc::EBUSY)
    }

    /// Whether the object was missing (`ENOENT`, `ENXIO`, `ENODEV`).
    pub fn is_missing(&self) -> bool {
        matches!(self.raw_os_error(), Some(libc::ENOENT | libc::ENXIO | libc::ENODEV))
    }

    pub(crate) fn on_loop(operation: &'static str, device: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Loop { operation, device: device.to_owned(), source }
    }

    pub(crate) fn on_mount(operation: &'static str, target: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Mount { operation, target: target.to_owned(), source: errno.into() }
    }

    pub(crate) fn on_file<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::File { operation, path: path.to_owned(), source: source.into() }
    }
}
