//! Binds claims to volumes, and marks claims for provisioners.

mod index;
mod model;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use self::index::Index;
use self::model::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, Claim, ClaimKey, Class, STORAGE_PROVISIONER, STORAGE_PROVISIONER_BETA, Volume,
};
use self::plan::{Notice, Step};
use crate::Controller;
use crate::access::{Access, Failure, Part};
use crate::events::Note;
use crate::feed::{Change, Follower};
use crate::object::{annotate, at, section, text};
use crate::path::Path;
use crate::queue::{Activity, Outcome, Queue};

const COMPONENT: &str = "persistentvolume-controller";

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    Claim(ClaimKey),
    Volume(String),
}

/// The controller.
pub(crate) struct Binder {
    index: Mutex<Index>,
    queue: Arc<Queue<Item>>,
}

impl Binder {
    pub(crate) fn new(activity: &Arc<Activity>) -> Self {
        Self { index: Mutex::default(), queue: Queue::new(Arc::clone(activity)) }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_claims(&self, claims: impl IntoIterator<Item = ClaimKey>) {
        for claim in claims {
            self.queue.add(Item::Claim(claim));
        }
    }

    fn volume_changed(&self, change: &Change<'_>) {
        let mut index = self.index();
        let name = change.path.name;
        let claims: Vec<ClaimKey> = if change.exists {
            let volume = Volume::new(change.object(), change.revision);
            let claim = volume.claim.as_ref().map(|claim| claim.key.clone());
            index.put_volume(volume);
            self.queue.add(Item::Volume(name.to_owned()));
            claim.into_iter().collect()
        } else {
            let gone = index.remove_volume(name, change.revision);
            gone.and_then(|volume| volume.claim).map(|claim| claim.key).into_iter().collect()
        };
        self.add_claims(claims);
        self.add_claims(index.claims_on(name).cloned().collect::<Vec<_>>());
    }

    fn claim_changed(&self, change: &Change<'_>) {
        let mut index = self.index();
        let key = ClaimKey { namespace: change.path.namespace.to_owned(), name: change.path.name.to_owned() };
        if change.exists {
            let claim = Claim::new(change.object(), change.revision);
            if !claim.volume.is_empty() {
                self.queue.add(Item::Volume(claim.volume.clone()));
            }
            index.put_claim(claim);
            self.queue.add(Item::Claim(key.clone()));
        } else {
            index.remove_claim(&key, change.revision);
        }
        for volume in index.volumes_of(&key) {
            self.queue.add(Item::Volume(volume.name.clone()));
        }
    }

    fn class_changed(&self, change: &Change<'_>) {
        let mut index = self.index();
        if change.exists {
            index.put_class(Class::new(change.object()));
        } else {
            index.remove_class(change.path.name);
        }
        let claims = index.waiting_for_class(change.path.name);
        self.add_claims(claims);
    }

    async fn look_at_claim(&self, access: &Access, key: &ClaimKey) -> Outcome {
        let (steps, claim) = {
            let index = self.index();
            let Some(claim) = index.claim(key) else { return Outcome::Done };
            (plan::claim(&index, claim), claim.clone())
        };
        self.carry_out(access, &steps, Some(&claim)).await
    }

    /// Finds a claim for a volume that is free. Only those that fit are looked at, until one takes it: a volume that
    /// woke all waiting claims would make many volumes for many claims quadratic work.
    async fn offer(&self, access: &Access, volume: &str) -> Outcome {
        let mut asked = HashSet::new();
        loop {
            let Some(key) = self.index().waiting_for_volume(volume, &asked) else { return Outcome::Done };
            let outcome = self.look_at_claim(access, &key).await;
            if outcome != Outcome::Done {
                return outcome;
            }
            asked.insert(key);
        }
    }

    async fn carry_out(&self, access: &Access, steps: &[Step], claim: Option<&Claim>) -> Outcome {
        for step in steps {
            match self.take(access, step, claim).await {
                Ok(()) => {}
                // The object changed since the plan was made: plan again once that is known here.
                Err(Failure::Conflict) => return Outcome::Again,
                Err(Failure::Gone) => return Outcome::Done,
                Err(failure) => {
                    tracing::warn!(?step, %failure, "binding failed");
                    return Outcome::Failed;
                }
            }
        }
        Outcome::Done
    }

    async fn take(&self, access: &Access, step: &Step, claim: Option<&Claim>) -> Result<(), Failure> {
        match step {
            Step::ClaimVolume { volume, chosen } => {
                let claim = claim.ok_or(Failure::Gone)?;
                self.edit_volume(access, volume, Part::Main, |object| {
                    let reference = section(object, &["spec", "claimRef"]);
                    for (field, value) in [
                        ("apiVersion", "v1"),
                        ("kind", "PersistentVolumeClaim"),
                        ("namespace", &claim.key.namespace),
                        ("name", &claim.key.name),
                        ("uid", &claim.uid),
                        ("resourceVersion", &claim.revision.to_string()),
                    ] {
                        reference.insert(field.to_owned(), value.into());
                    }
                    if *chosen {
                        annotate(object, BOUND_BY_CONTROLLER, "yes");
                    }
                })
                .await
            }
            Step::VolumePhase { volume, phase } => {
                self.edit_volume(access, volume, Part::Status, |object| {
                    section(object, &["status"]).insert("phase".to_owned(), (*phase).into());
                })
                .await
            }
            Step::Unbind { volume, wholly } => {
                self.edit_volume(access, volume, Part::Main, |object| {
                    if *wholly {
                        section(object, &["spec"]).remove("claimRef");
                        section(object, &["metadata", "annotations"]).remove(BOUND_BY_CONTROLLER);
                    } else {
                        let reference = section(object, &["spec", "claimRef"]);
                        reference.remove("uid");
                        reference.remove("resourceVersion");
                    }
                })
                .await
            }
            Step::BindClaim { volume, chosen } => {
                self.edit_claim(access, claim, Part::Main, |object| {
                    section(object, &["spec"]).insert("volumeName".to_owned(), volume.as_str().into());
                    if *chosen {
                        annotate(object, BOUND_BY_CONTROLLER, "yes");
                    }
                    annotate(object, BIND_COMPLETED, "yes");
                })
                .await
            }
            Step::ShowBound { volume } => {
                let (volume, _) = access
                    .read(&Path { group: "core", plural: "persistentvolumes", namespace: "", name: volume })
                    .ok_or(Failure::Gone)?;
                let capacity = at(&volume, &["spec", "capacity"]).cloned().unwrap_or_else(|| json!({}));
                let modes = at(&volume, &["spec", "accessModes"]).cloned().unwrap_or_else(|| json!([]));
                self.edit_claim(access, claim, Part::Status, |object| {
                    let first = text(object, &["status", "phase"]) != "Bound";
                    let status = section(object, &["status"]);
                    status.insert("phase".to_owned(), "Bound".into());
                    status.insert("accessModes".to_owned(), modes);
                    if first || !status.contains_key("capacity") {
                        status.insert("capacity".to_owned(), capacity);
                    }
                })
                .await
            }
            Step::ClaimPhase(phase) => {
                self.edit_claim(access, claim, Part::Status, |object| {
                    section(object, &["status"]).insert("phase".to_owned(), (*phase).into());
                })
                .await
            }
            Step::SetClass(class) => {
                self.edit_claim(access, claim, Part::Main, |object| {
                    section(object, &["spec"]).insert("storageClassName".to_owned(), class.as_str().into());
                })
                .await
            }
            Step::Provision(provisioner) => {
                self.edit_claim(access, claim, Part::Main, |object| {
                    annotate(object, STORAGE_PROVISIONER, provisioner);
                    annotate(object, STORAGE_PROVISIONER_BETA, provisioner);
                })
                .await
            }
            Step::Event(notice) => {
                if let Some(claim) = claim {
                    tell(access, claim, notice).await;
                }
                Ok(())
            }
        }
    }

    async fn edit_volume(
        &self,
        access: &Access,
        name: &str,
        part: Part,
        edit: impl FnOnce(&mut Value),
    ) -> Result<(), Failure> {
        let path = Path::core("persistentvolumes", "", name);
        let known = self.index().volume(name).map(|volume| volume.revision).ok_or(Failure::Gone)?;
        let (value, revision) = access.edit(&path, known, part, edit).await?;
        // Taken in at once, so that the next claim does not choose the same volume.
        self.index().put_volume(Volume::new(&value, revision));
        Ok(())
    }

    async fn edit_claim(
        &self,
        access: &Access,
        claim: Option<&Claim>,
        part: Part,
        edit: impl FnOnce(&mut Value),
    ) -> Result<(), Failure> {
        let key = &claim.ok_or(Failure::Gone)?.key;
        let path = Path::core("persistentvolumeclaims", &key.namespace, &key.name);
        let known = self.index().claim(key).map(|claim| claim.revision).ok_or(Failure::Gone)?;
        let (value, revision) = access.edit(&path, known, part, edit).await?;
        self.index().put_claim(Claim::new(&value, revision));
        Ok(())
    }
}

async fn tell(access: &Access, claim: &Claim, notice: &Notice) {
    let about = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.key.namespace, "name": claim.key.name,
        "uid": claim.uid, "resourceVersion": claim.revision.to_string(),
    });
    let note = Note { component: COMPONENT, warning: notice.warning, reason: notice.reason, message: &notice.message };
    access.tell(about, note).await;
}

impl Follower for Binder {
    fn reset(&self) {
        *self.index() = Index::default();
    }

    fn changed(&self, change: &Change<'_>) {
        match (change.path.group, change.path.plural) {
            ("core", "persistentvolumes") => self.volume_changed(change),
            ("core", "persistentvolumeclaims") => self.claim_changed(change),
            ("storage.k8s.io", "storageclasses") => self.class_changed(change),
            _ => {}
        }
    }
}

impl Controller for Binder {
    type Item = Item;

    fn queue(&self) -> &Arc<Queue<Item>> {
        &self.queue
    }

    async fn work(&self, access: &Access, item: &Item) -> Outcome {
        match item {
            Item::Claim(key) => self.look_at_claim(access, key).await,
            Item::Volume(name) => {
                let steps = {
                    let index = self.index();
                    let Some(volume) = index.volume(name) else { return Outcome::Done };
                    plan::volume(&index, volume)
                };
                let outcome = self.carry_out(access, &steps, None).await;
                if outcome == Outcome::Done { self.offer(access, name).await } else { outcome }
            }
        }
    }
}
