//! What a driver implements: one trait for each thing that a plugin may be able to do.
//!
//! Handing an implementation to [`Plugin`](crate::Plugin) is what advertises the capability, so that a plugin cannot
//! promise what it does not do. One type may implement all of the traits, or each part its own.
//!
//! Requests arrive checked: required fields are there, sizes and forms are those of the specification, access modes and
//! content sources are ones that the plugin advertises. No two operations on one object run at the same time (the second
//! is answered `ABORTED` before the driver sees it), and an operation runs to its end even if its caller goes away.
//! Every method is to be idempotent: a repeated call finds what the first made and answers the same.

use std::collections::{BTreeMap, HashMap};

use futures_util::stream::BoxStream;
use tonic::async_trait;

use crate::page::{Listing, Page};
use crate::{Error, proto};

/// Who the plugin is. Every plugin has this.
#[async_trait]
pub trait Identity: Send + Sync + 'static {
    /// Domain-style name of the plugin: at most 63 characters, letters, digits, `-` and `.`, letters or digits at both ends.
    fn name(&self) -> &str;

    /// Version of the plugin; never empty.
    fn vendor_version(&self) -> &str;

    /// Anything else that the plugin tells of itself.
    fn manifest(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Whether the plugin can take requests now. `Ok(false)` asks the caller to wait (still starting).
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if the plugin cannot work as it is installed.
    async fn probe(&self) -> Result<bool, Error> {
        Ok(true)
    }
}

/// The `Controller` service's one call that needs no capability.
#[async_trait]
pub trait Controller: Send + Sync + 'static {
    /// Tells whether the volume supports all of the capabilities: `confirmed` echoes what was asked, or is unset and
    /// `message` says why.
    ///
    /// # Errors
    /// `NOT_FOUND` if the volume does not exist.
    async fn validate_volume_capabilities(
        &self,
        request: proto::ValidateVolumeCapabilitiesRequest,
    ) -> Result<proto::ValidateVolumeCapabilitiesResponse, Error>;
}

/// Capability `CREATE_DELETE_VOLUME`.
#[async_trait]
pub trait CreateDeleteVolume: Send + Sync + 'static {
    /// Makes a volume, or finds the one of this name.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` if the name is taken by a volume of other size, capabilities, parameters or source; `NOT_FOUND`
    /// if the source does not exist; `INVALID_ARGUMENT` for a source or parameters that cannot be used;
    /// `RESOURCE_EXHAUSTED` if no topology fits; `OUT_OF_RANGE` for a capacity that cannot be had.
    async fn create_volume(&self, request: proto::CreateVolumeRequest) -> Result<proto::Volume, Error>;

    /// Releases a volume; one that does not exist is a success.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if it is in use, or has snapshots that depend on it.
    async fn delete_volume(&self, request: proto::DeleteVolumeRequest) -> Result<(), Error>;
}

/// Capability `PUBLISH_UNPUBLISH_VOLUME`: volumes are attached to nodes.
#[async_trait]
pub trait PublishVolume: Send + Sync + 'static {
    /// Attaches a volume to a node; the answer is what the node side needs to know (`publish_context`).
    ///
    /// # Errors
    /// `NOT_FOUND` for an unknown volume or node; `ALREADY_EXISTS` if it is attached there otherwise;
    /// `FAILED_PRECONDITION` if it is attached elsewhere (name the node); `RESOURCE_EXHAUSTED` at the node's limit.
    async fn controller_publish_volume(
        &self,
        request: proto::ControllerPublishVolumeRequest,
    ) -> Result<HashMap<String, String>, Error>;

    /// Detaches a volume from a node, or from all nodes if `node_id` is empty. Not attached is a success.
    ///
    /// # Errors
    /// `NOT_FOUND` if volume or node are unknown and it cannot be taken for granted that the volume is detached.
    async fn controller_unpublish_volume(&self, request: proto::ControllerUnpublishVolumeRequest) -> Result<(), Error>;
}

/// Capability `LIST_VOLUMES`.
#[async_trait]
pub trait ListVolumes: Send + Sync + 'static {
    /// One page of all volumes; [`Page::take`] does the paging.
    ///
    /// # Errors
    /// `ABORTED` for a token that is not, or no longer, valid.
    async fn list_volumes(&self, page: Page) -> Result<Listing<proto::list_volumes_response::Entry>, Error>;
}

