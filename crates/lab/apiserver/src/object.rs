//! Objects as data: access to the metadata that every kind shares, and the bytes that are stored.

use std::sync::LazyLock;

use bytes::Bytes;
use outrigger_lab_store::Revision;
use serde_json::{Map, Value};
use uuid::Uuid;

/// Text at a path of field names, empty if there is none.
pub(crate) fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or_default()
}

/// Value at a path of field names.
pub(crate) fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, field| value.get(field))
}

/// Text of a metadata field.
pub(crate) fn meta<'a>(value: &'a Value, field: &str) -> &'a str {
    text(value, &["metadata", field])
}

/// The object as a map; anything else becomes an empty one.
pub(crate) fn fields(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was just made an object")
}

/// A field as a map, made if absent or of another type.
pub(crate) fn section<'a>(value: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    fields(fields(value).entry(field).or_insert_with(|| Value::Object(Map::new())))
}

/// `metadata` as a map.
pub(crate) fn metadata(value: &mut Value) -> &mut Map<String, Value> {
    section(value, "metadata")
}

/// Sets or removes a field of `map`.
pub(crate) fn put(map: &mut Map<String, Value>, field: &str, value: Option<Value>) {
    match value {
        Some(value) => {
            map.insert(field.to_owned(), value);
        }
        None => {
            map.remove(field);
        }
    }
}

/// Whether deletion has begun.
pub(crate) fn is_terminating(value: &Value) -> bool {
    at(value, &["metadata", "deletionTimestamp"]).is_some_and(|time| !time.is_null())
}

/// `metadata.finalizers`.
pub(crate) fn finalizers(value: &Value) -> Vec<&str> {
    at(value, &["metadata", "finalizers"])
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

/// Adds a finalizer if it is not there; tells whether it was added.
pub(crate) fn add_finalizer(value: &mut Value, name: &str) -> bool {
    if finalizers(value).contains(&name) {
        return false;
    }
    let list = metadata(value).entry("finalizers").or_insert_with(|| Value::Array(Vec::new()));
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    list.as_array_mut().expect("it was just made an array").push(Value::String(name.to_owned()));
    true
}

/// Removes a finalizer; an empty list goes too.
pub(crate) fn remove_finalizer(value: &mut Value, name: &str) {
    let metadata = metadata(value);
    if let Some(list) = metadata.get_mut("finalizers").and_then(Value::as_array_mut) {
        list.retain(|finalizer| finalizer.as_str() != Some(name));
        if list.is_empty() {
            metadata.remove("finalizers");
        }
    }
}

/// An annotation's text.
pub(crate) fn annotation<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    at(value, &["metadata", "annotations"])?.get(name)?.as_str()
}

/// RFC 3339 with whole seconds, as `metav1.Time`.
pub(crate) use outrigger_lab_machinery::time::rfc3339 as time;

/// Bytes of an object in which only the resourceVersion is open: it is known under the store's lock only, where
/// nothing slow may happen.
pub(crate) struct Sealed {
    head: Vec<u8>,
    tail: Vec<u8>,
}

/// Stands for the resourceVersion until it is known. It contains a number that nobody outside can guess, hence it
/// cannot stand anywhere else in an object.
static PLACEHOLDER: LazyLock<String> = LazyLock::new(|| format!("\"rv-{}\"", Uuid::new_v4().simple()));

impl Sealed {
    /// Serialises an object.
    pub(crate) fn new(value: &mut Value) -> Self {
        let marker = PLACEHOLDER.trim_matches('"').to_owned();
        metadata(value).insert("resourceVersion".to_owned(), Value::String(marker));
        let mut head = to_bytes(value);
        let at = find(&head, PLACEHOLDER.as_bytes()).unwrap_or(head.len());
        let tail = head.split_off((at + PLACEHOLDER.len()).min(head.len()));
        head.truncate(at);
        Self { head, tail }
    }

    /// Length of the final bytes, give or take the digits of the revision.
    pub(crate) fn len(&self) -> usize {
        self.head.len() + self.tail.len() + 12
    }

    /// The final bytes.
    pub(crate) fn bytes(&self, revision: Revision) -> Bytes {
        let mut out = Vec::with_capacity(self.head.len() + self.tail.len() + 24);
        out.extend_from_slice(&self.head);
        out.push(b'"');
        out.extend_from_slice(revision.to_string().as_bytes());
        out.push(b'"');
        out.extend_from_slice(&self.tail);
        Bytes::from(out)
    }
}

/// Position of `needle`.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(offset) = haystack.get(from..)?.iter().position(|byte| *byte == first) {
        let at = from + offset;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// JSON text of a value.
pub(crate) fn to_bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("a JSON value always serialises")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sealed_bytes_differ_in_the_revision_only() {
        let mut value = json!({"kind": "ConfigMap", "metadata": {"name": "a", "uid": "x"}, "data": {"k": "\"rv-"}});
        let sealed = Sealed::new(&mut value);
        let parsed: Value = serde_json::from_slice(&sealed.bytes(42)).expect("JSON");
        assert_eq!(parsed["metadata"]["resourceVersion"], "42");
        assert_eq!(parsed["data"]["k"], "\"rv-");
    }

    #[test]
    fn finalizers_are_a_set() {
        let mut value = json!({});
        assert!(add_finalizer(&mut value, "a"));
        assert!(!add_finalizer(&mut value, "a"));
        remove_finalizer(&mut value, "a");
        assert_eq!(value, json!({"metadata": {}}));
    }
}
