//! Pruning, type checks, defaults and validation of a value by its schema.

use serde_json::Value;

use crate::error::{FieldError, TypeError};
use crate::types::{Definitions, Schema};

/// Removes every field that the schema does not know and returns their paths, such as `spec.template.foo`, sorted.
/// Fields below `preserve_unknown` stay.
pub fn prune(schema: &Schema, definitions: &Definitions, value: &mut Value) -> Vec<String> {
    let _ = (schema, definitions, value);
    Vec::new()
}

/// Checks that each value has the JSON type that the schema demands; `null` is taken for absent.
pub fn check_types(schema: &Schema, definitions: &Definitions, value: &Value) -> Result<(), TypeError> {
    let _ = (schema, definitions, value);
    Ok(())
}

/// Gives absent fields their defaults, from the root down, including the built-in kinds' conditional ones.
pub fn apply_defaults(schema: &Schema, definitions: &Definitions, value: &mut Value) {
    let _ = (schema, definitions, value);
}

/// Checks the rules of the schema. With `old`, parts that did not change since are not complained about (ratcheting).
pub fn validate(schema: &Schema, definitions: &Definitions, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let _ = (schema, definitions, value, old);
    Vec::new()
}
