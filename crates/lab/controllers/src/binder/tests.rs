//! Matching and plans, without I/O.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::index::Index;
use super::model::{Claim, ClaimKey, Class, Volume};
use super::plan::{self, Step};

fn volume(name: &str, size: &str, change: impl FnOnce(&mut Value)) -> Volume {
    let mut value = json!({
        "metadata": {"name": name, "labels": {"disk": name}},
        "spec": {
            "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "storageClassName": "fast",
            "volumeMode": "Filesystem", "persistentVolumeReclaimPolicy": "Delete",
        },
        "status": {"phase": "Available"},
    });
    change(&mut value);
    Volume::new(&value, 10)
}

fn claim(name: &str, size: &str, change: impl FnOnce(&mut Value)) -> Claim {
    let mut value = json!({
        "metadata": {"namespace": "n", "name": name, "uid": format!("uid-{name}"), "annotations": {}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "resources": {"requests": {"storage": size}}},
        "status": {"phase": "Pending"},
    });
    change(&mut value);
    Claim::new(&value, 20)
}

fn class(name: &str, wait: bool, default_since: &str) -> Class {
    let mode = if wait { "WaitForFirstConsumer" } else { "Immediate" };
    let default = if default_since.is_empty() { "false" } else { "true" };
    Class::new(&json!({
        "metadata": {
            "name": name, "creationTimestamp": default_since, "annotations": {"storageclass.kubernetes.io/is-default-class": default},
        },
        "provisioner": format!("{name}.example.com"), "volumeBindingMode": mode,
    }))
}

fn index(volumes: Vec<Volume>, classes: Vec<Class>) -> Index {
    let mut index = Index::default();
    for volume in volumes {
        index.put_volume(volume);
    }
    for class in classes {
        index.put_class(class);
    }
    index
}

fn best(index: &Index, claim: &Claim) -> Option<String> {
    index.best_match(claim, false).map(|volume| volume.name.clone())
}

fn reasons(steps: &[Step]) -> Vec<&'static str> {
    let reason = |step: &Step| match step {
        Step::Event(notice) => Some(notice.reason),
        _ => None,
    };
    steps.iter().filter_map(reason).collect()
}

#[test]
fn smallest_fitting_volume_wins() {
    let index = index(
        vec![
            volume("big", "100Gi", |_| {}),
            volume("small", "1Gi", |_| {}),
            volume("b", "10Gi", |_| {}),
            volume("a", "10240Mi", |_| {}),
            volume("other", "5Gi", |v| v["spec"]["storageClassName"] = "slow".into()),
            volume("raw", "5Gi", |v| v["spec"]["volumeMode"] = "Block".into()),
            volume("shared", "5Gi", |v| v["spec"]["accessModes"] = json!(["ReadWriteMany"])),
            volume("going", "5Gi", |v| v["metadata"]["deletionTimestamp"] = "t".into()),
            volume("taken", "5Gi", |v| v["spec"]["claimRef"] = json!({"namespace": "n", "name": "x"})),
        ],
        vec![],
    );
    assert_eq!(best(&index, &claim("c", "5Gi", |_| {})).as_deref(), Some("a"));
    assert_eq!(best(&index, &claim("c", "1Gi", |_| {})).as_deref(), Some("small"));
    assert_eq!(best(&index, &claim("c", "11Gi", |_| {})).as_deref(), Some("big"));
    assert_eq!(best(&index, &claim("c", "101Gi", |_| {})), None);
    assert_eq!(best(&index, &claim("c", "1Gi", |c| c["spec"]["volumeMode"] = "Block".into())).as_deref(), Some("raw"));
    assert_eq!(
        best(&index, &claim("c", "1Gi", |c| c["spec"]["accessModes"] = json!(["ReadWriteMany"]))).as_deref(),
        Some("shared")
    );
    assert_eq!(
        best(&index, &claim("c", "1Gi", |c| c["spec"]["storageClassName"] = "slow".into())).as_deref(),
        Some("other")
    );
    let selected = claim("c", "1Gi", |c| c["spec"]["selector"] = json!({"matchLabels": {"disk": "big"}}));
    assert_eq!(best(&index, &selected).as_deref(), Some("big"));
    // No class matches volumes without one only.
    assert_eq!(best(&index, &claim("c", "1Gi", |c| c["spec"]["storageClassName"] = "".into())), None);
}

