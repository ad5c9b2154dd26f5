//! Deletion: finalizers, preconditions, grace, propagation, namespaces, collections.

use serde_json::json;

use crate::lab::{CM, Lab, MERGE};

#[tokio::test]
async fn an_object_goes_at_once_with_a_status() {
    let lab = Lab::start().await;
    let object = lab.config_map("a", "1").await;
    let status = lab.delete(&format!("{CM}/a")).await.expect(200);
    assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(status["details"], json!({"name": "a", "kind": "configmaps", "uid": object["metadata"]["uid"]}));
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_removed() {
    let lab = Lab::start().await;
    lab.post(CM, &json!({"metadata": {"name": "a", "finalizers": ["example.com/x"]}})).await.expect(201);
    let path = format!("{CM}/a");
    let held = lab.delete(&path).await.expect(200);
    assert_eq!(held["kind"], "ConfigMap", "the object, since it stays");
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(held["metadata"]["deletionGracePeriodSeconds"], 0);
    assert_eq!(lab.delete(&path).await.expect(200), held, "a second deletion changes nothing");
    lab.post(CM, &json!({"metadata": {"name": "a"}})).await.fails(409, "AlreadyExists");
    let status = lab
        .patch(&path, MERGE, &json!({"metadata": {"finalizers": ["example.com/x", "example.com/y"]}}))
        .await
        .fails(422, "Invalid");
    assert_eq!(status["details"]["causes"][0]["field"], "metadata.finalizers");
    lab.patch(&path, MERGE, &json!({"data": {"k": "v"}})).await.expect(200);
    let mut events = lab
        .watch(&format!(
            "{CM}?watch=true&resourceVersion={}",
            held["metadata"]["resourceVersion"].as_str().expect("text")
        ))
        .await;
    let last = lab.patch(&path, MERGE, &json!({"metadata": {"finalizers": null}})).await.expect(200);
    assert_eq!(last["data"]["k"], "v");
    lab.get(&path).await.fails(404, "NotFound");
    assert_eq!(events.name().await.0, "MODIFIED");
    assert_eq!(events.name().await.0, "DELETED");
}

#[tokio::test]
async fn preconditions_and_options_are_checked() {
    let lab = Lab::start().await;
    let object = lab.config_map("a", "1").await;
    let path = format!("{CM}/a");
    lab.delete_with(&path, &json!({"preconditions": {"uid": "other"}})).await.fails(409, "Conflict");
    lab.delete_with(&path, &json!({"preconditions": {"resourceVersion": "1"}})).await.fails(409, "Conflict");
    lab.delete_with(&path, &json!({"propagationPolicy": "Sideways"})).await.fails(422, "Invalid");
    lab.delete_with(&path, &json!({"propagationPolicy": "Orphan", "orphanDependents": true}))
        .await
        .fails(422, "Invalid");
    lab.delete_with(&path, &json!({"kind": "Pod"})).await.fails(400, "BadRequest");
    lab.delete_with(
        &path,
        &json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": object["metadata"]["uid"]}}),
    )
    .await
    .expect(200);

    lab.config_map("b", "1").await;
    let orphaning = lab.delete_with(&format!("{CM}/b"), &json!({"propagationPolicy": "Orphan"})).await.expect(200);
    assert_eq!(orphaning["metadata"]["finalizers"], json!(["orphan"]));
    lab.config_map("c", "1").await;
    let waiting = lab.delete(&format!("{CM}/c?propagationPolicy=Foreground")).await.expect(200);
    assert_eq!(waiting["metadata"]["finalizers"], json!(["foregroundDeletion"]));
}

#[tokio::test]
async fn pods_get_grace_that_only_shrinks() {
    let lab = Lab::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |name: &str| json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    lab.post(pods, &pod("unscheduled")).await.expect(201);
    assert_eq!(lab.delete(&format!("{pods}/unscheduled")).await.expect(200)["kind"], "Pod");
    lab.get(&format!("{pods}/unscheduled")).await.fails(404, "NotFound");

    lab.post(pods, &pod("p")).await.expect(201);
    let path = format!("{pods}/p");
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    lab.post(&format!("{path}/binding"), &binding).await.expect(201);
    lab.post(&format!("{path}/binding"), &binding).await.fails(409, "Conflict");
    let bound = lab.get(&path).await.expect(200);
    assert_eq!(
        (&bound["spec"]["nodeName"], &bound["status"]["conditions"][0]["type"]),
        (&json!("n"), &json!("PodScheduled"))
    );
    assert_eq!(lab.delete(&path).await.expect(200)["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(
        lab.delete(&format!("{path}?gracePeriodSeconds=50")).await.expect(200)["metadata"]["deletionGracePeriodSeconds"],
        30
    );
    let shorter = lab.delete_with(&path, &json!({"gracePeriodSeconds": 5})).await.expect(200);
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    lab.delete_with(&path, &json!({"gracePeriodSeconds": 0})).await.expect(200);
    lab.get(&path).await.fails(404, "NotFound");

    lab.post(pods, &pod("q")).await.expect(201);
    lab.post(
        &format!("{pods}/q/eviction"),
        &json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "q"}}),
    )
    .await
    .expect(201);
    lab.get(&format!("{pods}/q")).await.fails(404, "NotFound");
}

