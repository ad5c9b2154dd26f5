//! Small pieces that many kinds' cells are made of.

use jiff::Timestamp;
use serde_json::Value;

use crate::{duration, selector::Label};

/// What is shown where there is nothing.
pub(super) const NONE: &str = "<none>";
/// What is shown for an optional field that is not set.
pub(super) const UNSET: &str = "<unset>";
/// What is shown where a value should be and is not.
pub(super) const UNKNOWN: &str = "<unknown>";

/// `metadata.name`.
pub(super) fn name(object: &Value) -> Value {
    text(&object["metadata"]["name"]).into()
}

/// The age of the object.
pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    since(&object["metadata"]["creationTimestamp"], now)
}

/// The age of a stamp.
pub(super) fn since(stamp: &Value, now: Timestamp) -> Value {
    duration::age(stamp.as_str(), now).into()
}

/// A string field; absent is empty.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A string field, or `otherwise` where it is absent or empty.
pub(super) fn text_or<'v>(value: &'v Value, otherwise: &'v str) -> &'v str {
    value.as_str().filter(|s| !s.is_empty()).unwrap_or(otherwise)
}

/// A number; absent is 0.
pub(super) fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

/// A flag; absent is false.
pub(super) fn flag(value: &Value) -> bool {
    value.as_bool().unwrap_or_default()
}

/// The elements of a list; absent is empty.
pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The number of elements or fields.
pub(super) fn len(value: &Value) -> usize {
    match value {
        Value::Array(list) => list.len(),
        Value::Object(object) => object.len(),
        _ => 0,
    }
}

/// Strings joined by a comma, `<none>` when there is none.
pub(super) fn joined<'v>(parts: impl IntoIterator<Item = &'v str>) -> String {
    let joined = parts.into_iter().collect::<Vec<_>>().join(",");
    if joined.is_empty() { NONE.to_owned() } else { joined }
}

/// The first three of a list, and how many more there are.
pub(super) fn first_three(parts: &[String], empty: &str) -> String {
    match parts.len() {
        0 => empty.to_owned(),
        1..=3 => parts.join(","),
        n => format!("{} + {} more...", parts[..3].join(","), n - 3),
    }
}

/// Names and images of the containers of a pod template, as two cells.
pub(super) fn containers(template: &Value) -> [Value; 2] {
    let column = |field: &str| {
        list(&template["spec"]["containers"]).iter().map(|c| text(&c[field])).collect::<Vec<_>>().join(",").into()
    };
    [column("name"), column("image")]
}

/// A `LabelSelector` object as text.
pub(super) fn label_selector(selector: &Value) -> String {
    match Label::from_object(selector) {
        _ if selector.is_null() => NONE.to_owned(),
        Ok(selector) if selector.is_everything() => NONE.to_owned(),
        Ok(selector) => selector.to_string(),
        Err(_) => "<error>".to_owned(),
    }
}

/// A map of labels as text, `<none>` when empty.
pub(super) fn labels(map: &Value) -> String {
    let pairs: Vec<String> = map.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", text(v))).collect();
    joined(pairs.iter().map(String::as_str))
}

/// Access modes in their short forms, duplicates removed, in the order of the API.
pub(super) fn access_modes(modes: &Value) -> String {
    let present = |mode: &str| list(modes).iter().any(|m| m.as_str() == Some(mode));
    [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")]
        .into_iter()
        .filter(|(mode, _)| present(mode))
        .map(|(_, short)| short)
        .collect::<Vec<_>>()
        .join(",")
}

/// The status of a condition, if the object has it.
pub(super) fn condition<'v>(object: &'v Value, ty: &str) -> Option<&'v str> {
    list(&object["status"]["conditions"]).iter().find(|c| c["type"].as_str() == Some(ty)).map(|c| text(&c["status"]))
}

/// A quantity in canonical form (a JSON number counts as one), or the empty string.
pub(super) fn quantity(value: &Value) -> String {
    let raw = super::plain(value);
    if value.is_null() {
        String::new()
    } else {
        raw.parse::<crate::quantity::Quantity>().map_or(raw, |q| q.to_string())
    }
}

/// Any scalar as text; absent is `otherwise`.
pub(super) fn scalar_or(value: &Value, otherwise: &str) -> String {
    if value.is_null() { otherwise.to_owned() } else { super::plain(value) }
}
