//! The part of JSONPath that printer columns use.
//!
//! `.a.b`, `['a']`, `\.` inside a name, `[0]`, `[-1]`, `[*]`, `.*`, `[1:3]`, and filters that compare a field with a
//! literal: `[?(@.type=="Ready")]`.

use serde_json::Value;

/// The most filters in one path; they may stand within each other, and the parser follows.
const MAX_FILTERS: usize = 16;

/// A path that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid JSON path {path:?}: {reason}")]
pub struct JsonPathError {
    /// The text.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    Filter { path: Vec<Step>, compare: Option<(Comparison, Value)> },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

const COMPARISONS: [(&str, Comparison); 6] = [
    ("==", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("<=", Comparison::LessEqual),
    (">=", Comparison::GreaterEqual),
    ("<", Comparison::Less),
    (">", Comparison::Greater),
];

impl JsonPath {
    /// Parses a path; surrounding braces and a leading `$` are allowed.
    pub fn parse(text: &str) -> Result<Self, JsonPathError> {
        if text.matches("?(").count() > MAX_FILTERS {
            return Err(JsonPathError { path: text.to_owned(), reason: format!("more than {MAX_FILTERS} filters") });
        }
        let inner = text.trim();
        let inner = inner.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(inner);
        let inner = inner.strip_prefix('$').unwrap_or(inner);
        steps(inner).map(|steps| Self { steps }).map_err(|reason| JsonPathError { path: text.to_owned(), reason })
    }

    /// Every value that the path leads to, in document order.
    pub fn find<'v>(&self, root: &'v Value) -> Vec<&'v Value> {
        walk(&self.steps, root)
    }
}

fn walk<'v>(steps: &[Step], root: &'v Value) -> Vec<&'v Value> {
    let mut found = vec![root];
    for step in steps {
        found = found.into_iter().flat_map(|v| step.of(v)).collect();
    }
    found
}

impl Step {
    fn of<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        match (self, value) {
            (Self::Field(name), _) => value.get(name).into_iter().collect(),
            (Self::Index(i), Value::Array(list)) => {
                bound(*i, list.len()).and_then(|i| list.get(i)).into_iter().collect()
            }
            (Self::Slice(from, to), Value::Array(list)) => {
                let from = from.map_or(Some(0), |i| bound(i, list.len())).unwrap_or(list.len()).min(list.len());
                let to = to.map_or(Some(list.len()), |i| bound(i, list.len())).unwrap_or(0).min(list.len());
                list.get(from..to.max(from)).unwrap_or_default().iter().collect()
            }
            (Self::All, Value::Array(list)) => list.iter().collect(),
            (Self::All, Value::Object(object)) => object.values().collect(),
            (Self::Filter { path, compare }, Value::Array(list)) => {
                list.iter().filter(|element| passes(path, compare.as_ref(), element)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// An index as written, counted from the end when negative.
fn bound(i: i64, len: usize) -> Option<usize> {
    let len = i64::try_from(len).ok()?;
    usize::try_from(if i < 0 { len + i } else { i }).ok()
}

fn passes(path: &[Step], compare: Option<&(Comparison, Value)>, element: &Value) -> bool {
    let found = walk(path, element);
    let Some((comparison, literal)) = compare else {
        return !found.is_empty();
    };
    let Some(&left) = found.first() else { return false };
    let order = match (left, literal) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (a, b) if a == b => Some(std::cmp::Ordering::Equal),
        _ => None,
    };
    match comparison {
        Comparison::Equal => order.is_some_and(std::cmp::Ordering::is_eq),
        Comparison::NotEqual => !order.is_some_and(std::cmp::Ordering::is_eq),
        Comparison::Less => order.is_some_and(std::cmp::Ordering::is_lt),
        Comparison::LessEqual => order.is_some_and(std::cmp::Ordering::is_le),
        Comparison::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
        Comparison::GreaterEqual => order.is_some_and(std::cmp::Ordering::is_ge),
    }
}

fn steps(text: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            if after.is_empty() && steps.is_empty() {
                return Ok(steps);
            }
            if after.starts_with('.') {
                return Err("recursive descent ('..') is not supported".into());
            }
            if let Some(after) = after.strip_prefix('*') {
                steps.push(Step::All);
                rest = after;
                continue;
            }
            if after.starts_with('[') {
                rest = after;
                continue;
            }
            let (name, after) = field(after)?;
            steps.push(Step::Field(name));
            rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            let end = closing(after).ok_or("'[' is never closed")?;
            steps.push(bracket(after[..end].trim())?);
            rest = &after[end + 1..];
        } else {
            return Err(format!("expected '.' or '[' before {rest:?}"));
        }
    }
    Ok(steps)
}

/// A bare field name up to the next `.` or `[`; a backslash takes the next character as it is.
fn field(text: &str) -> Result<(String, &str), String> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    let mut end = text.len();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => name.push(chars.next().ok_or("the path ends in a backslash")?.1),
            '.' | '[' => {
                end = i;
                break;
            }
            _ => name.push(c),
        }
    }
    if name.is_empty() { Err("a field name is empty".into()) } else { Ok((name, &text[end..])) }
}

