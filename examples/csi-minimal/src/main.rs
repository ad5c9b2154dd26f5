//! A CSI driver whose volumes are directories, bind mounted where workloads want them.
//!
//! Run `csi-minimal unix:///run/csi-minimal.sock /var/lib/csi-minimal node-1`. A volume's id follows from its name, so
//! disk and mount table are all the state. Sizes are not enforced: the driver says that capacities are unknown (0).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_csi::proto::validate_volume_capabilities_response::Confirmed;
use outrigger_csi::proto::{self, volume_capability::AccessType, volume_capability::access_mode::Mode};
use outrigger_csi::{Controller, CreateDeleteVolume, Error, Identity, Node, Plugin};
use outrigger_sys::mount::{self, MountFlags};
use outrigger_sys::mountinfo::{self, Mount};
use tonic::async_trait;
use uuid::Uuid;

struct Driver {
    volumes: PathBuf,
    node_id: String,
}

impl Driver {
    /// The directory of a volume that exists. Ids are parsed, so none of them can lead elsewhere.
    fn directory(&self, volume_id: &str) -> Result<PathBuf, Error> {
        let directory = Uuid::try_parse(volume_id).map(|id| self.volumes.join(id.to_string())).ok();
        directory
            .filter(|directory| directory.is_dir())
            .ok_or_else(|| Error::not_found(format!("volume {volume_id:?} does not exist")))
    }
}

fn internal<E: std::error::Error + Send + Sync + 'static>(what: &str) -> impl FnOnce(E) -> Error {
    move |error| Error::internal(what).with_source(error)
}

/// Where a volume is mounted now, by the kernel's word.
fn mounts(directory: &Path) -> Result<Vec<Mount>, Error> {
    let table = mountinfo::read().map_err(internal("cannot see the mounts"))?;
    let id = directory.file_name().unwrap_or_default();
    Ok(table.into_iter().filter(|mount| mount.root.ends_with(id)).collect())
}

fn in_use(mount: &Mount) -> Error {
    Error::failed_precondition(format!("the volume is in use at {}", mount.target.display()))
}

/// The target as the mount table spells it. Its parent exists, the target itself may not yet.
fn resolve(target: &str) -> Result<PathBuf, Error> {
    let (parent, name) = target.trim_end_matches('/').rsplit_once('/').unwrap_or_default();
    let parent = fs_err::canonicalize(format!("{parent}/")).map_err(internal("cannot find the target's parent"))?;
    Ok(parent.join(name))
}

/// Directories can be mounted on the one node that they are on, and have no settings.
fn supported(capability: &proto::VolumeCapability) -> Result<(), Error> {
    let writer = capability.access_mode.unwrap_or_default().mode() == Mode::SingleNodeWriter;
    match &capability.access_type {
        Some(AccessType::Mount(mount)) if writer && mount.fs_type.is_empty() && mount.mount_flags.is_empty() => Ok(()),
        _ => Err(Error::invalid_argument("only SINGLE_NODE_WRITER mounts without fs_type and flags are supported")),
    }
}

impl Identity for Driver {
    fn name(&self) -> &'static str {
        "minimal.csi.example.org"
    }
    fn vendor_version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }
}

#[async_trait]
impl Controller for Driver {
    async fn validate_volume_capabilities(
        &self,
        request: proto::ValidateVolumeCapabilitiesRequest,
    ) -> Result<proto::ValidateVolumeCapabilitiesResponse, Error> {
        self.directory(&request.volume_id)?;
        if let Err(error) = request.volume_capabilities.iter().try_for_each(supported) {
            return Ok(proto::ValidateVolumeCapabilitiesResponse { message: error.to_string(), confirmed: None });
        }
        let confirmed = Some(Confirmed { volume_capabilities: request.volume_capabilities, ..Default::default() });
        Ok(proto::ValidateVolumeCapabilitiesResponse { confirmed, message: String::new() })
    }
}

#[async_trait]
impl CreateDeleteVolume for Driver {
    async fn create_volume(&self, request: proto::CreateVolumeRequest) -> Result<proto::Volume, Error> {
        request.volume_capabilities.iter().try_for_each(supported)?;
        if let Some(name) = request.parameters.keys().next() {
            return Err(Error::invalid_argument(format!("parameter {name:?} is unknown: there are none")));
        }
        let volume_id = Uuid::new_v5(&Uuid::NAMESPACE_OID, request.name.as_bytes()).to_string();
        fs_err::create_dir_all(self.volumes.join(&volume_id)).map_err(internal("cannot make the volume"))?;
        Ok(proto::Volume { volume_id, ..Default::default() })
    }

    async fn delete_volume(&self, request: proto::DeleteVolumeRequest) -> Result<(), Error> {
        let Ok(directory) = self.directory(&request.volume_id) else { return Ok(()) };
        mounts(&directory)?.first().map_or(Ok(()), |mount| Err(in_use(mount)))?;
        fs_err::tokio::remove_dir_all(directory).await.map_err(internal("cannot delete the volume"))
    }
}

#[async_trait]
impl Node for Driver {
    async fn node_get_info(&self) -> Result<proto::NodeGetInfoResponse, Error> {
        Ok(proto::NodeGetInfoResponse { node_id: self.node_id.clone(), ..Default::default() })
    }

    async fn node_publish_volume(&self, request: proto::NodePublishVolumeRequest) -> Result<(), Error> {
        let directory = self.directory(&request.volume_id)?;
        request.volume_capability.iter().try_for_each(supported)?;
        let target = resolve(&request.target_path)?;
        if let Some(mount) = mounts(&directory)?.first() {
            return match (mount.target == target, mount.is_read_only() == request.readonly) {
                (true, true) => Ok(()),
                (true, false) => Err(Error::already_exists("the volume is mounted there with another readonly")),
                (false, _) => Err(in_use(mount)),
            };
        }
        let flags = if request.readonly { MountFlags::RDONLY } else { MountFlags::empty() };
        fs_err::create_dir_all(&target).map_err(internal("cannot make the target"))?;
        mount::bind_with(&directory, &target, flags).map_err(internal("cannot mount"))
    }

    async fn node_unpublish_volume(&self, request: proto::NodeUnpublishVolumeRequest) -> Result<(), Error> {
        let directory = self.directory(&request.volume_id)?;
        let Ok(target) = resolve(&request.target_path) else { return Ok(()) };
        if mounts(&directory)?.iter().any(|mount| mount.target == target) {
            mount::unmount(&target).map_err(internal("cannot unmount"))?;
        }
        if target.exists() { fs_err::remove_dir(&target).map_err(internal("cannot remove the target")) } else { Ok(()) }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    outrigger_daemon::init_logs(&outrigger_daemon::LogOptions::default());
    let arguments: Result<[String; 3], _> = std::env::args().skip(1).collect::<Vec<_>>().try_into();
    let [endpoint, volumes, node_id] =
        arguments.map_err(|_| anyhow::anyhow!("usage: csi-minimal SOCKET DIRECTORY NODE"))?;
    fs_err::create_dir_all(&volumes)?;
    let driver = Arc::new(Driver { volumes: fs_err::canonicalize(volumes)?, node_id });
    let plugin = Plugin::new(driver.clone()).controller(driver.clone()).create_delete_volume(driver.clone());
    let shutdown = outrigger_daemon::Shutdown::on_signals()?;
    Ok(plugin.node(driver).serve(&endpoint.parse()?, async move { shutdown.cancelled().await }).await?)
}
