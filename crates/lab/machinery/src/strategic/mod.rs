//! Strategic merge patch: a merge patch that knows which lists merge by key.
//!
//! What merges how is in the schema ([`PatchStrategy`](outrigger_lab_schema::PatchStrategy)); the patch can override it
//! with directives:
//!
//! | directive | where | effect |
//! |---|---|---|
//! | `$patch: replace` | object | the rest of the object replaces the live one |
//! | `$patch: delete` | object | the live object becomes empty |
//! | `$patch: merge` | object | the default, spelled out |
//! | `$patch: delete`, `replace` | element of a keyed list | removes the element with this key; replaces the whole list |
//! | `$setElementOrder/<list>` | object | the order of the merged list |
//! | `$deleteFromPrimitiveList/<list>` | object | removes these scalars |
//! | `$retainKeys` | object | live fields not named here are dropped |
//!
//! `null` removes a field. Without `$setElementOrder`, elements that the patch adds come before the live ones and all
//! others keep the live order, as on the API server.

mod list;

use std::collections::BTreeSet;

use outrigger_lab_schema::{Definitions, Schema};
use serde_json::{Map, Value};

use crate::PatchError;
use list::Order;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

/// Applies `patch` to a copy of `live`, an object of the kind that `schema` describes.
///
/// Fields without schema merge like a merge patch: objects field by field, lists are replaced.
///
/// # Errors
/// [`PatchError::BadRequest`] when the patch is no object, a directive is malformed, or an element of a keyed list
/// lacks the merge key.
pub fn apply(schema: &Schema, definitions: &Definitions, live: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else {
        return Err(bad("a strategic merge patch must be an object"));
    };
    let live = match live {
        Value::Object(live) => live.clone(),
        _ => Object::new(),
    };
    Merger { definitions }.object(live, patch.clone(), Some(schema)).map(Value::Object)
}

fn bad(message: impl Into<String>) -> PatchError {
    PatchError::BadRequest(message.into())
}

#[derive(Clone, Copy)]
struct Merger<'a> {
    definitions: &'a Definitions,
}

