//! The five services: which driver method serves which RPC, and how its answer is checked.

use std::num::NonZeroU32;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Request, Response, Status};

use crate::check::answer::{self, Blocks};
use crate::driver::MetadataStream;
use crate::page::Page;
use crate::server::{Service, panicked};
use crate::{Error, proto};

/// The implementation of an advertised capability.
fn part<T: ?Sized>(part: Option<&Arc<T>>) -> Result<&Arc<T>, Error> {
    part.ok_or_else(|| Error::internal("a capability is advertised that has no implementation"))
}

/// The page that a request asks for.
fn page(max_entries: i32, starting_token: &str) -> Page {
    Page {
        max_entries: u32::try_from(max_entries).ok().and_then(NonZeroU32::new),
        token: (!starting_token.is_empty()).then(|| starting_token.to_owned()),
    }
}

/// Implements a generated service trait: for each RPC the method, the messages, and what makes the answer.
macro_rules! service {
    ($service:path, $prefix:literal;
     $($method:ident $rpc:literal ($request_type:ident) -> $response_type:ident |$inner:ident, $request:ident| $body:block)*) => {
        #[tonic::async_trait]
        impl $service for Service {
            $(async fn $method(
                &self,
                request: Request<proto::$request_type>,
            ) -> Result<Response<proto::$response_type>, Status> {
                self.call(concat!("/csi.v1.", $prefix, "/", $rpc), request, |$inner, $request| async move { $body })
                    .await
                    .map(Response::new)
            })*
        }
    };
}

service! {
    proto::identity_server::Identity, "Identity";
    get_plugin_info "GetPluginInfo" (GetPluginInfoRequest) -> GetPluginInfoResponse |inner, _request| {
        let identity = &inner.parts.identity;
        Ok(proto::GetPluginInfoResponse {
            name: identity.name().to_owned(),
            vendor_version: identity.vendor_version().to_owned(),
            manifest: identity.manifest().into_iter().collect(),
        })
    }
    get_plugin_capabilities "GetPluginCapabilities"
    (GetPluginCapabilitiesRequest) -> GetPluginCapabilitiesResponse |inner, _request| {
        Ok(inner.capabilities.plugin_response())
    }
    probe "Probe" (ProbeRequest) -> ProbeResponse |inner, _request| {
        Ok(proto::ProbeResponse { ready: Some(inner.parts.identity.probe().await?) })
    }
}