/// Capability `GET_CAPACITY`.
#[async_trait]
pub trait GetCapacity: Send + Sync + 'static {
    /// Room left where volumes of these capabilities, parameters and topology would be made.
    async fn get_capacity(&self, request: proto::GetCapacityRequest) -> Result<proto::GetCapacityResponse, Error>;
}

/// Capability `CREATE_DELETE_SNAPSHOT`; it includes volumes made from snapshots.
#[async_trait]
pub trait CreateDeleteSnapshot: Send + Sync + 'static {
    /// Cuts a snapshot, or finds the one of this name. Callers repeat the call until `ready_to_use`.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` if the name is taken by a snapshot of another volume; `NOT_FOUND` for an unknown volume;
    /// `RESOURCE_EXHAUSTED` if there is no room; `ABORTED` if another operation on the volume is in the way.
    async fn create_snapshot(&self, request: proto::CreateSnapshotRequest) -> Result<proto::Snapshot, Error>;

    /// Releases a snapshot; one that does not exist is a success.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if it is in use; `INVALID_ARGUMENT` if it belongs to a group snapshot.
    async fn delete_snapshot(&self, request: proto::DeleteSnapshotRequest) -> Result<(), Error>;
}

/// Capability `LIST_SNAPSHOTS`.
#[async_trait]
pub trait ListSnapshots: Send + Sync + 'static {
    /// One page of the snapshots that the request selects: all, those of `source_volume_id`, or the one with
    /// `snapshot_id`. Ids that do not exist select nothing, which is no error. The page is the request's, parsed.
    ///
    /// # Errors
    /// `ABORTED` for a token that is not, or no longer, valid.
    async fn list_snapshots(
        &self,
        request: proto::ListSnapshotsRequest,
        page: Page,
    ) -> Result<Listing<proto::Snapshot>, Error>;
}

/// Capability `GET_SNAPSHOT` (alpha).
#[async_trait]
pub trait GetSnapshot: Send + Sync + 'static {
    /// The present state of a snapshot.
    ///
    /// # Errors
    /// `NOT_FOUND` if it does not exist.
    async fn get_snapshot(&self, request: proto::GetSnapshotRequest) -> Result<proto::Snapshot, Error>;
}

/// Capability `EXPAND_VOLUME` of the controller.
#[async_trait]
pub trait ExpandVolume: Send + Sync + 'static {
    /// Grows a volume at the storage end. One that is large enough is a success; the answer has its actual size.
    ///
    /// # Errors
    /// `NOT_FOUND`; `FAILED_PRECONDITION` if it is in use and only offline volumes grow; `OUT_OF_RANGE`.
    async fn controller_expand_volume(
        &self,
        request: proto::ControllerExpandVolumeRequest,
    ) -> Result<proto::ControllerExpandVolumeResponse, Error>;
}

/// Capability `GET_VOLUME` (alpha).
#[async_trait]
pub trait GetVolume: Send + Sync + 'static {
    /// The present state of a volume.
    ///
    /// # Errors
    /// `NOT_FOUND` if it does not exist.
    async fn controller_get_volume(
        &self,
        request: proto::ControllerGetVolumeRequest,
    ) -> Result<proto::ControllerGetVolumeResponse, Error>;
}

/// Capability `MODIFY_VOLUME`; it includes `mutable_parameters` in `CreateVolume`.
#[async_trait]
pub trait ModifyVolume: Send + Sync + 'static {
    /// Changes the listed parameters, and no others, all or none.
    ///
    /// # Errors
    /// `NOT_FOUND`; `INVALID_ARGUMENT` for an unknown parameter or value, with nothing applied.
    async fn controller_modify_volume(&self, request: proto::ControllerModifyVolumeRequest) -> Result<(), Error>;
}

/// The `GroupController` service with `CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT`.
#[async_trait]
pub trait GroupController: Send + Sync + 'static {
    /// Cuts snapshots of all the volumes at one point in time, or finds the group of this name. After a failure no
    /// member may be left behind.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` if the name is taken by a group of other volumes; `NOT_FOUND` for an unknown volume;
    /// `FAILED_PRECONDITION` if these volumes cannot be grouped; `RESOURCE_EXHAUSTED`.
    async fn create_volume_group_snapshot(
        &self,
        request: proto::CreateVolumeGroupSnapshotRequest,
    ) -> Result<proto::VolumeGroupSnapshot, Error>;

    /// Releases a group and its members; one that does not exist is a success.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if `snapshot_ids` are not the group's; `FAILED_PRECONDITION` if it is in use.
    async fn delete_volume_group_snapshot(&self, request: proto::DeleteVolumeGroupSnapshotRequest)
    -> Result<(), Error>;

    /// The present state of a group.
    ///
    /// # Errors
    /// `NOT_FOUND`; `INVALID_ARGUMENT` if `snapshot_ids` are not the group's.
    async fn get_volume_group_snapshot(
        &self,
        request: proto::GetVolumeGroupSnapshotRequest,
    ) -> Result<proto::VolumeGroupSnapshot, Error>;
}

