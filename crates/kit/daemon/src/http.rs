//! The port for metrics and health.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::{Metrics, Shutdown};

/// How long one health check may take before it counts as failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take to send the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests under way may take after the shutdown began.
const DRAIN: Duration = Duration::from_secs(5);
/// How many connections are served at once; more wait in the backlog.
const CONNECTIONS: usize = 128;
/// How long to pause when the system is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The address or port is not usable.
    #[error("cannot listen on {address:?} for metrics and health: expected HOST:PORT or :PORT")]
    Bind {
        /// The address as given.
        address: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The path for the metrics is not absolute, or that of a health check.
    #[error("metrics path {0:?} must start with / and not be one of /healthz and /readyz")]
    MetricsPath(String),
}

type Outcome = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
type Check = Arc<dyn Fn() -> Outcome + Send + Sync>;

/// The health of the process: named checks, and whether it is ready to serve. Clones share the state.
#[derive(Clone, Default)]
pub struct Health {
    checks: Arc<Mutex<BTreeMap<String, Check>>>,
    ready: Arc<AtomicBool>,
}

impl Health {
    /// A process without checks that is not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check, or replaces the one with this name. It is part of `/healthz` and answers alone on
    /// `/healthz/<name>`. `Err` says what is wrong; a check that takes more than five seconds has failed.
    pub fn register<F, R>(&self, name: &str, check: F)
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), String>> + Send + 'static,
    {
        let check: Check = Arc::new(move || Box::pin(check()));
        self.lock().insert(name.to_owned(), check);
    }

    /// Removes a check.
    pub fn unregister(&self, name: &str) {
        self.lock().remove(name);
    }

    /// Says whether the process is ready: `/readyz` fails until then.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Whether the process is ready.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Check>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the checks, all or the one named, at the same time; none if that one does not exist.
    async fn run(&self, only: Option<&str>) -> Option<Vec<(String, Result<(), String>)>> {
        let checks: Vec<(String, Check)> = self
            .lock()
            .iter()
            .filter(|(name, _)| only.is_none_or(|only| only == name.as_str()))
            .map(|(name, check)| (name.clone(), check.clone()))
            .collect();
        if only.is_some() && checks.is_empty() {
            return None;
        }
        let mut running = JoinSet::new();
        for (name, check) in checks {
            running.spawn(async move {
                let outcome = tokio::time::timeout(CHECK_TIMEOUT, check()).await;
                (name, outcome.unwrap_or_else(|_| Err(format!("no answer within {CHECK_TIMEOUT:?}"))))
            });
        }
        let mut results: Vec<(String, Result<(), String>)> = Vec::new();
        while let Some(result) = running.join_next().await {
            results.push(result.unwrap_or_else(|error| ("check".to_owned(), Err(error.to_string()))));
        }
        results.sort();
        Some(results)
    }
}

/// A port that serves metrics and health, bound and not yet serving.
///
/// | path | answer |
/// |---|---|
/// | the metrics path | the metrics, as Prometheus text or, if asked for, OpenMetrics |
/// | `/healthz` | 200 `ok`, or 500 and a list if a check fails; `?verbose` gives the list in any case |
/// | `/healthz/<name>` | the same for one check, 404 if there is none |
/// | `/readyz` | as `/healthz`, and 500 until [`Health::set_ready`] |
pub struct HttpEndpoint {
    listener: TcpListener,
    pages: Arc<Pages>,
}

/// What is served.
struct Pages {
    metrics: Metrics,
    metrics_path: String,
    health: Health,
}

impl HttpEndpoint {
    /// Binds `address`: `HOST:PORT`, or `:PORT` for all addresses; port 0 lets the kernel choose.
    pub async fn bind(address: &str, metrics: Metrics, metrics_path: &str) -> Result<Self, EndpointError> {
        if !metrics_path.starts_with('/') || ["/healthz", "/readyz"].contains(&metrics_path) {
            return Err(EndpointError::MetricsPath(metrics_path.to_owned()));
        }
        let bound = match address.strip_prefix(':') {
            // Both families where the host has IPv6.
            Some(port) => match TcpListener::bind(format!("[::]:{port}")).await {
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    TcpListener::bind(format!("0.0.0.0:{port}")).await
                }
                other => other,
            },
            None => TcpListener::bind(address).await,
        };
        let listener = bound.map_err(|source| EndpointError::Bind { address: address.to_owned(), source })?;
        let metrics_path = metrics_path.to_owned();
        let health = Health::new();
        Ok(Self { listener, pages: Arc::new(Pages { metrics, metrics_path, health }) })
    }

    /// The address bound, with the port that the kernel chose.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The health that is served here.
    pub fn health(&self) -> Health {
        self.pages.health.clone()
    }

    /// Serves until the shutdown, then lets requests under way end, for at most five seconds.
    pub async fn serve(self, shutdown: Shutdown) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve_connection(stream, self.pages.clone(), shutdown.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection on the metrics port");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(self.listener);
        let drained = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!("requests on the metrics port did not end in time");
        }
    }
}

