//! What is said about a value that breaks a rule.

use std::fmt;

use serde_json::Value;

/// Why a field was refused; the `reason` of a cause in a Kubernetes Status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A field that must be there is missing.
    Required,
    /// The value breaks a rule.
    Invalid,
    /// The value is not one of the allowed ones.
    NotSupported,
    /// The value is there twice.
    Duplicate,
    /// The field may not be set, or not be changed.
    Forbidden,
    /// A string is too long.
    TooLong,
    /// A list or an object has too many elements.
    TooMany,
    /// The value has the wrong JSON type.
    TypeInvalid,
    /// The value names something that does not exist.
    NotFound,
}

impl Reason {
    /// The name on the wire (`details.causes[].reason`).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotFound => "FieldValueNotFound",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
        }
    }
}

/// One broken rule: becomes one cause of a 422 Status. Its [`Display`](fmt::Display) form is `field: message`, as in the
/// message of the Status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Why.
    pub reason: Reason,
    /// The path of the field, such as `spec.containers[0].name`.
    pub field: String,
    /// The message without the field, such as `Invalid value: 11: spec.replicas in body should be less than or equal to 10`.
    pub message: String,
}

impl FieldError {
    /// A missing field. `detail` may be empty.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::plain(Reason::Required, field, detail)
    }

    /// A value that breaks a rule.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::with_value(Reason::Invalid, field, value, detail)
    }

    /// A value of the wrong JSON type; `found` is the name of the type that was found.
    pub fn type_invalid(field: impl Into<String>, found: &str, detail: &str) -> Self {
        Self::with_value(Reason::TypeInvalid, field, &Value::from(found), detail)
    }

    /// A value that is not among the supported ones.
    pub fn not_supported<'a>(
        field: impl Into<String>,
        value: &Value,
        supported: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let quoted: Vec<String> = supported.into_iter().map(|text| Value::from(text).to_string()).collect();
        let detail = if quoted.is_empty() { String::new() } else { format!("supported values: {}", quoted.join(", ")) };
        Self::with_value(Reason::NotSupported, field, value, &detail)
    }

    /// A value that is there twice.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::with_value(Reason::Duplicate, field, value, "")
    }

    /// A field that may not be set or changed.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::plain(Reason::Forbidden, field, detail)
    }

    /// A string longer than `max` bytes.
    pub fn too_long(field: impl Into<String>, max: u64) -> Self {
        Self::plain(Reason::TooLong, field, &format!("may not be more than {max} bytes"))
    }

    /// A list or object with `actual` elements where at most `max` are allowed.
    pub fn too_many(field: impl Into<String>, actual: u64, max: u64) -> Self {
        Self::with_value(Reason::TooMany, field, &Value::from(actual), &format!("must have at most {max} items"))
    }

    /// A value that names something that does not exist.
    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::with_value(Reason::NotFound, field, value, "")
    }

    fn plain(reason: Reason, field: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { reason.title().to_owned() } else { format!("{}: {detail}", reason.title()) };
        Self { reason, field: field.into(), message }
    }

    fn with_value(reason: Reason, field: impl Into<String>, value: &Value, detail: &str) -> Self {
        let title = reason.title();
        let message =
            if detail.is_empty() { format!("{title}: {value}") } else { format!("{title}: {value}: {detail}") };
        Self { reason, field: field.into(), message }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// A value whose JSON type does not fit its schema: a body that the real server cannot decode (400 BadRequest).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: expected {expected}, found {found}")]
pub struct TypeError {
    /// The path of the value, such as `spec.replicas`.
    pub path: String,
    /// What the schema demands, such as `integer`.
    pub expected: &'static str,
    /// What was found, such as `string`.
    pub found: &'static str,
}

/// A failure to read a body or the built-in data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The body does not start with the magic bytes `k8s\0`.
    #[error("body is not Kubernetes protobuf: it does not start with the bytes \"k8s\\0\"")]
    NotProtobuf,
    /// The bytes are not a well-formed protobuf message.
    #[error("malformed protobuf in {message} at byte {offset}: {problem}")]
    Malformed {
        /// The message being read.
        message: String,
        /// Where, counted from the start of that message.
        offset: usize,
        /// What was wrong.
        problem: &'static str,
    },
    /// The envelope names a kind that has no protobuf form here.
    #[error("no protobuf message is known for {api_version}, kind {kind}")]
    UnknownKind {
        /// The apiVersion of the envelope.
        api_version: String,
        /// The kind of the envelope.
        kind: String,
    },
    /// The envelope's content is compressed or of another type.
    #[error("unsupported content in the protobuf envelope: {0}")]
    UnsupportedContent(String),
    /// Bytes that must hold JSON do not.
    #[error("field {field} of {message} must hold JSON: {problem}")]
    BadJson {
        /// The message being read.
        message: String,
        /// The field.
        field: String,
        /// The parser's complaint.
        problem: String,
    },
}
