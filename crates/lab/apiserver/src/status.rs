//! Failures as the Kubernetes API reports them: HTTP code, reason, message and details of a `Status` object.
//!
//! This is the one place where an error of the lab becomes a wire form. Clients test `reason`, `code`, `details.kind`
//! and the causes, hardly ever the text, but the texts follow the field's usual wording so that a person recognises them.

use std::fmt::Display;

use http::StatusCode;
use outrigger_lab_schema::FieldError;
use outrigger_lab_store::Error as StoreError;
use serde_json::{Map, Value, json};

/// One cause inside the details of a failure: which field, why, and in what words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Machine readable reason, such as `FieldValueRequired`.
    pub reason: String,
    /// Text for people.
    pub message: String,
    /// Path of the field, such as `spec.containers[0].name`; empty when the cause is not about a field.
    pub field: String,
}

impl From<FieldError> for Cause {
    fn from(error: FieldError) -> Self {
        Self { reason: error.reason.as_str().to_owned(), message: error.message, field: error.field }
    }
}

/// A failed request: everything that the answer's `Status` says.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code, also the `code` of the Status.
    pub code: StatusCode,
    /// The machine readable reason, such as `NotFound`.
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
    /// Name of the object that the request was about.
    pub name: Option<String>,
    /// API group of that object's resource.
    pub group: Option<String>,
    /// Plural resource name (or the kind, for reason `Invalid`).
    pub kind: Option<String>,
    /// UID of the object, if known.
    pub uid: Option<String>,
    /// What exactly was wrong.
    pub causes: Vec<Cause>,
    /// Seconds after which a retry makes sense.
    pub retry_after: Option<u32>,
    /// Continue token that resumes a list whose snapshot is gone.
    pub continue_token: Option<String>,
    /// Answer with this plain text instead of a Status (unknown paths).
    pub plain: bool,
}

