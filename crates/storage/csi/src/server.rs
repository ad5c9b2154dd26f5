//! The gRPC side of a plugin: every request is checked, serialised, run to its end, and its answer checked.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use outrigger_rpc::{BindError, Endpoint, Listener, Observer};
use prost::Message;
use prost_reflect::DynamicMessage;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::service::Routes;
use tonic::{Request, Status};
use tracing::Instrument as _;

use crate::capability::Capabilities;
use crate::check::{self, table};
use crate::lock::{Guard, Locks};
use crate::plugin::{Parts, Plugin, StartError};
use crate::{Error, proto};

/// How long answers on their way, and callers that never say anything, are waited for once no call runs any more.
const LINGER: Duration = Duration::from_secs(1);

/// Why a plugin does not serve, or stopped to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The plugin contradicts itself.
    #[error("cannot start the plugin")]
    Start(#[from] StartError),
    /// The socket cannot be bound.
    #[error("cannot listen on {endpoint}")]
    Bind {
        /// The address.
        endpoint: Endpoint,
        /// The cause.
        #[source]
        source: BindError,
    },
    /// The gRPC server failed.
    #[error("the server on {endpoint} failed")]
    Serve {
        /// The address.
        endpoint: Endpoint,
        /// The cause.
        #[source]
        source: tonic::transport::Error,
    },
}

impl Plugin {
    /// Replaces the observer that logs the plugin's calls, for instance by one with metrics.
    pub fn observer(mut self, observer: Observer) -> Self {
        self.observer = observer;
        self
    }

    /// Serves on a socket until `shutdown` is ready; then refuses new calls and waits for the running ones, also for
    /// those whose callers went away, and for streams. Connections without a call hold nothing up. A supervisor that asked for it is told when the socket is there
    /// ([`notify_ready`](outrigger_daemon::notify_ready)); `shutdown` is polled from that moment on, not before.
    ///
    /// # Errors
    /// [`ServeError::Start`] before the socket is touched; see [`ServeError`] for the rest.
    pub async fn serve(self, endpoint: &Endpoint, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let (routes, tasks) = self.routes()?;
        let listener =
            Listener::bind(endpoint).await.map_err(|source| ServeError::Bind { endpoint: endpoint.clone(), source })?;
        tracing::info!("serving on {endpoint}");
        if let Err(error) = outrigger_daemon::notify_ready() {
            tracing::warn!("cannot tell the supervisor that the plugin is ready: {error}");
        }
        let stop = CancellationToken::new();
        let stopping = async {
            shutdown.await;
            stop.cancel();
        };
        let serving = tonic::transport::Server::builder()
            .add_routes(routes)
            .serve_with_incoming_shutdown(listener.incoming(), stopping);
        // The server waits for every connection to end. One that is silent, before HTTP/2 even began, never does.
        let idle = async {
            stop.cancelled().await;
            tasks.close();
            tasks.wait().await;
            tokio::time::sleep(LINGER).await;
        };
        let served = tokio::select! {
            served = serving => served,
            () = idle => Ok(()),
        };
        tasks.close();
        tasks.wait().await;
        served.map_err(|source| ServeError::Serve { endpoint: endpoint.clone(), source })
    }

    /// The plugin as gRPC routes, for a server of one's own.
    pub fn into_routes(self) -> Result<Routes, StartError> {
        Ok(self.routes()?.0)
    }

    fn routes(self) -> Result<(Routes, TaskTracker), StartError> {
        self.check()?;
        let tasks = TaskTracker::new();
        let service = Service(Arc::new(Inner {
            capabilities: self.capabilities(),
            parts: self.parts,
            locks: Locks::default(),
            observer: self.observer,
            tasks: tasks.clone(),
        }));
        // All services are there, so that a call that is not supported is told so by name.
        let routes = Routes::new(proto::identity_server::IdentityServer::new(service.clone()))
            .add_service(proto::controller_server::ControllerServer::new(service.clone()))
            .add_service(proto::group_controller_server::GroupControllerServer::new(service.clone()))
            .add_service(proto::snapshot_metadata_server::SnapshotMetadataServer::new(service.clone()))
            .add_service(proto::node_server::NodeServer::new(service));
        Ok((routes, tasks))
    }
}

