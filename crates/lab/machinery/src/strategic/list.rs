//! The lists of a strategic merge patch: merging by key or as a set, and the order of the result.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_lab_schema::Schema;
use serde_json::Value;

use super::{Merger, Object, PATCH, added, bad, deletes};
use crate::PatchError;

/// What decides the order of a merged list.
#[derive(Clone, Copy)]
pub(super) enum Order<'o> {
    /// The order of the elements in the patch.
    Implied,
    /// A `$setElementOrder` directive: scalars, or objects that hold the merge key.
    Given(&'o [Value]),
}

/// How two elements of a list are told to be the same.
#[derive(Clone, Copy)]
enum Identity<'k> {
    Value,
    Key(&'k str),
}

impl Identity<'_> {
    /// What equal elements have in common; `None` for an element without key.
    fn of(self, element: &Value) -> Option<String> {
        match self {
            Self::Value => Some(element.to_string()),
            Self::Key(key) => element.get(key).map(Value::to_string),
        }
    }

    /// Where each element is first found. Lists may be long: nothing here may take a time quadratic in their length.
    fn places(self, list: &[Value]) -> BTreeMap<String, usize> {
        let mut places = BTreeMap::new();
        for (i, element) in list.iter().enumerate() {
            if let Some(identity) = self.of(element) {
                places.entry(identity).or_insert(i);
            }
        }
        places
    }
}

impl<'a> Merger<'a> {
    pub(super) fn list(
        self,
        old: Vec<Value>,
        new: Vec<Value>,
        field: Option<&'a Schema>,
        order: Order<'_>,
    ) -> Result<Vec<Value>, PatchError> {
        let Some(field) = field.filter(|f| f.patch.merge) else {
            // A patch that only gives an order keeps what is there.
            let keep = new.is_empty() && matches!(order, Order::Given(_));
            return Ok(if keep { old } else { new.into_iter().filter_map(added).collect() });
        };
        if old.iter().chain(&new).any(Value::is_array) {
            return Err(bad("lists of lists are not supported in a strategic merge patch"));
        }
        match field.patch.merge_key.as_deref() {
            Some(key) => self.keyed(old, new, field, key, order),
            None => scalars(old, new, order),
        }
    }

    fn keyed(
        self,
        old: Vec<Value>,
        new: Vec<Value>,
        field: &'a Schema,
        key: &str,
        order: Order<'_>,
    ) -> Result<Vec<Value>, PatchError> {
        let identity = Identity::Key(key);
        if let Order::Given(order) = order {
            check_order(&new, order, identity)?;
        }
        let mut merged = old.clone();
        let mut patches: Vec<Object> = Vec::with_capacity(new.len());
        let mut deleted = BTreeSet::new();
        for element in new {
            let Value::Object(mut element) = element else {
                return Err(bad(format!("an element of a list merged by {key:?} must be an object, not {element}")));
            };
            match element.get(PATCH).map(|d| d.as_str().unwrap_or_default().to_owned()).as_deref() {
                None => patches.push(element),
                Some("merge") => {
                    element.remove(PATCH);
                    patches.push(element);
                }
                Some("delete") => {
                    let Some(element) = identity.of(&Value::Object(element)) else {
                        return Err(bad(format!("delete patch type with no merge key {key:?} defined")));
                    };
                    deleted.insert(element);
                }
                Some("replace") => merged.clear(),
                Some(other) => return Err(bad(format!("unknown patch type: {other} in a list merged by {key:?}"))),
            }
        }
        merged.retain(|e| identity.of(e).is_none_or(|e| !deleted.contains(&e)));
        let mut places = identity.places(&merged);
        let items = self.definitions.resolve(field).items.as_deref();
        let mut implied = Vec::with_capacity(patches.len());
        for patch in patches {
            let patch = Value::Object(patch);
            if patch.get(key).is_none_or(Value::is_null) {
                return Err(bad(format!("map: {patch} does not contain declared merge key: {key}")));
            }
            implied.push(patch.clone());
            let at = identity.of(&patch).map(|element| *places.entry(element).or_insert(merged.len()));
            let at = at.filter(|at| *at < merged.len());
            let Value::Object(patch) = patch else { continue };
            match at.map(|i| (i, merged[i].take())) {
                Some((i, Value::Object(live))) => merged[i] = Value::Object(self.object(live, patch, items)?),
                Some((i, _)) => merged[i] = Value::Object(super::without_directives(patch)),
                None => merged.push(Value::Object(super::without_directives(patch))),
            }
        }
        let order = match order {
            Order::Implied => &implied,
            Order::Given(order) => order,
        };
        Ok(arrange(merged, &old, order, identity))
    }
}

fn scalars(old: Vec<Value>, new: Vec<Value>, order: Order<'_>) -> Result<Vec<Value>, PatchError> {
    if let Some(object) = old.iter().chain(&new).find(|v| v.is_object()) {
        return Err(bad(format!("cannot merge a list of objects without merge key: {object}")));
    }
    if let Order::Given(order) = order {
        check_order(&new, order, Identity::Value)?;
    }
    let mut merged: Vec<Value> = Vec::with_capacity(old.len() + new.len());
    let mut seen = BTreeSet::new();
    for value in old.iter().chain(&new) {
        if seen.insert(value.to_string()) {
            merged.push(value.clone());
        }
    }
    let order = match order {
        Order::Implied => &new,
        Order::Given(order) => order,
    };
    Ok(arrange(merged, &old, order, Identity::Value))
}

/// The elements of a patch must all be in its own `$setElementOrder`, in that order; deletions need not be.
fn check_order(patch: &[Value], order: &[Value], identity: Identity<'_>) -> Result<(), PatchError> {
    let places = identity.places(order);
    let mut reached = None;
    for element in patch {
        if element.as_object().is_some_and(|o| deletes(o) || o.contains_key(PATCH)) {
            continue;
        }
        let at = identity.of(element).and_then(|e| places.get(&e).copied());
        if at.is_none() || at <= reached {
            return Err(bad(format!(
                "the order in patch list: {} doesn't match $setElementOrder list: {}",
                Value::from(patch),
                Value::from(order)
            )));
        }
        reached = at;
    }
    Ok(())
}

/// Puts a merged list in order: the elements named in `order` in that order, the others in the order they had in
/// `live`; where both orders meet, an unnamed element comes first only if `live` has it before the next named one.
fn arrange(merged: Vec<Value>, live: &[Value], order: &[Value], identity: Identity<'_>) -> Vec<Value> {
    let (in_order, in_live) = (identity.places(order), identity.places(live));
    let place = |places: &BTreeMap<String, usize>, e: &Value| identity.of(e).and_then(|e| places.get(&e).copied());
    let mut named = Vec::new();
    let mut others = Vec::new();
    for element in merged {
        match place(&in_order, &element) {
            Some(at) => named.push((at, element)),
            None => others.push((place(&in_live, &element), element)),
        }
    }
    named.sort_by_key(|(at, _)| *at);
    others.sort_by_key(|(at, _)| at.unwrap_or(usize::MAX));
    let mut arranged = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for (_, next) in named {
        let next_at = place(&in_live, &next);
        while let Some((_, other)) = others.next_if(|(at, _)| matches!((at, next_at), (Some(a), Some(n)) if *a < n)) {
            arranged.push(other);
        }
        arranged.push(next);
    }
    arranged.extend(others.map(|(_, other)| other));
    arranged
}
