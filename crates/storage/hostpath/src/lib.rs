//! A CSI driver that keeps volumes in a directory of the node: `hostpath.csi.k8s.io`.
//!
//! It takes the place of the Kubernetes project's hostpath driver: same name, same flags, same topology key, same places
//! for the volumes. Like that one it serves one node, and controller and node service from one process. It uses the public
//! side of [`outrigger_csi`] only, and no other program but `mkfs`.
//!
//! # Volumes
//!
//! | access type | parameter `backing` | `<statedir>/<id>` is | the workload gets |
//! |---|---|---|---|
//! | mount | (none), `directory` | a directory, mode 0777 | a bind mount of it; the size is a promise only and `fs_type` has no meaning |
//! | mount | `file` | a sparse file of the whole size | a file system (`fs_type`: ext2, ext3, ext4 (default) or xfs) on a loop device; the size is enforced |
//! | block | (none), `file` | a sparse file of the whole size | a loop device |
//!
//! Image files are multiples of 1 MiB, those with a file system have at least 16 MiB (xfs: 300 MiB). A volume whose size is left open gets
//! 1 GiB, or what the request's limit allows. `kind` is the other parameter with a meaning: it picks a capacity pool
//! (`--capacity`). Further parameters are kept, and handed out as the volume's context.
//!
//! # State directory
//!
//! | name | what |
//! |---|---|
//! | `<id>` | content of a volume; ids are UUIDs |
//! | `volumes.journal` | record of all volumes: a checksummed line for each change, rewritten when most lines are void |
//! | `deleted/` | content of volumes that are being deleted |
//! | `lock` | locked while a driver runs; a second one is refused |
//!
//! A call returns when its change is on disk: volumes and attachments survive a loss of power, mounts (which a
//! reboot undoes) the end of the process. Calls that arrive together share one sync. The content of a volume is made
//! before its record and taken out of its place before the record goes, mounts are recorded before they are made and
//! forgotten after they are gone; at start the driver looks at what is there and finishes or undoes the rest.
//! What the kernel refuses for one volume then is logged, and tried again by the next call that stages or publishes it.
//! A record that is damaged is refused with its place, never skipped. The cost of a call does not depend on the number of
//! volumes, ListVolumes aside.
//!
//! # Flags
//!
//! Names, forms and defaults are the original's (see [`Options`]). What differs:
//!
//! | flag | here |
//! |---|---|
//! | `check-volume-lifecycle` | covers detaching only: deleting a volume in use, and unstaging a published one, is always refused |
//! | `attach-limit` | attachments being made count, so that the limit holds under parallel calls |
//! | `enable-volume-expansion` | off; `true` is refused until there is expansion |
//! | `disable-controller-expansion`, `disable-node-expansion` | accepted; nothing to disable |
//! | `max-volume-size-node` | 0 only |
//! | `enable-controller-modify-volume`, `accepted-mutable-parameter-names` | refused |
//! | `enable-list-snapshots` | off; `true` is refused until there are snapshots |
//! | `enable-snapshot-metadata`, `snapshot-metadata-block-type` | refused |
//! | `proxy-endpoint`, `ephemeral` | refused |
//! | `automaxprocs` | accepted, without effect |
//! | `http-endpoint`, `metrics-path` | ours in addition: a port for `/metrics` (`csi_sidecar_operations_seconds` of all calls), `/healthz`, which fails once the journal takes no more changes, and `/readyz` |
//!
//! `CSI_ENDPOINT`, `KUBE_NODE_NAME` and `OUTRIGGER_HOSTPATH_<FLAG>` in the environment stand for flags.
//!
//! # Differences from the original on purpose
//!
//! - Nothing is lost or left behind by a kill at any point; the original's record can be torn.
//! - No lock over all calls: one volume does not wait for another.
//! - ListVolumes pages, in an order that creations and deletions between two pages do not upset.
//! - Deleting a volume that is attached, staged or published is refused rather than warned of.
//! - Block volumes are sparse; staging mounts (or attaches the loop device) rather than only taking note.
//! - A block volume published read-only is a read-only device; a read-only mount of a device node would not stop writers.
//! - ControllerPublishVolume heeds `readonly`; ControllerGetVolume answers NOT_FOUND for a volume that is not there.
//! - A second publication of a volume with a single-node access mode follows the specification's table. The original
//!   minds SINGLE_NODE_SINGLE_WRITER only.
//! - Mount flags are honoured, or refused by name. The original ignores them.
//! - A state directory with volumes of the original (`state.json`) is refused rather than overlooked.
//!
//! Not there yet, hence not advertised: snapshots, clones, expansion, ModifyVolume, inline ephemeral volumes.

