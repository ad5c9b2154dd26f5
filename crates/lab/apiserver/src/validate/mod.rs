//! Validation: metadata, schema, immutable fields, and the rules of single kinds.

pub(crate) mod core;
pub(crate) mod pod;
pub(crate) mod storage;
pub(crate) mod workload;

use outrigger_lab_machinery::names;
use outrigger_lab_schema::FieldError;
use serde_json::Value;

use crate::kinds::{KindInfo, NameRule};
use crate::object::{at, meta};
use crate::shape;
use crate::status::{ApiError, Cause};
use crate::write::Target;

/// How deeply a stored object may nest, `managedFields` included, which nest a few levels deeper than what they are
/// about. The JSON decoder stops at 127, here and in Rust clients, and a list or a table wraps objects in three more:
/// what is deeper could be stored but not be read, listed, or deleted.
pub(crate) const DEPTH_LIMIT: usize = 120;

/// Checks an object about to be written. `old` is the present one of an update.
pub(crate) fn object(kind: &KindInfo, target: &Target, new: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    if is_deeper(new, DEPTH_LIMIT) {
        return Err(ApiError::bad_request(format!(
            "{} \"{}\" nests deeper than {DEPTH_LIMIT} levels, the record of who owns its fields (metadata.managedFields) included",
            kind.qualified(),
            meta(new, "name")
        )));
    }
    let mut errors = Vec::new();
    metadata(kind, new, old, &mut errors);
    if let Some((schema, definitions)) = shape::schema(kind) {
        errors.extend(outrigger_lab_schema::validate(schema, definitions, new, old));
    }
    if let Some(old) = old {
        for path in kind.rules.immutable {
            let parts: Vec<&str> = path.split('.').collect();
            let (before, after) = (present(at(old, &parts)), present(at(new, &parts)));
            if before != after {
                errors.push(FieldError::invalid(*path, after.unwrap_or(&Value::Null), "field is immutable"));
            }
        }
    }
    if let Some(check) = kind.rules.check {
        check(new, old, &mut errors);
    }
    if errors.is_empty() {
        return Ok(());
    }
    let name = if target.name.is_empty() { meta(new, "name") } else { &target.name };
    Err(ApiError::invalid(&kind.group, &kind.kind, name, errors.into_iter().map(Cause::from).collect()))
}

/// Whether more than `levels` lists and objects enclose some value.
fn is_deeper(value: &Value, levels: usize) -> bool {
    let deeper = |child: &Value| is_deeper(child, levels.saturating_sub(1));
    match value {
        Value::Array(list) => levels == 0 || list.iter().any(deeper),
        Value::Object(map) => levels == 0 || map.values().any(deeper),
        _ => false,
    }
}

/// Null, empty and absent are the same to most rules.
fn present(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| match value {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    })
}

fn metadata(kind: &KindInfo, new: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    if old.is_none() {
        let name = meta(new, "name");
        let result = match kind.rules.name {
            NameRule::Subdomain => names::dns1123_subdomain(name),
            NameRule::Label => names::dns1123_label(name),
            NameRule::Label1035 => names::dns1035_label(name),
            NameRule::PathSegment => names::path_segment(name),
        };
        if let Err(error) = result {
            errors.push(FieldError::invalid("metadata.name", &Value::from(name), &error.to_string()));
        }
    }
    let unchanged = |field: &str| old.is_some_and(|old| at(old, &["metadata", field]) == at(new, &["metadata", field]));
    if !unchanged("labels") {
        labels(at(new, &["metadata", "labels"]), "metadata.labels", errors);
    }
    if !unchanged("annotations")
        && let Some(annotations) = at(new, &["metadata", "annotations"]).and_then(Value::as_object)
    {
        for key in annotations.keys() {
            // Keys of annotations may have capitals in the prefix.
            if let Err(error) = names::label_key(&key.to_lowercase()) {
                errors.push(FieldError::invalid(
                    "metadata.annotations",
                    &Value::from(key.as_str()),
                    &error.to_string(),
                ));
            }
        }
        let size = names::annotations_size(
            annotations.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default())),
        );
        if size > names::ANNOTATIONS_MAX {
            errors.push(FieldError::too_long("metadata.annotations", names::ANNOTATIONS_MAX as u64));
        }
    }
    if !unchanged("finalizers")
        && let Some(list) = at(new, &["metadata", "finalizers"]).and_then(Value::as_array)
    {
        for (index, finalizer) in list.iter().enumerate() {
            if let Err(error) = names::label_key(finalizer.as_str().unwrap_or_default()) {
                errors.push(FieldError::invalid(
                    format!("metadata.finalizers[{index}]"),
                    finalizer,
                    &error.to_string(),
                ));
            }
        }
        let has = |name: &str| list.iter().any(|finalizer| finalizer == name);
        if has("orphan") && has("foregroundDeletion") {
            errors.push(FieldError::invalid(
                "metadata.finalizers",
                &Value::Array(list.clone()),
                "finalizer orphan and foregroundDeletion cannot be both set",
            ));
        }
    }
    if !unchanged("ownerReferences")
        && let Some(list) = at(new, &["metadata", "ownerReferences"]).and_then(Value::as_array)
    {
        let mut controllers = 0;
        for (index, owner) in list.iter().enumerate() {
            let path = format!("metadata.ownerReferences[{index}]");
            for field in ["apiVersion", "kind", "name", "uid"] {
                if meta_text(owner, field).is_empty() {
                    errors.push(FieldError::invalid(
                        format!("{path}.{field}"),
                        &Value::from(""),
                        &format!("{field} must not be empty"),
                    ));
                }
            }
            controllers += usize::from(owner["controller"] == true);
        }
        if controllers > 1 {
            errors.push(FieldError::invalid(
                "metadata.ownerReferences",
                &Value::Array(list.clone()),
                "Only one reference can have Controller set to true",
            ));
        }
    }
    for field in ["generation"] {
        if at(new, &["metadata", field]).and_then(Value::as_i64).is_some_and(|number| number < 0) {
            errors.push(FieldError::invalid(
                format!("metadata.{field}"),
                &new["metadata"][field],
                "must be greater than or equal to 0",
            ));
        }
    }
}

fn meta_text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Checks a map of labels.
pub(crate) fn labels(map: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
    for (key, value) in map.and_then(Value::as_object).into_iter().flatten() {
        if let Err(error) = names::label_key(key) {
            errors.push(FieldError::invalid(path, &Value::from(key.as_str()), &error.to_string()));
        }
        if let Err(error) = names::label_value(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(path, value, &error.to_string()));
        }
    }
}

/// A missing or empty text at `path`.
pub(crate) fn require_text(object: &Value, path: &str, errors: &mut Vec<FieldError>) -> bool {
    let parts: Vec<&str> = path.split('.').collect();
    let missing = crate::object::text(object, &parts).is_empty();
    // A field that the schema already misses is not reported twice.
    if missing && !errors.iter().any(|error| error.field == path) {
        errors.push(FieldError::required(path, ""));
    }
    !missing
}