/// The messages of one metadata stream.
pub type MetadataStream<T> = BoxStream<'static, Result<T, Error>>;

/// The `SnapshotMetadata` service (alpha).
///
/// Ranges ascend and do not overlap, all messages of a stream agree on block type and volume size, and no message has
/// more than `max_results` ranges (if that is not 0). A stream that breaks these rules ends with `INTERNAL`.
#[async_trait]
pub trait SnapshotMetadata: Send + Sync + 'static {
    /// The blocks of a snapshot that hold data, from `starting_offset` on.
    ///
    /// # Errors
    /// `NOT_FOUND`; `OUT_OF_RANGE` for the offset; `FAILED_PRECONDITION` if blocks of this snapshot are not tracked.
    async fn get_metadata_allocated(
        &self,
        request: proto::GetMetadataAllocatedRequest,
    ) -> Result<MetadataStream<proto::GetMetadataAllocatedResponse>, Error>;

    /// The blocks that differ between two snapshots of one volume, from `starting_offset` on.
    ///
    /// # Errors
    /// As above, and `INVALID_ARGUMENT` for snapshots of different volumes.
    async fn get_metadata_delta(
        &self,
        request: proto::GetMetadataDeltaRequest,
    ) -> Result<MetadataStream<proto::GetMetadataDeltaResponse>, Error>;
}

/// The `Node` service's calls that need no capability.
#[async_trait]
pub trait Node: Send + Sync + 'static {
    /// This node's id (at most 256 bytes, better 128), place and volume limit.
    async fn node_get_info(&self) -> Result<proto::NodeGetInfoResponse, Error>;

    /// Makes the volume available at the target path, which the plugin creates (its parent exists).
    ///
    /// # Errors
    /// `NOT_FOUND`; `ALREADY_EXISTS` if it is published at this path with other arguments; `FAILED_PRECONDITION` if it
    /// is published at another path and its access mode allows one only.
    async fn node_publish_volume(&self, request: proto::NodePublishVolumeRequest) -> Result<(), Error>;

    /// Undoes it and removes the target path. Not published is a success.
    ///
    /// # Errors
    /// `NOT_FOUND` for an unknown volume.
    async fn node_unpublish_volume(&self, request: proto::NodeUnpublishVolumeRequest) -> Result<(), Error>;
}

/// Capability `STAGE_UNSTAGE_VOLUME`: a step that is done once per node, before volumes are published.
#[async_trait]
pub trait StageVolume: Send + Sync + 'static {
    /// Mounts or maps the volume at the staging path, which exists.
    ///
    /// # Errors
    /// `NOT_FOUND`; `ALREADY_EXISTS` if it is staged there with another capability; `FAILED_PRECONDITION` if the
    /// capability is beyond the volume.
    async fn node_stage_volume(&self, request: proto::NodeStageVolumeRequest) -> Result<(), Error>;

    /// Undoes it. Not staged is a success.
    ///
    /// # Errors
    /// `NOT_FOUND` for an unknown volume.
    async fn node_unstage_volume(&self, request: proto::NodeUnstageVolumeRequest) -> Result<(), Error>;
}

/// Capability `GET_VOLUME_STATS`.
#[async_trait]
pub trait VolumeStats: Send + Sync + 'static {
    /// Usage of a volume.
    ///
    /// # Errors
    /// `NOT_FOUND` if the volume is unknown or not at that path.
    async fn node_get_volume_stats(
        &self,
        request: proto::NodeGetVolumeStatsRequest,
    ) -> Result<proto::NodeGetVolumeStatsResponse, Error>;
}

/// Capability `EXPAND_VOLUME` of the node.
#[async_trait]
pub trait NodeExpandVolume: Send + Sync + 'static {
    /// Grows file system or device to what the storage end has. Large enough is a success.
    ///
    /// # Errors
    /// `NOT_FOUND`; `FAILED_PRECONDITION` (callers do not retry); `OUT_OF_RANGE`.
    async fn node_expand_volume(
        &self,
        request: proto::NodeExpandVolumeRequest,
    ) -> Result<proto::NodeExpandVolumeResponse, Error>;
}
