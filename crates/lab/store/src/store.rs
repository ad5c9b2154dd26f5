//! The store: commits under one lock, readers beside them, and the threads that look after the files.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use crate::disk::{self, Disk};
use crate::frame::{KEY_LIMIT, Kind, Record, VALUE_LIMIT};
use crate::state::{State, topic};
use crate::{
    Durability, Error, Event, EventKind, Expect, Lagged, Options, Range, Revision, Stats, Version, Watch, replay,
    snapshot,
};

/// Entries read under one hold of the read lock.
const STEP: usize = 2048;
/// Scans that may be overtaken by compaction before one holds the read lock throughout.
const RETRIES: usize = 3;

/// A store. Clones share it; it is closed when the last clone and the last watch are dropped.
#[derive(Clone)]
pub struct Store {
    handle: Arc<Handle>,
}

/// Closes the store when it is dropped. The threads do not hold it.
struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    /// Serialises commits. Taken before `state`.
    writer: Mutex<Writer>,
    state: RwLock<State>,
    durability: Durability,
    segment: u64,
    chores: Mutex<Chores>,
    /// Signals changes of `chores`, to both threads.
    wake: Condvar,
    synced: watch::Sender<Synced>,
    syncs: AtomicU64,
}

struct Writer {
    disk: Option<Disk>,
    closed: bool,
}

/// What the threads are asked to do.
#[derive(Default)]
struct Chores {
    stop: bool,
    rotate: bool,
    /// Revision that somebody waits for to become durable.
    sync: Revision,
}

/// How far the log is on stable storage.
#[derive(Clone, Debug, Default)]
struct Synced {
    revision: Revision,
    failed: Option<String>,
}

impl Store {
    /// Opens a store, and with a directory, takes its lock and replays its files. A torn last record, as a killed
    /// process or a loss of power leaves it, is cut off; any other damage is refused.
    ///
    /// Blocks while it reads the files.
    pub fn open(options: Options) -> Result<Self, Error> {
        let Options { dir, durability, history, segment } = options;
        let history = match history {
            0 => {
                return Err(Error::Options("a history of 0 revisions leaves nothing to watch; give at least 1"));
            }
            history => history,
        };
        match (dir, durability) {
            (None, Durability::Memory) => Ok(Self::start(replay::empty(history), None, durability, segment)),
            (Some(dir), Durability::Process | Durability::Power) => {
                let (disk, state) = Disk::open(&dir, history)?;
                Ok(Self::start(state, Some(disk), durability, segment))
            }
            (None, _) => Err(Error::Options("this durability needs a directory")),
            (Some(_), Durability::Memory) => Err(Error::Options("a store in memory has no directory")),
        }
    }

    /// Opens a store that begins as the snapshot in `file` (see [`snapshot_to`](Self::snapshot_to)). With a
    /// directory, that must hold no store yet.
    pub fn restore(file: &Path, options: Options) -> Result<Self, Error> {
        let (revision, _, state) = replay::restore(file, options.history.max(1))?;
        let Some(dir) = &options.dir else {
            let store = Self::open(options)?;
            *store.shared().write_state() = state;
            return Ok(store);
        };
        fs_err::create_dir_all(dir).map_err(Error::io("restore store"))?;
        if fs_err::read_dir(dir).map_err(Error::io("restore store"))?.next().is_some() {
            return Err(Error::Options("the directory to restore into is not empty"));
        }
        let mut after: Option<Arc<str>> = None;
        snapshot::write(&snapshot::path(dir, revision), revision, || Ok(step(&state, &mut after, revision)))?;
        disk::adopt(dir, revision)?;
        Self::open(options)
    }

    fn start(state: State, disk: Option<Disk>, durability: Durability, segment: u64) -> Self {
        let files = disk.is_some();
        let synced = Synced { revision: state.revision(), failed: None };
        let shared = Arc::new(Shared {
            writer: Mutex::new(Writer { disk, closed: false }),
            state: RwLock::new(state),
            durability,
            segment,
            chores: Mutex::default(),
            wake: Condvar::new(),
            synced: watch::Sender::new(synced),
            syncs: AtomicU64::new(0),
        });
        let mut threads = Vec::new();
        let mut spawn = |wanted: bool, work: fn(&Shared)| {
            if wanted {
                let shared = Arc::clone(&shared);
                threads.push(std::thread::spawn(move || work(&shared)));
            }
        };
        spawn(files, Shared::keep_house);
        spawn(durability == Durability::Power, Shared::commit_groups);
        Self { handle: Arc::new(Handle { shared, threads: Mutex::new(threads) }) }
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.shared().read_state().revision()
    }

