//! Objects with a time to live (events) go by themselves.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_lab_store::{Expect, Revision, Version};
use serde_json::Value;
use tokio::time::Instant;

use crate::api::Api;
use crate::kinds::KindInfo;
use crate::object::Sealed;

#[derive(Debug)]
struct Entry {
    at: Instant,
    key: Arc<str>,
    modified: Revision,
}

/// Deadlines in order. All kinds that expire have the same time to live, so a queue is enough.
#[derive(Debug, Default)]
pub(crate) struct Expiry(Mutex<VecDeque<Entry>>);

impl Api {
    /// Notes the deadline of a version of an object that expires. A later version has a later one.
    pub(crate) fn expire_later(&self, kind: &KindInfo, version: &Version) {
        let Some(seconds) = kind.rules.ttl else { return };
        let at = Instant::now() + Duration::from_secs(seconds.into());
        let entry = Entry { at, key: Arc::clone(&version.key), modified: version.modified };
        self.0.expiry.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(entry);
    }

    /// After a start, what is there gets its full time again.
    pub(crate) fn adopt_expiring(&self) {
        let registry = self.registry();
        for kind in registry.kinds().filter(|kind| kind.rules.ttl.is_some() && kind.stored_as_served()) {
            if let Ok(range) = self.store().range(&kind.prefix, None, usize::MAX, None) {
                for version in &range.versions {
                    self.expire_later(kind, version);
                }
            }
        }
    }

    /// Removes what has expired by `now` and returns the next deadline.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        loop {
            let entry = {
                let mut queue = self.0.expiry.0.lock().unwrap_or_else(PoisonError::into_inner);
                match queue.front() {
                    Some(entry) if entry.at <= now => queue.pop_front()?,
                    next => return next.map(|entry| entry.at),
                }
            };
            let Some(version) = self.store().get(&entry.key).filter(|version| version.modified == entry.modified)
            else {
                continue;
            };
            let Ok(mut last) = serde_json::from_slice::<Value>(&version.value) else { continue };
            let sealed = Sealed::new(&mut last);
            // Whoever changes the object now renews it.
            let _ =
                self.store().delete(&entry.key, Expect::Modified(entry.modified), |revision| sealed.bytes(revision));
        }
    }

    /// Runs until the server stops.
    pub(crate) async fn expire_forever(self) {
        loop {
            let next = self.expire(Instant::now());
            // Nothing young expires sooner than its time to live, so an empty queue may sleep.
            let pause = next.map_or(Duration::from_mins(1), |at| at.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = tokio::time::sleep(pause.min(Duration::from_mins(1))) => {}
                () = self.0.stopping.cancelled() => return,
            }
        }
    }
}
