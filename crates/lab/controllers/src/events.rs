//! Events as the field's controllers write them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::text;

/// Texts remembered so that they are not repeated.
const MEMORY: usize = 10_000;

/// What to tell about an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note<'a> {
    pub component: &'static str,
    pub warning: bool,
    pub reason: &'a str,
    pub message: &'a str,
}

/// Makes events, each text once for each object: a controller looks at an object whenever anything changes and would
/// repeat itself endlessly.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    told: Mutex<HashSet<(String, String)>>,
    counter: AtomicU64,
}

impl Recorder {
    /// The event to create, unless it was made before. `about` is the `involvedObject`.
    pub(crate) fn event(&self, about: Value, note: Note<'_>, now: Timestamp) -> Option<Value> {
        let text_of = |field: &str| text(&about, &[field]).to_owned();
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.len() >= MEMORY {
                told.clear();
            }
            if !told.insert((text_of("uid"), format!("{} {}", note.reason, note.message))) {
                return None;
            }
        }
        let namespace = match text_of("namespace") {
            namespace if namespace.is_empty() => "default".to_owned(),
            namespace => namespace,
        };
        // The counter keeps events of the same nanosecond apart.
        let unique = now.as_nanosecond() + i128::from(self.counter.fetch_add(1, Ordering::Relaxed));
        let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        Some(json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": format!("{}.{unique:x}", text_of("name")), "namespace": namespace},
            "involvedObject": about,
            "reason": note.reason,
            "message": note.message,
            "type": if note.warning { "Warning" } else { "Normal" },
            "source": {"component": note.component},
            "reportingComponent": note.component,
            "reportingInstance": "",
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        }))
    }

    /// Forgets that this was told, since it could not be written.
    pub(crate) fn forget(&self, uid: &str, note: Note<'_>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.remove(&(uid.to_owned(), format!("{} {}", note.reason, note.message)));
    }
}
