//! JSON Patch (RFC 6902) with the outcomes of the API server.

use json_patch::{PatchOperation, jsonptr::Pointer};
use serde_json::Value;

use crate::PatchError;

/// The most operations one patch may have.
pub const MAX_OPERATIONS: usize = 10_000;
/// The most bytes of JSON that all `copy` operations of one patch may duplicate; without a limit a few dozen copies of
/// the root would fill any memory.
pub const MAX_COPIED: usize = 3 * 1024 * 1024;

/// Applies the operations of `patch` to a copy of `live`, all or none.
///
/// # Errors
/// [`PatchError::TooLarge`] above [`MAX_OPERATIONS`]; [`PatchError::BadRequest`] when the document is no JSON patch;
/// [`PatchError::Invalid`] when a `test` fails, a path is missing, the copies exceed [`MAX_COPIED`], or the result is
/// no object.
pub fn apply(live: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Array(operations) = patch else {
        return Err(PatchError::BadRequest("a JSON patch must be a list of operations".into()));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let operations = operations
        .iter()
        .enumerate()
        .map(|(i, operation)| {
            <PatchOperation as serde::Deserialize>::deserialize(operation)
                .map_err(|e| PatchError::BadRequest(format!("operation {i} of the JSON patch is malformed: {e}")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut object = live.clone();
    let mut copied = 0_usize;
    for (i, operation) in operations.iter().enumerate() {
        if let PatchOperation::Copy(copy) = operation {
            copied = copied.saturating_add(size_at(&object, &copy.from));
            if copied > MAX_COPIED {
                return Err(PatchError::Invalid(format!(
                    "operation {i} of the JSON patch: the copies exceed {MAX_COPIED} bytes"
                )));
            }
        }
        json_patch::patch(&mut object, std::slice::from_ref(operation)).map_err(|e| {
            PatchError::Invalid(format!(
                "operation {i} of the JSON patch at {:?}: {}",
                operation.path().as_str(),
                e.kind
            ))
        })?;
    }
    if object.is_object() { Ok(object) } else { Err(PatchError::Invalid("the JSON patch leaves no object".into())) }
}

/// The length of the JSON text at `from`; a missing path counts nothing, the operation itself will say so.
fn size_at(object: &Value, from: &Pointer) -> usize {
    object.pointer(from.as_str()).map_or(0, |v| v.to_string().len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_six_operations() {
        let live = json!({"metadata": {"labels": {"a": "1"}}, "list": [1, 3]});
        let patch = json!([
            {"op": "test", "path": "/metadata/labels/a", "value": "1"},
            {"op": "add", "path": "/list/1", "value": 2},
            {"op": "add", "path": "/list/-", "value": 4},
            {"op": "replace", "path": "/list/0", "value": 0},
            {"op": "copy", "from": "/metadata/labels/a", "path": "/metadata/labels/b~1c"},
            {"op": "move", "from": "/metadata/labels/a", "path": "/metadata/labels/z"},
            {"op": "remove", "path": "/list/3"},
        ]);
        assert_eq!(
            apply(&live, &patch),
            Ok(json!({"metadata": {"labels": {"b/c": "1", "z": "1"}}, "list": [0, 2, 3]}))
        );
    }

    #[test]
    fn outcomes() {
        let live = json!({"a": {"b": 1}});
        for invalid in [
            json!([{"op": "test", "path": "/a/b", "value": 2}]),
            json!([{"op": "remove", "path": "/x"}]),
            json!([{"op": "replace", "path": "/a/x", "value": 1}]),
            json!([{"op": "add", "path": "/x/y", "value": 1}]),
            json!([{"op": "replace", "path": "", "value": 1}]),
        ] {
            assert!(matches!(apply(&live, &invalid), Err(PatchError::Invalid(_))), "{invalid}");
        }
        for malformed in [
            json!({"a": 1}),
            json!([1]),
            json!([{"op": "frob", "path": "/a"}]),
            json!([{"op": "add"}]),
            json!([{"op": "add", "path": "a", "value": 1}]),
        ] {
            assert!(matches!(apply(&live, &malformed), Err(PatchError::BadRequest(_))), "{malformed}");
        }
        let many = Value::Array(vec![json!({"op": "test", "path": "/a/b", "value": 1}); MAX_OPERATIONS + 1]);
        assert!(matches!(apply(&live, &many), Err(PatchError::TooLarge(_))));
    }

    #[test]
    fn copies_are_bounded() {
        let live = json!({"a": "x".repeat(1000), "b": {}});
        let patch: Vec<_> = (0..40).map(|i| json!({"op": "copy", "from": "", "path": format!("/b/{i}")})).collect();
        let error = apply(&live, &Value::Array(patch)).expect_err("too much");
        assert!(error.to_string().ends_with("the copies exceed 3145728 bytes"), "{error}");
    }
}
