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

use outrigger_daemon::Shutdown;

/// Runs the driver until `shutdown`: opens the state directory, puts right what an earlier run left unfinished, and serves
/// CSI on the endpoint. Calls that run at that moment are finished.
///
/// In debug builds `OUTRIGGER_CRASH_AFTER=<n>` in the environment aborts the process after its n-th outside effect, for
/// crash sweeps from outside.
pub async fn run(options: Options, shutdown: Shutdown) -> Result<(), Error> {
    let config = options.config(injected_fault()?)?;
    let endpoint = config.endpoint.clone();
    tracing::info!(
        driver = config.name, version = env!("CARGO_PKG_VERSION"), node = config.node_id,
        state = %config.state_dir.display(), "starting the hostpath driver"
    );
    let driver = HostPath::open(config).await?;
    driver
        .plugin()
        .serve(&endpoint, shutdown.cancelled())
        .await
        .map_err(|source| Error::Serve { endpoint: endpoint.to_string(), source })
}

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
