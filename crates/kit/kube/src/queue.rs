//! A queue of keys to work on, as controllers need it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::future::Future;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outrigger_daemon::{Metrics, Shutdown};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::election::random;

/// How long to wait before work on a key is tried again: from `start`, doubling with each failure, up to `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub start: Duration,
    /// At most.
    pub max: Duration,
}

impl Backoff {
    /// The wait after so many failures (at least one). `jitter` in 0..1 takes up to a tenth off, so that what
    /// failed together is not retried together.
    pub fn after(&self, failures: u32, jitter: f64) -> Duration {
        let doubled = self.start.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.max).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 10.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabel {
    name: &'static str,
}

/// The `workqueue_*` metrics, by queue `name`. One set serves all queues of a process; clones share the data.
#[derive(Debug, Clone)]
pub struct QueueMetrics {
    depth: Family<NameLabel, Gauge>,
    adds: Family<NameLabel, Counter>,
    retries: Family<NameLabel, Counter>,
    waited: Family<NameLabel, Histogram, fn() -> Histogram>,
    worked: Family<NameLabel, Histogram, fn() -> Histogram>,
}

impl QueueMetrics {
    /// Registers the metrics. Twice in one registry would publish them twice.
    pub fn register(metrics: &Metrics) -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(1e-8, 10.0, 12));
        let this = Self {
            depth: Family::default(),
            adds: Family::default(),
            retries: Family::default(),
            waited: Family::new_with_constructor(histogram),
            worked: Family::new_with_constructor(histogram),
        };
        metrics.register(|registry| {
            registry.register("workqueue_depth", "Current depth of workqueue", this.depth.clone());
            registry.register("workqueue_adds", "Total number of adds handled by workqueue", this.adds.clone());
            registry.register(
                "workqueue_retries",
                "Total number of retries handled by workqueue",
                this.retries.clone(),
            );
            registry.register(
                "workqueue_queue_duration_seconds",
                "How long in seconds an item stays in workqueue before being requested",
                this.waited.clone(),
            );
            registry.register(
                "workqueue_work_duration_seconds",
                "How long in seconds processing an item from workqueue takes",
                this.worked.clone(),
            );
        });
        this
    }
}

/// When a key's time comes, and a number that keeps keys of the same time apart and in order.
type Due = (Instant, u64);

/// The state of a queue. Time and randomness are arguments; nothing here waits.
struct Core<K> {
    /// Keys to work on, each at most once, with the time when they came.
    ready: VecDeque<(K, Instant)>,
    /// The keys in `ready`, and those that came again while being worked on.
    dirty: HashSet<K>,
    /// The keys being worked on.
    working: HashSet<K>,
    /// Keys whose time has not come, and whether they are retries.
    later: BTreeMap<Due, (K, bool)>,
    /// Where a key is in `later`.
    due: HashMap<K, Due>,
    /// How many of `later` are retries.
    retrying: usize,
    /// How often in a row work on a key failed.
    failures: HashMap<K, u32>,
    sequence: u64,
}

impl<K: Clone + Eq + Hash> Core<K> {
    fn new() -> Self {
        Self {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            retrying: 0,
            failures: HashMap::new(),
            sequence: 0,
        }
    }

    /// Adds a key; false if it waits already. A key being worked on is worked on again afterwards.
    fn add(&mut self, key: K, now: Instant) -> bool {
        if !self.dirty.insert(key.clone()) {
            return false;
        }
        if !self.working.contains(&key) {
            self.ready.push_back((key, now));
        }
        true
    }

    /// Adds a key when the time has come; the earlier of two times counts.
    fn add_at(&mut self, key: K, at: Instant, retry: bool) {
        if let Some(due) = self.due.get(&key).copied() {
            if due.0 <= at {
                // It comes earlier anyway; but a retry counts as work to do.
                if let Some((_, was_retry)) = self.later.get_mut(&due)
                    && retry
                    && !*was_retry
                {
                    *was_retry = true;
                    self.retrying += 1;
                }
                return;
            }
            self.unschedule(due);
        }
        self.sequence += 1;
        let due = (at, self.sequence);
        self.retrying += usize::from(retry);
        self.due.insert(key.clone(), due);
        self.later.insert(due, (key, retry));
    }

