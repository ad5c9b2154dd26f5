//! Empties namespaces that are being deleted.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_lab_apiserver::kinds::Propagation;
use serde_json::{Value, json};

use crate::Controller;
use crate::access::{Access, Failure, Part};
use crate::feed::{Change, Follower, parse};
use crate::object::{is_terminating, list, section, text};
use crate::path::{Path, ROOT};
use crate::queue::{Activity, Outcome, Queue};

/// The finalizer in a namespace's spec that this controller answers for.
const FINALIZER: &str = "kubernetes";

/// The controller.
pub(crate) struct Namespaces {
    known: Mutex<Known>,
    queue: Arc<Queue<String>>,
}

#[derive(Default)]
struct Known {
    terminating: HashSet<String>,
    /// Key prefixes of all namespaced kinds of which an object was ever seen.
    prefixes: BTreeSet<String>,
}

impl Namespaces {
    pub(crate) fn new(activity: &Arc<Activity>) -> Self {
        Self { known: Mutex::default(), queue: Queue::new(Arc::clone(activity)) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn empty(&self, access: &Access, name: &str) -> Result<(), Failure> {
        let path = Path::core("namespaces", "", name);
        let Some((namespace, revision)) = access.read(&path) else { return Ok(()) };
        if !is_terminating(&namespace) {
            return Ok(());
        }
        let failed = self.delete_content(access, name).await;
        let remaining = Remaining::of(&self.content(access, name));
        if remaining.kinds.is_empty() && failed.is_none() {
            let finish = |namespace: &mut Value| {
                let kept: Vec<Value> = list(namespace, &["spec", "finalizers"])
                    .iter()
                    .filter(|finalizer| finalizer.as_str() != Some(FINALIZER))
                    .cloned()
                    .collect();
                section(namespace, &["spec"]).insert("finalizers".to_owned(), kept.into());
            };
            return access.edit(&path, revision, Part::Finalize, finish).await.map(|_| ());
        }
        let now = access.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let problem = failed.as_ref().map(ToString::to_string);
        let edit = |namespace: &mut Value| show(namespace, &remaining, problem.as_deref(), &now);
        access.edit(&path, revision, Part::Status, edit).await?;
        failed.map_or(Ok(()), Err)
    }

    /// Asks for the deletion of everything in the namespace. Returns a failure if there was one.
    async fn delete_content(&self, access: &Access, name: &str) -> Option<Failure> {
        let mut failed = None;
        for (key, object) in self.content(access, name) {
            let Some(path) = Path::parse(&key) else { continue };
            if is_terminating(&object) {
                continue;
            }
            match access.delete(&path, &object, None, Propagation::Background).await {
                Ok(()) | Err(Failure::Gone) => {}
                Err(failure) => failed = Some(failure),
            }
        }
        failed
    }

    /// Everything in the namespace, pods first: they need time to end, and hold on to other things.
    fn content(&self, access: &Access, name: &str) -> Vec<(Arc<str>, Value)> {
        let mut prefixes: Vec<String> = self.known().prefixes.iter().cloned().collect();
        prefixes.sort_by_key(|prefix| !prefix.ends_with("/core/pods/"));
        let mut content = Vec::new();
        for prefix in prefixes {
            if let Ok(range) = access.store().range(&format!("{prefix}{name}/"), None, 0, None) {
                content.extend(range.versions.into_iter().map(|version| (version.key, parse(&version.value))));
            }
        }
        content
    }
}

/// What is left in a namespace.
#[derive(Debug, Default, PartialEq, Eq)]
struct Remaining {
    /// Objects by kind, written as `pods.` or `deployments.apps`.
    kinds: BTreeMap<String, usize>,
    /// Objects by the finalizers they wait for.
    finalizers: BTreeMap<String, usize>,
}

impl Remaining {
    fn of(content: &[(Arc<str>, Value)]) -> Self {
        let mut remaining = Self::default();
        for (key, object) in content {
            let Some(path) = Path::parse(key) else { continue };
            *remaining.kinds.entry(format!("{}.{}", path.plural, path.api_group())).or_default() += 1;
            for finalizer in list(object, &["metadata", "finalizers"]).iter().filter_map(Value::as_str) {
                *remaining.finalizers.entry(finalizer.to_owned()).or_default() += 1;
            }
        }
        remaining
    }
}

/// Writes the conditions of a deletion that takes its time.
fn show(namespace: &mut Value, remaining: &Remaining, failed: Option<&str>, now: &str) {
    let kinds: Vec<String> =
        remaining.kinds.iter().map(|(kind, count)| format!("{kind} has {count} resource instances")).collect();
    let finalizers: Vec<String> =
        remaining.finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances")).collect();
    let wanted = [
        (
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".to_owned(),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".to_owned(),
        ),
        match failed {
            None => (
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".to_owned(),
            ),
            Some(failed) => (
                "NamespaceDeletionContentFailure",
                true,
                "ContentDeletionFailed",
                format!("Failed to delete all resource types, 1 remaining: {failed}"),
            ),
        },
        match &kinds[..] {
            [] => ("NamespaceContentRemaining", false, "ContentRemoved", "All content successfully removed".to_owned()),
            kinds => (
                "NamespaceContentRemaining",
                true,
                "SomeResourcesRemain",
                format!("Some resources are remaining: {}", kinds.join(", ")),
            ),
        },
        match &finalizers[..] {
            [] => (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".to_owned(),
            ),
            finalizers => (
                "NamespaceFinalizersRemaining",
                true,
                "SomeFinalizersRemain",
                format!("Some content in the namespace has finalizers remaining: {}", finalizers.join(", ")),
            ),
        },
    ];
    let status = section(namespace, &["status"]);
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(conditions) = conditions.as_array_mut() else { return };
    for (kind, set, reason, message) in wanted {
        let value = if set { "True" } else { "False" };
        let old = conditions.iter().position(|condition| text(condition, &["type"]) == kind);
        let same = old.is_some_and(|at| text(&conditions[at], &["status"]) == value);
        let since = match old {
            Some(at) if same => text(&conditions[at], &["lastTransitionTime"]).to_owned(),
            _ => now.to_owned(),
        };
        let condition =
            json!({"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": since});
        match old {
            Some(at) => conditions[at] = condition,
            None => conditions.push(condition),
        }
    }
}

impl Follower for Namespaces {
    fn reset(&self) {
        *self.known() = Known::default();
    }

    fn changed(&self, change: &Change<'_>) {
        let path = change.path;
        let mut known = self.known();
        if path.is_core("namespaces") {
            if change.exists && is_terminating(change.object()) {
                known.terminating.insert(path.name.to_owned());
                self.queue.add(path.name.to_owned());
            } else {
                known.terminating.remove(path.name);
            }
            return;
        }
        if path.namespace.is_empty() {
            return;
        }
        let length = change.key.len() - path.namespace.len() - 1 - path.name.len();
        let prefix = &change.key[..length];
        debug_assert!(prefix.starts_with(ROOT) && prefix.ends_with('/'));
        if !known.prefixes.contains(prefix) {
            known.prefixes.insert(prefix.to_owned());
        }
        if known.terminating.contains(path.namespace) {
            self.queue.add(path.namespace.to_owned());
        }
    }
}

impl Controller for Namespaces {
    type Item = String;
    const WORKERS: usize = 4;

    fn queue(&self) -> &Arc<Queue<String>> {
        &self.queue
    }

    async fn work(&self, access: &Access, name: &String) -> Outcome {
        match self.empty(access, name).await {
            Ok(()) | Err(Failure::Gone) => Outcome::Done,
            Err(Failure::Conflict) => Outcome::Again,
            Err(Failure::Refused(error)) => {
                tracing::warn!(namespace = name, %error, "namespace could not be emptied");
                Outcome::Failed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_keep_their_time_as_long_as_they_hold() {
        let content = [
            ("/registry/core/pods/n/a".into(), json!({"metadata": {"finalizers": ["x/y"]}})),
            ("/registry/apps/deployments/n/a".into(), json!({})),
        ];
        let mut namespace =
            json!({"status": {"phase": "Terminating", "conditions": [{"type": "Other", "status": "True"}]}});
        show(&mut namespace, &Remaining::of(&content), None, "t1");
        let first = namespace.clone();
        show(&mut namespace, &Remaining::of(&content), None, "t2");
        assert_eq!(namespace, first, "nothing to write");
        let of = |namespace: &Value, kind: &str| {
            let conditions = list(namespace, &["status", "conditions"]).to_vec();
            conditions.into_iter().find(|condition| text(condition, &["type"]) == kind).unwrap()
        };
        let left = of(&namespace, "NamespaceContentRemaining");
        assert_eq!(
            text(&left, &["message"]),
            "Some resources are remaining: deployments.apps has 1 resource instances, pods. has 1 resource instances"
        );
        let finalizers = of(&namespace, "NamespaceFinalizersRemaining");
        assert_eq!(text(&finalizers, &["reason"]), "SomeFinalizersRemain");
        show(&mut namespace, &Remaining::of(&content[1..]), Some("no"), "t3");
        assert_eq!(text(&of(&namespace, "NamespaceFinalizersRemaining"), &["lastTransitionTime"]), "t3");
        assert_eq!(text(&of(&namespace, "NamespaceContentRemaining"), &["lastTransitionTime"]), "t1");
        assert_eq!(text(&of(&namespace, "NamespaceDeletionContentFailure"), &["status"]), "True");
        assert_eq!(text(&of(&namespace, "Other"), &["status"]), "True");
    }
}
