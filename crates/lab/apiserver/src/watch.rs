//! Watches: changes of one resource in order, from a revision on, filtered by selectors, without a gap.
//!
//! A watch is a cursor into the store's history and is pulled by its client: what a slow client has not read takes no
//! memory here. One that falls behind the kept history gets an error event and has to list again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use outrigger_lab_store::{
    Batch, Error as StoreError, Event, EventKind, Lagged, Revision, Version, Watch as StoreWatch,
};
use ring::rand::SecureRandom;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::api::Api;
use crate::cache::Side;
use crate::kinds::KindInfo;
use crate::list::Selectors;
use crate::object::metadata;
use crate::request::ListOptions;
use crate::shape;
use crate::status::ApiError;
use crate::write::Target;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// It came into being, or into the selection.
    Added,
    /// It changed.
    Modified,
    /// It is gone, or out of the selection.
    Deleted,
    /// Nothing; the object carries only a resourceVersion up to which everything was sent.
    Bookmark,
    /// The watch failed; the object is a Status. Nothing follows.
    Error,
}

impl EventType {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
            Self::Error => "ERROR",
        }
    }
}

/// One event before it is rendered.
#[derive(Debug)]
pub(crate) enum Change {
    /// An object that was there when the watch began.
    Initial(Version),
    /// A change; the object is the one after it.
    New(EventType, Arc<Event>),
    /// The object left the selection: the one before the change, with the change's revision.
    Left(Arc<Event>),
    /// A bookmark; the flag marks the end of the initial objects.
    Bookmark(Revision, bool),
    /// The end.
    Error(ApiError),
}

