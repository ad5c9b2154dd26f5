//! Walking objects by schema: what is a leaf, what is an element, and the four walks that ownership needs.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_lab_schema::{Definitions, ListKind, MapKind, Schema, Type, builtin};
use serde_json::{Map, Value};

use super::fields::{Element, Set};
use crate::quantity;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// What is known of a place in an object.
#[derive(Clone, Copy)]
pub(super) enum Node<'a> {
    /// Described by a schema, as used at this place.
    Known(&'a Schema),
    /// Not described: objects are granular, everything else is a leaf.
    Deduced,
}

/// How a place is owned and merged.
enum Shape<'a> {
    /// As a whole.
    Leaf,
    /// Field by field.
    Map,
    /// Element by element, told apart by value.
    Set(Node<'a>),
    /// Element by element, told apart by these fields.
    Keyed(&'a [Box<str>], Node<'a>),
}

/// What differs between two objects.
#[derive(Default)]
pub(super) struct Comparison {
    pub(super) added: Set,
    pub(super) modified: Set,
    pub(super) removed: Set,
}

/// The walks over objects of one kind.
#[derive(Clone, Copy)]
pub(super) struct Walker<'a> {
    pub(super) root: &'a Schema,
    pub(super) definitions: &'a Definitions,
}

/// Null, absent or without content: an empty list or object is a leaf of its own.
fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(object)) => object.is_empty(),
        Some(_) => false,
    }
}