async fn serve_connection(stream: TcpStream, pages: Arc<Pages>, shutdown: Shutdown) {
    let service = service_fn(move |request| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(pages.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection to the metrics port broke");
    }
}

impl Pages {
    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        const TEXT: &str = "text/plain; charset=utf-8";
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET is answered here\n".into());
        }
        let path = request.uri().path();
        if path == self.metrics_path {
            let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
            return if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                page(StatusCode::OK, kind, self.metrics.encode_openmetrics())
            } else {
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                page(StatusCode::OK, kind, self.metrics.encode())
            };
        }
        let (root, only) = match path.strip_prefix('/').map(|path| path.split_once('/').unwrap_or((path, ""))) {
            Some((root @ ("healthz" | "readyz"), name)) => (root, Some(name).filter(|name| !name.is_empty())),
            _ => return page(StatusCode::NOT_FOUND, TEXT, "no such page\n".into()),
        };
        let Some(mut results) = self.health.run(only).await else {
            return page(StatusCode::NOT_FOUND, TEXT, "no such check\n".into());
        };
        if root == "readyz" && only.is_none() {
            let ready = self.health.is_ready();
            results.push(("ready".to_owned(), if ready { Ok(()) } else { Err("not ready yet".to_owned()) }));
        }
        let failed = results.iter().any(|(_, result)| result.is_err());
        let verbose =
            request.uri().query().is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose")));
        if !failed && !verbose {
            return page(StatusCode::OK, TEXT, "ok".into());
        }
        let mut text = String::new();
        for (name, result) in &results {
            // Writing to a String cannot fail.
            let _ = match result {
                Ok(()) => writeln!(text, "[+]{name} ok"),
                Err(reason) => writeln!(text, "[-]{name} failed: {reason}"),
            };
        }
        let _ = writeln!(text, "{root} check {}", if failed { "failed" } else { "passed" });
        let status = if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        page(status, TEXT, text)
    }
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A request on a connection of its own; gives the status code and the whole answer.
    async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        (answer[9..12].parse().unwrap(), answer)
    }

    async fn endpoint() -> (HttpEndpoint, SocketAddr) {
        let endpoint = HttpEndpoint::bind("127.0.0.1:0", Metrics::new(), "/metrics").await.unwrap();
        let address = endpoint.local_addr().unwrap();
        (endpoint, address)
    }

    #[tokio::test]
    async fn metrics_and_health_are_served_until_the_shutdown() {
        let (endpoint, address) = endpoint().await;
        let health = endpoint.health();
        let shutdown = Shutdown::new();
        let server = tokio::spawn(endpoint.serve(shutdown.clone()));

        let (code, text) = ask(address, "GET /metrics").await;
        assert_eq!(code, 200);
        assert!(text.contains("text/plain; version=0.0.4") && text.contains("process_open_fds"), "{text}");
        assert_eq!(ask(address, "GET /healthz").await.0, 200);
        assert_eq!(ask(address, "GET /readyz").await.0, 500);
        health.set_ready(true);
        assert_eq!(ask(address, "GET /readyz").await.0, 200);

        health.register("disk", || async { Ok(()) });
        health.register("driver", || async { Err("no socket".to_owned()) });
        let (code, text) = ask(address, "GET /healthz").await;
        assert_eq!(code, 500);
        assert!(text.ends_with("[+]disk ok\n[-]driver failed: no socket\nhealthz check failed\n"), "{text}");
        assert_eq!(ask(address, "GET /readyz").await.0, 500);
        assert_eq!(ask(address, "GET /healthz/disk").await.0, 200);
        assert_eq!(ask(address, "GET /healthz/driver").await.0, 500);
        assert_eq!(ask(address, "GET /healthz/nothing").await.0, 404);
        health.unregister("driver");
        let (code, text) = ask(address, "GET /healthz?verbose").await;
        assert!(code == 200 && text.ends_with("[+]disk ok\nhealthz check passed\n"), "{text}");

        assert_eq!(ask(address, "GET /other").await.0, 404);
        assert_eq!(ask(address, "POST /metrics").await.0, 405);

        shutdown.trigger();
        server.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
    }

    #[tokio::test]
    async fn a_request_under_way_is_answered_after_the_shutdown() {
        let (endpoint, address) = endpoint().await;
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (end, ended) = tokio::sync::watch::channel(false);
        let begin = Mutex::new(Some(begin));
        endpoint.health().register("slow", move || {
            if let Some(begin) = begin.lock().unwrap().take() {
                begin.send(()).unwrap();
            }
            let mut ended = ended.clone();
            async move { ended.wait_for(|end| *end).await.map(|_| ()).map_err(|error| error.to_string()) }
        });
        let shutdown = Shutdown::new();
        let server = tokio::spawn(endpoint.serve(shutdown.clone()));
        let asking = tokio::spawn(ask(address, "GET /healthz"));
        begun.await.unwrap();
        shutdown.trigger();
        end.send(true).unwrap();
        assert_eq!(asking.await.unwrap().0, 200);
        server.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_or_panics_has_failed() {
        let health = Health::new();
        health.register("hangs", std::future::pending::<Result<(), String>>);
        let results = health.run(None).await.unwrap();
        assert_eq!(results, [("hangs".to_owned(), Err("no answer within 5s".to_owned()))]);
        health.register("hangs", || async { panic!("a bug") });
        assert!(health.run(None).await.unwrap()[0].1.is_err());
    }

    #[tokio::test]
    async fn a_bare_port_means_all_addresses() {
        let endpoint = HttpEndpoint::bind(":0", Metrics::new(), "/metrics").await.unwrap();
        let address = endpoint.local_addr().unwrap();
        assert!(address.ip().is_unspecified());
        let shutdown = Shutdown::new();
        let server = tokio::spawn(endpoint.serve(shutdown.clone()));
        assert_eq!(ask(([127, 0, 0, 1], address.port()).into(), "GET /healthz").await.0, 200);
        shutdown.trigger();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn bad_addresses_and_paths_are_refused() {
        for (address, path, part) in [
            ("nowhere", "/metrics", "cannot listen on \"nowhere\""),
            ("127.0.0.1:99999", "/metrics", "expected HOST:PORT or :PORT"),
            ("127.0.0.1:0", "metrics", "must start with /"),
            ("127.0.0.1:0", "/healthz", "must start with / and not be one of"),
        ] {
            let error = HttpEndpoint::bind(address, Metrics::new(), path).await.err().unwrap();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