impl<'a> Merger<'a> {
    /// The schema of a field, as used there.
    fn field(self, schema: Option<&'a Schema>, name: &str) -> Option<&'a Schema> {
        let schema = self.definitions.resolve(schema?);
        schema.properties.get(name).or(schema.additional.as_ref()).map(AsRef::as_ref)
    }

    fn object(self, mut live: Object, mut patch: Object, schema: Option<&'a Schema>) -> Result<Object, PatchError> {
        match patch.remove(PATCH) {
            None => {}
            Some(Value::String(directive)) if directive == "merge" => {}
            Some(Value::String(directive)) if directive == "replace" => return Ok(without_directives(patch)),
            Some(Value::String(directive)) if directive == "delete" => return Ok(Object::new()),
            Some(other) => return Err(bad(format!("unknown patch type: {other} in map: {}", Value::Object(patch)))),
        }
        retain_keys(&mut live, &mut patch)?;
        self.ordered_lists(&mut live, &mut patch, schema)?;
        for (key, value) in patch {
            if let Some(name) = key.strip_prefix(DELETE_FROM_LIST) {
                delete_scalars(&mut live, name, &value)?;
                continue;
            }
            if value.is_null() {
                live.remove(&key);
                continue;
            }
            let field = self.field(schema, &key);
            let merged = match (live.remove(&key), value) {
                (Some(Value::Object(old)), Value::Object(new)) => Some(Value::Object(self.object(old, new, field)?)),
                (Some(Value::Array(old)), Value::Array(new)) => {
                    Some(Value::Array(self.list(old, new, field, Order::Implied)?))
                }
                (_, new) => added(new),
            };
            if let Some(merged) = merged {
                live.insert(key, merged);
            }
        }
        Ok(live)
    }

    /// Merges the lists that have a `$setElementOrder`, and takes them out of the patch.
    fn ordered_lists(
        self,
        live: &mut Object,
        patch: &mut Object,
        schema: Option<&'a Schema>,
    ) -> Result<(), PatchError> {
        let directives: Vec<String> = patch.keys().filter(|k| k.starts_with(SET_ELEMENT_ORDER)).cloned().collect();
        for directive in directives {
            let name = directive[SET_ELEMENT_ORDER.len()..].to_owned();
            let Some(Value::Array(order)) = patch.remove(&directive) else {
                return Err(bad(format!("{directive} must be a list")));
            };
            let old = match live.remove(&name) {
                Some(Value::Array(old)) => Some(old),
                other => {
                    // Not a list here: nothing to put in order, the field itself is merged as any other.
                    if let Some(other) = other {
                        live.insert(name.clone(), other);
                    }
                    None
                }
            };
            let new = match patch.remove(&name) {
                Some(Value::Array(new)) => Some(new),
                Some(other) => {
                    // A null (or a scalar) for the list itself wins over its order.
                    patch.insert(name.clone(), other);
                    if let Some(old) = old {
                        live.insert(name, Value::Array(old));
                    }
                    continue;
                }
                None => None,
            };
            if let Some(merged) = self.ordered(old, new, self.field(schema, &name), &order)? {
                live.insert(name, Value::Array(merged));
            }
        }
        Ok(())
    }

    fn ordered(
        self,
        old: Option<Vec<Value>>,
        new: Option<Vec<Value>>,
        field: Option<&'a Schema>,
        order: &[Value],
    ) -> Result<Option<Vec<Value>>, PatchError> {
        Ok(match (old, new) {
            (None, None) => None,
            (old, new) => {
                Some(self.list(old.unwrap_or_default(), new.unwrap_or_default(), field, Order::Given(order))?)
            }
        })
    }
}

/// Executes `$retainKeys`: live fields that are not named go; a patch that sets an unnamed field is malformed.
fn retain_keys(live: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = &directive else {
        return Err(bad("$retainKeys must be a list of field names"));
    };
    let named = |key: &str| keys.iter().any(|k| k.as_str() == Some(key));
    for (key, value) in patch.iter() {
        let exempt = value.is_null() || key.starts_with(SET_ELEMENT_ORDER) || key.starts_with(DELETE_FROM_LIST);
        if !exempt && !named(key) {
            return Err(bad(format!("the patch sets {key:?}, which its $retainKeys list does not name")));
        }
    }
    live.retain(|key, _| named(key));
    Ok(())
}

/// Executes `$deleteFromPrimitiveList`; a list that is not there has nothing to lose.
fn delete_scalars(live: &mut Object, name: &str, scalars: &Value) -> Result<(), PatchError> {
    let Value::Array(scalars) = scalars else {
        return Err(bad(format!("{DELETE_FROM_LIST}{name} must be a list of scalars")));
    };
    if let Some(Value::Array(list)) = live.get_mut(name) {
        let scalars: BTreeSet<String> = scalars.iter().map(Value::to_string).collect();
        list.retain(|v| !scalars.contains(&v.to_string()));
    }
    Ok(())
}

/// What a patch value becomes where nothing is to merge with: itself without directives and nulls.
/// `None` when it only asked for a deletion.
fn added(value: Value) -> Option<Value> {
    match value {
        Value::Object(object) if deletes(&object) => None,
        Value::Object(object) => Some(Value::Object(without_directives(object))),
        Value::Array(list) => Some(Value::Array(list.into_iter().filter_map(added).collect())),
        other => Some(other),
    }
}

fn without_directives(object: Object) -> Object {
    object
        .into_iter()
        .filter(|(key, value)| !value.is_null() && !is_directive(key))
        .filter_map(|(key, value)| Some((key, added(value)?)))
        .collect()
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN_KEYS || key.starts_with(SET_ELEMENT_ORDER) || key.starts_with(DELETE_FROM_LIST)
}

fn deletes(object: &Object) -> bool {
    object.get(PATCH).and_then(Value::as_str) == Some("delete")
}

#[cfg(test)]
mod tests;
