//! Work on one volume object: its guard, and its deletion.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, SecretReference};
use kube::ResourceExt;
use outrigger_csi::proto;
use outrigger_kube::{EventType, Outcome};
use tokio::time::Instant;

use super::api;
use super::claims::status_text;
use super::decide::{self, VolumeStep};
use super::names;
use super::objects::Volume;
use super::shared::Shared;
use super::storage_class::{self, SecretPurpose, TemplateClaim};

/// One pass over the volume of this name.
pub(super) async fn work(shared: Arc<Shared>, name: String) -> Outcome {
    let Some(known) = shared.cache.read().volumes.get(&name).cloned() else {
        return Outcome::Done;
    };
    if decide::volume_step(&known) == VolumeStep::Ignore {
        return Outcome::Done;
    }
    let _guard = shared.locks.lock(&name).await;
    // The cache may lag; what cannot be undone is decided by the object as it is now.
    let object = match shared.objects.volume(&name).await {
        Ok(Some(object)) => object,
        Ok(None) => return Outcome::Done,
        Err(error) => {
            tracing::warn!(volume = name, error = &error as &dyn std::error::Error, "failed to read a volume");
            return Outcome::Retry;
        }
    };
    let Some(current) = Volume::of_driver(&object, &shared.config.plan.driver) else {
        return Outcome::Done;
    };
    let step = decide::volume_step(&current);
    match step {
        VolumeStep::Ignore => Outcome::Done,
        VolumeStep::AddFinalizer | VolumeStep::RemoveFinalizer => {
            match shared.objects.guard_volume(&object, step == VolumeStep::AddFinalizer).await {
                Ok(true) => Outcome::Done,
                Ok(false) => Outcome::Retry,
                Err(error) => {
                    tracing::warn!(
                        volume = name,
                        error = &error as &dyn std::error::Error,
                        "failed to change a volume's finalizer"
                    );
                    Outcome::Retry
                }
            }
        }
        VolumeStep::Delete => {
            let started = Instant::now();
            let class = object.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()).unwrap_or_default();
            match delete(&shared, &object).await {
                Ok(()) => {
                    tracing::info!(volume = name, "volume deleted");
                    shared.metrics.deleted(&class, Some(started.elapsed()));
                    Outcome::Done
                }
                Err(text) => {
                    tracing::warn!(volume = name, error = text, "failed to delete a volume");
                    shared.metrics.deleted(&class, None);
                    Outcome::Retry
                }
            }
        }
    }
}

/// Deletes the storage, then the object. The error is for the log; what the user should know is an event.
async fn delete(shared: &Shared, object: &PersistentVolume) -> Result<(), String> {
    let name = object.name_any();
    let report = |text: String| {
        shared.recorder.event(&reference(object), EventType::Warning, "VolumeFailedDelete", text.clone());
        text
    };
    let spec = object.spec.as_ref();
    let Some(source) = spec.and_then(|spec| spec.csi.as_ref()) else {
        return Err(report("invalid CSI PV".to_owned()));
    };
    if shared.config.driver.attach {
        let node = shared.cache.read().attached_to(&name).map(str::to_owned);
        if let Some(node) = node {
            return Err(report(format!("persistentvolume {name} is still attached to node {node}")));
        }
    }
    // Its object exists, so no call for it may be repeated from here on: that would bring the storage back.
    if let Some(uid) = spec.and_then(|spec| spec.claim_ref.as_ref()).and_then(|claim| claim.uid.as_deref()) {
        shared.settle(uid);
    }
    let secrets = deletion_secrets(shared, object).await.map_err(&report)?;
    let request = proto::DeleteVolumeRequest { volume_id: source.volume_handle.clone(), secrets };
    if let Err(error) = shared.driver.delete_volume(request, shared.config.timeout).await {
        return Err(report(status_text(&error.status)));
    }
    let left = shared
        .objects
        .delete_volume(&name, &object.uid().unwrap_or_default())
        .await
        .map_err(|error| api::text(&error))?;
    let Some(left) = left else {
        return Ok(());
    };
    match shared.objects.guard_volume(&left, false).await {
        Ok(true) => Ok(()),
        Ok(false) => Err("the object changed while its finalizer was being removed".to_owned()),
        Err(error) => Err(api::text(&error)),
    }
}

/// The contents of the secret for the deletion. It may be gone by now, with the namespace it lived in: then the driver is asked
/// without, and decides.
async fn deletion_secrets(shared: &Shared, object: &PersistentVolume) -> Result<HashMap<String, String>, String> {
    let Some(reference) = deletion_secret(shared, object)? else {
        return Ok(HashMap::new());
    };
    match shared.objects.secret(Some(&reference)).await {
        Ok(secrets) => Ok(secrets),
        Err(api::SecretError::Get { text, missing: false, .. }) => Err(text),
        Err(error) => {
            tracing::warn!(
                volume = object.name_any(),
                error = &error as &dyn std::error::Error,
                "the deletion secret cannot be used, going on without"
            );
            Ok(HashMap::new())
        }
    }
}

/// Which secret the deletion needs: the volume's annotations say so; older volumes have none, for them the class decides.
fn deletion_secret(shared: &Shared, object: &PersistentVolume) -> Result<Option<SecretReference>, String> {
    let annotations = object.annotations();
    if let (Some(name), Some(namespace)) =
        (annotations.get(names::DELETION_SECRET_NAME), annotations.get(names::DELETION_SECRET_NAMESPACE))
    {
        let is_set = !name.is_empty() && !namespace.is_empty();
        return Ok(is_set.then(|| SecretReference { name: Some(name.clone()), namespace: Some(namespace.clone()) }));
    }
    let spec = object.spec.as_ref();
    let class_name = spec.and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default();
    let Some(class) = shared.cache.read().classes.get(class_name).cloned() else {
        return Ok(None);
    };
    let Some(claim) = spec.and_then(|spec| spec.claim_ref.as_ref()) else {
        return Ok(None);
    };
    let no_annotations = BTreeMap::new();
    let claim = TemplateClaim {
        namespace: claim.namespace.as_deref().unwrap_or_default(),
        name: claim.name.as_deref().unwrap_or_default(),
        annotations: &no_annotations,
    };
    storage_class::secret_reference(SecretPurpose::Provisioner, &class.parameters, &object.name_any(), Some(claim))
        .map_err(|error| format!("failed to get secretreference for volume {}: {error}", object.name_any()))
}

fn reference(object: &PersistentVolume) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolume".to_owned()),
        name: object.metadata.name.clone(),
        uid: object.metadata.uid.clone(),
        resource_version: object.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}
