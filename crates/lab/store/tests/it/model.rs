//! Random operations, also across reopening, against a naive model.

use std::collections::BTreeMap;

use outrigger_lab_store::{Durability, Error, EventKind, Expect, Options, Revision, Store};
use proptest::prelude::*;

use crate::{drain, value};

#[derive(Clone, Debug)]
enum Op {
    Write {
        key: usize,
        expect: Wanted,
    },
    Delete {
        key: usize,
        expect: Wanted,
    },
    Compact {
        back: u64,
    },
    /// Drop and open again.
    Reopen,
    /// Lose the mark of a proper close, then open.
    Crash,
}

#[derive(Clone, Copy, Debug)]
enum Wanted {
    Absent,
    Newest,
    Stale,
    Any,
}

const KEYS: [&str; 6] = ["/r/a/x/1", "/r/a/x/2", "/r/a/y/1", "/r/ab/x/1", "/r/b//1", "/r/b//10"];

fn wanted() -> impl Strategy<Value = Wanted> {
    prop_oneof![Just(Wanted::Absent), Just(Wanted::Newest), Just(Wanted::Stale), Just(Wanted::Any)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..KEYS.len(), wanted()).prop_map(|(key, expect)| Op::Write { key, expect }),
        4 => (0..KEYS.len(), wanted()).prop_map(|(key, expect)| Op::Delete { key, expect }),
        1 => (0..20u64).prop_map(|back| Op::Compact { back }),
        1 => Just(Op::Reopen),
        1 => Just(Op::Crash),
    ]
}

type Row = (String, Vec<u8>, Revision, Revision);

#[derive(Clone, Debug, PartialEq)]
struct Change {
    revision: Revision,
    key: String,
    kind: EventKind,
    value: Vec<u8>,
    previous: Option<Vec<u8>>,
}

/// The present, all changes, and the present as it was after each revision.
#[derive(Default)]
struct Model {
    now: BTreeMap<String, (Vec<u8>, Revision, Revision)>,
    changes: Vec<Change>,
    past: BTreeMap<Revision, Vec<Row>>,
    floor: Revision,
}

impl Model {
    fn change(&mut self, key: &str, kind: EventKind, value: Vec<u8>, revision: Revision) {
        let previous = self.now.get(key).cloned();
        if kind == EventKind::Put {
            let created = previous.as_ref().map_or(revision, |(_, created, _)| *created);
            self.now.insert(key.to_owned(), (value.clone(), created, revision));
        } else {
            self.now.remove(key);
        }
        let previous = previous.map(|(value, ..)| value);
        self.changes.push(Change { revision, key: key.to_owned(), kind, value, previous });
        self.remember(revision);
    }

    fn remember(&mut self, revision: Revision) {
        let rows =
            self.now.iter().map(|(key, (value, created, modified))| (key.clone(), value.clone(), *created, *modified));
        self.past.insert(revision, rows.collect());
    }

    fn limit(&mut self, history: usize) {
        let kept = self.changes.iter().filter(|change| change.revision > self.floor).count();
        if kept > history {
            let newest_dropped = self.changes[self.changes.len() - history - 1].revision;
            self.floor = self.floor.max(newest_dropped);
        }
    }
}

fn rows(store: &Store, prefix: &str, page: usize, at: Option<Revision>) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    let mut after: Option<String> = None;
    let mut at = at;
    loop {
        let range = store.range(prefix, after.as_deref(), page, at)?;
        at = Some(range.revision);
        rows.extend(
            range
                .versions
                .iter()
                .map(|version| (version.key.to_string(), version.value.to_vec(), version.created, version.modified)),
        );
        assert_eq!(range.more, range.remaining > 0);
        if !range.more {
            return Ok(rows);
        }
        after = rows.last().map(|row| row.0.clone());
    }
}

fn check(store: &Store, model: &Model) {
    assert_eq!(store.compacted(), model.floor);
    for key in KEYS {
        let known = model.now.get(key).map(|(value, created, modified)| (value.clone(), *created, *modified));
        let got = store.get(key).map(|version| (version.value.to_vec(), version.created, version.modified));
        assert_eq!(got, known, "{key}");
    }
    for (revision, expected) in &model.past {
        for prefix in ["", "/r/a/", "/r/a", "/r/b//1"] {
            let got = rows(store, prefix, 2, Some(*revision));
            if *revision < model.floor {
                assert!(matches!(got, Err(Error::Compacted { .. })));
                assert!(matches!(store.watch(prefix, *revision), Err(Error::Compacted { .. })));
                continue;
            }
            let expected: Vec<Row> = expected.iter().filter(|row| row.0.starts_with(prefix)).cloned().collect();
            assert_eq!(got.unwrap(), expected, "{prefix} at {revision}");
            let mut watch = store.watch(prefix, *revision).unwrap();
            let events: Vec<Change> = drain(&mut watch)
                .into_iter()
                .map(|event| Change {
                    revision: event.revision,
                    key: event.key.to_string(),
                    kind: event.kind,
                    value: event.value.to_vec(),
                    previous: event.previous.map(|value| value.to_vec()),
                })
                .collect();
            let due =
                model.changes.iter().filter(|change| change.revision > *revision && change.key.starts_with(prefix));
            assert_eq!(events, due.cloned().collect::<Vec<_>>(), "{prefix} from {revision}");
            assert_eq!(watch.revision(), store.revision());
        }
    }
    let future = store.revision() + 1;
    assert!(matches!(store.range("", None, 0, Some(future)), Err(Error::Future { .. })));
    assert!(matches!(store.watch("", future), Err(Error::Future { .. })));
    let stats = store.stats();
    assert_eq!(stats.keys, model.now.len());
    assert_eq!(stats.value_bytes, model.now.values().map(|(value, ..)| value.len() as u64).sum::<u64>());
}

