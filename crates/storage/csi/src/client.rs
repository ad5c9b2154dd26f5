//! The caller's side: typed calls with deadlines, and errors that say whether the operation may still be running.

use std::error::Error as StdError;
use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::uri::PathAndQuery;
use outrigger_rpc::{ConnectError, Endpoint, Observer};
use prost::Message;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tonic::client::Grpc;
use tonic::codec::Codec;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::capability::{Capabilities, PluginService};
use crate::proto;

/// How long one `Probe` of [`Client::wait_ready`] may take, and the pause from one to the next.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// A call that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{method}: {:?}: {}", status.code(), status.message())]
pub struct CallError {
    /// The full gRPC path, such as `/csi.v1.Controller/CreateVolume`.
    pub method: &'static str,
    /// What the plugin, or the transport, answered.
    pub status: Status,
}

/// What a failed call says about the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The operation did not take place and is not going on.
    Final,
    /// The operation may have taken place, or may still be going on: repeat the same call, or undo it.
    Uncertain,
}

impl CallError {
    /// Whether the operation may be going on, by the rules that the Kubernetes sidecars and the kubelet share.
    pub fn class(&self) -> Class {
        match self.status.code() {
            Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::ResourceExhausted | Code::Aborted => {
                Class::Uncertain
            }
            // A status with a cause was made on this side of the wire: nothing is known about the other.
            _ if self.status.source().is_some() => Class::Uncertain,
            _ => Class::Final,
        }
    }

    /// Whether repeating the call is pointless until somebody changes what it asks for.
    pub fn infeasible(&self) -> bool {
        self.class() == Class::Final
            && matches!(self.status.code(), Code::InvalidArgument | Code::OutOfRange | Code::NotFound)
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.status.code()
    }
}

/// Messages of a metadata stream; it ends with the first error.
pub type MetadataMessages<T> = BoxStream<'static, Result<T, CallError>>;

/// A client of a plugin. Cheap to clone; clones share the connection, which comes back by itself after a loss.
///
/// Every call has a deadline, which the plugin is told and which is kept on this side, too.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    observer: Observer,
}

impl Client {
    /// Connects to a plugin's socket; waits up to `timeout` for it to appear and accept.
    pub async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Self, ConnectError> {
        Ok(Self::new(outrigger_rpc::connect(endpoint, timeout).await?))
    }

    /// A client on a connection that is there already, for instance [`outrigger_rpc::connect_lazy`]'s.
    pub fn new(channel: Channel) -> Self {
        Self { channel, observer: Observer::new(proto::descriptor_pool().clone()).at_debug() }
    }

    /// Replaces the observer that logs the client's calls (at DEBUG), for instance by one with metrics.
    #[must_use]
    pub fn with_observer(mut self, observer: Observer) -> Self {
        self.observer = observer;
        self
    }

