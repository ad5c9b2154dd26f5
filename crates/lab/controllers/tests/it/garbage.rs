//! Owners and dependents.

use outrigger_lab_apiserver::kinds::Propagation;
use outrigger_lab_controllers::Name;
use serde_json::json;

use crate::lab::{Lab, config, namespace, owner, text, widget, widgets};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn background_cascade_over_built_in_and_custom_kinds() {
    let lab = Lab::start().await;
    lab.create(widgets()).await;
    let top = lab.create(config("default", "top", &[])).await;
    let middle = lab.create(widget("default", "middle", &[owner(&top, true)])).await;
    lab.create(config("default", "bottom", &[owner(&middle, false)])).await;
    let bystander = lab.create(config("default", "bystander", &[])).await;
    lab.create(config("default", "shared", &[owner(&top, false), owner(&bystander, false)])).await;
    lab.settle().await;
    lab.delete(&top, Some(Propagation::Background)).await;
    assert!(lab.get("ConfigMap", "default", "top").is_none(), "the owner goes first");
    lab.settle().await;
    assert!(lab.get("Widget", "default", "middle").is_none());
    assert!(lab.get("ConfigMap", "default", "bottom").is_none());
    let shared = lab.get("ConfigMap", "default", "shared").unwrap();
    assert_eq!(shared["metadata"]["ownerReferences"], json!([owner(&bystander, false)]));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_waits_for_blocking_dependents() {
    let lab = Lab::start().await;
    let top = lab.create(config("default", "top", &[])).await;
    let mut held = config("default", "held", &[owner(&top, true)]);
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let held = lab.create(held).await;
    lab.create(config("default", "plain", &[owner(&top, true)])).await;
    lab.delete(&top, Some(Propagation::Foreground)).await;
    lab.settle().await;
    let waiting = lab.get("ConfigMap", "default", "top").expect("the owner waits");
    assert_eq!(waiting["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    assert!(lab.get("ConfigMap", "default", "plain").is_none());
    lab.patch(&held, json!({"metadata": {"finalizers": null}})).await;
    lab.settle().await;
    assert!(lab.get("ConfigMap", "default", "held").is_none());
    assert!(lab.get("ConfigMap", "default", "top").is_none());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_stay_without_their_reference() {
    let lab = Lab::start().await;
    lab.create(widgets()).await;
    let top = lab.create(config("default", "top", &[])).await;
    for index in 0..20 {
        lab.create(widget("default", &format!("orphan-{index}"), &[owner(&top, true)])).await;
    }
    lab.delete(&top, Some(Propagation::Orphan)).await;
    lab.settle().await;
    assert!(lab.get("ConfigMap", "default", "top").is_none());
    let orphans = lab.list("Widget", "default").await;
    assert_eq!(orphans.len(), 20);
    assert!(orphans.iter().all(|orphan| orphan["metadata"].get("ownerReferences").is_none()));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absent_and_misplaced_owners() {
    let lab = Lab::start().await;
    lab.create(namespace("elsewhere")).await;
    let far = lab.create(config("elsewhere", "far", &[])).await;
    let mut gone = owner(&far, false);
    gone["uid"] = "00000000-0000-4000-8000-000000000000".into();
    lab.create(config("default", "dangling", &[gone])).await;
    let misplaced = lab.create(config("default", "misplaced", &[owner(&far, false)])).await;
    let mut unknown = owner(&far, false);
    unknown["apiVersion"] = "nobody.example.com/v1".into();
    unknown["uid"] = "00000000-0000-4000-8000-000000000001".into();
    lab.create(config("default", "unknown", &[unknown])).await;
    lab.settle().await;
    assert!(lab.get("ConfigMap", "default", "dangling").is_none());
    assert!(lab.get("ConfigMap", "default", "misplaced").is_none());
    assert_eq!(lab.events(&misplaced).await, ["OwnerRefInvalidNamespace"]);
    assert!(lab.get("ConfigMap", "default", "unknown").is_some(), "owners of unknown kinds cannot be judged");
    assert!(lab.get("ConfigMap", "elsewhere", "far").is_some());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definition_takes_the_dependents_of_its_objects_along() {
    let lab = Lab::start().await;
    let definition = lab.create(widgets()).await;
    let top = lab.create(widget("default", "top", &[])).await;
    lab.create(config("default", "child", &[owner(&top, true)])).await;
    lab.settle().await;
    lab.delete(&definition, None).await;
    lab.settle().await;
    assert!(lab.get("CustomResourceDefinition", "", "widgets.example.com").is_none());
    assert!(lab.get("ConfigMap", "default", "child").is_none());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletions_missed_while_stopped_are_made_up_for() {
    let mut lab = Lab::start().await;
    let top = lab.create(config("default", "top", &[])).await;
    lab.create(config("default", "child", &[owner(&top, false)])).await;
    lab.settle().await;
    lab.restart_controllers(async |lab| {
        lab.delete(&top, Some(Propagation::Background)).await;
        assert!(lab.get("ConfigMap", "default", "child").is_some());
    })
    .await;
    assert!(lab.get("ConfigMap", "default", "child").is_none());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switched_off_it_leaves_everything_alone() {
    let lab = Lab::without(&[Name::GarbageCollector]).await;
    let top = lab.create(config("default", "top", &[])).await;
    lab.create(config("default", "child", &[owner(&top, false)])).await;
    lab.delete(&top, Some(Propagation::Background)).await;
    lab.settle().await;
    assert!(lab.get("ConfigMap", "default", "child").is_some());
    assert_eq!(text(&lab.get("ServiceAccount", "default", "default").unwrap(), "/metadata/name"), "default");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wide_cascade() {
    let lab = Lab::start().await;
    let top = lab.create(config("default", "top", &[])).await;
    for index in 0..300 {
        lab.create(config("default", &format!("child-{index}"), &[owner(&top, index % 2 == 0)])).await;
    }
    lab.settle().await;
    let start = std::time::Instant::now();
    lab.delete(&top, Some(Propagation::Foreground)).await;
    lab.settle().await;
    eprintln!("foreground cascade over 300 dependents: {:?}", start.elapsed());
    let left = lab.list("ConfigMap", "default").await;
    assert_eq!(left.iter().filter(|config| text(config, "/metadata/name") != "kube-root-ca.crt").count(), 0);
    lab.stop().await;
}
