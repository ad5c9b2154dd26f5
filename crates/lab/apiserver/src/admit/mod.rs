//! Admission: what the control plane adds to objects, beyond the defaults of their schema.

pub(crate) mod core;
pub(crate) mod storage;

use serde_json::Value;

use crate::api::Api;
use crate::part::Part;
use crate::status::ApiError;
use crate::write::Target;

/// Admission of a new object; may look at other objects.
pub(crate) fn create(api: &Api, target: &Target, object: &mut Value) -> Result<(), ApiError> {
    match (&*target.kind.group, &*target.kind.plural) {
        ("", "persistentvolumeclaims") => storage::default_class(api, object),
        ("", "services") => core::allocate(api, target, object, None),
        ("", "pods") => core::priority(api, target, object),
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            api.admit_definition(target, object);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Admission of a changed object.
pub(crate) fn update(api: &Api, target: &Target, part: Part, old: &Value, new: &mut Value) -> Result<(), ApiError> {
    match (&*target.kind.group, &*target.kind.plural, part) {
        ("", "persistentvolumeclaims", Part::Main) => storage::may_expand(api, target, old, new),
        ("", "services", Part::Main) => core::allocate(api, target, new, Some(old)),
        ("apiextensions.k8s.io", "customresourcedefinitions", Part::Main) => {
            api.admit_definition(target, new);
            Ok(())
        }
        _ => Ok(()),
    }
}
