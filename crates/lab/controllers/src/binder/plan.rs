//! What the binder does about a claim or a volume: values in, steps out.
//!
//! A binding is made in four writes: the volume's reference to the claim, the volume's phase, the claim's reference to
//! the volume, the claim's status. Each plan looks at all four and lists those that are missing, so a binding that was
//! interrupted anywhere is completed, by this controller or any other.

use super::index::{Index, unfit};
use super::model::{Claim, Class, NO_PROVISIONER, Volume};

/// An event about a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

fn notice(reason: &'static str, message: impl Into<String>) -> Step {
    Step::Event(Notice { warning: false, reason, message: message.into() })
}

fn warning(reason: &'static str, message: impl Into<String>) -> Step {
    Step::Event(Notice { warning: true, reason, message: message.into() })
}

/// One write. Steps are done in order; if one fails, the rest waits for the next look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Make the volume refer to the claim, and note whether the controller chose it.
    ClaimVolume { volume: String, chosen: bool },
    /// Set the volume's phase.
    VolumePhase { volume: String, phase: &'static str },
    /// Make the claim refer to the volume and mark the binding complete.
    BindClaim { volume: String, chosen: bool },
    /// Show the volume's size and modes on the claim.
    ShowBound { volume: String },
    /// Set the claim's phase.
    ClaimPhase(&'static str),
    /// Give the claim a class.
    SetClass(String),
    /// Ask a provisioner for a volume.
    Provision(String),
    /// Tell the user.
    Event(Notice),
    /// Take the volume's reference away, wholly or only the claim's identity.
    Unbind { volume: String, wholly: bool },
}

/// Plans for a claim.
pub(crate) fn claim(index: &Index, claim: &Claim) -> Vec<Step> {
    if claim.bind_completed { bound(index, claim) } else { unbound(index, claim) }
}

fn unbound(index: &Index, claim: &Claim) -> Vec<Step> {
    if !claim.volume.is_empty() {
        return requested(index, claim);
    }
    if claim.deleting {
        return pending(claim);
    }
    let class = claim.class.as_deref().unwrap_or_default();
    let class = (!class.is_empty()).then(|| index.class(class));
    let waits = index.waits_for_consumer(claim);
    if let Some(volume) = index.best_match(claim, waits) {
        return bind(claim, volume);
    }
    if claim.class.is_none()
        && let Some(default) = index.default_class()
    {
        return vec![Step::SetClass(default.name.clone())];
    }
    let mut steps = match class {
        Some(Some(_)) if waits => {
            vec![notice("WaitForFirstConsumer", "waiting for first consumer to be created before binding")]
        }
        Some(Some(class)) => provision(claim, class),
        Some(None) => {
            let name = claim.class.as_deref().unwrap_or_default();
            vec![warning("ProvisioningFailed", format!("storageclass.storage.k8s.io {name:?} not found"))]
        }
        None => {
            vec![notice("FailedBinding", "no persistent volumes available for this claim and no storage class is set")]
        }
    };
    steps.extend(pending(claim));
    steps
}

fn pending(claim: &Claim) -> Vec<Step> {
    if claim.phase == "Pending" { Vec::new() } else { vec![Step::ClaimPhase("Pending")] }
}

fn provision(claim: &Claim, class: &Class) -> Vec<Step> {
    let provisioner = &class.provisioner;
    if provisioner == NO_PROVISIONER {
        return vec![notice(
            "FailedBinding",
            "no persistent volumes available for this claim, and its storage class provisions none",
        )];
    }
    let mut steps = Vec::new();
    if claim.provisioner != *provisioner || claim.provisioner_beta != *provisioner {
        steps.push(Step::Provision(provisioner.clone()));
    }
    steps.push(notice(
        "ExternalProvisioning",
        format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system \
             administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        ),
    ));
    steps
}

/// The user, or an interrupted binding, named a volume.
fn requested(index: &Index, claim: &Claim) -> Vec<Step> {
    let Some(volume) = index.volume(&claim.volume) else { return pending(claim) };
    match &volume.claim {
        None => match unfit(claim, volume) {
            Some(reason) => {
                let message = format!("Cannot bind to requested volume {:?}: {reason}", volume.name);
                let mut steps = vec![warning("VolumeMismatch", message)];
                steps.extend(pending(claim));
                steps
            }
            None => bind(claim, volume),
        },
        Some(_) if volume.is_for(claim) => bind(claim, volume),
        // It is somebody else's. Perhaps it becomes free.
        Some(of) => {
            let message = format!("volume {:?} already bound to a different claim: {}", volume.name, of.key);
            let mut steps = vec![warning("FailedBinding", message)];
            steps.extend(pending(claim));
            steps
        }
    }
}

fn bound(index: &Index, claim: &Claim) -> Vec<Step> {
    let lost = |reason, message: &str| {
        if claim.phase == "Lost" { Vec::new() } else { vec![warning(reason, message), Step::ClaimPhase("Lost")] }
    };
    if claim.volume.is_empty() {
        return lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!");
    }
    match index.volume(&claim.volume) {
        None => lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!"),
        Some(volume) if volume.claim.is_none() || volume.is_for(claim) => bind(claim, volume),
        Some(_) => lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly"),
    }
}

/// The steps of the binding that are missing.
fn bind(claim: &Claim, volume: &Volume) -> Vec<Step> {
    let name = || volume.name.clone();
    let mut steps = Vec::new();
    if volume.claim.as_ref().is_none_or(|of| of.uid != claim.uid) {
        steps.push(Step::ClaimVolume { volume: name(), chosen: volume.claim.is_none() });
    }
    if volume.phase != "Bound" {
        steps.push(Step::VolumePhase { volume: name(), phase: "Bound" });
    }
    if claim.volume != volume.name || !claim.bind_completed {
        steps.push(Step::BindClaim { volume: name(), chosen: claim.volume.is_empty() });
    }
    let capacity = volume.capacity.map(|capacity| capacity.to_string()).unwrap_or_default();
    // A bound claim's capacity is set once: later it is the resizer's, who lets it lag behind the volume.
    if claim.phase != "Bound"
        || claim.shown.1 != volume.access_modes
        || (claim.shown.0.is_empty() && !capacity.is_empty())
    {
        steps.push(Step::ShowBound { volume: name() });
    }
    steps
}

/// Plans for a volume.
pub(crate) fn volume(index: &Index, volume: &Volume) -> Vec<Step> {
    let phase = |phase: &'static str| {
        if volume.phase == phase { Vec::new() } else { vec![Step::VolumePhase { volume: volume.name.clone(), phase }] }
    };
    let Some(of) = &volume.claim else { return phase("Available") };
    if of.uid.is_empty() {
        return phase("Available");
    }
    let Some(claim) = index.claim(&of.key).filter(|claim| claim.uid == of.uid) else {
        return if volume.phase == "Failed" { Vec::new() } else { phase("Released") };
    };
    if claim.volume == volume.name {
        return phase("Bound");
    }
    if claim.volume.is_empty() {
        // The claim's plan completes this.
        return Vec::new();
    }
    if volume.provisioned && volume.reclaim_delete {
        // Made for a claim that found another volume: its provisioner deletes it.
        return phase("Released");
    }
    vec![Step::Unbind { volume: volume.name.clone(), wholly: volume.bound_by_controller }]
}
