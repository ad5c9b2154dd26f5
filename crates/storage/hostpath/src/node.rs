//! The Node service.
//!
//! Staging brings a volume onto the node once: a directory or a file system is mounted at the staging path, an image gets
//! its loop device. Publishing shows it at any number of targets by bind mounts. What is about to be done is recorded
//! first and what was undone is recorded last, so that a record errs on the side of "in use".

use std::path::Path;
use std::sync::Arc;

use outrigger_csi::{self as csi, Error, proto};
use outrigger_sys::mount::MountFlags;
use proto::volume_capability::access_mode::Mode;
use tonic::async_trait;

use crate::driver::{HostPath, Inner};
use crate::kernel::{self, mount_options};
use crate::provision;
use crate::store::Durability;
use crate::volume::{Backing, Capability, Published, Staged, Volume};

/// What a NodePublishVolume call comes to, given what is published already (the table of the specification).
#[derive(Debug, PartialEq, Eq)]
enum Publication {
    /// A new target.
    New,
    /// The same call again.
    Repeated,
    /// The target has other arguments.
    Different,
    /// The volume may have one target only, and has this other one.
    Exclusive(String),
}

fn publication(volume: &Volume, target: &str, wanted: &Published) -> Publication {
    if let Some(published) = volume.published.get(target) {
        return if published == wanted { Publication::Repeated } else { Publication::Different };
    }
    let shared = |capability: &Capability| {
        matches!(
            Mode::try_from(capability.mode),
            Ok(Mode::MultiNodeReaderOnly
                | Mode::MultiNodeSingleWriter
                | Mode::MultiNodeMultiWriter
                | Mode::SingleNodeMultiWriter)
        )
    };
    let exclusive =
        volume.published.iter().find(|(_, other)| !shared(&wanted.capability) || !shared(&other.capability));
    exclusive.map_or(Publication::New, |(target, _)| Publication::Exclusive(target.clone()))
}

/// Whether the access mode itself forbids writing.
fn reads_only(capability: &Capability) -> bool {
    matches!(Mode::try_from(capability.mode), Ok(Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly))
}

fn own_filesystem(volume: &Volume) -> bool {
    matches!(volume.backing, Backing::Filesystem { .. })
}

impl HostPath {
    fn path(&self, path: &str, field: &str) -> Result<String, Error> {
        kernel::usable(path, field, &self.0.config.state_dir)
    }

    fn demand_attached(&self, volume: &Volume) -> Result<(), Error> {
        if self.0.config.attach && volume.attached.is_none() {
            return Err(Error::failed_precondition(format!(
                "volume {} is not attached to this node: call ControllerPublishVolume first",
                volume.id
            )));
        }
        Ok(())
    }

    async fn put(&self, volume: Volume) -> Result<Arc<Volume>, Error> {
        Ok(self.0.store.put(volume, Durability::Process).await?)
    }

    /// Formats the volume's image unless that was done before, and takes note of it.
    async fn format(&self, volume: Arc<Volume>) -> Result<Arc<Volume>, Error> {
        let Backing::Filesystem { fs_type, formatted: false } = &volume.backing else { return Ok(volume) };
        let (id, wanted) = (volume.id, fs_type.clone());
        self.blocking(move |inner| {
            inner.config.fault.effect("run mkfs").map_err(crate::Error::from)?;
            Ok(crate::format::ensure(&inner.backings.path(id), &wanted)?)
        })
        .await?;
        let backing = Backing::Filesystem { fs_type: fs_type.clone(), formatted: true };
        Ok(self.0.store.put(Volume { backing, ..Volume::clone(&volume) }, Durability::Power).await?)
    }
}

impl Inner {
    /// The outside part of staging; may be repeated.
    fn stage(&self, volume: &Volume, staged: &Staged) -> Result<(), Error> {
        let (source, target) = (self.backings.path(volume.id), Path::new(&staged.path));
        let options = mount_options(&staged.capability.mount_flags, own_filesystem(volume))?;
        match &volume.backing {
            Backing::Directory => {
                self.kernel.make_target(target, false)?;
                self.kernel.bind(&source, target, MountFlags::empty())?;
            }
            Backing::Image => {
                self.kernel.device(volume.id, &source, false)?;
            }
            Backing::Filesystem { fs_type, .. } => {
                self.kernel.make_target(target, false)?;
                let device = self.kernel.device(volume.id, &source, false)?;
                self.kernel.mount(device, target, fs_type, &options).map_err(|error| match &error {
                    crate::Error::Kernel(kernel) if kernel.raw_os_error() == Some(22) && !options.data.is_empty() => {
                        Error::invalid_argument(format!("{fs_type} does not take the mount flags {:?}", options.data))
                    }
                    _ => error.into(),
                })?;
            }
        }
        Ok(())
    }

