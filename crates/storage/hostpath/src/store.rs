//! All volumes in memory, and the thread that writes changes down in groups.
//!
//! Changes become visible in memory once they are in the journal, in the same order. One thread writes them: it takes
//! all changes that wait, writes them at once and syncs once, so that many callers share the price of a sync. Readers
//! hold the index lock for a look-up only, never over I/O.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use fs_err::File;
use tokio::sync::oneshot;

use crate::Error;
use crate::fault::Fault;
use crate::journal::{Change, Journal, json};
use crate::volume::{Volume, VolumeId};

/// Most changes that are written at once; bounds the latency of the first of them.
const GROUP: usize = 256;

/// When a change counts as made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// It survives the end of the process. Enough for what a reboot undoes anyway: mounts.
    Process,
    /// It survives a loss of power, and so does what was done to the names in the state directory before.
    Power,
}

struct Job {
    json: String,
    change: Change,
    durability: Durability,
    claim: Option<Claim>,
    done: oneshot::Sender<Result<(), Error>>,
}

/// The volumes. Dropping it waits until all changes are written and gives up the state directory.
#[derive(Debug)]
pub(crate) struct Store {
    index: Arc<Mutex<Index>>,
    jobs: Option<mpsc::Sender<Job>>,
    /// Set for good once the journal takes no more changes.
    failed: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
    /// Holds the lock on the state directory.
    _lock: File,
}

#[derive(Debug, Default)]
struct Index {
    volumes: BTreeMap<VolumeId, Arc<Volume>>,
    names: HashMap<String, VolumeId>,
    /// Bytes in each pool, with volumes that are being made. Volumes without a kind are in the pool "".
    used: HashMap<String, u64>,
    /// Attached volumes, with those that are being attached.
    attached: u64,
    /// Names of volumes that are being made.
    pending: HashSet<String>,
    /// Volumes that a call is changing.
    held: HashSet<VolumeId>,
}

impl Index {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Put(volume) => {
                self.forget(volume.id);
                self.names.insert(volume.name.clone(), volume.id);
                *self.used.entry(pool(volume)).or_default() += volume.capacity;
                self.attached += u64::from(volume.attached.is_some());
                self.volumes.insert(volume.id, Arc::clone(volume));
            }
            Change::Remove(id) => self.forget(*id),
        }
    }

    fn forget(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.remove(&id) else { return };
        self.names.remove(&volume.name);
        self.release(&pool(&volume), volume.capacity);
        self.attached -= u64::from(volume.attached.is_some());
    }

    fn give_back(&mut self, claimed: &Claimed) {
        match claimed {
            Claimed::Room { name, pool, bytes } => {
                self.pending.remove(name);
                self.release(pool, *bytes);
            }
            Claimed::Place => self.attached -= 1,
        }
    }

    fn release(&mut self, pool: &str, bytes: u64) {
        if let Some(used) = self.used.get_mut(pool) {
            *used -= bytes;
        }
    }
}

fn pool(volume: &Volume) -> String {
    volume.kind.clone().unwrap_or_default()
}

/// What is kept for a volume that is being made or attached, until its record takes over; given back when dropped.
///
/// Handed to [`Store::put`] it ends in the same step in which the record begins to count, so that nothing is ever counted
/// twice, or not at all.
#[derive(Debug)]
pub(crate) struct Claim {
    index: Arc<Mutex<Index>>,
    claimed: Option<Claimed>,
}

#[derive(Debug)]
enum Claimed {
    /// A name, and room in a pool.
    Room { name: String, pool: String, bytes: u64 },
    /// One of the node's places for attached volumes.
    Place,
}

impl Claim {
    fn new(index: &Arc<Mutex<Index>>, claimed: Claimed) -> Self {
        Self { index: Arc::clone(index), claimed: Some(claimed) }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(claimed) = self.claimed.take() {
            lock(&self.index).give_back(&claimed);
        }
    }
}

/// Keeps other calls from changing a volume; ends when dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    index: Arc<Mutex<Index>>,
    id: VolumeId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        lock(&self.index).held.remove(&self.id);
    }
}

/// Why there is no [`Claim`] to a name and room.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreserved {
    /// The name has a volume by now, or is about to have one.
    Name,
    /// The pool has not that much room; this is what is in use.
    Room {
        /// Bytes in use.
        used: u64,
    },
}

