//! Watches, compaction, forks and snapshots, case by case.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use outrigger_lab_store::{Error, Expect, Lagged, Options, Store};

use crate::{drain, memory, put, value};

#[tokio::test]
async fn slow_watcher_is_told() {
    let store = memory(10);
    let mut watch = store.watch("/r/", 1).unwrap();
    for index in 0..11 {
        put(&store, "/r/k", &index.to_string());
    }
    assert_eq!(watch.next().await, Err(Lagged { position: 1, compacted: 2 }));
    assert!(matches!(store.watch("/r/", 1), Err(Error::Compacted { requested: 1, compacted: 2 })));
    assert_eq!(drain(&mut store.watch("/r/", 2).unwrap()).len(), 10);
}

#[tokio::test]
async fn watcher_of_a_quiet_prefix_never_lags() {
    let store = memory(10);
    put(&store, "/r/quiet/a", "1");
    let mut watch = store.watch("/r/quiet/", store.revision()).unwrap();
    assert_eq!(watch.try_next(), Ok(None));
    for index in 0..100 {
        put(&store, "/r/busy/k", &index.to_string());
    }
    assert_eq!(watch.revision(), store.revision());
    for index in 0..100 {
        put(&store, "/r/busy/k", &index.to_string());
    }
    assert_eq!(watch.try_next(), Ok(None));
    let made = put(&store, "/r/quiet/a", "2");
    assert_eq!(watch.next().await.unwrap().revision, made.modified);
}

#[tokio::test]
async fn watcher_sleeps_until_its_prefix_changes() {
    let store = memory(100);
    let mut watch = store.watch("/r/a/one", 1).unwrap();
    put(&store, "/r/b/one", "1");
    put(&store, "/r/a/other", "1");
    assert!(tokio::time::timeout(Duration::from_millis(20), watch.next()).await.is_err());
    let writer = store.clone();
    let task = tokio::spawn(async move {
        let batch = watch.next().await.unwrap();
        (batch.events.len(), batch.events[0].key.to_string())
    });
    tokio::task::yield_now().await;
    put(&writer, "/r/a/one", "1");
    assert_eq!(task.await.unwrap(), (1, "/r/a/one".to_owned()));
}

#[test]
fn many_events_come_in_bounded_batches() {
    let store = memory(10_000);
    for index in 0..5000 {
        put(&store, &format!("/r/{}/k", index % 2), "v");
    }
    let mut watch = store.watch("/r/1/", 1).unwrap();
    let mut sizes = vec![];
    while let Some(batch) = watch.try_next().unwrap() {
        sizes.push(batch.events.len());
    }
    assert_eq!(sizes, [1024, 1024, 452]);
    assert_eq!(watch.revision(), store.revision());
}

#[test]
fn compaction_keeps_what_is_at_the_floor() {
    let store = memory(100);
    put(&store, "/a", "1");
    put(&store, "/b", "1");
    let floor = store.delete("/a", Expect::Any, |_| value("end")).unwrap().modified;
    put(&store, "/b", "2");
    store.compact(floor).unwrap();
    store.compact(floor - 1).unwrap();
    assert_eq!(store.compacted(), floor);
    let at: Vec<_> = store
        .range("", None, 0, Some(floor))
        .unwrap()
        .versions
        .into_iter()
        .map(|version| (version.key, version.value))
        .collect();
    assert_eq!(at, [("/b".into(), value("1"))]);
    assert_eq!(store.stats().versions, 2);
    let refused = store.compact(store.revision() + 1);
    assert!(matches!(refused, Err(Error::Future { .. })));
    store.compact(store.revision()).unwrap();
    assert_eq!(store.stats().versions, 1);
    assert_eq!(store.stats().events, 0);
}

