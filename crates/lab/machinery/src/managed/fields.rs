//! Sets of fields, and their JSON form `FieldsV1`.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use serde_json::{Map, Value};

/// One step of a path into an object.
///
/// Elements are ordered as structured-merge-diff orders them: fields, keys, values, indices.
#[derive(Debug, Clone)]
pub enum Element {
    /// A field of an object (`f:name`).
    Field(String),
    /// The element of a keyed list with these values in its key fields, sorted by field name (`k:{"type":"Ready"}`).
    Key(Vec<(String, Value)>),
    /// The element of a set that equals this scalar (`v:"x"`).
    Value(Value),
    /// The element at this place of a list that has no better identity (`i:3`).
    Index(i64),
}

/// Text that is no element of a field set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an element of FieldsV1")]
pub struct FieldsError(pub String);

impl Element {
    /// Reads the key of a `FieldsV1` object.
    pub fn parse(text: &str) -> Result<Self, FieldsError> {
        let bad = || FieldsError(text.to_owned());
        let (kind, rest) = text.split_once(':').ok_or_else(bad)?;
        match kind {
            "f" => Ok(Self::Field(rest.to_owned())),
            "v" => serde_json::from_str(rest).map(Self::Value).map_err(|_| bad()),
            "i" => rest.parse().map(Self::Index).map_err(|_| bad()),
            "k" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).map_err(|_| bad())?;
                Ok(Self::key(keys))
            }
            _ => Err(bad()),
        }
    }

    /// The element of a keyed list with these key fields.
    pub fn key(fields: impl IntoIterator<Item = (String, Value)>) -> Self {
        let mut fields: Vec<_> = fields.into_iter().collect();
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        Self::Key(fields)
    }

    /// The key of this element in a `FieldsV1` object.
    pub fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(i) => format!("i:{i}"),
            Self::Key(fields) => {
                let fields: Vec<String> = fields.iter().map(|(k, v)| format!("{}:{v}", quoted(k))).collect();
                format!("k:{{{}}}", fields.join(","))
            }
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The order of scalars: numbers by amount, then strings, booleans, lists, objects, null.
fn compare_values(a: &Value, b: &Value) -> Ordering {
    fn rank(v: &Value) -> u8 {
        match v {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        }
    }
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64().unwrap_or_default().total_cmp(&b.as_f64().unwrap_or_default()),
        },
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(_) | Value::Object(_), Value::Array(_) | Value::Object(_)) if rank(a) == rank(b) => {
            a.to_string().cmp(&b.to_string())
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

impl Ord for Element {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Value(a), Self::Value(b)) => compare_values(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => {
                for ((a_name, a_value), (b_name, b_value)) in a.iter().zip(b) {
                    let order = a_name.cmp(b_name).then_with(|| compare_values(a_value, b_value));
                    if order.is_ne() {
                        return order;
                    }
                }
                a.len().cmp(&b.len())
            }
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Element {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Element {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Element {}

impl fmt::Display for Element {
    /// The form used in conflict messages: `.name`, `[type="Ready"]`, `[="x"]`, `[3]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(i) => write!(f, "[{i}]"),
            Self::Key(fields) => {
                let fields: Vec<String> = fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "[{}]", fields.join(","))
            }
        }
    }
}

/// The text of a path, such as `.spec.containers[name="a"].image`.
pub fn path_text(path: &[Element]) -> String {
    path.iter().fold(String::new(), |mut text, element| {
        let _ = write!(text, "{element}");
        text
    })
}

/// A set of paths, kept as a tree: the members at this level, and the sets below.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    pub(super) members: BTreeSet<Element>,
    /// Never holds an empty set.
    pub(super) children: BTreeMap<Element, Set>,
}

impl Set {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// A set of paths that are made of fields only: `Set::of_fields([&["metadata", "name"]])`.
    pub fn of_fields<'a>(paths: impl IntoIterator<Item = &'a [&'a str]>) -> Self {
        let mut set = Self::new();
        for path in paths {
            let path: Vec<Element> = path.iter().map(|f| Element::Field((*f).to_owned())).collect();
            set.insert(&path);
        }
        set
    }

    /// Reads `fieldsV1`.
    pub fn parse(fields: &Value) -> Result<Self, FieldsError> {
        let mut set = Self::new();
        for (key, below) in fields.as_object().into_iter().flatten() {
            if key == "." {
                continue;
            }
            let element = Element::parse(key)?;
            let below_set = Self::parse(below)?;
            if below_set.is_empty() || below.get(".").is_some() {
                set.members.insert(element.clone());
            }
            set.adopt(element, below_set);
        }
        Ok(set)
    }

    /// The `fieldsV1` object. Its text has the same members as [`Set::encode`], in the order of the JSON map.
    pub fn to_value(&self) -> Value {
        self.value(false)
    }

