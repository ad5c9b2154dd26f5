//! A driver that keeps everything in memory, does every RPC, and misbehaves when names ask it to.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use outrigger_csi::proto::{self, BlockMetadata, BlockMetadataType, VolumeCondition};
use outrigger_csi::{
    Client, Controller, CreateDeleteSnapshot, CreateDeleteVolume, Endpoint, Error, ExpandVolume, GetCapacity,
    GetSnapshot, GetVolume, GroupController, Identity, ListSnapshots, ListVolumes, Listing, MetadataStream,
    ModifyVolume, Node, NodeExpandVolume, Page, Plugin, PublishVolume, ServeError, SnapshotMetadata, StageVolume,
    VolumeExpansion, VolumeStats,
};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tonic::async_trait;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(crate) struct Toy {
    pub(crate) volumes: Mutex<BTreeMap<String, proto::Volume>>,
    /// A call on something whose name begins with "slow" tells that it began, and waits to be released.
    pub(crate) began: Notify,
    pub(crate) release: Notify,
    /// Names of such calls that ended.
    pub(crate) ended: Mutex<Vec<String>>,
}

impl Toy {
    async fn act(&self, name: &str) -> Result<(), Error> {
        if name.starts_with("slow") {
            self.began.notify_one();
            self.release.notified().await;
            self.ended.lock().unwrap().push(name.to_owned());
        }
        assert!(!name.starts_with("panic"), "asked to");
        Ok(())
    }
}

fn snapshot(snapshot_id: &str, source_volume_id: &str) -> proto::Snapshot {
    proto::Snapshot {
        snapshot_id: snapshot_id.into(),
        source_volume_id: source_volume_id.into(),
        creation_time: Some(prost_types::Timestamp::default()),
        ready_to_use: true,
        ..Default::default()
    }
}

fn group(id: &str, volumes: &[String]) -> proto::VolumeGroupSnapshot {
    let member = |volume: &String| proto::Snapshot { group_snapshot_id: id.into(), ..snapshot(volume, volume) };
    proto::VolumeGroupSnapshot {
        group_snapshot_id: id.into(),
        snapshots: volumes.iter().map(member).collect(),
        creation_time: Some(prost_types::Timestamp::default()),
        ready_to_use: true,
    }
}

impl Identity for Toy {
    fn name(&self) -> &'static str {
        "toy.example.org"
    }
    fn vendor_version(&self) -> &'static str {
        "1.2.3"
    }
    fn manifest(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("commit".into(), "abc".into())])
    }
}

#[async_trait]
impl Controller for Toy {
    async fn validate_volume_capabilities(
        &self,
        request: proto::ValidateVolumeCapabilitiesRequest,
    ) -> Result<proto::ValidateVolumeCapabilitiesResponse, Error> {
        let confirmed = proto::validate_volume_capabilities_response::Confirmed {
            volume_capabilities: request.volume_capabilities,
            ..Default::default()
        };
        Ok(proto::ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
    }
}

#[async_trait]
impl CreateDeleteVolume for Toy {
    async fn create_volume(&self, request: proto::CreateVolumeRequest) -> Result<proto::Volume, Error> {
        self.act(&request.name).await?;
        let volume = proto::Volume {
            volume_id: request.name.clone(),
            capacity_bytes: request.capacity_range.map_or(0, |range| range.required_bytes),
            content_source: request.volume_content_source,
            ..Default::default()
        };
        let volume = match request.name.as_str() {
            "wrong-id" => proto::Volume { volume_id: String::new(), ..volume },
            "wrong-size" => proto::Volume { capacity_bytes: 1, ..volume },
            "wrong-source" => proto::Volume { content_source: None, ..volume },
            "wrong-place" => proto::Volume {
                accessible_topology: vec![proto::Topology {
                    segments: HashMap::from([("not a key".into(), "v".into())]),
                }],
                ..volume
            },
            _ => volume,
        };
        self.volumes.lock().unwrap().insert(request.name, volume.clone());
        Ok(volume)
    }