#[test]
fn paging_reads_one_revision() {
    let store = memory(100);
    for index in 0..7 {
        put(&store, &format!("/r/k/{index}"), "old");
    }
    let first = store.range("/r/k/", None, 3, None).unwrap();
    assert!(first.more);
    assert_eq!(first.remaining, 4);
    put(&store, "/r/k/5", "new");
    store.delete("/r/k/4", Expect::Any, |_| value("gone")).unwrap();
    put(&store, "/r/k/9", "new");
    let after = first.versions[2].key.clone();
    let second = store.range("/r/k/", Some(&after), 0, Some(first.revision)).unwrap();
    let keys: Vec<_> = second.versions.iter().map(|version| &*version.key).collect();
    assert_eq!(keys, ["/r/k/3", "/r/k/4", "/r/k/5", "/r/k/6"]);
    assert!(second.versions.iter().all(|version| version.value == value("old")));
    assert_eq!(second.revision, first.revision);
    // A start outside the prefix.
    assert_eq!(store.range("/r/k/", Some("/a"), 0, None).unwrap().versions.len(), 7);
    assert_eq!(store.range("/r/k/", Some("/z"), 0, None).unwrap().versions.len(), 0);
}

#[test]
fn fork_is_independent() {
    let store = memory(100);
    let made = put(&store, "/r/a", "1");
    put(&store, "/r/b", "1");
    let fork = store.fork();
    assert_eq!(fork.revision(), store.revision());
    assert_eq!(fork.get("/r/a").unwrap().value.as_ptr(), made.value.as_ptr(), "values are shared");
    put(&store, "/r/a", "store");
    put(&fork, "/r/a", "fork");
    fork.delete("/r/b", Expect::Any, |_| value("end")).unwrap();
    assert_eq!(store.get("/r/a").unwrap().value, value("store"));
    assert_eq!(fork.get("/r/a").unwrap().value, value("fork"));
    assert!(store.get("/r/b").is_some());
    // The history was copied, too.
    assert_eq!(drain(&mut fork.watch("/r/", 1).unwrap()).len(), 4);
    assert_eq!(drain(&mut store.watch("/r/", 1).unwrap()).len(), 3);
}

#[test]
fn snapshot_restores_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("saved");
    let store = memory(100);
    for index in 0..5000 {
        put(&store, &format!("/r/k/{index:04}"), &index.to_string());
    }
    store.delete("/r/k/0007", Expect::Any, |_| value("end")).unwrap();
    let revision = store.snapshot_to(&file).unwrap();
    assert_eq!(revision, store.revision());
    let expected = store.range("", None, 0, None).unwrap();
    put(&store, "/r/k/0000", "later");
    let restored = Store::restore(&file, Options::memory()).unwrap();
    assert_eq!(restored.range("", None, 0, None).unwrap(), expected);
    let options = Options::directory(dir.path().join("store"));
    for _ in 0..2 {
        let opened = match Store::open(options.clone()) {
            Ok(opened) if opened.get("/r/k/0000").is_some() => opened,
            Ok(empty) => {
                drop(empty);
                fs_err::remove_dir_all(options.dir.as_ref().unwrap()).unwrap();
                Store::restore(&file, options.clone()).unwrap()
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(opened.range("", None, 0, None).unwrap(), expected);
    }
    let refused = Store::restore(&file, options);
    assert!(matches!(refused, Err(Error::Options(_))));
    assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn panicking_maker_changes_nothing() {
    let store = memory(100);
    put(&store, "/a", "1");
    let before = store.revision();
    let result = catch_unwind(AssertUnwindSafe(|| store.write("/a", Expect::Any, |_| panic!("no value"))));
    assert!(result.is_err());
    assert_eq!(store.revision(), before);
    assert_eq!(put(&store, "/a", "2").modified, before + 1);
}

#[test]
fn oversized_input_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Options::directory(dir.path())).unwrap();
    let key = "k".repeat(70_000);
    assert!(matches!(store.write(&key, Expect::Any, |_| value("")), Err(Error::TooLarge { limit: 65_535, .. })));
    let huge = store.write("/a", Expect::Any, |_| vec![0; (256 << 20) + 1].into());
    assert!(matches!(huge, Err(Error::TooLarge { .. })));
    assert_eq!(store.revision(), 1);
    let empty = store.write("", Expect::Absent, |_| value("")).unwrap();
    drop(store);
    assert_eq!(Store::open(Options::directory(dir.path())).unwrap().get(""), Some(empty));
}
