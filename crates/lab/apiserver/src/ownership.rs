//! Field ownership: `managedFields` of plain writes and of server-side apply.

use jiff::Timestamp;
use outrigger_lab_machinery::merge;
use serde_json::Value;

use crate::api::Api;
use crate::kinds::KindInfo;
use crate::patch::patch_error;
use crate::request::WriteOptions;
use crate::status::ApiError;
use crate::write::{Actor, Part, Target};

/// Brings `managedFields` up to date with a plain write.
#[expect(clippy::too_many_arguments, reason = "the parts of one request")]
pub(crate) fn update(
    _api: &Api,
    _kind: &KindInfo,
    _old: Option<&Value>,
    _new: &mut Value,
    _actor: Actor<'_>,
    _options: &WriteOptions,
    _subresource: &str,
    _now: Timestamp,
) {
}

/// The object that results from a manager applying a configuration.
pub(crate) fn apply(
    _api: &Api,
    target: &Target,
    live: Option<&Value>,
    applied: &Value,
    _options: &WriteOptions,
    _part: Part,
    _now: Timestamp,
) -> Result<Value, ApiError> {
    match live {
        None => Ok(applied.clone()),
        Some(live) => merge::apply(live, applied).map_err(|error| patch_error(target, error)),
    }
}
