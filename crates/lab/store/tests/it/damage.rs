//! Damaged and foreign files.

use std::path::{Path, PathBuf};

use outrigger_lab_store::{Error, Expect, Options, Revision, Store};

use crate::{put, value};

/// A directory as a killed process leaves it, with `count` changes in one log file.
struct Abandoned {
    dir: tempfile::TempDir,
    log: PathBuf,
    newest: Revision,
}

fn log_files(dir: &Path) -> Vec<PathBuf> {
    let paths = fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut logs: Vec<PathBuf> =
        paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("log-")).collect();
    logs.sort();
    logs
}

fn copy(from: &Path, to: &Path) {
    for entry in fs_err::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs_err::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn abandoned(count: usize) -> Abandoned {
    let original = tempfile::tempdir().unwrap();
    let store = Store::open(Options::directory(original.path())).unwrap();
    for index in 0..count {
        put(&store, &format!("/r/things/{index}"), &format!("value of {index}"));
    }
    let dir = tempfile::tempdir().unwrap();
    copy(original.path(), dir.path());
    let log = log_files(dir.path()).pop().unwrap();
    Abandoned { dir, log, newest: store.revision() }
}

fn open(dir: &Path) -> Result<Store, Error> {
    Store::open(Options::directory(dir))
}

#[test]
fn torn_tail_at_every_byte() {
    let Abandoned { dir, log, newest } = abandoned(3);
    let whole = fs_err::read(&log).unwrap();
    let mut ends = vec![];
    for cut in (0..whole.len()).rev() {
        let copied = tempfile::tempdir().unwrap();
        copy(dir.path(), copied.path());
        fs_err::write(copied.path().join(log.file_name().unwrap()), &whole[..cut]).unwrap();
        let store = open(copied.path()).unwrap();
        let kept = store.range("", None, 0, None).unwrap().versions.len();
        ends.push(kept);
        for index in 0..kept {
            assert_eq!(store.get(&format!("/r/things/{index}")).unwrap().value, value(format!("value of {index}")));
        }
        assert!(store.revision() > newest, "cut at {cut}");
        let next = put(&store, "/r/things/new", "new").modified;
        assert!(next > newest);
        drop(store);
        let store = open(copied.path()).unwrap();
        assert_eq!(store.get("/r/things/new").unwrap().modified, next);
        assert_eq!(store.range("", None, 0, None).unwrap().versions.len(), kept + 1);
    }
    ends.dedup();
    assert_eq!(ends, [2, 1, 0]);
}

#[test]
fn tail_of_garbage_is_cut_off() {
    let Abandoned { dir, log, .. } = abandoned(3);
    let whole = fs_err::read(&log).unwrap();
    for garbage in
        [&[0; 700][..], b"no record", &whole[whole.len() - 20..], &[0xa7, b'r', 0xec, 0x0d, 0xff, 0xff, 0xff, 0xff]]
    {
        let copied = tempfile::tempdir().unwrap();
        copy(dir.path(), copied.path());
        let log = copied.path().join(log.file_name().unwrap());
        fs_err::write(&log, [&whole, garbage].concat()).unwrap();
        let store = open(copied.path()).unwrap();
        assert_eq!(store.range("", None, 0, None).unwrap().versions.len(), 3);
        assert_eq!(fs_err::read(&log).unwrap(), whole);
    }
}

#[test]
fn damage_in_the_middle_is_refused_with_its_place() {
    let Abandoned { dir, log, .. } = abandoned(4);
    let whole = fs_err::read(&log).unwrap();
    let length = (whole.len() - 32) / 4;
    assert_eq!(whole.len(), 32 + 4 * length);
    for byte in 0..32 + 3 * length {
        let mut damaged = whole.clone();
        damaged[byte] ^= 0x10;
        fs_err::write(&log, &damaged).unwrap();
        let refused = open(dir.path()).unwrap_err();
        match refused {
            Error::Corrupt { file, offset, .. } => {
                assert_eq!(file, log);
                let record = if byte < 32 { 0 } else { 32 + (byte - 32) / length * length };
                assert_eq!(offset, record as u64, "byte {byte}");
            }
            other => panic!("byte {byte}: {other}"),
        }
        assert_eq!(fs_err::read(&log).unwrap(), damaged, "nothing was changed");
    }
    fs_err::write(&log, &whole).unwrap();
    assert_eq!(open(dir.path()).unwrap().range("", None, 0, None).unwrap().versions.len(), 4);
}

#[test]
fn missing_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        put(&open(dir.path()).unwrap(), "/a", &round.to_string());
    }
    let logs = log_files(dir.path());
    assert_eq!(logs.len(), 3);
    for log in &logs {
        let bytes = fs_err::read(log).unwrap();
        fs_err::remove_file(log).unwrap();
        assert!(matches!(open(dir.path()), Err(Error::Corrupt { .. })), "{}", log.display());
        fs_err::write(log, bytes).unwrap();
    }
    assert_eq!(open(dir.path()).unwrap().get("/a").unwrap().value, value("2"));
}

#[test]
fn cut_log_of_a_closed_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    put(&store, "/a", "1");
    put(&store, "/a", "2");
    drop(store);
    let log = log_files(dir.path()).pop().unwrap();
    let bytes = fs_err::read(&log).unwrap();
    fs_err::write(&log, &bytes[..bytes.len() - 1]).unwrap();
    let refused = open(dir.path()).unwrap_err().to_string();
    assert!(refused.contains("ends at revision 2, but the store was closed at revision 3"), "{refused}");
}

#[test]
fn foreign_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    put(&open(dir.path()).unwrap(), "/a", "1");
    let file = dir.path().join("saved");
    open(dir.path()).unwrap().snapshot_to(&file).unwrap();
    let bytes = fs_err::read(&file).unwrap();
    for byte in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[byte] ^= 1;
        fs_err::write(&file, damaged).unwrap();
        let refused = Store::restore(&file, Options::memory());
        assert!(matches!(refused, Err(Error::Corrupt { .. })), "byte {byte}: {refused:?}");
        fs_err::write(&file, &bytes[..byte]).unwrap();
        assert!(matches!(Store::restore(&file, Options::memory()), Err(Error::Corrupt { .. })));
    }
}

#[test]
fn second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let refused = open(dir.path()).unwrap_err();
    assert!(refused.to_string().ends_with(&format!("in use by process {}", std::process::id())), "{refused}");
    store.close().unwrap();
    assert!(matches!(store.write("/a", Expect::Any, |_| value("1")), Err(Error::Closed)));
    put(&open(dir.path()).unwrap(), "/a", "1");
}

#[test]
fn unusable_directories_have_clear_errors() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs_err::write(&file, "x").unwrap();
    let refused = open(&file.join("below")).unwrap_err();
    assert_eq!(refused.to_string(), "open store");
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert!(cause.contains(file.to_str().unwrap()), "{cause}");
    for options in [
        Options { history: 0, ..Options::memory() },
        Options { dir: None, ..Options::directory("x") },
        Options { dir: Some(dir.path().into()), ..Options::memory() },
    ] {
        assert!(matches!(Store::open(options), Err(Error::Options(_))));
    }
}
