//! A table of bad input, with the answer to each.

use std::collections::HashMap;

use outrigger_csi::proto;
use proto::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::support::*;

#[tokio::test]
async fn bad_input_is_answered_with_what_is_wrong() {
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &["--enable-attach", "--max-volume-size=1Gi"]).await;
    let writer = || mount(Mode::SingleNodeWriter);
    let id = driver.create(creation("there", writer(), MI)).await.unwrap().volume_id;
    let both =
        proto::CreateVolumeRequest { volume_capabilities: vec![writer(), block()], ..creation("a", writer(), MI) };
    let range = |required_bytes, limit_bytes| proto::CreateVolumeRequest {
        capacity_range: Some(proto::CapacityRange { required_bytes, limit_bytes }),
        ..creation("a", block(), 0)
    };
    let elsewhere =
        proto::Topology { segments: HashMap::from([("topology.hostpath.csi/node".to_owned(), "node-2".to_owned())]) };
    let far = proto::CreateVolumeRequest {
        accessibility_requirements: Some(proto::TopologyRequirement { requisite: vec![elsewhere], preferred: vec![] }),
        ..creation("a", writer(), MI)
    };
    for (request, code, text) in [
        (creation("", writer(), MI), Code::InvalidArgument, "name"),
        (
            proto::CreateVolumeRequest { volume_capabilities: vec![], ..creation("a", writer(), MI) },
            Code::InvalidArgument,
            "volume_capabilities",
        ),
        (both, Code::InvalidArgument, "block and mount"),
        (creation("a", writer(), 2 << 30), Code::OutOfRange, "max-volume-size"),
        (creation("a", writer(), i64::MAX), Code::OutOfRange, "max-volume-size"),
        (range(0, 5), Code::OutOfRange, "1Mi"),
        (range(MI + 1, MI + 2), Code::OutOfRange, "multiple"),
        (range(-1, 0), Code::InvalidArgument, "required_bytes"),
        (with(creation("a", writer(), MI), "backing", "tape"), Code::InvalidArgument, "tape"),
        (
            with(creation("a", mount_with("ntfs", &[], Mode::SingleNodeWriter), MI), "backing", "file"),
            Code::InvalidArgument,
            "ntfs",
        ),
        (with(creation("a", block(), MI), "backing", "directory"), Code::InvalidArgument, "block"),
        (with(creation("a", writer(), MI), "kind", "fast"), Code::InvalidArgument, "--capacity"),
        (far, Code::ResourceExhausted, "node-1"),
        (creation("there", block(), MI), Code::AlreadyExists, "mount"),
        (creation("there", writer(), 2 * MI), Code::AlreadyExists, "2Mi"),
        (with(creation("there", writer(), MI), "color", "red"), Code::AlreadyExists, "parameters"),
    ] {
        refused(driver.create(request).await, code, text);
    }
    let missing = "00000000-0000-4000-8000-000000000000";
    for unknown in [missing, "../../etc", "no-uuid", "volumes.journal", "deleted"] {
        driver.delete(unknown).await.unwrap();
        refused(driver.attach(unknown, "node-1", false).await, Code::NotFound, unknown);
        refused(driver.stage(unknown, &place, writer()).await, Code::NotFound, unknown);
        refused(driver.unstage(unknown, &place).await, Code::NotFound, unknown);
        refused(driver.publish(publication(unknown, &place, "target", writer())).await, Code::NotFound, unknown);
        refused(driver.unpublish(unknown, &place, "target").await, Code::NotFound, unknown);
        refused(driver.stats(unknown, place.pod("target")).await, Code::NotFound, unknown);
        refused(driver.stats(unknown, "some/path".to_owned()).await, Code::NotFound, unknown);
        let request = proto::ControllerGetVolumeRequest { volume_id: unknown.to_owned() };
        refused(driver.client.controller_get_volume(request, DEADLINE).await, Code::NotFound, unknown);
    }
    assert!(place.state("volumes.journal").exists() && place.state("deleted").exists());
    refused(driver.attach(&id, "node-2", false).await, Code::NotFound, "node-2");
    driver.detach(&id, "node-2").await.unwrap();
    driver.attach(&id, "node-1", false).await.unwrap();
    refused(driver.stage(&id, &place, block()).await, Code::FailedPrecondition, "mount access");
    refused(
        driver.stage(&id, &place, mount_with("", &["commit=5"], Mode::SingleNodeWriter)).await,
        Code::InvalidArgument,
        "commit=5",
    );
    let stage = |path: String| proto::NodeStageVolumeRequest {
        volume_id: id.clone(),
        staging_target_path: path,
        volume_capability: Some(writer()),
        ..Default::default()
    };
    let inside = place.state("inside").to_str().unwrap().to_owned();
    for (path, text) in [
        (String::new(), "staging_target_path"),
        ("relative".to_owned(), "absolute"),
        ("/".to_owned(), "root"),
        ("/a/../b".to_owned(), ".."),
        (inside, "state directory"),
    ] {
        refused(driver.client.node_stage_volume(stage(path), DEADLINE).await, Code::InvalidArgument, text);
    }
    let nowhere = stage(place.pod("missing/parent"));
    refused(driver.client.node_stage_volume(nowhere, DEADLINE).await, Code::FailedPrecondition, "parent");
    // A failed staging is not recorded.
    driver.detach(&id, "node-1").await.unwrap();
    let mut inline = publication(&id, &place, "target", writer());
    inline.volume_context.insert("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned());
    refused(driver.publish(inline).await, Code::InvalidArgument, "ephemeral");
    refused(driver.page(-1, "").await, Code::InvalidArgument, "max_entries");
    refused(driver.page(1, "invalid-token").await, Code::Aborted, "starting_token");
    refused(driver.page(1, ">x").await, Code::Aborted, "starting_token");
    driver.delete(&id).await.unwrap();
    driver.stop().await;
    place.assert_clean();
}
