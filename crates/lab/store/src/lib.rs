//! An in-memory multi-version store with one global revision and a durable log.
//!
//! The store keeps what an API server needs of etcd and nothing else: a map from key to value in which every
//! change gets the next number of one global counter, compare-and-swap on a key's last change, ordered scans
//! of the present *and of past revisions*, and a log of changes that any number of watchers read at their own
//! pace.
//!
//! ```
//! use outrigger_lab_store::{Expect, Options, Store};
//!
//! # fn main() -> Result<(), outrigger_lab_store::Error> {
//! let store = Store::open(Options::memory())?;
//! let first = store.write("/registry/core/configmaps/default/a", Expect::Absent, |revision| {
//!     format!("{{\"resourceVersion\":\"{revision}\"}}").into()
//! })?;
//! assert_eq!(store.revision(), first.modified);
//! assert!(store.write(&first.key, Expect::Absent, |_| "again".into()).is_err());
//! # Ok(())
//! # }
//! ```
//!
//! # Order
//!
//! Commits are serialised by one lock, and the number, the log record and the event of a commit are made under
//! it: commit order, revision order and event order are one. Readers never wait for that lock. They hold a read
//! lock for a bounded number of entries at a time, and a scan that spans several such steps reads at one
//! revision throughout.
//!
//! # History
//!
//! The last [`Options::history`] changes are kept, in memory and across restarts, of large values fewer: 128 MiB in all. [`Store::compacted`] is the
//! floor: scans below it and watches from below it fail with [`Error::Compacted`], and a watcher that falls
//! behind it gets [`Lagged`], so that a change is never skipped silently.
//!
//! # On disk
//!
//! A directory holds a lock file (one process at a time), log files, at most one snapshot, and the `ceiling`
//! file. Each commit appends one checksummed record to the log before it becomes visible. The snapshot is the
//! state at a compaction floor, so that the log files above it are exactly the history that survives a restart.
//! The ceiling is a number, synced to disk before it is reached, above which no revision was ever used: after an
//! unclean stop the counter continues above it, hence a revision is never used twice with different content,
//! even if the machine lost power and the end of the log with it.

mod ceiling;
mod crc;
mod disk;
mod error;
mod frame;
mod replay;
mod segment;
mod snapshot;
mod state;
mod store;
mod types;
mod watch;

pub use error::{Error, Lagged};
pub use store::Store;
pub use types::{Durability, Event, EventKind, Expect, Options, Range, Revision, Stats, Version};
pub use watch::{Batch, Watch};