    async fn delete_volume(&self, request: proto::DeleteVolumeRequest) -> Result<(), Error> {
        self.act(&request.volume_id).await?;
        self.volumes.lock().unwrap().remove(&request.volume_id);
        Ok(())
    }
}

#[async_trait]
impl PublishVolume for Toy {
    async fn controller_publish_volume(
        &self,
        request: proto::ControllerPublishVolumeRequest,
    ) -> Result<HashMap<String, String>, Error> {
        self.act(&request.volume_id).await?;
        let value = if request.volume_id == "wrong-context" { "x".repeat(5000) } else { "/dev/x".into() };
        Ok(HashMap::from([("device".into(), value)]))
    }
    async fn controller_unpublish_volume(&self, _: proto::ControllerUnpublishVolumeRequest) -> Result<(), Error> {
        Ok(())
    }
}

#[async_trait]
impl ListVolumes for Toy {
    async fn list_volumes(&self, page: Page) -> Result<Listing<proto::list_volumes_response::Entry>, Error> {
        let volumes = self.volumes.lock().unwrap();
        let after = page.after()?.map_or(Bound::Unbounded, Bound::Excluded);
        let entries = volumes
            .range::<str, _>((after, Bound::Unbounded))
            .map(|(_, volume)| proto::list_volumes_response::Entry { volume: Some(volume.clone()), status: None });
        page.take(entries, |entry| entry.volume.as_ref().map_or("", |volume| &volume.volume_id))
    }
}

#[async_trait]
impl GetCapacity for Toy {
    async fn get_capacity(&self, _: proto::GetCapacityRequest) -> Result<proto::GetCapacityResponse, Error> {
        Ok(proto::GetCapacityResponse {
            available_capacity: 7,
            maximum_volume_size: Some(5),
            minimum_volume_size: None,
        })
    }
}

#[async_trait]
impl CreateDeleteSnapshot for Toy {
    async fn create_snapshot(&self, request: proto::CreateSnapshotRequest) -> Result<proto::Snapshot, Error> {
        self.act(&request.name).await?;
        let snapshot = snapshot(&request.name, &request.source_volume_id);
        Ok(match request.name.as_str() {
            "wrong-time" => proto::Snapshot { creation_time: None, ..snapshot },
            "wrong-volume" => proto::Snapshot { source_volume_id: "other".into(), ..snapshot },
            _ => snapshot,
        })
    }
    async fn delete_snapshot(&self, request: proto::DeleteSnapshotRequest) -> Result<(), Error> {
        self.act(&request.snapshot_id).await
    }
}

#[async_trait]
impl ListSnapshots for Toy {
    async fn list_snapshots(
        &self,
        request: proto::ListSnapshotsRequest,
        page: Page,
    ) -> Result<Listing<proto::Snapshot>, Error> {
        if request.source_volume_id == "wrong-filter" {
            return Ok(Listing::complete(vec![snapshot("s", "another")]));
        }
        if request.source_volume_id == "wrong-count" {
            let snapshots = ["a", "b", "c"].map(|id| snapshot(id, "wrong-count"));
            return Ok(Listing::complete(snapshots.into()));
        }
        page.take([], |snapshot: &proto::Snapshot| &snapshot.snapshot_id)
    }
}

#[async_trait]
impl GetSnapshot for Toy {
    async fn get_snapshot(&self, request: proto::GetSnapshotRequest) -> Result<proto::Snapshot, Error> {
        Ok(snapshot(&request.snapshot_id, "v"))
    }
}

#[async_trait]
impl ExpandVolume for Toy {
    async fn controller_expand_volume(
        &self,
        request: proto::ControllerExpandVolumeRequest,
    ) -> Result<proto::ControllerExpandVolumeResponse, Error> {
        let wanted = request.capacity_range.unwrap_or_default().required_bytes;
        let capacity_bytes = if request.volume_id == "wrong-size" { wanted - 1 } else { wanted };
        Ok(proto::ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required: true })
    }
}

#[async_trait]
impl GetVolume for Toy {
    async fn controller_get_volume(
        &self,
        request: proto::ControllerGetVolumeRequest,
    ) -> Result<proto::ControllerGetVolumeResponse, Error> {
        let volume = self.volumes.lock().unwrap().get(&request.volume_id).cloned();
        let volume =
            volume.ok_or_else(|| Error::not_found(format!("volume {:?} does not exist", request.volume_id)))?;
        let status = proto::controller_get_volume_response::VolumeStatus {
            volume_condition: Some(VolumeCondition { abnormal: false, message: "fine".into() }),
            ..Default::default()
        };
        Ok(proto::ControllerGetVolumeResponse { volume: Some(volume), status: Some(status) })
    }
}

#[async_trait]
impl ModifyVolume for Toy {
    async fn controller_modify_volume(&self, _: proto::ControllerModifyVolumeRequest) -> Result<(), Error> {
        Ok(())
    }
}

#[async_trait]
impl GroupController for Toy {
    async fn create_volume_group_snapshot(
        &self,
        request: proto::CreateVolumeGroupSnapshotRequest,
    ) -> Result<proto::VolumeGroupSnapshot, Error> {
        let volumes =
            if request.name == "wrong-members" { &request.source_volume_ids[1..] } else { &request.source_volume_ids };
        Ok(group(&request.name, volumes))
    }
    async fn delete_volume_group_snapshot(&self, _: proto::DeleteVolumeGroupSnapshotRequest) -> Result<(), Error> {
        Ok(())
    }
    async fn get_volume_group_snapshot(
        &self,
        request: proto::GetVolumeGroupSnapshotRequest,
    ) -> Result<proto::VolumeGroupSnapshot, Error> {
        Ok(group(&request.group_snapshot_id, &["v".into()]))
    }
}

