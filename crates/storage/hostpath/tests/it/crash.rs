//! The driver as a process of its own, killed at any moment.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger_csi::{CallError, Client, proto};
use outrigger_testing::Process;
use proto::volume_capability::access_mode::Mode;
use tokio::process::Command;

use crate::support::*;

/// Names the place of the driver that [`serve_until_killed`] is to be.
const PLACE: &str = "OUTRIGGER_TEST_PLACE";

/// Not a test: what the tests below start as a child process.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a child process of other tests"]
async fn serve_until_killed() {
    let Some(place) = std::env::var_os(PLACE) else { return };
    Driver::start(&PathBuf::from(place), &[]).await.ended().await;
}

/// Starts the driver as a child process, to stop by itself after so many effects.
fn child(place: &Path, effects: Option<u64>) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["crash::serve_until_killed", "--exact", "--ignored", "--nocapture"]).env(PLACE, place);
    if let Some(effects) = effects {
        command.env("OUTRIGGER_CRASH_AFTER", effects.to_string());
    }
    Process::spawn(command).unwrap()
}

/// A client of the child, unless that ends before it serves.
async fn client(child: &mut Process, place: &Path) -> Option<Client> {
    let endpoint = format!("unix://{}", place.join("csi.sock").display()).parse().unwrap();
    tokio::select! {
        client = Client::connect(&endpoint, DEADLINE) => Some(client.unwrap()),
        _ = child.wait(DEADLINE) => None,
    }
}

async fn create(client: &Client, name: &str) -> Result<String, CallError> {
    let request = creation(name, mount(Mode::SingleNodeWriter), MI);
    Ok(client.create_volume(request, DEADLINE).await?.volume.unwrap().volume_id)
}

/// The volumes that a driver started anew finds, after checking that there is content for each, and no other.
async fn found(place: &Place) -> BTreeSet<String> {
    let driver = Driver::start(place.dir.path(), &[]).await;
    let listed: BTreeSet<String> =
        driver.page(0, "").await.unwrap().entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
    let names = |path: PathBuf| {
        fs_err::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let mut content: BTreeSet<String> = names(place.dir.join("state"));
    content.retain(|name| !["deleted", "lock", "volumes.journal"].contains(&name.as_str()));
    assert_eq!(content, listed);
    assert_eq!(names(place.state("deleted")), BTreeSet::new());
    driver.stop().await;
    listed
}

#[tokio::test]
#[cfg_attr(not(debug_assertions), ignore = "the driver stops by itself in debug builds only")]
async fn a_process_that_dies_between_any_two_effects_loses_and_leaks_nothing() {
    for effects in 0..100 {
        let place = Place::new();
        let mut process = child(place.dir.path(), Some(effects));
        let (mut created, mut deleted) = (None, false);
        if let Some(client) = client(&mut process, place.dir.path()).await {
            created = create(&client, "pvc-1").await.ok();
            if let Some(volume_id) = created.clone() {
                let request = proto::DeleteVolumeRequest { volume_id, ..Default::default() };
                deleted = client.delete_volume(request, DEADLINE).await.is_ok();
            }
        }
        let through = deleted;
        process.kill().await.unwrap();
        let left = found(&place).await;
        let most = usize::from(!deleted);
        assert!(left.len() <= most, "stopped after {effects}: {left:?}");
        let driver = Driver::start(place.dir.path(), &[]).await;
        let again = create(&driver.client, "pvc-1").await.unwrap();
        if let (Some(left), Some(created)) = (left.first(), &created) {
            assert_eq!((left, left), (created, &again), "stopped after {effects}");
        }
        driver.delete(&again).await.unwrap();
        driver.stop().await;
        assert_eq!(found(&place).await, BTreeSet::new());
        place.assert_clean();
        if through {
            assert!(effects > 8, "are the effects counted?");
            return;
        }
    }
    panic!("the flow never gets through");
}

#[tokio::test]
async fn what_was_confirmed_outlives_a_kill_in_full_flight() {
    let place = Place::new();
    let mut process = child(place.dir.path(), None);
    let client = client(&mut process, place.dir.path()).await.unwrap();
    let (confirm, mut confirmed) = tokio::sync::mpsc::unbounded_channel();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..10 {
        let (client, confirm) = (client.clone(), confirm.clone());
        callers.spawn(async move {
            for n in 0.. {
                match create(&client, &format!("pvc-{caller}-{n}")).await {
                    Ok(id) => confirm.send(id).unwrap(),
                    Err(_) => return,
                }
            }
        });
    }
    drop(confirm);
    let mut known = BTreeSet::new();
    while known.len() < 100 {
        known.insert(tokio::time::timeout(Duration::from_mins(1), confirmed.recv()).await.unwrap().unwrap());
    }
    process.kill().await.unwrap();
    callers.join_all().await;
    while let Some(id) = confirmed.recv().await {
        known.insert(id);
    }
    let found = found(&place).await;
    let lost: Vec<_> = known.difference(&found).collect();
    assert!(lost.is_empty(), "confirmed, but lost: {lost:?}");
    assert!(found.len() <= known.len() + 10, "each caller has one call in flight at most");
}