    /// The outside part of unstaging; may be repeated.
    fn unstage(&self, volume: &Volume, staged: &Staged) -> Result<(), Error> {
        let (source, target) = (self.backings.path(volume.id), Path::new(&staged.path));
        match &volume.backing {
            Backing::Directory => self.kernel.unmount_all(target)?,
            Backing::Image => self.kernel.release_devices(volume.id, &source)?,
            Backing::Filesystem { .. } => {
                self.kernel.unmount_all(target)?;
                self.kernel.release_devices(volume.id, &source)?;
            }
        }
        Ok(())
    }

    /// The outside part of publishing; may be repeated.
    fn publish(&self, volume: &Volume, staged: &Staged, target: &str, published: &Published) -> Result<(), Error> {
        let path = Path::new(target);
        let image = self.backings.path(volume.id);
        self.kernel.make_target(path, volume.backing == Backing::Image)?;
        if volume.backing == Backing::Image {
            // A read-only mount of a device node does not keep anyone from writing to the device. A read-only device does.
            let device = self.kernel.device(volume.id, &image, published.read_only)?;
            return Ok(self.kernel.bind_device(device, path)?);
        }
        let mut flags = mount_options(&published.capability.mount_flags, own_filesystem(volume))?.flags;
        if published.read_only {
            flags |= MountFlags::RDONLY;
        }
        Ok(self.kernel.bind(Path::new(&staged.path), path, flags)?)
    }

    /// The outside part of unpublishing; may be repeated.
    fn unpublish(&self, target: &str) -> Result<(), Error> {
        self.kernel.unmount_all(Path::new(target))?;
        self.kernel.remove_target(Path::new(target))
    }
}

#[async_trait]
impl csi::Node for HostPath {
    async fn node_get_info(&self) -> Result<proto::NodeGetInfoResponse, Error> {
        let config = &self.0.config;
        let max_volumes_per_node = match config.attach_limit {
            limit if limit > 0 => limit,
            0 => config.max_volumes_per_node,
            // A UUID is as random as a limit for tests has to be.
            _ => i64::from(uuid::Uuid::new_v4().as_bytes()[0] % 10) + 1,
        };
        Ok(proto::NodeGetInfoResponse {
            node_id: config.node_id.clone(),
            max_volumes_per_node,
            accessible_topology: config.topology.then(|| provision::here(&config.node_id)),
        })
    }

