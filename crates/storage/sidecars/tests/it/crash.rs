//! Death at every point: after its n-th effect a process does nothing any more, and its successor has to bring everything to the
//! same end, for every n.

use outrigger_csi::Error;
use serde_json::json;

use super::cluster::Cluster;
use super::driver::{Driver, Script};
use super::effects::{Death, Effects};
use super::harness::{Process, bound, claim, class, config, delete_claim, empty, recorded};

/// Two claims. The first is deleted once it is bound; the fate of the second is the test's. Both first calls make the volume, yet
/// fail. Returns when the process has died or everything is done.
async fn first_life(cluster: &Cluster, driver: &Driver, effects: &Effects) -> Process {
    class(cluster, "fast", json!({}));
    driver.script([Script::MakesBut(|m| Error::unavailable(m)), Script::MakesBut(|m| Error::aborted(m))]);
    let process = Process::start(cluster, driver, effects, config());
    claim(cluster, "first", json!({}));
    claim(cluster, "second", json!({}));
    let story = async {
        bound(cluster, "first").await;
        bound(cluster, "second").await;
        delete_claim(cluster, "first");
        cluster
            .until("the first volume to go", |cluster| (cluster.list("persistentvolumes").len() == 1).then_some(()))
            .await;
    };
    tokio::select! {
        () = effects.died() => {}
        () = story => {}
    }
    process
}

/// One life that ends at effect `last`, and a second one. Whether the first died before its story was over.
async fn two_lives(last: u64, death: Death, delete_second: bool) -> bool {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    let effects = Effects::dying(last, death);
    let process = first_life(&cluster, &driver, &effects).await;
    let died = effects.count() > last;
    process.kill().await;
    if cluster.get("persistentvolumeclaims", "shop", "first").is_some() {
        delete_claim(&cluster, "first");
    }
    if delete_second {
        delete_claim(&cluster, "second");
    }

    let process = Process::start(&cluster, &driver, &Effects::default(), config());
    if delete_second {
        // Leftovers show up only when the record has been worked off: each of its calls ends in a volume that goes again.
        cluster.until("the record to be worked off", |cluster| recorded(cluster).is_empty().then_some(())).await;
        empty(&cluster, &driver).await;
    } else {
        let claim = bound(&cluster, "second").await;
        cluster.until("the record to be worked off", |cluster| recorded(cluster).is_empty().then_some(())).await;
        cluster
            .until("one volume to be left", |cluster| {
                let objects = cluster.list("persistentvolumes");
                let wanted = claim["spec"]["volumeName"].as_str()?;
                (objects.len() == 1 && objects[0]["metadata"]["name"] == wanted && driver.volumes() == [wanted])
                    .then_some(())
            })
            .await;
    }
    process.stop().await;
    assert!(recorded(&cluster).is_empty(), "{last} {death:?}");
    died
}

async fn sweep(death: Death, delete_second: bool) {
    let mut last = 0;
    // A few at a time: most of each run is waiting for the record's lazy removals.
    loop {
        let runs = (last..last + 6).map(|last| two_lives(last, death, delete_second));
        let died = futures_util::future::join_all(runs).await;
        last += 6;
        if died.contains(&false) {
            break;
        }
        assert!(last < 200, "the story has no end");
    }
    eprintln!("{death:?}, second claim deleted: {delete_second}: {last} lives");
    assert!(last > 6, "the story is too short to be one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_before_any_effect() {
    sweep(Death::Before, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_before_any_effect_and_the_claim_deleted() {
    sweep(Death::Before, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_any_effect() {
    sweep(Death::After, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_after_any_effect_and_the_claim_deleted() {
    sweep(Death::After, true).await;
}
