//! The example driver as a process, driven over its socket as Kubernetes would.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say what they skip"
)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger_csi::proto::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};
use outrigger_csi::{Client, ControllerCapability, Endpoint, call_json, proto};
use tonic::Code;

const DEADLINE: Duration = Duration::from_secs(30);

/// Takes a mount away, if a failing test has left it.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        if outrigger_sys::mount::is_mount_point(&self.0).unwrap_or(false) {
            outrigger_sys::mount::unmount_detach(&self.0).unwrap();
        }
    }
}

fn capability(mode: Mode) -> proto::VolumeCapability {
    proto::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn create(name: &str) -> proto::CreateVolumeRequest {
    proto::CreateVolumeRequest {
        name: name.into(),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        ..Default::default()
    }
}

fn publish(volume_id: &str, target: &Path, readonly: bool) -> proto::NodePublishVolumeRequest {
    proto::NodePublishVolumeRequest {
        volume_id: volume_id.into(),
        target_path: target.display().to_string(),
        volume_capability: Some(capability(Mode::SingleNodeWriter)),
        readonly,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_volume_from_its_creation_to_its_deletion() {
    let scratch = tempfile::tempdir().unwrap();
    let scratch_path = fs_err::canonicalize(scratch.path()).unwrap();
    let endpoint: Endpoint = scratch_path.join("csi.sock").display().to_string().parse().unwrap();
    let mut driver = tokio::process::Command::new(env!("CARGO_BIN_EXE_csi-minimal"))
        .arg(endpoint.to_string())
        .arg(scratch_path.join("volumes"))
        .arg("node-1")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let client = Client::connect(&endpoint, DEADLINE).await.unwrap();
    client.wait_ready().await.unwrap();
    assert_eq!(client.plugin_info(DEADLINE).await.unwrap().name, "minimal.csi.example.org");
    let capabilities = client.capabilities(DEADLINE).await.unwrap();
    assert!(capabilities.has(ControllerCapability::CreateDeleteVolume));
    let info = call_json(&client, "node-get-info", "", DEADLINE).await.unwrap();
    assert!(info.contains(r#""node_id":"node-1""#), "{info}");

    let volume = client.create_volume(create("../a volume"), DEADLINE).await.unwrap().volume.unwrap();
    let again = client.create_volume(create("../a volume"), DEADLINE).await.unwrap().volume.unwrap();
    assert_eq!(volume, again);
    let directory = scratch_path.join("volumes").join(&volume.volume_id);
    assert!(directory.is_dir());
    let mut wrong = create("b");
    wrong.volume_capabilities = vec![capability(Mode::MultiNodeMultiWriter)];
    assert_eq!(client.create_volume(wrong, DEADLINE).await.unwrap_err().code(), Code::InvalidArgument);

    if rustix::process::geteuid().is_root() {
        mounts(&client, &volume.volume_id, &directory, &scratch_path).await;
    } else {
        eprintln!("mounting is not tested: it needs root");
    }

    let delete = proto::DeleteVolumeRequest { volume_id: volume.volume_id, ..Default::default() };
    client.delete_volume(delete.clone(), DEADLINE).await.unwrap();
    client.delete_volume(delete, DEADLINE).await.unwrap();
    assert!(!directory.exists());

    let pid = driver.id().and_then(|pid| rustix::process::Pid::from_raw(pid.try_into().unwrap())).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    drop(client);
    assert!(driver.wait().await.unwrap().success());
    assert!(!endpoint.path().exists());
}

async fn mounts(client: &Client, volume_id: &str, directory: &Path, scratch: &Path) {
    let target = scratch.join("target");
    let _unmount = Unmount(target.clone());
    client.node_publish_volume(publish(volume_id, &target, false), DEADLINE).await.unwrap();
    client.node_publish_volume(publish(volume_id, &target, false), DEADLINE).await.unwrap();
    fs_err::write(target.join("file"), "content").unwrap();
    assert_eq!(fs_err::read_to_string(directory.join("file")).unwrap(), "content");

    let refused = async |request| client.node_publish_volume(request, DEADLINE).await.unwrap_err().code();
    assert_eq!(refused(publish(volume_id, &target, true)).await, Code::AlreadyExists);
    assert_eq!(refused(publish(volume_id, &scratch.join("other"), false)).await, Code::FailedPrecondition);
    assert!(!scratch.join("other").exists());
    let unknown = "00000000-0000-0000-0000-000000000000";
    assert_eq!(refused(publish(unknown, &target, false)).await, Code::NotFound);
    let delete = proto::DeleteVolumeRequest { volume_id: volume_id.into(), ..Default::default() };
    assert_eq!(client.delete_volume(delete, DEADLINE).await.unwrap_err().code(), Code::FailedPrecondition);

    let unpublish =
        proto::NodeUnpublishVolumeRequest { volume_id: volume_id.into(), target_path: target.display().to_string() };
    client.node_unpublish_volume(unpublish.clone(), DEADLINE).await.unwrap();
    client.node_unpublish_volume(unpublish.clone(), DEADLINE).await.unwrap();
    assert!(!target.exists());

    client.node_publish_volume(publish(volume_id, &target, true), DEADLINE).await.unwrap();
    assert!(fs_err::write(target.join("file"), "other").is_err());
    assert_eq!(fs_err::read_to_string(target.join("file")).unwrap(), "content");
    client.node_unpublish_volume(unpublish, DEADLINE).await.unwrap();
}
