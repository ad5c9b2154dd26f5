//! A running driver, a place for its volumes and pods, and short forms of the calls.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use outrigger_csi::{CallError, Client, proto};
use outrigger_daemon::Shutdown;
use outrigger_hostpath::{Error, Options};
use outrigger_testing::{Leaks, ScratchDir};
use proto::volume_capability::access_mode::Mode;
use proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use tokio::task::JoinHandle;
use tonic::Code;

pub(crate) const DEADLINE: Duration = Duration::from_mins(1);
pub(crate) const MI: i64 = 1 << 20;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    options: Options,
}

/// A running driver and a place for its state and for pods.
pub(crate) struct Driver {
    pub(crate) client: Client,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), Error>>,
}

/// The options of a driver at `place`, and its endpoint.
fn options(place: &Path, socket: &str, flags: &[&str]) -> (Options, String) {
    let endpoint = format!("unix://{}", place.join(socket).display());
    let fixed = [
        "driver".to_owned(),
        "--nodeid=node-1".to_owned(),
        format!("--endpoint={endpoint}"),
        format!("--statedir={}", place.join("state").display()),
    ];
    let arguments = fixed.into_iter().chain(flags.iter().map(|flag| (*flag).to_owned()));
    (Program::parse_from(arguments).options, endpoint)
}

/// Why a driver does not start.
pub(crate) async fn start_error(place: &Place, flags: &[&str]) -> String {
    let (options, _) = options(place.dir.path(), "other.sock", flags);
    outrigger_hostpath::run(options, Shutdown::new()).await.unwrap_err().to_string()
}

impl Driver {
    pub(crate) async fn start(place: &Path, flags: &[&str]) -> Self {
        let (options, endpoint) = options(place, "csi.sock", flags);
        let shutdown = Shutdown::new();
        let task = tokio::spawn(outrigger_hostpath::run(options, shutdown.clone()));
        let client = Client::connect(&endpoint.parse().unwrap(), DEADLINE).await.unwrap();
        client.wait_ready().await.unwrap();
        Self { client, shutdown, task }
    }

    /// Waits until the driver ends by itself.
    pub(crate) async fn ended(self) {
        self.task.await.unwrap().unwrap();
    }

    pub(crate) async fn stop(self) {
        drop(self.client);
        self.shutdown.trigger();
        self.task.await.unwrap().unwrap();
    }
}

/// A scratch directory with a `pod` directory in it; checks at the end that nothing is left in the kernel.
pub(crate) struct Place {
    pub(crate) dir: ScratchDir,
    leaks: Leaks,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = ScratchDir::new().unwrap();
        fs_err::create_dir(dir.join("pod")).unwrap();
        let leaks = Leaks::snapshot([dir.join("pod"), dir.join("state")]).unwrap();
        Self { dir, leaks }
    }

    pub(crate) fn pod(&self, name: &str) -> String {
        self.dir.join("pod").join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn state(&self, id: &str) -> PathBuf {
        self.dir.join("state").join(id)
    }

    /// For the end of a test: what is not of the state directory itself is a leak.
    pub(crate) fn assert_clean(&self) {
        let left: Vec<String> = self
            .leaks
            .since()
            .unwrap()
            .into_iter()
            .filter(|left| {
                !["state", "state/deleted", "state/lock", "state/volumes.journal"].iter().any(|own| left.ends_with(own))
            })
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Drop for Place {
    /// A failed test must not leave mounts behind.
    fn drop(&mut self) {
        let below = |path: &Path| path.starts_with(self.dir.path());
        for mount in outrigger_sys::mountinfo::read().unwrap_or_default().iter().rev() {
            if below(&mount.target) {
                let _ = outrigger_sys::mount::unmount_detach(&mount.target);
            }
        }
        for (device, file) in outrigger_sys::loopdev::attached().unwrap_or_default() {
            if below(&file) {
                let _ = device.detach();
            }
        }
    }
}

pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: mounts and loop devices need root");
    }
    root
}

pub(crate) fn mount(mode: Mode) -> proto::VolumeCapability {
    mount_with("", &[], mode)
}

pub(crate) fn mount_with(fs_type: &str, flags: &[&str], mode: Mode) -> proto::VolumeCapability {
    proto::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: fs_type.to_owned(),
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            volume_mount_group: String::new(),
        })),
    }
}

