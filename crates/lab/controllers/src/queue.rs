//! Work queues and the account of what is still to be done.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// How often an item is tried before waiting for it no longer counts as work in progress.
const PATIENCE: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Counts work in progress over all queues, and writes.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    open: AtomicUsize,
    writes: AtomicU64,
    idle: Notify,
}

impl Activity {
    fn begin(&self) {
        self.open.fetch_add(1, Ordering::SeqCst);
    }

    fn end(&self) {
        if self.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.idle.notify_waiters();
        }
    }

    /// Takes note of a write to the API.
    pub(crate) fn wrote(&self) {
        self.writes.fetch_add(1, Ordering::SeqCst);
    }

    /// Writes so far.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// Waits until nothing is in progress.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.open.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done until something changes.
    Done,
    /// Somebody else changed the object meanwhile: again at once.
    Again,
    /// It failed: again after a pause that doubles each time.
    Failed,
}

/// A queue in which each key is at most once, and never worked on twice at the same time.
pub(crate) struct Queue<K> {
    inner: Mutex<Inner<K>>,
    wake: Notify,
    activity: Arc<Activity>,
}

struct Inner<K> {
    ready: VecDeque<K>,
    /// Keys in `ready`, and keys to be put there when their present work is done.
    dirty: HashSet<K>,
    working: HashSet<K>,
    failures: HashMap<K, u32>,
}

impl<K: Clone + Eq + Hash + Send + 'static> Queue<K> {
    pub(crate) fn new(activity: Arc<Activity>) -> Arc<Self> {
        let inner =
            Inner { ready: VecDeque::new(), dirty: HashSet::new(), working: HashSet::new(), failures: HashMap::new() };
        Arc::new(Self { inner: Mutex::new(inner), wake: Notify::new(), activity })
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for work on `key`.
    pub(crate) fn add(&self, key: K) {
        let mut inner = self.lock();
        if !inner.dirty.insert(key.clone()) {
            return;
        }
        self.activity.begin();
        if !inner.working.contains(&key) {
            inner.ready.push_back(key);
            drop(inner);
            self.wake.notify_one();
        }
    }

    /// Waits for a key to work on. [`done`](Self::done) must follow.
    pub(crate) async fn next(&self) -> K {
        loop {
            let wake = self.wake.notified();
            {
                let mut inner = self.lock();
                if let Some(key) = inner.ready.pop_front() {
                    inner.dirty.remove(&key);
                    inner.working.insert(key.clone());
                    if !inner.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
            }
            wake.await;
        }
    }

    /// Ends the work on `key`.
    pub(crate) fn done(self: &Arc<Self>, key: K, outcome: Outcome) {
        let mut inner = self.lock();
        inner.working.remove(&key);
        if inner.dirty.contains(&key) {
            inner.ready.push_back(key.clone());
            self.wake.notify_one();
        }
        match outcome {
            Outcome::Done => {
                inner.failures.remove(&key);
            }
            Outcome::Again if inner.dirty.insert(key.clone()) => {
                self.activity.begin();
                inner.ready.push_back(key);
                self.wake.notify_one();
            }
            Outcome::Again => {}
            Outcome::Failed => {
                let failures = inner.failures.entry(key.clone()).or_default();
                *failures = failures.saturating_add(1);
                self.later(key, *failures);
            }
        }
        drop(inner);
        self.activity.end();
    }

    fn later(self: &Arc<Self>, key: K, failures: u32) {
        let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST_PAUSE);
        let counted = failures <= PATIENCE;
        if counted {
            self.activity.begin();
        }
        let queue = Arc::downgrade(self);
        let activity = Arc::clone(&self.activity);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            if let Some(queue) = queue.upgrade() {
                queue.add(key);
            }
            if counted {
                activity.end();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_are_merged_and_kept_apart() {
        let activity = Arc::new(Activity::default());
        let queue = Queue::new(Arc::clone(&activity));
        queue.add(1);
        queue.add(1);
        let key = queue.next().await;
        // Asked for during its work: comes again afterwards, not at the same time.
        queue.add(1);
        let early = tokio::time::timeout(Duration::from_millis(20), queue.next()).await;
        assert!(early.is_err());
        queue.done(key, Outcome::Done);
        let key = queue.next().await;
        let idle = tokio::time::timeout(Duration::from_millis(20), activity.idle()).await;
        assert!(idle.is_err(), "work is in progress");
        queue.done(key, Outcome::Done);
        activity.idle().await;
    }

    #[tokio::test]
    async fn failures_come_back_ever_later() {
        let activity = Arc::new(Activity::default());
        let queue = Queue::new(Arc::clone(&activity));
        queue.add("a");
        let mut pauses = vec![];
        for _ in 0..7 {
            let before = tokio::time::Instant::now();
            let key = queue.next().await;
            pauses.push(before.elapsed().as_millis());
            queue.done(key, Outcome::Failed);
        }
        for (pause, least) in pauses.iter().zip([0, 5, 10, 20, 40, 80, 160]) {
            assert!(*pause >= least, "{pauses:?}");
        }
        // What keeps failing does not keep others waiting.
        tokio::time::timeout(Duration::from_millis(100), activity.idle()).await.unwrap();
        let key = queue.next().await;
        queue.done(key, Outcome::Done);
        activity.idle().await;
    }
}
