//! The four patch formats on top of one update path.

use outrigger_lab_machinery::{PatchError, json, merge, strategic};
use serde_json::Value;

use crate::api::Api;
use crate::negotiate;
use crate::object::{meta, metadata};
use crate::ownership::{self, Ownership};
use crate::part::Part;
use crate::request::WriteOptions;
use crate::shape;
use crate::status::ApiError;
use crate::write::{Actor, Target, Written};

/// A patch document of one of the formats.
#[derive(Debug, Clone)]
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7396.
    Merge(Value),
    /// Kubernetes' merge patch that knows lists with keys.
    Strategic(Value),
    /// Server-side apply: the fields that the manager wants.
    Apply(Value),
}

/// Accepted media types, for the 415 text.
const TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

impl Patch {
    /// Decodes a PATCH body by its Content-Type.
    pub(crate) fn decode(content_type: &str, body: &[u8]) -> Result<Self, ApiError> {
        Ok(match content_type {
            "application/json-patch+json" => Self::Json(negotiate::decode_json(body)?),
            "application/merge-patch+json" => Self::Merge(negotiate::decode_json(body)?),
            "application/strategic-merge-patch+json" => Self::Strategic(negotiate::decode_json(body)?),
            "application/apply-patch+yaml" => Self::Apply(negotiate::decode_yaml(body)?),
            other => return Err(ApiError::unsupported_media_type(other, &TYPES)),
        })
    }

    /// Whether this is server-side apply.
    pub(crate) fn is_apply(&self) -> bool {
        matches!(self, Self::Apply(_))
    }
}

/// The failure that a patch that cannot be applied answers with.
pub(crate) fn patch_error(target: &Target, error: PatchError) -> ApiError {
    let kind = &target.kind;
    match error {
        PatchError::BadRequest(message) => ApiError::bad_request(message),
        PatchError::Invalid(message) => ApiError::new(
            http::StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("the server rejected our request due to an error in our request: {message}"),
        )
        .about(&kind.group, &kind.plural, &target.name),
        PatchError::Conflict(message) => target.conflict(message),
        PatchError::TooLarge(message) => ApiError::too_large(message),
    }
}

impl Api {
    /// Patches an object or a part of it.
    pub(crate) fn patch(
        &self,
        actor: Actor<'_>,
        target: &Target,
        part: Part,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        if let Patch::Apply(applied) = patch {
            return self.apply(actor, target, part, applied, options);
        }
        self.modify(actor, target, part, options, Ownership::Open, |current| {
            let mut wanted = Self::patched(target, current, patch)?;
            // A patch that takes the resourceVersion away does not ask for a certain one.
            if meta(&wanted, "resourceVersion").is_empty() {
                let revision = meta(current, "resourceVersion").to_owned();
                metadata(&mut wanted).insert("resourceVersion".to_owned(), Value::String(revision));
            }
            Ok(wanted)
        })
    }

    /// The object that a patch makes of `current`.
    pub(crate) fn patched(target: &Target, current: &Value, patch: &Patch) -> Result<Value, ApiError> {
        let kind = &target.kind;
        let result = match patch {
            Patch::Json(document) => json::apply(current, document),
            Patch::Merge(document) => merge::apply(current, document),
            Patch::Strategic(document) => {
                let schema = if kind.custom.is_some() { None } else { shape::schema(kind) };
                let Some((schema, definitions)) = schema else {
                    return Err(ApiError::unsupported_media_type(
                        "application/strategic-merge-patch+json",
                        &[TYPES[0], TYPES[1], TYPES[3]],
                    ));
                };
                strategic::apply(schema, definitions, current, document)
            }
            Patch::Apply(_) => {
                return Err(ApiError::unsupported_media_type("application/apply-patch+yaml", &TYPES[..2]));
            }
        };
        let patched = result.map_err(|error| patch_error(target, error))?;
        if !patched.is_object() {
            return Err(ApiError::bad_request("the patched document is not an object"));
        }
        // A patch that makes something undecodable is the patch's fault, not that of a malformed body.
        if kind.custom.is_none()
            && let Some((schema, definitions)) = shape::schema(kind)
        {
            outrigger_lab_schema::check_types(schema, definitions, &patched).map_err(|error| {
                ApiError::invalid_field("", "", "", "FieldValueInvalid", "patch", format!("Invalid value: {error}"))
            })?;
        }
        Ok(patched)
    }

    fn apply(
        &self,
        actor: Actor<'_>,
        target: &Target,
        part: Part,
        applied: &Value,
        options: &WriteOptions,
    ) -> Result<Written, ApiError> {
        let kind = &target.kind;
        let mut applied = applied.clone();
        if applied.get("apiVersion").is_none() || applied.get("kind").is_none() {
            return Err(ApiError::bad_request("an applied configuration needs apiVersion and kind"));
        }
        shape::check_identity(target, &mut applied, false)?;
        if crate::object::at(&applied, &["metadata", "managedFields"]).is_some_and(|value| !value.is_null()) {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        // What an applier does not know of the schema it cannot own: always refused.
        let mut unknown = Vec::new();
        let strict = WriteOptions { field_validation: crate::request::FieldValidation::Strict, ..options.clone() };
        shape::check_fields(kind, &mut applied, strict.field_validation, &mut unknown)?;

        if self.store().get(&target.key()).is_none() {
            if part != Part::Main {
                return Err(target.not_found());
            }
            if !meta(&applied, "uid").is_empty() {
                return Err(target.conflict(format!(
                    "uid mismatch: the provided object specified uid {}, and no existing object was found",
                    meta(&applied, "uid")
                )));
            }
            if !meta(&applied, "resourceVersion").is_empty() {
                return Err(target.not_found());
            }
            let created = ownership::apply(target, None, &applied, options, part, self.now())?;
            match self.create(actor, target, created, options, Ownership::Recorded) {
                // Somebody else was faster: merge with what they made.
                Err(error) if error.reason == "AlreadyExists" => {}
                other => return other,
            }
        }
        self.modify(actor, target, part, options, Ownership::Recorded, |current| {
            let mut wanted = ownership::apply(target, Some(current), &applied, options, part, self.now())?;
            for field in ["uid", "resourceVersion"] {
                let value = Some(meta(&applied, field))
                    .filter(|value| !value.is_empty())
                    .unwrap_or(meta(current, field))
                    .to_owned();
                metadata(&mut wanted).insert(field.to_owned(), Value::String(value));
            }
            Ok(wanted)
        })
    }
}