mod backing;
mod controller;
mod driver;
mod error;
mod fault;
mod format;
mod journal;
mod kernel;
mod node;
mod options;
mod provision;
mod quantity;
mod store;
#[cfg(test)]
mod sweep;
mod volume;

pub use driver::HostPath;
pub use error::Error;
pub use fault::Fault;
pub use options::{Options, Pool};
pub use quantity::{Bytes, QuantityError};

use std::sync::Arc;

use outrigger_csi::{self as csi, proto};
use outrigger_daemon::{Health, HttpEndpoint, Metrics, Shutdown};
use outrigger_rpc::{Observer, OperationsSeconds};

use crate::options::Config;

/// Runs the driver until `shutdown`: opens the state directory, puts right what an earlier run left unfinished, and serves
/// CSI on the endpoint. Calls that run at that moment are finished.
///
/// In debug builds `OUTRIGGER_CRASH_AFTER=<n>` in the environment aborts the process after its n-th outside effect, for
/// crash sweeps from outside.
pub async fn run(options: Options, shutdown: Shutdown) -> Result<(), Error> {
    let metrics = Metrics::new();
    let (address, metrics_path) = (options.http_endpoint.clone(), options.metrics_path.clone());
    let config = options.config(injected_fault()?)?;
    let http = match address.as_str() {
        "" => None,
        _ => Some(
            HttpEndpoint::bind(&address, metrics.clone(), &metrics_path)
                .await
                .map_err(|source| Error::Http { address, source })?,
        ),
    };
    serve(config, &metrics, http, shutdown).await
}

/// Runs the driver and, if there is one, the port for metrics and health, which answers while the driver still recovers.
async fn serve(config: Config, metrics: &Metrics, http: Option<HttpEndpoint>, shutdown: Shutdown) -> Result<(), Error> {
    let health = http.as_ref().map_or_else(Health::new, HttpEndpoint::health);
    let driver = serve_csi(config, metrics, &health, &shutdown);
    let mut driver = std::pin::pin!(driver);
    let pages = async {
        match http {
            Some(http) => http.serve(shutdown.clone()).await,
            None => shutdown.cancelled().await,
        }
    };
    tokio::select! {
        outcome = &mut driver => outcome,
        () = pages => driver.await,
    }
}

async fn serve_csi(config: Config, metrics: &Metrics, health: &Health, shutdown: &Shutdown) -> Result<(), Error> {
    let endpoint = config.endpoint.clone();
    tracing::info!(
        driver = config.name, version = env!("CARGO_PKG_VERSION"), node = config.node_id,
        state = %config.state_dir.display(), "starting the hostpath driver"
    );
    let operations = metrics.register(OperationsSeconds::register);
    operations.set_driver_name(&config.name);
    let driver = HostPath::open(config).await?;
    // Weak: the page must not keep the state directory locked once the driver has ended.
    let inner = Arc::downgrade(&driver.0);
    health.register("journal", move || {
        let failed = inner.upgrade().is_some_and(|inner| inner.store.has_failed());
        std::future::ready(if failed { Err(JOURNAL_FAILED.to_owned()) } else { Ok(()) })
    });
    // Polled first when the socket is there.
    let stop = async {
        health.set_ready(true);
        shutdown.cancelled().await;
        health.set_ready(false);
    };
    driver
        .plugin()
        .observer(Observer::new(proto::descriptor_pool().clone()).with_metrics(operations))
        .serve(&endpoint, stop)
        .await
        .map_err(|source: csi::ServeError| Error::Serve { endpoint: endpoint.to_string(), source })
}