    async fn node_publish_volume(&self, request: proto::NodePublishVolumeRequest) -> Result<(), Error> {
        if request.volume_context.get("csi.storage.k8s.io/ephemeral").map(String::as_str) == Some("true") {
            return Err(Error::invalid_argument(
                "inline ephemeral volumes are not supported by this version of the driver",
            ));
        }
        let (_hold, volume) = self.hold(&request.volume_id)?;
        let target = self.path(&request.target_path, "target_path")?;
        let capability = provision::capability(request.volume_capability.as_ref())?;
        provision::serves(&volume, &capability).map_err(Error::invalid_argument)?;
        // Checked before anything is recorded.
        mount_options(&capability.mount_flags, own_filesystem(&volume))?;
        self.demand_attached(&volume)?;
        let Some(staged) = volume.staged.clone() else {
            return Err(Error::failed_precondition(format!(
                "volume {} is not staged: call NodeStageVolume first",
                volume.id
            )));
        };
        if Path::new(&staged.path) != Path::new(&request.staging_target_path) {
            return Err(Error::failed_precondition(format!(
                "volume {} is staged at {}, not at {:?}",
                volume.id, staged.path, request.staging_target_path
            )));
        }
        if Path::new(&staged.path) == Path::new(&target) {
            return Err(Error::invalid_argument("target_path and staging_target_path are the same"));
        }
        let attached_read_only = volume.attached.as_ref().is_some_and(|attached| attached.read_only);
        let read_only = request.readonly || attached_read_only || reads_only(&capability);
        let wanted = Published { capability, read_only };
        let volume = match publication(&volume, &target, &wanted) {
            Publication::Different => {
                return Err(Error::already_exists(format!(
                    "volume {} is published at {target} with another capability or readonly setting",
                    volume.id
                )));
            }
            Publication::Exclusive(other) => {
                return Err(Error::failed_precondition(format!(
                    "volume {} is published at {other}, and its access mode allows one target on a node only",
                    volume.id
                )));
            }
            Publication::Repeated => {
                let inner_target = target.clone();
                return self.blocking(move |inner| inner.publish(&volume, &staged, &inner_target, &wanted)).await;
            }
            Publication::New => {
                // What is at an unrecorded target is somebody else's, and would go with the volume.
                let (path, block) = (target.clone(), volume.backing == Backing::Image);
                self.blocking(move |_| {
                    refuse_mounted(&path)?;
                    kernel::check_target(Path::new(&path), block).map(drop)
                })
                .await?;
                let mut changed = Volume::clone(&volume);
                changed.published.insert(target.clone(), wanted.clone());
                self.put(changed).await?
            }
        };
        let (made, path) = (Arc::clone(&volume), target.clone());
        let result = self
            .blocking(move |inner| {
                Ok(inner
                    .publish(&made, &staged, &path, &wanted)
                    .map_err(|error| (inner.unpublish(&path).is_ok(), error)))
            })
            .await?;
        match result {
            Ok(()) => Ok(()),
            Err((undone, error)) => {
                if undone {
                    let mut changed = Volume::clone(&volume);
                    changed.published.remove(&target);
                    self.put(changed).await?;
                }
                Err(error)
            }
        }
    }

    async fn node_unpublish_volume(&self, request: proto::NodeUnpublishVolumeRequest) -> Result<(), Error> {
        let (_hold, volume) = self.hold(&request.volume_id)?;
        let target = self.path(&request.target_path, "target_path")?;
        let path = target.clone();
        let recorded = volume.published.contains_key(&target);
        self.blocking(move |inner| {
            if !recorded {
                refuse_mounted(&path)?;
            }
            inner.unpublish(&path)
        })
        .await?;
        if recorded {
            let mut changed = Volume::clone(&volume);
            changed.published.remove(&target);
            self.put(changed).await?;
        }
        Ok(())
    }
}

/// A mount that the driver did not make is not the driver's to cover or to remove.
fn refuse_mounted(target: &str) -> Result<(), Error> {
    match outrigger_sys::mount::is_mount_point(Path::new(target)) {
        Ok(true) => Err(Error::failed_precondition(format!("{target} is a mount point that this volume did not make"))),
        Ok(false) => Ok(()),
        Err(error) if error.is_missing() => Ok(()),
        Err(error) => Err(crate::Error::from(error).into()),
    }
}

#[async_trait]
impl csi::StageVolume for HostPath {
    async fn node_stage_volume(&self, request: proto::NodeStageVolumeRequest) -> Result<(), Error> {
        let (_hold, volume) = self.hold(&request.volume_id)?;
        let path = self.path(&request.staging_target_path, "staging_target_path")?;
        let capability = provision::capability(request.volume_capability.as_ref())?;
        provision::serves(&volume, &capability).map_err(Error::failed_precondition)?;
        mount_options(&capability.mount_flags, own_filesystem(&volume))?;
        self.demand_attached(&volume)?;
        let wanted = Staged { path: path.clone(), capability, boot: self.0.boot.clone() };
        let fresh = match &volume.staged {
            Some(staged) if *staged == wanted => false,
            Some(staged) if staged.path == path => {
                return Err(Error::already_exists(format!(
                    "volume {} is staged at {path} with another capability",
                    volume.id
                )));
            }
            Some(staged) => {
                return Err(Error::failed_precondition(format!(
                    "volume {} is staged at {} already",
                    volume.id, staged.path
                )));
            }
            None => true,
        };
        let mut volume = self.format(volume).await?;
        if fresh {
            let target = path.clone();
            self.blocking(move |_| refuse_mounted(&target)).await?;
            volume = self.put(Volume { staged: Some(wanted.clone()), ..Volume::clone(&volume) }).await?;
        }
        let made = Arc::clone(&volume);
        let result = self
            .blocking(move |inner| {
                Ok(inner.stage(&made, &wanted).map_err(|error| (fresh && inner.unstage(&made, &wanted).is_ok(), error)))
            })
            .await?;
        match result {
            Ok(()) => Ok(()),
            Err((undone, error)) => {
                if undone {
                    self.put(Volume { staged: None, ..Volume::clone(&volume) }).await?;
                }
                Err(error)
            }
        }
    }

