//! Deletes what nobody owns any more.

mod graph;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_lab_apiserver::kinds::Propagation;
use serde_json::{Value, json};

use self::graph::{FOREGROUND, Graph, Head, ORPHAN, Plan, Uid};
use crate::Controller;
use crate::access::{Access, Failure, Part};
use crate::events::Note;
use crate::feed::{Change, Follower};
use crate::object::{has_finalizer, list, remove_finalizer, section, text};
use crate::path::Path;
use crate::queue::{Activity, Outcome, Queue};

/// The controller.
pub(crate) struct Collector {
    graph: Mutex<Graph>,
    queue: Arc<Queue<Uid>>,
}

impl Collector {
    pub(crate) fn new(activity: &Arc<Activity>) -> Self {
        Self { graph: Mutex::default(), queue: Queue::new(Arc::clone(activity)) }
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn carry_out(&self, access: &Access, uid: Uid) -> Result<(), Failure> {
        let (plan, misplaced, place) = {
            let graph = self.graph();
            let served = |api_version: &str, kind: &str| access.serves(api_version, kind);
            (graph.plan(uid, served), graph.misplaced(uid, served), graph.locate(uid))
        };
        let Some((key, revision)) = place else { return Ok(()) };
        let Some(path) = Path::parse(&key) else { return Ok(()) };
        if !misplaced.is_empty() {
            let (object, _) = access.read(&path).ok_or(Failure::Gone)?;
            for owner in misplaced {
                let message = format!(
                    "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace {:?}",
                    owner.api_version, owner.kind, path.namespace, owner.name, owner.uid, path.namespace
                );
                tell(access, &object, &message).await;
            }
        }
        match plan {
            Plan::Nothing => Ok(()),
            Plan::Delete | Plan::DeleteForeground => {
                let (object, found) = access.read(&path).ok_or(Failure::Gone)?;
                if found != revision {
                    access.catch_up(found).await;
                    return Err(Failure::Conflict);
                }
                let propagation = match plan {
                    Plan::DeleteForeground => Propagation::Foreground,
                    _ if has_finalizer(&object, ORPHAN) => Propagation::Orphan,
                    _ if has_finalizer(&object, FOREGROUND) => Propagation::Foreground,
                    _ => Propagation::Background,
                };
                access.delete(&path, &object, Some(revision), propagation).await
            }
            Plan::Release(owners) => release(access, &path, revision, &owners).await,
            Plan::Orphan(dependents) if dependents.is_empty() => self.finish(access, &path, revision, ORPHAN).await,
            Plan::Orphan(dependents) => {
                // Each one's event brings this object back here.
                for dependent in dependents {
                    let Some((key, revision)) = self.graph().locate(dependent) else { continue };
                    let Some(path) = Path::parse(&key) else { continue };
                    match release(access, &path, revision, &[uid]).await {
                        Ok(()) | Err(Failure::Gone) => {}
                        Err(failure) => return Err(failure),
                    }
                }
                Ok(())
            }
            Plan::Finish => self.finish(access, &path, revision, FOREGROUND).await,
        }
    }

    async fn finish(&self, access: &Access, path: &Path<'_>, revision: u64, finalizer: &str) -> Result<(), Failure> {
        let done = access.edit(path, revision, Part::Main, |object| {
            remove_finalizer(object, finalizer);
        });
        done.await.map(|_| ())
    }
}

/// Removes an object's references to these owners.
async fn release(access: &Access, path: &Path<'_>, revision: u64, owners: &[Uid]) -> Result<(), Failure> {
    let edit = |object: &mut Value| {
        let kept: Vec<Value> = list(object, &["metadata", "ownerReferences"])
            .iter()
            .filter(|reference| !owners.contains(&Uid::new(text(reference, &["uid"]))))
            .cloned()
            .collect();
        let metadata = section(object, &["metadata"]);
        if kept.is_empty() {
            metadata.remove("ownerReferences");
        } else {
            metadata.insert("ownerReferences".to_owned(), kept.into());
        }
    };
    access.edit(path, revision, Part::Main, edit).await.map(|_| ())
}

async fn tell(access: &Access, object: &Value, message: &str) {
    let field = |path: &[&str]| text(object, path).to_owned();
    let about = json!({
        "apiVersion": field(&["apiVersion"]), "kind": field(&["kind"]), "namespace": field(&["metadata", "namespace"]),
        "name": field(&["metadata", "name"]), "uid": field(&["metadata", "uid"]),
        "resourceVersion": field(&["metadata", "resourceVersion"]),
    });
    let note =
        Note { component: "garbage-collector-controller", warning: true, reason: "OwnerRefInvalidNamespace", message };
    access.tell(about, note).await;
}

impl Follower for Collector {
    fn reset(&self) {
        *self.graph() = Graph::default();
    }

    fn changed(&self, change: &Change<'_>) {
        // Events own nothing, are owned by nobody, and are the most numerous objects.
        if change.path.plural == "events" && matches!(change.path.group, "core" | "events.k8s.io") {
            return;
        }
        let affected = if change.exists {
            match serde_json::from_slice::<Head>(change.bytes) {
                Ok(head) => self.graph().put(change.key, change.revision, head),
                Err(error) => {
                    tracing::error!(object = %change.path, %error, "metadata cannot be read");
                    return;
                }
            }
        } else {
            self.graph().delete(change.key)
        };
        for uid in affected {
            self.queue.add(uid);
        }
    }
}

impl Controller for Collector {
    type Item = Uid;
    /// Cascades are wide, and with durable writes each waits for the disk.
    const WORKERS: usize = 8;

    fn queue(&self) -> &Arc<Queue<Uid>> {
        &self.queue
    }

    async fn work(&self, access: &Access, uid: &Uid) -> Outcome {
        match self.carry_out(access, *uid).await {
            Ok(()) | Err(Failure::Gone) => Outcome::Done,
            Err(Failure::Conflict) => Outcome::Again,
            Err(Failure::Refused(error)) => {
                tracing::warn!(%error, "garbage collection failed");
                Outcome::Failed
            }
        }
    }
}
