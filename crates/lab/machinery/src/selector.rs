//! Label and field selectors: grammar, canonical text, evaluation.
//!
//! Values come from a function, so that the same selector can be evaluated on an object, a row or a cache key.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use crate::names;

/// Why a selector was refused; the text is meant for the `message` of a 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text of a label selector does not follow the grammar, or holds an invalid key or value.
    #[error("unable to parse requirement: {0}")]
    Label(String),
    /// The text of a field selector does not follow the grammar.
    #[error("invalid field selector: {0}")]
    Field(String),
    /// A `LabelSelector` object is malformed: the field (below the selector) and what is wrong with it.
    #[error("{field}: {message}")]
    Object {
        /// Path below the selector, such as `matchExpressions[0].operator`.
        field: String,
        /// What is wrong.
        message: String,
    },
}

/// One condition of a label selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The label key.
    pub key: String,
    /// The condition on its value.
    pub operator: Operator,
}

/// What is asked of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// Present with one of these values. One value prints as `key=value`.
    In(BTreeSet<String>),
    /// Absent, or present with none of these values. One value prints as `key!=value`.
    NotIn(BTreeSet<String>),
    /// Present.
    Exists,
    /// Absent.
    DoesNotExist,
    /// Present and an integer above this.
    GreaterThan(i64),
    /// Present and an integer below this.
    LessThan(i64),
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(set) => value.is_some_and(|v| set.contains(v)),
            Operator::NotIn(set) => value.is_none_or(|v| !set.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(bound) => number().is_some_and(|n| n > *bound),
            Operator::LessThan(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let list = |set: &BTreeSet<String>| set.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        match &self.operator {
            Operator::In(set) if set.len() == 1 => write!(f, "{key}={}", list(set)),
            Operator::In(set) => write!(f, "{key} in ({})", list(set)),
            Operator::NotIn(set) if set.len() == 1 => write!(f, "{key}!={}", list(set)),
            Operator::NotIn(set) => write!(f, "{key} notin ({})", list(set)),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan(n) => write!(f, "{key}>{n}"),
            Operator::LessThan(n) => write!(f, "{key}<{n}"),
        }
    }
}

