//! The parts of an object that are written apart, and what changes in one part mean for the whole.

use serde_json::Value;

use crate::kinds::{Generation, KindInfo};
use crate::object::{self, fields, metadata};

/// Which part of the object a write is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The object without its status.
    Main,
    /// Its status.
    Status,
    /// The field at this pointer.
    Pointer(&'static str),
}

impl Part {
    /// Name of the subresource, empty for the object itself.
    pub(crate) fn subresource(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Status => "status",
            Self::Pointer("/spec/finalizers") => "finalize",
            Self::Pointer("/spec/ephemeralContainers") => "ephemeralcontainers",
            Self::Pointer("/status/conditions") => "approval",
            Self::Pointer("/spec/nodeName") => "binding",
            Self::Pointer(_) => "resize",
        }
    }
}

pub(crate) fn metadata_field(value: &Value, field: &str) -> Option<Value> {
    object::at(value, &["metadata", field]).filter(|value| !value.is_null()).cloned()
}

/// Whether nobody has to confirm the end any more.
pub(crate) fn grace_is_over(value: &Value) -> bool {
    object::at(value, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(0) == 0
}

/// A namespace also waits for its own kind of finalizers.
pub(crate) fn namespace_pending(kind: &KindInfo, value: &Value) -> bool {
    &*kind.plural == "namespaces"
        && kind.group.is_empty()
        && object::at(value, &["spec", "finalizers"]).and_then(Value::as_array).is_some_and(|list| !list.is_empty())
}

/// Keeps of `wanted` only what this part of the object may write.
pub(crate) fn select_part(kind: &KindInfo, part: Part, current: &Value, wanted: &mut Value) {
    match part {
        Part::Main => {
            if kind.status {
                object::put(fields(wanted), "status", current.get("status").cloned());
            }
        }
        Part::Status => {
            let status = fields(wanted).remove("status");
            let managed = metadata_field(wanted, "managedFields");
            let mut labels = metadata_field(wanted, "labels");
            let mut annotations = metadata_field(wanted, "annotations");
            let mut finalizers = metadata_field(wanted, "finalizers");
            if kind.custom.is_some() {
                // Custom kinds keep their metadata on status writes.
                labels = metadata_field(current, "labels");
                annotations = metadata_field(current, "annotations");
                finalizers = metadata_field(current, "finalizers");
            }
            *wanted = current.clone();
            object::put(fields(wanted), "status", status);
            let metadata = metadata(wanted);
            object::put(metadata, "managedFields", managed);
            object::put(metadata, "labels", labels);
            object::put(metadata, "annotations", annotations);
            object::put(metadata, "finalizers", finalizers);
        }
        Part::Pointer(pointer) => {
            let value = wanted.pointer(pointer).cloned();
            let managed = metadata_field(wanted, "managedFields");
            *wanted = current.clone();
            object::put(metadata(wanted), "managedFields", managed);
            let (parent, leaf) = pointer.rsplit_once('/').unwrap_or(("", pointer));
            let section = match parent.strip_prefix('/') {
                Some(name) if !name.is_empty() => object::section(wanted, name),
                _ => fields(wanted),
            };
            object::put(section, leaf, value);
        }
    }
}

pub(crate) fn generation_changes(rule: Generation, current: &Value, wanted: &Value) -> bool {
    let annotations = |value: &Value| metadata_field(value, "annotations");
    match rule {
        Generation::None => false,
        Generation::Spec => current.get("spec") != wanted.get("spec"),
        Generation::SpecAndAnnotations => {
            current.get("spec") != wanted.get("spec") || annotations(current) != annotations(wanted)
        }
        Generation::Content => content_differs(current, wanted, &["metadata", "status"]),
        Generation::ContentAndStatus => content_differs(current, wanted, &["metadata"]),
    }
}

fn content_differs(current: &Value, wanted: &Value, except: &[&str]) -> bool {
    let (Some(current), Some(wanted)) = (current.as_object(), wanted.as_object()) else { return true };
    let relevant = |key: &&String| !except.contains(&key.as_str());
    current.keys().chain(wanted.keys()).filter(relevant).any(|key| current.get(key) != wanted.get(key))
}
