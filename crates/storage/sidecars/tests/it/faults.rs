//! An API server that misbehaves.

use http::Method;
use serde_json::json;

use super::cluster::{Cluster, Cut, Fault};
use super::driver::Driver;
use super::effects::Effects;
use super::harness::{Process, bound, claim, class, config, delete_claim, empty, recorded};

/// A claim comes and goes although these requests fail.
async fn survives(faults: &[(Method, &'static str, Fault, u32)]) {
    let (cluster, driver) = (Cluster::new(), Driver::start(false));
    class(&cluster, "fast", json!({}));
    for (method, path, fault, times) in faults {
        cluster.plan(method.clone(), path, fault.clone(), *times);
    }
    let process = Process::start(&cluster, &driver, &Effects::default(), config());
    claim(&cluster, "data", json!({}));
    bound(&cluster, "data").await;
    assert_eq!(driver.volumes().len(), 1);
    delete_claim(&cluster, "data");
    empty(&cluster, &driver).await;
    process.stop().await;
    assert!(recorded(&cluster).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_writes_are_repeated() {
    for code in [409, 429, 500, 503] {
        survives(&[
            (Method::PATCH, "/configmaps", Fault::Refuse(code), 2),
            (Method::POST, "/configmaps", Fault::Refuse(code), 1),
            (Method::POST, "/persistentvolumes", Fault::Refuse(if code == 409 { 500 } else { code }), 3),
            (Method::DELETE, "/persistentvolumes", Fault::Refuse(code), 2),
            (Method::PATCH, "/persistentvolumes", Fault::Refuse(code), 2),
        ])
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_succeed_with_an_error_do_no_harm() {
    survives(&[
        (Method::PATCH, "/configmaps", Fault::Garble(500), 2),
        (Method::POST, "/configmaps", Fault::Garble(504), 1),
        (Method::POST, "/persistentvolumes", Fault::Garble(500), 1),
        (Method::DELETE, "/persistentvolumes", Fault::Garble(500), 1),
        (Method::PATCH, "/persistentvolumes", Fault::Garble(500), 1),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_fail_are_repeated() {
    survives(&[(Method::GET, "/persistentvolumes/", Fault::Refuse(500), 2)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_and_expired_watches_lose_nothing() {
    for how in [Cut::Resume, Cut::ExpireByEvent, Cut::ExpireByStatus] {
        let (cluster, driver) = (Cluster::new(), Driver::start(false));
        class(&cluster, "fast", json!({}));
        let process = Process::start(&cluster, &driver, &Effects::default(), config());
        claim(&cluster, "one", json!({}));
        bound(&cluster, "one").await;
        cluster.cut_watches(how);
        claim(&cluster, "two", json!({}));
        bound(&cluster, "two").await;
        cluster.cut_watches(how);
        delete_claim(&cluster, "one");
        delete_claim(&cluster, "two");
        empty(&cluster, &driver).await;
        process.stop().await;
    }
}
