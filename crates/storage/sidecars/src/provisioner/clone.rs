//! Sources of new volumes: checks, and the finalizer that keeps the source of a clone until the clone is made.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use outrigger_kube::Outcome;

use super::api;
use super::claims::{Next, Unprepared};
use super::objects::{Claim, DataSource};
use super::plan::ContentSource;
use super::shared::Shared;
use crate::quantity;

/// The content source for a claim, checked and guarded; `None` cannot happen for sources that are ours.
pub(super) async fn content_source(
    shared: &Shared,
    claim: &Claim,
    source: &DataSource,
) -> Result<Option<ContentSource>, Unprepared> {
    match (source.group.as_str(), source.kind.as_str()) {
        ("", "PersistentVolumeClaim") => {}
        ("snapshot.storage.k8s.io", "VolumeSnapshot") => {
            return Err(Unprepared::retry(format!(
                "the claim asks for the contents of VolumeSnapshot {}, but this provisioner does not restore snapshots yet",
                source.name
            )));
        }
        _ => {
            return Err(Unprepared {
                text: "Assuming an external populator will provision the volume".to_owned(),
                next: Next::LeaveToOthers,
            });
        }
    }
    if source.name.is_empty() {
        return Err(Unprepared::retry(format!("the PVC source not found for PVC {}", claim.name)));
    }
    if let Some(namespace) = &source.namespace {
        return Err(Unprepared::retry(format!(
            "the data source is in namespace {namespace}; sources in other namespaces than the claim's are not supported"
        )));
    }
    if !shared.config.driver.clone_volume {
        return Err(Unprepared::retry(
            "CSI driver does not support clone operations: controller CLONE_VOLUME capability is not reported",
        ));
    }
    let from = shared.objects.claim(&claim.namespace, &source.name).await.map_err(|error| {
        Unprepared::retry(format!(
            "error getting PVC {} (namespace {:?}) from api server: {}",
            source.name,
            claim.namespace,
            api::text(&error)
        ))
    })?;
    let volume_name = check_claim(claim, &from).map_err(Unprepared::retry)?;
    let volume = shared.objects.volume(&volume_name).await.map_err(|error| Unprepared::retry(api::text(&error)))?;
    let id = check_volume(claim, &from, volume.as_ref(), &shared.config.plan.driver).map_err(Unprepared::retry)?;
    match shared.objects.guard_source(&from, true).await {
        Ok(true) => Ok(Some(ContentSource::Volume(id))),
        Ok(false) => {
            Err(Unprepared::retry(format!("the PVC DataSource {} changed while it was being guarded", source.name)))
        }
        Err(error) => Err(Unprepared::retry(api::text(&error))),
    }
}

/// Whether `from` can be cloned for `claim`; gives the name of its volume.
fn check_claim(claim: &Claim, from: &PersistentVolumeClaim) -> Result<String, String> {
    let name = from.name_any();
    let phase = from.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if phase != "Bound" {
        return Err(format!("the PVC DataSource {name} must have a status of Bound.  Got {phase:?}"));
    }
    if from.metadata.deletion_timestamp.is_some() {
        return Err(format!("the PVC DataSource {name} is currently being deleted"));
    }
    let from = Claim::from(from.clone());
    let requested = quantity::bytes(&claim.requested).map_err(|error| error.to_string())?;
    let size = quantity::bytes(&from.requested).map_err(|error| error.to_string())?;
    if requested < size {
        return Err(format!(
            "error, new PVC request must be greater than or equal in size to the specified PVC data source, requested {requested} but source is {size}"
        ));
    }
    if from.volume_name.is_empty() {
        return Err(format!("volume name is empty in source PVC {name}"));
    }
    Ok(from.volume_name)
}

/// Whether the volume of `from` can be cloned for `claim`; gives its CSI id.
fn check_volume(
    claim: &Claim,
    from: &PersistentVolumeClaim,
    volume: Option<&PersistentVolume>,
    driver: &str,
) -> Result<String, String> {
    let invalid = || "claim in dataSource not bound or invalid".to_owned();
    let volume = volume.ok_or_else(invalid)?;
    let spec = volume.spec.as_ref().ok_or_else(invalid)?;
    let csi = spec.csi.as_ref().ok_or_else(invalid)?;
    let bound_to = spec.claim_ref.as_ref().ok_or_else(invalid)?;
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let is_theirs = bound_to.uid == from.metadata.uid
        && bound_to.name == from.metadata.name
        && bound_to.namespace == from.metadata.namespace;
    if csi.driver != driver || !is_theirs || phase != Some("Bound") {
        return Err(invalid());
    }
    let is_block = spec.volume_mode.as_deref() == Some("Block");
    if is_block != claim.is_block() {
        let word = |block| if block { "Block" } else { "Filesystem" };
        return Err(format!(
            "the source PVC and destination PVCs must have the same volume mode for cloning.  Source is {}, but new PVC requested {}",
            word(is_block),
            word(claim.is_block())
        ));
    }
    Ok(csi.volume_handle.clone())
}

/// Lets a deleted source go when no claim waits for a clone of it.
pub(super) async fn work(shared: Arc<Shared>, key: (String, String)) -> Outcome {
    let (namespace, name) = &key;
    {
        let known = shared.cache.read();
        let is_needed = known.claims.values().any(|claim| {
            claim.namespace == *namespace
                && claim
                    .source
                    .as_ref()
                    .is_some_and(|source| source.kind == "PersistentVolumeClaim" && source.name == *name)
        });
        if !known.sources.contains(&key) || is_needed {
            return Outcome::Done;
        }
    }
    let outcome = match shared.objects.claim(namespace, name).await {
        // Another claim under the same name.
        Ok(claim) if claim.metadata.deletion_timestamp.is_none() => Ok(true),
        Ok(claim) => shared.objects.guard_source(&claim, false).await,
        Err(error) if api::is_missing(&error) => Ok(true),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(true) => Outcome::Done,
        Ok(false) => Outcome::Retry,
        Err(error) => {
            tracing::warn!(
                claim = format!("{namespace}/{name}"),
                error = &error as &dyn std::error::Error,
                "failed to let the source of a clone go"
            );
            Outcome::Retry
        }
    }
}