fn entries(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

impl<'a> Walker<'a> {
    pub(super) fn root(&self) -> Node<'a> {
        Node::Known(self.root)
    }

    /// Follows a reference; what every kind shares (metadata) may point into the built-in definitions.
    fn resolve(&self, schema: &'a Schema) -> &'a Schema {
        let Some(name) = &schema.reference else { return schema };
        self.definitions.get(name).or_else(|| builtin().definitions.get(name)).map_or(schema, AsRef::as_ref)
    }

    /// The shape of a place, given what is there: values of the wrong type are leaves.
    fn shape(&self, node: Node<'a>, a: Option<&Value>, b: Option<&Value>) -> Shape<'a> {
        let all = |fits: fn(&Value) -> bool| a.into_iter().chain(b).all(|v| v.is_null() || fits(v));
        let Node::Known(used) = node else {
            return if all(Value::is_object) { Shape::Map } else { Shape::Leaf };
        };
        let schema = self.resolve(used);
        match schema.ty {
            Type::Object if used.map == MapKind::Atomic || schema.map == MapKind::Atomic => Shape::Leaf,
            Type::Object | Type::Any if all(Value::is_object) => Shape::Map,
            Type::Array if all(Value::is_array) => {
                let items = schema.items.as_deref().map_or(Node::Deduced, Node::Known);
                match if used.list == ListKind::Atomic { &schema.list } else { &used.list } {
                    ListKind::Atomic => Shape::Leaf,
                    ListKind::Set => Shape::Set(items),
                    ListKind::Map { keys } => Shape::Keyed(keys, items),
                }
            }
            _ => Shape::Leaf,
        }
    }

    /// The place of a field, and whether the schema names it (rather than being a key of a map).
    fn field(&self, node: Node<'a>, name: &str) -> (Node<'a>, bool) {
        let Node::Known(used) = node else { return (Node::Deduced, false) };
        let schema = self.resolve(used);
        let declared = schema.properties.get(name).map(AsRef::as_ref);
        if name == "metadata" && std::ptr::eq(used, self.root) {
            // Custom resources describe metadata at most in part; it is an ObjectMeta all the same.
            let described = declared.is_some_and(|d| self.resolve(d).properties.contains_key("ownerReferences"));
            if !described && let Some(meta) = builtin().definitions.get(OBJECT_META) {
                return (Node::Known(meta), true);
            }
        }
        match (declared, schema.additional.as_deref()) {
            (Some(field), _) => (Node::Known(field), true),
            (None, Some(values)) => (Node::Known(values), false),
            (None, None) => (Node::Deduced, false),
        }
    }

    /// The place below an element of a path.
    fn below(&self, node: Node<'a>, element: &Element) -> (Node<'a>, bool) {
        match (element, node) {
            (Element::Field(name), _) => self.field(node, name),
            (_, Node::Known(used)) => (self.resolve(used).items.as_deref().map_or(Node::Deduced, Node::Known), false),
            (_, Node::Deduced) => (Node::Deduced, false),
        }
    }

    /// Which element of its list an item is.
    fn element(&self, shape: &Shape<'a>, item: &Value) -> Result<Element, String> {
        match shape {
            Shape::Keyed(keys, node) => {
                let Value::Object(object) = item else {
                    return Err("associative list with keys has an element that's not a map".into());
                };
                let mut fields = Vec::with_capacity(keys.len());
                for key in *keys {
                    let default = || match self.field(*node, key) {
                        (Node::Known(field), _) => field.default.as_ref().or(self.resolve(field).default.as_ref()),
                        (Node::Deduced, _) => None,
                    };
                    let value = object.get(&**key).filter(|v| !v.is_null()).or_else(default).ok_or_else(|| {
                        format!("associative list with keys has an element that omits key field {key:?} (and doesn't have default value)")
                    })?;
                    fields.push((key.to_string(), value.clone()));
                }
                Ok(Element::key(fields))
            }
            _ if item.is_object() || item.is_array() || item.is_null() => {
                Err(format!("a set may only hold scalars, not {item}"))
            }
            _ => Ok(Element::Value(item.clone())),
        }
    }

    /// The elements of a list; items without identity fall back to their place.
    fn elements(&self, shape: &Shape<'a>, list: &[Value]) -> Vec<Element> {
        list.iter()
            .enumerate()
            .map(|(i, item)| {
                self.element(shape, item).unwrap_or_else(|_| Element::Index(i64::try_from(i).unwrap_or(i64::MAX)))
            })
            .collect()
    }

    /// What an applied configuration may not be: unknown fields, list elements without key or twice.
    pub(super) fn check(&self, node: Node<'a>, value: &Value, path: &mut Vec<Element>, errors: &mut Vec<String>) {
        let shape = self.shape(node, Some(value), None);
        match (&shape, node) {
            (Shape::Map, _) => {
                for (name, value) in entries(Some(value)).into_iter().flatten() {
                    let (field, _) = self.field(node, name);
                    path.push(Element::Field(name.clone()));
                    if self.closed(node) && matches!(field, Node::Deduced) && !self.is_type_meta(node, name) {
                        errors.push(complaint(path, "field not declared in schema"));
                    } else {
                        self.check(field, value, path, errors);
                    }
                    path.pop();
                }
            }
            (Shape::Set(items_node) | Shape::Keyed(_, items_node), _) => {
                let mut seen = BTreeSet::new();
                for (i, item) in items(Some(value)).iter().enumerate() {
                    match self.element(&shape, item) {
                        Err(text) => errors.push(complaint(path, &format!("element {i}: {text}"))),
                        Ok(element) => {
                            path.push(element.clone());
                            if seen.insert(element) {
                                self.check(*items_node, item, path, errors);
                            } else {
                                errors.push(complaint(path, "duplicate entries for key"));
                            }
                            path.pop();
                        }
                    }
                }
            }
            (Shape::Leaf, Node::Known(used)) => {
                let wanted = self.resolve(used).ty;
                let wrong = match wanted {
                    Type::Object => !value.is_object() && !value.is_null(),
                    Type::Array => !value.is_array() && !value.is_null(),
                    Type::String => !value.is_string() && !value.is_null(),
                    Type::Boolean => !value.is_boolean() && !value.is_null(),
                    Type::Integer | Type::Number => !value.is_number() && !value.is_null(),
                    Type::IntOrString => value.is_object() || value.is_array() || value.is_boolean(),
                    Type::Any => false,
                };
                if wrong {
                    let name = if wanted == Type::IntOrString { "number or string" } else { wanted.name() };
                    errors.push(complaint(path, &format!("expected {name}, got {value}")));
                }
            }
            (Shape::Leaf, Node::Deduced) => {}
        }
    }

    /// Whether the schema names all the fields that may be here.
    fn closed(&self, node: Node<'a>) -> bool {
        let Node::Known(used) = node else { return false };
        let schema = self.resolve(used);
        !schema.properties.is_empty()
            && schema.additional.is_none()
            && !schema.preserve_unknown
            && !used.preserve_unknown
    }

    /// `apiVersion`, `kind` and `metadata` belong to every root and every embedded resource.
    fn is_type_meta(&self, node: Node<'a>, name: &str) -> bool {
        let Node::Known(used) = node else { return false };
        (std::ptr::eq(used, self.root) || self.resolve(used).embedded || used.embedded)
            && matches!(name, "apiVersion" | "kind" | "metadata")
    }

    /// Takes out the nulls that count as absent.
    pub(super) fn without_nulls(&self, node: Node<'a>, value: &Value) -> Value {
        match value {
            Value::Object(object) => object
                .iter()
                .filter_map(|(name, value)| {
                    let (field, _) = self.field(node, name);
                    let kept = !value.is_null()
                        || match field {
                            Node::Known(field) => field.nullable || self.resolve(field).nullable,
                            Node::Deduced => true,
                        };
                    kept.then(|| (name.clone(), self.without_nulls(field, value)))
                })
                .collect(),
            Value::Array(list) => {
                let (below, _) = self.below(node, &Element::Index(0));
                list.iter().map(|item| self.without_nulls(below, item)).collect()
            }
            other => other.clone(),
        }
    }

    /// The fields that a configuration states.
    pub(super) fn field_set(&self, node: Node<'a>, value: &Value) -> Set {
        self.collect(node, value).0
    }

    fn collect(&self, node: Node<'a>, value: &Value) -> (Set, bool) {
        let mut set = Set::new();
        let shape = self.shape(node, Some(value), None);
        match shape {
            Shape::Leaf => return (set, true),
            Shape::Map => {
                for (name, value) in entries(Some(value)).into_iter().flatten() {
                    let (field, declared) = self.field(node, name);
                    let (below, leaf) = self.collect(field, value);
                    let bare = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                    let element = Element::Field(name.clone());
                    if leaf || bare || !declared {
                        set.members.insert(element.clone());
                    }
                    set.adopt(element, below);
                }
            }
            Shape::Set(below) | Shape::Keyed(_, below) => {
                let list = items(Some(value));
                for (element, item) in self.elements(&shape, list).into_iter().zip(list) {
                    set.members.insert(element.clone());
                    set.adopt(element, self.collect(below, item).0);
                }
            }
        }
        (set, false)
    }

    fn equal(node: Node<'a>, a: &Value, b: &Value) -> bool {
        if a == b {
            return true;
        }
        match (a, b, node) {
            (Value::Number(a), Value::Number(b), _) => a.as_f64() == b.as_f64(),
            (_, _, Node::Known(Schema { reference: Some(name), .. })) if name.ends_with(".resource.Quantity") => {
                let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
                quantity::equivalent(&text(a), &text(b))
            }
            _ => false,
        }
    }

    /// Compares two objects leaf by leaf; a container that only one of them has is a member too.
    pub(super) fn compare(&self, old: &Value, new: &Value) -> Comparison {
        let mut comparison = Comparison::default();
        self.differences(self.root(), Some(old), Some(new), &mut Vec::new(), &mut comparison);
        comparison
    }

    fn differences(
        &self,
        node: Node<'a>,
        old: Option<&Value>,
        new: Option<&Value>,
        path: &mut Vec<Element>,
        found: &mut Comparison,
    ) {
        let shape = self.shape(node, old, new);
        let leaf = matches!(shape, Shape::Leaf) || (is_empty(old) && is_empty(new));
        if !leaf {
            match shape {
                Shape::Leaf => {}
                Shape::Map => {
                    let names: BTreeSet<&String> =
                        [entries(old), entries(new)].into_iter().flatten().flat_map(Map::keys).collect();
                    for name in names {
                        path.push(Element::Field(name.clone()));
                        let (a, b) = (old.and_then(|o| o.get(name)), new.and_then(|n| n.get(name)));
                        self.differences(self.field(node, name).0, a, b, path, found);
                        path.pop();
                    }
                }
                Shape::Set(below) | Shape::Keyed(_, below) => {
                    let mut by_element: BTreeMap<Element, [Vec<&Value>; 2]> = BTreeMap::new();
                    for (side, list) in [items(old), items(new)].into_iter().enumerate() {
                        for (element, item) in self.elements(&shape, list).into_iter().zip(list) {
                            by_element.entry(element).or_default()[side].push(item);
                        }
                    }
                    for (element, [a, b]) in by_element {
                        path.push(element);
                        if a.len() <= 1 && b.len() <= 1 {
                            self.differences(below, a.first().copied(), b.first().copied(), path, found);
                        } else if a != b {
                            note(a.is_empty(), b.is_empty(), path, found);
                        }
                        path.pop();
                    }
                }
            }
        }
        match (old, new) {
            (Some(old), Some(new)) if leaf && !Self::equal(node, old, new) => found.modified.insert(path),
            (Some(_), Some(_)) => {}
            _ => note(old.is_none(), new.is_none(), path, found),
        }
    }

    /// Merges an applied configuration over the live object.
    pub(super) fn merge(&self, node: Node<'a>, live: Option<&Value>, applied: Option<&Value>) -> Value {
        let (live, applied) = match (live, applied) {
            (None, None) => return Value::Null,
            (Some(one), None) | (None, Some(one)) => return one.clone(),
            (Some(live), Some(applied)) => (live, applied),
        };
        let shape = self.shape(node, Some(live), Some(applied));
        match shape {
            Shape::Leaf if Self::equal(node, live, applied) => live.clone(),
            Shape::Leaf => applied.clone(),
            _ if is_empty(Some(live)) && is_empty(Some(applied)) => applied.clone(),
            Shape::Map => {
                let mut merged = entries(Some(live)).cloned().unwrap_or_default();
                for (name, value) in entries(Some(applied)).into_iter().flatten() {
                    let value = self.merge(self.field(node, name).0, merged.get(name), Some(value));
                    merged.insert(name.clone(), value);
                }
                Value::Object(merged)
            }
            Shape::Set(below) | Shape::Keyed(_, below) => {
                Value::Array(self.merge_lists(&shape, below, items(Some(live)), items(Some(applied))))
            }
        }
    }

    /// Merges lists by element: applied elements in applied order, live-only elements where the live order puts them.
    fn merge_lists(&self, shape: &Shape<'a>, below: Node<'a>, live: &[Value], applied: &[Value]) -> Vec<Value> {
        let live_elements = self.elements(shape, live);
        let applied_elements = self.elements(shape, applied);
        // Where each element is in the live list; none where several live elements have one key: these cannot be
        // merged with, the applied one replaces them.
        let mut in_live: BTreeMap<&Element, Option<usize>> = BTreeMap::new();
        for (i, element) in live_elements.iter().enumerate() {
            in_live.entry(element).and_modify(|place| *place = None).or_insert(Some(i));
        }
        let in_applied: BTreeSet<&Element> = applied_elements.iter().collect();
        // The elements of both, in applied order: the next one of them that the live side may yield.
        let mut shared = applied_elements.iter().filter(|e| in_live.contains_key(e)).peekable();
        let mut merged = Vec::with_capacity(live.len().max(applied.len()));
        let mut done: BTreeSet<&Element> = BTreeSet::new();
        let (mut l, mut a) = (0, 0);
        while l < live.len() || a < applied.len() {
            if let Some(element) = live_elements.get(l) {
                if !in_applied.contains(element) {
                    merged.push(live[l].clone());
                    l += 1;
                    continue;
                }
                let due = applied_elements.get(a) == Some(element);
                if !due && (done.contains(element) || shared.peek().is_some_and(|next| *next != element)) {
                    // Merged already, or due later in the applied order.
                    l += 1;
                    continue;
                }
                if due {
                    l += 1;
                }
            }
            if let Some(element) = applied_elements.get(a) {
                let partner = in_live.get(element).copied().flatten().map(|i| &live[i]);
                merged.push(self.merge(below, partner, Some(&applied[a])));
                done.insert(element);
                shared.next_if(|next| *next == element);
                a += 1;
            }
        }
        merged
    }

    /// Removes the members of `fields`; a container that loses everything goes too.
    pub(super) fn remove(&self, node: Node<'a>, value: &Value, fields: &Set) -> Option<Value> {
        if fields.is_empty() {
            return Some(value.clone());
        }
        let shape = self.shape(node, Some(value), None);
        let keep = |element: &Element, below: Node<'a>, value: &Value| {
            if fields.members.contains(element) {
                return None;
            }
            match fields.children.get(element) {
                Some(child) => self.remove(below, value, child),
                None => Some(value.clone()),
            }
        };
        match shape {
            Shape::Leaf => (!value.is_object() && !value.is_array()).then(|| value.clone()),
            Shape::Map => {
                let kept: Map<String, Value> = entries(Some(value))
                    .into_iter()
                    .flatten()
                    .filter_map(|(name, value)| {
                        let element = Element::Field(name.clone());
                        Some((name.clone(), keep(&element, self.field(node, name).0, value)?))
                    })
                    .collect();
                (!kept.is_empty()).then_some(Value::Object(kept))
            }
            Shape::Set(below) | Shape::Keyed(_, below) => {
                let list = items(Some(value));
                let kept: Vec<Value> = self
                    .elements(&shape, list)
                    .iter()
                    .zip(list)
                    .filter_map(|(element, item)| keep(element, below, item))
                    .collect();
                (!kept.is_empty()).then_some(Value::Array(kept))
            }
        }
    }

    /// The set with every declared field on the way to a member as a member too: structs are not members by
    /// themselves, but removing their last field must remove them.
    pub(super) fn with_named_fields(&self, node: Node<'a>, set: &Set) -> Set {
        let mut named = Set { members: set.members.clone(), ..Set::new() };
        for (element, child) in &set.children {
            let (below, declared) = self.below(node, element);
            if declared {
                named.members.insert(element.clone());
            }
            named.adopt(element.clone(), self.with_named_fields(below, child));
        }
        named
    }
}

fn complaint(path: &[Element], text: &str) -> String {
    format!("{}: {text}", super::fields::path_text(path))
}

/// Records a path that only one side has, or that differs.
fn note(not_in_old: bool, not_in_new: bool, path: &[Element], found: &mut Comparison) {
    match (not_in_old, not_in_new) {
        (true, true) => {}
        (true, false) => found.added.insert(path),
        (false, true) => found.removed.insert(path),
        (false, false) => found.modified.insert(path),
    }
}