/// What `/healthz` says when only a restart helps.
const JOURNAL_FAILED: &str =
    "the record of volumes takes no more changes: restart the driver to read back what is on disk";

#[cfg(debug_assertions)]
fn injected_fault() -> Result<Fault, Error> {
    match std::env::var("OUTRIGGER_CRASH_AFTER") {
        Ok(text) => text.parse().map(Fault::abort_after).map_err(|_| Error::CrashAfter { text }),
        Err(_) => Ok(Fault::default()),
    }
}

#[cfg(not(debug_assertions))]
#[expect(clippy::unnecessary_wraps, reason = "the debug build's twin can fail")]
fn injected_fault() -> Result<Fault, Error> {
    Ok(Fault::default())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn get(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_port_tells_of_calls_and_of_a_journal_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = format!("--endpoint={}", dir.path().join("csi.sock").display());
        let state = format!("--statedir={}", dir.path().join("state").display());
        let config = || options::tests::config(&[&endpoint, &state]).unwrap();
        // Makes the journal, so that the effects below are those of the call.
        drop(HostPath::open(config()).await.unwrap());

        let metrics = Metrics::new();
        let http = HttpEndpoint::bind("127.0.0.1:0", metrics.clone(), "/metrics").await.unwrap();
        let address = http.local_addr().unwrap();
        let shutdown = Shutdown::new();
        // Directory, its mode, the sync of the state directory, the journal's line: the journal's sync is what fails.
        let config = Config { fault: Fault::after(4), ..config() };
        let socket = config.endpoint.clone();
        let ending = shutdown.clone();
        let driver = tokio::spawn(async move { serve(config, &metrics, Some(http), ending).await });
        let deadline = Duration::from_secs(30);
        let client = csi::Client::connect(&socket, deadline).await.unwrap();
        client.wait_ready().await.unwrap();
        for page in ["/healthz", "/healthz/journal", "/readyz"] {
            let answer = get(address, page).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{page}: {answer}");
        }

        let capability = proto::VolumeCapability {
            access_mode: Some(proto::volume_capability::AccessMode {
                mode: proto::volume_capability::access_mode::Mode::SingleNodeWriter.into(),
            }),
            access_type: Some(proto::volume_capability::AccessType::Mount(
                proto::volume_capability::MountVolume::default(),
            )),
        };
        let request = proto::CreateVolumeRequest {
            name: "a".to_owned(),
            volume_capabilities: vec![capability],
            ..Default::default()
        };
        client.create_volume(request, deadline).await.unwrap_err();
        let answer = get(address, "/healthz").await;
        assert!(!answer.starts_with("HTTP/1.1 200") && answer.contains(JOURNAL_FAILED), "{answer}");
        let answer = get(address, "/metrics").await;
        let series = "csi_sidecar_operations_seconds_count{driver_name=\"hostpath.csi.k8s.io\",\
                      method_name=\"/csi.v1.Controller/CreateVolume\",grpc_status_code=\"Unavailable\"} 1";
        assert!(answer.contains(series), "{answer}");

        drop(client);
        shutdown.trigger();
        driver.await.unwrap().unwrap();
        HostPath::open(options::tests::config(&[&endpoint, &state]).unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let state = format!("--statedir={}", dir.path().join("state").display());
        let options = options::tests::options(&[&state, "--http-endpoint=nowhere"]);
        let error = run(options, Shutdown::new()).await.unwrap_err();
        assert!(error.to_string().contains("nowhere"), "{error}");
        assert!(!dir.path().join("state").exists());
    }
}
