//! The lab's node: what the kubelet does at the extension points.
//!
//! Today that is registration: the Node object with its lease, and for each CSI driver the node's id (annotation and
//! CSINode), its topology (labels of the Node) and its limit (CSINode). Controllers such as the external provisioner
//! read topology from exactly these places. The node takes no pods yet and says so (`spec.unschedulable`).

mod error;
mod machine;
pub mod objects;

use std::time::Duration;

use jiff::Timestamp;
use outrigger_csi::{Client as Csi, proto};
use outrigger_lab_apiserver::{ApiError, Client, Patch, Resource, WriteOptions};
use outrigger_rpc::Endpoint;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use error::Error;
use objects::CsiRegistration;

/// The kubelet's limit for calls to a driver.
const CSI_DEADLINE: Duration = Duration::from_mins(2);
/// The kubelet renews its lease that often.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Writers of the same object are few; more lost races than this are a fault.
const RACES: usize = 10;

/// A node that is registered; its lease is renewed while this lives.
#[derive(Debug)]
pub struct Node {
    client: Client,
    name: String,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Node {
    /// Registers this machine under `name` and begins to renew its lease.
    ///
    /// # Errors
    /// The API server refuses one of the objects.
    pub async fn start(client: Client, name: &str) -> Result<Self, Error> {
        let node = Self { client, name: name.to_owned(), stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let machine = machine::this_machine();
        let wanted = objects::node(name, &machine);
        match node.client.create(&nodes(), "", wanted, &WriteOptions::default()).await {
            Ok(_) => {}
            Err(error) if error.reason == "AlreadyExists" => {}
            Err(source) => return Err(node.failed("create", "Node", source)),
        }
        let now = Timestamp::now();
        // The first condition also brings the status of a node from an earlier run up to date.
        let mut status = objects::ready(&seconds(now), &seconds(now));
        for (key, value) in objects::status(name, &machine).as_object().into_iter().flatten() {
            status["status"][key] = value.clone();
        }
        node.patch_status(&status).await?;
        node.renew(now).await?;
        node.tasks.spawn(heartbeat(node.client.clone(), name.to_owned(), now, node.stop.clone()));
        node.tasks.close();
        Ok(node)
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks a driver who this node is to it, and tells the cluster. Repeating it writes nothing that is there already.
    ///
    /// # Errors
    /// The driver cannot be reached or does not answer; its topology contradicts a label of the node; the API server
    /// refuses a write.
    pub async fn register_csi(&self, endpoint: &Endpoint) -> Result<CsiRegistration, Error> {
        let driver = |source| Error::Driver { endpoint: endpoint.to_string(), source };
        let csi = Csi::connect(endpoint, CSI_DEADLINE)
            .await
            .map_err(|source| Error::Connect { endpoint: endpoint.to_string(), source })?;
        let name = csi.plugin_info(CSI_DEADLINE).await.map_err(driver)?.name;
        let info = csi.node_get_info(proto::NodeGetInfoRequest::default(), CSI_DEADLINE).await.map_err(driver)?;
        let topology = info.accessible_topology.unwrap_or_default().segments.into_iter().collect();
        let registration = CsiRegistration {
            driver: name,
            node_id: info.node_id,
            topology,
            max_volumes: (info.max_volumes_per_node > 0).then_some(info.max_volumes_per_node),
        };
        let node = self.client.get(&nodes(), "", &self.name).map_err(|source| self.failed("read", "Node", source))?;
        let patch = objects::node_patch(&node, &registration)
            .map_err(|why| Error::Topology { node: self.name.clone(), why })?;
        self.client
            .patch(&nodes(), "", &self.name, &Patch::Merge(patch), &WriteOptions::default())
            .await
            .map_err(|source| self.failed("label", "Node", source))?;
        self.register_in_csi_node(&node, &registration).await?;
        tracing::info!(
            driver = registration.driver,
            node = self.name,
            id = registration.node_id,
            "CSI driver registered"
        );
        Ok(registration)
    }

    async fn register_in_csi_node(&self, node: &Value, registration: &CsiRegistration) -> Result<(), Error> {
        let uid = node["metadata"]["uid"].as_str().unwrap_or_default();
        for _ in 0..RACES {
            let outcome = match self.client.get(&csi_nodes(), "", &self.name) {
                Ok(present) => match objects::with_driver(&present, registration) {
                    None => return Ok(()),
                    Some(next) => self.client.update(&csi_nodes(), next, &WriteOptions::default()).await,
                },
                Err(error) if error.reason == "NotFound" => {
                    let empty = objects::csi_node(&self.name, uid);
                    self.client.create(&csi_nodes(), "", empty, &WriteOptions::default()).await
                }
                Err(source) => return Err(self.failed("read", "CSINode", source)),
            };
            match outcome {
                // The next round finds it done, or does the second of two writes.
                Ok(_) => {}
                Err(error) if matches!(error.reason, "Conflict" | "AlreadyExists" | "NotFound") => {}
                Err(source) => return Err(self.failed("write", "CSINode", source)),
            }
        }
        Err(Error::Races { node: self.name.clone() })
    }

    async fn patch_status(&self, patch: &Value) -> Result<(), Error> {
        self.client
            .patch_status(&nodes(), "", &self.name, &Patch::Strategic(patch.clone()), &WriteOptions::default())
            .await
            .map(drop)
            .map_err(|source| self.failed("report", "Node", source))
    }

    async fn renew(&self, now: Timestamp) -> Result<(), Error> {
        renew(&self.client, &self.name, now).await.map_err(|source| self.failed("renew", "Lease", source))
    }

    fn failed(&self, operation: &'static str, kind: &'static str, source: ApiError) -> Error {
        Error::Api { operation, kind, name: self.name.clone(), source: Box::new(source) }
    }

    /// Ends the heartbeat. The Node object stays, as after a kubelet's stop.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn heartbeat(client: Client, name: String, changed: Timestamp, stop: CancellationToken) {
    let mut beat = tokio::time::interval(HEARTBEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    beat.tick().await;
    let mut beats: u32 = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        let now = Timestamp::now();
        if let Err(error) = renew(&client, &name, now).await {
            tracing::warn!(node = name, "the lease is not renewed: {}", error.message);
        }
        // The lease is the heartbeat; the status repeats it every five minutes, as the kubelet does.
        beats = beats.wrapping_add(1);
        if beats.is_multiple_of(30) {
            let patch = Patch::Strategic(objects::ready(&seconds(now), &seconds(changed)));
            if let Err(error) = client.patch_status(&nodes(), "", &name, &patch, &WriteOptions::default()).await {
                tracing::warn!(node = name, "the status is not written: {}", error.message);
            }
        }
    }
}

async fn renew(client: &Client, name: &str, now: Timestamp) -> Result<(), ApiError> {
    let leases = Resource::new("coordination.k8s.io", "v1", "leases");
    let lease = objects::lease(name, &now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
    let patch = Patch::Merge(lease.clone());
    match client.patch(&leases, "kube-node-lease", name, &patch, &WriteOptions::default()).await {
        Err(error) if error.reason == "NotFound" => {
            client.create(&leases, "kube-node-lease", lease, &WriteOptions::default()).await.map(drop)
        }
        other => other.map(drop),
    }
}

fn nodes() -> Resource {
    Resource::new("", "v1", "nodes")
}

fn csi_nodes() -> Resource {
    Resource::new("storage.k8s.io", "v1", "csinodes")
}

/// The API's time format: RFC 3339 with whole seconds.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
