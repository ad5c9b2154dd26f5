//! Measures a server started by the example `serve`: `load <data directory> <pid of the server>`.
//!
//! Prints one line a figure: starts from an empty namespace `default` and leaves it empty.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const PATH: &str = "/api/v1/namespaces/default/configmaps";

#[derive(Clone)]
struct Target {
    url: String,
    token: String,
    tls: tokio_rustls::TlsConnector,
}

impl Target {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        let kubeconfig = fs_err::read_to_string(dir.join("kubeconfig"))?;
        let url = kubeconfig
            .split("server: ")
            .nth(1)
            .and_then(|rest| rest.lines().next())
            .context("find the server's address")?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&fs_err::read(dir.join("pki/ca.crt"))?)?)?;
        let mut config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let token = fs_err::read_to_string(dir.join("pki/admin.token"))?;
        Ok(Self { url: url.to_owned(), token, tls: tokio_rustls::TlsConnector::from(Arc::new(config)) })
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let tcp = TcpStream::connect(self.url.trim_start_matches("https://")).await?;
        tcp.set_nodelay(true)?;
        let tls = self.tls.connect(ServerName::try_from("localhost")?, tcp).await?;
        let (client, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .handshake(TokioIo::new(tls))
            .await?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn send(
        &self,
        client: &mut SendRequest<Full<Bytes>>,
        method: &str,
        path: &str,
        body: String,
    ) -> anyhow::Result<http::Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .header("user-agent", "load/1")
            .body(Full::new(Bytes::from(body)))?;
        client.ready().await?;
        Ok(client.send_request(request).await?)
    }

    async fn call(
        &self,
        client: &mut SendRequest<Full<Bytes>>,
        method: &str,
        path: &str,
        body: String,
    ) -> anyhow::Result<Bytes> {
        let response = self.send(client, method, path, body).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{method} {path}: {status} {}", String::from_utf8_lossy(&bytes));
        Ok(bytes)
    }
}

fn object(name: &str) -> String {
    format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"{name}\"}},\"data\":{{\"k\":\"{}\"}}}}",
        "x".repeat(256)
    )
}

fn rss(pid: &str) -> String {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("VmRSS: ?").to_owned()
}

fn say(text: &str) {
    tracing::info!("{text}");
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| {
        times.get((times.len() * share / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    format!("p50 {:?} p99 {:?}", at(50), at(99))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_target(false).without_time().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().context("usage: load <data directory> <pid>")?;
    let pid = arguments.next().context("usage: load <data directory> <pid>")?;
    let target = Target::read(Path::new(&dir))?;
    let mut client = target.connect().await?;
    say(&format!("fresh: {}", rss(&pid)));

    let (mut times, begin) = (Vec::new(), Instant::now());
    for index in 0..1000 {
        let one = Instant::now();
        target.call(&mut client, "POST", PATH, object(&format!("s{index}"))).await?;
        times.push(one.elapsed());
    }
    say(&format!("create, one after another: {:.0}/s {}", 1000.0 / begin.elapsed().as_secs_f64(), percentiles(times)));
    say(&format!("1,000 objects: {}", rss(&pid)));

    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for worker in 0..16 {
        let target = target.clone();
        tasks.spawn(async move {
            let mut client = target.connect().await?;
            let mut times = Vec::new();
            for index in 0..625 {
                let one = Instant::now();
                target.call(&mut client, "POST", PATH, object(&format!("p{worker}-{index}"))).await?;
                times.push(one.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(result) = tasks.join_next().await {
        times.extend(result??);
    }
    say(&format!("create, 16 clients: {:.0}/s {}", 10_000.0 / begin.elapsed().as_secs_f64(), percentiles(times)));
    say(&format!("11,000 objects: {}", rss(&pid)));

    for (name, query) in [
        ("all", ""),
        ("all, RV 0", "?resourceVersion=0"),
        ("first 500", "?limit=500"),
        ("by label", "?labelSelector=a%3Db"),
    ] {
        let (mut times, mut size) = (Vec::new(), 0);
        for _ in 0..20 {
            let one = Instant::now();
            size = target.call(&mut client, "GET", &format!("{PATH}{query}"), String::new()).await?.len();
            times.push(one.elapsed());
        }
        say(&format!("LIST {name}: {size} bytes, {}", percentiles(times)));
    }

    let list = target.call(&mut client, "GET", &format!("{PATH}?limit=1"), String::new()).await?;
    let text = String::from_utf8_lossy(&list);
    let revision = text
        .split("\"resourceVersion\":\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .context("find the revision")?
        .to_owned();
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..100 {
        let mut client = target.connect().await?;
        let mut body = target
            .send(&mut client, "GET", &format!("{PATH}?watch=true&resourceVersion={revision}"), String::new())
            .await?
            .into_body();
        let sender = sender.clone();
        tokio::spawn(async move {
            // The connection lives as long as its client.
            let _client = client;
            while let Some(Ok(_)) = body.frame().await {
                let _ = sender.send(Instant::now());
            }
        });
    }
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for index in 0..100 {
        let begin = Instant::now();
        target.call(&mut client, "POST", PATH, object(&format!("w{index}"))).await?;
        let mut seen = Vec::new();
        while seen.len() < 100 {
            seen.push(receiver.recv().await.context("a watch ended")?);
        }
        first.push(seen.iter().min().copied().unwrap_or(begin) - begin);
        last.push(seen.iter().max().copied().unwrap_or(begin) - begin);
    }
    say(&format!("100 watchers: first {}, last {}", percentiles(first), percentiles(last)));
    say(&format!("with 100 watchers: {}", rss(&pid)));

    let begin = Instant::now();
    target.call(&mut client, "DELETE", PATH, String::new()).await?;
    say(&format!("deletecollection of 11,100: {:?}", begin.elapsed()));
    Ok(())
}
