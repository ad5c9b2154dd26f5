//! The entries of `metadata.managedFields`: reading, writing, their order and their number.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::fields::Set;
use crate::time;

/// The most managers with operation Update that one object keeps; the oldest are folded beyond that.
pub const MAX_UPDATE_MANAGERS: usize = 10;
/// The manager into which the oldest ones are folded.
pub const ANCIENT_CHANGES: &str = "ancient-changes";

/// How a manager came to own its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// By server-side apply: it states all it owns each time.
    Apply,
    /// By any other write: it owns what it changed.
    Update,
}

impl Operation {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// One `ManagedFieldsEntry`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Who.
    pub manager: String,
    /// How.
    pub operation: Operation,
    /// The version of the API in which the fields are named.
    pub api_version: String,
    /// When the set last changed, in whole seconds.
    pub time: Option<Timestamp>,
    /// The subresource written through; empty for the object itself.
    pub subresource: String,
    /// What it owns.
    pub fields: Set,
}

impl Entry {
    /// Whether both stand for the same manager. An applier keeps its identity over versions.
    pub(super) fn same_manager(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    fn decode(value: &Value) -> Option<Self> {
        let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
        Some(Self {
            manager: text("manager"),
            operation: match value["operation"].as_str()? {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            },
            api_version: text("apiVersion"),
            time: value["time"].as_str().and_then(time::parse),
            subresource: text("subresource"),
            fields: Set::parse(&value["fieldsV1"]).ok()?,
        })
    }

    fn encode(&self) -> Value {
        let mut entry = Map::new();
        let mut put = |field: &str, value: &str| {
            if !value.is_empty() {
                entry.insert(field.to_owned(), value.into());
            }
        };
        put("manager", &self.manager);
        put("operation", self.operation.as_str());
        put("apiVersion", &self.api_version);
        put("time", &self.time.map(time::rfc3339).unwrap_or_default());
        put("subresource", &self.subresource);
        put("fieldsType", "FieldsV1");
        entry.insert("fieldsV1".to_owned(), self.fields.to_value());
        Value::Object(entry)
    }
}

/// Reads the entries of an object. `None` when one of them cannot be read: nothing can be concluded from the rest.
pub fn decode(object: &Value) -> Option<Vec<Entry>> {
    match &object["metadata"]["managedFields"] {
        Value::Array(entries) => entries.iter().map(Entry::decode).collect(),
        _ => Some(Vec::new()),
    }
}

/// Whether a write asks to forget all ownership: `[]` or `[{}]`. Null is what a client says that does not know the
/// field, and counts as silence.
pub(super) fn is_reset(object: &Value) -> bool {
    match object["metadata"]["managedFields"].as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([only]) => only.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// Writes the entries into an object, in the order of the API: appliers first, then by time, manager and version.
pub(super) fn encode(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.fields.is_empty());
    entries.sort_by(|a, b| {
        let seconds = |e: &Entry| e.time.map(Timestamp::as_second);
        (a.operation, seconds(a), &a.manager, &a.api_version, &a.subresource).cmp(&(
            b.operation,
            seconds(b),
            &b.manager,
            &b.api_version,
            &b.subresource,
        ))
    });
    let Value::Object(object) = object else { return };
    let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(metadata) = metadata else { return };
    if entries.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), entries.iter().map(Entry::encode).collect());
    }
}

/// Takes the `managedFields` out of an object.
pub(super) fn take(object: &mut Value) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.remove("managedFields");
    }
}

/// A copy of the object without its `managedFields`.
pub(super) fn without(object: &Value) -> Value {
    let mut object = object.clone();
    take(&mut object);
    object
}

/// Folds the oldest updaters, those of one version together, until at most [`MAX_UPDATE_MANAGERS`] are left.
pub(super) fn cap(entries: &mut Vec<Entry>) {
    let mut updaters: Vec<Entry> = Vec::new();
    entries.retain(|e| {
        if e.operation == Operation::Update {
            updaters.push(e.clone());
        }
        e.operation != Operation::Update
    });
    updaters.sort_by(|a, b| (a.time, &a.manager).cmp(&(b.time, &b.manager)));
    let mut count = updaters.len();
    let mut kept: Vec<Entry> = Vec::new();
    for updater in updaters {
        let bucket = kept.iter_mut().find(|e| e.api_version == updater.api_version);
        match bucket {
            // The first of a version turns into the bucket as soon as a second one has to go.
            Some(bucket) if count > MAX_UPDATE_MANAGERS => {
                ANCIENT_CHANGES.clone_into(&mut bucket.manager);
                bucket.subresource.clear();
                bucket.fields = bucket.fields.union(&updater.fields);
                bucket.time = updater.time;
                count -= 1;
            }
            _ => kept.push(updater),
        }
    }
    entries.extend(kept);
}
