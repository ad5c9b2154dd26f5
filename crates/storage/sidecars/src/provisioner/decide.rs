//! What to do next: the decisions of the provisioner as functions of facts.

use std::time::Duration;

use tonic::Code;

use super::objects::{Claim, Class, Volume};

/// What is known about a claim when its turn comes.
#[derive(Debug, Clone, Copy)]
pub struct ClaimFacts<'a> {
    /// Name of the driver.
    pub driver: &'a str,
    /// The claim, unless it is gone, bound, or somebody else's.
    pub claim: Option<&'a Claim>,
    /// The claim's class, if it exists.
    pub class: Option<&'a Class>,
    /// Whether a call for it may be under way, from this process or one before.
    pub in_flight: bool,
    /// Whether its volume object exists, or waits to be saved.
    pub has_volume: bool,
    /// Set after a request that can never succeed as it is.
    pub slow: Option<SlowRetry<'a>>,
}

/// A claim whose request the driver called invalid.
#[derive(Debug, Clone, Copy)]
pub struct SlowRetry<'a> {
    /// UID of the class as it was then. Another class under the name may well be valid.
    pub class_uid: &'a str,
    /// How long to wait still.
    pub remaining: Duration,
}

/// The next step for a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimStep {
    /// Nothing to do until something changes.
    Ignore,
    /// The volume exists: forget the call.
    Settle,
    /// Repeat the recorded call.
    Replay,
    /// Make a plan and call.
    Provision,
    /// The class does not exist (yet): try again later.
    AwaitClass,
    /// Not before this time has passed.
    Wait(Duration),
}

/// Decides on a claim.
pub fn claim_step(facts: &ClaimFacts<'_>) -> ClaimStep {
    if facts.has_volume {
        return ClaimStep::Settle;
    }
    // Before all conditions on the claim: what has begun is brought to an end even if the claim is gone.
    if facts.in_flight {
        return ClaimStep::Replay;
    }
    let Some(claim) = facts.claim else {
        return ClaimStep::Ignore;
    };
    if !claim.volume_name.is_empty() || !claim.is_for(facts.driver) {
        return ClaimStep::Ignore;
    }
    let Some(class) = facts.class else {
        return ClaimStep::AwaitClass;
    };
    if class.provisioner != facts.driver || (class.waits_for_consumer && claim.selected_node().is_none()) {
        return ClaimStep::Ignore;
    }
    match facts.slow {
        Some(slow) if slow.class_uid == class.uid && !slow.remaining.is_zero() => ClaimStep::Wait(slow.remaining),
        _ => ClaimStep::Provision,
    }
}

/// What the end of an attempt means for the claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Definite: no call is under way, and this attempt left no volume.
    Finished,
    /// The attempt failed before the call; what was under way still is.
    NoChange,
    /// The call may still be running, or may have succeeded: replay.
    InBackground,
    /// Definite, and another node may do better: hand the claim back to the scheduler.
    Reschedule,
}

/// Judges the error of a `CreateVolume` call. `may_reschedule` = the driver has topology and the scheduler chose a node.
pub fn after_error(code: Code, may_reschedule: bool) -> State {
    match code {
        Code::ResourceExhausted if may_reschedule => State::Reschedule,
        // The client cancelled, the deadline passed, the connection broke, another call for the name is running:
        // in each case a volume may come to be.
        Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Aborted => State::InBackground,
        _ => State::Finished,
    }
}

/// Whether the request can never succeed as it is, so that only patience or another class helps.
pub fn is_infeasible(code: Code) -> bool {
    code == Code::InvalidArgument
}

/// The next step for a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeStep {
    /// Nothing to do until something changes.
    Ignore,
    /// Guard it: its storage is to be deleted before the object goes.
    AddFinalizer,
    /// It is to be kept, or is not ours to delete: no guard.
    RemoveFinalizer,
    /// Delete the storage, then the object.
    Delete,
}

/// Decides on a volume.
pub fn volume_step(volume: &Volume) -> VolumeStep {
    let deletes = volume.reclaim_policy == "Delete";
    if deletes && !volume.deleting && !volume.has_finalizer && volume.phase == "Bound" {
        return VolumeStep::AddFinalizer;
    }
    if !deletes && volume.has_finalizer && matches!(volume.reclaim_policy.as_str(), "Retain" | "Recycle") {
        return VolumeStep::RemoveFinalizer;
    }
    if volume.deleting && !volume.has_finalizer {
        // Its storage is gone already.
        return VolumeStep::Ignore;
    }
    if deletes && volume.phase == "Released" {
        VolumeStep::Delete
    } else {
        VolumeStep::Ignore
    }
}
