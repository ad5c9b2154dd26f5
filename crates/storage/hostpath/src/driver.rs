//! The driver as a whole: what all services share, start-up recovery, and which services there are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_csi as csi;
use outrigger_sys::loopdev::LoopDevice;
use tracing::{error, info};

use crate::Error;
use crate::backing::Backings;
use crate::kernel::{self, Kernel};
use crate::options::Config;
use crate::store::{Durability, Hold, Store};
use crate::volume::{Backing, Staged, Volume, VolumeId};

/// The hostpath driver. A handle: clones are the same driver.
///
/// It implements the traits of [`outrigger_csi`]; [`HostPath::plugin`] puts them together as the options ask.
#[derive(Debug, Clone)]
pub struct HostPath(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) backings: Backings,
    pub(crate) kernel: Kernel,
    /// Identifies the time since the machine started; mounts and loop devices do not outlive it.
    pub(crate) boot: String,
}

/// Loop devices by the files behind them.
type Attached = HashMap<PathBuf, Vec<LoopDevice>>;

impl HostPath {
    /// Opens the state directory and puts right what an earlier run left unfinished.
    pub(crate) async fn open(mut config: Config) -> Result<Self, Error> {
        let inner = tokio::task::spawn_blocking(move || {
            if !config.state_dir.exists() {
                // Directory volumes are open to all, for pods of any user; who is not in a pod has no business there. Made
                // with that mode: a driver that is killed right after must not leave a directory that keeps another.
                let mut private = std::fs::DirBuilder::new();
                std::os::unix::fs::DirBuilderExt::mode(&mut private, 0o750);
                if let Some(parent) = config.state_dir.parent() {
                    fs_err::create_dir_all(parent)?;
                }
                private.create(&config.state_dir).map_err(|source| {
                    let problem = format!("cannot make the state directory {}: {source}", config.state_dir.display());
                    std::io::Error::new(source.kind(), problem)
                })?;
            }
            // The kernel shows the files behind loop devices by their full path.
            config.state_dir = fs_err::canonicalize(&config.state_dir)?;
            refuse_foreign_state(&config.state_dir)?;
            let store = Store::open(&config.state_dir, config.fault.clone())?;
            let backings = Backings::new(&config.state_dir, config.fault.clone());
            backings.prepare()?;
            let kernel = Kernel::new(config.fault.clone());
            let boot = fs_err::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
            Ok::<_, Error>(Inner { config, store, backings, kernel, boot })
        })
        .await
        .map_err(|_| Error::Closing)??;
        let driver = Self(Arc::new(inner));
        driver.recover().await?;
        Ok(driver)
    }

    /// The services that the options ask for.
    pub fn plugin(&self) -> csi::Plugin {
        let driver = || Arc::new(self.clone());
        let config = &self.0.config;
        let mut plugin = csi::Plugin::new(driver())
            .controller(driver())
            .create_delete_volume(driver())
            .get_capacity(driver())
            .get_volume(driver())
            .single_node_multi_writer()
            .node(driver())
            .stage_volume(driver())
            .volume_stats(driver());
        plugin = if config.attach {
            plugin.publish_volume(driver()).publish_readonly().list_volumes_with_published_nodes(driver())
        } else {
            plugin.list_volumes(driver())
        };
        if config.topology { plugin.accessibility_constraints() } else { plugin }
    }

    /// Runs `work`, which may wait for files and the kernel, where it holds nobody up.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, csi::Error> + Send + 'static,
    ) -> Result<T, csi::Error> {
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .map_err(|error| csi::Error::internal("a task of the driver did not end as it should").with_source(error))?
    }

    /// The volume with this id. Text that is no id of this driver belongs to no volume.
    pub(crate) fn volume(&self, id: &str) -> Result<Arc<Volume>, csi::Error> {
        self.find(id).ok_or_else(|| csi::Error::not_found(format!("volume {id:?} does not exist")))
    }

    /// The volume with this id for a call that changes it, and no other call until the hold is dropped.
    pub(crate) fn hold(&self, id: &str) -> Result<(Hold, Arc<Volume>), csi::Error> {
        let known = self.volume(id)?.id;
        let hold = self.0.store.hold(known).ok_or_else(|| {
            csi::Error::aborted(format!("another call is changing volume {id} at this moment: try again later"))
        })?;
        // Looked up again: what was there before may have been changed, or deleted, until the hold began.
        Ok((hold, self.volume(id)?))
    }

    pub(crate) fn find(&self, id: &str) -> Option<Arc<Volume>> {
        self.0.store.get(id.parse::<VolumeId>().ok()?)
    }

    /// Brings records, files, devices and mounts back into agreement.
    async fn recover(&self) -> Result<(), Error> {
        let volumes = self.0.store.list(None, usize::MAX);
        let inner = Arc::clone(&self.0);
        let corrected = tokio::task::spawn_blocking(move || {
            inner.backings.sweep(|id| inner.store.get(id).is_some(), &volumes)?;
            let attached = inner.attached(&volumes)?;
            let mut corrected = Vec::new();
            for volume in &volumes {
                if let Some(changed) = inner.still_there(volume, &attached)? {
                    corrected.push(changed);
                }
            }
            Ok::<_, Error>(corrected)
        })
        .await
        .map_err(|_| Error::Closing)??;
        for volume in corrected {
            self.0.store.put(volume, Durability::Process).await?;
        }
        Ok(())
    }
}