    async fn node_unstage_volume(&self, request: proto::NodeUnstageVolumeRequest) -> Result<(), Error> {
        let (_hold, volume) = self.hold(&request.volume_id)?;
        let Some(staged) = volume.staged.clone() else { return Ok(()) };
        if Path::new(&staged.path) != Path::new(&request.staging_target_path) {
            return Ok(());
        }
        if let Some(target) = volume.published.keys().next() {
            return Err(Error::failed_precondition(format!(
                "volume {} is still published at {target}: call NodeUnpublishVolume first",
                volume.id
            )));
        }
        let undone = Arc::clone(&volume);
        self.blocking(move |inner| inner.unstage(&undone, &staged)).await?;
        self.put(Volume { staged: None, ..Volume::clone(&volume) }).await?;
        Ok(())
    }
}

#[async_trait]
impl csi::VolumeStats for HostPath {
    async fn node_get_volume_stats(
        &self,
        request: proto::NodeGetVolumeStatsRequest,
    ) -> Result<proto::NodeGetVolumeStatsResponse, Error> {
        use proto::volume_usage::Unit;
        let volume = self.volume(&request.volume_id)?;
        let path = request.volume_path;
        let not_there = format!("volume {} is not at {path:?} on this node", volume.id);
        if !volume.is_at(&path) {
            return Err(Error::not_found(not_there));
        }
        let usage = |unit: Unit, total: u64, used: u64, available: u64| proto::VolumeUsage {
            unit: unit.into(),
            total: i64::try_from(total).unwrap_or(i64::MAX),
            used: i64::try_from(used).unwrap_or(i64::MAX),
            available: i64::try_from(available).unwrap_or(i64::MAX),
        };
        let usage = self
            .blocking(move |_| {
                if volume.backing == Backing::Image {
                    // Nobody but the workload knows how much of a raw device is in use.
                    return Ok(vec![usage(Unit::Bytes, volume.capacity, 0, 0)]);
                }
                let found = match outrigger_sys::usage(Path::new(&path)) {
                    Err(error) if error.is_missing() => return Err(Error::not_found(not_there)),
                    found => found.map_err(crate::Error::from)?,
                };
                Ok(vec![
                    usage(Unit::Bytes, found.total_bytes, found.used_bytes, found.available_bytes),
                    usage(Unit::Inodes, found.total_inodes, found.used_inodes, found.available_inodes),
                ])
            })
            .await?;
        Ok(proto::NodeGetVolumeStatsResponse { usage, volume_condition: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Access;

    fn published(mode: Mode, read_only: bool) -> Published {
        let capability =
            Capability { access: Access::Mount, mode: mode.into(), fs_type: String::new(), mount_flags: Vec::new() };
        Published { capability, read_only }
    }

    #[test]
    fn the_table_of_second_publications() {
        use Publication::{Different, Exclusive, New, Repeated};
        let exclusive = || Exclusive("/a".to_owned());
        for (mode, elsewhere) in [
            (Mode::SingleNodeWriter, exclusive()),
            (Mode::SingleNodeReaderOnly, exclusive()),
            (Mode::SingleNodeSingleWriter, exclusive()),
            (Mode::SingleNodeMultiWriter, New),
            (Mode::MultiNodeReaderOnly, New),
            (Mode::MultiNodeSingleWriter, New),
            (Mode::MultiNodeMultiWriter, New),
        ] {
            let mut volume = crate::volume::tests::plain("a");
            assert_eq!(publication(&volume, "/a", &published(mode, false)), New);
            volume.published.insert("/a".to_owned(), published(mode, false));
            assert_eq!(publication(&volume, "/a", &published(mode, false)), Repeated);
            assert_eq!(publication(&volume, "/a", &published(mode, true)), Different);
            assert_eq!(publication(&volume, "/b", &published(mode, false)), elsewhere, "{mode:?}");
        }
    }
}