/// The index is changed by steps that cannot panic halfway, so a poisoned lock has nothing broken behind it.
fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Reads the state in `directory`, which must exist, and keeps other drivers out of it.
    pub(crate) fn open(directory: &Path, fault: Fault) -> Result<Self, Error> {
        let held = take_lock(directory)?;
        let (journal, changes) = Journal::open(directory, fault.clone())?;
        let mut index = Index::default();
        for change in &changes {
            index.apply(change);
        }
        let index = Arc::new(Mutex::new(index));
        let (jobs, queue) = mpsc::channel();
        let failed = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            journal,
            failed: Arc::clone(&failed),
            queue,
            index: Arc::clone(&index),
            directory: directory.to_owned(),
            names: File::open(directory)?,
            fault,
        };
        let writer =
            std::thread::Builder::new().name("journal".to_owned()).spawn(move || writer.run()).map_err(Error::File)?;
        Ok(Self { index, jobs: Some(jobs), failed, writer: Some(writer), _lock: held })
    }

    /// Whether changes can no longer be written, which only a restart mends.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(crate) fn get(&self, id: VolumeId) -> Option<Arc<Volume>> {
        lock(&self.index).volumes.get(&id).cloned()
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<Arc<Volume>> {
        let index = lock(&self.index);
        index.volumes.get(index.names.get(name)?).cloned()
    }

    /// At most `limit` volumes in the order of their ids, from the one behind `after` on.
    pub(crate) fn list(&self, after: Option<VolumeId>, limit: usize) -> Vec<Arc<Volume>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        lock(&self.index)
            .volumes
            .range((from, Bound::Unbounded))
            .take(limit)
            .map(|(_, volume)| Arc::clone(volume))
            .collect()
    }

    /// Bytes of all volumes of this kind.
    pub(crate) fn used(&self, kind: &str) -> u64 {
        lock(&self.index).used.get(kind).copied().unwrap_or(0)
    }

    /// Reserves a name, and `bytes` in the pool `kind`, of which at most `limit` may be in use.
    pub(crate) fn reserve(&self, name: &str, kind: &str, bytes: u64, limit: u64) -> Result<Claim, Unreserved> {
        let mut index = lock(&self.index);
        if index.names.contains_key(name) || index.pending.contains(name) {
            return Err(Unreserved::Name);
        }
        let used = index.used.entry(kind.to_owned()).or_default();
        match used.checked_add(bytes) {
            Some(sum) if sum <= limit => *used = sum,
            _ => return Err(Unreserved::Room { used: *used }),
        }
        index.pending.insert(name.to_owned());
        drop(index);
        let claimed = Claimed::Room { name: name.to_owned(), pool: kind.to_owned(), bytes };
        Ok(Claim::new(&self.index, claimed))
    }

    /// Keeps other calls from changing the volume, unless one is doing so already.
    ///
    /// The SDK keeps calls of one service apart. Here the controller's and the node's calls change the same record.
    pub(crate) fn hold(&self, id: VolumeId) -> Option<Hold> {
        lock(&self.index).held.insert(id).then(|| Hold { index: Arc::clone(&self.index), id })
    }

    /// Reserves a place among at most `limit` attached volumes.
    pub(crate) fn attach(&self, limit: u64) -> Option<Claim> {
        let mut index = lock(&self.index);
        if index.attached >= limit {
            return None;
        }
        index.attached += 1;
        drop(index);
        Some(Claim::new(&self.index, Claimed::Place))
    }

    /// Makes the volume what `volume` says, or adds it.
    pub(crate) async fn put(&self, volume: Volume, durability: Durability) -> Result<Arc<Volume>, Error> {
        self.put_claimed(volume, durability, None).await
    }

    /// The same, which ends the claim that was made for it.
    pub(crate) async fn put_claimed(
        &self,
        volume: Volume,
        durability: Durability,
        claim: impl Into<Option<Claim>>,
    ) -> Result<Arc<Volume>, Error> {
        let volume = Arc::new(volume);
        self.write(Change::Put(Arc::clone(&volume)), durability, claim.into()).await?;
        Ok(volume)
    }

    /// Forgets the volume.
    pub(crate) async fn remove(&self, id: VolumeId) -> Result<(), Error> {
        self.write(Change::Remove(id), Durability::Power, None).await
    }

    async fn write(&self, change: Change, durability: Durability, claim: Option<Claim>) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        let job = Job { json: json(&change), change, durability, claim, done };
        let jobs = self.jobs.as_ref().ok_or(Error::Closing)?;
        jobs.send(job).map_err(|_| Error::Closing)?;
        answer.await.map_err(|_| Error::Closing)?
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the writer has been reported by then; there is nothing left to save.
            let _ = writer.join();
        }
    }
}