#[test]
fn free_volume_finds_a_claim_that_it_fits() {
    let mut index = index(vec![volume("v", "5Gi", |_| {})], vec![class("fast", false, ""), class("lazy", true, "")]);
    let none = HashSet::new();
    index.put_claim(claim("big", "6Gi", |_| {}));
    index.put_claim(claim("going", "1Gi", |c| c["metadata"]["deletionTimestamp"] = "t".into()));
    index.put_claim(claim("other", "1Gi", |c| c["spec"]["volumeName"] = "w".into()));
    index.put_claim(claim("picky", "1Gi", |c| c["spec"]["selector"] = json!({"matchLabels": {"disk": "w"}})));
    assert_eq!(index.waiting_for_volume("v", &none), None);
    index.put_claim(claim("fits", "5Gi", |_| {}));
    let found = index.waiting_for_volume("v", &none).unwrap();
    assert_eq!(found.name, "fits");
    assert_eq!(index.waiting_for_volume("v", &HashSet::from([found])), None);
    index.put_volume(volume("l", "5Gi", |v| v["spec"]["storageClassName"] = "lazy".into()));
    index.put_claim(claim("lazy", "1Gi", |c| c["spec"]["storageClassName"] = "lazy".into()));
    assert_eq!(index.waiting_for_volume("l", &none), None, "its consumer has no node yet");
    index.put_volume(volume("t", "5Gi", |v| v["spec"]["claimRef"] = json!({"namespace": "n", "name": "fits"})));
    assert_eq!(index.waiting_for_volume("t", &none), None, "it is taken");
}

#[test]
fn reserved_volume_wins_over_a_smaller_one() {
    let reserve = |v: &mut Value| v["spec"]["claimRef"] = json!({"namespace": "n", "name": "c"});
    let index =
        index(vec![volume("small", "1Gi", |_| {}), volume("reserved", "50Gi", reserve)], vec![class("fast", true, "")]);
    assert_eq!(best(&index, &claim("c", "1Gi", |_| {})).as_deref(), Some("reserved"));
    assert_eq!(best(&index, &claim("d", "1Gi", |_| {})).as_deref(), Some("small"));
    // Also while the claim waits for its consumer.
    let steps = plan::claim(&index, &claim("c", "1Gi", |_| {}));
    assert_eq!(steps[0], Step::ClaimVolume { volume: "reserved".into(), chosen: false });
    assert_eq!(reasons(&plan::claim(&index, &claim("d", "1Gi", |_| {}))), ["WaitForFirstConsumer"]);
}

/// Does what the steps say, as the adapter would.
fn carry_out(steps: &[Step], volume: &mut Volume, claim: &mut Claim) {
    for step in steps {
        match step {
            Step::ClaimVolume { chosen, .. } => {
                volume.claim = Some(super::model::ClaimRef { key: claim.key.clone(), uid: claim.uid.clone() });
                volume.bound_by_controller |= chosen;
            }
            Step::VolumePhase { phase, .. } => volume.phase = (*phase).to_owned(),
            Step::BindClaim { volume, .. } => {
                claim.volume.clone_from(volume);
                claim.bind_completed = true;
            }
            Step::ShowBound { .. } => {
                claim.phase = "Bound".to_owned();
                claim.shown = (volume.capacity.unwrap().to_string(), volume.access_modes.clone());
            }
            Step::ClaimPhase(phase) => claim.phase = (*phase).to_owned(),
            other => panic!("{other:?}"),
        }
    }
}

fn with(volume: &Volume, claim: &Claim) -> Index {
    let mut index = index(vec![volume.clone()], vec![class("fast", false, "")]);
    index.put_claim(claim.clone());
    index
}

