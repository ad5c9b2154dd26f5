//! Crash sweeps: each flow is stopped after its n-th outside effect, for every n, and has to converge after a restart.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use outrigger_csi::{CreateDeleteVolume, Error, ListVolumes, Node, Page, PublishVolume, StageVolume, proto};
use proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

use crate::driver::HostPath;
use crate::fault::Fault;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    Filesystem,
    Block,
}

fn capability(kind: Kind) -> proto::VolumeCapability {
    proto::VolumeCapability {
        access_mode: Some(AccessMode { mode: 1 }),
        access_type: Some(match kind {
            Kind::Block => AccessType::Block(BlockVolume {}),
            Kind::Directory | Kind::Filesystem => AccessType::Mount(MountVolume::default()),
        }),
    }
}

/// A place for one run of a flow.
struct Place {
    dir: tempfile::TempDir,
    kind: Kind,
}

impl Place {
    fn new(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir(dir.path().join("pod")).unwrap();
        Self { dir, kind }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join("pod").join(name).to_str().unwrap().to_owned()
    }

    /// A start of the driver, which may be stopped during recovery, too.
    async fn start(&self, fault: Fault) -> Result<HostPath, crate::Error> {
        let mut config = crate::options::tests::config(&["--enable-attach"]).unwrap();
        config.state_dir = self.state();
        config.fault = fault;
        HostPath::open(config).await
    }

    async fn create(&self, driver: &HostPath) -> Result<String, Error> {
        let mut request = proto::CreateVolumeRequest {
            name: "pvc-1".to_owned(),
            volume_capabilities: vec![capability(self.kind)],
            capacity_range: Some(proto::CapacityRange { required_bytes: 16 << 20, limit_bytes: 0 }),
            ..proto::CreateVolumeRequest::default()
        };
        if self.kind == Kind::Filesystem {
            request.parameters.insert("backing".to_owned(), "file".to_owned());
        }
        Ok(driver.create_volume(request).await?.volume_id)
    }

    async fn delete(&self, driver: &HostPath, volume_id: &str) -> Result<(), Error> {
        driver.delete_volume(proto::DeleteVolumeRequest { volume_id: volume_id.to_owned(), ..Default::default() }).await
    }

    /// From a volume to a pod that uses it.
    async fn bring_up(&self, driver: &HostPath, volume_id: &str) -> Result<(), Error> {
        let attach = proto::ControllerPublishVolumeRequest {
            volume_id: volume_id.to_owned(),
            node_id: "node-1".to_owned(),
            volume_capability: Some(capability(self.kind)),
            ..Default::default()
        };
        driver.controller_publish_volume(attach).await?;
        let stage = proto::NodeStageVolumeRequest {
            volume_id: volume_id.to_owned(),
            staging_target_path: self.at("staging"),
            volume_capability: Some(capability(self.kind)),
            ..Default::default()
        };
        driver.node_stage_volume(stage).await?;
        let publish = proto::NodePublishVolumeRequest {
            volume_id: volume_id.to_owned(),
            staging_target_path: self.at("staging"),
            target_path: self.at("target"),
            volume_capability: Some(capability(self.kind)),
            readonly: true,
            ..Default::default()
        };
        driver.node_publish_volume(publish).await
    }

    /// And back.
    async fn take_down(&self, driver: &HostPath, volume_id: &str) -> Result<(), Error> {
        let volume_id = volume_id.to_owned();
        let unpublish =
            proto::NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path: self.at("target") };
        driver.node_unpublish_volume(unpublish).await?;
        let unstage =
            proto::NodeUnstageVolumeRequest { volume_id: volume_id.clone(), staging_target_path: self.at("staging") };
        driver.node_unstage_volume(unstage).await?;
        let detach = proto::ControllerUnpublishVolumeRequest { volume_id, ..Default::default() };
        driver.controller_unpublish_volume(detach).await
    }

    /// The volumes that the driver knows, after checking that the state directory holds the same.
    async fn volumes(&self, driver: &HostPath) -> BTreeSet<String> {
        let listed: BTreeSet<String> = driver
            .list_volumes(Page::default())
            .await
            .unwrap()
            .entries
            .into_iter()
            .map(|entry| entry.volume.unwrap().volume_id)
            .collect();
        let fixed = ["deleted", "lock", crate::journal::FILE];
        let found: BTreeSet<String> =
            names(&self.state()).into_iter().filter(|name| !fixed.contains(&name.as_str())).collect();
        assert_eq!(found, listed, "content and records differ");
        assert_eq!(names(&self.state().join("deleted")), BTreeSet::new());
        listed
    }

    /// Nothing of the volumes is left in the kernel or the pod's directory.
    fn assert_clean(&self) {
        let below = |path: &Path| path.starts_with(self.dir.path());
        let mounts = outrigger_sys::mountinfo::read().unwrap();
        let left: Vec<_> = mounts.iter().filter(|mount| below(&mount.target)).collect();
        assert!(left.is_empty(), "{left:?}");
        let devices = outrigger_sys::loopdev::attached().unwrap();
        let left: Vec<_> = devices.iter().filter(|(_, file)| below(file)).collect();
        assert!(left.is_empty(), "{left:?}");
        // The staging directory is the caller's.
        let pods = names(&self.dir.path().join("pod"));
        assert!(pods.iter().all(|name| name == "staging"), "{pods:?}");
    }
}

