//! Creating, listing, capacity and limits, also by many callers at once.

use std::collections::{BTreeSet, HashMap};

use outrigger_csi::proto;
use proto::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::support::*;

#[tokio::test]
async fn fifty_callers_of_one_name_get_one_volume() {
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &[]).await;
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let client = driver.client.clone();
        callers.spawn(async move {
            let mut refusals = 0;
            loop {
                match client.create_volume(creation("same", mount(Mode::SingleNodeWriter), MI), DEADLINE).await {
                    Ok(response) => return (response.volume.unwrap().volume_id, refusals),
                    Err(error) if error.code() == Code::Aborted => refusals += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    let results = callers.join_all().await;
    let ids: BTreeSet<&String> = results.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(driver.page(0, "").await.unwrap().entries.len(), 1);
    let content = fs_err::read_dir(place.dir.join("state")).unwrap().count();
    assert_eq!(content, 4, "one volume beside journal, lock and deleted");
    driver.delete(ids.first().unwrap()).await.unwrap();
    driver.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn pages_show_everything_once_whatever_comes_and_goes() {
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &[]).await;
    let mut ids = BTreeSet::new();
    for n in 0..25 {
        ids.insert(
            driver.create(creation(&format!("pvc-{n}"), mount(Mode::SingleNodeWriter), MI)).await.unwrap().volume_id,
        );
    }
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let page = driver.page(7, &token).await.unwrap();
        assert!(page.entries.len() <= 7);
        seen.extend(page.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id));
        token = page.next_token;
        if token.is_empty() {
            break;
        }
        // The last entry of the page goes, and a new one comes.
        let gone = seen.last().unwrap();
        driver.delete(gone).await.unwrap();
        driver.create(creation(&format!("new-{}", seen.len()), mount(Mode::SingleNodeWriter), MI)).await.unwrap();
    }
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "nothing twice");
    assert!(ids.iter().all(|id| seen.contains(id)), "nothing missing");
    driver.stop().await;
}

#[tokio::test]
async fn pools_and_limits_hold_under_parallel_calls() {
    let place = Place::new();
    let driver = Driver::start(
        place.dir.path(),
        &["--capacity=fast=10Mi", "--capacity=slow=3Mi", "--enable-attach", "--attach-limit=2"],
    )
    .await;
    let capacity = async |kind: &str| {
        let parameters =
            if kind.is_empty() { HashMap::new() } else { HashMap::from([("kind".to_owned(), kind.to_owned())]) };
        let request = proto::GetCapacityRequest { parameters, ..Default::default() };
        let response = driver.client.get_capacity(request, DEADLINE).await.unwrap();
        assert_eq!(response.minimum_volume_size, Some(0));
        (response.available_capacity / MI, response.maximum_volume_size.unwrap() / MI)
    };
    assert_eq!((capacity("").await, capacity("fast").await, capacity("none").await), ((13, 10), (10, 10), (0, 0)));
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..20 {
        let client = driver.client.clone();
        let request = with(creation(&format!("pvc-{n}"), mount(Mode::SingleNodeWriter), 2 * MI), "kind", "fast");
        callers.spawn(async move { client.create_volume(request, DEADLINE).await });
    }
    let results = callers.join_all().await;
    let made: Vec<String> =
        results.iter().filter_map(|result| Some(result.as_ref().ok()?.volume.as_ref()?.volume_id.clone())).collect();
    assert_eq!(made.len(), 5);
    assert!(
        results.iter().filter_map(|result| result.as_ref().err()).all(|error| error.code() == Code::ResourceExhausted)
    );
    assert_eq!(capacity("fast").await, (0, 0));
    let other = driver.create(creation("any", mount(Mode::SingleNodeWriter), 2 * MI)).await.unwrap();
    assert_eq!(capacity("slow").await, (1, 1), "the first pool with room");
    driver.delete(&other.volume_id).await.unwrap();

    let mut attached = 0;
    for id in &made {
        match driver.attach(id, "node-1", false).await {
            Ok(()) => attached += 1,
            Err(error) => assert_eq!(error.code(), Code::ResourceExhausted),
        }
    }
    assert_eq!(attached, 2);
    driver.detach(&made[0], "node-1").await.unwrap();
    driver.attach(&made[4], "node-1", false).await.unwrap();
    let info = driver.client.node_get_info(proto::NodeGetInfoRequest {}, DEADLINE).await.unwrap();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("node-1", 2));
    for id in &made {
        driver.detach(id, "").await.unwrap();
        driver.delete(id).await.unwrap();
    }
    assert_eq!(capacity("fast").await, (10, 10));
    driver.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn capabilities_are_confirmed_or_explained() {
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &[]).await;
    let request = with(creation("a", mount(Mode::SingleNodeWriter), MI), "color", "red");
    let volume = driver.create(request).await.unwrap();
    let validate = async |capability: proto::VolumeCapability, context: HashMap<String, String>| {
        let request = proto::ValidateVolumeCapabilitiesRequest {
            volume_id: volume.volume_id.clone(),
            volume_context: context,
            volume_capabilities: vec![capability],
            ..Default::default()
        };
        driver.client.validate_volume_capabilities(request, DEADLINE).await.unwrap()
    };
    let confirmed = validate(mount(Mode::MultiNodeMultiWriter), volume.volume_context.clone()).await;
    assert_eq!(confirmed.confirmed.unwrap().volume_context, volume.volume_context);
    let refused = validate(block(), HashMap::new()).await;
    assert!(refused.confirmed.is_none() && refused.message.contains("block"), "{refused:?}");
    let refused =
        validate(mount(Mode::SingleNodeWriter), HashMap::from([("color".to_owned(), "blue".to_owned())])).await;
    assert!(refused.confirmed.is_none() && refused.message.contains("volume_context"), "{refused:?}");
    driver.delete(&volume.volume_id).await.unwrap();
    driver.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn attachments_end_with_attaching() {
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &["--enable-attach"]).await;
    let id = driver.create(creation("a", mount(Mode::SingleNodeWriter), MI)).await.unwrap().volume_id;
    driver.attach(&id, "node-1", false).await.unwrap();
    driver.stop().await;
    let driver = Driver::start(place.dir.path(), &[]).await;
    refused(driver.detach(&id, "node-1").await, Code::Unimplemented, "ControllerUnpublishVolume");
    driver.delete(&id).await.unwrap();
    driver.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn a_state_directory_has_one_driver_and_only_whole_records() {
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &[]).await;
    let volume = driver.create(creation("a", mount(Mode::SingleNodeWriter), MI)).await.unwrap();
    let error = start_error(&place, &[]).await;
    assert!(error.contains("in use by another driver"), "{error}");
    driver.stop().await;
    let journal = place.state("volumes.journal");
    let whole = fs_err::read(&journal).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    // A later record, written when the damaged one had long been on disk.
    let driver = Driver::start(place.dir.path(), &[]).await;
    driver.create(creation("b", mount(Mode::SingleNodeWriter), MI)).await.unwrap();
    driver.stop().await;
    let rest = fs_err::read(&journal).unwrap()[whole.len()..].to_vec();
    damaged.extend(&rest);
    fs_err::write(&journal, &damaged).unwrap();
    let error = start_error(&place, &[]).await;
    assert!(error.contains("volumes.journal") && error.contains("byte "), "{error}");
    assert!(place.state(&volume.volume_id).exists());
    fs_err::write(&journal, [whole, rest].concat()).unwrap();
    let driver = Driver::start(place.dir.path(), &[]).await;
    assert_eq!(driver.page(0, "").await.unwrap().entries.len(), 2);
    driver.stop().await;
}
