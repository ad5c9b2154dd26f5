//! The HTTPS server: start, connections, stop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use outrigger_lab_store::{Durability, Options as StoreOptions, Store};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admit::core::API_ADDRESS;
use crate::api::{Api, Config};
use crate::auth::{Authenticator, MASTERS, Rbac, TokenIssuer, User, certificate_user, seeds};
use crate::body::failure;
use crate::client::Client;
use crate::negotiate::Form;
use crate::request::WriteOptions;
use crate::routes::BODY_LIMIT;
use crate::status::ApiError;
use crate::tls::{Pki, PkiError, write_private};

/// Longest time a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest time a stop waits for requests under way.
const DRAIN: Duration = Duration::from_secs(5);

/// How to start a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Directory of everything that survives a restart: objects, keys, kubeconfig. Created with mode 0700 if absent.
    pub data_dir: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What an acknowledged write survives. With [`Durability::Memory`] objects live as long as the server, keys and
    /// kubeconfig are still written.
    pub durability: Durability,
    /// Changes kept for watches to resume from and for lists at past revisions.
    pub history: usize,
    /// Further names and addresses for the serving certificate.
    pub names: Vec<String>,
    /// Presentation and timing.
    pub config: Config,
}

impl ServerOptions {
    /// A server on a free port of 127.0.0.1.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            durability: Durability::Process,
            history: 10_000,
            names: Vec::new(),
            config: Config::default(),
        }
    }
}

