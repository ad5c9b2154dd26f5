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
use tempfile::TempDir;
use tokio::task::JoinHandle;

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

/// The whole program, with the lab that it runs against.
struct Running {
    server: Server,
    driver: Driver,
    client: kube::Client,
    shutdown: Shutdown,
    program: JoinHandle<Result<(), outrigger_sidecars::Error>>,
    _dir: TempDir,
}

impl Running {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = ServerOptions { durability: Durability::Memory, ..ServerOptions::new(dir.path()) };
        let server = Server::start(options).await.unwrap();
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
            "--kube-api-qps=100000".into(),
            "--kube-api-burst=100000".into(),
            "--retry-interval-start=10ms".into(),
        ];
        let shutdown = Shutdown::new();
        let options = Command::parse_from(arguments).options;
        let program = tokio::spawn(outrigger_sidecars::run(options, shutdown.clone()));
        let classes: Api<StorageClass> = Api::all(client.clone());
        let class =
            json!({ "metadata": { "name": "fast" }, "provisioner": driver::NAME, "parameters": { "kind": "ssd" } });
        classes.create(&PostParams::default(), &object(class)).await.unwrap();
        Self { server, driver, client, shutdown, program, _dir: dir }
    }

    async fn claim(&self, name: &str) -> PersistentVolumeClaim {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), "default");
        let claim = json!({
            "metadata": { "name": name, "annotations": { "volume.kubernetes.io/storage-provisioner": driver::NAME } },
            "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "resources": { "requests": { "storage": "1Gi" } } },
        });
        claims.create(&PostParams::default(), &object(claim)).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_comes_and_goes() {
    let running = Running::start().await;
    let (client, driver) = (&running.client, &running.driver);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
    let name = format!("pvc-{}", running.claim("data").await.uid().unwrap());

    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let volume = until("the volume", async || volumes.get_opt(&name).await.unwrap()).await;
    let spec = volume.spec.unwrap();
    assert_eq!(spec.capacity.unwrap()["storage"].0, "1Gi");
    assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Delete"));
    assert_eq!(driver.volumes(), std::slice::from_ref(&name));

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
    // csi-provisioner's name for it.
    let lease = driver::NAME.replace('.', "-");
    assert!(leases.get(&lease).await.unwrap().spec.unwrap().holder_identity.is_some());
    let record: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    running.shutdown.trigger();
    running.program.await.unwrap().unwrap();
    let record = record.get(&format!("outrigger-provisioner-{}", driver::NAME)).await.unwrap();
    assert!(record.data.unwrap_or_default().is_empty());
    let events: Api<Event> = Api::namespaced(client.clone(), "default");
    let reasons: Vec<_> =
        events.list(&ListParams::default()).await.unwrap().into_iter().filter_map(|e| e.reason).collect();
    for reason in ["Provisioning", "ProvisioningSucceeded"] {
        assert!(reasons.iter().any(|found| found == reason), "{reasons:?}");
    }
    running.server.shutdown().await;
}
