use std::io;
use std::path::PathBuf;

use outrigger_csi as csi;

/// Why the driver could not start or go on, or why an operation on a volume failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag has a value that cannot be used, or asks for something that this driver does not do.
    #[error("flag --{flag}: {problem}")]
    Flag {
        /// The flag, without dashes.
        flag: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// `OUTRIGGER_CRASH_AFTER` is not a number. Debug builds only.
    #[error("OUTRIGGER_CRASH_AFTER is {text:?}, not a number of effects")]
    CrashAfter {
        /// What it is.
        text: String,
    },
    /// Another process serves volumes from the same state directory.
    #[error(
        "state directory {} is in use by another driver: stop that one, or give this one a --statedir of its own",
        path.display()
    )]
    InUse {
        /// The state directory.
        path: PathBuf,
    },
    /// The state file holds something that this driver did not write. Nothing was changed.
    #[error(
        "state file {}, byte {offset}: {problem}; nothing was changed: restore the file from a backup, or move it away to start \
         without the volumes it lists",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where the damage begins.
        offset: u64,
        /// What was found.
        problem: String,
    },
    /// The state directory belongs to another program.
    #[error("state directory {}: {problem}", path.display())]
    Foreign {
        /// The state directory.
        path: PathBuf,
        /// What was found, and what to do.
        problem: String,
    },
    /// A file operation failed. The source names operation and path.
    #[error("file operation on the volume store")]
    File(#[source] io::Error),
    /// The state file could not be written, so the change was not made.
    #[error("write to state file {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The state file could not be made durable: the change may or may not be on disk.
    #[error("sync state file {}", path.display())]
    Unsynced {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An earlier write may or may not have reached the disk. Only a restart, which reads the file anew, can tell.
    #[error(
        "state file {} could not be made durable earlier: restart the driver to read back what is on disk",
        path.display()
    )]
    Poisoned {
        /// The file.
        path: PathBuf,
    },
    /// A mount or loop device operation failed.
    #[error("kernel refused an operation on the volume")]
    Kernel(#[from] outrigger_sys::Error),
    /// mkfs could not be started or failed.
    #[error("{program} on {}: {problem}", image.display())]
    Format {
        /// The program, for instance `mkfs.ext4`.
        program: String,
        /// The image file.
        image: PathBuf,
        /// What it said.
        problem: String,
    },
    /// The image holds something that is not to be overwritten.
    #[error("image {} holds {found}: refusing to format it as {wanted}", image.display())]
    NotBlank {
        /// The image file.
        image: PathBuf,
        /// What was recognised.
        found: String,
        /// The file system that was asked for.
        wanted: String,
    },
    /// The port for metrics and health could not be opened.
    #[error("failed to open the HTTP endpoint {address}")]
    Http {
        /// The address as it was given.
        address: String,
        /// The cause.
        source: outrigger_daemon::EndpointError,
    },
    /// The endpoint could not be served.
    #[error("serve {endpoint}")]
    Serve {
        /// The endpoint.
        endpoint: String,
        /// The cause.
        source: csi::ServeError,
    },
    /// A background task of the driver ended without an answer.
    #[error("the driver is shutting down")]
    Closing,
}

impl Error {
    /// Whether a change of the state that failed with this error was surely not made, so that what went before it can be
    /// undone. Otherwise the next start has to look.
    pub(crate) fn is_definite(&self) -> bool {
        !matches!(self, Self::Unsynced { .. } | Self::Closing)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

/// The only place where this driver's failures become gRPC codes. What a caller did wrong is answered where it is
/// noticed, by [`csi::Error`]'s own constructors.
impl From<Error> for csi::Error {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::NotBlank { .. } => Self::failed_precondition(message),
            Error::Unsynced { source, .. } => Self::unavailable(message).with_source(source),
            Error::Closing | Error::Poisoned { .. } => Self::unavailable(message),
            Error::File(source) | Error::Write { source, .. } if is_full(&source) => {
                Self::resource_exhausted("the file system of the state directory is full").with_source(source)
            }
            Error::File(source) | Error::Write { source, .. } => Self::internal(message).with_source(source),
            Error::Kernel(source) => Self::internal(message).with_source(source),
            Error::Serve { source, .. } => Self::internal(message).with_source(source),
            Error::Http { source, .. } => Self::internal(message).with_source(source),
            Error::Flag { .. }
            | Error::CrashAfter { .. }
            | Error::InUse { .. }
            | Error::Corrupt { .. }
            | Error::Foreign { .. }
            | Error::Format { .. } => Self::internal(message),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
