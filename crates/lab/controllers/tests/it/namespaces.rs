//! The beginning and the end of namespaces.

use std::time::{Duration, Instant};

use outrigger_lab_controllers::Name;
use outrigger_lab_store::EventKind;
use serde_json::{Value, json};

use crate::lab::{Lab, config, namespace, text, until, widget, widgets};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_namespace_is_furnished_at_once() {
    let lab = Lab::start().await;
    let mut fastest = Duration::MAX;
    for index in 0..20 {
        let name = format!("n{index}");
        let mut accounts = lab.watch(&format!("/registry/core/serviceaccounts/{name}/"));
        let start = Instant::now();
        lab.create(namespace(&name)).await;
        until(&mut accounts, |kind, account| kind == EventKind::Put && text(account, "/metadata/name") == "default")
            .await;
        fastest = fastest.min(start.elapsed());
    }
    eprintln!("namespace to default service account: {fastest:?} at best of 20");
    assert!(fastest < Duration::from_millis(10), "{fastest:?}");
    lab.settle().await;
    for index in 0..20 {
        let certificate = lab.get("ConfigMap", &format!("n{index}"), "kube-root-ca.crt").unwrap();
        assert!(text(&certificate, "/data/ca.crt").starts_with("-----BEGIN CERTIFICATE-----"));
    }
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_comes_back() {
    let lab = Lab::start().await;
    let account = lab.get("ServiceAccount", "default", "default").unwrap();
    let certificate = lab.get("ConfigMap", "default", "kube-root-ca.crt").unwrap();
    lab.delete(&account, None).await;
    lab.patch(&certificate, json!({"data": {"ca.crt": "forged"}})).await;
    lab.settle().await;
    let again = lab.get("ServiceAccount", "default", "default").unwrap();
    assert_ne!(again["metadata"]["uid"], account["metadata"]["uid"]);
    let repaired = lab.get("ConfigMap", "default", "kube-root-ca.crt").unwrap();
    assert_eq!(repaired["data"], certificate["data"]);
    lab.delete(&repaired, None).await;
    lab.settle().await;
    assert!(lab.get("ConfigMap", "default", "kube-root-ca.crt").is_some());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_namespace_takes_its_content_along() {
    let lab = Lab::start().await;
    lab.create(widgets()).await;
    let doomed = lab.create(namespace("doomed")).await;
    lab.settle().await;
    for index in 0..30 {
        lab.create(config("doomed", &format!("c{index}"), &[])).await;
        lab.create(widget("doomed", &format!("w{index}"), &[])).await;
    }
    let other = lab.create(config("default", "other", &[])).await;
    let start = Instant::now();
    lab.delete(&doomed, None).await;
    lab.settle().await;
    eprintln!("namespace with 62 objects deleted in {:?}", start.elapsed());
    assert!(lab.get("Namespace", "", "doomed").is_none());
    assert!(lab.list("ConfigMap", "doomed").await.is_empty());
    assert!(lab.list("Widget", "doomed").await.is_empty());
    assert!(lab.list("ServiceAccount", "doomed").await.is_empty());
    assert!(lab.get("ConfigMap", "default", text(&other, "/metadata/name")).is_some());
    // The name is free again.
    lab.create(namespace("doomed")).await;
    lab.settle().await;
    assert!(lab.get("ServiceAccount", "doomed", "default").is_some());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finalizers_of_the_content_hold_the_namespace() {
    let lab = Lab::start().await;
    let doomed = lab.create(namespace("doomed")).await;
    let mut held = config("doomed", "held", &[]);
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let held = lab.create(held).await;
    lab.delete(&doomed, None).await;
    lab.settle().await;
    let waiting = lab.get("Namespace", "", "doomed").unwrap();
    assert_eq!(text(&waiting, "/status/phase"), "Terminating");
    let condition = |kind: &str| -> Value {
        let conditions = waiting["status"]["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition["type"] == kind).unwrap().clone()
    };
    let remaining = condition("NamespaceContentRemaining");
    assert_eq!(remaining["status"], "True");
    assert_eq!(remaining["message"], "Some resources are remaining: configmaps. has 1 resource instances");
    let finalizers = condition("NamespaceFinalizersRemaining");
    assert_eq!(finalizers["reason"], "SomeFinalizersRemain");
    assert_eq!(
        finalizers["message"],
        "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
    );
    assert_eq!(condition("NamespaceDeletionDiscoveryFailure")["status"], "False");
    let refused = lab.try_create(config("doomed", "late", &[])).await.unwrap_err();
    assert!(refused.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"), "{refused:?}");
    lab.patch(&held, json!({"metadata": {"finalizers": null}})).await;
    lab.settle().await;
    assert!(lab.get("Namespace", "", "doomed").is_none());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finalizers_of_others_are_left_to_them() {
    let lab = Lab::start().await;
    let mut guarded = namespace("guarded");
    guarded["metadata"]["finalizers"] = json!(["example.com/guard"]);
    let guarded = lab.create(guarded).await;
    lab.delete(&guarded, None).await;
    lab.settle().await;
    let waiting = lab.get("Namespace", "", "guarded").expect("its own finalizer holds it");
    assert_eq!(waiting["metadata"]["finalizers"], json!(["example.com/guard"]));
    assert!(lab.list("ServiceAccount", "guarded").await.is_empty());
    lab.patch(&waiting, json!({"metadata": {"finalizers": null}})).await;
    lab.settle().await;
    assert!(lab.get("Namespace", "", "guarded").is_none());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loops_are_switched_off_one_by_one() {
    let lab = Lab::without(&[Name::ServiceAccount, Name::Namespace]).await;
    let made = lab.create(namespace("made")).await;
    lab.settle().await;
    assert!(lab.get("ServiceAccount", "made", "default").is_none());
    assert!(lab.get("ConfigMap", "made", "kube-root-ca.crt").is_some());
    lab.delete(&made, None).await;
    lab.settle().await;
    assert!(lab.get("Namespace", "", "made").is_some());
    lab.stop().await;
}