impl Inner {
    /// The loop devices of the machine by their files, from one look for all volumes; empty if no volume can have one.
    fn attached(&self, volumes: &[Arc<Volume>]) -> Result<Attached, Error> {
        let mut attached = Attached::new();
        let uses_device = |volume: &Arc<Volume>| {
            volume.backing != Backing::Directory
                && volume.staged.as_ref().is_some_and(|staged| staged.boot == self.boot)
        };
        if volumes.iter().any(uses_device) {
            for (device, file) in outrigger_sys::loopdev::attached()? {
                attached.entry(file).or_default().push(device);
            }
        }
        Ok(attached)
    }

    /// The record without the mounts that are gone; nothing if all are there.
    ///
    /// What the kernel refuses for one volume must not keep the driver from serving the others: its record stays, and the
    /// next NodeStageVolume or NodePublishVolume tries again.
    fn still_there(&self, volume: &Volume, attached: &Attached) -> Result<Option<Volume>, Error> {
        let mut changed = volume.clone();
        if !self.config.attach {
            // Left from a run with --enable-attach. Nobody could detach it, and so nobody could delete it.
            changed.attached = None;
        }
        if let Some(staged) = &volume.staged {
            match self.check_mounts(staged, &mut changed, attached) {
                Err(Error::Kernel(error)) => error!(
                    volume = %volume.id, error = %crate::store::describe(&error),
                    "cannot bring the volume back onto the node; staging or publishing it again tries again"
                ),
                checked => checked?,
            }
        }
        Ok((changed != *volume).then_some(changed))
    }

    /// Takes the mounts that are gone out of `volume`. Reattaches the loop device of a staged block volume, which may have
    /// been the step at which the driver was stopped.
    fn check_mounts(&self, staged: &Staged, volume: &mut Volume, attached: &Attached) -> Result<(), Error> {
        if staged.boot != self.boot {
            info!(volume = %volume.id, "the volume was staged before the machine started anew; it has to be staged again");
            volume.staged = None;
            volume.published.clear();
            return Ok(());
        }
        let source = self.backings.path(volume.id);
        if !source.exists() {
            // Reported by the sweep. The mounts may still be there, so the record of them stays.
            return Ok(());
        }
        let mut devices = attached.get(&fs_err::canonicalize(&source)?).cloned().unwrap_or_default();
        self.kernel.adopt(volume.id, &devices)?;
        if volume.backing == Backing::Image {
            devices.extend(self.kernel.reattach(volume.id, &source)?);
        }
        let backing = volume.backing.clone();
        let shown = |path: &str| kernel::shows(Path::new(path), &backing, &source, &devices);
        let mut gone = Vec::new();
        for target in volume.published.keys() {
            if !shown(target)? {
                gone.push(target.clone());
            }
        }
        for target in &gone {
            info!(volume = %volume.id, target, "the volume is not mounted there any more");
            volume.published.remove(target);
        }
        if backing != Backing::Image && volume.published.is_empty() && !shown(&staged.path)? {
            info!(volume = %volume.id, path = staged.path, "the volume is not mounted at its staging path any more");
            if !devices.is_empty() {
                self.kernel.release_devices(volume.id, &source)?;
            }
            volume.staged = None;
        }
        Ok(())
    }
}

/// The Go driver keeps its state in `state.json`. Its volumes are not ours to serve, or to overlook.
fn refuse_foreign_state(directory: &Path) -> Result<(), Error> {
    let path = directory.join("state.json");
    let content = match fs_err::read(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let state: Result<serde_json::Value, _> = serde_json::from_slice(&content);
    let empty = state.is_ok_and(|state| {
        ["Volumes", "Snapshots", "GroupSnapshots"]
            .iter()
            .all(|list| state.get(list).and_then(|list| list.as_array()).is_none_or(Vec::is_empty))
    });
    if empty {
        return Ok(());
    }
    Err(Error::Foreign {
        path: directory.to_owned(),
        problem: "state.json is the record of another hostpath driver, which has volumes here: delete them with that driver, or \
                  choose another --statedir"
            .to_owned(),
    })
}