#[test]
fn binding_is_completed_from_wherever_it_was_interrupted() {
    let (fresh_volume, fresh_claim) = (volume("v", "1Gi", |_| {}), claim("c", "1Gi", |_| {}));
    let all = plan::claim(&with(&fresh_volume, &fresh_claim), &fresh_claim);
    let expected = [
        Step::ClaimVolume { volume: "v".into(), chosen: true },
        Step::VolumePhase { volume: "v".into(), phase: "Bound" },
        Step::BindClaim { volume: "v".into(), chosen: true },
        Step::ShowBound { volume: "v".into() },
    ];
    assert_eq!(all, expected);
    for done in 0..=expected.len() {
        let (mut volume, mut claim) = (fresh_volume.clone(), fresh_claim.clone());
        carry_out(&expected[..done], &mut volume, &mut claim);
        let rest = plan::claim(&with(&volume, &claim), &claim);
        assert_eq!(rest.len(), expected.len() - done, "after {done} steps");
        carry_out(&rest, &mut volume, &mut claim);
        let index = with(&volume, &claim);
        assert_eq!(plan::claim(&index, &claim), []);
        assert_eq!(plan::volume(&index, &volume), []);
        assert_eq!((volume.phase.as_str(), claim.phase.as_str()), ("Bound", "Bound"));
    }
}

#[test]
fn dynamic_claims_are_marked_for_their_provisioner() {
    let index = index(vec![], vec![class("fast", false, ""), class("lazy", true, "")]);
    let steps = plan::claim(&index, &claim("c", "1Gi", |c| c["status"] = Value::Null));
    assert_eq!(steps[0], Step::Provision("fast.example.com".into()));
    assert_eq!(reasons(&steps), ["ExternalProvisioning"]);
    assert_eq!(steps.last(), Some(&Step::ClaimPhase("Pending")));
    let lazy = |c: &mut Value| c["spec"]["storageClassName"] = "lazy".into();
    assert_eq!(reasons(&plan::claim(&index, &claim("c", "1Gi", lazy))), ["WaitForFirstConsumer"]);
    let scheduled = claim("c", "1Gi", |c| {
        lazy(c);
        c["metadata"]["annotations"]["volume.kubernetes.io/selected-node"] = "node".into();
    });
    assert_eq!(plan::claim(&index, &scheduled)[0], Step::Provision("lazy.example.com".into()));
    let marked = claim("c", "1Gi", |c| {
        for name in ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"] {
            c["metadata"]["annotations"][name] = "fast.example.com".into();
        }
    });
    let steps = plan::claim(&index, &marked);
    assert!(matches!(steps[..], [Step::Event(_)]), "{steps:?}");
    let missing = plan::claim(&index, &claim("c", "1Gi", |c| c["spec"]["storageClassName"] = "none".into()));
    let Step::Event(notice) = &missing[0] else { panic!("{missing:?}") };
    assert_eq!(notice.message, "storageclass.storage.k8s.io \"none\" not found");
    // A claim on its way out asks for nothing.
    assert_eq!(plan::claim(&index, &claim("c", "1Gi", |c| c["metadata"]["deletionTimestamp"] = "t".into())), []);
}

#[test]
fn newest_default_class_is_given_to_claims_that_name_none() {
    let nameless = |c: &mut Value| {
        c["spec"].as_object_mut().unwrap().remove("storageClassName");
    };
    let none = index(vec![], vec![class("fast", false, "")]);
    assert_eq!(reasons(&plan::claim(&none, &claim("c", "1Gi", nameless))), ["FailedBinding"]);
    let some = index(
        vec![],
        vec![
            class("old", false, "2026-01-01T00:00:00Z"),
            class("y", false, "2026-02-01T00:00:00Z"),
            class("x", false, "2026-02-01T00:00:00Z"),
        ],
    );
    assert_eq!(plan::claim(&some, &claim("c", "1Gi", nameless)), [Step::SetClass("x".into())]);
    assert_eq!(
        reasons(&plan::claim(&some, &claim("c", "1Gi", |c| c["spec"]["storageClassName"] = "".into()))),
        ["FailedBinding"]
    );
    let mut waiting = some;
    waiting.put_claim(claim("c", "1Gi", nameless));
    let key = ClaimKey { namespace: "n".into(), name: "c".into() };
    assert_eq!(waiting.waiting_for_class("x"), [key]);
}

#[test]
fn named_volume_is_taken_if_it_fits_and_is_free() {
    let named = |c: &mut Value| c["spec"]["volumeName"] = "v".into();
    let mut world = index(vec![], vec![]);
    assert_eq!(plan::claim(&world, &claim("c", "1Gi", named)), [], "not there yet");
    world.put_volume(volume("v", "1Gi", |_| {}));
    let steps = plan::claim(&world, &claim("c", "1Gi", named));
    assert_eq!(steps[2], Step::BindClaim { volume: "v".into(), chosen: false });
    assert_eq!(reasons(&plan::claim(&world, &claim("c", "2Gi", named))), ["VolumeMismatch"]);
    let taken = index(
        vec![volume("v", "1Gi", |v| v["spec"]["claimRef"] = json!({"namespace": "n", "name": "x", "uid": "u"}))],
        vec![],
    );
    assert_eq!(reasons(&plan::claim(&taken, &claim("c", "1Gi", named))), ["FailedBinding"]);
}

