//! The files of an open store: appending, rotation, and removal of what the history no longer needs.

use std::fs::TryLockError;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::ceiling::{Ceiling, Mark};
use crate::frame::{Kind, Record};
use crate::replay::{self, Loaded, Sealed};
use crate::segment::{self, Header, Segment};
use crate::state::State;
use crate::{Error, Revision, snapshot};

/// Revisions reserved at a time. Each reservation costs a sync; an unclean stop skips at most this many.
const BLOCK: Revision = 10_000;

/// The files of an open store. All methods are called under the commit lock.
pub(crate) struct Disk {
    dir: PathBuf,
    ceiling: Ceiling,
    segment: Segment,
    /// Its first revision.
    first: Revision,
    sealed: Vec<Sealed>,
    snapshot: Option<(Revision, u64)>,
    buffer: Vec<u8>,
    failed: Option<String>,
    /// Held until the store is closed. Last, so that it is released after everything else.
    _lock: fs_err::File,
}

impl Disk {
    /// Locks the directory, loads it and starts a new log file.
    pub(crate) fn open(dir: &Path, history: usize) -> Result<(Self, State), Error> {
        fs_err::create_dir_all(dir).map_err(Error::io("open store"))?;
        let lock = lock(dir)?;
        let (mut ceiling, mark) = Ceiling::open(dir)?;
        let Loaded { mut state, sealed, snapshot } = replay::load(dir, history)?;
        let replayed = state.revision();
        match mark {
            Some(Mark { ceiling, clean: true }) if ceiling != replayed => {
                let (file, offset) = match sealed.last() {
                    Some(last) => (last.path.clone(), last.bytes),
                    None => (dir.into(), 0),
                };
                let what = format!("it ends at revision {replayed}, but the store was closed at revision {ceiling}");
                return Err(Error::Corrupt { file, offset, what });
            }
            Some(Mark { ceiling, clean: false }) => state.skip(ceiling.max(replayed) + 1),
            // Without the file nothing is known of what was used.
            None if !sealed.is_empty() || snapshot.is_some() => state.skip(replayed + BLOCK + 1),
            Some(Mark { clean: true, .. }) | None => {}
        }
        // From here on this is an unclean stop, if it is one, whatever has happened to the log.
        ceiling.set(Mark { ceiling: state.revision() + BLOCK, clean: false })?;
        let first = state.revision() + 1;
        // The newest file may be one in which nothing was changed yet.
        let mut sealed = sealed;
        if let Some(last) = sealed.pop_if(|last| last.path == segment::path(dir, first)) {
            fs_err::remove_file(&last.path).map_err(Error::io("remove empty log file"))?;
        }
        let base = snapshot.map_or(replay::EMPTY, |(revision, _)| revision);
        let previous = sealed.last().map_or(base, |last| last.last);
        let segment = Segment::create(dir, Header { previous, first })?;
        let mut disk = Self {
            dir: dir.into(),
            ceiling,
            segment,
            first,
            sealed,
            snapshot,
            buffer: Vec::new(),
            failed: None,
            _lock: lock,
        };
        // It may have been noted in a file that is gone.
        if state.floor() > base {
            disk.append(Record { kind: Kind::Compact, number: state.floor(), second: 0, key: "", value: &[] }, None)?;
        }
        Ok((disk, state))
    }

    /// Appends a record; for a change, `revision` is its number. When this returns, the kernel has the record.
    pub(crate) fn append(&mut self, record: Record<'_>, revision: Option<Revision>) -> Result<(), Error> {
        if let Some(cause) = &self.failed {
            return Err(Error::Failed { cause: cause.clone() });
        }
        if let Some(revision) = revision
            && revision > self.ceiling.value()
        {
            self.ceiling.set(Mark { ceiling: revision + BLOCK, clean: false })?;
        }
        self.buffer.clear();
        self.buffer.shrink_to(1 << 20);
        record.encode(&mut self.buffer);
        self.segment.append(&self.buffer).map_err(|(error, in_doubt)| {
            if in_doubt {
                self.failed = Some(error.to_string());
            }
            error
        })
    }