/// A driver that is being replaced may take a moment to give the directory up, but that is its supervisor's to order.
fn take_lock(directory: &Path) -> Result<File, Error> {
    let path = directory.join("lock");
    let file = fs_err::OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse { path: directory.to_owned() }),
        Err(errno) => Err(Error::File(errno.into())),
    }
}

struct Writer {
    journal: Journal,
    failed: Arc<AtomicBool>,
    queue: mpsc::Receiver<Job>,
    index: Arc<Mutex<Index>>,
    directory: PathBuf,
    /// The state directory itself, whose names have to be durable before a record of them is.
    names: File,
    fault: Fault,
}

impl Writer {
    fn run(mut self) {
        while let Ok(first) = self.queue.recv() {
            let group: Vec<Job> = std::iter::once(first).chain(self.queue.try_iter().take(GROUP - 1)).collect();
            self.commit(group);
            self.compact();
        }
    }

    fn commit(&mut self, mut group: Vec<Job>) {
        match self.write(&group) {
            Ok(()) => {
                let mut index = lock(&self.index);
                for job in &mut group {
                    index.apply(&job.change);
                    if let Some(claimed) = job.claim.as_mut().and_then(|claim| claim.claimed.take()) {
                        index.give_back(&claimed);
                    }
                }
                drop(index);
                for job in group {
                    // The caller may have gone; the change stands.
                    let _ = job.done.send(Ok(()));
                }
            }
            Err(error) => {
                let path = self.directory.join(crate::journal::FILE);
                tracing::error!(path = %path.display(), error = %describe(&error), "cannot write volume state");
                let text = describe(&error);
                if self.journal.is_poisoned() {
                    self.failed.store(true, Ordering::Relaxed);
                }
                for job in group {
                    let path = path.clone();
                    let again = |source: &std::io::Error| std::io::Error::new(source.kind(), text.clone());
                    let copy = match &error {
                        Error::Unsynced { source, .. } => Error::Unsynced { path, source: again(source) },
                        Error::Write { source, .. } | Error::File(source) => {
                            Error::Write { path, source: again(source) }
                        }
                        _ => Error::Poisoned { path },
                    };
                    let _ = job.done.send(Err(copy));
                }
            }
        }
    }

    fn write(&mut self, group: &[Job]) -> Result<(), Error> {
        let durable = group.iter().any(|job| job.durability == Durability::Power);
        if durable {
            self.fault.effect("sync the state directory")?;
            self.names.sync_all()?;
        }
        self.journal.append(group.iter().map(|job| job.json.as_str()))?;
        if durable {
            self.journal.sync()?;
        }
        Ok(())
    }

    fn compact(&mut self) {
        let count = lock(&self.index).volumes.len();
        if !self.journal.is_wasteful(count) {
            return;
        }
        let volumes: Vec<Arc<Volume>> = lock(&self.index).volumes.values().cloned().collect();
        if let Err(error) = self.journal.compact(&volumes) {
            if self.journal.is_poisoned() {
                self.failed.store(true, Ordering::Relaxed);
                tracing::error!(error = %describe(&error), "cannot make the compacted state file durable");
            } else {
                // The old file stays in use, and the next change tries again.
                tracing::warn!(error = %describe(&error), "cannot compact the state file");
            }
        }
    }
}