#[async_trait]
impl SnapshotMetadata for Toy {
    async fn get_metadata_allocated(
        &self,
        request: proto::GetMetadataAllocatedRequest,
    ) -> Result<MetadataStream<proto::GetMetadataAllocatedResponse>, Error> {
        let wrong = request.snapshot_id == "wrong-order";
        let panics = request.snapshot_id == "panic-later";
        let messages = (0..3).map(move |n: i64| {
            assert!(!panics || n < 2, "asked to");
            Ok(proto::GetMetadataAllocatedResponse {
                block_metadata_type: BlockMetadataType::FixedLength.into(),
                volume_capacity_bytes: 100,
                block_metadata: vec![BlockMetadata {
                    byte_offset: if wrong { 20 - 10 * n } else { 10 * n },
                    size_bytes: 10,
                }],
            })
        });
        Ok(futures_util::stream::iter(messages).boxed())
    }
    async fn get_metadata_delta(
        &self,
        _: proto::GetMetadataDeltaRequest,
    ) -> Result<MetadataStream<proto::GetMetadataDeltaResponse>, Error> {
        Ok(futures_util::stream::iter([Err(Error::failed_precondition("not tracked"))]).boxed())
    }
}

#[async_trait]
impl Node for Toy {
    async fn node_get_info(&self) -> Result<proto::NodeGetInfoResponse, Error> {
        Ok(proto::NodeGetInfoResponse { node_id: "node-1".into(), ..Default::default() })
    }
    async fn node_publish_volume(&self, request: proto::NodePublishVolumeRequest) -> Result<(), Error> {
        self.act(&request.volume_id).await
    }
    async fn node_unpublish_volume(&self, _: proto::NodeUnpublishVolumeRequest) -> Result<(), Error> {
        Ok(())
    }
}

#[async_trait]
impl StageVolume for Toy {
    async fn node_stage_volume(&self, _: proto::NodeStageVolumeRequest) -> Result<(), Error> {
        Ok(())
    }
    async fn node_unstage_volume(&self, _: proto::NodeUnstageVolumeRequest) -> Result<(), Error> {
        Ok(())
    }
}

#[async_trait]
impl VolumeStats for Toy {
    async fn node_get_volume_stats(
        &self,
        request: proto::NodeGetVolumeStatsRequest,
    ) -> Result<proto::NodeGetVolumeStatsResponse, Error> {
        let unit = proto::volume_usage::Unit::from_str_name(&request.volume_id).unwrap_or_default();
        let usage = vec![proto::VolumeUsage { total: 1, unit: unit.into(), ..Default::default() }];
        Ok(proto::NodeGetVolumeStatsResponse { usage, volume_condition: None })
    }
}

#[async_trait]
impl NodeExpandVolume for Toy {
    async fn node_expand_volume(
        &self,
        _: proto::NodeExpandVolumeRequest,
    ) -> Result<proto::NodeExpandVolumeResponse, Error> {
        Ok(proto::NodeExpandVolumeResponse { capacity_bytes: 0 })
    }
}

/// A plugin with every capability.
pub(crate) fn full(toy: &Arc<Toy>) -> Plugin {
    Plugin::new(toy.clone())
        .controller(toy.clone())
        .create_delete_volume(toy.clone())
        .publish_volume(toy.clone())
        .publish_readonly()
        .list_volumes_with_published_nodes(toy.clone())
        .get_capacity(toy.clone())
        .create_delete_snapshot(toy.clone())
        .list_snapshots(toy.clone())
        .get_snapshot(toy.clone())
        .clone_volume()
        .expand_volume(toy.clone(), VolumeExpansion::Online)
        .get_volume(toy.clone())
        .modify_volume(toy.clone())
        .group_controller(toy.clone())
        .snapshot_metadata(toy.clone())
        .node(toy.clone())
        .stage_volume(toy.clone())
        .volume_stats(toy.clone())
        .node_expand_volume(toy.clone())
        .single_node_multi_writer()
        .volume_condition()
        .volume_mount_group()
        .accessibility_constraints()
}

/// A plugin with as little as is of use.
pub(crate) fn plain(toy: &Arc<Toy>) -> Plugin {
    Plugin::new(toy.clone())
        .controller(toy.clone())
        .create_delete_volume(toy.clone())
        .publish_volume(toy.clone())
        .node(toy.clone())
}

/// A plugin that serves on a socket of its own.
pub(crate) struct Serving {
    pub(crate) client: Client,
    pub(crate) endpoint: Endpoint,
    shutdown: oneshot::Sender<()>,
    server: JoinHandle<Result<(), ServeError>>,
    _directory: tempfile::TempDir,
}

impl Serving {
    pub(crate) async fn start(plugin: Plugin) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path: PathBuf = directory.path().join("csi.sock");
        let endpoint: Endpoint = path.display().to_string().parse().unwrap();
        let (shutdown, asked) = oneshot::channel::<()>();
        let server = tokio::spawn({
            let endpoint = endpoint.clone();
            async move { plugin.serve(&endpoint, async { asked.await.unwrap_or_default() }).await }
        });
        let client = Client::connect(&endpoint, DEADLINE).await.unwrap();
        Self { client, endpoint, shutdown, server, _directory: directory }
    }

    /// Asks the server to end; the handle is ready when it has.
    pub(crate) fn stop(self) -> JoinHandle<Result<(), ServeError>> {
        self.shutdown.send(()).unwrap();
        self.server
    }
}
