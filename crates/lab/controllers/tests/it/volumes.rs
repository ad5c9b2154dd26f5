//! Volumes, claims, classes and those who use them.

use std::time::{Duration, Instant};

use outrigger_lab_store::EventKind;
use serde_json::{Value, json};

use crate::lab::{Lab, pod, text, until};

fn class(name: &str, mode: &str, default: bool) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": default.to_string()}},
        "provisioner": "hostpath.csi.k8s.io", "volumeBindingMode": mode,
    })
}

pub(crate) fn claim(name: &str, size: &str, class: Option<&str>) -> Value {
    let mut claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"namespace": "default", "name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    });
    if let Some(class) = class {
        claim["spec"]["storageClassName"] = class.into();
    }
    claim
}

pub(crate) fn volume(name: &str, size: &str, class: &str, reclaim: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "persistentVolumeReclaimPolicy": reclaim, "csi": {"driver": "hostpath.csi.k8s.io", "volumeHandle": name},
        },
    })
}

impl Lab {
    fn claim(&self, name: &str) -> Value {
        self.get("PersistentVolumeClaim", "default", name).unwrap()
    }

    fn volume(&self, name: &str) -> Value {
        self.get("PersistentVolume", "", name).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn static_binding_takes_the_smallest_volume() {
    let lab = Lab::start().await;
    for (name, size) in [("big", "100Gi"), ("small", "2Gi"), ("tiny", "1Gi")] {
        lab.create(volume(name, size, "", "Retain")).await;
    }
    lab.settle().await;
    assert_eq!(text(&lab.volume("small"), "/status/phase"), "Available");
    lab.create(claim("c", "2Gi", Some(""))).await;
    lab.settle().await;
    let bound = lab.claim("c");
    assert_eq!(text(&bound, "/status/phase"), "Bound");
    assert_eq!(text(&bound, "/spec/volumeName"), "small");
    assert_eq!(text(&bound, "/status/capacity/storage"), "2Gi");
    assert_eq!(bound["status"]["accessModes"], json!(["ReadWriteOnce"]));
    let annotations = &bound["metadata"]["annotations"];
    assert_eq!(annotations["pv.kubernetes.io/bind-completed"], "yes");
    assert_eq!(annotations["pv.kubernetes.io/bound-by-controller"], "yes");
    let taken = lab.volume("small");
    assert_eq!(text(&taken, "/status/phase"), "Bound");
    assert_eq!(taken["spec"]["claimRef"]["uid"], bound["metadata"]["uid"]);
    assert_eq!(taken["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"], "yes");
    assert_eq!(text(&lab.volume("tiny"), "/status/phase"), "Available");
    // Settled means settled.
    let revision = lab.revision();
    lab.settle().await;
    assert_eq!(lab.revision(), revision);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_volume_is_found_at_once_and_many_claims_share_out_volumes() {
    let lab = Lab::start().await;
    for index in 0..25 {
        lab.create(claim(&format!("c{index}"), "1Gi", Some("manual"))).await;
    }
    lab.settle().await;
    assert_eq!(text(&lab.claim("c0"), "/status/phase"), "Pending");
    assert_eq!(lab.events(&lab.claim("c0")).await, ["ProvisioningFailed"]);
    for index in 0..25 {
        lab.create(volume(&format!("v{index}"), "1Gi", "manual", "Retain")).await;
    }
    lab.settle().await;
    let claims = lab.list("PersistentVolumeClaim", "default").await;
    let mut used: Vec<&str> = claims.iter().map(|claim| text(claim, "/spec/volumeName")).collect();
    assert!(claims.iter().all(|claim| text(claim, "/status/phase") == "Bound"));
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), 25, "each has its own");
    for claim in &claims {
        let volume = lab.volume(text(claim, "/spec/volumeName"));
        assert_eq!(volume["spec"]["claimRef"]["uid"], claim["metadata"]["uid"]);
        assert_eq!(text(&volume, "/status/phase"), "Bound");
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claim_is_marked_for_its_provisioner_within_milliseconds_and_bound_to_what_that_makes() {
    let lab = Lab::start().await;
    lab.create(class("csi", "Immediate", false)).await;
    let mut fastest = Duration::MAX;
    for index in 0..20 {
        let name = format!("c{index}");
        let mut changes = lab.watch(&format!("/registry/core/persistentvolumeclaims/default/{name}"));
        let start = Instant::now();
        lab.create(claim(&name, "1Gi", Some("csi"))).await;
        until(&mut changes, |_, claim| {
            !claim["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"].is_null()
        })
        .await;
        fastest = fastest.min(start.elapsed());
    }
    eprintln!("claim to annotation for its provisioner: {fastest:?} at best of 20");
    assert!(fastest < Duration::from_millis(10), "{fastest:?}");
    lab.settle().await;
    let marked = lab.claim("c0");
    let annotations = &marked["metadata"]["annotations"];
    assert_eq!(annotations["volume.beta.kubernetes.io/storage-provisioner"], "hostpath.csi.k8s.io");
    assert_eq!(text(&marked, "/status/phase"), "Pending");
    assert_eq!(lab.events(&marked).await, ["ExternalProvisioning"]);
    // What the external provisioner does.
    let uid = text(&marked, "/metadata/uid");
    let name = format!("pvc-{uid}");
    let mut made = volume(&name, "1Gi", "csi", "Delete");
    made["metadata"]["annotations"] = json!({"pv.kubernetes.io/provisioned-by": "hostpath.csi.k8s.io"});
    made["metadata"]["finalizers"] = json!(["external-provisioner.volume.kubernetes.io/finalizer"]);
    made["spec"]["claimRef"] =
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "default", "name": "c0", "uid": uid});
    let start = Instant::now();
    lab.create(made).await;
    lab.settle().await;
    eprintln!("volume made to claim bound: {:?}", start.elapsed());
    let bound = lab.claim("c0");
    assert_eq!((text(&bound, "/status/phase"), text(&bound, "/spec/volumeName")), ("Bound", name.as_str()));
    assert_eq!(text(&lab.volume(&name), "/status/phase"), "Bound");
    // The claim goes; the volume is left to its provisioner.
    lab.delete(&bound, None).await;
    lab.settle().await;
    assert!(lab.get("PersistentVolumeClaim", "default", "c0").is_none());
    let released = lab.volume(&name);
    assert_eq!(text(&released, "/status/phase"), "Released");
    lab.delete(&released, None).await;
    lab.settle().await;
    let left = lab.volume(&name);
    assert_eq!(left["metadata"]["finalizers"], json!(["external-provisioner.volume.kubernetes.io/finalizer"]));
    lab.patch(&left, json!({"metadata": {"finalizers": null}})).await;
    assert!(lab.get("PersistentVolume", "", &name).is_none());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_claim_is_provisioned_once_a_node_is_chosen() {
    let lab = Lab::start().await;
    lab.create(class("lazy", "WaitForFirstConsumer", false)).await;
    let made = lab.create(claim("c", "1Gi", Some("lazy"))).await;
    lab.settle().await;
    let waiting = lab.claim("c");
    assert_eq!(text(&waiting, "/status/phase"), "Pending");
    assert!(waiting["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"].is_null());
    assert_eq!(lab.events(&made).await, ["WaitForFirstConsumer"]);
    lab.patch(&waiting, json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "node-1"}}})).await;
    lab.settle().await;
    let marked = lab.claim("c");
    assert_eq!(marked["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"], "hostpath.csi.k8s.io");
    assert_eq!(lab.events(&made).await, ["WaitForFirstConsumer", "ExternalProvisioning"]);
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn class_that_comes_later_serves_claims_that_wait_for_it() {
    let lab = Lab::start().await;
    let nameless = lab.create(claim("nameless", "1Gi", None)).await;
    let named = lab.create(claim("named", "1Gi", Some("late"))).await;
    lab.settle().await;
    assert_eq!(lab.events(&nameless).await, ["FailedBinding"]);
    assert_eq!(lab.events(&named).await, ["ProvisioningFailed"]);
    lab.create(class("late", "Immediate", true)).await;
    lab.settle().await;
    for name in ["nameless", "named"] {
        let claim = lab.claim(name);
        assert_eq!(text(&claim, "/spec/storageClassName"), "late");
        assert_eq!(
            claim["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"], "hostpath.csi.k8s.io",
            "{name}"
        );
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reserved_and_requested_volumes() {
    let lab = Lab::start().await;
    let mut reserved = volume("reserved", "10Gi", "", "Retain");
    reserved["spec"]["claimRef"] = json!({"namespace": "default", "name": "wanted"});
    lab.create(reserved).await;
    lab.create(volume("free", "1Gi", "", "Retain")).await;
    lab.settle().await;
    assert_eq!(text(&lab.volume("reserved"), "/status/phase"), "Available");
    lab.create(claim("wanted", "1Gi", Some(""))).await;
    let mut requesting = claim("requesting", "1Gi", Some(""));
    requesting["spec"]["volumeName"] = "free".into();
    lab.create(requesting).await;
    lab.settle().await;
    assert_eq!(text(&lab.claim("wanted"), "/spec/volumeName"), "reserved");
    let bound = lab.volume("reserved");
    assert!(bound["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"].is_null(), "the user chose");
    assert_eq!(text(&lab.claim("requesting"), "/status/phase"), "Bound");
    assert_eq!(text(&lab.volume("free"), "/spec/claimRef/name"), "requesting");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_and_released() {
    let lab = Lab::start().await;
    lab.create(volume("v", "1Gi", "", "Retain")).await;
    let made = lab.create(claim("c", "1Gi", Some(""))).await;
    lab.settle().await;
    // Only by removing its protection can a bound volume go.
    let bound = lab.volume("v");
    lab.delete(&bound, None).await;
    lab.settle().await;
    let held = lab.volume("v");
    assert_eq!(held["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
    lab.patch(&held, json!({"metadata": {"finalizers": null}})).await;
    lab.settle().await;
    assert_eq!(text(&lab.claim("c"), "/status/phase"), "Lost");
    assert_eq!(lab.events(&made).await, ["FailedBinding", "ClaimLost"][1..]);
    // The other way round.
    lab.create(volume("w", "1Gi", "", "Retain")).await;
    lab.create(claim("d", "1Gi", Some(""))).await;
    lab.settle().await;
    lab.delete(&lab.claim("d"), None).await;
    lab.settle().await;
    assert_eq!(text(&lab.volume("w"), "/status/phase"), "Released");
    // A new claim of the same name does not get it.
    lab.create(claim("d", "1Gi", Some(""))).await;
    lab.settle().await;
    assert_eq!(text(&lab.claim("d"), "/status/phase"), "Pending");
    // Until an administrator makes it available.
    lab.patch(&lab.volume("w"), json!({"spec": {"claimRef": null}})).await;
    lab.settle().await;
    assert_eq!(text(&lab.claim("d"), "/status/phase"), "Bound");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claim_in_use_is_not_deleted() {
    let lab = Lab::start().await;
    lab.create(volume("v", "1Gi", "", "Retain")).await;
    let claim = lab.create(claim("c", "1Gi", Some(""))).await;
    lab.settle().await;
    let user = lab.create(pod("default", "user", "node-1", "c")).await;
    lab.create(pod("default", "unscheduled", "", "c")).await;
    lab.delete(&claim, None).await;
    lab.settle().await;
    let held = lab.claim("c");
    assert!(!text(&held, "/metadata/deletionTimestamp").is_empty());
    assert_eq!(held["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let mut gone = lab.watch("/registry/core/persistentvolumeclaims/default/c");
    lab.patch_status(&user, json!({"status": {"phase": "Succeeded"}})).await;
    until(&mut gone, |kind, _| kind == EventKind::Delete).await;
    lab.settle().await;
    assert_eq!(text(&lab.volume("v"), "/status/phase"), "Released");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_binding_is_completed_after_a_restart() {
    let mut lab = Lab::start().await;
    let made = lab.create(claim("c", "1Gi", Some(""))).await;
    lab.settle().await;
    lab.restart_controllers(async |lab| {
        // As if the process had died after the first of the four writes.
        let mut half = volume("v", "1Gi", "", "Retain");
        half["metadata"]["annotations"] = json!({"pv.kubernetes.io/bound-by-controller": "yes"});
        half["spec"]["claimRef"] = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "default", "name": "c", "uid": made["metadata"]["uid"],
        });
        lab.create(half).await;
    })
    .await;
    assert_eq!(text(&lab.claim("c"), "/status/phase"), "Bound");
    assert_eq!(text(&lab.volume("v"), "/status/phase"), "Bound");
    lab.stop().await;
}
