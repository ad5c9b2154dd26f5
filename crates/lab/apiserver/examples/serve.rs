//! Runs an API server in the directory given until interrupted: `cargo run --example serve -- <dir> [address]`.

use anyhow::Context;
use outrigger_lab_apiserver::{Server, ServerOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().context("usage: serve <data directory> [address]")?;
    let mut options = ServerOptions::new(dir);
    if let Some(address) = arguments.next() {
        options.listen = address.parse().context("parse the address")?;
    }
    let started = std::time::Instant::now();
    let server = Server::start(options).await?;
    tracing::info!(url = server.url(), kubeconfig = %server.kubeconfig_path().display(), ready_in = ?started.elapsed(), "ready");
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}
