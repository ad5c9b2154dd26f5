//! The whole program against the lab's API server, over TLS: real validation, real patches, a real lease.

use std::ffi::OsString;
use std::time::Duration;

use clap::Parser;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use outrigger_daemon::Shutdown;
use outrigger_lab_apiserver::{Server, ServerOptions};
use outrigger_lab_store::Durability;
use outrigger_sidecars::Options;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::driver::{self, Driver};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    options: Options,
}

fn object<K: DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).unwrap()
}

/// Asks again and again until `check` finds what it looks for.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, check: impl Fn() -> F) -> T {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            ticks.tick().await;
            if let Some(found) = check().await {
                return found;
            }
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(ServerOptions { durability: Durability::Memory, ..ServerOptions::new(dir.path()) })
        .await
        .unwrap();
    let driver = Driver::start(false);
    let client = outrigger_kube::client(Some(server.kubeconfig_path()), 0.0, 0).await.unwrap();
    let arguments: [OsString; 10] = [
        "controllers".into(),
        "--csi-address".into(),
        driver.endpoint.to_string().into(),
        "--kubeconfig".into(),
        server.kubeconfig_path().into(),
        "--leader-election".into(),
        "--leader-election-namespace=default".into(),
        "--kube-api-qps=1000".into(),
        "--kube-api-burst=1000".into(),
        "--retry-interval-start=10ms".into(),
    ];
    let shutdown = Shutdown::new();
    let options = Command::parse_from(arguments).options;
    let running = tokio::spawn(outrigger_sidecars::run(options, shutdown.clone()));

    let create = PostParams::default();
    let classes: Api<StorageClass> = Api::all(client.clone());
    let class = json!({ "metadata": { "name": "fast" }, "provisioner": driver::NAME, "parameters": { "kind": "ssd" } });
    classes.create(&create, &object(class)).await.unwrap();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
    let claim = json!({
        "metadata": { "name": "data", "annotations": { "volume.kubernetes.io/storage-provisioner": driver::NAME } },
        "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "resources": { "requests": { "storage": "1Gi" } } },
    });
    let claim = claims.create(&create, &object(claim)).await.unwrap();
    let name = format!("pvc-{}", claim.uid().unwrap());

    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let volume = until("the volume", async || volumes.get_opt(&name).await.unwrap()).await;
    let spec = volume.spec.unwrap();
    assert_eq!(spec.capacity.unwrap()["storage"].0, "1Gi");
    assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Delete"));
    assert_eq!(driver.volumes(), [name.clone()]);

    // What the volume controller would do.
    claims.delete("data", &DeleteParams::default()).await.unwrap();
    let released = json!({ "status": { "phase": "Released" } });
    volumes.patch_status(&name, &PatchParams::default(), &Patch::Merge(released)).await.unwrap();
    until("the volume to be given up", async || {
        // What is left waits for the protection controller, which does not run here.
        let left = volumes.get_opt(&name).await.unwrap();
        let is_ours = |finalizer: &String| finalizer.starts_with("external-provisioner.");
        let done = left
            .is_none_or(|left| left.metadata.deletion_timestamp.is_some() && !left.finalizers().iter().any(is_ours));
        done.then_some(())
    })
    .await;
    assert!(driver.volumes().is_empty());

    let leases: Api<Lease> = Api::namespaced(client.clone(), "default");
    assert!(leases.get(driver::NAME).await.unwrap().spec.unwrap().holder_identity.is_some());
    shutdown.trigger();
    running.await.unwrap().unwrap();
    let record: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let record = record.get(&format!("outrigger-provisioner-{}", driver::NAME)).await.unwrap();
    assert!(record.data.unwrap_or_default().is_empty());
    let events: Api<Event> = Api::namespaced(client, "default");
    let reasons: Vec<_> =
        events.list(&ListParams::default()).await.unwrap().into_iter().filter_map(|e| e.reason).collect();
    for reason in ["Provisioning", "ProvisioningSucceeded"] {
        assert!(reasons.iter().any(|found| found == reason), "{reasons:?}");
    }
    server.shutdown().await;
}