#[tokio::test]
async fn namespaces_terminate_step_by_step_and_some_never() {
    let lab = Lab::start().await;
    for name in ["default", "kube-system", "kube-public"] {
        lab.delete(&format!("/api/v1/namespaces/{name}")).await.fails(403, "Forbidden");
    }
    let made = lab.post("/api/v1/namespaces", &json!({"metadata": {"name": "x"}})).await.expect(201);
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(made["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "x"}));
    let terminating = lab.delete("/api/v1/namespaces/x").await.expect(200);
    assert_eq!(terminating["status"]["phase"], "Terminating");
    let status =
        lab.post("/api/v1/namespaces/x/configmaps", &json!({"metadata": {"name": "a"}})).await.fails(403, "Forbidden");
    assert_eq!(status["details"]["causes"][0]["reason"], "NamespaceTerminating");
    // Only the finalize subresource takes the finalizer away; then the namespace is gone.
    lab.patch("/api/v1/namespaces/x", MERGE, &json!({"spec": {"finalizers": []}})).await.expect(200);
    let mut object = lab.get("/api/v1/namespaces/x").await.expect(200);
    object["spec"]["finalizers"] = json!([]);
    lab.put("/api/v1/namespaces/x/finalize", &object).await.expect(200);
    lab.get("/api/v1/namespaces/x").await.fails(404, "NotFound");
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let lab = Lab::start().await;
    for (name, label) in [("a", "1"), ("b", "2"), ("c", "1")] {
        lab.post(CM, &json!({"metadata": {"name": name, "labels": {"x": label}}})).await.expect(201);
    }
    let deleted = lab.send("DELETE", &format!("{CM}?labelSelector=x%3D1"), &[], "").await.expect(200);
    assert_eq!((&deleted["kind"], deleted["items"].as_array().expect("items").len()), (&json!("ConfigMapList"), 2));
    let left = lab.get(CM).await.expect(200);
    assert_eq!(left["items"].as_array().expect("items").len(), 1);
    assert_eq!(left["items"][0]["metadata"]["name"], "b");
}

#[tokio::test]
async fn a_later_deletion_can_change_what_happens_to_dependents() {
    let lab = Lab::start().await;
    let held = json!(["example.com/x"]);
    lab.post(CM, &json!({"metadata": {"name": "a", "finalizers": held}})).await.expect(201);
    let path = format!("{CM}/a");
    let begun = lab.delete(&path).await.expect(200)["metadata"]["deletionTimestamp"].clone();
    for (policy, finalizers) in [
        ("Foreground", json!(["example.com/x", "foregroundDeletion"])),
        ("Orphan", json!(["example.com/x", "orphan"])),
        ("Background", held),
    ] {
        let object = lab.delete_with(&path, &json!({"propagationPolicy": policy})).await.expect(200);
        assert_eq!(object["metadata"]["finalizers"], finalizers, "{policy}");
        assert_eq!(object["metadata"]["deletionTimestamp"], begun, "it began when it began");
    }
}