/// What the calls of a plugin share.
pub(crate) struct Inner {
    pub(crate) parts: Parts,
    pub(crate) capabilities: Capabilities,
    locks: Locks,
    observer: Observer,
    tasks: TaskTracker,
}

/// All services of a plugin.
#[derive(Clone)]
pub(crate) struct Service(Arc<Inner>);

impl Service {
    /// Makes the end of the server wait until it is dropped.
    pub(crate) fn running(&self) -> TaskTrackerToken {
        self.0.tasks.token()
    }

    /// Does one call: checks the request, takes its lock, and runs the driver.
    ///
    /// It happens in a task of its own, so that a caller that goes away does not leave something half made: the
    /// operation runs on, and keeps its lock, until it ends.
    pub(crate) async fn call<Req, Res, Done>(
        &self,
        method: &'static str,
        request: Request<Req>,
        operation: impl FnOnce(Arc<Inner>, Req) -> Done + Send + 'static,
    ) -> Result<Res, Status>
    where
        Req: Message + Clone + 'static,
        Res: Message + 'static,
        Done: Future<Output = Result<Res, Error>> + Send + 'static,
    {
        let inner = self.0.clone();
        let request = request.into_inner();
        let task = async move {
            let checked = async {
                let _guard = inner.admit(method, &request)?;
                let operation = operation(inner.clone(), request.clone());
                AssertUnwindSafe(operation).catch_unwind().await.unwrap_or_else(|panic| Err(panicked(method, &*panic)))
            };
            inner.observer.unary(method, &request, checked.map(|outcome| outcome.map_err(Status::from))).await
        };
        match self.0.tasks.spawn(task.in_current_span()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Status::unavailable(format!("the plugin stopped in the middle of {method}"))),
        }
    }
}

impl Inner {
    /// Lets a request in, or says why not. The guard keeps other operations off the same object.
    fn admit(&self, method: &'static str, request: &impl Message) -> Result<Option<Guard>, Error> {
        let rule = table::rule(method);
        check::gate(rule, &self.capabilities, self.parts.node.is_some())?;
        if request.encoded_len() == 0 && rule.required.is_empty() {
            return Ok(None);
        }
        let dynamic = reflect(method, request)?;
        check::request(rule, &self.capabilities, &dynamic)?;
        let Some((scope, field)) = rule.lock else {
            return Ok(None);
        };
        let id = dynamic.get_field_by_name(field);
        let id = id.as_ref().and_then(|value| value.as_str()).unwrap_or_default();
        self.locks.take(scope, id).map(Some)
    }
}

/// The request as a dynamic message.
fn reflect(method: &str, request: &impl Message) -> Result<DynamicMessage, Error> {
    let input = method[1..].split_once('/').and_then(|(service, name)| {
        let service = proto::descriptor_pool().get_service_by_name(service)?;
        service.methods().find(|method| method.name() == name).map(|method| method.input())
    });
    let input = input.ok_or_else(|| Error::internal(format!("{method} is not in the descriptors")))?;
    DynamicMessage::decode(input, request.encode_to_vec().as_slice())
        .map_err(|error| Error::internal("cannot read the request").with_source(error))
}

/// The error for a panic in a driver. What it says stays in the log.
///
/// Nobody knows how far the driver came, so the code is one that leaves the outcome open: callers repeat the call, or undo
/// it. `INTERNAL` would tell them that nothing was made.
pub(crate) fn panicked(method: &str, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!("the driver panicked in {method}: {}", text.unwrap_or("(no message)"));
    Error::unavailable(format!("the driver panicked in {method}: see its log"))
}