#[test]
fn bound_claims_notice_the_loss_of_their_volume() {
    let bound = |c: &mut Value| {
        c["spec"]["volumeName"] = "v".into();
        c["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = "yes".into();
        c["status"]["phase"] = "Bound".into();
    };
    let none = index(vec![], vec![]);
    let lost = plan::claim(&none, &claim("c", "1Gi", bound));
    assert_eq!(reasons(&lost), ["ClaimLost"]);
    assert_eq!(lost.last(), Some(&Step::ClaimPhase("Lost")));
    let stolen = index(
        vec![volume("v", "1Gi", |v| v["spec"]["claimRef"] = json!({"namespace": "n", "name": "c", "uid": "other"}))],
        vec![],
    );
    assert_eq!(reasons(&plan::claim(&stolen, &claim("c", "1Gi", bound))), ["ClaimMisbound"]);
    let already = claim("c", "1Gi", |c| {
        bound(c);
        c["status"]["phase"] = "Lost".into();
    });
    assert_eq!(plan::claim(&none, &already), []);
}

#[test]
fn volumes_follow_their_claims() {
    let refer = |uid: &'static str| {
        move |v: &mut Value| v["spec"]["claimRef"] = json!({"namespace": "n", "name": "c", "uid": uid})
    };
    let phase = |phase| vec![Step::VolumePhase { volume: "v".into(), phase }];
    let unset = |v: &mut Value| v["status"] = json!({"phase": "Pending"});
    let none = index(vec![], vec![]);
    assert_eq!(plan::volume(&none, &volume("v", "1Gi", unset)), phase("Available"));
    assert_eq!(plan::volume(&none, &volume("v", "1Gi", refer("uid-c"))), phase("Released"));
    assert_eq!(plan::volume(&none, &volume("v", "1Gi", refer(""))), [], "reserved, hence available");
    let mut some = index(vec![], vec![]);
    some.put_claim(claim("c", "1Gi", |c| c["spec"]["volumeName"] = "v".into()));
    assert_eq!(plan::volume(&some, &volume("v", "1Gi", refer("uid-c"))), phase("Bound"));
    assert_eq!(plan::volume(&some, &volume("v", "1Gi", refer("uid-of-a-former-c"))), phase("Released"));
    // The claim has another volume.
    let mut other = index(vec![], vec![]);
    other.put_claim(claim("c", "1Gi", |c| c["spec"]["volumeName"] = "w".into()));
    assert_eq!(
        plan::volume(&other, &volume("v", "1Gi", refer("uid-c"))),
        [Step::Unbind { volume: "v".into(), wholly: false }]
    );
    let chosen = volume("v", "1Gi", |v| {
        refer("uid-c")(v);
        v["metadata"]["annotations"] = json!({"pv.kubernetes.io/bound-by-controller": "yes"});
    });
    assert_eq!(plan::volume(&other, &chosen), [Step::Unbind { volume: "v".into(), wholly: true }]);
    let made = volume("v", "1Gi", |v| {
        refer("uid-c")(v);
        v["metadata"]["annotations"] = json!({"pv.kubernetes.io/provisioned-by": "x"});
    });
    assert_eq!(plan::volume(&other, &made), phase("Released"));
}

#[test]
fn index_ignores_what_is_older_than_it_knows() {
    let mut index = Index::default();
    let mut newer = volume("v", "1Gi", |v| v["spec"]["claimRef"] = json!({"namespace": "n", "name": "c"}));
    newer.revision = 11;
    index.put_volume(newer);
    index.put_volume(volume("v", "1Gi", |_| {}));
    assert_eq!(best(&index, &claim("d", "1Gi", |_| {})), None);
    assert!(index.remove_volume("v", 10).is_none());
    assert!(index.remove_volume("v", 12).is_some());
    assert!(index.volume("v").is_none());
    let key = ClaimKey { namespace: "n".into(), name: "c".into() };
    assert_eq!(index.volumes_of(&key).count(), 0);
}