    fn value(&self, include_self: bool) -> Value {
        let mut object = Map::new();
        if include_self {
            object.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for member in &self.members {
            object.insert(member.encode(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            object.insert(element.encode(), child.value(self.members.contains(element)));
        }
        Value::Object(object)
    }

    /// The JSON text of `fieldsV1`, byte for byte and in the order in which structured-merge-diff writes it.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        self.write(false, &mut text);
        text
    }

    fn write(&self, include_self: bool, text: &mut String) {
        text.push('{');
        let mut first = true;
        let mut key = |text: &mut String, key: &str| {
            if !std::mem::take(&mut first) {
                text.push(',');
            }
            text.push_str(&quoted(key));
            text.push(':');
        };
        if include_self {
            key(text, ".");
            text.push_str("{}");
        }
        let elements: BTreeSet<&Element> = self.members.iter().chain(self.children.keys()).collect();
        for element in elements {
            key(text, &element.encode());
            match self.children.get(element) {
                Some(child) => child.write(self.members.contains(element), text),
                None => text.push_str("{}"),
            }
        }
        text.push('}');
    }

    /// Adds a path; the empty path is no member.
    pub fn insert(&mut self, path: &[Element]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// Puts a set below an element, unless it is empty.
    pub(super) fn adopt(&mut self, element: Element, below: Self) {
        if !below.is_empty() {
            self.children.insert(element, below);
        }
    }

    /// Whether the path is a member.
    pub fn has(&self, path: &[Element]) -> bool {
        match path {
            [] => false,
            [last] => self.members.contains(last),
            [first, rest @ ..] => self.children.get(first).is_some_and(|c| c.has(rest)),
        }
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    /// The members of either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.members.extend(other.members.iter().cloned());
        for (element, theirs) in &other.children {
            let merged = all.children.get(element).map_or_else(|| theirs.clone(), |ours| ours.union(theirs));
            all.children.insert(element.clone(), merged);
        }
        all
    }

    /// The members of both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Self { members: self.members.intersection(&other.members).cloned().collect(), ..Self::new() };
        for (element, ours) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                both.adopt(element.clone(), ours.intersection(theirs));
            }
        }
        both
    }

    /// The members of this set that are not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut rest = Self { members: self.members.difference(&other.members).cloned().collect(), ..Self::new() };
        for (element, ours) in &self.children {
            let ours = other.children.get(element).map_or_else(|| ours.clone(), |theirs| ours.difference(theirs));
            rest.adopt(element.clone(), ours);
        }
        rest
    }

    /// The members of this set that are neither in the other nor below one of its members.
    #[must_use]
    pub fn outside(&self, other: &Self) -> Self {
        let mut rest = Self { members: self.members.difference(&other.members).cloned().collect(), ..Self::new() };
        for (element, ours) in &self.children {
            if other.members.contains(element) {
                continue;
            }
            let ours = other.children.get(element).map_or_else(|| ours.clone(), |theirs| ours.outside(theirs));
            rest.adopt(element.clone(), ours);
        }
        rest
    }

    /// Every member's path, in order.
    pub fn paths(&self) -> Vec<Vec<Element>> {
        let mut paths = Vec::new();
        self.collect(&mut Vec::new(), &mut paths);
        paths
    }

    fn collect(&self, prefix: &mut Vec<Element>, paths: &mut Vec<Vec<Element>>) {
        let elements: BTreeSet<&Element> = self.members.iter().chain(self.children.keys()).collect();
        for element in elements {
            prefix.push(element.clone());
            if self.members.contains(element) {
                paths.push(prefix.clone());
            }
            if let Some(child) = self.children.get(element) {
                child.collect(prefix, paths);
            }
            prefix.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TEXT: &str = r#"{"f:metadata":{"f:labels":{".":{},"f:app":{}},"f:finalizers":{".":{},"v:\"a/b\"":{}}},"f:spec":{"f:ports":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{}},"k:{\"containerPort\":443,\"protocol\":\"TCP\"}":{}},"f:replicas":{}}}"#;

    #[test]
    fn text_round_trips_in_the_original_s_order() {
        let value: Value = serde_json::from_str(TEXT).expect("json");
        let set = Set::parse(&value).expect("fields");
        // Fields are sorted by name; keys by value, so that 80 comes before 443.
        let sorted = TEXT.replace(
            r#""f:labels":{".":{},"f:app":{}},"f:finalizers":{".":{},"v:\"a/b\"":{}}"#,
            r#""f:finalizers":{".":{},"v:\"a/b\"":{}},"f:labels":{".":{},"f:app":{}}"#,
        );
        assert_eq!(set.encode(), sorted);
        assert_eq!(set.to_value(), value);
        assert_eq!(Set::new().encode(), "{}");
        for bad in [json!({"x:a": {}}), json!({"a": {}}), json!({"k:1": {}}), json!({"v:x": {}}), json!({"i:x": {}})] {
            assert!(Set::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_as_text() {
        let set = Set::parse(&serde_json::from_str(TEXT).expect("json")).expect("fields");
        let paths: Vec<String> = set.paths().iter().map(|p| path_text(p)).collect();
        assert_eq!(
            paths,
            [
                ".metadata.finalizers",
                ".metadata.finalizers[=\"a/b\"]",
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.ports[containerPort=80,protocol=\"TCP\"]",
                ".spec.ports[containerPort=80,protocol=\"TCP\"].name",
                ".spec.ports[containerPort=443,protocol=\"TCP\"]",
                ".spec.replicas",
            ]
        );
    }

    #[test]
    fn algebra() {
        let a = Set::parse(&json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}})).expect("fields");
        let b = Set::parse(&json!({"f:a": {"f:b": {}, "f:d": {}}, "f:e": {}})).expect("fields");
        assert_eq!(a.union(&b).to_value(), json!({"f:a": {".": {}, "f:b": {}, "f:d": {}}, "f:c": {}, "f:e": {}}));
        assert_eq!(a.intersection(&b).to_value(), json!({"f:a": {"f:b": {}}}));
        assert_eq!(a.difference(&b).to_value(), json!({"f:a": {}, "f:c": {}}));
        assert_eq!(b.difference(&a).union(&b.intersection(&a)), b);
        let top = Set::of_fields([&["a"][..]]);
        assert_eq!(a.outside(&top).to_value(), json!({"f:c": {}}));
        assert!(a.has(&[Element::Field("a".into()), Element::Field("b".into())]));
        assert!(!a.has(&[]));
    }
}
