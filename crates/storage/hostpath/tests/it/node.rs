//! Volumes on their way to pods and back.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use outrigger_csi::proto;
use proto::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::support::*;

#[tokio::test]
async fn a_directory_volume_from_claim_to_pod_and_back() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &["--enable-attach"]).await;
    let volume = driver.create(creation("pvc-1", mount(Mode::SingleNodeWriter), 5 * MI)).await.unwrap();
    let id = volume.volume_id.clone();
    assert_eq!(volume.capacity_bytes, 5 * MI);
    let segments = HashMap::from([("topology.hostpath.csi/node".to_owned(), "node-1".to_owned())]);
    assert_eq!(volume.accessible_topology, [proto::Topology { segments }]);
    assert_eq!(fs_err::metadata(place.state(&id)).unwrap().permissions().mode() & 0o7777, 0o777);

    let capability = mount(Mode::SingleNodeWriter);
    refused(driver.stage(&id, &place, capability.clone()).await, Code::FailedPrecondition, "not attached");
    driver.attach(&id, "node-1", false).await.unwrap();
    driver.attach(&id, "node-1", false).await.unwrap();
    let request = publication(&id, &place, "target", capability.clone());
    refused(driver.publish(request.clone()).await, Code::FailedPrecondition, "not staged");
    driver.stage(&id, &place, capability.clone()).await.unwrap();
    driver.stage(&id, &place, capability.clone()).await.unwrap();
    driver.publish(request.clone()).await.unwrap();
    driver.publish(request.clone()).await.unwrap();
    let file = Path::new(&place.pod("target")).join("file");
    fs_err::write(&file, "kept").unwrap();

    let usage = driver.stats(&id, place.pod("target")).await.unwrap();
    assert_eq!(usage.len(), 2);
    assert!(usage.iter().all(|usage| usage.total > 0 && usage.used > 0));
    refused(driver.stats(&id, place.pod("elsewhere")).await, Code::NotFound, "not at");
    refused(driver.stats(&id, "some/path".to_owned()).await, Code::NotFound, "not at");
    let entry = driver.page(0, "").await.unwrap().entries.remove(0);
    assert_eq!(entry.status.unwrap().published_node_ids, ["node-1"]);

    // A restart changes nothing for the pod.
    driver.stop().await;
    assert_eq!(fs_err::read_to_string(&file).unwrap(), "kept");
    let driver = Driver::start(place.dir.path(), &["--enable-attach"]).await;
    assert_eq!(driver.create(creation("pvc-1", mount(Mode::SingleNodeWriter), 5 * MI)).await.unwrap(), volume);
    driver.publish(request).await.unwrap();

    refused(driver.delete(&id).await, Code::FailedPrecondition, "NodeUnpublishVolume");
    refused(driver.unstage(&id, &place).await, Code::FailedPrecondition, "still published");
    driver.unpublish(&id, &place, "target").await.unwrap();
    driver.unpublish(&id, &place, "target").await.unwrap();
    assert!(!Path::new(&place.pod("target")).exists());
    refused(driver.delete(&id).await, Code::FailedPrecondition, "NodeUnstageVolume");
    driver.unstage(&id, &place).await.unwrap();
    driver.unstage(&id, &place).await.unwrap();
    refused(driver.delete(&id).await, Code::FailedPrecondition, "ControllerUnpublishVolume");
    driver.detach(&id, "node-1").await.unwrap();
    driver.detach(&id, "node-1").await.unwrap();
    assert_eq!(fs_err::read_to_string(place.state(&id).join("file")).unwrap(), "kept");
    driver.delete(&id).await.unwrap();
    driver.delete(&id).await.unwrap();
    driver.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn a_block_volume_is_a_device_also_read_only() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &[]).await;
    let volume = driver.create(creation("raw", block(), 3 * MI + 1)).await.unwrap();
    let id = volume.volume_id;
    assert_eq!(volume.capacity_bytes, 4 * MI);
    driver.stage(&id, &place, block()).await.unwrap();
    driver.publish(publication(&id, &place, "device", block())).await.unwrap();
    let mut read_only = publication(&id, &place, "read-only", block());
    read_only.readonly = true;
    driver.publish(read_only).await.unwrap();

    let target = PathBuf::from(place.pod("device"));
    assert!(fs_err::metadata(&target).unwrap().file_type().is_block_device());
    let entries = driver.page(0, "").await.unwrap().entries;
    assert_eq!(entries[0].status.clone().unwrap_or_default().published_node_ids, [""; 0], "there is no attaching");
    let mut device = fs_err::OpenOptions::new().read(true).write(true).open(&target).unwrap();
    assert_eq!(device.seek(SeekFrom::End(0)).unwrap(), 4 << 20);
    device.seek(SeekFrom::Start(MI.unsigned_abs())).unwrap();
    device.write_all(b"written by the pod").unwrap();
    device.sync_all().unwrap();
    drop(device);
    let refusal = fs_err::OpenOptions::new().write(true).open(place.pod("read-only")).and_then(|mut device| {
        device.write_all(b"x")?;
        device.sync_all()
    });
    assert!(refusal.is_err());
    let usage = driver.stats(&id, place.pod("device")).await.unwrap();
    assert_eq!(usage.len(), 1);
    assert_eq!((usage[0].total, usage[0].unit()), (4 * MI, proto::volume_usage::Unit::Bytes));

    driver.unpublish(&id, &place, "device").await.unwrap();
    driver.unpublish(&id, &place, "read-only").await.unwrap();
    driver.unstage(&id, &place).await.unwrap();
    let mut image = fs_err::File::open(place.state(&id)).unwrap();
    let mut found = [0; 18];
    image.seek(SeekFrom::Start(MI.unsigned_abs())).unwrap();
    image.read_exact(&mut found).unwrap();
    assert_eq!(&found, b"written by the pod");
    driver.delete(&id).await.unwrap();
    driver.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn a_file_system_volume_enforces_its_size() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &[]).await;
    let capability = || mount_with("ext4", &["noexec", "commit=30"], Mode::SingleNodeWriter);
    let volume = driver.create(with(creation("sized", capability(), 20 * MI), "backing", "file")).await.unwrap();
    let id = volume.volume_id;
    let other = mount_with("xfs", &[], Mode::SingleNodeWriter);
    refused(driver.stage(&id, &place, other).await, Code::FailedPrecondition, "ext4");
    driver.stage(&id, &place, capability()).await.unwrap();
    driver.publish(publication(&id, &place, "target", capability())).await.unwrap();
    let file = Path::new(&place.pod("target")).join("file");
    let full = fs_err::write(&file, vec![1; 21 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    fs_err::write(&file, "kept").unwrap();
    let options = outrigger_sys::mountinfo::read().unwrap();
    let options = options.iter().find(|mount| mount.target == Path::new(&place.pod("target"))).unwrap();
    assert!(
        options.options.contains(&"noexec".to_owned()) && options.filesystem_options.contains(&"commit=30".to_owned())
    );
    let usage = driver.stats(&id, place.pod("target")).await.unwrap();
    assert!(usage[0].total < 20 * MI && usage[1].total > 0);
    driver.unpublish(&id, &place, "target").await.unwrap();
    driver.unstage(&id, &place).await.unwrap();

    // The second time it is not formatted again.
    driver.stage(&id, &place, capability()).await.unwrap();
    assert_eq!(fs_err::read_to_string(Path::new(&place.pod("staging")).join("file")).unwrap(), "kept");
    driver.unstage(&id, &place).await.unwrap();
    let wrong = mount_with("ext4", &["no-such-option"], Mode::SingleNodeWriter);
    refused(driver.stage(&id, &place, wrong).await, Code::InvalidArgument, "no-such-option");
    driver.unstage(&id, &place).await.unwrap();
    driver.delete(&id).await.unwrap();
    driver.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn read_only_by_request_by_mode_and_by_attachment() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &["--enable-attach"]).await;
    let id = driver.create(creation("a", mount(Mode::MultiNodeMultiWriter), MI)).await.unwrap().volume_id;
    let capability = mount(Mode::MultiNodeMultiWriter);
    driver.attach(&id, "node-1", false).await.unwrap();
    driver.stage(&id, &place, capability.clone()).await.unwrap();
    let mut by_request = publication(&id, &place, "by-request", capability.clone());
    by_request.readonly = true;
    driver.publish(by_request.clone()).await.unwrap();
    driver.publish(publication(&id, &place, "by-mode", mount(Mode::MultiNodeReaderOnly))).await.unwrap();
    driver.publish(publication(&id, &place, "writable", capability.clone())).await.unwrap();
    let writes = |target: &str| fs_err::write(Path::new(&place.pod(target)).join("file"), "x");
    assert!(writes("by-request").is_err() && writes("by-mode").is_err());
    writes("writable").unwrap();
    by_request.readonly = false;
    refused(driver.publish(by_request).await, Code::AlreadyExists, "readonly");
    for target in ["by-request", "by-mode", "writable"] {
        driver.unpublish(&id, &place, target).await.unwrap();
    }
    driver.unstage(&id, &place).await.unwrap();

    refused(driver.attach(&id, "node-1", true).await, Code::AlreadyExists, "readonly");
    driver.detach(&id, "").await.unwrap();
    driver.attach(&id, "node-1", true).await.unwrap();
    driver.stage(&id, &place, capability.clone()).await.unwrap();
    driver.publish(publication(&id, &place, "by-attachment", capability)).await.unwrap();
    assert!(writes("by-attachment").is_err());
    driver.unpublish(&id, &place, "by-attachment").await.unwrap();
    driver.unstage(&id, &place).await.unwrap();
    driver.detach(&id, "node-1").await.unwrap();
    driver.delete(&id).await.unwrap();
    driver.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn second_publications_follow_the_table() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &[]).await;
    for (mode, shared) in [
        (Mode::SingleNodeWriter, false),
        (Mode::SingleNodeSingleWriter, false),
        (Mode::SingleNodeMultiWriter, true),
        (Mode::MultiNodeMultiWriter, true),
    ] {
        let id = driver.create(creation("a", mount(mode), MI)).await.unwrap().volume_id;
        driver.stage(&id, &place, mount(mode)).await.unwrap();
        let other_flags = mount_with("", &["noexec"], mode);
        refused(driver.stage(&id, &place, other_flags.clone()).await, Code::AlreadyExists, "another capability");
        driver.publish(publication(&id, &place, "one", mount(mode))).await.unwrap();
        driver.publish(publication(&id, &place, "one", mount(mode))).await.unwrap();
        refused(
            driver.publish(publication(&id, &place, "one", other_flags)).await,
            Code::AlreadyExists,
            "published at",
        );
        let second = driver.publish(publication(&id, &place, "two", mount(mode))).await;
        if shared {
            second.unwrap();
            driver.unpublish(&id, &place, "two").await.unwrap();
        } else {
            refused(second, Code::FailedPrecondition, "one target");
            assert!(!Path::new(&place.pod("two")).exists());
        }
        driver.unpublish(&id, &place, "one").await.unwrap();
        driver.unstage(&id, &place).await.unwrap();
        driver.delete(&id).await.unwrap();
    }
    driver.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn what_others_mounted_or_wrote_is_left_alone() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &[]).await;
    let capability = mount(Mode::SingleNodeWriter);
    let id = driver.create(creation("a", capability.clone(), MI)).await.unwrap().volume_id;
    driver.stage(&id, &place, capability.clone()).await.unwrap();
    let foreign = PathBuf::from(place.pod("foreign"));
    fs_err::create_dir(&foreign).unwrap();
    let flags = outrigger_sys::mount::MountFlags::empty();
    outrigger_sys::mount::mount(Path::new("tmpfs"), &foreign, "tmpfs", flags, "size=65536").unwrap();
    let request = || publication(&id, &place, "foreign", capability.clone());
    refused(driver.publish(request()).await, Code::FailedPrecondition, "mount point");
    refused(driver.unpublish(&id, &place, "foreign").await, Code::FailedPrecondition, "mount point");
    outrigger_sys::mount::unmount(&foreign).unwrap();
    fs_err::write(foreign.join("file"), "x").unwrap();
    refused(driver.unpublish(&id, &place, "foreign").await, Code::FailedPrecondition, "has content");
    assert!(foreign.join("file").exists());
    fs_err::remove_file(foreign.join("file")).unwrap();
    fs_err::write(place.pod("file"), "").unwrap();
    let onto_file = publication(&id, &place, "file", capability.clone());
    refused(driver.publish(onto_file).await, Code::FailedPrecondition, "not a directory");
    fs_err::remove_file(place.pod("file")).unwrap();
    // As a kubelet does after a reboot: there is a directory, and no mount.
    driver.unpublish(&id, &place, "foreign").await.unwrap();
    assert!(!foreign.exists());

    // A pod that still uses the volume keeps it; afterwards the call gets through.
    driver.publish(publication(&id, &place, "target", capability)).await.unwrap();
    let user = fs_err::File::create(Path::new(&place.pod("target")).join("open")).unwrap();
    refused(driver.unpublish(&id, &place, "target").await, Code::Internal, "busy");
    drop(user);
    driver.unpublish(&id, &place, "target").await.unwrap();
    driver.unstage(&id, &place).await.unwrap();
    driver.delete(&id).await.unwrap();
    driver.stop().await;
    place.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_cannot_be_attached_does_not_stop_the_driver() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &[]).await;
    let id = driver.create(creation("raw", block(), MI)).await.unwrap().volume_id;
    let image = place.state(&id);
    driver.stage(&id, &place, block()).await.unwrap();
    driver.publish(publication(&id, &place, "device", block())).await.unwrap();
    driver.stop().await;

    // The device goes, and something stands in the place of the image that no device can be made of.
    for device in outrigger_sys::loopdev::find(&image).unwrap() {
        device.detach().unwrap();
    }
    let aside = place.dir.join("aside");
    fs_err::rename(&image, &aside).unwrap();
    fs_err::create_dir(&image).unwrap();
    let driver = Driver::start(place.dir.path(), &[]).await;
    let other = driver.create(creation("other", mount(Mode::SingleNodeWriter), MI)).await.unwrap();
    driver.delete(&other.volume_id).await.unwrap();
    // The record of the volume is what it was.
    refused(driver.delete(&id).await, Code::FailedPrecondition, "published");
    refused(driver.stage(&id, &place, block()).await, Code::Internal, "kernel");

    fs_err::remove_dir(&image).unwrap();
    fs_err::rename(&aside, &image).unwrap();
    driver.stage(&id, &place, block()).await.unwrap();
    driver.publish(publication(&id, &place, "device", block())).await.unwrap();
    assert_eq!(outrigger_sys::loopdev::find(&image).unwrap().len(), 1);
    driver.unpublish(&id, &place, "device").await.unwrap();
    driver.unstage(&id, &place).await.unwrap();
    assert_eq!(outrigger_sys::loopdev::find(&image).unwrap(), []);
    driver.delete(&id).await.unwrap();
    driver.stop().await;
    place.assert_clean();
}