/// A label selector: all requirements must hold. The empty one selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Label {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Label {
    /// Selects everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Selects nothing: what an absent `LabelSelector` means.
    pub fn nothing() -> Self {
        Self { nothing: true, ..Self::default() }
    }

    /// Reads the text form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>5,m<7`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Parser::new(text).selector().map_err(SelectorError::Label)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// Requires each of these labels with exactly this value, unchecked: the plain selectors of Services and
    /// ReplicationControllers.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut requirements: Vec<_> = labels.into_iter().map(|(k, v)| equals(k, v)).collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// Reads a `meta/v1 LabelSelector` object. Null selects nothing, the empty object everything.
    pub fn from_object(selector: &Value) -> Result<Self, SelectorError> {
        let object = match selector {
            Value::Null => return Ok(Self::nothing()),
            Value::Object(object) => object,
            _ => return Err(malformed("", "must be an object")),
        };
        let mut requirements = Vec::new();
        match object.get("matchLabels") {
            None | Some(Value::Null) => {}
            Some(Value::Object(labels)) => {
                for (key, value) in labels {
                    let value =
                        value.as_str().ok_or_else(|| malformed(&format!("matchLabels.{key}"), "must be a string"))?;
                    names::label_key(key)
                        .and_then(|()| names::label_value(value))
                        .map_err(|e| malformed(&format!("matchLabels.{key}"), &e.to_string()))?;
                    requirements.push(equals(key, value));
                }
            }
            Some(_) => return Err(malformed("matchLabels", "must be an object of strings")),
        }
        match object.get("matchExpressions") {
            None | Some(Value::Null) => {}
            Some(Value::Array(expressions)) => {
                for (i, expression) in expressions.iter().enumerate() {
                    requirements.push(expression_requirement(i, expression)?);
                }
            }
            Some(_) => return Err(malformed("matchExpressions", "must be a list")),
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// Whether the labels, looked up one by one, satisfy every requirement.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    /// Whether the `metadata.labels` of `object` satisfy every requirement.
    pub fn matches_object(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.matches(|key| labels.get(key).and_then(Value::as_str))
    }

    /// The requirements, sorted by key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether every object is selected, so that evaluation can be skipped.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

fn equals(key: &str, value: &str) -> Requirement {
    Requirement { key: key.to_owned(), operator: Operator::In(BTreeSet::from([value.to_owned()])) }
}

fn malformed(field: &str, message: &str) -> SelectorError {
    SelectorError::Object { field: field.to_owned(), message: message.to_owned() }
}

fn expression_requirement(i: usize, expression: &Value) -> Result<Requirement, SelectorError> {
    let at = |field: &str| format!("matchExpressions[{i}].{field}");
    let key = expression["key"].as_str().ok_or_else(|| malformed(&at("key"), "is required"))?;
    names::label_key(key).map_err(|e| malformed(&at("key"), &e.to_string()))?;
    let mut values = BTreeSet::new();
    for value in expression["values"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let value = value.as_str().ok_or_else(|| malformed(&at("values"), "must be strings"))?;
        names::label_value(value).map_err(|e| malformed(&at("values"), &e.to_string()))?;
        values.insert(value.to_owned());
    }
    let name = expression["operator"].as_str().unwrap_or_default();
    let operator = match (name, values.is_empty()) {
        ("In", false) => Operator::In(values),
        ("NotIn", false) => Operator::NotIn(values),
        ("In" | "NotIn", true) => {
            return Err(malformed(&at("values"), "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        ("Exists", true) => Operator::Exists,
        ("DoesNotExist", true) => Operator::DoesNotExist,
        ("Exists" | "DoesNotExist", false) => {
            return Err(malformed(&at("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
        }
        _ => return Err(malformed(&at("operator"), &format!("{name:?} is not a valid label selector operator"))),
    };
    Ok(Requirement { key: key.to_owned(), operator })
}

/// The words of the label selector grammar.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Equals,
    DoubleEquals,
    NotEquals,
    Bang,
    Open,
    Close,
    Comma,
    Greater,
    Less,
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Word(w) => w,
            Self::Equals => "=",
            Self::DoubleEquals => "==",
            Self::NotEquals => "!=",
            Self::Bang => "!",
            Self::Open => "(",
            Self::Close => ")",
            Self::Comma => ",",
            Self::Greater => ">",
            Self::Less => "<",
            Self::End => "",
        })
    }
}

struct Parser<'a> {
    rest: &'a str,
}

type Parsed<T> = Result<T, String>;

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    fn next(&mut self) -> Token<'a> {
        self.rest = self.rest.trim_start();
        let (token, len) = match self.rest.as_bytes() {
            [] => (Token::End, 0),
            [b'=', b'=', ..] => (Token::DoubleEquals, 2),
            [b'=', ..] => (Token::Equals, 1),
            [b'!', b'=', ..] => (Token::NotEquals, 2),
            [b'!', ..] => (Token::Bang, 1),
            [b'(', ..] => (Token::Open, 1),
            [b')', ..] => (Token::Close, 1),
            [b',', ..] => (Token::Comma, 1),
            [b'>', ..] => (Token::Greater, 1),
            [b'<', ..] => (Token::Less, 1),
            _ => {
                let end =
                    self.rest.find(|c: char| c.is_whitespace() || "=!(),><".contains(c)).unwrap_or(self.rest.len());
                (Token::Word(&self.rest[..end]), end)
            }
        };
        self.rest = &self.rest[len..];
        token
    }

    fn peek(&self) -> Token<'a> {
        Parser { rest: self.rest }.next()
    }

    fn selector(&mut self) -> Parsed<Vec<Requirement>> {
        let mut requirements = Vec::new();
        if self.peek() == Token::End {
            return Ok(requirements);
        }
        loop {
            requirements.push(self.requirement()?);
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Comma if matches!(self.peek(), Token::Word(_) | Token::Bang) => {}
                Token::Comma => return Err(format!("found '{}', expected: identifier after ','", self.peek())),
                other => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Parsed<Requirement> {
        let negated = self.peek() == Token::Bang;
        if negated {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other if negated => return Err(format!("found '{other}', expected: identifier")),
            other => return Err(format!("found '{other}', expected: !, identifier, or 'end of string'")),
        };
        names::label_key(key).map_err(|e| format!("key: Invalid value: {key:?}: {e}"))?;
        let operator = if negated {
            Operator::DoesNotExist
        } else if matches!(self.peek(), Token::End | Token::Comma) {
            Operator::Exists
        } else {
            self.operator(key)?
        };
        Ok(Requirement { key: key.to_owned(), operator })
    }

    fn operator(&mut self, key: &str) -> Parsed<Operator> {
        match self.next() {
            Token::Equals | Token::DoubleEquals => Ok(Operator::In(BTreeSet::from([self.value(key)?]))),
            Token::NotEquals => Ok(Operator::NotIn(BTreeSet::from([self.value(key)?]))),
            Token::Word("in") => Ok(Operator::In(self.values(key)?)),
            Token::Word("notin") => Ok(Operator::NotIn(self.values(key)?)),
            Token::Greater => Ok(Operator::GreaterThan(self.number(key)?)),
            Token::Less => Ok(Operator::LessThan(self.number(key)?)),
            other => Err(format!("found '{other}', expected: in, notin, =, ==, !=, >, <")),
        }
    }

    /// The value after `=`: a word, or nothing before a comma or the end.
    fn value(&mut self, key: &str) -> Parsed<String> {
        match self.peek() {
            Token::End | Token::Comma => Ok(String::new()),
            Token::Word(value) => {
                self.next();
                checked(key, value)
            }
            other => Err(format!("found '{other}', expected: identifier")),
        }
    }

    fn number(&mut self, key: &str) -> Parsed<i64> {
        let value = self.value(key)?;
        value.parse().map_err(|_| {
            format!(
                "values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            )
        })
    }

    /// The parenthesised list after `in`; a missing word, as in `(a,)` or `()`, is the empty value.
    fn values(&mut self, key: &str) -> Parsed<BTreeSet<String>> {
        match self.next() {
            Token::Open => {}
            other => return Err(format!("found '{other}' expected: '('")),
        }
        let mut values = BTreeSet::new();
        loop {
            let value = if let Token::Word(word) = self.peek() {
                self.next();
                checked(key, word)?
            } else {
                String::new()
            };
            values.insert(value);
            match self.next() {
                Token::Comma => {}
                Token::Close => return Ok(values),
                other => return Err(format!("found '{other}', expected: ',' or ')'")),
            }
        }
    }
}

fn checked(key: &str, value: &str) -> Parsed<String> {
    names::label_value(value).map_err(|e| format!("values[0][{key}]: Invalid value: {value:?}: {e}"))?;
    Ok(value.to_owned())
}

/// One condition of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The field, such as `metadata.name`.
    pub path: String,
    /// Whether the value must be equal, or must not.
    pub equal: bool,
    /// The value compared with; an absent field counts as the empty string.
    pub value: String,
}

/// A field selector: all requirements must hold. The empty one selects everything.
///
/// Which fields a kind supports is for the caller to check, through [`Field::requirements`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Field {
    requirements: Vec<FieldRequirement>,
}

impl Field {
    /// Reads `path=value,path==value,path!=value`; `\` escapes `\`, `,` and `=` in values.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let found = part.match_indices(['=', '!']).find_map(|(i, _)| {
                ["!=", "==", "="].into_iter().find(|op| part[i..].starts_with(op)).map(|op| (i, op))
            });
            // A '!' that is no operator is no part of a path either.
            let readable = |at: usize| !part[..at].trim().is_empty() && !part[..at].contains('!');
            let Some((at, operator)) = found.filter(|(at, _)| readable(*at)) else {
                return Err(SelectorError::Field(format!(
                    "'{text}'; can't understand '{part}': expected path=value, path==value or path!=value"
                )));
            };
            requirements.push(FieldRequirement {
                path: part[..at].trim().to_owned(),
                equal: operator != "!=",
                value: unescape(&part[at + operator.len()..])?,
            });
        }
        Ok(Self { requirements })
    }

    /// Whether the fields, looked up one by one, satisfy every requirement.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| (field(&r.path).unwrap_or_default() == r.value) == r.equal)
    }

    /// The conditions in the order written.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// The value that `path` is required to equal, if there is such a condition: lets a list by `metadata.name` become
    /// a lookup.
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equal && r.path == path).map(|r| r.value.as_str())
    }

    /// Whether every object is selected.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let value = r.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{}{}{}{value}", if i > 0 { "," } else { "" }, r.path, if r.equal { "=" } else { "!=" })?;
        }
        Ok(())
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = ['\\'].into_iter().chain(other).collect();
                    return Err(SelectorError::Field(format!("invalid escape sequence '{sequence}' in '{value}'")));
                }
            },
            '=' => return Err(SelectorError::Field(format!("unescaped '=' in value '{value}'"))),
            _ => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn matches(selector: &str, labels: &Value) -> bool {
        let selector = Label::parse(selector).unwrap_or_else(|e| panic!("{e}"));
        selector.matches_object(&json!({"metadata": {"labels": labels}}))
    }

    #[test]
    fn label_semantics() {
        let labels = json!({"a": "b", "n": "7", "e": ""});
        for yes in [
            "",
            "a",
            "a=b",
            "a==b",
            "a in (b,c)",
            "a notin (c)",
            "x!=y",
            "x notin (y)",
            "!x",
            "a!=c",
            "n>6",
            "n<8",
            "e=",
            "e in ()",
            "a=b,!x, n",
            " a = b ",
        ] {
            assert!(matches(yes, &labels), "{yes}");
        }
        for no in ["x", "a=c", "a!=b", "!a", "a in (c,d)", "a notin (b)", "n>7", "a>1", "x<3", "a=b,x", "e", "a="]
            .into_iter()
            .filter(|s| *s != "e")
        {
            assert!(!matches(no, &labels), "{no}");
        }
        assert!(matches("a in (b)", &labels) && matches("in=", &json!({"in": ""})));
    }

    #[test]
    fn label_errors() {
        for (bad, text) in [
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, >, <"),
            ("a=b,", "unable to parse requirement: found '', expected: identifier after ','"),
            ("=b", "unable to parse requirement: found '=', expected: !, identifier, or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("!a=b", "unable to parse requirement: found '=', expected: ',' or 'end of string'"),
            ("a=b c", "unable to parse requirement: found 'c', expected: ',' or 'end of string'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
        ] {
            assert_eq!(Label::parse(bad).expect_err(bad).to_string(), text);
        }
        let text = Label::parse("a=-").expect_err("value").to_string();
        assert!(text.starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-\": "), "{text}");
        assert!(Label::parse("a>x").is_err());
        assert!(Label::parse(&format!("a={}", "x".repeat(64))).is_err());
    }

    #[test]
    fn label_text_is_canonical() {
        let text = Label::parse("b in (y,x), a==1,!c,d notin (q),e notin(z,w),f,g>1").expect("valid").to_string();
        assert_eq!(text, "a=1,b in (x,y),!c,d!=q,e notin (w,z),f,g>1");
    }

    #[test]
    fn selector_objects() {
        let selector = Label::from_object(&json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "old", "operator": "DoesNotExist"},
            ],
        }))
        .expect("valid");
        assert_eq!(selector.to_string(), "app=web,!old,tier in (a,b)");
        assert!(Label::from_object(&json!({})).expect("valid").is_everything());
        assert!(!Label::from_object(&Value::Null).expect("valid").matches(|_| None));
        for (bad, field) in [
            (json!({"matchExpressions": [{"key": "a", "operator": "In"}]}), "matchExpressions[0].values"),
            (json!({"matchExpressions": [{"key": "a", "operator": "Has"}]}), "matchExpressions[0].operator"),
            (json!({"matchLabels": {"a": 1}}), "matchLabels.a"),
            (json!({"matchLabels": {"a": "-"}}), "matchLabels.a"),
        ] {
            let SelectorError::Object { field: got, .. } = Label::from_object(&bad).expect_err("invalid") else {
                panic!("object error expected for {bad}");
            };
            assert_eq!(got, field);
        }
    }

    #[test]
    fn fields() {
        let selector = Field::parse("metadata.name=x,status.phase!=Failed,spec.nodeName==").expect("valid");
        assert_eq!(selector.exact("metadata.name"), Some("x"));
        assert_eq!(selector.exact("status.phase"), None);
        assert_eq!(selector.to_string(), "metadata.name=x,status.phase!=Failed,spec.nodeName=");
        let object = |path: &str| match path {
            "metadata.name" => Some("x"),
            "status.phase" => Some("Running"),
            _ => None,
        };
        assert!(selector.matches(object));
        assert!(!Field::parse("metadata.name!=x").expect("valid").matches(object));
        assert_eq!(Field::parse(r"a=b\,c\=d").expect("valid").exact("a"), Some("b,c=d"));
        for bad in ["metadata.name", r"a=\x", "a=b=c", "a in (b)", "=x", "! =x"] {
            assert!(Field::parse(bad).is_err(), "{bad}");
        }
        assert!(Field::parse("").expect("valid").is_everything());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_text_reads_back(text in "[a-c!=<>(),./ é\\\\in]{0,24}") {
            if let Ok(selector) = Label::parse(&text) {
                prop_assert_eq!(Label::parse(&selector.to_string()).map_err(|e| e.to_string()), Ok(selector));
            }
            if let Ok(selector) = Field::parse(&text) {
                prop_assert_eq!(Field::parse(&selector.to_string()).map_err(|e| e.to_string()), Ok(selector));
            }
        }
    }
}