/// An error with its causes, on one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::tests::plain;

    fn open(directory: &Path) -> Store {
        Store::open(directory, Fault::default()).unwrap()
    }

    #[tokio::test]
    async fn what_was_put_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let a = store.put(plain("a"), Durability::Power).await.unwrap();
        let b = store.put(plain("b"), Durability::Process).await.unwrap();
        store.remove(a.id).await.unwrap();
        drop(store);
        let store = open(dir.path());
        assert_eq!(store.by_name("a"), None);
        assert_eq!(store.by_name("b").as_deref(), Some(&*b));
        assert_eq!(store.used(""), b.capacity);
    }

    #[tokio::test]
    async fn a_second_driver_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        assert!(matches!(Store::open(dir.path(), Fault::default()), Err(Error::InUse { .. })));
        drop(store);
        open(dir.path());
    }

    #[tokio::test]
    async fn room_is_counted_before_the_volume_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let first = store.reserve("a", "fast", 60, 100).unwrap();
        assert_eq!(store.reserve("a", "fast", 1, 100).unwrap_err(), Unreserved::Name);
        assert_eq!(store.reserve("b", "fast", 41, 100).unwrap_err(), Unreserved::Room { used: 60 });
        let second = store.reserve("b", "fast", 40, 100).unwrap();
        drop(first);
        assert_eq!(store.used("fast"), 40);
        store.reserve("c", "fast", 60, 100).unwrap();
        let mut volume = plain("b");
        volume.kind = Some("fast".to_owned());
        volume.capacity = 40;
        store.put_claimed(volume, Durability::Power, second).await.unwrap();
        assert_eq!(store.used("fast"), 40);
        assert_eq!(store.reserve("d", "fast", u64::MAX, u64::MAX).unwrap_err(), Unreserved::Room { used: 40 });
    }

    #[tokio::test]
    async fn places_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let place = store.attach(1).unwrap();
        assert!(store.attach(1).is_none());
        drop(place);
        assert!(store.attach(1).is_some());
    }

    #[tokio::test]
    async fn a_volume_is_held_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let id = VolumeId::random();
        let hold = store.hold(id).unwrap();
        assert!(store.hold(id).is_none());
        assert!(store.hold(VolumeId::random()).is_some());
        drop(hold);
        assert!(store.hold(id).is_some());
    }

    #[tokio::test]
    async fn pages_follow_the_ids() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let mut ids = Vec::new();
        for n in 0..5 {
            ids.push(store.put(plain(&n.to_string()), Durability::Process).await.unwrap().id);
        }
        ids.sort_unstable();
        let found = |after, limit| store.list(after, limit).iter().map(|volume| volume.id).collect::<Vec<_>>();
        assert_eq!(found(None, 2), ids[..2]);
        assert_eq!(found(Some(ids[1]), 10), ids[2..]);
    }

    #[tokio::test]
    async fn many_changes_of_few_volumes_do_not_grow_the_file_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let volume = store.put(plain("a"), Durability::Process).await.unwrap();
        for capacity in 0..3000 {
            let changed = Volume { capacity, ..Volume::clone(&volume) };
            store.put(changed, Durability::Process).await.unwrap();
        }
        assert_eq!(store.used(""), 2999);
        drop(store);
        let size = fs_err::metadata(dir.path().join(crate::journal::FILE)).unwrap().len();
        assert!(size < 1100 * 300, "{size}");
        assert_eq!(open(dir.path()).used(""), 2999);
    }

    #[tokio::test]
    async fn a_failed_write_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path());
        // The directory's sync is the first effect, the journal's line the second.
        let store = Store::open(dir.path(), Fault::after(1)).unwrap();
        let error = store.put(plain("a"), Durability::Power).await.unwrap_err();
        assert!(matches!(error, Error::Write { .. }), "{error}");
        assert_eq!(store.by_name("a"), None);
        assert_eq!(store.used(""), 0);
        drop(store);
        assert_eq!(open(dir.path()).by_name("a"), None);
    }

    #[tokio::test]
    async fn after_a_failed_sync_only_a_restart_helps() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path());
        let store = Store::open(dir.path(), Fault::after(2)).unwrap();
        let error = store.put(plain("a"), Durability::Power).await.unwrap_err();
        assert!(matches!(error, Error::Unsynced { .. }) && !error.is_definite(), "{error}");
        assert!(store.has_failed());
        assert_eq!(store.by_name("a"), None, "nobody is told of what may not last");
        assert!(store.put(plain("b"), Durability::Process).await.is_err());
        drop(store);
        let store = open(dir.path());
        assert!(!store.has_failed() && store.by_name("a").is_some());
    }
}
