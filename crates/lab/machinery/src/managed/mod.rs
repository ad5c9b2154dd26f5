//! Field ownership (`metadata.managedFields`) and server-side apply.
//!
//! Each manager owns a [`Set`] of fields. A plain write ([`update`]) takes what it changes from whoever had it.
//! Server-side apply ([`apply`]) states everything its manager wants: what others own with another value is a conflict,
//! what the manager owned before and no longer states is removed unless somebody else owns it too.
//!
//! The schema decides what a field is: objects are owned field by field and keyed lists element by element, unless
//! they are marked atomic. Where there is no schema, objects are granular and lists atomic.
//!
//! Fields of an object are always compared in the version of the present request; entries of other versions are taken
//! to name the same fields, which holds for all kinds with one version and for conversion strategy None.

mod entry;
mod fields;
mod walk;

use jiff::Timestamp;
use outrigger_lab_schema::{Definitions, Schema};
use serde_json::{Map, Value};

pub use entry::{ANCIENT_CHANGES, Entry, MAX_UPDATE_MANAGERS, Operation, decode};
pub use fields::{Element, FieldsError, Set, path_text};
use walk::Walker;

/// The manager that gets what an object held before its first apply, when nobody was recorded.
pub const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The manager name under which kubectl applies; it may take over from its client-side self.
const KUBECTL: &str = "kubectl";
/// Where client-side apply keeps what it last applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Fields that the server manages and nobody owns.
const STRIPPED: [&[&str]; 11] = [
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// What is known of a write: its kind, who makes it and when.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// The schema of the object.
    pub schema: &'a Schema,
    /// What the schema refers to.
    pub definitions: &'a Definitions,
    /// Group and version of the request, such as `apps/v1`.
    pub api_version: &'a str,
    /// The field manager.
    pub manager: &'a str,
    /// The subresource written to; empty for the object itself.
    pub subresource: &'a str,
    /// The time for entries that change.
    pub now: Timestamp,
    /// The fields that this endpoint ignores, with all below them: `status` on the object itself of kinds that have
    /// the subresource, everything else on the subresource.
    pub reset: &'a Set,
}

/// One field that is owned by another manager with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager, as messages name it: `"kubectl-client-side-apply" using v1`.
    pub manager: String,
    /// The field, such as `.data.a`: the `field` of a cause.
    pub field: String,
    /// The `message` of a cause of reason `FieldManagerConflict`.
    pub message: String,
}