    /// No more appends: the log's end is in doubt.
    pub(crate) fn fail(&mut self, cause: &Error) {
        self.failed.get_or_insert_with(|| cause.to_string());
    }

    /// The file being written, to be synced.
    pub(crate) fn file(&self) -> Arc<fs_err::File> {
        Arc::clone(&self.segment.file)
    }

    /// Length of the file being written.
    pub(crate) fn length(&self) -> u64 {
        self.segment.length
    }

    /// Continues in a new file after `revision`. The present file is synced first, so that a later file never
    /// survives an earlier one.
    pub(crate) fn rotate(&mut self, revision: Revision) -> Result<(), Error> {
        if revision < self.first {
            return Ok(()); // No change is in it yet, so a new file would have the same name.
        }
        self.segment
            .file
            .sync_data()
            .map_err(Error::io("sync log"))
            .inspect_err(|error| self.failed = Some(error.to_string()))?;
        let next = Segment::create(&self.dir, Header { previous: revision, first: revision + 1 })?;
        self.first = revision + 1;
        let done = std::mem::replace(&mut self.segment, next);
        self.sealed.push(Sealed { path: done.path, last: revision, bytes: done.length });
        Ok(())
    }

    /// Where to write a snapshot of `floor`, if that pays: it allows to remove at least as much as it takes.
    pub(crate) fn snapshot_due(&self, floor: Revision, least: u64) -> Option<PathBuf> {
        let free: u64 = self.sealed.iter().filter(|sealed| sealed.last <= floor).map(|sealed| sealed.bytes).sum();
        let (newest, size) = self.snapshot.unwrap_or_default();
        (floor > newest && free >= least.max(size)).then(|| snapshot::path(&self.dir, floor))
    }

    /// Takes note of a finished snapshot and removes what it replaces.
    pub(crate) fn snapshot_done(&mut self, revision: Revision, bytes: u64) -> Result<(), Error> {
        let old = self.snapshot.replace((revision, bytes));
        if let Some((old, _)) = old {
            fs_err::remove_file(snapshot::path(&self.dir, old)).map_err(Error::io("remove old snapshot"))?;
        }
        // Oldest first: what is left is always a chain that follows the snapshot.
        while self.sealed.first().is_some_and(|sealed| sealed.last <= revision) {
            let sealed = self.sealed.remove(0);
            fs_err::remove_file(&sealed.path).map_err(Error::io("remove old log file"))?;
        }
        Ok(())
    }

    /// Number of log files and bytes in them.
    pub(crate) fn log_size(&self) -> (usize, u64) {
        let sealed: u64 = self.sealed.iter().map(|sealed| sealed.bytes).sum();
        (self.sealed.len() + 1, sealed + self.segment.length)
    }

    pub(crate) fn snapshot(&self) -> Option<Revision> {
        self.snapshot.map(|(revision, _)| revision)
    }

    /// Syncs everything and marks the store as properly closed at `revision`.
    pub(crate) fn close(mut self, revision: Revision) -> Result<(), Error> {
        if let Some(cause) = self.failed {
            return Err(Error::Failed { cause });
        }
        self.segment.file.sync_all().map_err(Error::io("sync log"))?;
        self.ceiling.set(Mark { ceiling: revision, clean: true })
    }
}

/// Makes a directory in which only a snapshot was put open at the snapshot's `revision`.
pub(crate) fn adopt(dir: &Path, revision: Revision) -> Result<(), Error> {
    let (mut ceiling, _) = Ceiling::open(dir)?;
    ceiling.set(Mark { ceiling: revision, clean: true })
}

/// Takes the lock of `dir`; it lasts as long as the file is open.
fn lock(dir: &Path) -> Result<fs_err::File, Error> {
    let path = dir.join("lock");
    let mut file = fs_err::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(Error::io("open store"))?;
    match file.file().try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let known = file.read_to_string(&mut pid).is_ok() && pid.trim().parse::<u32>().is_ok();
            let holder = if known { format!("process {}", pid.trim()) } else { "another process".to_owned() };
            return Err(Error::Locked { dir: dir.into(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(Error::io("lock store")(error)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()))
        .map_err(Error::io("lock store"))?;
    Ok(file)
}
