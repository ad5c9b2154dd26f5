use super::*;
use crate::fake::Fake;
use serde_json::Value;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/lease";

fn elector(fake: &Fake, identity: &str) -> Elector {
    let options = LeaseOptions {
        identity: identity.into(),
        labels: [("app".to_owned(), "x".to_owned())].into(),
        ..LeaseOptions::new("ns", "lease")
    };
    Elector::new(fake.client(), options, ElectionMetrics::default()).unwrap()
}

fn lease(fake: &Fake) -> Value {
    fake.lock().objects[PATH].clone()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[tokio::test(start_paused = true)]
async fn a_free_lease_is_taken_renewed_and_given_up() {
    let fake = Fake::default();
    let shutdown = Shutdown::new();
    let metrics = Metrics::new();
    let mut elector = elector(&fake, "a");
    elector.metrics = ElectionMetrics::register(&metrics);
    let done = elector
        .run(&shutdown, async {
            assert!(metrics.encode().contains("leader_election_master_status{name=\"lease\"} 1"));
            let first = lease(&fake);
            assert_eq!(first["spec"]["holderIdentity"], "a");
            assert_eq!(first["spec"]["leaseDurationSeconds"], 15);
            assert_eq!(first["spec"]["leaseTransitions"], 0);
            assert_eq!(first["metadata"]["labels"]["app"], "x");
            // Six decimals, as MicroTime has.
            let time = first["spec"]["renewTime"].as_str().unwrap();
            assert_eq!(time.len(), "2020-01-01T00:00:00.000000Z".len(), "{time}");
            sleep(seconds(21)).await;
            let later = lease(&fake);
            assert_ne!(first["spec"]["renewTime"], later["spec"]["renewTime"]);
            assert_eq!(first["spec"]["acquireTime"], later["spec"]["acquireTime"]);
            7
        })
        .await;
    assert_eq!(done.unwrap(), Some(7));
    let log = fake.lock().log.clone();
    let collection = PATH.trim_end_matches("/lease");
    assert_eq!(log[..2], [format!("GET {PATH}"), format!("POST {collection}")]);
    assert_eq!(log[2..], vec![format!("PUT {PATH}"); 5], "four renewals in 21 s and the release, one request each");
    assert_eq!(lease(&fake)["spec"]["holderIdentity"], "");
    assert!(metrics.encode().contains("leader_election_master_status{name=\"lease\"} 0"));
}

#[tokio::test(start_paused = true)]
async fn the_second_one_waits_and_follows_at_once_after_a_release() {
    let fake = Fake::default();
    let shutdown = Shutdown::new();
    let (first, second) = (elector(&fake, "a"), elector(&fake, "b"));
    let start = Instant::now();
    let first = first.run(&shutdown, async {
        sleep(seconds(60)).await;
        start.elapsed()
    });
    let second = async {
        sleep(seconds(1)).await;
        second.run(&shutdown, async { start.elapsed() }).await
    };
    let (a, b) = tokio::join!(first, second);
    let (a, b) = (a.unwrap().unwrap(), b.unwrap().unwrap());
    // A retry takes 5 s and up to 1.2 times as much more.
    assert!(b >= a && b < a + seconds(12), "{a:?} {b:?}");
    assert_eq!(lease(&fake)["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_crashed_holder_is_followed_after_the_lease_ran_out() {
    let fake = Fake::default();
    let shutdown = Shutdown::new();
    let crashed = elector(&fake, "a");
    // Dropped without a release, as by kill -9.
    timeout(seconds(1), crashed.run(&shutdown, std::future::pending::<()>())).await.unwrap_err();
    let start = Instant::now();
    let waited = elector(&fake, "b").run(&shutdown, async { start.elapsed() }).await.unwrap().unwrap();
    assert!(waited >= seconds(15) && waited < seconds(15 + 11), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_server_loses_the_lease_before_others_may_take_it() {
    let fake = Fake::default();
    let shutdown = Shutdown::new();
    let elector = elector(&fake, "a");
    let health = Health::new();
    elector.register_health(&health);
    let broken_at = Arc::new(Mutex::new(None));
    let work = async {
        sleep(seconds(7)).await;
        fake.lock().broken = true;
        *broken_at.lock().unwrap() = Some(Instant::now());
        std::future::pending::<()>().await;
    };
    let error = elector.run(&shutdown, work).await.unwrap_err();
    assert!(matches!(error, ElectionError::Lost { .. }), "{error}");
    assert_eq!(error.to_string(), "lost the lease ns/lease: no renewal within 10s");
    let since = broken_at.lock().unwrap().unwrap().elapsed();
    // Renewed at 5 s; the next try is at 10 s and may last 10 s; others may take over 15 s after 5 s.
    assert!(since <= seconds(13), "{since:?}");
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_is_survived() {
    let fake = Fake::default();
    let shutdown = Shutdown::new();
    let work = async {
        sleep(seconds(7)).await;
        fake.lock().broken = true;
        sleep(seconds(6)).await;
        fake.lock().broken = false;
        sleep(seconds(30)).await;
    };
    assert_eq!(elector(&fake, "a").run(&shutdown, work).await.unwrap(), Some(()));
}

#[tokio::test(start_paused = true)]
async fn a_lease_taken_by_another_is_lost_at_once() {
    let fake = Fake::default();
    let shutdown = Shutdown::new();
    let start = Instant::now();
    let work = async {
        let mut lease = lease(&fake);
        lease["spec"]["holderIdentity"] = "thief".into();
        lease["metadata"]["resourceVersion"] = "999".into();
        fake.lock().objects.insert(PATH.into(), lease);
        std::future::pending::<()>().await;
    };
    let error = elector(&fake, "a").run(&shutdown, work).await.unwrap_err();
    assert!(matches!(&error, ElectionError::Taken { holder, .. } if holder == "thief"), "{error}");
    assert!(start.elapsed() <= seconds(5));
    assert_eq!(lease(&fake)["spec"]["holderIdentity"], "thief", "not ours to release");
}

#[tokio::test(start_paused = true)]
async fn foreign_writes_to_the_lease_do_not_cost_it() {
    let fake = Fake::default();
    let shutdown = Shutdown::new();
    let work = async {
        sleep(seconds(1)).await;
        // Somebody adds an annotation: the version changes, the holder does not.
        let mut lease = lease(&fake);
        lease["metadata"]["annotations"]["note"] = "hello".into();
        lease["metadata"]["resourceVersion"] = "999".into();
        fake.lock().objects.insert(PATH.into(), lease);
        sleep(seconds(30)).await;
    };
    elector(&fake, "a").run(&shutdown, work).await.unwrap();
    assert_eq!(lease(&fake)["metadata"]["annotations"]["note"], "hello");
    assert_eq!(lease(&fake)["spec"]["holderIdentity"], "", "released");
}

#[tokio::test(start_paused = true)]
async fn the_shutdown_ends_the_waiting() {
    let fake = Fake::default();
    fake.lock().broken = true;
    let shutdown = Shutdown::new();
    let elector = elector(&fake, "a");
    let run = elector.run(&shutdown, async {});
    let stop = async {
        sleep(seconds(3)).await;
        shutdown.trigger();
    };
    assert_eq!(tokio::join!(run, stop).0.unwrap(), None);
}
