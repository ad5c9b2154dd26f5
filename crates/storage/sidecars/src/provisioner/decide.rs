//! What to do next: the decisions of the provisioner as functions of facts.

use std::error::Error as _;
use std::time::Duration;

use tonic::{Code, Status};

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
///
/// Deliberately not [`CallError::class`](outrigger_csi::CallError::class): for `CreateVolume`, an exhausted driver has no
/// operation pending.
pub fn after_error(status: &Status, may_reschedule: bool) -> State {
    if status.source().is_some() {
        // Made on this side of the wire: nothing is known about the other.
        return State::InBackground;
    }
    match status.code() {
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
    // Volumes that an administrator wrote are the administrator's to delete.
    let deletes = volume.reclaim_policy == "Delete" && volume.dynamic;
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
    if deletes && volume.phase == "Released" { VolumeStep::Delete } else { VolumeStep::Ignore }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provisioner::names;
    use std::collections::BTreeMap;

    const DRIVER: &str = "d.example";

    fn claim() -> Claim {
        Claim {
            namespace: "shop".to_owned(),
            name: "data".to_owned(),
            uid: "u".to_owned(),
            resource_version: "1".to_owned(),
            annotations: BTreeMap::from([(names::STORAGE_PROVISIONER.to_owned(), DRIVER.to_owned())]),
            class: "fast".to_owned(),
            volume_name: String::new(),
            access_modes: vec!["ReadWriteOnce".to_owned()],
            volume_mode: None,
            requested: "1Gi".to_owned(),
            has_selector: false,
            source: None,
            attributes_class: None,
        }
    }

    fn class() -> Class {
        Class {
            name: "fast".to_owned(),
            uid: "c".to_owned(),
            provisioner: DRIVER.to_owned(),
            parameters: BTreeMap::new(),
            mount_options: Vec::new(),
            reclaim_policy: Some("Delete".to_owned()),
            waits_for_consumer: false,
            allowed_topologies: Vec::new(),
        }
    }

    fn facts<'a>(claim: Option<&'a Claim>, class: Option<&'a Class>) -> ClaimFacts<'a> {
        ClaimFacts { driver: DRIVER, claim, class, in_flight: false, has_volume: false, slow: None }
    }

    #[test]
    fn what_has_begun_is_brought_to_an_end() {
        let (claim, class) = (claim(), class());
        assert_eq!(claim_step(&facts(Some(&claim), Some(&class))), ClaimStep::Provision);
        for (claim, class) in [(None, None), (Some(&claim), None), (Some(&claim), Some(&class))] {
            let begun = ClaimFacts { in_flight: true, ..facts(claim, class) };
            assert_eq!(claim_step(&begun), ClaimStep::Replay);
            let done = ClaimFacts { has_volume: true, ..begun };
            assert_eq!(claim_step(&done), ClaimStep::Settle);
        }
    }

    #[test]
    fn claims_of_others_and_claims_that_wait_are_left_alone() {
        let class = class();
        assert_eq!(claim_step(&facts(None, Some(&class))), ClaimStep::Ignore);
        assert_eq!(claim_step(&facts(Some(&claim()), None)), ClaimStep::AwaitClass);
        let bound = Claim { volume_name: "v".to_owned(), ..claim() };
        let mut theirs = claim();
        theirs.annotations.insert(names::STORAGE_PROVISIONER.to_owned(), "other".to_owned());
        let unasked = Claim { annotations: BTreeMap::new(), ..claim() };
        for claim in [bound, theirs, unasked] {
            assert_eq!(claim_step(&facts(Some(&claim), Some(&class))), ClaimStep::Ignore);
        }
        let waits = Class { waits_for_consumer: true, ..class };
        let mut claim = claim();
        assert_eq!(claim_step(&facts(Some(&claim), Some(&waits))), ClaimStep::Ignore);
        claim.annotations.insert(names::SELECTED_NODE.to_owned(), String::new());
        assert_eq!(claim_step(&facts(Some(&claim), Some(&waits))), ClaimStep::Ignore);
        claim.annotations.insert(names::SELECTED_NODE.to_owned(), "n".to_owned());
        assert_eq!(claim_step(&facts(Some(&claim), Some(&waits))), ClaimStep::Provision);
    }

    #[test]
    fn invalid_requests_wait_unless_the_class_was_made_anew() {
        let (claim, class) = (claim(), class());
        let slow = |class_uid, remaining| ClaimFacts {
            slow: Some(SlowRetry { class_uid, remaining }),
            ..facts(Some(&claim), Some(&class))
        };
        let second = Duration::from_secs(1);
        assert_eq!(claim_step(&slow("c", second)), ClaimStep::Wait(second));
        assert_eq!(claim_step(&slow("c", Duration::ZERO)), ClaimStep::Provision);
        assert_eq!(claim_step(&slow("other", second)), ClaimStep::Provision);
    }

    #[test]
    fn errors_are_definite_or_not() {
        use Code::*;
        for code in [Cancelled, DeadlineExceeded, Unavailable, Aborted] {
            assert_eq!(after_error(&Status::new(code, ""), true), State::InBackground, "{code:?}");
        }
        let exhausted = Status::new(ResourceExhausted, "");
        assert_eq!(after_error(&exhausted, true), State::Reschedule);
        assert_eq!(after_error(&exhausted, false), State::Finished);
        for code in [Unknown, InvalidArgument, NotFound, AlreadyExists, OutOfRange, Internal, Unimplemented] {
            assert_eq!(after_error(&Status::new(code, ""), true), State::Finished, "{code:?}");
        }
        let local = Status::from_error(Box::new(std::io::Error::other("broken")));
        assert_eq!(after_error(&local, true), State::InBackground);
    }

    #[test]
    fn volumes_are_guarded_and_deleted_by_policy() {
        let volume = |reclaim_policy: &str, phase: &str, deleting, has_finalizer| {
            volume_step(&Volume {
                name: "v".to_owned(),
                uid: "u".to_owned(),
                phase: phase.to_owned(),
                reclaim_policy: reclaim_policy.to_owned(),
                deleting,
                has_finalizer,
                dynamic: true,
            })
        };
        assert_eq!(volume("Delete", "Released", false, true), VolumeStep::Delete);
        assert_eq!(volume("Delete", "Released", false, false), VolumeStep::Delete);
        assert_eq!(volume("Delete", "Released", true, true), VolumeStep::Delete);
        assert_eq!(volume("Delete", "Released", true, false), VolumeStep::Ignore);
        assert_eq!(volume("Retain", "Released", false, false), VolumeStep::Ignore);
        assert_eq!(volume("Retain", "Released", true, true), VolumeStep::RemoveFinalizer);
        assert_eq!(volume("Delete", "Bound", false, false), VolumeStep::AddFinalizer);
        assert_eq!(volume("Delete", "Bound", true, false), VolumeStep::Ignore);
        for phase in ["", "Pending", "Available", "Bound", "Failed"] {
            assert_eq!(volume("Delete", phase, false, true), VolumeStep::Ignore, "{phase}");
        }
    }
}
