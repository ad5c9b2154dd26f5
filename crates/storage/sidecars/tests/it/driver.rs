//! A driver whose behaviour is scripted, served by the SDK over a socket.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use outrigger_csi::{Controller, CreateDeleteVolume, Error, Identity, Plugin, proto};
use outrigger_rpc::{Endpoint, Listener};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::transport::Server;
use tonic::{Request, Response, Status, async_trait};
use tonic_prost::ProstCodec;

use super::effects::{Effects, Fate};

pub(crate) const NAME: &str = "test.csi.example";

/// How one `CreateVolume` call goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Script {
    /// Nothing is made.
    Fails(fn(&str) -> Error),
    /// The volume is made, and yet the answer is an error.
    MakesBut(fn(&str) -> Error),
    /// Takes until [`Driver::release`], then succeeds.
    Hangs,
    /// The volume is one byte short.
    TooSmall,
}

#[derive(Default)]
struct State {
    /// Name → id of what exists.
    volumes: BTreeMap<String, String>,
    /// What was asked for, by name.
    requests: HashMap<String, Vec<proto::CreateVolumeRequest>>,
    scripts: VecDeque<Script>,
    deletions: Vec<proto::DeleteVolumeRequest>,
    fail_deletions: u32,
    effects: Effects,
    next_id: u64,
}

/// The driver. Stops when dropped.
pub(crate) struct Driver {
    pub(crate) inner: Arc<Inner>,
    pub(crate) endpoint: Endpoint,
    stop: CancellationToken,
    _dir: TempDir,
}

#[derive(Default)]
pub(crate) struct Inner {
    state: Mutex<State>,
    released: Notify,
    topology: bool,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Driver {
    pub(crate) fn start(topology: bool) -> Self {
        let dir = TempDir::new().unwrap();
        let endpoint: Endpoint = dir.path().join("csi.sock").display().to_string().parse().unwrap();
        let inner = Arc::new(Inner { topology, ..Inner::default() });
        let stop = CancellationToken::new();
        let mut plugin =
            Plugin::new(inner.clone()).controller(inner.clone()).create_delete_volume(inner.clone()).clone_volume();
        if topology {
            plugin = plugin.accessibility_constraints();
        }
        tokio::spawn({
            let (endpoint, stop) = (endpoint.clone(), stop.clone());
            async move { plugin.serve(&endpoint, stop.cancelled_owned()).await.unwrap() }
        });
        Self { inner, endpoint, stop, _dir: dir }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap()
    }

    /// A driver without the SDK's care: its answers go out as they are.
    pub(crate) fn start_careless() -> Self {
        let dir = TempDir::new().unwrap();
        let endpoint: Endpoint = dir.path().join("csi.sock").display().to_string().parse().unwrap();
        let inner = Arc::new(Inner::default());
        let stop = CancellationToken::new();
        tokio::spawn({
            let (endpoint, stop, careless) = (endpoint.clone(), stop.clone(), Careless(inner.clone()));
            async move {
                let incoming = Listener::bind(&endpoint).await.unwrap().incoming();
                let server = Server::builder().add_service(careless);
                server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await.unwrap();
            }
        });
        Self { inner, endpoint, stop, _dir: dir }
    }

    /// The calls from now on are effects of this process.
    pub(crate) fn serve_process(&self, effects: Effects) {
        self.state().effects = effects;
    }

    pub(crate) fn script(&self, scripts: impl IntoIterator<Item = Script>) {
        self.state().scripts.extend(scripts);
    }

    pub(crate) fn fail_deletions(&self, times: u32) {
        self.state().fail_deletions = times;
    }

    pub(crate) fn release(&self) {
        self.inner.released.notify_waiters();
        self.inner.released.notify_one();
    }

    /// Names of the volumes that exist.
    pub(crate) fn volumes(&self) -> Vec<String> {
        self.state().volumes.keys().cloned().collect()
    }

    /// The calls for this name.
    pub(crate) fn requests(&self, name: &str) -> Vec<proto::CreateVolumeRequest> {
        self.state().requests.get(name).cloned().unwrap_or_default()
    }

    pub(crate) fn deletions(&self) -> Vec<proto::DeleteVolumeRequest> {
        self.state().deletions.clone()
    }
}

#[async_trait]
impl Identity for Inner {
    fn name(&self) -> &'static str {
        NAME
    }