impl Drop for Place {
    /// A failed test must not leave mounts behind.
    fn drop(&mut self) {
        for name in ["target", "staging"] {
            while outrigger_sys::mount::unmount_detach(Path::new(&self.at(name))).is_ok() {}
        }
        for (device, file) in outrigger_sys::loopdev::attached().unwrap_or_default() {
            if file.starts_with(self.dir.path()) {
                let _ = device.detach();
            }
        }
    }
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs_err::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: mounts and loop devices need root");
    }
    root
}

/// Runs `flow` with every number of effects until it gets through.
async fn sweep(flow: impl AsyncFn(u64) -> bool) {
    for effects in 0..200 {
        if flow(effects).await {
            assert!(effects > 3, "the flow has hardly any effects: are they counted?");
            return;
        }
    }
    panic!("the flow never gets through");
}

#[tokio::test]
async fn creation_converges_wherever_it_is_stopped() {
    for kind in [Kind::Directory, Kind::Block, Kind::Filesystem] {
        sweep(async |effects| {
            let place = Place::new(kind);
            // A start makes the journal; the flow proper begins after it.
            drop(place.start(Fault::default()).await.unwrap());
            let first = match place.start(Fault::after(effects)).await {
                Ok(driver) => place.create(&driver).await,
                Err(error) => panic!("a start without work has no effects: {error}"),
            };
            let driver = place.start(Fault::default()).await.unwrap();
            let known = place.volumes(&driver).await;
            if let Ok(id) = &first {
                assert_eq!(known, BTreeSet::from([id.clone()]), "confirmed, so it is there");
            }
            let id = place.create(&driver).await.unwrap();
            assert_eq!(place.volumes(&driver).await, BTreeSet::from([id.clone()]));
            if !known.is_empty() {
                assert!(known.contains(&id), "a second volume under the same name");
            }
            first.is_ok()
        })
        .await;
    }
}

#[tokio::test]
async fn deletion_converges_wherever_it_is_stopped() {
    for kind in [Kind::Directory, Kind::Block] {
        sweep(async |effects| {
            let place = Place::new(kind);
            let driver = place.start(Fault::default()).await.unwrap();
            let id = place.create(&driver).await.unwrap();
            let content = place.state().join(&id);
            let content = if kind == Kind::Directory { content.join("file") } else { content };
            fs_err::write(&content, "precious").unwrap();
            drop(driver);
            let fault = Fault::after(effects);
            let driver = place.start(fault.clone()).await.unwrap();
            let first = place.delete(&driver, &id).await;
            drop(driver);
            let through = fault.asked() <= effects;
            let driver = place.start(Fault::default()).await.unwrap();
            let known = place.volumes(&driver).await;
            if first.is_ok() {
                assert_eq!(known, BTreeSet::new(), "confirmed, so it is gone");
            } else if known.contains(&id) {
                assert_eq!(fs_err::read_to_string(&content).unwrap(), "precious", "all of it or nothing");
            }
            place.delete(&driver, &id).await.unwrap();
            assert_eq!(place.volumes(&driver).await, BTreeSet::new());
            through
        })
        .await;
    }
}

