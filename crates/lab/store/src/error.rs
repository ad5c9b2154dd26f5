//! What can go wrong.

use std::io;
use std::path::PathBuf;

use crate::{Revision, Version};

/// An operation on the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The key's present state is not what the write expected. Nothing was changed.
    #[error("write {key}: its present state is not the expected one")]
    Conflict {
        /// The key.
        key: String,
        /// Its present version; none if it does not exist.
        current: Option<Version>,
    },
    /// The revision asked for is below the compaction floor, or in a stretch of numbers that was skipped after an
    /// unclean stop. Start again from a scan of the present.
    #[error("revision {requested} has been compacted (oldest kept: {compacted})")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The floor.
        compacted: Revision,
    },
    /// The revision asked for has not been reached yet.
    #[error("revision {requested} is in the future (newest: {current})")]
    Future {
        /// The revision asked for.
        requested: Revision,
        /// The newest revision.
        current: Revision,
    },
    /// The key is longer than 65,535 bytes or the value longer than 256 MiB. Nothing was changed.
    #[error("write {key}: {bytes} bytes are more than a record can hold ({limit})")]
    TooLarge {
        /// The key, shortened.
        key: String,
        /// Length of the key or value in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The options contradict each other.
    #[error("open store: {0}")]
    Options(&'static str),
    /// Another process, or another store in this process, has the directory open.
    #[error("open store in {}: in use by {holder}", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// Who holds it, as far as its lock file tells.
        holder: String,
    },
    /// A file holds something that the store did not write. Nothing was changed on disk.
    #[error("{} is damaged at byte {offset}: {what}; restore the directory from a copy, or cut the file at that byte to give up what follows", file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What was found.
        what: String,
    },
    /// A file was written by another version of the format.
    #[error("{} has format version {found}, this program reads {supported}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
        /// The version that this program reads and writes.
        supported: u32,
    },
    /// The file system refused an operation.
    #[error("{operation}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The cause, with the path.
        #[source]
        source: io::Error,
    },
    /// An earlier failure to write or sync the log left its end in doubt; the store only reads until it is opened
    /// again.
    #[error("store is read-only since its log failed: {cause}")]
    Failed {
        /// Text of the earlier error.
        cause: String,
    },
    /// The store was closed.
    #[error("store is closed")]
    Closed,
}

impl Error {
    pub(crate) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }
}

/// A watcher fell behind the history that is kept: changes between its position and the floor are gone. It has
/// to start again from a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("watch at revision {position} fell behind the kept history (floor: {compacted})")]
pub struct Lagged {
    /// Revision up to which the watcher had seen everything.
    pub position: Revision,
    /// The floor that passed it.
    pub compacted: Revision,
}
