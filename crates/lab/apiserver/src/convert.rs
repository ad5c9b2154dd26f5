//! From the stored version of an object to the served one and back.
//!
//! Custom kinds convert by strategy `None`: only `apiVersion` differs. The two views of events rename fields.

use serde_json::Value;

use crate::kinds::KindInfo;
use crate::object::fields;

/// Fields of core/v1 Event with their names in events.k8s.io/v1.
const EVENT: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn is_event_view(kind: &KindInfo) -> bool {
    &*kind.group == "events.k8s.io"
}

/// Rewrites a stored object as this kind serves it.
pub(crate) fn to_served(kind: &KindInfo, value: &mut Value) {
    if text_of(value) == Some(&kind.api_version) {
        return;
    }
    if is_event_view(kind) {
        rename(value, |(stored, served)| (stored, served));
    }
    fields(value).insert("apiVersion".to_owned(), Value::from(&*kind.api_version));
}

/// Rewrites an object of this kind as it is stored.
pub(crate) fn to_stored(kind: &KindInfo, value: &mut Value) {
    if kind.stored_as_served() {
        return;
    }
    if is_event_view(kind) {
        rename(value, |(stored, served)| (served, stored));
    }
    fields(value).insert("apiVersion".to_owned(), Value::from(&*kind.storage_api_version));
}

fn text_of(value: &Value) -> Option<&str> {
    value.get("apiVersion")?.as_str()
}

fn rename(value: &mut Value, order: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str)) {
    let map = fields(value);
    for (from, to) in EVENT.into_iter().map(order) {
        if let Some(field) = map.remove(from) {
            map.insert(to.to_owned(), field);
        }
    }
}
