//! Runs provisioners that can be killed, and writes the objects that tests need.

use std::thread::JoinHandle;
use std::time::Duration;

use outrigger_csi::Client;
use outrigger_daemon::{Metrics, Shutdown};
use outrigger_kube::{Backoff, QueueMetrics, Recorder};
use outrigger_sidecars::provisioner::plan::PlanSettings;
use outrigger_sidecars::provisioner::{Config, DriverFeatures, Provisioner, ProvisionerMetrics, Reporting};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::driver::{self, Driver};
use super::effects::Effects;

pub(crate) const RECORD: &str = "calls";

pub(crate) fn config() -> Config {
    Config {
        plan: PlanSettings {
            driver: driver::NAME.to_owned(),
            volume_name_prefix: "pvc".to_owned(),
            volume_name_uuid_length: None,
            default_fs_type: String::new(),
            extra_create_metadata: false,
            controller_publish_readonly: false,
            single_node_multi_writer: false,
        },
        driver: DriverFeatures::default(),
        strict_topology: false,
        immediate_topology: true,
        timeout: Duration::from_millis(200),
        backoff: Backoff { start: Duration::from_millis(5), max: Duration::from_millis(50) },
        workers: 10,
        namespace: "system".to_owned(),
        record: RECORD.to_owned(),
        identity: "tester".to_owned(),
    }
}

/// A provisioner with a runtime of its own, so that it can be killed as a process can: at any point at which it waits.
pub(crate) struct Process {
    kill: CancellationToken,
    shutdown: Shutdown,
    thread: Option<JoinHandle<()>>,
    pub(crate) metrics: Metrics,
}

impl Process {
    pub(crate) fn start(cluster: &Cluster, driver: &Driver, effects: &Effects, config: Config) -> Self {
        driver.serve_process(effects.clone());
        let kill = CancellationToken::new();
        let shutdown = Shutdown::new();
        let metrics = Metrics::new();
        let thread = std::thread::spawn({
            let (cluster, effects, endpoint) = (cluster.clone(), effects.clone(), driver.endpoint.clone());
            let (kill, shutdown, metrics) = (kill.clone(), shutdown.clone(), metrics.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let client = cluster.client(effects);
                    let driver = Client::connect(&endpoint, Duration::from_secs(10)).await.unwrap();
                    let recorder = Recorder::new(client.clone(), "test", None);
                    let reporting = Reporting {
                        provisioner: ProvisionerMetrics::register(&metrics),
                        queues: QueueMetrics::register(&metrics),
                    };
                    let provisioner = Provisioner::new(client, driver, recorder, config, reporting);
                    tokio::select! {
                        () = kill.cancelled() => {}
                        outcome = provisioner.run(&shutdown, || ()) => outcome.unwrap(),
                    }
                });
                // Whatever still runs ends here.
            }
        });
        Self { kill, shutdown, thread: Some(thread), metrics }
    }

    /// `kill -9`.
    pub(crate) async fn kill(mut self) {
        self.kill.cancel();
        self.join().await;
    }

    /// SIGTERM.
    pub(crate) async fn stop(mut self) {
        self.shutdown.trigger();
        self.join().await;
    }

    async fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill.cancel();
    }
}

pub(crate) fn class(cluster: &Cluster, name: &str, fields: Value) {
    let mut class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": name },
        "provisioner": driver::NAME,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
    });
    json_patch::merge(&mut class, &fields);
    cluster.put("storageclasses", class);
}

/// Makes a claim that asks the driver for a volume; gives the name that its volume will have.
pub(crate) fn claim(cluster: &Cluster, name: &str, fields: Value) -> String {
    let mut claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "annotations": { "volume.kubernetes.io/storage-provisioner": driver::NAME },
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "fast",
            "resources": { "requests": { "storage": "1Gi" } },
        },
        "status": { "phase": "Pending" },
    });
    json_patch::merge(&mut claim, &fields);
    let claim = cluster.put("persistentvolumeclaims", claim);
    format!("pvc-{}", claim["metadata"]["uid"].as_str().unwrap())
}

pub(crate) fn delete_claim(cluster: &Cluster, name: &str) {
    cluster.delete("persistentvolumeclaims", "shop", name);
}

/// Waits until the claim is bound.
pub(crate) async fn bound(cluster: &Cluster, name: &str) -> Value {
    cluster
        .until("the claim to be bound", |cluster| {
            let claim = cluster.get("persistentvolumeclaims", "shop", name)?;
            (claim["status"]["phase"] == "Bound").then_some(claim)
        })
        .await
}

/// Waits until neither volume objects nor volumes are left.
pub(crate) async fn empty(cluster: &Cluster, driver: &Driver) {
    cluster
        .until("all volumes to be gone", |cluster| {
            (cluster.list("persistentvolumes").is_empty() && driver.volumes().is_empty()).then_some(())
        })
        .await;
}

/// The calls on record.
pub(crate) fn recorded(cluster: &Cluster) -> Vec<String> {
    let map = cluster.get("configmaps", "system", RECORD).unwrap_or_default();
    map["data"].as_object().map(|data| data.keys().cloned().collect()).unwrap_or_default()
}
