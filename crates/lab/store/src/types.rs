//! The values that go in and out of the store.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

/// A point in the store's history. One counter numbers the changes of all keys; it only grows. Revision 1 is the
/// empty store, so a revision is never 0, which API clients read as "any".
pub type Revision = u64;

/// A key with its value as of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The key.
    pub key: Arc<str>,
    /// The value; for the result of a deletion, the final value that its event carries.
    pub value: Bytes,
    /// Revision at which the key came into being (most recently, if it was deleted in between).
    pub created: Revision,
    /// Revision of this version.
    pub modified: Revision,
}

/// What a write demands of the present state of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists and its last change has this revision.
    Modified(Revision),
    /// Nothing. (A deletion still needs the key to exist.)
    Any,
}

/// What an acknowledged write survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: there are no files.
    Memory,
    /// The death of the process: the record was handed to the kernel before the write was answered.
    #[default]
    Process,
    /// Loss of power, once [`Store::durable`](crate::Store::durable) returned for its revision. Many writes share
    /// one sync.
    Power,
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of the files, created if absent. Must be set exactly if `durability` is not
    /// [`Durability::Memory`].
    pub dir: Option<PathBuf>,
    /// What an acknowledged write survives.
    pub durability: Durability,
    /// Number of past changes kept for scans at past revisions and for resuming watches. At least 1.
    pub history: usize,
    /// Size in bytes at which the log continues in a new file; files below the history are replaced by a snapshot.
    pub segment: u64,
}

impl Options {
    /// A store without files.
    pub fn memory() -> Self {
        Self { dir: None, durability: Durability::Memory, history: 10_000, segment: 16 << 20 }
    }

    /// A store in `dir` with the default durability, [`Durability::Process`].
    pub fn directory(dir: impl Into<PathBuf>) -> Self {
        Self { dir: Some(dir.into()), durability: Durability::Process, ..Self::memory() }
    }
}

/// What a change did to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The key was created or its value replaced.
    Put,
    /// The key was deleted.
    Delete,
}

/// One change. Events are shared by all watchers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision that the change made.
    pub revision: Revision,
    /// The key that changed.
    pub key: Arc<str>,
    /// What happened to it.
    pub kind: EventKind,
    /// The new value; of a deletion, the final value given by the deleter.
    pub value: Bytes,
    /// The value before the change; none if the change created the key.
    pub previous: Option<Bytes>,
}

/// The result of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The versions in key order.
    pub versions: Vec<Version>,
    /// Whether keys were left out because of the limit.
    pub more: bool,
    /// How many keys were left out.
    pub remaining: usize,
    /// The revision at which the scan read.
    pub revision: Revision,
}

/// Figures of a store at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Newest revision.
    pub revision: Revision,
    /// Compaction floor.
    pub compacted: Revision,
    /// Keys that exist now.
    pub keys: usize,
    /// Versions held, those of the history included.
    pub versions: usize,
    /// Sum of the lengths of the present values in bytes.
    pub value_bytes: u64,
    /// Changes held for watchers.
    pub events: usize,
    /// Open watches.
    pub watches: usize,
    /// Newest revision known to be on stable storage; none unless [`Durability::Power`].
    pub durable: Option<Revision>,
    /// Log files.
    pub segments: usize,
    /// Bytes in the log files.
    pub log_bytes: u64,
    /// Revision of the snapshot on disk, if there is one.
    pub snapshot: Option<Revision>,
    /// Syncs of the log since the store was opened.
    pub syncs: u64,
}
