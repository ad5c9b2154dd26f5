//! A full disk: commits are refused, nothing is half written, and all goes on once there is room again.

use std::path::Path;
use std::process::Command;

use outrigger_lab_store::{Error, Expect, Options, Store};

use crate::value;

const DIR: &str = "OUTRIGGER_STORE_TEST_FULL";

fn options(dir: &Path) -> Options {
    Options { history: 20, segment: 64 << 10, ..Options::directory(dir.join("store")) }
}

/// Not a test by itself: runs on a file system of one MiB.
#[test]
#[ignore = "started by the test that mounts the file system"]
fn writer_on_a_small_disk() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dir = Path::new(&dir);
    let ballast = dir.join("ballast");
    fs_err::write(&ballast, vec![0; 300 << 10]).unwrap();
    let store = Store::open(options(dir)).unwrap();
    let big = "x".repeat(3000);
    let mut count = 0u32;
    // Keys are new each time, so that neither log nor snapshots can be dropped.
    let refused = loop {
        match store.write(&format!("/r/k/{count}"), Expect::Absent, |_| value(&big)) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::Io { .. }), "{refused:?}");
    assert!(store.get(&format!("/r/k/{count}")).is_none());
    assert_eq!(store.revision(), 1 + u64::from(count), "a refused commit takes no revision");
    // A snapshot that was under way fails on the same disk and gives its room back, so the next write may pass; what
    // counts is that each is either whole or refused.
    match store.write("/r/k/still", Expect::Absent, |_| value(&big)) {
        Ok(_) => count += 1,
        Err(error) => assert!(matches!(error, Error::Io { .. }), "{error:?}"),
    }
    fs_err::remove_file(&ballast).unwrap();
    for _ in 0..10 {
        store.write(&format!("/r/k/after-{count}"), Expect::Absent, |_| value(&big)).unwrap();
        count += 1;
    }
    let expected = store.range("", None, 0, None).unwrap();
    store.close().unwrap();
    drop(store);
    let store = Store::open(options(dir)).unwrap();
    assert_eq!(store.range("", None, 0, None).unwrap(), expected);
    assert_eq!(expected.versions.len(), count as usize);
    println!("wrote {count}");
}

#[test]
fn full_disk_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // The mount lives in a namespace of its own and goes with the process.
    let script = r#"mount -t tmpfs -o size=1m none "$OUTRIGGER_STORE_TEST_FULL" && exec "$@""#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "full::writer_on_a_small_disk", "--ignored", "--nocapture"])
        .env(DIR, dir.path())
        .output();
    let output = match output {
        Ok(output)
            if ["ermission denied", "not permitted"]
                .iter()
                .any(|text| String::from_utf8_lossy(&output.stderr).contains(text)) =>
        {
            eprintln!("skipped: mounting needs root");
            return;
        }
        Ok(output) => output,
        Err(error) => {
            eprintln!("skipped: cannot run unshare: {error}");
            return;
        }
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("wrote "), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0, "the mount was private");
}