impl ApiError {
    /// A failure with nothing but code, reason and text.
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            name: None,
            group: None,
            kind: None,
            uid: None,
            causes: Vec::new(),
            retry_after: None,
            continue_token: None,
            plain: false,
        }
    }

    /// Adds what the request was about: `group`, plural `resource` and object `name`.
    #[must_use]
    pub fn about(mut self, group: &str, resource: &str, name: &str) -> Self {
        self.group = (!group.is_empty()).then(|| group.to_owned());
        self.kind = (!resource.is_empty()).then(|| resource.to_owned());
        self.name = (!name.is_empty()).then(|| name.to_owned());
        self
    }

    /// Adds one cause.
    #[must_use]
    pub fn cause(mut self, reason: &str, field: impl Into<String>, message: impl Into<String>) -> Self {
        self.causes.push(Cause { reason: reason.to_owned(), message: message.into(), field: field.into() });
        self
    }

    /// 404: the object does not exist.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{} \"{name}\" not found", qualified(group, resource)))
            .about(group, resource, name)
    }

    /// 404: the group is known but has no such resource.
    pub fn no_resource() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
    }

    /// 404 in plain text: the path belongs to nothing that is served.
    pub fn no_path() -> Self {
        let mut error = Self::new(StatusCode::NOT_FOUND, "NotFound", "404 page not found");
        error.plain = true;
        error
    }

    /// 409: an object of that name is there already.
    pub fn already_exists(group: &str, resource: &str, name: &str, terminating: bool) -> Self {
        let prefix = if terminating { "object is being deleted: " } else { "" };
        Self::new(
            StatusCode::CONFLICT,
            "AlreadyExists",
            format!("{prefix}{} \"{name}\" already exists", qualified(group, resource)),
        )
        .about(group, resource, name)
    }

    /// 409: somebody else changed the object, or a precondition does not hold.
    pub fn conflict(group: &str, resource: &str, name: &str, why: impl Display) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "Conflict",
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(group, resource)),
        )
        .about(group, resource, name)
    }

    /// 409 for a stale resourceVersion.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        Self::conflict(
            group,
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422 with the causes given; `kind` is the Kind, not the resource.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let texts: Vec<String> = causes
            .iter()
            .map(|cause| {
                if cause.field.is_empty() {
                    cause.message.clone()
                } else {
                    format!("{}: {}", cause.field, cause.message)
                }
            })
            .collect();
        let list = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let full = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let mut error =
            Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", format!("{full} \"{name}\" is invalid: {list}"))
                .about(group, kind, name);
        error.causes = causes;
        error
    }

    /// 422 about one field.
    pub fn invalid_field(
        group: &str,
        kind: &str,
        name: &str,
        reason: &str,
        field: &str,
        message: impl Into<String>,
    ) -> Self {
        Self::invalid(
            group,
            kind,
            name,
            vec![Cause { reason: reason.to_owned(), message: message.into(), field: field.to_owned() }],
        )
    }

    /// 403: the user may not do this.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl Display) -> Self {
        let object = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
        Self::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            format!("{}{object} is forbidden: {why}", qualified(group, resource)),
        )
        .about(group, resource, name)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406 for an Accept header that nothing here satisfies.
    pub fn not_acceptable(offered: &[&str]) -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            format!("only the following media types are accepted: {}", offered.join(", ")),
        )
    }

    /// 415 for a body of an unknown type.
    pub fn unsupported_media_type(got: &str, offered: &[&str]) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format ({got:?}) - accepted media types include: {}",
                offered.join(", ")
            ),
        )
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    /// 410: the revision asked for is compacted.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// 504: the revision asked for has not happened yet.
    pub fn future_revision(asked: u64, current: u64) -> Self {
        let mut error = Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            format!("Too large resource version: {asked}, current: {current}"),
        )
        .cause("ResourceVersionTooLarge", "", "Too large resource version");
        error.retry_after = Some(1);
        error
    }

    /// 500: something that should not happen; `context` says what was being done.
    pub fn internal(context: impl Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", format!("Internal error occurred: {context}"))
            .cause("", "", context.to_string())
    }

    /// The `Status` object.
    pub fn to_status(&self) -> Value {
        let mut details = Map::new();
        for (key, value) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if let Some(value) = value {
                details.insert(key.to_owned(), Value::String(value.clone()));
            }
        }
        if !self.causes.is_empty() {
            let causes = self
                .causes
                .iter()
                .map(|cause| {
                    let mut object = Map::new();
                    for (key, value) in
                        [("reason", &cause.reason), ("message", &cause.message), ("field", &cause.field)]
                    {
                        if !value.is_empty() {
                            object.insert(key.to_owned(), Value::String(value.clone()));
                        }
                    }
                    Value::Object(object)
                })
                .collect();
            details.insert("causes".to_owned(), Value::Array(causes));
        }
        if let Some(seconds) = self.retry_after {
            details.insert("retryAfterSeconds".to_owned(), json!(seconds));
        }
        let mut metadata = Map::new();
        if let Some(token) = &self.continue_token {
            metadata.insert("continue".to_owned(), Value::String(token.clone()));
        }
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Compacted { requested, compacted } => Self::expired(format!(
                "The resourceVersion for the provided list is too old: {requested} ({compacted})"
            )),
            StoreError::Future { requested, current } => Self::future_revision(requested, current),
            StoreError::TooLarge { .. } => Self::too_large(error.to_string()),
            StoreError::Closed => {
                let mut error =
                    Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "the server is stopping");
                error.retry_after = Some(1);
                error
            }
            other => {
                tracing::error!(error = &other as &dyn std::error::Error, "store operation failed");
                Self::internal(other)
            }
        }
    }
}

/// `resource.group`, or `resource` for the core group.
pub(crate) fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

/// The `Status` that a completed deletion answers with.
pub(crate) fn success(group: &str, resource: &str, name: &str, uid: &str) -> Value {
    let mut details = Map::new();
    for (key, value) in [("name", name), ("group", group), ("kind", resource), ("uid", uid)] {
        if !value.is_empty() {
            details.insert(key.to_owned(), Value::String(value.to_owned()));
        }
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_names_kind_group_and_every_cause() {
        let error = ApiError::invalid(
            "storage.k8s.io",
            "CSIDriver",
            "x",
            vec![
                Cause { reason: "FieldValueRequired".into(), message: "Required value".into(), field: "spec".into() },
                Cause {
                    reason: "FieldValueInvalid".into(),
                    message: "Invalid value: 1".into(),
                    field: "spec.a".into(),
                },
            ],
        );
        let status = error.to_status();
        assert_eq!(status["code"], 422);
        assert_eq!(status["details"]["kind"], "CSIDriver");
        assert_eq!(status["details"]["causes"][1]["field"], "spec.a");
        assert_eq!(
            status["message"],
            "CSIDriver.storage.k8s.io \"x\" is invalid: [spec: Required value, spec.a: Invalid value: 1]"
        );
    }

    #[test]
    fn not_found_uses_the_resource_and_group() {
        let status = ApiError::not_found("apps", "deployments", "x").to_status();
        assert_eq!(status["message"], "deployments.apps \"x\" not found");
        assert_eq!(status["details"], json!({"name": "x", "group": "apps", "kind": "deployments"}));
    }
}