    fn unschedule(&mut self, due: Due) -> Option<K> {
        let (key, retry) = self.later.remove(&due)?;
        self.retrying -= usize::from(retry);
        self.due.remove(&key);
        Some(key)
    }

    /// Moves the keys whose time has come; gives how many were added and when the next one is due.
    fn advance(&mut self, now: Instant) -> (u64, Option<Instant>) {
        let mut added = 0;
        while let Some((&due, _)) = self.later.first_key_value() {
            if due.0 > now {
                return (added, Some(due.0));
            }
            if let Some(key) = self.unschedule(due) {
                added += u64::from(self.add(key, now));
            }
        }
        (added, None)
    }

    /// The next key to work on, and since when it waits.
    fn take(&mut self) -> Option<(K, Instant)> {
        let (key, since) = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.working.insert(key.clone());
        Some((key, since))
    }

    /// The work on a key ended; true if it is to be done again at once.
    fn done(&mut self, key: &K, now: Instant) -> bool {
        self.working.remove(key);
        let again = self.dirty.contains(key);
        if again {
            self.ready.push_back((key.clone(), now));
        }
        again
    }

    /// Counts a failure; gives how many there were in a row.
    fn failed(&mut self, key: &K) -> u32 {
        let failures = self.failures.entry(key.clone()).or_insert(0);
        *failures = failures.saturating_add(1);
        *failures
    }

    fn idle(&self) -> bool {
        self.ready.is_empty() && self.working.is_empty() && self.retrying == 0
    }
}

/// What became of the work on a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done; the failures are forgotten.
    Done,
    /// It failed; it is tried again after the back-off.
    Retry,
    /// It went well so far; look again after this time. The failures are forgotten.
    After(Duration),
}

/// A queue of keys: a key waits at most once, and is never worked on twice at the same time. Clones share the queue.
pub struct WorkQueue<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

struct Shared<K> {
    core: Mutex<Core<K>>,
    /// Something became ready, or a timer changed.
    wake: Notify,
    /// The queue became idle.
    idle: Notify,
    backoff: Backoff,
    label: NameLabel,
    metrics: Option<QueueMetrics>,
}

impl<K> Shared<K> {
    fn lock(&self) -> MutexGuard<'_, Core<K>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> WorkQueue<K> {
    /// An empty queue. `name` labels its metrics.
    pub fn new(name: &'static str, backoff: Backoff, metrics: Option<QueueMetrics>) -> Self {
        Self {
            shared: Arc::new(Shared {
                core: Mutex::new(Core::new()),
                wake: Notify::new(),
                idle: Notify::new(),
                backoff,
                label: NameLabel { name },
                metrics,
            }),
        }
    }

    /// Adds a key, unless it waits already.
    pub fn add(&self, key: K) {
        let (added, depth) = {
            let mut core = self.shared.lock();
            (core.add(key, Instant::now()), core.ready.len())
        };
        if added {
            self.count_adds(1, depth);
            self.shared.wake.notify_one();
        }
    }

    /// Adds a key after some time; if it is due earlier already, that time stays.
    pub fn add_after(&self, key: K, after: Duration) {
        self.schedule(key, after, false);
    }

    /// Adds a key after the back-off for one failure more.
    pub fn add_rate_limited(&self, key: K) {
        let failures = self.shared.lock().failed(&key);
        if let Some(metrics) = &self.shared.metrics {
            metrics.retries.get_or_create(&self.shared.label).inc();
        }
        self.schedule(key, self.shared.backoff.after(failures, random()), true);
    }

    /// Forgets the failures of a key.
    pub fn forget(&self, key: &K) {
        self.shared.lock().failures.remove(key);
    }

    /// How many keys wait for a worker.
    pub fn len(&self) -> usize {
        self.shared.lock().ready.len()
    }

