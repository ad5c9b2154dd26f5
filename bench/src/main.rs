//! Benchmarks behind SPECIFICATION.md.
//!
//! ```text
//! outrigger-bench lab                          start, memory, writes, lists and watches of the lab
//! outrigger-bench api --kubeconfig F [--pid P] the same load on any API server, for comparison
//! outrigger-bench driver                       CreateVolume and DeleteVolume with many volumes present
//! outrigger-bench driver --endpoint E          the same load on any CSI driver
//! outrigger-bench cni [--peer NAME=DIR]        ADD, CHECK and DEL of CNI plugins, ours and peers' in turn
//! ```
//!
//! Each prints a table of figures, one line each, and nothing that is not measured in this run. Times are those of the
//! whole round trip as a client sees it; CPU time is user plus system of the server's process.

#![expect(clippy::print_stdout, reason = "its output is the measurement")]

mod api;
mod cni;
mod driver;
mod figures;
mod process;
mod wire;

use std::path::PathBuf;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(about = "Benchmarks behind SPECIFICATION.md")]
enum Command {
    /// The lab, started for this, in memory-backed and in durable mode.
    Lab {
        /// The outrigger command (release build).
        #[arg(long, default_value = "target/release/outrigger")]
        outrigger: PathBuf,
    },
    /// Any API server.
    Api {
        /// How to reach it.
        #[arg(long)]
        kubeconfig: PathBuf,
        /// Its processes, for memory and CPU time.
        #[arg(long)]
        pid: Vec<u32>,
    },
    /// A CSI driver.
    Driver {
        /// Where it listens; without it our own is started.
        #[arg(long)]
        endpoint: Option<String>,
        /// Its process, for memory and CPU time.
        #[arg(long)]
        pid: Vec<u32>,
        /// The outrigger command (release build).
        #[arg(long, default_value = "target/release/outrigger")]
        outrigger: PathBuf,
        /// Largest number of volumes.
        #[arg(long, default_value_t = 10_000)]
        volumes: usize,
        /// Entries on a page of ListVolumes; 0 asks for all at once, which drivers that cut the list and give no token need.
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(i32).range(0..))]
        page: i32,
    },
    /// CNI plugins, ours and peers' in turn.
    Cni(cni::Options),
}

fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let command = match Command::parse() {
        // It moves between network namespaces, so it wants no threads but its own.
        Command::Cni(options) => return cni::run(&options),
        command => command,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Lab { outrigger } => api::lab(&outrigger).await,
            Command::Api { kubeconfig, pid } => api::any(&kubeconfig, &pid).await,
            Command::Driver { endpoint, pid, outrigger, volumes, page } => {
                driver::run(endpoint.as_deref(), &pid, &outrigger, volumes, page).await
            }
            Command::Cni(options) => cni::run(&options),
        }
    })
}