    fn vendor_version(&self) -> &'static str {
        "1.0"
    }
}

#[async_trait]
impl Controller for Inner {
    async fn validate_volume_capabilities(
        &self,
        _: proto::ValidateVolumeCapabilitiesRequest,
    ) -> Result<proto::ValidateVolumeCapabilitiesResponse, Error> {
        Ok(proto::ValidateVolumeCapabilitiesResponse::default())
    }
}

impl Inner {
    fn make(&self, request: &proto::CreateVolumeRequest, short_by: i64) -> proto::Volume {
        let mut state = self.state.lock().unwrap();
        state.next_id += 1;
        let new_id = format!("id-{}", state.next_id);
        let id = state.volumes.entry(request.name.clone()).or_insert(new_id).clone();
        let required = request.capacity_range.as_ref().map_or(0, |range| range.required_bytes);
        let preferred = request.accessibility_requirements.as_ref().and_then(|r| r.preferred.first());
        proto::Volume {
            volume_id: id,
            capacity_bytes: required - short_by,
            accessible_topology: preferred.filter(|_| self.topology).cloned().into_iter().collect(),
            content_source: request.volume_content_source.clone(),
            ..proto::Volume::default()
        }
    }
}

#[async_trait]
impl CreateDeleteVolume for Inner {
    async fn create_volume(&self, request: proto::CreateVolumeRequest) -> Result<proto::Volume, Error> {
        let (script, fate) = {
            let mut state = self.state.lock().unwrap();
            state.requests.entry(request.name.clone()).or_default().push(request.clone());
            (state.scripts.pop_front(), state.effects.next())
        };
        if fate == Fate::Lost {
            return Err(Error::unavailable("the caller is dead"));
        }
        match script {
            None => Ok(self.make(&request, 0)),
            Some(Script::Fails(error)) => Err(error("scripted")),
            Some(Script::MakesBut(error)) => {
                self.make(&request, 0);
                Err(error("scripted"))
            }
            Some(Script::Hangs) => {
                self.released.notified().await;
                Ok(self.make(&request, 0))
            }
            Some(Script::TooSmall) => Ok(self.make(&request, 1)),
        }
    }

    async fn delete_volume(&self, request: proto::DeleteVolumeRequest) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap();
        if state.effects.next() == Fate::Lost {
            return Err(Error::unavailable("the caller is dead"));
        }
        if state.fail_deletions > 0 {
            state.fail_deletions -= 1;
            return Err(Error::internal("scripted"));
        }
        state.volumes.retain(|_, id| *id != request.volume_id);
        state.deletions.push(request);
        Ok(())
    }
}

/// The two calls of the controller service, without checks.
#[derive(Clone)]
struct Careless(Arc<Inner>);

impl NamedService for Careless {
    const NAME: &'static str = "csi.v1.Controller";
}

impl tower::Service<http::Request<Body>> for Careless {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            if request.uri().path().ends_with("/CreateVolume") {
                let create = tower::service_fn(move |request: Request<proto::CreateVolumeRequest>| {
                    let inner = inner.clone();
                    async move {
                        let volume = inner.create_volume(request.into_inner()).await.map_err(Status::from)?;
                        Ok::<_, Status>(Response::new(proto::CreateVolumeResponse { volume: Some(volume) }))
                    }
                });
                Ok(Grpc::new(ProstCodec::default()).unary(create, request).await)
            } else {
                let delete = tower::service_fn(move |request: Request<proto::DeleteVolumeRequest>| {
                    let inner = inner.clone();
                    async move {
                        inner.delete_volume(request.into_inner()).await.map_err(Status::from)?;
                        Ok::<_, Status>(Response::new(proto::DeleteVolumeResponse {}))
                    }
                });
                Ok(Grpc::new(ProstCodec::default()).unary(delete, request).await)
            }
        })
    }
}
