//! Recent objects in decoded form, shared by all who need to look into the same revision.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use outrigger_lab_store::Revision;
use serde_json::Value;

/// How many revisions are remembered.
const CAPACITY: usize = 512;

/// What of an event is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    /// The object after the change.
    New,
    /// The object before it.
    Old,
}

/// Identifies a decoded object: revision of the change, side, served version.
type Key = (Revision, Side, Box<str>);

/// A bounded cache; the oldest revisions go first.
#[derive(Debug, Default)]
pub(crate) struct EventCache(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    values: BTreeMap<Key, Arc<Value>>,
    frames: HashMap<(Revision, u64), Bytes>,
    frame_order: std::collections::VecDeque<(Revision, u64)>,
}

impl EventCache {
    /// The decoded object, made by `make` the first time it is asked for.
    pub(crate) fn value<E>(
        &self,
        revision: Revision,
        side: Side,
        api_version: &str,
        make: impl FnOnce() -> Result<Value, E>,
    ) -> Result<Arc<Value>, E> {
        let key = (revision, side, api_version.into());
        if let Some(value) = self.lock().values.get(&key) {
            return Ok(Arc::clone(value));
        }
        // Made without the lock: two watchers may do the work twice, none waits for it.
        let value = Arc::new(make()?);
        let mut entries = self.lock();
        entries.values.insert(key, Arc::clone(&value));
        while entries.values.len() > CAPACITY {
            entries.values.pop_first();
        }
        Ok(value)
    }

    /// The bytes of one event in the form that `form` (a hash of everything that decides it) stands for.
    pub(crate) fn frame(&self, revision: Revision, form: u64) -> Option<Bytes> {
        self.lock().frames.get(&(revision, form)).cloned()
    }

    /// Keeps the bytes for the other watchers.
    pub(crate) fn remember_frame(&self, revision: Revision, form: u64, bytes: Bytes) {
        let key = (revision, form);
        let mut entries = self.lock();
        if entries.frames.insert(key, bytes).is_none() {
            entries.frame_order.push_back(key);
        }
        while entries.frame_order.len() > CAPACITY {
            if let Some(oldest) = entries.frame_order.pop_front() {
                entries.frames.remove(&oldest);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