/// Why a server did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("use the data directory {}", dir.display())]
    DataDir {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The store did not open.
    #[error("open the store")]
    Store(#[from] outrigger_lab_store::Error),
    /// Keys or certificates.
    #[error("prepare keys and certificates")]
    Pki(#[from] PkiError),
    /// The address is taken or not ours.
    #[error("listen on {address}; choose another address or stop what listens there")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The objects that every cluster has could not be made.
    #[error("create {object}")]
    Bootstrap {
        /// Which one.
        object: String,
        /// The cause.
        #[source]
        source: ApiError,
    },
}

/// A running API server. Dropping it stops it without waiting; [`Server::shutdown`] drains.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    kubeconfig: PathBuf,
    ca_pem: String,
    token: String,
    api: Api,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

impl Server {
    /// Opens the store, makes what is missing and listens. When this returns, requests are answered.
    pub async fn start(options: ServerOptions) -> Result<Self, StartError> {
        let dir = options.data_dir.clone();
        let data_dir = |source| StartError::DataDir { dir: dir.clone(), source };
        fs_err::create_dir_all(&dir).map_err(data_dir)?;
        fs_err::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).map_err(data_dir)?;

        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(|source| StartError::Listen { address: options.listen, source })?;
        let address = listener.local_addr().map_err(|source| StartError::Listen { address: options.listen, source })?;
        let url = format!("https://{address}");

        let store = Store::open(StoreOptions {
            dir: (options.durability != Durability::Memory).then(|| dir.join("store")),
            durability: options.durability,
            history: options.history,
            ..StoreOptions::memory()
        })?;
        let pki = Pki::open(&dir.join("pki"), &server_names(address, &options.names))?;
        let kubeconfig = dir.join("kubeconfig");
        write_private(&kubeconfig, &pki.kubeconfig(&url))
            .map_err(|source| StartError::DataDir { dir: dir.clone(), source })?;

        let issuer = TokenIssuer::new(&pki.token_key).ok_or_else(|| PkiError::Pem { path: dir.join("pki/sa.key") })?;
        let issuer = Arc::new(issuer);
        let admin = User::new("kubernetes-admin", &[MASTERS]);
        let authenticator = Authenticator::new(vec![(pki.admin_token.clone(), admin)], Arc::clone(&issuer));
        let authorizer = Box::new(Rbac::new(store.clone()));
        let stopping = CancellationToken::new();
        let config = Config { server: url, ..options.config };
        let api = Api::new(store, config, authenticator, authorizer, issuer, stopping.clone());
        bootstrap(&api, address)?;

        let tasks = TaskTracker::new();
        let acceptor = TlsAcceptor::from(Arc::clone(&pki.server_config));
        tasks.spawn(accept(listener, acceptor, api.clone(), stopping.clone(), tasks.clone()));
        tasks.spawn(api.clone().expire_forever());
        Ok(Self { address, kubeconfig, ca_pem: pki.ca_pem, token: pki.admin_token, api, stopping, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://host:port`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The administrator's kubeconfig, mode 0600.
    pub fn kubeconfig_path(&self) -> &Path {
        &self.kubeconfig
    }

    /// The certificate of the authority that signed the serving certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The administrator's bearer token.
    pub fn admin_token(&self) -> &str {
        &self.token
    }

    /// The API behind the server.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// A client without network that acts as a part of the control plane, such as `system:kube-controller-manager`.
    /// `agent` names the program, hence the field manager of its writes.
    pub fn client(&self, user: &str, agent: &str) -> Client {
        Client::new(self.api.clone(), User::system(user), agent)
    }

    /// Stops accepting, ends watches, lets requests under way finish for a few seconds.
    pub async fn shutdown(self) {
        self.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::debug!("requests were still under way at the end of the drain period");
        }
    }
}

fn server_names(address: SocketAddr, more: &[String]) -> Vec<String> {
    let mut names: Vec<String> = [
        "localhost",
        "127.0.0.1",
        "::1",
        API_ADDRESS,
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(str::to_owned)
    .to_vec();
    if !address.ip().is_unspecified() {
        names.push(address.ip().to_string());
    }
    names.extend(more.iter().cloned());
    names.sort();
    names.dedup();
    names
}

/// The namespaces, roles and the service that every cluster has. What is there stays as it is.
fn bootstrap(api: &Api, address: SocketAddr) -> Result<(), StartError> {
    let client = Client::new(api.clone(), User::system("system:apiserver"), "kube-apiserver");
    let create = |group: &str, plural: &str, namespace: &str, object: Value| {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let resource = crate::kinds::Resource::new(group, "v1", plural);
        match client.create_now(&resource, namespace, object, &WriteOptions::default()) {
            Err(error) if error.reason != "AlreadyExists" => {
                Err(StartError::Bootstrap { object: format!("{plural} {name}"), source: error })
            }
            _ => Ok(()),
        }
    };
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        create("", "namespaces", "", json!({"metadata": {"name": name}}))?;
    }
    for (plural, object) in seeds() {
        create("rbac.authorization.k8s.io", plural, "", object)?;
    }
    create(
        "",
        "services",
        "default",
        json!({
            "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {
                "type": "ClusterIP",
                "clusterIP": API_ADDRESS,
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": address.port()}],
            },
        }),
    )
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    api: Api,
    stopping: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (acceptor, api, stopping) = (acceptor.clone(), api.clone(), stopping.clone());
                tasks.spawn(async move {
                    if let Err(error) = connection(stream, acceptor, api, stopping).await {
                        tracing::debug!(%peer, error, "connection ended");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, or a connection that went away while it waited: neither ends the server.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    api: Api,
    stopping: CancellationToken,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream))
        .await
        .map_err(|_| "the TLS handshake took too long".to_owned())?
        .map_err(|error| error.to_string())?;
    let (_, tls) = stream.get_ref();
    let user = tls.peer_certificates().and_then(|chain| chain.first()).and_then(|leaf| certificate_user(leaf));
    let user = Arc::new(user);
    let service = service_fn(move |request: Request<Incoming>| {
        let (api, user) = (api.clone(), Arc::clone(&user));
        async move { Ok::<_, std::convert::Infallible>(answer(&api, request, user.as_ref().as_ref()).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30)).max_buf_size(256 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .max_header_list_size(256 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result.map_err(|error| error.to_string()),
        () = stopping.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await.map_err(|error| error.to_string())
}

async fn answer(api: &Api, request: Request<Incoming>, user: Option<&User>) -> http::Response<crate::body::Body> {
    let (parts, body) = request.into_parts();
    let bytes = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            return failure(
                &ApiError::too_large(format!("the request body is larger than {BODY_LIMIT} bytes")),
                Form::JSON,
            );
        }
        Err(error) => {
            return failure(&ApiError::bad_request(format!("the request body could not be read: {error}")), Form::JSON);
        }
    };
    api.handle(Request::from_parts(parts, Bytes::clone(&bytes)), user).await
}
