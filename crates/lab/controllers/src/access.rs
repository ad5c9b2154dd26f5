//! Reading the store and writing through the API.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use outrigger_lab_apiserver::kinds::{KindInfo, Propagation};
use outrigger_lab_apiserver::{ApiError, Client, DeleteOptions, Resource, WriteOptions};
use outrigger_lab_store::{Revision, Store};
use serde_json::Value;
use tokio::sync::watch;

use crate::Clock;
use crate::events::{Note, Recorder};
use crate::feed::parse;
use crate::object::{section, text};
use crate::path::Path;
use crate::queue::Activity;

/// Longest wait for the controllers' view to show what somebody else wrote.
const CATCH_UP: Duration = Duration::from_secs(1);

/// A write that did not happen.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The object, or the kind or namespace it would be in, does not exist (any more).
    Gone,
    /// It is not as it was when the decision was made.
    Conflict,
    /// Anything else.
    Refused(Box<ApiError>),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("object is gone"),
            Self::Conflict => f.write_str("object has changed"),
            Self::Refused(error) => write!(f, "{error}"),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let terminating = error.causes.iter().any(|cause| cause.reason == "NamespaceTerminating");
        match error.reason {
            "NotFound" => Self::Gone,
            _ if terminating => Self::Gone,
            // Somebody else created what was missing.
            "Conflict" | "AlreadyExists" => Self::Conflict,
            _ => Self::Refused(Box::new(error)),
        }
    }
}

/// The part of an object that an update writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All but status.
    Main,
    /// Status only.
    Status,
    /// The finalizers in a namespace's spec.
    Finalize,
}

/// What controllers read and write with.
pub(crate) struct Access {
    client: Client,
    store: Store,
    activity: Arc<Activity>,
    progress: watch::Receiver<Revision>,
    recorder: Recorder,
    clock: Clock,
}

impl Access {
    pub(crate) fn new(
        client: Client,
        store: Store,
        activity: Arc<Activity>,
        progress: watch::Receiver<Revision>,
        clock: Clock,
    ) -> Self {
        Self { client, store, activity, progress, recorder: Recorder::default(), clock }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// An object as it is now, and its revision.
    pub(crate) fn read(&self, path: &Path<'_>) -> Option<(Value, Revision)> {
        let version = self.store.get(&path.key())?;
        Some((parse(&version.value), version.modified))
    }

    /// Whether the server has this kind.
    pub(crate) fn serves(&self, api_version: &str, kind: &str) -> bool {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        self.client.api().registry().kind(group, version, kind).is_some()
    }

    /// The kind at a path, in the version that the object is in if possible.
    fn kind(&self, path: &Path<'_>, api_version: &str) -> Result<Arc<KindInfo>, Failure> {
        let registry = self.client.api().registry();
        let of_path = |kind: &&Arc<KindInfo>| {
            let mut parts = kind.prefix.trim_end_matches('/').rsplit('/');
            parts.next() == Some(path.plural) && parts.next() == Some(path.group)
        };
        let same = registry.kinds().filter(of_path).find(|kind| &*kind.api_version == api_version);
        same.or_else(|| registry.kinds().find(of_path)).cloned().ok_or(Failure::Gone)
    }

    pub(crate) async fn create(&self, path: &Path<'_>, object: Value) -> Result<Value, Failure> {
        let kind = self.kind(path, text(&object, &["apiVersion"]))?;
        self.activity.wrote();
        Ok(self.client.create(&resource(&kind), path.namespace, object, &WriteOptions::default()).await?)
    }

    /// Changes an object, if its revision is still `known`. Returns its new state and revision. Without a difference
    /// nothing is written.
    pub(crate) async fn edit(
        &self,
        path: &Path<'_>,
        known: Revision,
        part: Part,
        edit: impl FnOnce(&mut Value),
    ) -> Result<(Value, Revision), Failure> {
        let (mut object, revision) = self.read(path).ok_or(Failure::Gone)?;
        if revision != known {
            self.catch_up(revision).await;
            return Err(Failure::Conflict);
        }
        let before = object.clone();
        edit(&mut object);
        if object == before {
            return Ok((object, revision));
        }
        let kind = self.kind(path, text(&object, &["apiVersion"]))?;
        section(&mut object, &[]).insert("apiVersion".to_owned(), (*kind.api_version).into());
        let options = WriteOptions::default();
        self.activity.wrote();
        let written = match part {
            Part::Main => self.client.update(&resource(&kind), object, &options).await?,
            Part::Status => self.client.update_status(&resource(&kind), object, &options).await?,
            Part::Finalize => self.client.finalize(object).await?,
        };
        let revision = text(&written, &["metadata", "resourceVersion"]).parse().unwrap_or(known);
        Ok((written, revision))
    }

    /// Deletes exactly this incarnation of an object, and with `known`, only in this state.
    pub(crate) async fn delete(
        &self,
        path: &Path<'_>,
        object: &Value,
        known: Option<Revision>,
        propagation: Propagation,
    ) -> Result<(), Failure> {
        let kind = self.kind(path, text(object, &["apiVersion"]))?;
        let options = DeleteOptions {
            uid: Some(text(object, &["metadata", "uid"]).to_owned()),
            resource_version: known.map(|revision| revision.to_string()),
            propagation: Some(propagation),
            ..DeleteOptions::default()
        };
        self.activity.wrote();
        self.client.delete(&resource(&kind), path.namespace, path.name, &options).await?;
        Ok(())
    }

    /// Waits until the controllers know of `revision`.
    pub(crate) async fn catch_up(&self, revision: Revision) {
        let mut progress = self.progress.clone();
        let caught_up = progress.wait_for(|known| *known >= revision);
        // A controller that waits holds the feed up only if that starts over: then the wait ends by itself.
        let _ = tokio::time::timeout(CATCH_UP, caught_up).await;
    }

    /// Makes an event about an object, given as `involvedObject`. Events are a courtesy: failures are only logged.
    pub(crate) async fn tell(&self, about: Value, note: Note<'_>) {
        let uid = text(&about, &["uid"]).to_owned();
        let Some(event) = self.recorder.event(about, note, self.now()) else { return };
        let namespace = text(&event, &["metadata", "namespace"]).to_owned();
        let name = text(&event, &["metadata", "name"]).to_owned();
        if let Err(failure) = self.create(&Path::core("events", &namespace, &name), event).await {
            tracing::debug!(%failure, reason = note.reason, "event could not be written");
            self.recorder.forget(&uid, note);
        }
    }
}

fn resource(kind: &KindInfo) -> Resource {
    Resource::new(&*kind.group, &*kind.version, &*kind.plural)
}
