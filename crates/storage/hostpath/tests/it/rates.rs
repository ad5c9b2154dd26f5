//! How fast the driver is, and whether that depends on how many volumes it has.

use std::time::{Duration, Instant};

use outrigger_csi::proto;
use proto::volume_capability::access_mode::Mode;

use crate::support::*;

/// Creations a second by ten callers while 10, 2,000 and 10,000 volumes exist, then listing and deleting. For release builds:
/// `cargo nextest run --release -p outrigger-hostpath --run-ignored only --no-capture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a check"]
#[expect(clippy::cast_precision_loss, reason = "counts of volumes are small")]
async fn rates() {
    let place = Place::new();
    let driver = Driver::start(place.dir.path(), &[]).await;
    let create = async |from: usize, to: usize| {
        let begin = Instant::now();
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..10 {
            let client = driver.client.clone();
            callers.spawn(async move {
                let mut times = Vec::new();
                for n in (from..to).skip(caller).step_by(10) {
                    let start = Instant::now();
                    let request = creation(&format!("pvc-{n}"), mount(Mode::SingleNodeWriter), MI);
                    client.create_volume(request, DEADLINE).await.unwrap();
                    times.push(start.elapsed());
                }
                times
            });
        }
        let mut times: Vec<Duration> = callers.join_all().await.into_iter().flatten().collect();
        times.sort_unstable();
        let rate = times.len() as f64 / begin.elapsed().as_secs_f64();
        eprintln!(
            "create {from}..{to}: {rate:.0}/s, p50 {:?}, p99 {:?}",
            times[times.len() / 2],
            times[times.len() * 99 / 100]
        );
    };
    create(0, 10).await;
    for existing in [10, 2_000, 10_000] {
        create(existing, existing + 1_000).await;
        if existing < 10_000 {
            let next = if existing == 10 { 2_000 } else { 10_000 };
            create(existing + 1_000, next).await;
        }
    }
    create(0, 2_000).await;
    let begin = Instant::now();
    let ids: Vec<String> =
        driver.page(0, "").await.unwrap().entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
    eprintln!("list {} volumes: {:?}", ids.len(), begin.elapsed());
    let begin = Instant::now();
    let mut pages = 0;
    let mut token = String::new();
    loop {
        token = driver.page(100, &token).await.unwrap().next_token;
        pages += 1;
        if token.is_empty() {
            break;
        }
    }
    eprintln!("list in {pages} pages: {:?}", begin.elapsed());
    driver.stop().await;
    let begin = Instant::now();
    let driver = Driver::start(place.dir.path(), &[]).await;
    eprintln!("restart with {} volumes: {:?}", ids.len(), begin.elapsed());
    let begin = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for chunk in ids.chunks(ids.len().div_ceil(10)) {
        let (client, chunk) = (driver.client.clone(), chunk.to_vec());
        callers.spawn(async move {
            for volume_id in chunk {
                let request = proto::DeleteVolumeRequest { volume_id, ..Default::default() };
                client.delete_volume(request, DEADLINE).await.unwrap();
            }
        });
    }
    callers.join_all().await;
    eprintln!("delete: {:.0}/s", ids.len() as f64 / begin.elapsed().as_secs_f64());
    driver.stop().await;
    place.assert_clean();
}
