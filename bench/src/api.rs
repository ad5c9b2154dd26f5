//! Load on an API server, the lab or another.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::figures::{Times, line, milliseconds, run};
use crate::process::{cpu, outrigger, resident};
use crate::wire::Server;

const NAMESPACE: &str = "bench";
const CLIENTS: usize = 16;
const WATCHERS: usize = 100;

/// Starts labs and measures them.
pub(crate) async fn lab(binary: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let directory = scratch.path().join("lab");

    let mut fresh = Times::default();
    let mut again = Times::default();
    for _ in 0..10 {
        let start = Instant::now();
        outrigger(binary, &directory, &["lab", "up", "--bare", "--listen", "127.0.0.1:0"]).await?;
        fresh.push(start.elapsed());
        outrigger(binary, &directory, &["lab", "down"]).await?;
        let start = Instant::now();
        outrigger(binary, &directory, &["lab", "up", "--bare", "--listen", "127.0.0.1:0"]).await?;
        again.push(start.elapsed());
        outrigger(binary, &directory, &["lab", "reset", "--yes"]).await?;
    }
    line("start to ready, fresh directory (two processes), median of 10", milliseconds(fresh.quantile(0.5)), "ms");
    line("start to ready, existing directory, median of 10", milliseconds(again.quantile(0.5)), "ms");

    for durability in ["process", "power"] {
        println!("\n# durability: {durability}");
        let arguments = ["lab", "up", "--bare", "--listen", "127.0.0.1:0", "--durability", durability];
        outrigger(binary, &directory, &arguments).await?;
        let status: Value = serde_json::from_str(&outrigger(binary, &directory, &["lab", "status", "--json"]).await?)?;
        let pid = status["process"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("a pid")?;
        let outcome = any(&directory.join("kubeconfig"), &[pid]).await;
        outrigger(binary, &directory, &["lab", "reset", "--yes"]).await?;
        outcome?;
    }
    Ok(())
}

/// Measures a running server.
pub(crate) async fn any(kubeconfig: &Path, pids: &[u32]) -> Result<()> {
    let server = Server::from_kubeconfig(kubeconfig)?;
    let mut connection = server.connect().await?;
    let memory = |what: &str| -> Result<()> {
        if !pids.is_empty() {
            line(&format!("resident memory, {what}"), format!("{:.1}", resident(pids)?), "MB");
        }
        Ok(())
    };
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    connection.call(Method::POST, "/api/v1/namespaces", body(&namespace)).await?;
    memory("fresh")?;

    let start = Instant::now();
    let mut times = Times::default();
    for n in 0..500 {
        let start = Instant::now();
        connection.call(Method::POST, &maps(), config_map(&format!("one-{n}"))).await?;
        times.push(start.elapsed());
    }
    run("create, one after another", &mut times, start.elapsed());

    let before = cpu(pids)?;
    parallel(&server, "create, 16 clients, up to 1,000 objects", 500, "few").await?;
    memory("1,000 objects")?;
    parallel(&server, "create, 16 clients, up to 10,000 objects", 9_000, "many").await?;
    memory("10,000 objects")?;
    if !pids.is_empty() {
        let each = (cpu(pids)? - before) / 9_500.0 * 1e6;
        line("CPU time of the server for each create", format!("{each:.0}"), "us");
    }
    parallel(&server, "create, 16 clients, up to 11,000 objects", 1_000, "more").await?;

    let mut times = Times::default();
    let mut size = 0;
    for _ in 0..10 {
        let start = Instant::now();
        size = connection.call(Method::GET, &maps(), Bytes::new()).await?.len();
        times.push(start.elapsed());
    }
    line("LIST of 11,000 objects, p50", milliseconds(times.quantile(0.5)), "ms");
    line("LIST of 11,000 objects, size", format!("{:.1}", mega(size)), "MB");
    let mut times = Times::default();
    for _ in 0..20 {
        let start = Instant::now();
        connection.call(Method::GET, &format!("{}?limit=500", maps()), Bytes::new()).await?;
        times.push(start.elapsed());
    }
    line("LIST of the first 500, p50", milliseconds(times.quantile(0.5)), "ms");

    fan_out(&server).await?;
    memory("11,000 objects, after all")?;
    let start = Instant::now();
    connection.call(Method::DELETE, &maps(), Bytes::new()).await.context("deletecollection")?;
    line("deletecollection of 11,000 objects", milliseconds(start.elapsed()), "ms");
    connection.call(Method::DELETE, &format!("/api/v1/namespaces/{NAMESPACE}"), Bytes::new()).await?;
    Ok(())
}

async fn parallel(server: &Server, what: &str, count: usize, prefix: &'static str) -> Result<()> {
    let mut connections = Vec::new();
    for _ in 0..CLIENTS {
        connections.push(server.connect().await?);
    }
    let start = Instant::now();
    let tasks: Vec<_> = connections
        .into_iter()
        .enumerate()
        .map(|(client, mut connection)| {
            tokio::spawn(async move {
                let mut times = Times::default();
                for n in (client..count).step_by(CLIENTS) {
                    let start = Instant::now();
                    connection.call(Method::POST, &maps(), config_map(&format!("{prefix}-{n}"))).await?;
                    times.push(start.elapsed());
                }
                anyhow::Ok(times)
            })
        })
        .collect();
    let mut times = Times::default();
    for task in tasks {
        times.extend(task.await??);
    }
    ensure!(times.len() == count, "every create was answered");
    run(what, &mut times, start.elapsed());
    Ok(())
}

/// One write, a hundred watchers: the time from sending it until each has read its event.
async fn fan_out(server: &Server) -> Result<()> {
    let mut watchers = Vec::new();
    for n in 0..WATCHERS {
        // Ten to a connection, as clients multiplex.
        if n % 10 == 0 {
            watchers.push(server.connect().await?);
        }
    }
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let mut listener = server.connect().await?;
    let list = listener.call(Method::GET, &format!("{}?limit=1", maps()), Bytes::new()).await?;
    let version = serde_json::from_slice::<Value>(&list)?["metadata"]["resourceVersion"]
        .as_str()
        .context("a version")?
        .to_owned();
    let mut tasks = Vec::new();
    for n in 0..WATCHERS {
        let mut body = watchers[n / 10]
            .open(Method::GET, &format!("{}?watch=true&resourceVersion={version}", maps()), Bytes::new())
            .await?;
        let sender = sender.clone();
        tasks.push(tokio::spawn(async move {
            let mut rest = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                let Some(data) = frame.data_ref() else { continue };
                rest.extend_from_slice(data);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    rest.drain(..=end);
                    if sender.send(Instant::now()).is_err() {
                        return;
                    }
                }
            }
        }));
    }
    let (mut first, mut last) = (Times::default(), Times::default());
    for n in 0..100 {
        let start = Instant::now();
        listener.call(Method::POST, &maps(), config_map(&format!("event-{n}"))).await?;
        let mut arrivals = Vec::with_capacity(WATCHERS);
        while arrivals.len() < WATCHERS {
            let arrival =
                tokio::time::timeout(Duration::from_secs(30), receiver.recv()).await.context("an event is missing")?;
            arrivals.push(arrival.context("the watchers ended")? - start);
        }
        first.push(arrivals.iter().copied().min().unwrap_or_default());
        last.push(arrivals.iter().copied().max().unwrap_or_default());
    }
    line("write to the first of 100 watchers, p50", milliseconds(first.quantile(0.5)), "ms");
    line("write to the last of 100 watchers, p50", milliseconds(last.quantile(0.5)), "ms");
    line("write to the last of 100 watchers, p99", milliseconds(last.quantile(0.99)), "ms");
    for task in tasks {
        task.abort();
    }
    Ok(())
}

fn maps() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps")
}

/// An object with 256 bytes of data.
fn config_map(name: &str) -> Bytes {
    body(
        &json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "value": "x".repeat(256) } }),
    )
}

fn body(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

fn mega(bytes: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "sizes here are far below 2^52")]
    let bytes = bytes as f64;
    bytes / 1e6
}