service! {
    proto::controller_server::Controller, "Controller";
    create_volume "CreateVolume" (CreateVolumeRequest) -> CreateVolumeResponse |inner, request| {
        let driver = part(inner.parts.create_delete_volume.as_ref())?;
        let volume = driver.create_volume(request.clone()).await?;
        answer::create_volume(&request, &volume, &inner.capabilities)?;
        Ok(proto::CreateVolumeResponse { volume: Some(volume) })
    }
    delete_volume "DeleteVolume" (DeleteVolumeRequest) -> DeleteVolumeResponse |inner, request| {
        part(inner.parts.create_delete_volume.as_ref())?.delete_volume(request).await?;
        Ok(proto::DeleteVolumeResponse {})
    }
    controller_publish_volume "ControllerPublishVolume"
    (ControllerPublishVolumeRequest) -> ControllerPublishVolumeResponse |inner, request| {
        let driver = part(inner.parts.publish_volume.as_ref())?;
        let publish_context = driver.controller_publish_volume(request).await?;
        answer::publish_context(&publish_context)?;
        Ok(proto::ControllerPublishVolumeResponse { publish_context })
    }
    controller_unpublish_volume "ControllerUnpublishVolume"
    (ControllerUnpublishVolumeRequest) -> ControllerUnpublishVolumeResponse |inner, request| {
        part(inner.parts.publish_volume.as_ref())?.controller_unpublish_volume(request).await?;
        Ok(proto::ControllerUnpublishVolumeResponse {})
    }
    validate_volume_capabilities "ValidateVolumeCapabilities"
    (ValidateVolumeCapabilitiesRequest) -> ValidateVolumeCapabilitiesResponse |inner, request| {
        part(inner.parts.controller.as_ref())?.validate_volume_capabilities(request).await
    }
    list_volumes "ListVolumes" (ListVolumesRequest) -> ListVolumesResponse |inner, request| {
        let page = page(request.max_entries, &request.starting_token);
        let listing = part(inner.parts.list_volumes.as_ref())?.list_volumes(page.clone()).await?;
        answer::list_volumes(&page, &listing, &inner.capabilities)?;
        Ok(proto::ListVolumesResponse {
            entries: listing.entries,
            next_token: listing.next_token.unwrap_or_default(),
        })
    }
    get_capacity "GetCapacity" (GetCapacityRequest) -> GetCapacityResponse |inner, request| {
        let capacity = part(inner.parts.get_capacity.as_ref())?.get_capacity(request).await?;
        answer::get_capacity(&capacity)?;
        Ok(capacity)
    }
    controller_get_capabilities "ControllerGetCapabilities"
    (ControllerGetCapabilitiesRequest) -> ControllerGetCapabilitiesResponse |inner, _request| {
        Ok(inner.capabilities.controller_response())
    }
    create_snapshot "CreateSnapshot" (CreateSnapshotRequest) -> CreateSnapshotResponse |inner, request| {
        let driver = part(inner.parts.create_delete_snapshot.as_ref())?;
        let snapshot = driver.create_snapshot(request.clone()).await?;
        answer::create_snapshot(&request, &snapshot)?;
        Ok(proto::CreateSnapshotResponse { snapshot: Some(snapshot) })
    }
    delete_snapshot "DeleteSnapshot" (DeleteSnapshotRequest) -> DeleteSnapshotResponse |inner, request| {
        part(inner.parts.create_delete_snapshot.as_ref())?.delete_snapshot(request).await?;
        Ok(proto::DeleteSnapshotResponse {})
    }
    list_snapshots "ListSnapshots" (ListSnapshotsRequest) -> ListSnapshotsResponse |inner, request| {
        let page = page(request.max_entries, &request.starting_token);
        let driver = part(inner.parts.list_snapshots.as_ref())?;
        let listing = driver.list_snapshots(request.clone(), page.clone()).await?;
        answer::list_snapshots(&request, &page, &listing)?;
        let listing = listing.map(|snapshot| proto::list_snapshots_response::Entry { snapshot: Some(snapshot) });
        Ok(proto::ListSnapshotsResponse {
            entries: listing.entries,
            next_token: listing.next_token.unwrap_or_default(),
        })
    }
    get_snapshot "GetSnapshot" (GetSnapshotRequest) -> GetSnapshotResponse |inner, request| {
        let snapshot = part(inner.parts.get_snapshot.as_ref())?.get_snapshot(request.clone()).await?;
        answer::get_snapshot(&request, &snapshot)?;
        Ok(proto::GetSnapshotResponse { snapshot: Some(snapshot) })
    }
    controller_expand_volume "ControllerExpandVolume"
    (ControllerExpandVolumeRequest) -> ControllerExpandVolumeResponse |inner, request| {
        let driver = part(inner.parts.expand_volume.as_ref())?;
        let expanded = driver.controller_expand_volume(request.clone()).await?;
        answer::expand_volume(&request, &expanded)?;
        Ok(expanded)
    }
    controller_get_volume "ControllerGetVolume"
    (ControllerGetVolumeRequest) -> ControllerGetVolumeResponse |inner, request| {
        let volume = part(inner.parts.get_volume.as_ref())?.controller_get_volume(request.clone()).await?;
        answer::get_volume(&request, &volume, &inner.capabilities)?;
        Ok(volume)
    }
    controller_modify_volume "ControllerModifyVolume"
    (ControllerModifyVolumeRequest) -> ControllerModifyVolumeResponse |inner, request| {
        part(inner.parts.modify_volume.as_ref())?.controller_modify_volume(request).await?;
        Ok(proto::ControllerModifyVolumeResponse {})
    }
}

service! {
    proto::group_controller_server::GroupController, "GroupController";
    group_controller_get_capabilities "GroupControllerGetCapabilities"
    (GroupControllerGetCapabilitiesRequest) -> GroupControllerGetCapabilitiesResponse |inner, _request| {
        Ok(inner.capabilities.group_response())
    }
    create_volume_group_snapshot "CreateVolumeGroupSnapshot"
    (CreateVolumeGroupSnapshotRequest) -> CreateVolumeGroupSnapshotResponse |inner, request| {
        let driver = part(inner.parts.group_controller.as_ref())?;
        let group = driver.create_volume_group_snapshot(request.clone()).await?;
        answer::create_group_snapshot(&request, &group)?;
        Ok(proto::CreateVolumeGroupSnapshotResponse { group_snapshot: Some(group) })
    }
    delete_volume_group_snapshot "DeleteVolumeGroupSnapshot"
    (DeleteVolumeGroupSnapshotRequest) -> DeleteVolumeGroupSnapshotResponse |inner, request| {
        part(inner.parts.group_controller.as_ref())?.delete_volume_group_snapshot(request).await?;
        Ok(proto::DeleteVolumeGroupSnapshotResponse {})
    }
    get_volume_group_snapshot "GetVolumeGroupSnapshot"
    (GetVolumeGroupSnapshotRequest) -> GetVolumeGroupSnapshotResponse |inner, request| {
        let driver = part(inner.parts.group_controller.as_ref())?;
        let group = driver.get_volume_group_snapshot(request.clone()).await?;
        answer::get_group_snapshot(&request, &group)?;
        Ok(proto::GetVolumeGroupSnapshotResponse { group_snapshot: Some(group) })
    }
}