    /// Waits, without end, until the plugin says that it is ready: one `Probe` a second.
    ///
    /// # Errors
    /// Any error but a deadline that passed, which a plugin that is still starting may let happen.
    pub async fn wait_ready(&self) -> Result<(), CallError> {
        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.probe(proto::ProbeRequest {}, PROBE_INTERVAL).await {
                Ok(response) if response.ready != Some(false) => return Ok(()),
                Ok(_) => tracing::warn!("the CSI driver is not ready yet"),
                Err(error) if error.code() == Code::DeadlineExceeded => {
                    tracing::warn!("the CSI driver did not answer a probe within {PROBE_INTERVAL:?}");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Name and version of the plugin.
    pub async fn plugin_info(&self, deadline: Duration) -> Result<proto::GetPluginInfoResponse, CallError> {
        self.get_plugin_info(proto::GetPluginInfoRequest {}, deadline).await
    }

    /// What the plugin can do, asked of every service that it has. `deadline` is that of each of the calls.
    ///
    /// A process that serves the controller side only has no node capabilities, and the reverse.
    pub async fn capabilities(&self, deadline: Duration) -> Result<Capabilities, CallError> {
        let mut capabilities = Capabilities::default();
        let plugin = self.get_plugin_capabilities(proto::GetPluginCapabilitiesRequest {}, deadline).await?;
        capabilities.add_plugin(&plugin);
        // Plugins advertise the controller service in their node processes, too, where it is not served.
        if capabilities.has(PluginService::ControllerService) {
            let request = proto::ControllerGetCapabilitiesRequest {};
            if let Some(response) = served(self.controller_get_capabilities(request, deadline).await)? {
                capabilities.add_controller(&response);
            }
        }
        if capabilities.has(PluginService::GroupControllerService) {
            let request = proto::GroupControllerGetCapabilitiesRequest {};
            if let Some(response) = served(self.group_controller_get_capabilities(request, deadline).await)? {
                capabilities.add_group(&response);
            }
        }
        let request = proto::NodeGetCapabilitiesRequest {};
        if let Some(response) = served(self.node_get_capabilities(request, deadline).await)? {
            capabilities.add_node(&response);
        }
        Ok(capabilities)
    }

    /// One unary call with any codec.
    pub(crate) async fn unary<C>(
        &self,
        method: &'static str,
        codec: C,
        message: C::Encode,
        deadline: Duration,
    ) -> Result<C::Decode, CallError>
    where
        C: Codec + Send,
        C::Encode: Message + Clone + Send + Sync + 'static,
        C::Decode: Message + Send + Sync + 'static,
    {
        let at = Instant::now() + deadline;
        let request = with_deadline(message.clone(), deadline);
        let call = async {
            let mut grpc = self.ready(at).await?;
            let path = PathAndQuery::from_static(method);
            Ok(within(at, grpc.unary(request, path, codec)).await?.into_inner())
        };
        self.observer.unary(method, &message, call).await.map_err(|status| CallError { method, status })
    }

    /// Opens a stream of messages with any codec; `deadline` is that of the whole stream.
    pub(crate) async fn streaming<C>(
        &self,
        method: &'static str,
        codec: C,
        message: C::Encode,
        deadline: Duration,
    ) -> Result<MetadataMessages<C::Decode>, CallError>
    where
        C: Codec + Send,
        C::Encode: Message + Clone + Send + Sync + 'static,
        C::Decode: Message + Send + Sync + 'static,
    {
        let at = Instant::now() + deadline;
        let failed = move |status| CallError { method, status };
        let request = with_deadline(message, deadline);
        let mut grpc = self.ready(at).await.map_err(failed)?;
        let opening = grpc.server_streaming(request, PathAndQuery::from_static(method), codec);
        let messages = within(at, opening).await.map_err(failed)?.into_inner();
        let messages = futures_util::stream::unfold(Some(messages), move |messages| async move {
            let mut messages = messages?;
            match within(at, messages.message()).await {
                Ok(message) => message.map(|message| (Ok(message), Some(messages))),
                Err(status) => Some((Err(failed(status)), None)),
            }
        });
        Ok(messages.boxed())
    }

    async fn ready(&self, at: Instant) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        let ready = async {
            grpc.ready().await.map_err(|error| {
                let mut status = Status::unavailable("the connection to the plugin is lost");
                status.set_source(std::sync::Arc::new(error));
                status
            })
        };
        within(at, ready).await?;
        Ok(grpc)
    }
}

/// The answer of a call to a service that may not be there.
fn served<T>(outcome: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match outcome {
        Err(error) if error.code() == Code::Unimplemented => Ok(None),
        outcome => outcome.map(Some),
    }
}

fn with_deadline<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

async fn within<T>(at: Instant, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = || Status::deadline_exceeded("the plugin did not answer within the deadline");
    match timeout_at(at, call).await {
        Err(_) => Err(late()),
        // The other side keeps the same deadline, and may notice first that it passed.
        Ok(Err(status)) if status.code() == Code::Cancelled && Instant::now() >= at => Err(late()),
        Ok(outcome) => outcome,
    }
}

macro_rules! calls {
    ($($service:literal: $($method:ident $rpc:literal ($request:ident) -> $response:ident)*;)*) => {
        /// One method per RPC.
        impl Client {
            $($(#[doc = concat!("Calls `", $service, "/", $rpc, "`.")]
            pub async fn $method(
                &self,
                request: proto::$request,
                deadline: Duration,
            ) -> Result<proto::$response, CallError> {
                let codec = ProstCodec::<proto::$request, proto::$response>::default();
                self.unary(concat!("/csi.v1.", $service, "/", $rpc), codec, request, deadline).await
            })*)*
        }
    };
}

calls! {
    "Identity":
        get_plugin_info "GetPluginInfo" (GetPluginInfoRequest) -> GetPluginInfoResponse
        get_plugin_capabilities "GetPluginCapabilities" (GetPluginCapabilitiesRequest) -> GetPluginCapabilitiesResponse
        probe "Probe" (ProbeRequest) -> ProbeResponse;
    "Controller":
        create_volume "CreateVolume" (CreateVolumeRequest) -> CreateVolumeResponse
        delete_volume "DeleteVolume" (DeleteVolumeRequest) -> DeleteVolumeResponse
        controller_publish_volume "ControllerPublishVolume"
            (ControllerPublishVolumeRequest) -> ControllerPublishVolumeResponse
        controller_unpublish_volume "ControllerUnpublishVolume"
            (ControllerUnpublishVolumeRequest) -> ControllerUnpublishVolumeResponse
        validate_volume_capabilities "ValidateVolumeCapabilities"
            (ValidateVolumeCapabilitiesRequest) -> ValidateVolumeCapabilitiesResponse
        list_volumes "ListVolumes" (ListVolumesRequest) -> ListVolumesResponse
        get_capacity "GetCapacity" (GetCapacityRequest) -> GetCapacityResponse
        controller_get_capabilities "ControllerGetCapabilities"
            (ControllerGetCapabilitiesRequest) -> ControllerGetCapabilitiesResponse
        create_snapshot "CreateSnapshot" (CreateSnapshotRequest) -> CreateSnapshotResponse
        delete_snapshot "DeleteSnapshot" (DeleteSnapshotRequest) -> DeleteSnapshotResponse
        list_snapshots "ListSnapshots" (ListSnapshotsRequest) -> ListSnapshotsResponse
        get_snapshot "GetSnapshot" (GetSnapshotRequest) -> GetSnapshotResponse
        controller_expand_volume "ControllerExpandVolume"
            (ControllerExpandVolumeRequest) -> ControllerExpandVolumeResponse
        controller_get_volume "ControllerGetVolume" (ControllerGetVolumeRequest) -> ControllerGetVolumeResponse
        controller_modify_volume "ControllerModifyVolume"
            (ControllerModifyVolumeRequest) -> ControllerModifyVolumeResponse;
    "GroupController":
        group_controller_get_capabilities "GroupControllerGetCapabilities"
            (GroupControllerGetCapabilitiesRequest) -> GroupControllerGetCapabilitiesResponse
        create_volume_group_snapshot "CreateVolumeGroupSnapshot"
            (CreateVolumeGroupSnapshotRequest) -> CreateVolumeGroupSnapshotResponse
        delete_volume_group_snapshot "DeleteVolumeGroupSnapshot"
            (DeleteVolumeGroupSnapshotRequest) -> DeleteVolumeGroupSnapshotResponse
        get_volume_group_snapshot "GetVolumeGroupSnapshot"
            (GetVolumeGroupSnapshotRequest) -> GetVolumeGroupSnapshotResponse;
    "Node":
        node_stage_volume "NodeStageVolume" (NodeStageVolumeRequest) -> NodeStageVolumeResponse
        node_unstage_volume "NodeUnstageVolume" (NodeUnstageVolumeRequest) -> NodeUnstageVolumeResponse
        node_publish_volume "NodePublishVolume" (NodePublishVolumeRequest) -> NodePublishVolumeResponse
        node_unpublish_volume "NodeUnpublishVolume" (NodeUnpublishVolumeRequest) -> NodeUnpublishVolumeResponse
        node_get_volume_stats "NodeGetVolumeStats" (NodeGetVolumeStatsRequest) -> NodeGetVolumeStatsResponse
        node_expand_volume "NodeExpandVolume" (NodeExpandVolumeRequest) -> NodeExpandVolumeResponse
        node_get_capabilities "NodeGetCapabilities" (NodeGetCapabilitiesRequest) -> NodeGetCapabilitiesResponse
        node_get_info "NodeGetInfo" (NodeGetInfoRequest) -> NodeGetInfoResponse;
}

/// The streaming RPCs. The deadline is that of the whole stream.
impl Client {
    /// Calls `SnapshotMetadata/GetMetadataAllocated`.
    pub async fn get_metadata_allocated(
        &self,
        request: proto::GetMetadataAllocatedRequest,
        deadline: Duration,
    ) -> Result<MetadataMessages<proto::GetMetadataAllocatedResponse>, CallError> {
        let method = "/csi.v1.SnapshotMetadata/GetMetadataAllocated";
        self.streaming(method, ProstCodec::default(), request, deadline).await
    }

    /// Calls `SnapshotMetadata/GetMetadataDelta`.
    pub async fn get_metadata_delta(
        &self,
        request: proto::GetMetadataDeltaRequest,
        deadline: Duration,
    ) -> Result<MetadataMessages<proto::GetMetadataDeltaResponse>, CallError> {
        let method = "/csi.v1.SnapshotMetadata/GetMetadataDelta";
        self.streaming(method, ProstCodec::default(), request, deadline).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: Status) -> CallError {
        CallError { method: "/csi.v1.Controller/CreateVolume", status }
    }

    #[test]
    fn classes_are_those_of_the_sidecars() {
        for code in [Code::Cancelled, Code::DeadlineExceeded, Code::Unavailable, Code::ResourceExhausted, Code::Aborted]
        {
            assert_eq!(error(Status::new(code, "")).class(), Class::Uncertain, "{code:?}");
        }
        for code in [Code::Unknown, Code::Internal, Code::AlreadyExists, Code::FailedPrecondition, Code::Unimplemented]
        {
            assert_eq!(error(Status::new(code, "")).class(), Class::Final, "{code:?}");
            assert!(!error(Status::new(code, "")).infeasible());
        }
        for code in [Code::InvalidArgument, Code::OutOfRange, Code::NotFound] {
            assert!(error(Status::new(code, "")).infeasible(), "{code:?}");
        }
        let mut local = Status::internal("h2 protocol error");
        local.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
        assert_eq!(error(local).class(), Class::Uncertain);
    }
}
