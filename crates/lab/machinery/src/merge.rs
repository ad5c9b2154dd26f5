//! JSON Merge Patch (RFC 7386).

use serde_json::{Map, Value};

use crate::PatchError;

/// Applies `patch` to a copy of `live`: objects merge, `null` removes, anything else replaces.
///
/// # Errors
/// [`PatchError::BadRequest`] when the patch is no object.
pub fn apply(live: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::BadRequest("a merge patch must be an object".into()));
    };
    let mut object = live.clone();
    merge(&mut object, patch);
    Ok(object)
}

fn merge(target: &mut Value, patch: &Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            // An object creates its place even where nothing was, so that nulls inside it vanish.
            Value::Object(nested) => merge(target.entry(key.as_str()).or_insert(Value::Null), nested),
            other => {
                target.insert(key.clone(), other.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples_of_the_rfc() {
        for (live, patch, merged) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!({"a": "foo"}), json!({"a": {"b": null}}), json!({"a": {}})),
        ] {
            assert_eq!(apply(&live, &patch), Ok(merged), "{live} {patch}");
        }
        assert!(matches!(apply(&json!({}), &json!([])), Err(PatchError::BadRequest(_))));
    }
}
