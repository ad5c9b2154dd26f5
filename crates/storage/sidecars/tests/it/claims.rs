//! The ordinary life of claims and volumes, and the driver's answers.

use std::time::Duration;

use http::Method;
use outrigger_csi::Error;
use serde_json::json;

use super::cluster::Cluster;
use super::driver::{self, Driver, Script};
use super::effects::Effects;
use super::harness::{Process, bound, claim, class, config, delete_claim, empty, recorded};

fn start(cluster: &Cluster, driver: &Driver) -> Process {
    Process::start(cluster, driver, &Effects::default(), config())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_gets_its_volume_and_loses_it() {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    class(
        &cluster,
        "fast",
        json!({
            "mountOptions": ["noatime"],
            "parameters": {
                "kind": "ssd",
                "csi.storage.k8s.io/fstype": "xfs",
                "csi.storage.k8s.io/provisioner-secret-name": "${pvc.name}",
                "csi.storage.k8s.io/provisioner-secret-namespace": "${pvc.namespace}",
            },
        }),
    );
    cluster.put(
        "secrets",
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "data", "namespace": "shop" }, "data": { "key": "aHVzaA==" } }),
    );
    let process = start(&cluster, &driver);
    let name = claim(&cluster, "data", json!({}));
    let bound = bound(&cluster, "data").await;
    assert_eq!(bound["spec"]["volumeName"], name.as_str());

    let request = &driver.requests(&name)[0];
    assert_eq!(request.secrets["key"], "hush");
    assert_eq!(request.parameters.len(), 1);
    let volume = cluster.get("persistentvolumes", "", &name).unwrap();
    let spec = &volume["spec"];
    assert_eq!(spec["capacity"]["storage"], "1Gi");
    assert_eq!(spec["mountOptions"], json!(["noatime"]));
    assert_eq!(spec["persistentVolumeReclaimPolicy"], "Delete");
    assert_eq!(spec["csi"]["driver"], driver::NAME);
    assert_eq!(spec["csi"]["fsType"], "xfs");
    assert_eq!(spec["csi"]["volumeHandle"], "id-1");
    assert_eq!(spec["csi"]["volumeAttributes"]["storage.kubernetes.io/csiProvisionerIdentity"], "tester");
    assert_eq!(volume["metadata"]["finalizers"], json!(["external-provisioner.volume.kubernetes.io/finalizer"]));
    let annotations = &volume["metadata"]["annotations"];
    assert_eq!(annotations["pv.kubernetes.io/provisioned-by"], driver::NAME);
    assert_eq!(annotations["volume.kubernetes.io/provisioner-deletion-secret-name"], "data");
    // The secret's contents are nowhere in the API.
    assert!(!cluster.list("configmaps").iter().chain([&volume]).any(|object| object.to_string().contains("hush")));

    delete_claim(&cluster, "data");
    empty(&cluster, &driver).await;
    assert_eq!(driver.deletions()[0].secrets["key"], "hush");
    let metrics = process.metrics.encode();
    assert!(
        metrics.contains("controller_persistentvolumeclaim_provision_total{class=\"fast\",source=\"\"} 1"),
        "{metrics}"
    );
    process.stop().await;
    assert!(recorded(&cluster).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_claims_share_the_record() {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    class(&cluster, "fast", json!({}));
    for index in 0..100 {
        claim(&cluster, &format!("c{index}"), json!({}));
    }
    let mut config = config();
    config.workers = 100;
    config.timeout = Duration::from_secs(10);
    let process = Process::start(&cluster, &driver, &Effects::default(), config);
    for index in 0..100 {
        bound(&cluster, &format!("c{index}")).await;
    }
    process.stop().await;
    assert!(recorded(&cluster).is_empty());
    let record = cluster.requests("PATCH configmaps") + cluster.requests("POST configmaps");
    let events = cluster.requests("POST events") + cluster.requests("PATCH events");
    eprintln!("100 claims: 100 volumes written, {record} writes of the record, {events} events");
    assert_eq!(cluster.requests("POST persistentvolumes"), 100);
    assert!(record <= 25, "{record}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uncertain_answers_are_replayed_identically() {
    let (cluster, driver) = (Cluster::new(), Driver::start(true));
    class(&cluster, "fast", json!({ "parameters": { "kind": "ssd" } }));
    for node in ["n0", "n1", "n2"] {
        cluster.put(
            "nodes",
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node, "labels": { "zone": node } } }),
        );
        cluster.put(
            "csinodes",
            json!({ "apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": { "name": node },
                "spec": { "drivers": [{ "name": driver::NAME, "nodeID": node, "topologyKeys": ["zone"] }] } }),
        );
    }
    driver.script([
        Script::MakesBut(|m| Error::unavailable(m)),
        Script::Fails(|m| Error::aborted(m)),
        Script::MakesBut(|m| Error::aborted(m)),
    ]);
    let mut config = config();
    config.driver.topology = true;
    config.backoff.start = Duration::from_millis(50);
    let effects = Effects::default();
    let process = Process::start(&cluster, &driver, &effects, config.clone());
    let name = claim(&cluster, "data-db-1", json!({}));
    cluster.until("the first call", |_| (!driver.requests(&name).is_empty()).then_some(())).await;
    // The process dies, and all that the call was made of changes or goes.
    process.kill().await;
    class(&cluster, "fast", json!({ "parameters": { "kind": "slow" } }));
    cluster.delete("nodes", "", "n0");
    cluster.delete("csinodes", "", "n1");
    assert_eq!(recorded(&cluster).len(), 2, "one call, one set of segments");
    let process = Process::start(&cluster, &driver, &effects, config);
    bound(&cluster, "data-db-1").await;
    let requests = driver.requests(&name);
    assert!(requests.len() >= 4, "{}", requests.len());
    assert!(requests.iter().all(|request| *request == requests[0]));
    assert_eq!(requests[0].accessibility_requirements.as_ref().unwrap().requisite.len(), 3);
    let volume = cluster.get("persistentvolumes", "", &name).unwrap();
    assert_eq!(
        volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["key"],
        "zone"
    );
    process.stop().await;
    assert!(recorded(&cluster).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_deleted_during_a_slow_call_leaves_nothing() {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    class(&cluster, "fast", json!({}));
    driver.script([Script::Hangs]);
    let process = start(&cluster, &driver);
    let name = claim(&cluster, "data", json!({}));
    cluster.until("the call", |_| (!driver.requests(&name).is_empty()).then_some(())).await;
    delete_claim(&cluster, "data");
    // A new process knows of the claim by the record alone.
    process.kill().await;
    let process = start(&cluster, &driver);
    driver.release();
    cluster.until("the volume", |_| (!driver.volumes().is_empty()).then_some(())).await;
    cluster.until("the deletion", |_| (!driver.deletions().is_empty()).then_some(())).await;
    empty(&cluster, &driver).await;
    process.stop().await;
    assert!(recorded(&cluster).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retained_volume_outlives_a_claim_that_was_deleted_during_the_call() {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    class(&cluster, "fast", json!({ "reclaimPolicy": "Retain" }));
    driver.script([Script::MakesBut(|m| Error::unavailable(m))]);
    let process = start(&cluster, &driver);
    let name = claim(&cluster, "data", json!({}));
    cluster.until("the volume", |_| (!driver.volumes().is_empty()).then_some(())).await;
    process.kill().await;
    delete_claim(&cluster, "data");
    let process = start(&cluster, &driver);
    cluster
        .until("the released volume", |cluster| {
            let volume = cluster.get("persistentvolumes", "", &name)?;
            (volume["status"]["phase"] == "Released").then_some(())
        })
        .await;
    process.stop().await;
    assert_eq!(driver.volumes(), [name]);
    assert!(driver.deletions().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn final_errors_leave_no_record() {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    class(&cluster, "fast", json!({}));
    driver.script([Script::Fails(|m| Error::internal(m)); 1000]);
    let process = start(&cluster, &driver);
    let name = claim(&cluster, "data", json!({}));
    cluster.until("two calls", |_| (driver.requests(&name).len() > 1).then_some(())).await;
    delete_claim(&cluster, "data");
    cluster.until("an empty record", |cluster| recorded(cluster).is_empty().then_some(())).await;
    process.stop().await;
    assert!(recorded(&cluster).is_empty());
    assert!(cluster.list("persistentvolumes").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_requests_wait_for_another_class() {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    class(&cluster, "fast", json!({}));
    driver.script([Script::Fails(|m| Error::invalid_argument(m))]);
    let mut config = config();
    config.backoff.max = Duration::from_hours(1);
    let process = Process::start(&cluster, &driver, &Effects::default(), config);
    let name = claim(&cluster, "data", json!({}));
    cluster.until("the call", |_| (driver.requests(&name).len() == 1).then_some(())).await;
    cluster.until("an empty record", |cluster| (cluster.requests("PATCH configmaps") > 1).then_some(())).await;
    assert_eq!(driver.requests(&name).len(), 1);
    cluster.delete("storageclasses", "", "fast");
    class(&cluster, "fast", json!({}));
    bound(&cluster, "data").await;
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_is_too_small_is_deleted_and_tried_again() {
    let (cluster, driver) = (Cluster::new(), Driver::start_careless());
    class(&cluster, "fast", json!({}));
    driver.script([Script::TooSmall]);
    driver.fail_deletions(3);
    let process = start(&cluster, &driver);
    claim(&cluster, "data", json!({}));
    bound(&cluster, "data").await;
    assert_eq!(driver.deletions().len(), 1);
    assert_eq!(cluster.list("persistentvolumes")[0]["spec"]["csi"]["volumeHandle"], "id-2");
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exhausted_nodes_go_back_to_the_scheduler() {
    let (cluster, driver) = (Cluster::new(), Driver::start(true));
    class(&cluster, "fast", json!({ "volumeBindingMode": "WaitForFirstConsumer" }));
    cluster.put(
        "nodes",
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n0", "labels": { "zone": "z" } } }),
    );
    cluster.put(
        "csinodes",
        json!({ "apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": { "name": "n0" },
            "spec": { "drivers": [{ "name": driver::NAME, "nodeID": "n0", "topologyKeys": ["zone"] }] } }),
    );
    driver.script([Script::Fails(|m| Error::resource_exhausted(m))]);
    let mut config = config();
    config.driver.topology = true;
    let process = Process::start(&cluster, &driver, &Effects::default(), config);
    let name = claim(&cluster, "waiting", json!({}));
    let selected = json!({ "metadata": { "annotations": { "volume.kubernetes.io/selected-node": "n0" } } });
    let name_selected = claim(&cluster, "data", selected.clone());
    let unselected = |cluster: &Cluster| {
        let claim = cluster.get("persistentvolumeclaims", "shop", "data")?;
        claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"].is_null().then_some(claim)
    };
    let mut object = cluster.until("the node to be given back", unselected).await;
    assert_eq!(driver.requests(&name_selected).len(), 1);
    // A node that left the cluster is given back without a call.
    json_patch::merge(
        &mut object,
        &json!({ "metadata": { "annotations": { "volume.kubernetes.io/selected-node": "gone" } } }),
    );
    cluster.put("persistentvolumeclaims", object);
    let mut object = cluster.until("the vanished node to be given back", unselected).await;
    assert_eq!(driver.requests(&name_selected).len(), 1);
    json_patch::merge(&mut object, &selected);
    cluster.put("persistentvolumeclaims", object);
    bound(&cluster, "data").await;
    assert!(driver.requests(&name).is_empty());
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attached_volumes_are_not_deleted() {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    class(&cluster, "fast", json!({}));
    let name = claim(&cluster, "data", json!({}));
    cluster.put(
        "volumeattachments",
        json!({ "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": { "name": "a" },
            "spec": { "attacher": driver::NAME, "nodeName": "n0", "source": { "persistentVolumeName": name } } }),
    );
    let mut config = config();
    config.driver.attach = true;
    let process = Process::start(&cluster, &driver, &Effects::default(), config);
    bound(&cluster, "data").await;
    delete_claim(&cluster, "data");
    let looks = |cluster: &Cluster| (cluster.requests("GET persistentvolumes") > 3).then_some(());
    cluster.until("looks at the released volume", looks).await;
    assert_eq!(driver.volumes(), [name]);
    assert!(driver.deletions().is_empty());
    cluster.delete("volumeattachments", "", "a");
    empty(&cluster, &driver).await;
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guards_follow_the_reclaim_policy() {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    class(&cluster, "fast", json!({}));
    let process = start(&cluster, &driver);
    let name = claim(&cluster, "data", json!({}));
    bound(&cluster, "data").await;
    for (policy, guarded) in [("Retain", false), ("Delete", true)] {
        let mut volume = cluster.get("persistentvolumes", "", &name).unwrap();
        volume["spec"]["persistentVolumeReclaimPolicy"] = policy.into();
        cluster.put("persistentvolumes", volume);
        cluster
            .until("the guard to follow", |cluster| {
                let volume = cluster.get("persistentvolumes", "", &name)?;
                let has = volume["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
                (has == guarded).then_some(())
            })
            .await;
    }
    assert_eq!(cluster.requests("PATCH persistentvolumes"), 2);
    assert_eq!(cluster.requests(&format!("{} persistentvolumes", Method::DELETE)), 0);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_of_a_clone_stays_until_the_clone_is_made() {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    class(&cluster, "fast", json!({}));
    let mut config = config();
    config.driver.clone_volume = true;
    config.timeout = Duration::from_secs(10);
    let process = Process::start(&cluster, &driver, &Effects::default(), config);
    claim(&cluster, "source", json!({}));
    bound(&cluster, "source").await;

    let copy_of = |size: &str| {
        json!({ "spec": {
            "dataSource": { "kind": "PersistentVolumeClaim", "name": "source" },
            "resources": { "requests": { "storage": size } },
        } })
    };
    // Too small a copy is refused without a call.
    let small = claim(&cluster, "small", copy_of("1Mi"));
    let message = cluster.until("the refusal", |cluster| cluster.events("ProvisioningFailed").pop()).await;
    assert!(message.contains("error, new PVC request must be greater than or equal in size"), "{message}");
    delete_claim(&cluster, "small");
    assert!(driver.requests(&small).is_empty());

    driver.script([Script::Hangs]);
    let name = claim(&cluster, "copy", copy_of("2Gi"));
    cluster.until("the call", |_| (!driver.requests(&name).is_empty()).then_some(())).await;
    let source = driver.requests(&name)[0].volume_content_source.clone().unwrap();
    assert!(format!("{source:?}").contains("id-1"), "{source:?}");
    delete_claim(&cluster, "source");
    let guarded = cluster.get("persistentvolumeclaims", "shop", "source").unwrap();
    assert_eq!(guarded["metadata"]["finalizers"], json!(["provisioner.storage.kubernetes.io/cloning-protection"]));
    driver.release();
    bound(&cluster, "copy").await;
    cluster
        .until("the source to go", |cluster| {
            cluster.get("persistentvolumeclaims", "shop", "source").is_none().then_some(())
        })
        .await;
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_that_are_not_ours_are_explained() {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    class(&cluster, "fast", json!({}));
    let process = start(&cluster, &driver);
    let from =
        |group: &str, kind: &str| json!({ "spec": { "dataSource": { "apiGroup": group, "kind": kind, "name": "x" } } });
    let snapshot = claim(&cluster, "restored", from("snapshot.storage.k8s.io", "VolumeSnapshot"));
    let message = cluster.until("the explanation", |cluster| cluster.events("ProvisioningFailed").pop()).await;
    assert_eq!(
        message,
        "failed to provision volume with StorageClass \"fast\": the claim asks for the contents of VolumeSnapshot x, but this provisioner does not restore snapshots yet"
    );
    let populated = claim(&cluster, "populated", from("example.com", "Dump"));
    cluster
        .until("the populator's turn", |cluster| {
            let messages = cluster.events("Provisioning");
            messages
                .iter()
                .any(|message| message == "Assuming an external populator will provision the volume")
                .then_some(())
        })
        .await;
    assert!(driver.requests(&snapshot).is_empty() && driver.requests(&populated).is_empty());
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_the_story_as_users_know_it() {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    class(&cluster, "fast", json!({}));
    driver.script([Script::Fails(|m| Error::internal(m))]);
    let process = start(&cluster, &driver);
    let name = claim(&cluster, "data", json!({}));
    bound(&cluster, "data").await;
    driver.fail_deletions(1);
    delete_claim(&cluster, "data");
    empty(&cluster, &driver).await;
    process.stop().await;
    assert_eq!(
        cluster.events("Provisioning")[0],
        "External provisioner is provisioning volume for claim \"shop/data\""
    );
    assert_eq!(
        cluster.events("ProvisioningFailed"),
        ["failed to provision volume with StorageClass \"fast\": rpc error: code = Internal desc = scripted"]
    );
    assert_eq!(cluster.events("ProvisioningSucceeded"), [format!("Successfully provisioned volume {name}")]);
    assert_eq!(cluster.events("VolumeFailedDelete"), ["rpc error: code = Internal desc = scripted"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_vanishes_before_it_is_bound_is_made_again() {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    class(&cluster, "fast", json!({}));
    cluster.stop_binding(true);
    let process = start(&cluster, &driver);
    let name = claim(&cluster, "data", json!({}));
    let mut volume = cluster.until("the volume", |cluster| cluster.get("persistentvolumes", "", &name)).await;
    cluster.until("its success", |cluster| cluster.events("ProvisioningSucceeded").pop()).await;
    volume["metadata"]["finalizers"] = json!([]);
    cluster.put("persistentvolumes", volume);
    cluster.delete("persistentvolumes", "", &name);
    cluster.until("the volume once more", |cluster| cluster.get("persistentvolumes", "", &name)).await;
    assert_eq!(driver.requests(&name).len(), 2);
    cluster.stop_binding(false);
    bound(&cluster, "data").await;
    process.stop().await;
}