pub(crate) fn block() -> proto::VolumeCapability {
    proto::VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeMultiWriter.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

pub(crate) fn creation(name: &str, capability: proto::VolumeCapability, bytes: i64) -> proto::CreateVolumeRequest {
    proto::CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![capability],
        capacity_range: Some(proto::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        ..Default::default()
    }
}

pub(crate) fn with(mut request: proto::CreateVolumeRequest, key: &str, value: &str) -> proto::CreateVolumeRequest {
    request.parameters.insert(key.to_owned(), value.to_owned());
    request
}

pub(crate) fn publication(
    id: &str,
    place: &Place,
    target: &str,
    capability: proto::VolumeCapability,
) -> proto::NodePublishVolumeRequest {
    proto::NodePublishVolumeRequest {
        volume_id: id.to_owned(),
        staging_target_path: place.pod("staging"),
        target_path: place.pod(target),
        volume_capability: Some(capability),
        ..Default::default()
    }
}

/// The calls, with what does not matter left out.
impl Driver {
    pub(crate) async fn create(&self, request: proto::CreateVolumeRequest) -> Result<proto::Volume, CallError> {
        Ok(self.client.create_volume(request, DEADLINE).await?.volume.unwrap())
    }

    pub(crate) async fn delete(&self, id: &str) -> Result<(), CallError> {
        let request = proto::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.client.delete_volume(request, DEADLINE).await.map(drop)
    }

    pub(crate) async fn attach(&self, id: &str, node: &str, readonly: bool) -> Result<(), CallError> {
        let request = proto::ControllerPublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: node.to_owned(),
            volume_capability: Some(mount(Mode::SingleNodeWriter)),
            readonly,
            ..Default::default()
        };
        self.client.controller_publish_volume(request, DEADLINE).await.map(drop)
    }

    pub(crate) async fn detach(&self, id: &str, node: &str) -> Result<(), CallError> {
        let request = proto::ControllerUnpublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: node.to_owned(),
            ..Default::default()
        };
        self.client.controller_unpublish_volume(request, DEADLINE).await.map(drop)
    }

    pub(crate) async fn stage(
        &self,
        id: &str,
        place: &Place,
        capability: proto::VolumeCapability,
    ) -> Result<(), CallError> {
        let request = proto::NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: place.pod("staging"),
            volume_capability: Some(capability),
            ..Default::default()
        };
        self.client.node_stage_volume(request, DEADLINE).await.map(drop)
    }

    pub(crate) async fn unstage(&self, id: &str, place: &Place) -> Result<(), CallError> {
        let request =
            proto::NodeUnstageVolumeRequest { volume_id: id.to_owned(), staging_target_path: place.pod("staging") };
        self.client.node_unstage_volume(request, DEADLINE).await.map(drop)?;
        // The staging directory is the caller's.
        match fs_err::remove_dir(place.pod("staging")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => Ok(()),
        }
    }

    pub(crate) async fn publish(&self, request: proto::NodePublishVolumeRequest) -> Result<(), CallError> {
        self.client.node_publish_volume(request, DEADLINE).await.map(drop)
    }

    pub(crate) async fn unpublish(&self, id: &str, place: &Place, target: &str) -> Result<(), CallError> {
        let request = proto::NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: place.pod(target) };
        self.client.node_unpublish_volume(request, DEADLINE).await.map(drop)
    }

    pub(crate) async fn stats(&self, id: &str, path: String) -> Result<Vec<proto::VolumeUsage>, CallError> {
        let request =
            proto::NodeGetVolumeStatsRequest { volume_id: id.to_owned(), volume_path: path, ..Default::default() };
        Ok(self.client.node_get_volume_stats(request, DEADLINE).await?.usage)
    }

    pub(crate) async fn page(&self, max_entries: i32, token: &str) -> Result<proto::ListVolumesResponse, CallError> {
        let request = proto::ListVolumesRequest { max_entries, starting_token: token.to_owned() };
        self.client.list_volumes(request, DEADLINE).await
    }
}

#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, CallError>, code: Code, text: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    assert!(error.status.message().contains(text), "{error}: {text:?} is not in it");
}