fn run(ops: Vec<Op>, history: usize, options: &Options) {
    let options = Options { history, ..options.clone() };
    let mut store = Store::open(options.clone()).unwrap();
    let mut model = Model { floor: store.compacted(), ..Model::default() };
    model.remember(store.revision());
    for (step, op) in ops.into_iter().enumerate() {
        let before = store.revision();
        match op {
            Op::Write { key, expect } | Op::Delete { key, expect } => {
                let key = KEYS[key];
                let modified = model.now.get(key).map(|(_, _, modified)| *modified);
                let expect = match (expect, modified) {
                    (Wanted::Absent, _) => Expect::Absent,
                    (Wanted::Newest, modified) => Expect::Modified(modified.unwrap_or(1)),
                    (Wanted::Stale, modified) => Expect::Modified(modified.unwrap_or(2) - 1),
                    (Wanted::Any, _) => Expect::Any,
                };
                let met = match expect {
                    Expect::Absent => modified.is_none(),
                    Expect::Modified(wanted) => modified == Some(wanted),
                    Expect::Any => true,
                };
                let text = format!("value {step}");
                let (kind, done) = if matches!(op, Op::Write { .. }) {
                    (EventKind::Put, store.write(key, expect, |revision| value(format!("{text} {revision}"))))
                } else {
                    (EventKind::Delete, store.delete(key, expect, |revision| value(format!("{text} {revision}"))))
                };
                if met && (kind == EventKind::Put || modified.is_some()) {
                    let version = done.unwrap();
                    assert_eq!(version.modified, before + 1);
                    assert_eq!(version.value, value(format!("{text} {}", version.modified)));
                    model.change(key, kind, version.value.to_vec(), version.modified);
                } else {
                    let Err(Error::Conflict { current, .. }) = done else { panic!("{done:?}") };
                    assert_eq!(current.map(|version| version.modified), modified);
                    assert_eq!(store.revision(), before);
                }
            }
            Op::Compact { back } => {
                let floor = store.revision().saturating_sub(back);
                match store.compact(floor) {
                    Ok(()) => model.floor = model.floor.max(floor),
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Reopen | Op::Crash if options.dir.is_none() => store = store.fork(),
            Op::Reopen => {
                drop(store);
                store = Store::open(options.clone()).unwrap();
                assert_eq!(store.revision(), before);
            }
            Op::Crash => {
                let dir = options.dir.clone().unwrap();
                // What a killed process leaves: the files as they were before a proper close.
                let files: Vec<_> = fs_err::read_dir(&dir)
                    .unwrap()
                    .map(|entry| entry.unwrap().path())
                    .map(|path| (fs_err::read(&path).unwrap(), path))
                    .collect();
                drop(store);
                for entry in fs_err::read_dir(&dir).unwrap() {
                    fs_err::remove_file(entry.unwrap().path()).unwrap();
                }
                for (bytes, path) in files {
                    fs_err::write(path, bytes).unwrap();
                }
                store = Store::open(options.clone()).unwrap();
                assert!(store.revision() > before, "the counter skips after an unclean stop");
                if before + 1 < store.revision() {
                    assert!(matches!(store.watch("", before + 1), Err(Error::Compacted { .. })));
                }
            }
        }
        model.limit(history);
        model.past.retain(|revision, _| *revision + 60 > before || *revision >= model.floor);
        model.remember(store.revision());
    }
    check(&store, &model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn memory_like_the_model(ops in proptest::collection::vec(op(), 0..120), history in 1usize..60) {
        run(ops, history, &Options::memory());
    }

}

proptest! {
    // Each opening syncs several times.
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn disk_like_the_model(ops in proptest::collection::vec(op(), 0..80), history in 1usize..60, segment in 100u64..3000) {
        let dir = tempfile::tempdir().unwrap();
        run(ops, history, &Options { segment, durability: Durability::Process, ..Options::directory(dir.path()) });
    }
}