service! {
    proto::node_server::Node, "Node";
    node_stage_volume "NodeStageVolume" (NodeStageVolumeRequest) -> NodeStageVolumeResponse |inner, request| {
        part(inner.parts.stage_volume.as_ref())?.node_stage_volume(request).await?;
        Ok(proto::NodeStageVolumeResponse {})
    }
    node_unstage_volume "NodeUnstageVolume"
    (NodeUnstageVolumeRequest) -> NodeUnstageVolumeResponse |inner, request| {
        part(inner.parts.stage_volume.as_ref())?.node_unstage_volume(request).await?;
        Ok(proto::NodeUnstageVolumeResponse {})
    }
    node_publish_volume "NodePublishVolume"
    (NodePublishVolumeRequest) -> NodePublishVolumeResponse |inner, request| {
        part(inner.parts.node.as_ref())?.node_publish_volume(request).await?;
        Ok(proto::NodePublishVolumeResponse {})
    }
    node_unpublish_volume "NodeUnpublishVolume"
    (NodeUnpublishVolumeRequest) -> NodeUnpublishVolumeResponse |inner, request| {
        part(inner.parts.node.as_ref())?.node_unpublish_volume(request).await?;
        Ok(proto::NodeUnpublishVolumeResponse {})
    }
    node_get_volume_stats "NodeGetVolumeStats"
    (NodeGetVolumeStatsRequest) -> NodeGetVolumeStatsResponse |inner, request| {
        let stats = part(inner.parts.volume_stats.as_ref())?.node_get_volume_stats(request).await?;
        answer::volume_stats(&stats)?;
        Ok(stats)
    }
    node_expand_volume "NodeExpandVolume" (NodeExpandVolumeRequest) -> NodeExpandVolumeResponse |inner, request| {
        let driver = part(inner.parts.node_expand_volume.as_ref())?;
        let expanded = driver.node_expand_volume(request.clone()).await?;
        answer::node_expand_volume(&request, expanded)?;
        Ok(expanded)
    }
    node_get_capabilities "NodeGetCapabilities"
    (NodeGetCapabilitiesRequest) -> NodeGetCapabilitiesResponse |inner, _request| {
        Ok(inner.capabilities.node_response())
    }
    node_get_info "NodeGetInfo" (NodeGetInfoRequest) -> NodeGetInfoResponse |inner, _request| {
        let info = part(inner.parts.node.as_ref())?.node_get_info().await?;
        answer::node_info(&info, &inner.capabilities)?;
        Ok(info)
    }
}

/// Messages of a stream on their way out.
type Outgoing<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl proto::snapshot_metadata_server::SnapshotMetadata for Service {
    type GetMetadataAllocatedStream = Outgoing<proto::GetMetadataAllocatedResponse>;
    type GetMetadataDeltaStream = Outgoing<proto::GetMetadataDeltaResponse>;

    async fn get_metadata_allocated(
        &self,
        request: Request<proto::GetMetadataAllocatedRequest>,
    ) -> Result<Response<Self::GetMetadataAllocatedStream>, Status> {
        let method = "/csi.v1.SnapshotMetadata/GetMetadataAllocated";
        let rules = answer::Stream::new(request.get_ref().starting_offset, request.get_ref().max_results);
        let opened = Slot::default();
        let slot = opened.clone();
        self.call(method, request, |inner, request| async move {
            slot.put(part(inner.parts.snapshot_metadata.as_ref())?.get_metadata_allocated(request).await?);
            Ok(proto::GetMetadataAllocatedResponse::default())
        })
        .await?;
        Ok(Response::new(outgoing(method, rules, opened, self.running())))
    }

    async fn get_metadata_delta(
        &self,
        request: Request<proto::GetMetadataDeltaRequest>,
    ) -> Result<Response<Self::GetMetadataDeltaStream>, Status> {
        let method = "/csi.v1.SnapshotMetadata/GetMetadataDelta";
        let rules = answer::Stream::new(request.get_ref().starting_offset, request.get_ref().max_results);
        let opened = Slot::default();
        let slot = opened.clone();
        self.call(method, request, |inner, request| async move {
            slot.put(part(inner.parts.snapshot_metadata.as_ref())?.get_metadata_delta(request).await?);
            Ok(proto::GetMetadataDeltaResponse::default())
        })
        .await?;
        Ok(Response::new(outgoing(method, rules, opened, self.running())))
    }
}

/// Carries a stream out of the call that opened it.
struct Slot<T>(Arc<Mutex<Option<MetadataStream<T>>>>);

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Slot<T> {
    fn put(&self, stream: MetadataStream<T>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
    }

    fn take(&self) -> MetadataStream<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().expect("a call that succeeded has put its stream")
    }
}

/// The driver's stream, each message checked; it ends with the first error.
fn outgoing<T: Blocks + Send + 'static>(
    method: &'static str,
    rules: answer::Stream,
    opened: Slot<T>,
    running: TaskTrackerToken,
) -> Outgoing<T> {
    let messages = AssertUnwindSafe(opened.take()).catch_unwind();
    let checked = messages.scan((rules, false, running), move |(rules, failed, _), message| {
        let outcome = match message {
            _ if *failed => return futures_util::future::ready(None),
            Ok(Ok(message)) => rules.check(&message).map(|()| message),
            Ok(Err(error)) => Err(error),
            Err(panic) => Err(panicked(method, &*panic)),
        };
        *failed = outcome.is_err();
        if let Err(error) = &outcome {
            tracing::error!("GRPC error: {method}: the stream broke off: {error:?}");
        }
        futures_util::future::ready(Some(outcome.map_err(Status::from)))
    });
    checked.boxed()
}
