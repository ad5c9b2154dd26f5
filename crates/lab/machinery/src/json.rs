//! JSON Patch (RFC 6902) with the outcomes of the API server.

use json_patch::{PatchOperation, jsonptr::Pointer};
use serde_json::Value;

use crate::PatchError;

/// The most operations one patch may have.
pub const MAX_OPERATIONS: usize = 10_000;
/// The most bytes of JSON that all `copy` operations of one patch may duplicate; without a limit a few dozen copies of
/// the root would fill any memory.
pub const MAX_COPIED: usize = 3 * 1024 * 1024;

/// How deeply the result may nest. An object that nests deeper could be stored but never be read again.
pub const MAX_DEPTH: usize = 127;
/// How often the nesting is counted exactly within one patch, before the patch is taken for an attack.
const MAX_COUNTS: usize = 64;

/// Applies the operations of `patch` to a copy of `live`, all or none.
///
/// # Errors
/// [`PatchError::TooLarge`] above [`MAX_OPERATIONS`]; [`PatchError::BadRequest`] when the document is no JSON patch;
/// [`PatchError::Invalid`] when a `test` fails, a path is missing, the copies exceed [`MAX_COPIED`], the result
/// nests deeper than [`MAX_DEPTH`], or it is no object.
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
    let mut nesting = Nesting { bound: depth(live), counts: 0 };
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
        nesting
            .after(operation, &object)
            .map_err(|e| PatchError::Invalid(format!("operation {i} of the JSON patch: {e}")))?;
    }
    if object.is_object() { Ok(object) } else { Err(PatchError::Invalid("the JSON patch leaves no object".into())) }
}

/// An upper bound of how deeply the object nests, kept without looking at it as long as possible.
struct Nesting {
    bound: usize,
    counts: usize,
}

impl Nesting {
    /// Takes one applied operation into account, and counts when the bound no longer proves anything.
    fn after(&mut self, operation: &PatchOperation, object: &Value) -> Result<(), String> {
        let moved = |from: &Pointer| self.bound.saturating_sub(from.count());
        let value = match operation {
            PatchOperation::Add(add) => depth(&add.value),
            PatchOperation::Replace(replace) => depth(&replace.value),
            PatchOperation::Copy(copy) => moved(&copy.from),
            PatchOperation::Move(moving) => moved(&moving.from),
            PatchOperation::Remove(_) | PatchOperation::Test(_) => 0,
        };
        self.bound = self.bound.max(operation.path().count() + value);
        if self.bound > MAX_DEPTH {
            self.bound = depth(object);
            self.counts += 1;
        }
        if self.bound > MAX_DEPTH || self.counts > MAX_COUNTS {
            return Err(format!("the object would nest deeper than {MAX_DEPTH} levels"));
        }
        Ok(())
    }
}

/// How many lists and objects enclose the innermost value.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or_default(),
        Value::Object(object) => 1 + object.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
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
    fn nesting_is_bounded() {
        // Each move wraps the object's only field in another one.
        let wrap: Vec<Value> = (0..9_999)
            .map(|i| json!({"op": "move", "from": format!("/{i}"), "path": format!("/{}/x", i + 1)}))
            .collect();
        let with_places = json!({"0": {}});
        let mut operations = Vec::new();
        for (i, operation) in wrap.into_iter().take(4_000).enumerate() {
            operations.push(json!({"op": "add", "path": format!("/{}", i + 1), "value": {}}));
            operations.push(operation);
        }
        let error = apply(&with_places, &Value::Array(operations)).expect_err("too deep");
        assert!(error.to_string().ends_with("the object would nest deeper than 127 levels"), "{error}");
        // Moving to and fro is no nesting.
        let moves: Vec<Value> = (0..500)
            .map(|i| if i % 2 == 0 { ("/a/b", "/c/d") } else { ("/c/d", "/a/b") })
            .map(|(from, path)| json!({"op": "move", "from": from, "path": path}))
            .collect();
        let live = json!({"a": {"b": {"deep": [[[]]]}}, "c": {}});
        assert_eq!(apply(&live, &Value::Array(moves)), Ok(live));
    }

    #[test]
    fn copies_are_bounded() {
        let live = json!({"a": "x".repeat(1000), "b": {}});
        let patch: Vec<_> = (0..40).map(|i| json!({"op": "copy", "from": "", "path": format!("/b/{i}")})).collect();
        let error = apply(&live, &Value::Array(patch)).expect_err("too much");
        assert!(error.to_string().ends_with("the copies exceed 3145728 bytes"), "{error}");
    }
}
