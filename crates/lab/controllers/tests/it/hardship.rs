//! Twins, lost history and haste.

use std::time::Duration;

use outrigger_lab_apiserver::kinds::Propagation;
use serde_json::{Value, json};

use crate::lab::{Lab, config, namespace, owner, text};
use crate::volumes::{claim, volume};

/// Makes namespaces, owners and claims, and deletes half of them.
async fn bustle(lab: &Lab) {
    for index in 0..12 {
        let space = lab.create(namespace(&format!("n{index}"))).await;
        let top = lab.create(config(&format!("n{index}"), "top", &[])).await;
        for child in 0..5 {
            lab.create(config(&format!("n{index}"), &format!("child-{child}"), &[owner(&top, true)])).await;
        }
        lab.create(claim(&format!("c{index}"), "1Gi", Some("manual"))).await;
        lab.create(volume(&format!("v{index}"), "1Gi", "manual", "Retain")).await;
        match index % 3 {
            0 => lab.delete(&space, None).await,
            1 => lab.delete(&top, Some(Propagation::Foreground)).await,
            _ => {}
        }
    }
}

async fn check(lab: &Lab) {
    for index in 0..12 {
        let name = format!("n{index}");
        let space = lab.get("Namespace", "", &name);
        let configs = lab.list("ConfigMap", &name).await;
        match index % 3 {
            0 => assert!(space.is_none() && configs.is_empty(), "{name}: {space:?} {configs:?}"),
            1 => assert_eq!(configs.len(), 1, "{name} has its certificate only"),
            _ => assert_eq!(configs.len(), 7, "{name}"),
        }
        if space.is_some() {
            assert!(lab.get("ServiceAccount", &name, "default").is_some());
        }
    }
    let claims = lab.list("PersistentVolumeClaim", "default").await;
    let mut volumes: Vec<&str> = claims.iter().map(|claim| text(claim, "/spec/volumeName")).collect();
    volumes.sort_unstable();
    volumes.dedup();
    assert_eq!(volumes.len(), 12);
    for claim in &claims {
        assert_eq!(text(claim, "/status/phase"), "Bound");
        let volume = lab.get("PersistentVolume", "", text(claim, "/spec/volumeName")).unwrap();
        assert_eq!(volume["spec"]["claimRef"]["uid"], claim["metadata"]["uid"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twins_do_not_disturb_each_other() {
    let lab = Lab::start().await;
    let twin = lab.more_controllers(&[]);
    bustle(&lab).await;
    // What one does is work for the other, so neither is done before both are.
    loop {
        let revision = lab.revision();
        lab.settle().await;
        tokio::time::timeout(Duration::from_secs(20), twin.settle()).await.expect("the twin settles");
        if lab.revision() == revision {
            break;
        }
    }
    check(&lab).await;
    twin.stop().await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_history_is_made_up_for() {
    let lab = Lab::with_history(&[], 1).await;
    bustle(&lab).await;
    lab.settle().await;
    check(&lab).await;
    lab.stop().await;
}

#[tokio::test]
async fn one_thread_is_enough() {
    let lab = Lab::start().await;
    bustle(&lab).await;
    lab.settle().await;
    check(&lab).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quiet_means_quiet() {
    let lab = Lab::start().await;
    bustle(&lab).await;
    lab.settle().await;
    let revision = lab.revision();
    // Nobody writes by the clock, and a touched object causes no chain of writes.
    assert!(tokio::time::timeout(Duration::from_millis(300), never(&lab)).await.is_err());
    assert_eq!(lab.revision(), revision);
    let bound = lab.get("PersistentVolumeClaim", "default", "c0").unwrap();
    lab.patch(&bound, json!({"metadata": {"labels": {"touched": "yes"}}})).await;
    lab.settle().await;
    assert_eq!(lab.revision(), revision + 1);
    lab.stop().await;
}

async fn never(lab: &Lab) -> Value {
    let mut changes = lab.watch("/registry/");
    crate::lab::until(&mut changes, |_, _| true).await;
    Value::Null
}
