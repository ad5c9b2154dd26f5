//! Sockets, connections and recorded clients against a real tonic server.

#![expect(clippy::unwrap_used, reason = "the helpers here fail the test that calls them")]

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use outrigger_rpc::{BindError, ConnectError, Connection, Endpoint, Listener, connect, connect_lazy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

const CHECK: &str = "/grpc.health.v1.Health/Check";

#[derive(Clone, PartialEq, prost::Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The health service of gRPC; it remembers what it was asked for.
#[derive(Clone, Default)]
struct Health {
    asked: Arc<Mutex<Vec<String>>>,
}

impl tonic::server::NamedService for Health {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl tonic::server::UnaryService<CheckRequest> for Health {
    type Response = CheckResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<CheckResponse>, Status>> + Send>>;

    fn call(&mut self, request: Request<CheckRequest>) -> Self::Future {
        self.asked.lock().unwrap().push(request.into_inner().service);
        Box::pin(async { Ok(Response::new(CheckResponse { status: 1 })) })
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Health {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            Ok(grpc.unary(this, request).await)
        })
    }
}

/// A running server; it drains and removes its socket on [`Running::stop`].
struct Running {
    health: Health,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Running {
    fn serve<I>(incoming: impl Stream<Item = io::Result<I>> + Send + 'static) -> Self
    where
        I: tokio::io::AsyncRead + tokio::io::AsyncWrite + tonic::transport::server::Connected + Unpin + Send + 'static,
    {
        let health = Health::default();
        let (stop, stopped) = oneshot::channel();
        let server = Server::builder().add_service(health.clone());
        let task = tokio::spawn(server.serve_with_incoming_shutdown(Box::pin(incoming), async {
            let _ = stopped.await;
        }));
        Self { health, stop, task }
    }

    async fn start(endpoint: &Endpoint) -> Self {
        Self::serve(Listener::bind(endpoint).await.unwrap().incoming())
    }

    async fn stop(self) -> Vec<String> {
        let _ = self.stop.send(());
        self.task.await.unwrap().unwrap();
        self.health.asked.lock().unwrap().clone()
    }
}

async fn check(channel: &Channel, service: &str) -> Result<i32, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let request = Request::new(CheckRequest { service: service.into() });
    let codec = ProstCodec::<CheckRequest, CheckResponse>::default();
    let response = grpc.unary(request, http::uri::PathAndQuery::from_static(CHECK), codec).await?;
    Ok(response.into_inner().status)
}

fn scratch() -> (tempfile::TempDir, Endpoint) {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::new(dir.path().join("csi.sock")).unwrap();
    (dir, endpoint)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Writes a recorded client's bytes and reads the kinds of the frames that come back, till three streams have ended.
async fn replay(path: &Path, bytes: &[u8]) -> Vec<(u8, u32)> {
    let mut stream = UnixStream::connect(path).await.unwrap();
    // In two parts, cut within a frame.
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    stream.write_all(first).await.unwrap();
    stream.flush().await.unwrap();
    stream.write_all(rest).await.unwrap();
    let mut seen = Vec::new();
    let mut ended = 0;
    while ended < 3 {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        let (kind, flags) = (head[3], head[4]);
        let reset = kind == 3;
        if reset || (kind <= 1 && flags & 1 != 0) {
            ended += 1;
        }
        let code = if reset { u32::from_be_bytes(payload.try_into().unwrap()) } else { 0 };
        seen.push((kind, code));
    }
    seen
}

const RECORDED: [(&str, &[u8], bool); 3] = [
    ("raw path", include_bytes!("data/grpc-go-raw-path.bin"), false),
    ("escaped path", include_bytes!("data/grpc-go-escaped-path.bin"), false),
    ("localhost", include_bytes!("data/grpc-go-unix-target.bin"), true),
];

#[tokio::test]
async fn recorded_grpc_go_clients_are_served() {
    for (name, bytes, _) in RECORDED {
        let (_dir, endpoint) = scratch();
        let server = Running::start(&endpoint).await;
        let seen = replay(endpoint.path(), bytes).await;
        assert!(!seen.iter().any(|(kind, _)| [3, 7].contains(kind)), "{name}: {seen:?}");
        assert_eq!(server.stop().await, ["call-0", "call-1", "call-2"], "{name}");
    }
}

/// The reason for the filter: if this fails one day, the HTTP/2 library has learnt to take such authorities, and the
/// filter can go.
#[tokio::test]
async fn without_the_filter_they_are_reset_unseen() {
    for (name, bytes, served) in RECORDED {
        let (_dir, endpoint) = scratch();
        let listener = UnixListener::bind(endpoint.path()).unwrap();
        let server = Running::serve(UnixListenerStream::new(listener));
        let seen = replay(endpoint.path(), bytes).await;
        let resets = seen.iter().filter(|frame| **frame == (3, 1)).count();
        let asked = server.stop().await.len();
        assert_eq!((resets, asked), if served { (0, 3) } else { (3, 0) }, "{name}: {seen:?}");
    }
}

#[tokio::test]
async fn h2_clients_with_any_authority_are_served() {
    let (_dir, endpoint) = scratch();
    let server = Running::start(&endpoint).await;
    let channel = connect(&endpoint, Duration::from_secs(5)).await.unwrap();
    // A payload far longer than a chunk, and many calls at once, so that frames interleave and are cut anywhere.
    let long = "x".repeat(1 << 20);
    let calls = (0..50).map(|n| {
        let (channel, text) = (channel.clone(), if n % 10 == 0 { long.clone() } else { format!("call-{n}") });
        async move { check(&channel, &text).await }
    });
    for outcome in futures_util::future::join_all(calls).await {
        assert_eq!(outcome.unwrap(), 1);
    }
    let asked = server.stop().await;
    assert_eq!(asked.len(), 50);
    assert_eq!(asked.iter().filter(|text| **text == long).count(), 5);
}

#[tokio::test]
async fn a_malformed_block_gets_the_librarys_own_answer() {
    let (_dir, endpoint) = scratch();
    let server = Running::start(&endpoint).await;
    let mut stream = UnixStream::connect(endpoint.path()).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    stream.write_all(&[0, 0, 1, 1, 4, 0, 0, 0, 1, 0xbe]).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    // The last frame is GOAWAY with an error code.
    let at = answer.len() - 17;
    assert_eq!(answer[at + 3], 7, "{answer:?}");
    assert_ne!(answer[at + 13..], [0; 4], "{answer:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_socket_appears_ready_and_goes_with_its_listener() {
    let (dir, endpoint) = scratch();
    let listener = Listener::bind(&endpoint).await.unwrap();
    assert_eq!(names(dir.path()), ["csi.sock"]);
    let meta = fs_err::metadata(endpoint.path()).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    drop(listener);
    assert!(names(dir.path()).is_empty());
}

#[tokio::test]
async fn the_peer_is_known() {
    let (_dir, endpoint) = scratch();
    let mut incoming = pin!(Listener::bind(&endpoint).await.unwrap().incoming());
    let _client = UnixStream::connect(endpoint.path()).await.unwrap();
    let connection: Connection = incoming.next().await.unwrap().unwrap();
    let peer = tonic::transport::server::Connected::connect_info(&connection).unwrap();
    assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
    let mine = fs_err::metadata("/proc/self").unwrap();
    assert_eq!((peer.uid, peer.gid), (mine.uid(), mine.gid()));
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let (dir, endpoint) = scratch();
    drop(UnixListener::bind(endpoint.path()).unwrap());
    assert_eq!(names(dir.path()), ["csi.sock"], "tokio leaves it behind");
    let listener = Listener::bind(&endpoint).await.unwrap();
    let error = Listener::bind(&endpoint).await.unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("another process listens there"), "{error}");
    assert!(UnixStream::connect(endpoint.path()).await.is_ok(), "the first one is unharmed");
    drop(listener);
    assert!(names(dir.path()).is_empty());
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let (dir, endpoint) = scratch();
    fs_err::write(endpoint.path(), "precious").unwrap();
    let error = Listener::bind(&endpoint).await.unwrap_err();
    assert!(error.to_string().contains("is a regular file, not a socket"), "{error}");
    assert_eq!(fs_err::read_to_string(endpoint.path()).unwrap(), "precious");
    fs_err::remove_file(endpoint.path()).unwrap();
    fs_err::create_dir(endpoint.path()).unwrap();
    let error = Listener::bind(&endpoint).await.unwrap_err();
    assert!(error.to_string().contains("is a directory"), "{error}");
    assert_eq!(names(dir.path()), ["csi.sock"]);
    let nowhere = Endpoint::new(dir.path().join("no/such/csi.sock")).unwrap();
    let error = Listener::bind(&nowhere).await.unwrap_err();
    assert!(matches!(error, BindError::Directory { .. }), "{error}");
}

#[tokio::test]
async fn a_successors_socket_is_not_removed() {
    let (dir, endpoint) = scratch();
    let old = Listener::bind(&endpoint).await.unwrap();
    fs_err::remove_file(endpoint.path()).unwrap();
    let new = Listener::bind(&endpoint).await.unwrap();
    drop(old);
    assert_eq!(names(dir.path()), ["csi.sock"]);
    assert!(UnixStream::connect(endpoint.path()).await.is_ok());
    drop(new);
    assert!(names(dir.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_racing_listeners_exactly_one_wins() {
    for _ in 0..20 {
        let (dir, endpoint) = scratch();
        drop(UnixListener::bind(endpoint.path()).unwrap());
        let wins = Arc::new(AtomicUsize::new(0));
        let racers: Vec<_> = (0..8)
            .map(|_| {
                let (endpoint, wins) = (endpoint.clone(), wins.clone());
                tokio::spawn(async move {
                    let bound = Listener::bind(&endpoint).await;
                    wins.fetch_add(usize::from(bound.is_ok()), Ordering::SeqCst);
                    bound
                })
            })
            .collect();
        let outcomes = futures_util::future::join_all(racers).await;
        assert_eq!(wins.load(Ordering::SeqCst), 1);
        assert_eq!(names(dir.path()), ["csi.sock"]);
        drop(outcomes);
        assert!(names(dir.path()).is_empty());
    }
}

#[tokio::test]
async fn the_longest_path_works() {
    let dir = tempfile::tempdir().unwrap();
    let missing = 107 - dir.path().as_os_str().len() - "//s".len();
    let deep = dir.path().join("d".repeat(missing));
    fs_err::create_dir(&deep).unwrap();
    let endpoint = Endpoint::new(deep.join("s")).unwrap();
    assert_eq!(endpoint.path().as_os_str().len(), 107);
    let server = Running::start(&endpoint).await;
    let channel = connect(&endpoint, Duration::from_secs(5)).await.unwrap();
    assert_eq!(check(&channel, "a").await.unwrap(), 1);
    drop(channel);
    assert_eq!(server.stop().await, ["a"]);
    assert!(names(&deep).is_empty());
}

#[tokio::test]
async fn connecting_waits_for_the_server() {
    let (_dir, endpoint) = scratch();
    let waiting = tokio::spawn({
        let endpoint = endpoint.clone();
        async move { connect(&endpoint, Duration::from_secs(20)).await }
    });
    tokio::task::yield_now().await;
    let server = Running::start(&endpoint).await;
    let channel = waiting.await.unwrap().unwrap();
    assert_eq!(check(&channel, "a").await.unwrap(), 1);
    drop(channel);
    server.stop().await;
}

#[tokio::test]
async fn connecting_gives_up_with_a_reason() {
    let (_dir, endpoint) = scratch();
    let error = connect(&endpoint, Duration::from_millis(50)).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Timeout { source, .. } if source.kind() == io::ErrorKind::NotFound),
        "{error}"
    );
    assert!(error.to_string().contains("is the driver running?"), "{error}");
    fs_err::write(endpoint.path(), "").unwrap();
    let error = connect(&endpoint, Duration::from_mins(1)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "a file never becomes a server: {error}");
}

#[tokio::test]
async fn a_lazy_channel_survives_a_restart_of_the_server() {
    let (_dir, endpoint) = scratch();
    let channel = connect_lazy(&endpoint);
    assert_eq!(check(&channel, "early").await.unwrap_err().code(), tonic::Code::Unavailable);
    for round in 0..2 {
        let server = Running::start(&endpoint).await;
        let mut outcome = check(&channel, "a").await;
        if round > 0 && outcome.is_err() {
            // The call that finds the old connection dead may fail; the next one may not.
            outcome = check(&channel, "a").await;
        }
        assert_eq!(outcome.unwrap(), 1, "round {round}");
        server.stop().await;
    }
}