/// Why an apply was refused. The text is the `message` of the Status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// 409 Conflict, with one cause for each field.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// 400 BadRequest: the configuration does not fit the schema.
    #[error("{0}")]
    BadRequest(String),
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: {}: {}", only.message, only.field);
    }
    let mut lines = Vec::new();
    let mut last = None;
    for conflict in conflicts {
        if last != Some(&conflict.manager) {
            lines.push(format!("conflicts with {}:", conflict.manager));
            last = Some(&conflict.manager);
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// The longest name of a manager, in bytes.
pub const MANAGER_MAX: usize = 128;

/// The name of the manager of a plain write: the `fieldManager` of the request, else the product in its User-Agent
/// (`kubectl/v1.32.4 (linux/amd64)` is `kubectl`), else `unknown`.
pub fn manager_name(field_manager: &str, user_agent: &str) -> String {
    if !field_manager.is_empty() {
        return field_manager.to_owned();
    }
    let product = user_agent.split('/').next().unwrap_or_default().chars().filter(|c| !c.is_control());
    let mut name = String::new();
    for c in product {
        if name.len() + c.len_utf8() > MANAGER_MAX {
            break;
        }
        name.push(c);
    }
    if name.is_empty() { "unknown".to_owned() } else { name }
}

impl<'a> Write<'a> {
    fn walker(&self) -> Walker<'a> {
        Walker { root: self.schema, definitions: self.definitions }
    }

    fn entry(&self, operation: Operation, fields: Set) -> Entry {
        Entry {
            manager: self.manager.to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            time: Some(self.now),
            subresource: self.subresource.to_owned(),
            fields,
        }
    }
}

fn stripped(set: &Set) -> Set {
    set.difference(&Set::of_fields(STRIPPED))
}

/// Records who owns what after a plain write (POST, PUT, or any patch but apply), in `new.metadata.managedFields`.
///
/// `new` is the object to be stored; what it says of managed fields is believed unless it says nothing, cannot be read,
/// or came through a subresource: then `old` counts. `[]` and `[{}]` there clear all ownership but what this very
/// write changes.
pub fn update(old: Option<&Value>, new: &mut Value, write: &Write<'_>) {
    let live = || old.and_then(decode).unwrap_or_default();
    let mut entries = if !write.subresource.is_empty() {
        live()
    } else if entry::is_reset(new) {
        Vec::new()
    } else {
        decode(new).filter(|entries| !entries.is_empty()).unwrap_or_else(live)
    };
    // What is left of managedFields in the old object counts as removed, from nobody: no field set ever names it.
    entry::take(new);
    record_update(&mut entries, old.unwrap_or(&Value::Null), new, write);
    entry::cap(&mut entries);
    entry::encode(new, entries);
}

/// Moves what differs between the two objects to the writer, and takes what is gone from everybody.
fn record_update(entries: &mut Vec<Entry>, before: &Value, after: &Value, write: &Write<'_>) {
    let difference = write.walker().compare(before, after);
    let changed = difference.modified.union(&difference.added).outside(write.reset);
    let removed = difference.removed.outside(write.reset);
    for entry in entries.iter_mut() {
        entry.fields = entry.fields.difference(&changed).difference(&removed);
    }
    let own = write.entry(Operation::Update, stripped(&changed));
    if !own.fields.is_empty() {
        match entries.iter_mut().find(|e| e.same_manager(&own)) {
            Some(entry) => {
                entry.fields = entry.fields.union(&own.fields);
                entry.time = own.time;
            }
            None => entries.push(own),
        }
    }
    entries.retain(|e| !e.fields.is_empty());
}

/// Server-side apply: merges the configuration `applied` over `live` in the name of the writer, and gives the object
/// to store. `live` is `None` when the object does not exist yet.
///
/// With `force`, conflicting fields are taken over. Applying what is already there gives back the live object
/// unchanged, times included.
///
/// # Errors
/// [`ApplyError::Conflicts`] lists all conflicts; [`ApplyError::BadRequest`] when `applied` carries managed fields,
/// unknown fields, wrong types, or list elements without their key or twice.
pub fn apply(live: Option<&Value>, applied: &Value, force: bool, write: &Write<'_>) -> Result<Value, ApplyError> {
    if !applied.is_object() {
        return Err(ApplyError::BadRequest("the applied configuration must be an object".into()));
    }
    if !applied["metadata"]["managedFields"].is_null() {
        return Err(ApplyError::BadRequest("metadata.managedFields must be nil".into()));
    }
    match attempt(live, applied, force, write) {
        Err(ApplyError::Conflicts(conflicts)) if write.manager == KUBECTL && write.subresource.is_empty() => {
            let allowed = live.map(|live| owned_by_client_side_apply(live, write)).unwrap_or_default();
            if conflicts.iter().all(|c| allowed.contains(&c.field)) {
                attempt(live, applied, true, write)
            } else {
                Err(ApplyError::Conflicts(conflicts))
            }
        }
        outcome => outcome,
    }
}

/// One run of the algorithm of server-side apply.
fn attempt(live: Option<&Value>, applied: &Value, force: bool, write: &Write<'_>) -> Result<Value, ApplyError> {
    let walker = write.walker();
    let root = walker.root();
    let config = walker.without_nulls(root, &entry::without(applied));
    let mut errors = Vec::new();
    walker.check(root, &config, &mut Vec::new(), &mut errors);
    if !errors.is_empty() {
        return Err(ApplyError::BadRequest(misfit(applied, &errors)));
    }
    let config = walker.remove(root, &config, write.reset).unwrap_or_else(|| Value::Object(Map::new()));

    let before = live.map_or_else(|| Value::Object(Map::new()), entry::without);
    let mut entries = live.and_then(decode).unwrap_or_default();
    if entries.is_empty() && live.is_some() {
        let first = Write { manager: BEFORE_FIRST_APPLY, subresource: "", ..*write };
        record_update(&mut entries, &Value::Null, &before, &first);
    }
    let recorded = entries.clone();

    let own = write.entry(Operation::Apply, walker.field_set(root, &config));
    let previous = entries.iter().position(|e| e.same_manager(&own)).map(|i| entries.remove(i));
    let merged = walker.merge(root, Some(&before), Some(&config));
    let after = match &previous {
        Some(previous) => {
            let pruned = prune(&walker, &merged, &previous.fields, &entries, &own.fields);
            // A container that lost everything is gone, unless the configuration states it, empty as it is.
            walker.merge(root, Some(&pruned), Some(&config))
        }
        None => merged,
    };

    let difference = walker.compare(&before, &after);
    let changed = difference.modified.union(&difference.added).outside(write.reset);
    let removed = difference.removed.outside(write.reset);
    let mut conflicts = Vec::new();
    for other in &mut entries {
        let contested = other.fields.intersection(&changed);
        if !force {
            conflicts.extend(contested.paths().iter().map(|path| conflict(other, path)));
        }
        other.fields = other.fields.difference(&contested).difference(&removed);
    }
    if !conflicts.is_empty() {
        conflicts.sort_by(|a, b| a.manager.cmp(&b.manager));
        return Err(ApplyError::Conflicts(conflicts));
    }
    let mut after = after;
    sync_last_applied(&mut after, applied, write);
    entries.retain(|e| !e.fields.is_empty());
    let mut own = Entry { fields: stripped(&own.fields.outside(write.reset)), ..own };
    if !own.fields.is_empty() {
        entries.push(own.clone());
    }
    // The time stands for a change of the object or of anybody's fields.
    if let Some(previous) = previous
        && after == before
        && same_sets(&recorded, &entries)
    {
        own.time = previous.time;
    }
    if let Some(last) = entries.last_mut().filter(|last| last.same_manager(&own)) {
        *last = own;
    }
    entry::encode(&mut after, entries);
    Ok(after)
}

/// The message for a configuration that does not fit its schema: which object, and every field.
fn misfit(applied: &Value, errors: &[String]) -> String {
    let text = |pointer: &str| applied.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let errors = match errors {
        [only] => only.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    format!(
        "failed to create typed patch object ({}/{}; {}, Kind={}): {errors}",
        text("/metadata/namespace"),
        text("/metadata/name"),
        text("/apiVersion"),
        text("/kind"),
    )
}

/// Whether the same managers own the same fields in the same versions, whatever the order and the times.
fn same_sets(a: &[Entry], b: &[Entry]) -> bool {
    a.len() == b.len()
        && a.iter()
            .all(|x| b.iter().any(|y| x.same_manager(y) && x.api_version == y.api_version && x.fields == y.fields))
}

/// Removes what the manager applied before and no longer states, except where somebody else owns it.
fn prune(walker: &Walker<'_>, merged: &Value, last: &Set, others: &[Entry], own: &Set) -> Value {
    let root = walker.root();
    let empty = || Value::Object(Map::new());
    let named = |set: &Set| walker.with_named_fields(root, set);
    let last = named(last);
    let all = named(&walker.field_set(root, merged));
    // Everything of the last time goes …
    let pruned = walker.remove(root, merged, &last).unwrap_or_else(empty);
    // … what anybody owns comes back …
    let owned = others.iter().fold(own.clone(), |owned, other| owned.union(&other.fields));
    let wanted = named(&walker.field_set(root, &pruned)).union(&named(&owned));
    let pruned = walker.remove(root, merged, &all.difference(&wanted)).unwrap_or_else(empty);
    // … and so does what went along although it was never the manager's.
    let gone = all.difference(&named(&walker.field_set(root, &pruned)));
    walker.remove(root, merged, &gone.intersection(&last)).unwrap_or_else(empty)
}

fn conflict(other: &Entry, path: &[Element]) -> Conflict {
    let mut manager = format!("{:?}", other.manager);
    if !other.subresource.is_empty() {
        manager = format!("{manager} with subresource {:?}", other.subresource);
    }
    if other.operation == Operation::Update {
        manager = format!("{manager} using {}", other.api_version);
    }
    Conflict { message: format!("conflict with {manager}"), field: path_text(path), manager }
}

/// The fields that client-side apply set and that still have its values: kubectl may take these over when it changes
/// to server-side apply.
fn owned_by_client_side_apply(live: &Value, write: &Write<'_>) -> Vec<String> {
    let Some(last) = live["metadata"]["annotations"][LAST_APPLIED].as_str().and_then(|t| serde_json::from_str(t).ok())
    else {
        return Vec::new();
    };
    let walker = write.walker();
    let difference = walker.compare(&last, &entry::without(live));
    let set = walker.field_set(walker.root(), &last);
    let set = set.difference(&difference.modified).difference(&difference.added).difference(&difference.removed);
    set.paths().iter().map(|path| path_text(path)).collect()
}

/// Keeps the annotation of client-side apply current while kubectl applies server-side, so that users can go back.
fn sync_last_applied(object: &mut Value, applied: &Value, write: &Write<'_>) {
    if write.manager != KUBECTL || !write.subresource.is_empty() {
        return;
    }
    let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else {
        return;
    };
    if annotations.contains_key(LAST_APPLIED) {
        let mut applied = applied.clone();
        if let Some(Value::Object(own)) = applied.pointer_mut("/metadata/annotations") {
            own.remove(LAST_APPLIED);
        }
        annotations.insert(LAST_APPLIED.to_owned(), format!("{applied}\n").into());
    }
}

#[cfg(test)]
mod tests;