    /// Whether no key waits for a worker.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn schedule(&self, key: K, after: Duration, retry: bool) {
        self.shared.lock().add_at(key, Instant::now() + after, retry);
        // A waiting worker may have to wake earlier than it meant to.
        self.shared.wake.notify_one();
    }

    fn count_adds(&self, added: u64, depth: usize) {
        if let Some(metrics) = &self.shared.metrics {
            metrics.adds.get_or_create(&self.shared.label).inc_by(added);
            self.set_depth(metrics, depth);
        }
    }

    fn set_depth(&self, metrics: &QueueMetrics, depth: usize) {
        let depth = i64::try_from(depth).unwrap_or(i64::MAX);
        metrics.depth.get_or_create(&self.shared.label).set(depth);
    }

    /// Waits for the next key. Until the [`Work`] is dropped, the key is not handed out again.
    pub async fn next(&self) -> Work<K> {
        loop {
            let now = Instant::now();
            let (taken, next, added, depth) = {
                let mut core = self.shared.lock();
                let (added, next) = core.advance(now);
                (core.take(), next, added, core.ready.len())
            };
            if added > 0 {
                self.count_adds(added, depth);
            }
            if let Some((key, since)) = taken {
                if let Some(metrics) = &self.shared.metrics {
                    self.set_depth(metrics, depth);
                    let waited = now.saturating_duration_since(since);
                    metrics.waited.get_or_create(&self.shared.label).observe(waited.as_secs_f64());
                }
                // One notice may stand for several keys, and this worker has the clock: pass it on.
                if depth > 0 || next.is_some() {
                    self.shared.wake.notify_one();
                }
                return Work { queue: self.clone(), key, started: now };
            }
            match next {
                Some(at) => tokio::select! {
                    () = self.shared.wake.notified() => {}
                    () = sleep_until(at) => {}
                },
                None => self.shared.wake.notified().await,
            }
        }
    }

    /// Waits until nothing is ready, being worked on or waiting for a retry. Keys of [`WorkQueue::add_after`] whose
    /// time has not come do not count.
    pub async fn wait_idle(&self) {
        loop {
            let notified = self.shared.idle.notified();
            let mut notified = std::pin::pin!(notified);
            notified.as_mut().enable();
            if self.shared.lock().idle() {
                return;
            }
            notified.await;
        }
    }

    /// Works on keys with `workers` tasks until the shutdown; then waits for the work under way.
    ///
    /// A panic of `handle` is a bug of the controller: it is logged and counts as a failure of that key.
    pub async fn run<F, R>(&self, workers: usize, shutdown: &Shutdown, handle: F)
    where
        F: Fn(K) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Outcome> + Send + 'static,
        K: Sync,
    {
        let mut tasks = JoinSet::new();
        for _ in 0..workers.max(1) {
            let (queue, handle, shutdown) = (self.clone(), handle.clone(), shutdown.clone());
            tasks.spawn(async move {
                loop {
                    let work = tokio::select! {
                        biased;
                        () = shutdown.cancelled() => return,
                        work = queue.next() => work,
                    };
                    // In a task of its own, a panic takes nothing else down.
                    let outcome = tokio::spawn(handle(work.key.clone())).await.unwrap_or_else(|error| {
                        tracing::error!(queue = queue.shared.label.name, %error, "the work on a key broke off");
                        Outcome::Retry
                    });
                    work.finish(outcome);
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }
}

/// A key being worked on; the queue hands it out again only after this is dropped.
pub struct Work<K: Clone + Eq + Hash + Send + 'static> {
    queue: WorkQueue<K>,
    key: K,
    started: Instant,
}

impl<K: Clone + Eq + Hash + Send + 'static> Work<K> {
    /// Ends the work with an outcome.
    pub fn finish(self, outcome: Outcome) {
        match outcome {
            Outcome::Done => self.queue.forget(&self.key),
            Outcome::Retry => self.queue.add_rate_limited(self.key.clone()),
            Outcome::After(after) => {
                self.queue.forget(&self.key);
                self.queue.add_after(self.key.clone(), after);
            }
        }
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Deref for Work<K> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.key
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Drop for Work<K> {
    fn drop(&mut self) {
        let now = Instant::now();
        let shared = &self.queue.shared;
        let (again, depth, idle) = {
            let mut core = shared.lock();
            (core.done(&self.key, now), core.ready.len(), core.idle())
        };
        if let Some(metrics) = &shared.metrics {
            let worked = now.saturating_duration_since(self.started);
            metrics.worked.get_or_create(&shared.label).observe(worked.as_secs_f64());
            self.queue.set_depth(metrics, depth);
        }
        if again {
            shared.wake.notify_one();
        }
        if idle {
            shared.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests;