/// The place of the bracket that closes what has just been opened, quotes and nested brackets skipped.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0_usize, None);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(i),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Result<Step, String> {
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        return self::filter(filter.trim());
    }
    if let Some(name) = unquote(text) {
        return Ok(Step::Field(name));
    }
    let number =
        |t: &str| t.trim().parse::<i64>().map_err(|_| format!("{text:?} is neither an index, a name nor a filter"));
    let optional = |t: &str| if t.trim().is_empty() { Ok(None) } else { number(t).map(Some) };
    match text.split_once(':') {
        Some((from, to)) => Ok(Step::Slice(optional(from)?, optional(to)?)),
        None => number(text).map(Step::Index),
    }
}

fn filter(text: &str) -> Result<Step, String> {
    let path_text = text.strip_prefix('@').ok_or("a filter must start with '@'")?;
    let operator = path_text.char_indices().find_map(|(i, _)| {
        COMPARISONS.iter().find(|(op, _)| path_text[i..].starts_with(op)).map(|(op, c)| (i, *op, *c))
    });
    let Some((at, op, comparison)) = operator else {
        return Ok(Step::Filter { path: steps(path_text.trim())?, compare: None });
    };
    let right = path_text[at + op.len()..].trim();
    let literal = match unquote(right) {
        Some(text) => Value::String(text),
        None => serde_json::from_str(right).map_err(|_| format!("{right:?} is not a literal"))?,
    };
    Ok(Step::Filter { path: steps(path_text[..at].trim())?, compare: Some((comparison, literal)) })
}

/// The text between matching quotes, with backslash escapes taken away.
fn unquote(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    Some(inner.replace('\\', ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn finds() {
        let object = json!({
            "metadata": {"labels": {"foo.bar": "x", "a/b": "y"}},
            "spec": {"n": 3, "list": [{"p": 1}, {"p": 2}, {"p": 3}]},
            "status": {"conditions": [{"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]},
        });
        for (path, expected) in [
            (".spec.n", json!([3])),
            ("{.spec.n}", json!([3])),
            ("$.spec.n", json!([3])),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!(["True"])),
            (".status.conditions[?(@.type=='Ready')].status", json!(["True"])),
            (".spec.list[?(@.p>=2)].p", json!([2, 3])),
            (".status.conditions[?(@.status)].type", json!(["Other", "Ready"])),
            (r".metadata.labels.foo\.bar", json!(["x"])),
            (".metadata.labels['foo.bar']", json!(["x"])),
            (".metadata.labels.a/b", json!(["y"])),
            (r".metadata.labels['foo\.bar']", json!(["x"])),
            (".spec.list[0].p", json!([1])),
            (".spec.list[-1].p", json!([3])),
            (".spec.list[*].p", json!([1, 2, 3])),
            (".spec.list[1:].p", json!([2, 3])),
            (".spec.list[:1].p", json!([1])),
            (".spec.missing.deep", json!([])),
            (".spec.list[9]", json!([])),
        ] {
            let found = JsonPath::parse(path).unwrap_or_else(|e| panic!("{e}")).find(&object).into_iter().cloned();
            assert_eq!(found.collect::<Value>(), expected, "{path}");
        }
    }

    #[test]
    fn refused() {
        assert!(JsonPath::parse(&"[?(@".repeat(100_000)).is_err());
        for bad in ["spec.x", "..x", ".a[", ".a[x]", ".a[?(b==1)]", ".a[?(@.b==x)]", ".a\\", ".a..b"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in r#"[.\[\]*?()@=<'"a\\:0-9é-]{0,20}"#) {
            if let Ok(path) = JsonPath::parse(&text) {
                path.find(&json!({"a": [{"a": 1}, 2]}));
            }
        }
    }
}
