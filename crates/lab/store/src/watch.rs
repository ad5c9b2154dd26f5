//! Watching: a cursor into the shared history.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::state::topic;
use crate::{Event, Lagged, Revision, Store};

/// Most events in a batch, so that a watcher far behind does not hold the read lock for long.
const BATCH: usize = 1024;

/// Changes in revision order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The changes under the watched prefix; at least one.
    pub events: Vec<Arc<Event>>,
    /// Everything up to this revision has been considered: a bookmark.
    pub revision: Revision,
}

/// A cursor into the store's history, restricted to keys with one prefix. It buffers nothing: a slow watcher costs
/// no memory, and one that falls behind the kept history is told so. It keeps the store open.
pub struct Watch {
    store: Store,
    prefix: Box<str>,
    wake: Arc<Notify>,
    position: Revision,
}

impl Watch {
    pub(crate) fn new(store: Store, prefix: &str, wake: Arc<Notify>, position: Revision) -> Self {
        Self { store, prefix: prefix.into(), wake, position }
    }

    /// Waits for the next changes. Cancel-safe: a batch is either returned or not consumed.
    ///
    /// A watcher of a prefix in which nothing happens is not woken by changes elsewhere; it asks
    /// [`revision`](Self::revision) when it wants a bookmark.
    pub async fn next(&mut self) -> Result<Batch, Lagged> {
        loop {
            let wake = Arc::clone(&self.wake);
            // Registered before looking, so that a change in between is not missed.
            let changed = wake.notified();
            if let Some(batch) = self.try_next()? {
                return Ok(batch);
            }
            changed.await;
        }
    }

    /// The next changes if there are any now.
    pub fn try_next(&mut self) -> Result<Option<Batch>, Lagged> {
        let mut events = Vec::new();
        self.position = self.store.collect(topic(&self.prefix), &self.prefix, self.position, BATCH, &mut events)?;
        Ok((!events.is_empty()).then_some(Batch { events, revision: self.position }))
    }

    /// The revision up to which everything under the prefix has been delivered. It moves on with the store as long
    /// as nothing under the prefix changes, without a batch being delivered for it.
    pub fn revision(&mut self) -> Revision {
        let mut none = Vec::new();
        if let Ok(position) = self.store.collect(topic(&self.prefix), &self.prefix, self.position, 0, &mut none) {
            self.position = position;
        }
        self.position
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.store.unsubscribe(topic(&self.prefix));
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("prefix", &self.prefix).field("position", &self.position).finish()
    }
}
