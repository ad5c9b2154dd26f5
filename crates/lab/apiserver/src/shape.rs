//! What is known of the shape of objects, and objects brought into that shape.

use outrigger_lab_schema::{Definitions, Schema, builtin};
use outrigger_lab_store::Version;
use serde_json::Value;

use crate::convert;
use crate::kinds::KindInfo;
use crate::object::{self, fields, meta, metadata};
use crate::request::FieldValidation;
use crate::status::ApiError;
use crate::write::Target;

/// The schema of a kind with the definitions it refers to; `None` if nothing is known of its shape.
pub(crate) fn schema(kind: &KindInfo) -> Option<(&Schema, &'static Definitions)> {
    let builtin = builtin();
    match &kind.custom {
        Some(custom) => Some((&custom.schema, &builtin.definitions)),
        None => builtin.kind(&kind.group, &kind.version, &kind.kind).map(|known| (&known.schema, &builtin.definitions)),
    }
}

/// A stored object as its kind serves it. Custom kinds get their defaults on reading too, since their schema may
/// have changed since the object was written.
pub(crate) fn parse(kind: &KindInfo, version: &Version) -> Result<Value, ApiError> {
    parse_bytes(kind, &version.value)
}

/// As [`parse`], of the bytes alone.
pub(crate) fn parse_bytes(kind: &KindInfo, bytes: &[u8]) -> Result<Value, ApiError> {
    let mut value: Value = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::internal(format!("stored {} is damaged: {error}", kind.qualified())))?;
    convert::to_served(kind, &mut value);
    if kind.custom.is_some() {
        default(kind, &mut value);
    }
    Ok(value)
}

/// Whether stored bytes of this kind are what clients get.
pub(crate) fn verbatim(kind: &KindInfo) -> bool {
    kind.custom.is_none() && kind.stored_as_served()
}

/// The wanted object must be of the kind, name and namespace that the URL says.
pub(crate) fn check_identity(target: &Target, object: &mut Value, create: bool) -> Result<(), ApiError> {
    let kind = &target.kind;
    if !object.is_object() {
        return Err(ApiError::bad_request("the body must be an object"));
    }
    for (field, expected) in [("apiVersion", &kind.api_version), ("kind", &kind.kind)] {
        match object.get(field) {
            Some(Value::String(found)) if **found == **expected => {}
            None | Some(Value::Null) if kind.custom.is_none() => {
                fields(object).insert(field.to_owned(), Value::from(&**expected));
            }
            Some(Value::String(found)) if found.is_empty() && kind.custom.is_none() => {
                fields(object).insert(field.to_owned(), Value::from(&**expected));
            }
            None | Some(Value::Null) => {
                return Err(ApiError::bad_request(format!("Object '{field}' is missing in the body")));
            }
            Some(found) => {
                return Err(ApiError::bad_request(format!(
                    "the {field} in the data ({found}) does not match the expected one ({expected:?})"
                )));
            }
        }
    }
    if object.get("metadata").is_some_and(|metadata| !metadata.is_object() && !metadata.is_null()) {
        return Err(ApiError::bad_request("metadata: expected an object"));
    }
    for field in ["name", "namespace", "generateName", "resourceVersion", "uid"] {
        if object::at(object, &["metadata", field]).is_some_and(|value| !value.is_string() && !value.is_null()) {
            return Err(ApiError::bad_request(format!("metadata.{field}: expected a string")));
        }
    }
    let name = meta(object, "name");
    if !target.name.is_empty() && name != target.name {
        if !name.is_empty() || (create && !meta(object, "generateName").is_empty()) {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                target.name
            )));
        }
        metadata(object).insert("name".to_owned(), Value::String(target.name.clone()));
    }
    if kind.namespaced {
        let namespace = meta(object, "namespace");
        if namespace.is_empty() {
            metadata(object).insert("namespace".to_owned(), Value::String(target.namespace.clone()));
        } else if namespace != target.namespace {
            return Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request ({namespace:?}, {:?})",
                target.namespace
            )));
        }
    } else if !meta(object, "namespace").is_empty() {
        return Err(ApiError::bad_request("namespace is not allowed on this type"));
    } else {
        metadata(object).remove("namespace");
    }
    Ok(())
}

/// JSON types by schema (400), and unknown fields by the validation level.
pub(crate) fn check_fields(
    kind: &KindInfo,
    object: &mut Value,
    level: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    // Null means absent, except where the null is the user's own data.
    if kind.custom.is_some() {
        if let Some(metadata) = object.get_mut("metadata") {
            drop_nulls(metadata);
        }
    } else if &*kind.plural != "controllerrevisions" {
        drop_nulls(object);
    }
    let Some((schema, definitions)) = schema(kind) else { return Ok(()) };
    if kind.custom.is_none() {
        outrigger_lab_schema::check_types(schema, definitions, object).map_err(|error| {
            ApiError::bad_request(format!(
                "{} in version \"{}\" cannot be handled as a {}: {error}",
                kind.kind, kind.version, kind.kind
            ))
        })?;
    }
    let unknown = outrigger_lab_schema::prune(schema, definitions, object);
    match level {
        _ if unknown.is_empty() => {}
        FieldValidation::Ignore => {}
        FieldValidation::Warn => warnings.extend(unknown.iter().map(|path| format!("unknown field \"{path}\""))),
        FieldValidation::Strict => {
            let list: Vec<String> = unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
            return Err(ApiError::bad_request(format!(
                "{} in version \"{}\" cannot be handled as a {}: strict decoding error: {}",
                kind.kind,
                kind.version,
                kind.kind,
                list.join(", ")
            )));
        }
    }
    Ok(())
}

/// Fills in defaults.
pub(crate) fn default(kind: &KindInfo, object: &mut Value) {
    if let Some((schema, definitions)) = schema(kind) {
        outrigger_lab_schema::apply_defaults(schema, definitions, object);
    }
}

/// Removes null fields at every depth, except values of a schema that may themselves be null.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| !value.is_null() || matches!(key.as_str(), "default" | "example"));
            for (key, value) in map.iter_mut() {
                if !matches!(key.as_str(), "default" | "example" | "enum") {
                    drop_nulls(value);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