/// An open watch.
pub(crate) struct Watch {
    pub(crate) api: Api,
    pub(crate) kind: Arc<KindInfo>,
    selectors: Selectors,
    /// `None` once it failed or was to end.
    source: Option<StoreWatch>,
    queue: VecDeque<Change>,
    bookmarks: Option<Instant>,
    deadline: Instant,
    /// Revision up to which everything was handed out.
    position: Revision,
    /// Signals that a custom kind may be gone, and the watch with it.
    kinds: Option<watch::Receiver<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.api.0.metrics.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Api {
    /// Opens a watch on the objects of a kind in `target.namespace` (all if empty), or on one if `target.name` is set.
    pub(crate) async fn watch(&self, target: &Target, options: &ListOptions) -> Result<Watch, ApiError> {
        options.check()?;
        let kind = &target.kind;
        let mut options = options.clone();
        if !target.name.is_empty() {
            let name = format!("metadata.name={}", target.name);
            options.field_selector = Some(options.field_selector.map_or(name.clone(), |text| format!("{text},{name}")));
        }
        let selectors = Selectors::parse(kind, &options)?;
        let namespace = (kind.namespaced && !target.namespace.is_empty()).then_some(target.namespace.as_str());
        let prefix = kind.key_prefix(namespace);
        let timeout = options.timeout.filter(|timeout| !timeout.is_zero()).unwrap_or_else(|| self.random_timeout());
        let now = Instant::now();
        let mut watch = Watch {
            api: self.clone(),
            kind: Arc::clone(kind),
            selectors,
            source: None,
            queue: VecDeque::new(),
            bookmarks: options.bookmarks.then(|| now + self.0.config.bookmark_interval),
            // A year is for ever, and safe to add to an instant.
            deadline: now + timeout.min(Duration::from_hours(365 * 24)),
            position: 0,
            kinds: kind.custom.is_some().then(|| self.0.kinds_changed.subscribe()),
        };
        self.0.metrics.watches.fetch_add(1, Ordering::Relaxed);

        let wants_initial = match options.send_initial_events {
            Some(wanted) => wanted,
            None => options.resource_version.is_none_or(|revision| revision == 0),
        };
        if let Some(revision) = options.resource_version.filter(|revision| *revision > 0)
            && let Err(error) = self.reach(revision).await
        {
            watch.queue.push_back(Change::Error(error));
            return Ok(watch);
        }
        let from = if wants_initial {
            let range = self.store().range(&prefix, None, usize::MAX, None)?;
            for version in range.versions {
                if watch.selected_version(&version)? {
                    watch.queue.push_back(Change::Initial(version));
                }
            }
            if options.send_initial_events == Some(true) {
                watch.queue.push_back(Change::Bookmark(range.revision, true));
            }
            range.revision
        } else {
            options.resource_version.filter(|revision| *revision > 0).unwrap_or_else(|| self.store().revision())
        };
        watch.position = from;
        match self.store().watch(&prefix, from) {
            Ok(source) => watch.source = Some(source),
            Err(StoreError::Compacted { requested, compacted }) => {
                watch.queue.push_back(Change::Error(too_old(requested, compacted)));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(watch)
    }

    fn random_timeout(&self) -> Duration {
        let mut bytes = [0_u8; 2];
        let share =
            if self.random().fill(&mut bytes).is_ok() { f64::from(u16::from_le_bytes(bytes)) / 65536.0 } else { 0.5 };
        self.0.config.watch_timeout.mul_f64(1.0 + share)
    }
}

fn too_old(requested: Revision, compacted: Revision) -> ApiError {
    ApiError::expired(format!("too old resource version: {requested} ({compacted})"))
}

impl Watch {
    /// The next change; `None` at the end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.queue.pop_front() {
                return Some(change);
            }
            let source = self.source.as_mut()?;
            let stopping = self.api.0.stopping.clone();
            let bookmark = self.bookmarks;
            tokio::select! {
                // What is due comes before what is new: on a kind that changes all the time there is always a batch, and a
                // watch of few of its objects would never end and never get the bookmark that it needs to resume.
                biased;
                () = stopping.cancelled() => self.source = None,
                () = sleep_until(self.deadline) => {
                    if self.bookmarks.is_some() {
                        self.push_bookmark();
                    }
                    self.source = None;
                }
                () = async { match bookmark { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {
                    self.push_bookmark();
                    self.bookmarks = Some(Instant::now() + self.api.0.config.bookmark_interval);
                }
                batch = source.next() => self.take(batch),
                // After the batch: the last instances' deletion is still to be told.
                () = async { match &mut self.kinds { Some(kinds) => drop(kinds.changed().await), None => std::future::pending().await } } => {
                    if !self.is_served() {
                        self.source = None;
                    }
                }
            }
        }
    }

    /// A change that is there already, without waiting.
    pub(crate) fn try_next(&mut self) -> Option<Change> {
        if self.queue.is_empty()
            && let Some(batch) = self.source.as_mut().map(StoreWatch::try_next)
        {
            match batch {
                Ok(None) => {}
                Ok(Some(batch)) => self.take(Ok(batch)),
                Err(lagged) => self.take(Err(lagged)),
            }
        }
        self.queue.pop_front()
    }

    /// Whether the kind is still there.
    fn is_served(&self) -> bool {
        let kind = &self.kind;
        self.api.registry().resource(&kind.group, &kind.version, &kind.plural).is_some()
    }

    fn push_bookmark(&mut self) {
        // Changes may have happened since the last look: they come first, and the next bookmark covers them.
        if let Some(source) = self.source.as_mut() {
            match source.try_next() {
                Ok(None) => self.position = self.position.max(source.revision()),
                Ok(Some(batch)) => self.take(Ok(batch)),
                Err(lagged) => return self.take(Err(lagged)),
            }
        }
        self.queue.push_back(Change::Bookmark(self.position, false));
    }

    fn take(&mut self, batch: Result<Batch, Lagged>) {
        match batch {
            Ok(batch) => {
                for event in batch.events {
                    match self.select(event) {
                        Ok(change) => self.queue.extend(change),
                        Err(error) => {
                            self.queue.push_back(Change::Error(error));
                            self.source = None;
                            return;
                        }
                    }
                }
                self.position = batch.revision;
            }
            Err(lagged) => {
                self.queue.push_back(Change::Error(too_old(lagged.position, lagged.compacted)));
                self.source = None;
            }
        }
    }

    fn named(&self, key: &str) -> bool {
        self.selectors.name.as_ref().is_none_or(|name| key.rsplit('/').next() == Some(name))
    }

    fn selected_version(&self, version: &Version) -> Result<bool, ApiError> {
        if !self.named(&version.key) {
            return Ok(false);
        }
        Ok(self.selectors.is_everything() || self.selectors.matches(&shape::parse(&self.kind, version)?))
    }

    fn select(&self, event: Arc<Event>) -> Result<Option<Change>, ApiError> {
        let plain = match (event.kind, &event.previous) {
            (EventKind::Delete, _) => EventType::Deleted,
            (EventKind::Put, None) => EventType::Added,
            (EventKind::Put, Some(_)) => EventType::Modified,
        };
        if !self.named(&event.key) {
            return Ok(None);
        }
        if self.selectors.is_everything() {
            return Ok(Some(Change::New(plain, event)));
        }
        let old = match &event.previous {
            Some(_) => self.selectors.matches(&*self.value(&event, Side::Old)?),
            None => false,
        };
        if event.kind == EventKind::Delete {
            return Ok(old.then(|| Change::New(EventType::Deleted, event)));
        }
        let new = self.selectors.matches(&*self.value(&event, Side::New)?);
        Ok(match (old, new) {
            (false, false) => None,
            (false, true) => Some(Change::New(EventType::Added, event)),
            (true, true) => Some(Change::New(EventType::Modified, event)),
            (true, false) => Some(Change::Left(event)),
        })
    }

    /// The decoded object of an event, shared with all watches of the same revision.
    pub(crate) fn value(&self, event: &Event, side: Side) -> Result<Arc<Value>, ApiError> {
        let bytes = match side {
            Side::New => &event.value,
            Side::Old => event.previous.as_ref().unwrap_or(&event.value),
        };
        self.api.0.events.value(event.revision, side, &self.kind.api_version, || shape::parse_bytes(&self.kind, bytes))
    }

    /// The type and decoded object of a change.
    pub(crate) fn decode(&self, change: &Change) -> Result<(EventType, Arc<Value>), ApiError> {
        Ok(match change {
            Change::Initial(version) => (EventType::Added, Arc::new(shape::parse(&self.kind, version)?)),
            Change::New(ty, event) => (*ty, self.value(event, Side::New)?),
            Change::Left(event) => {
                let mut object = (*self.value(event, Side::Old)?).clone();
                metadata(&mut object).insert("resourceVersion".to_owned(), Value::String(event.revision.to_string()));
                (EventType::Deleted, Arc::new(object))
            }
            Change::Bookmark(revision, end) => (EventType::Bookmark, Arc::new(self.bookmark(*revision, *end))),
            Change::Error(error) => (EventType::Error, Arc::new(error.to_status())),
        })
    }

    fn bookmark(&self, revision: Revision, end_of_initial: bool) -> Value {
        let mut object = json!({
            "kind": &*self.kind.kind,
            "apiVersion": &*self.kind.api_version,
            "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null},
        });
        if end_of_initial {
            metadata(&mut object).insert("annotations".to_owned(), json!({"k8s.io/initial-events-end": "true"}));
        }
        object
    }
}
