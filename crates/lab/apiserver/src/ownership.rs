//! Field ownership: `managedFields` of plain writes and of server-side apply.

use jiff::Timestamp;
use outrigger_lab_machinery::managed::{self, ApplyError, Set, Write};
use serde_json::Value;

use crate::kinds::KindInfo;
use crate::part::Part;
use crate::request::WriteOptions;
use crate::shape;
use crate::status::ApiError;
use crate::write::{Actor, Target};

/// Who has recorded the ownership of a write's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// Nobody yet: what the write changes becomes the writer's.
    Open,
    /// Server-side apply did.
    Recorded,
}

/// The fields that a write to this part of an object ignores.
fn reset<'a>(kind: &KindInfo, part: Part, objects: impl IntoIterator<Item = &'a Value>) -> Set {
    match part {
        Part::Main if kind.status => Set::of_fields([&["status"][..]]),
        Part::Main | Part::Pointer(_) => Set::new(),
        Part::Status => {
            let keys: Vec<&str> = objects
                .into_iter()
                .filter_map(Value::as_object)
                .flat_map(|map| map.keys().map(String::as_str))
                .collect();
            let ignored = |key: &&str| match *key {
                "status" | "apiVersion" | "kind" => false,
                // Built-in kinds take labels and annotations through the status endpoint as well.
                "metadata" => kind.custom.is_some(),
                _ => true,
            };
            let paths: Vec<[&str; 1]> = keys.into_iter().filter(ignored).map(|key| [key]).collect();
            Set::of_fields(paths.iter().map(<[&str; 1]>::as_slice))
        }
    }
}

/// Brings `managedFields` up to date with a plain write.
pub(crate) fn update(
    kind: &KindInfo,
    old: Option<&Value>,
    new: &mut Value,
    actor: Actor<'_>,
    options: &WriteOptions,
    part: Part,
    now: Timestamp,
) {
    let Some((schema, definitions)) = shape::schema(kind) else { return };
    let reset = reset(kind, part, old.into_iter().chain([&*new]));
    let manager = managed::manager_name(options.field_manager.as_deref().unwrap_or_default(), actor.agent);
    let write = Write {
        schema,
        definitions,
        api_version: &kind.api_version,
        manager: &manager,
        subresource: part.subresource(),
        now,
        reset: &reset,
    };
    managed::update(old, new, &write);
}

/// The object that results from a manager applying a configuration.
pub(crate) fn apply(
    target: &Target,
    live: Option<&Value>,
    applied: &Value,
    options: &WriteOptions,
    part: Part,
    now: Timestamp,
) -> Result<Value, ApiError> {
    let kind = &target.kind;
    let (schema, definitions) = shape::schema(kind)
        .ok_or_else(|| ApiError::internal(format!("nothing is known of the shape of {}", kind.qualified())))?;
    let reset = reset(kind, part, live.into_iter().chain([applied]));
    let write = Write {
        schema,
        definitions,
        api_version: &kind.api_version,
        manager: options.field_manager.as_deref().unwrap_or_default(),
        subresource: part.subresource(),
        now,
        reset: &reset,
    };
    managed::apply(live, applied, options.force, &write).map_err(|error| match error {
        ApplyError::BadRequest(message) => ApiError::bad_request(message),
        ApplyError::Conflicts(conflicts) => {
            let message = ApplyError::Conflicts(conflicts.clone()).to_string();
            let error = ApiError::new(http::StatusCode::CONFLICT, "Conflict", message);
            conflicts
                .into_iter()
                .fold(error, |error, conflict| error.cause("FieldManagerConflict", conflict.field, conflict.message))
        }
    })
}
