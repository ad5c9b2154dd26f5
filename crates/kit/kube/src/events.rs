//! Events on objects, in the form of client-go.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::rate::Bucket;

/// How many events may wait to be written; more are dropped, as they are advice and must not hold up the work.
const WAITING: usize = 1000;
/// How many different events are remembered, so that a repetition counts up instead of making a new one.
const REMEMBERED: usize = 4096;
/// How many events one object may have at once.
const BURST: u32 = 25;
/// How many more it gets in a second: one in five minutes.
const REFILL: f64 = 1.0 / 300.0;
/// How often a write is tried that got no answer.
const TRIES: u32 = 4;
/// The pause after the first try; it doubles.
const PAUSE: Duration = Duration::from_millis(500);

/// The type of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Something went as it should.
    Normal,
    /// Something needs attention.
    Warning,
}

impl EventType {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Publishes events for one component, in the background. Cheap to clone.
///
/// An event that repeats counts up the one that is there. An object that causes a flood of events gets 25, then one in five minutes.
#[derive(Debug, Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Message>,
}

#[derive(Debug)]
enum Message {
    Event(Box<Occurrence>),
    Flush(oneshot::Sender<()>),
}

/// Something that happened.
#[derive(Debug)]
struct Occurrence {
    object: Arc<ObjectReference>,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

impl Recorder {
    /// A recorder for `component`, for instance `external-provisioner`; `host` is the node it speaks for, if any.
    /// Must be called within a tokio runtime; it ends when the last clone is gone.
    pub fn new(client: Client, component: &str, host: Option<&str>) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        let writer = Writer {
            client,
            source: EventSource { component: Some(component.to_owned()), host: host.map(str::to_owned) },
            known: Known::default(),
            floods: HashMap::new(),
        };
        tokio::spawn(writer.run(receiver));
        Self { sender }
    }

    /// Publishes an event on `object`, which needs at least kind, name and, if it has them, namespace and uid.
    pub fn event(&self, object: &ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        let occurrence = Occurrence {
            object: Arc::new(object.clone()),
            kind,
            reason: reason.to_owned(),
            message: truncate(message.into()),
            at: Timestamp::now(),
        };
        if self.sender.try_send(Message::Event(Box::new(occurrence))).is_err() {
            tracing::warn!(reason, object = object.name.as_deref(), "too many events are waiting, one is dropped");
        }
    }

    /// Waits until the events published so far are written or given up.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.sender.send(Message::Flush(done)).await.is_ok() {
            // An error means that the writer is gone, with nothing left to write.
            let _ = wait.await;
        }
    }
}

/// The API refuses messages of more than 1024 bytes.
fn truncate(mut message: String) -> String {
    const LIMIT: usize = 1024;
    if message.len() > LIMIT {
        message.truncate(message.floor_char_boundary(LIMIT - 3));
        message.push_str("...");
    }
    message
}

/// What makes two events the same: the object, as uid and path, and what is said of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    object: ObjectKey,
    kind: EventType,
    reason: String,
    message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ObjectKey {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    field: String,
}

impl ObjectKey {
    fn of(object: &ObjectReference) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Self {
            kind: text(&object.kind),
            namespace: text(&object.namespace),
            name: text(&object.name),
            uid: text(&object.uid),
            field: text(&object.field_path),
        }
    }
}

/// An event as it was written last.
#[derive(Debug, Clone)]
struct Written {
    name: String,
    first: Timestamp,
    count: i32,
}

/// The events written, the oldest forgotten first.
#[derive(Default)]
struct Known {
    events: HashMap<Key, Written>,
    order: VecDeque<Key>,
}

impl Known {
    fn insert(&mut self, key: Key, written: Written) {
        if self.events.insert(key.clone(), written).is_none() {
            self.order.push_back(key);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.events.remove(&oldest);
            }
        }
    }
}

/// The background task.
struct Writer {
    client: Client,
    source: EventSource,
    known: Known,
    floods: HashMap<ObjectKey, Bucket>,
}

impl Writer {
    async fn run(mut self, mut receiver: mpsc::Receiver<Message>) {
        while let Some(message) = receiver.recv().await {
            match message {
                Message::Event(occurrence) => self.write(*occurrence).await,
                Message::Flush(done) => {
                    // Nobody waits any more if this fails.
                    let _ = done.send(());
                }
            }
        }
    }

    async fn write(&mut self, occurrence: Occurrence) {
        let key = Key {
            object: ObjectKey::of(&occurrence.object),
            kind: occurrence.kind,
            reason: occurrence.reason.clone(),
            message: occurrence.message.clone(),
        };
        let now = Instant::now();
        if self.floods.len() > REMEMBERED {
            self.floods.clear();
        }
        let bucket = self.floods.entry(key.object.clone()).or_insert_with(|| Bucket::new(REFILL, BURST, now));
        if !bucket.try_take(now) {
            tracing::debug!(reason = occurrence.reason, "an object has too many events, one is dropped");
            return;
        }
        let mut pause = PAUSE;
        for attempt in 1..=TRIES {
            match self.try_write(&key, &occurrence).await {
                Ok(()) => return,
                // The server's word is final: the namespace is going, or we lack the right.
                Err(error @ kube::Error::Api(_)) => {
                    tracing::warn!(reason = occurrence.reason, %error, "the API server refused an event");
                    return;
                }
                Err(error) if attempt == TRIES => {
                    tracing::warn!(reason = occurrence.reason, %error, "cannot write an event, it is dropped");
                }
                Err(_) => {
                    sleep(pause).await;
                    pause *= 2;
                }
            }
        }
    }

    async fn try_write(&mut self, key: &Key, occurrence: &Occurrence) -> Result<(), kube::Error> {
        let namespace = match key.object.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let seen = self.known.events.get(key).cloned();
        if let Some(seen) = &seen {
            let count = seen.count.saturating_add(1);
            let patch = json!({"count": count, "lastTimestamp": Time(occurrence.at)});
            match api.patch(&seen.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {
                    self.known.insert(key.clone(), Written { count, ..seen.clone() });
                    return Ok(());
                }
                // Events live for an hour; then the next one starts anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let (first, count) = seen.map_or((occurrence.at, 1), |seen| (seen.first, seen.count.saturating_add(1)));
        let name = format!("{}.{:x}", key.object.name, Timestamp::now().as_nanosecond());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: (*occurrence.object).clone(),
            reason: Some(occurrence.reason.clone()),
            message: Some(occurrence.message.clone()),
            type_: Some(occurrence.kind.name().to_owned()),
            source: Some(self.source.clone()),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone(),
            first_timestamp: Some(Time(first)),
            last_timestamp: Some(Time(occurrence.at)),
            count: Some(count),
            ..Event::default()
        };
        api.create(&PostParams::default(), &event).await?;
        self.known.insert(key.clone(), Written { name, first, count });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
