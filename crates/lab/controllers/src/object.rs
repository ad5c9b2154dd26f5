//! Objects as data: what every controller reads and writes of them.

use serde_json::{Map, Value};

/// Value at a path of field names.
pub(crate) fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, field| value.get(field)).filter(|value| !value.is_null())
}

/// Text at a path of field names, empty if there is none.
pub(crate) fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or_default()
}

/// Elements of the list at a path.
pub(crate) fn list<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// An annotation's text, empty if it is not set.
pub(crate) fn annotation<'a>(value: &'a Value, name: &str) -> &'a str {
    text(value, &["metadata", "annotations", name])
}

/// Whether deletion has begun.
pub(crate) fn is_terminating(value: &Value) -> bool {
    at(value, &["metadata", "deletionTimestamp"]).is_some()
}

/// Whether `metadata.finalizers` has this one.
pub(crate) fn has_finalizer(value: &Value, name: &str) -> bool {
    list(value, &["metadata", "finalizers"]).iter().any(|finalizer| finalizer.as_str() == Some(name))
}

/// Removes a finalizer; false if it was not there.
pub(crate) fn remove_finalizer(value: &mut Value, name: &str) -> bool {
    let Some(finalizers) = value.pointer_mut("/metadata/finalizers").and_then(Value::as_array_mut) else {
        return false;
    };
    let before = finalizers.len();
    finalizers.retain(|finalizer| finalizer.as_str() != Some(name));
    finalizers.len() < before
}

/// The map at a path, made where it is missing or something else.
pub(crate) fn section<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut here = map(value);
    for field in path {
        here = map(here.entry(*field).or_insert(Value::Null));
    }
    here
}

fn map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was just made an object")
}

/// Sets an annotation.
pub(crate) fn annotate(value: &mut Value, name: &str, text: &str) {
    section(value, &["metadata", "annotations"]).insert(name.to_owned(), text.into());
}