#[tokio::test]
async fn use_on_a_node_converges_wherever_it_is_stopped() {
    if !is_root() {
        return;
    }
    for kind in [Kind::Directory, Kind::Block, Kind::Filesystem] {
        sweep(async |effects| {
            let place = Place::new(kind);
            let driver = place.start(Fault::default()).await.unwrap();
            let id = place.create(&driver).await.unwrap();
            drop(driver);
            let fault = Fault::after(effects);
            let driver = place.start(fault.clone()).await.unwrap();
            let _ = place.bring_up(&driver, &id).await;
            let _ = place.take_down(&driver, &id).await;
            drop(driver);
            let through = fault.asked() <= effects;
            // The caller gives up half of the time, and repeats the other half.
            let driver = place.start(Fault::default()).await.unwrap();
            if effects % 2 == 0 {
                place.bring_up(&driver, &id).await.unwrap();
                let target = place.at("target");
                let written = if kind == Kind::Block {
                    fs_err::OpenOptions::new().write(true).open(&target).and_then(|mut device| {
                        std::io::Write::write_all(&mut device, b"x")?;
                        device.sync_all()
                    })
                } else {
                    assert!(outrigger_sys::mount::is_mount_point(Path::new(&target)).unwrap());
                    fs_err::write(Path::new(&target).join("file"), "x")
                };
                assert!(written.is_err(), "published read-only");
            }
            place.take_down(&driver, &id).await.unwrap();
            place.assert_clean();
            place.delete(&driver, &id).await.unwrap();
            assert_eq!(place.volumes(&driver).await, BTreeSet::new());
            through
        })
        .await;
    }
}

#[tokio::test]
async fn recovery_itself_can_be_stopped() {
    for effects in 0..6 {
        let place = Place::new(Kind::Directory);
        let driver = place.start(Fault::default()).await.unwrap();
        let kept = place.create(&driver).await.unwrap();
        let orphan = crate::volume::VolumeId::random();
        fs_err::create_dir(place.state().join(orphan.to_string())).unwrap();
        let deleted = crate::volume::VolumeId::random();
        fs_err::create_dir(place.state().join("deleted").join(deleted.to_string())).unwrap();
        fs_err::rename(place.state().join(&kept), place.state().join("deleted").join(&kept)).unwrap();
        drop(driver);
        let _ = place.start(Fault::after(effects)).await;
        let driver = place.start(Fault::default()).await.unwrap();
        assert_eq!(place.volumes(&driver).await, BTreeSet::from([kept]));
    }
}

#[tokio::test]
async fn volumes_of_the_original_driver_are_not_overlooked() {
    let place = Place::new(Kind::Directory);
    fs_err::create_dir(place.state()).unwrap();
    let record = place.state().join("state.json");
    fs_err::write(&record, r#"{"Volumes":[{"VolID":"x"}],"Snapshots":null}"#).unwrap();
    let error = place.start(Fault::default()).await.unwrap_err();
    assert!(error.to_string().contains("another hostpath driver"), "{error}");
    assert_eq!(names(&place.state()), BTreeSet::from(["state.json".to_owned()]), "nothing was touched");
    fs_err::write(&record, r#"{"Volumes":[],"Snapshots":null}"#).unwrap();
    place.start(Fault::default()).await.unwrap();
}

#[tokio::test]
async fn a_volume_that_is_being_deleted_is_not_promised_again() {
    let place = Place::new(Kind::Directory);
    let driver = place.start(Fault::default()).await.unwrap();
    let volume_id = place.create(&driver).await.unwrap();
    let hold = driver.hold(&volume_id).unwrap();
    assert_eq!(place.create(&driver).await.unwrap_err().code(), tonic::Code::Aborted);
    drop(hold);
    assert_eq!(place.create(&driver).await.unwrap(), volume_id);
}

#[tokio::test]
async fn content_that_cannot_be_removed_keeps_nobody_from_starting() {
    if !is_root() {
        return;
    }
    let place = Place::new(Kind::Directory);
    let driver = place.start(Fault::default()).await.unwrap();
    let volume_id = place.create(&driver).await.unwrap();
    let busy = place.state().join(&volume_id).join("busy");
    fs_err::create_dir(&busy).unwrap();
    let flags = outrigger_sys::mount::MountFlags::empty();
    outrigger_sys::mount::mount(Path::new("tmpfs"), &busy, "tmpfs", flags, "").unwrap();
    place.delete(&driver, &volume_id).await.unwrap();
    drop(driver);
    let outcome = place.start(Fault::default()).await.map(drop);
    let left = place.state().join("deleted").join(&volume_id);
    outrigger_sys::mount::unmount(&left.join("busy")).unwrap();
    outcome.unwrap();
    drop(place.start(Fault::default()).await.unwrap());
    assert!(!left.exists(), "the next start tries again");
}
