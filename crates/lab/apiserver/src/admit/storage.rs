//! Admission of the storage kinds.

use std::cmp::Reverse;

use outrigger_lab_machinery::quantity::Quantity;
use serde_json::{Value, json};

use crate::api::Api;
use crate::kinds::HookContext;
use crate::object::{annotation, at, fields, meta, section, text};
use crate::status::ApiError;
use crate::write::Target;

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// A claim's class, from the field or the annotation of old; `None` if it leaves the choice to the cluster.
fn class_of(claim: &Value) -> Option<&str> {
    annotation(claim, CLASS_ANNOTATION).or_else(|| at(claim, &["spec", "storageClassName"]).and_then(Value::as_str))
}

/// A claim that does not say gets the default class; of several the newest.
pub(crate) fn default_class(api: &Api, claim: &mut Value) -> Result<(), ApiError> {
    if class_of(claim).is_some() {
        return Ok(());
    }
    let range = api.store().range("/registry/storage.k8s.io/storageclasses/", None, usize::MAX, None)?;
    let mut classes: Vec<Value> = range
        .versions
        .iter()
        .filter_map(|version| serde_json::from_slice(&version.value).ok())
        .filter(|class| annotation(class, DEFAULT_CLASS) == Some("true"))
        .collect();
    classes.sort_by_key(|class| (Reverse(meta(class, "creationTimestamp").to_owned()), meta(class, "name").to_owned()));
    if let Some(class) = classes.first() {
        section(claim, "spec").insert("storageClassName".to_owned(), json!(meta(class, "name")));
    }
    Ok(())
}

/// A claim may only ask for more if its class allows expansion.
pub(crate) fn may_expand(api: &Api, target: &Target, old: &Value, new: &Value) -> Result<(), ApiError> {
    let size = |claim: &Value| {
        text(claim, &["spec", "resources", "requests", "storage"]).parse::<Quantity>().ok().map(Quantity::nanos)
    };
    if size(new) <= size(old) || text(old, &["status", "phase"]) != "Bound" {
        return Ok(());
    }
    let refuse = |why: &str| Err(ApiError::forbidden("", "persistentvolumeclaims", &target.name, why));
    let class = class_of(old).unwrap_or_default();
    let allowed = !class.is_empty()
        && api
            .store()
            .get(&format!("/registry/storage.k8s.io/storageclasses//{class}"))
            .and_then(|version| serde_json::from_slice::<Value>(&version.value).ok())
            .is_some_and(|class| class["allowVolumeExpansion"] == true);
    if !allowed {
        return refuse(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        );
    }
    Ok(())
}

/// Claims: the phase at birth; dataSource and dataSourceRef mirror each other.
pub(crate) fn claim(new: &mut Value, old: Option<&Value>, _: &HookContext<'_>) {
    if old.is_none() {
        fields(new).insert("status".to_owned(), json!({"phase": "Pending"}));
        let spec = section(new, "spec");
        let set = |value: Option<&Value>| value.filter(|value| !value.is_null()).cloned();
        match (set(spec.get("dataSource")), set(spec.get("dataSourceRef"))) {
            (Some(source), None) => {
                spec.insert("dataSourceRef".to_owned(), source);
            }
            // Another namespace cannot be said in the old field.
            (None, Some(source)) if source.get("namespace").and_then(Value::as_str).unwrap_or_default().is_empty() => {
                let group = source.get("apiGroup").and_then(Value::as_str).unwrap_or_default();
                let kind = source.get("kind").and_then(Value::as_str).unwrap_or_default();
                if (group.is_empty() && kind == "PersistentVolumeClaim")
                    || (group == "snapshot.storage.k8s.io" && kind == "VolumeSnapshot")
                {
                    spec.insert("dataSource".to_owned(), source);
                }
            }
            _ => {}
        }
    }
}

/// Volumes: the phase at birth, and the time of its last change.
pub(crate) fn volume(new: &mut Value, old: Option<&Value>, context: &HookContext<'_>) {
    match old {
        None => {
            fields(new)
                .insert("status".to_owned(), json!({"phase": "Pending", "lastPhaseTransitionTime": context.now}));
        }
        Some(old) => {
            let phase = text(new, &["status", "phase"]).to_owned();
            if phase != text(old, &["status", "phase"]) {
                let status = section(new, "status");
                if status.get("lastPhaseTransitionTime") == at(old, &["status", "lastPhaseTransitionTime"]) {
                    status.insert("lastPhaseTransitionTime".to_owned(), json!(context.now));
                }
            }
        }
    }
}

/// Drivers have no status; nothing to add beyond the defaults.
pub(crate) fn csi_driver(new: &mut Value, _: Option<&Value>, _: &HookContext<'_>) {
    fields(new).remove("status");
}

/// Attachments start as not attached.
pub(crate) fn attachment(new: &mut Value, old: Option<&Value>, _: &HookContext<'_>) {
    if old.is_none() {
        fields(new).insert("status".to_owned(), json!({"attached": false}));
    }
}
