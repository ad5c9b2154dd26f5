//! The one watch of the store that wakes all controllers.
//!
//! The store has one order of changes over all kinds, so one cursor serves all controllers, and what they know of
//! different objects always fits together. Each keeps of the objects only what it needs.

use std::cell::OnceCell;
use std::sync::Arc;

use bytes::Bytes;
use outrigger_lab_store::{Error, EventKind, Revision, Store};
use serde_json::Value;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, watch};

use crate::path::{Path, ROOT};

/// One change of one object.
pub(crate) struct Change<'a> {
    pub key: &'a Arc<str>,
    pub path: Path<'a>,
    pub revision: Revision,
    /// False if the object was deleted.
    pub exists: bool,
    /// The object; of a deletion, its last state.
    pub bytes: &'a Bytes,
    parsed: OnceCell<Value>,
}

impl Change<'_> {
    /// The object as data.
    pub(crate) fn object(&self) -> &Value {
        self.parsed.get_or_init(|| parse(self.bytes))
    }
}

/// Stored bytes as data. They were serialised by the API server; if they are damaged nevertheless, nothing is known.
pub(crate) fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|error| {
        tracing::error!(%error, "a stored object is damaged");
        Value::Null
    })
}

/// A controller as far as it listens.
pub(crate) trait Follower: Send + Sync {
    /// Forgets everything: all present objects follow.
    fn reset(&self);
    /// Takes a change in and asks itself for work. Must not block.
    fn changed(&self, change: &Change<'_>);
}

/// Held for writing while the followers are reset and filled, for reading while a controller decides.
pub(crate) type Gate = Arc<RwLock<()>>;

/// Reads the store forever. `closed` is the gate, closed before any controller started; `progress` tells the revision
/// up to which everything was passed on.
pub(crate) async fn run(
    store: Store,
    followers: Vec<Arc<dyn Follower>>,
    gate: Gate,
    closed: OwnedRwLockWriteGuard<()>,
    progress: watch::Sender<Revision>,
) {
    let mut closed = Some(closed);
    loop {
        let guard = match closed.take() {
            Some(guard) => guard,
            None => Arc::clone(&gate).write_owned().await,
        };
        match fill(&store, &followers) {
            Ok(revision) => {
                drop(guard);
                progress.send_replace(revision);
                follow(&store, &followers, revision, &progress).await;
            }
            Err(error) => {
                // Only a compaction between the scan and the watch can do this: scan again.
                tracing::warn!(error = &error as &dyn std::error::Error, "the controllers' view could not be filled");
                closed = Some(guard);
                tokio::task::yield_now().await;
            }
        }
    }
}

fn fill(store: &Store, followers: &[Arc<dyn Follower>]) -> Result<Revision, Error> {
    let range = store.range(ROOT, None, 0, None)?;
    for follower in followers {
        follower.reset();
    }
    for version in &range.versions {
        pass(followers, &version.key, version.modified, true, &version.value);
    }
    Ok(range.revision)
}

/// Returns when the store's history went faster than the followers.
async fn follow(store: &Store, followers: &[Arc<dyn Follower>], from: Revision, progress: &watch::Sender<Revision>) {
    let mut watch = match store.watch(ROOT, from) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the controllers' view is too old");
            return;
        }
    };
    loop {
        let batch = match watch.next().await {
            Ok(batch) => batch,
            Err(lagged) => {
                tracing::warn!(%lagged, "the controllers start over");
                return;
            }
        };
        for event in &batch.events {
            pass(followers, &event.key, event.revision, event.kind == EventKind::Put, &event.value);
        }
        progress.send_replace(batch.revision);
    }
}

fn pass(followers: &[Arc<dyn Follower>], key: &Arc<str>, revision: Revision, exists: bool, bytes: &Bytes) {
    let Some(path) = Path::parse(key) else { return };
    let change = Change { key, path, revision, exists, bytes, parsed: OnceCell::new() };
    for follower in followers {
        follower.changed(&change);
    }
}
