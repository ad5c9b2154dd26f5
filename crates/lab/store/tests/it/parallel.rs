//! Many threads and tasks at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use outrigger_lab_store::{Durability, Error, EventKind, Expect, Options, Revision, Store, Watch};

use crate::{memory, value};

#[test]
fn sixteen_threads_count_with_compare_and_swap() {
    let store = memory(10_000);
    store.write("/r/c/n", Expect::Absent, |_| value("0")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..200 {
                    loop {
                        let now = store.get("/r/c/n").unwrap();
                        let count: u64 = std::str::from_utf8(&now.value).unwrap().parse().unwrap();
                        match store.write("/r/c/n", Expect::Modified(now.modified), |_| value((count + 1).to_string()))
                        {
                            Ok(_) => break,
                            Err(Error::Conflict { current: Some(newer), .. }) => assert!(newer.modified > now.modified),
                            Err(other) => panic!("{other}"),
                        }
                    }
                }
            });
        }
    });
    assert_eq!(store.get("/r/c/n").unwrap().value, value("3200"));
    assert_eq!(store.revision(), 1 + 1 + 3200);
}

async fn follow(mut watch: Watch, until: Revision) -> Vec<Revision> {
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| *last < until) {
        let batch = watch.next().await.unwrap();
        assert!(batch.revision >= batch.events.last().unwrap().revision);
        seen.extend(batch.events.iter().map(|event| event.revision));
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_see_every_change_once_under_writers() {
    const EACH: u64 = 250;
    let store = memory(100_000);
    let end = store.revision() + 16 * EACH;
    let all = tokio::spawn(follow(store.watch("", 1).unwrap(), end));
    let quiet = store.watch("/r/none/", 1).unwrap();
    let writers: Vec<_> = (0..16)
        .map(|writer| {
            let store = store.clone();
            tokio::task::spawn_blocking(move || {
                for round in 0..EACH {
                    let key = format!("/r/{}/{writer}", writer % 4);
                    if round % 10 == 9 {
                        store.delete(&key, Expect::Any, |_| value("gone")).unwrap();
                    } else {
                        store.write(&key, Expect::Any, |_| value("here")).unwrap();
                    }
                }
            })
        })
        .collect();
    // Watches that begin in the middle see the rest.
    let mut late = Vec::new();
    for _ in 0..20 {
        let from = store.revision();
        late.push((from, tokio::spawn(follow(store.watch("/r/", from).unwrap(), end))));
        tokio::task::yield_now().await;
        if from == end {
            late.pop().unwrap().1.abort();
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(all.await.unwrap(), (2..=end).collect::<Vec<_>>());
    for (from, late) in late {
        assert_eq!(late.await.unwrap(), (from + 1..=end).collect::<Vec<_>>());
    }
    let mut quiet = quiet;
    assert_eq!(quiet.try_next().unwrap(), None);
    assert_eq!(quiet.revision(), end);
}

#[test]
fn scans_are_consistent_while_writers_run() {
    // Each transfer rewrites two neighbours one after the other; at any one revision the first is never behind the
    // second, and pages of a revision fit together.
    let store = memory(200_000);
    for index in 0..3000 {
        store.write(&format!("/r/k/{index:05}"), Expect::Absent, |_| value("0")).unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=60 {
                for index in (0..3000).step_by(50) {
                    store.write(&format!("/r/k/{index:05}"), Expect::Any, |_| value(round.to_string())).unwrap();
                    store.write(&format!("/r/k/{:05}", index + 1), Expect::Any, |_| value(round.to_string())).unwrap();
                }
            }
            done.store(true, Ordering::Release);
        });
        let mut scans = 0;
        while !done.load(Ordering::Acquire) || scans == 0 {
            let first = store.range("/r/k/", None, 1000, None).unwrap();
            let mut versions = first.versions;
            while versions.len() < 3000 {
                let after = versions.last().unwrap().key.clone();
                let page = store.range("/r/k/", Some(&after), 1000, Some(first.revision)).unwrap();
                assert_eq!(page.remaining + page.versions.len() + versions.len(), 3000);
                versions.extend(page.versions);
            }
            assert!(versions.iter().all(|version| version.modified <= first.revision));
            let number = |at: usize| std::str::from_utf8(&versions[at].value).unwrap().parse::<u64>().unwrap();
            let behind = (0..3000).step_by(50).filter(|at| number(*at) != number(at + 1)).count();
            assert!(behind <= 1, "at most one pair is between its two writes");
            assert!((0..3000).step_by(50).all(|at| number(at) >= number(at + 1)));
            scans += 1;
        }
    });
}

#[test]
fn rotation_and_snapshots_keep_up_with_writers() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history: 500, segment: 64 << 10, ..Options::directory(dir.path()) };
    let store = Store::open(options.clone()).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..4000u32 {
                    let key = format!("/r/{writer}/{}", round % 97);
                    store
                        .write(&key, Expect::Any, |revision| value(format!("{revision} {}", "y".repeat(100))))
                        .unwrap();
                }
            });
        }
    });
    let before = store.range("", None, 0, None).unwrap();
    let stats = store.stats();
    assert!(stats.snapshot.is_some(), "{stats:?}");
    let history = store.watch("", stats.compacted).unwrap().try_next().unwrap().unwrap();
    drop(store);
    let written: u64 = 16_000 * 150;
    let left: u64 = fs_err::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(left < written, "{left} bytes are left of {written}");
    let store = Store::open(options).unwrap();
    assert_eq!(store.range("", None, 0, None).unwrap(), before);
    assert_eq!(store.compacted(), stats.compacted);
    assert_eq!(store.watch("", stats.compacted).unwrap().try_next().unwrap().unwrap(), history);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_writes_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { durability: Durability::Power, ..Options::directory(dir.path()) };
    let store = Store::open(options).unwrap();
    let tasks: Vec<_> = (0..64)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 0..20 {
                    let made = store.write(&format!("/r/{task}/{round}"), Expect::Absent, |_| value("x")).unwrap();
                    store.durable(made.modified).await.unwrap();
                    assert!(store.stats().durable.unwrap() >= made.modified);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let stats = store.stats();
    assert_eq!(stats.revision, 1 + 64 * 20);
    assert!(stats.syncs < 64 * 20 / 2, "{} syncs for {} commits", stats.syncs, 64 * 20);
    let future = store.durable(stats.revision + 1);
    assert!(matches!(future.await, Err(Error::Future { .. })));
    let waiting = store.watch("/r/", stats.revision).unwrap();
    drop(store);
    // The watch keeps the store open.
    let mut waiting = waiting;
    assert!(tokio::time::timeout(Duration::from_millis(20), waiting.next()).await.is_err());
}

#[test]
fn events_of_a_deleted_and_recreated_key_are_kept_apart() {
    let store = memory(100);
    let first = store.write("/k", Expect::Absent, |_| value("1")).unwrap();
    let gone =
        store.delete("/k", Expect::Modified(first.modified), |revision| value(format!("end {revision}"))).unwrap();
    assert_eq!((gone.created, gone.modified), (first.created, first.modified + 1));
    let second = store.write("/k", Expect::Absent, |_| value("2")).unwrap();
    assert_eq!(second.created, second.modified);
    let mut watch = store.watch("/k", 1).unwrap();
    let kinds: Vec<_> = crate::drain(&mut watch).into_iter().map(|event| (event.kind, event.previous)).collect();
    let expected = [(EventKind::Put, None), (EventKind::Delete, Some(value("1"))), (EventKind::Put, None)];
    assert_eq!(kinds, expected);
}
