//! Keeps claims that pods use, and volumes that are bound, from being deleted.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::Controller;
use crate::access::{Access, Failure, Part};
use crate::feed::{Change, Follower};
use crate::object::{at, has_finalizer, is_terminating, list, remove_finalizer, text};
use crate::path::Path;
use crate::queue::{Activity, Outcome, Queue};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

/// The controller for claims.
pub(crate) struct ClaimProtection {
    uses: Mutex<Uses>,
    queue: Arc<Queue<Place>>,
}

/// Namespace and name.
type Place = (String, String);

/// Which pods hold on to which claims.
#[derive(Default)]
struct Uses {
    /// By pod.
    claims: HashMap<Place, HashSet<String>>,
    /// By claim.
    pods: HashMap<Place, HashSet<String>>,
}

impl Uses {
    /// Takes in the claims that a pod uses now. Returns those it used before.
    fn set(&mut self, pod: Place, claims: HashSet<String>) -> HashSet<String> {
        let (namespace, name) = pod.clone();
        let before = if claims.is_empty() { self.claims.remove(&pod) } else { self.claims.insert(pod, claims.clone()) };
        let before = before.unwrap_or_default();
        for claim in before.difference(&claims) {
            let place = (namespace.clone(), claim.clone());
            if let Some(pods) = self.pods.get_mut(&place) {
                pods.remove(&name);
                if pods.is_empty() {
                    self.pods.remove(&place);
                }
            }
        }
        for claim in claims.difference(&before) {
            self.pods.entry((namespace.clone(), claim.clone())).or_default().insert(name.clone());
        }
        before
    }
}

/// The claims that a pod holds on to: none before it has a node, none after it has ended.
fn claims_of(pod: &Value) -> HashSet<String> {
    if text(pod, &["spec", "nodeName"]).is_empty() || matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed")
    {
        return HashSet::new();
    }
    let name = text(pod, &["metadata", "name"]);
    let claim = |volume: &Value| match text(volume, &["persistentVolumeClaim", "claimName"]) {
        "" => at(volume, &["ephemeral"]).map(|_| format!("{name}-{}", text(volume, &["name"]))),
        claim => Some(claim.to_owned()),
    };
    list(pod, &["spec", "volumes"]).iter().filter_map(claim).collect()
}

impl ClaimProtection {
    pub(crate) fn new(activity: &Arc<Activity>) -> Self {
        Self { uses: Mutex::default(), queue: Queue::new(Arc::clone(activity)) }
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower for ClaimProtection {
    fn reset(&self) {
        *self.uses() = Uses::default();
    }

    fn changed(&self, change: &Change<'_>) {
        let place = || (change.path.namespace.to_owned(), change.path.name.to_owned());
        if change.path.is_core("persistentvolumeclaims") {
            if change.exists && is_terminating(change.object()) {
                self.queue.add(place());
            }
        } else if change.path.is_core("pods") {
            let now = if change.exists { claims_of(change.object()) } else { HashSet::new() };
            let before = self.uses().set(place(), now.clone());
            for released in before.difference(&now) {
                self.queue.add((change.path.namespace.to_owned(), released.clone()));
            }
        }
    }
}

impl Controller for ClaimProtection {
    type Item = Place;

    fn queue(&self) -> &Arc<Queue<Place>> {
        &self.queue
    }

    async fn work(&self, access: &Access, place: &Place) -> Outcome {
        if self.uses().pods.contains_key(place) {
            return Outcome::Done;
        }
        unprotect(access, &Path::core("persistentvolumeclaims", &place.0, &place.1), CLAIM, |_| true).await
    }
}

/// The controller for volumes.
pub(crate) struct VolumeProtection {
    queue: Arc<Queue<String>>,
}

impl VolumeProtection {
    pub(crate) fn new(activity: &Arc<Activity>) -> Self {
        Self { queue: Queue::new(Arc::clone(activity)) }
    }
}

impl Follower for VolumeProtection {
    fn reset(&self) {}

    fn changed(&self, change: &Change<'_>) {
        if change.path.is_core("persistentvolumes") && change.exists && is_terminating(change.object()) {
            self.queue.add(change.path.name.to_owned());
        }
    }
}

impl Controller for VolumeProtection {
    type Item = String;

    fn queue(&self) -> &Arc<Queue<String>> {
        &self.queue
    }

    async fn work(&self, access: &Access, name: &String) -> Outcome {
        let unbound = |volume: &Value| text(volume, &["status", "phase"]) != "Bound";
        unprotect(access, &Path::core("persistentvolumes", "", name), VOLUME, unbound).await
    }
}

/// Removes the finalizer of an object that is being deleted and that nobody needs.
async fn unprotect(access: &Access, path: &Path<'_>, finalizer: &str, free: impl Fn(&Value) -> bool) -> Outcome {
    let Some((object, revision)) = access.read(path) else { return Outcome::Done };
    if !is_terminating(&object) || !has_finalizer(&object, finalizer) || !free(&object) {
        return Outcome::Done;
    }
    let edit = |object: &mut Value| {
        remove_finalizer(object, finalizer);
    };
    match access.edit(path, revision, Part::Main, edit).await {
        Ok(_) | Err(Failure::Gone) => Outcome::Done,
        Err(Failure::Conflict) => Outcome::Again,
        Err(Failure::Refused(error)) => {
            tracing::warn!(object = %path, %error, "protection could not be lifted");
            Outcome::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_hold_claims_while_they_may_run() {
        let mut pod = json!({
            "metadata": {"name": "p"},
            "spec": {"volumes": [
                {"name": "a", "persistentVolumeClaim": {"claimName": "c"}},
                {"name": "e", "ephemeral": {"volumeClaimTemplate": {}}},
                {"name": "x", "emptyDir": {}},
            ]},
        });
        assert!(claims_of(&pod).is_empty(), "no node yet");
        pod["spec"]["nodeName"] = "n".into();
        assert_eq!(claims_of(&pod), HashSet::from(["c".to_owned(), "p-e".to_owned()]));
        pod["status"] = json!({"phase": "Succeeded"});
        assert!(claims_of(&pod).is_empty());
    }

    #[test]
    fn uses_follow_the_pods() {
        let place = |name: &str| ("n".to_owned(), name.to_owned());
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<HashSet<_>>();
        let mut uses = Uses::default();
        assert!(uses.set(place("p"), set(&["a", "b"])).is_empty());
        uses.set(place("q"), set(&["b"]));
        assert_eq!(uses.set(place("p"), set(&[])), set(&["a", "b"]));
        assert!(!uses.pods.contains_key(&place("a")));
        assert!(uses.pods.contains_key(&place("b")));
        uses.set(place("q"), set(&["c"]));
        assert_eq!(uses.pods.keys().collect::<Vec<_>>(), [&place("c")]);
    }
}
