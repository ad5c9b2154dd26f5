//! A server in a temporary directory, an HTTP/2 client for it, and `kubectl`.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_lab_apiserver::{Server, ServerOptions};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// A server with what tests need of it.
pub(crate) struct Lab {
    pub(crate) server: Server,
    pub(crate) dir: TempDir,
    http: SendRequest<Full<Bytes>>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    /// The object, if the code is the one expected.
    #[track_caller]
    pub(crate) fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Checks that this is a Status failure of that code and reason, and returns it.
    #[track_caller]
    pub(crate) fn fails(self, code: u16, reason: &str) -> Value {
        let status = self.expect(code);
        assert_eq!(status["kind"], "Status", "{status}");
        assert_eq!(status["status"], "Failure", "{status}");
        assert_eq!(status["code"], code, "{status}");
        assert_eq!(status["reason"], reason, "{status}");
        status
    }
}

pub(crate) const JSON: &str = "application/json";
pub(crate) const MERGE: &str = "application/merge-patch+json";
pub(crate) const JSON_PATCH: &str = "application/json-patch+json";
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";

pub(crate) const CM: &str = "/api/v1/namespaces/default/configmaps";

impl Lab {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut ServerOptions)) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        Self::at(dir, change).await
    }

    pub(crate) async fn at(dir: TempDir, change: impl FnOnce(&mut ServerOptions)) -> Self {
        let mut options = ServerOptions::new(dir.path());
        change(&mut options);
        let server = Server::start(options).await.expect("server starts");
        let http = connect(&server).await;
        Self { server, dir, http }
    }

    /// Sends a request as the administrator unless `headers` say otherwise.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let response = self.open(method, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let collected = tokio::time::timeout(Duration::from_secs(20), body.collect())
            .await
            .expect("the answer ends")
            .expect("the answer arrives");
        Answer { code: parts.status.as_u16(), headers: parts.headers, body: collected.to_bytes() }
    }

    async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<Incoming> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.server.url()));
        let token = format!("Bearer {}", self.server.admin_token());
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", token);
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("request");
        let mut http = self.http.clone();
        http.ready().await.expect("connected");
        tokio::time::timeout(Duration::from_secs(20), http.send_request(request))
            .await
            .expect("an answer in time")
            .expect("an answer")
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub(crate) async fn get_as(&self, path: &str, accept: &str) -> Answer {
        self.send("GET", path, &[("accept", accept)], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", JSON)], body.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, &[("content-type", JSON)], body.to_string()).await
    }

    pub(crate) async fn patch(&self, path: &str, content_type: &str, body: &Value) -> Answer {
        self.send("PATCH", path, &[("content-type", content_type)], body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], "").await
    }

    pub(crate) async fn delete_with(&self, path: &str, options: &Value) -> Answer {
        self.send("DELETE", path, &[("content-type", JSON)], options.to_string()).await
    }

    /// Opens a watch; panics if it is refused.
    pub(crate) async fn watch(&self, path: &str) -> Events {
        self.watch_as(path, JSON).await
    }

    pub(crate) async fn watch_as(&self, path: &str, accept: &str) -> Events {
        let response = self.open("GET", path, &[("accept", accept)], "").await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        Events { body: response.into_body(), buffer: BytesMut::new() }
    }

    /// Creates a ConfigMap with one value.
    pub(crate) async fn config_map(&self, name: &str, value: &str) -> Value {
        self.post(CM, &json!({"metadata": {"name": name}, "data": {"k": value}})).await.expect(201)
    }

    /// Runs `kubectl`; `None` if there is none on this machine.
    pub(crate) async fn kubectl(&self, arguments: &[&str], stdin: &str) -> Option<Output> {
        let mut child = match self.kubectl_command(arguments).spawn() {
            Ok(child) => child,
            Err(error) => {
                eprintln!("skipped: kubectl cannot be run: {error}");
                return None;
            }
        };
        let mut input = child.stdin.take().expect("piped");
        input.write_all(stdin.as_bytes()).await.expect("kubectl reads its input");
        drop(input);
        let output = tokio::time::timeout(Duration::from_mins(1), child.wait_with_output())
            .await
            .expect("kubectl ends")
            .expect("kubectl runs");
        Some(Output {
            success: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    pub(crate) fn kubectl_command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(self.server.kubeconfig_path())
            .arg("--cache-dir")
            .arg(self.dir.path().join("kubectl-cache"))
            .args(arguments)
            .env_remove("KUBECONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

/// What `kubectl` said.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) success: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

async fn connect(server: &Server) -> SendRequest<Full<Bytes>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.ca_pem().as_bytes()).expect("PEM")).expect("certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(server.address()).await.expect("listening");
    tcp.set_nodelay(true).expect("a TCP socket");
    let name = ServerName::try_from("localhost").expect("name");
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("trusted");
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (http, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.expect("HTTP/2");
    tokio::spawn(connection);
    http
}

/// The events of a watch.
pub(crate) struct Events {
    body: Incoming,
    buffer: BytesMut,
}

impl Events {
    /// The next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                return Some(serde_json::from_slice(&line).expect("a line of JSON"));
            }
            let frame =
                tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await.expect("an event in time")?;
            if let Ok(data) = frame.expect("the stream is whole").into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// The next event's type and the name of its object.
    pub(crate) async fn name(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}