    /// The compaction floor: the oldest revision at which scans read and from which watches start.
    pub fn compacted(&self) -> Revision {
        self.shared().read_state().floor()
    }

    /// The present version of `key`.
    pub fn get(&self, key: &str) -> Option<Version> {
        self.shared().read_state().get(key)
    }

    /// Scans the keys that begin with `prefix` and come after `after` (a key, excluded), in order of their bytes, as
    /// of revision `at` or the present. At most `limit` versions are returned; 0 means all.
    ///
    /// To page, pass the last key of a page as `after` and the page's revision as `at`. Fails with
    /// [`Error::Compacted`] or [`Error::Future`].
    pub fn range(&self, prefix: &str, after: Option<&str>, limit: usize, at: Option<Revision>) -> Result<Range, Error> {
        for _ in 0..RETRIES {
            match self.scan(prefix, after, limit, at, STEP) {
                Err(Error::Compacted { .. }) if at.is_none() => {}
                result => return result,
            }
        }
        self.scan(prefix, after, limit, at, usize::MAX)
    }

    fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Option<Revision>,
        step: usize,
    ) -> Result<Range, Error> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut state = self.shared().read_state();
        let revision = at.unwrap_or(state.revision());
        let mut versions: Vec<Version> = Vec::new();
        loop {
            state.check(revision)?;
            let from = versions.last().map(|version| Arc::clone(&version.key));
            let from = from.as_deref().or(after);
            let room = step.min(limit - versions.len());
            let before = versions.len();
            versions.extend(state.scan(prefix, from, revision).take(room));
            if versions.len() == limit {
                let from = versions.last().map(|version| &*version.key);
                let remaining = state.count(prefix, from, revision);
                return Ok(Range { more: remaining > 0, remaining, versions, revision });
            }
            if versions.len() - before < room {
                return Ok(Range { more: false, remaining: 0, versions, revision });
            }
            drop(state);
            state = self.shared().read_state();
        }
    }

    /// Creates or replaces `key`, if its present state is as expected. `make` gets the revision that the change will
    /// have and returns the value; it runs under the commit lock, so it should only serialise.
    ///
    /// When this returns, the change is visible and survives what the store's [`Durability`] says (for
    /// [`Durability::Power`], await [`durable`](Self::durable) before answering).
    pub fn write(&self, key: &str, expect: Expect, make: impl FnOnce(Revision) -> Bytes) -> Result<Version, Error> {
        self.shared().commit(key, EventKind::Put, expect, make)
    }

    /// Deletes `key`, if its present state is as expected. `last` gets the revision of the deletion and returns the
    /// final value, which the event and the returned version carry. A key that does not exist is a conflict.
    pub fn delete(&self, key: &str, expect: Expect, last: impl FnOnce(Revision) -> Bytes) -> Result<Version, Error> {
        self.shared().commit(key, EventKind::Delete, expect, last)
    }

    /// Watches the keys that begin with `prefix`: all changes with a revision above `from` will be delivered, once
    /// and in order. Fails with [`Error::Compacted`] or [`Error::Future`].
    pub fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        let wake = {
            let mut state = self.shared().write_state();
            state.check(from)?;
            state.subscribe(topic(prefix))
        };
        Ok(Watch::new(self.clone(), prefix, wake, from))
    }

    /// Forgets the history up to `floor`: scans below it and watches from below it fail from now on.
    pub fn compact(&self, floor: Revision) -> Result<(), Error> {
        let shared = self.shared();
        let mut writer = shared.lock_writer()?;
        let current = shared.read_state().revision();
        if floor > current {
            return Err(Error::Future { requested: floor, current });
        }
        if let Some(disk) = &mut writer.disk {
            disk.append(Record { kind: Kind::Compact, number: floor, second: 0, key: "", value: &[] }, None)?;
        }
        shared.write_state().compact(floor);
        Ok(())
    }

    /// Waits until the changes up to `revision` survive a loss of power. Returns at once unless the store was opened
    /// with [`Durability::Power`]. Many waiters share one sync.
    pub async fn durable(&self, revision: Revision) -> Result<(), Error> {
        let shared = self.shared();
        if shared.durability != Durability::Power {
            return Ok(());
        }
        let current = self.revision();
        if revision > current {
            return Err(Error::Future { requested: revision, current });
        }
        let mut synced = shared.synced.subscribe();
        if synced.borrow().revision < revision {
            let mut chores = shared.lock_chores();
            chores.sync = chores.sync.max(revision);
            shared.wake.notify_all();
        }
        let state = synced.wait_for(|synced| synced.revision >= revision || synced.failed.is_some()).await;
        match state.map(|synced| synced.failed.clone()) {
            Ok(None) => Ok(()),
            Ok(Some(cause)) => Err(Error::Failed { cause }),
            Err(_) => Err(Error::Closed),
        }
    }

    /// An independent store in memory with the same content, history and revision. Costs a copy of pointers: keys
    /// and values are shared.
    #[must_use]
    pub fn fork(&self) -> Self {
        let state = self.shared().read_state().fork();
        Self::start(state, None, Durability::Memory, self.shared().segment)
    }

    /// Writes the present state to one file, which appears whole or not at all. Returns the revision it holds.
    /// Commits go on meanwhile.
    pub fn snapshot_to(&self, file: &Path) -> Result<Revision, Error> {
        let shared = self.shared();
        let revision = {
            let mut state = shared.write_state();
            let revision = state.revision();
            state.pin(revision);
            revision
        };
        let _pin = Pin { shared, revision };
        let mut after = None;
        snapshot::write(file, revision, || Ok(step(&shared.read_state(), &mut after, revision)))?;
        Ok(revision)
    }

    /// Closes the store before its last clone is dropped: syncs the log, marks it as complete and releases the
    /// directory. Later commits fail with [`Error::Closed`]; reads go on. Blocks for a sync.
    pub fn close(&self) -> Result<(), Error> {
        self.handle.close()
    }

    /// Figures of the present moment.
    pub fn stats(&self) -> Stats {
        let shared = self.shared();
        let writer = shared.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let state = shared.read_state();
        let (segments, log_bytes) = writer.disk.as_ref().map(Disk::log_size).unwrap_or_default();
        let power = shared.durability == Durability::Power;
        Stats {
            revision: state.revision(),
            compacted: state.floor(),
            keys: state.live(),
            versions: state.versions(),
            value_bytes: state.value_bytes(),
            events: state.events(),
            watches: state.watches(),
            durable: power.then(|| shared.synced.borrow().revision),
            segments,
            log_bytes,
            snapshot: writer.disk.as_ref().and_then(Disk::snapshot),
            syncs: shared.syncs.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn collect(
        &self,
        topic: &str,
        prefix: &str,
        position: Revision,
        limit: usize,
        into: &mut Vec<Arc<Event>>,
    ) -> Result<Revision, Lagged> {
        self.shared().read_state().collect(topic, prefix, position, limit, into)
    }

    pub(crate) fn unsubscribe(&self, topic: &str) {
        self.shared().write_state().unsubscribe(topic);
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

/// The next group of versions of a snapshot.
fn step(state: &State, after: &mut Option<Arc<str>>, revision: Revision) -> Vec<Version> {
    let versions: Vec<Version> = state.scan("", after.as_deref(), revision).take(STEP).collect();
    if let Some(last) = versions.last() {
        *after = Some(Arc::clone(&last.key));
    }
    versions
}

/// Lets go of a revision that is being read.
struct Pin<'a> {
    shared: &'a Shared,
    revision: Revision,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.shared.write_state().unpin(self.revision);
    }
}

impl Shared {
    // A panic in a caller's closure poisons the commit lock before anything was changed; the state itself is never
    // left half-changed. So poisoning is ignored.
    fn lock_writer(&self) -> Result<MutexGuard<'_, Writer>, Error> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.closed { Err(Error::Closed) } else { Ok(writer) }
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_chores(&self) -> MutexGuard<'_, Chores> {
        self.chores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(
        &self,
        key: &str,
        kind: EventKind,
        expect: Expect,
        make: impl FnOnce(Revision) -> Bytes,
    ) -> Result<Version, Error> {
        check_size(key, key.len(), KEY_LIMIT)?;
        let (version, wakes, full) = {
            let mut writer = self.lock_writer()?;
            let (present, revision) = {
                let state = self.read_state();
                (state.present(key), state.revision() + 1)
            };
            let modified = present.version.as_ref().map(|version| version.modified);
            let met = match expect {
                Expect::Absent => modified.is_none(),
                Expect::Modified(expected) => modified == Some(expected),
                Expect::Any => true,
            };
            if !met || (kind == EventKind::Delete && modified.is_none()) {
                return Err(Error::Conflict { key: key.to_owned(), current: present.version });
            }
            let value = make(revision);
            check_size(key, value.len(), VALUE_LIMIT)?;
            let mut full = false;
            if let Some(disk) = &mut writer.disk {
                let mark = match kind {
                    EventKind::Put => Kind::Put,
                    EventKind::Delete => Kind::Delete,
                };
                let record = Record { kind: mark, number: revision, second: 0, key, value: &value };
                disk.append(record, Some(revision))?;
                full = disk.length() >= self.segment;
            }
            let (version, wakes) = self.write_state().apply(present.key, kind, value, revision);
            (version, wakes, full)
        };
        for wake in wakes {
            Notify::notify_waiters(&wake);
        }
        if full {
            self.lock_chores().rotate = true;
            self.wake.notify_all();
        }
        Ok(version)
    }

    /// Thread: starts new log files and writes snapshots.
    fn keep_house(&self) {
        while self.await_chore(|chores| std::mem::take(&mut chores.rotate)) {
            if let Err(error) = self.rotate().and_then(|()| self.write_snapshot()) {
                tracing::error!(error = &error as &dyn std::error::Error, "the log's files could not be renewed");
            }
        }
    }

    fn rotate(&self) -> Result<(), Error> {
        // Most of the file is synced outside the lock, so that commits wait for the rest only.
        let file = {
            let writer = self.lock_writer()?;
            writer.disk.as_ref().filter(|disk| disk.length() >= self.segment).map(Disk::file)
        };
        let Some(file) = file else { return Ok(()) };
        file.sync_data().map_err(Error::io("sync log")).inspect_err(|error| self.fail(error))?;
        let mut writer = self.lock_writer()?;
        let revision = self.read_state().revision();
        let Some(disk) = &mut writer.disk else {
            return Ok(());
        };
        self.syncs.fetch_add(2, Ordering::Relaxed);
        disk.rotate(revision)
    }

    fn write_snapshot(&self) -> Result<(), Error> {
        let (target, revision) = {
            let writer = self.lock_writer()?;
            let mut state = self.write_state();
            let revision = state.floor();
            let Some(target) = writer.disk.as_ref().and_then(|disk| disk.snapshot_due(revision, self.segment)) else {
                return Ok(());
            };
            state.pin(revision);
            (target, revision)
        };
        let _pin = Pin { shared: self, revision };
        let mut after = None;
        let written = snapshot::write(&target, revision, || {
            if self.lock_chores().stop {
                return Err(Error::Closed);
            }
            Ok(step(&self.read_state(), &mut after, revision))
        });
        match written {
            // It will be written when the store is open again.
            Err(Error::Closed) => Ok(()),
            Err(error) => Err(error),
            Ok(bytes) => match &mut self.lock_writer()?.disk {
                Some(disk) => disk.snapshot_done(revision, bytes),
                None => Ok(()),
            },
        }
    }

    /// Thread: syncs the log when somebody waits for it, for all who wait at that moment.
    fn commit_groups(&self) {
        while self
            .await_chore(|chores| chores.sync > self.synced.borrow().revision && self.synced.borrow().failed.is_none())
        {
            let Ok((file, revision)) = self.lock_writer().map(|writer| {
                let revision = self.read_state().revision();
                (writer.disk.as_ref().map(Disk::file), revision)
            }) else {
                return;
            };
            let Some(file) = file else { return };
            // Earlier log files were synced when this one was begun.
            let result = file.sync_data().map_err(Error::io("sync log"));
            self.syncs.fetch_add(1, Ordering::Relaxed);
            match result {
                Ok(()) => {
                    self.synced.send_if_modified(|synced| {
                        synced.revision = synced.revision.max(revision);
                        true
                    });
                }
                Err(error) => self.fail(&error),
            }
        }
    }

    /// Waits until `chore` finds something to do; false if the store is being closed.
    fn await_chore(&self, mut chore: impl FnMut(&mut Chores) -> bool) -> bool {
        let mut chores = self.lock_chores();
        loop {
            if chores.stop {
                return false;
            }
            if chore(&mut chores) {
                return true;
            }
            chores = self.wake.wait(chores).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// After a failed sync nobody knows what is on the disk: no more commits.
    fn fail(&self, error: &Error) {
        if let Ok(mut writer) = self.lock_writer()
            && let Some(disk) = &mut writer.disk
        {
            disk.fail(error);
        }
        self.synced.send_modify(|synced| synced.failed = Some(error.to_string()));
    }
}

impl Handle {
    fn close(&self) -> Result<(), Error> {
        let shared = &self.shared;
        shared.lock_chores().stop = true;
        shared.wake.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
        let mut writer = shared.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.closed = true;
        let Some(disk) = writer.disk.take() else {
            return Ok(());
        };
        let revision = shared.read_state().revision();
        let result = disk.close(revision);
        shared.synced.send_modify(|synced| match &result {
            Ok(()) => synced.revision = revision,
            Err(error) => synced.failed = Some(error.to_string()),
        });
        result
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(error = &error as &dyn std::error::Error, "the store was not closed properly");
        }
    }
}

fn check_size(key: &str, bytes: usize, limit: usize) -> Result<(), Error> {
    if bytes <= limit {
        return Ok(());
    }
    let key: String = key.chars().take(200).collect();
    Err(Error::TooLarge { key, bytes, limit })
}
