//! The suite can fail: a sound plugin passes every case, and each of many flawed ones fails the case that is meant for
//! its flaw.

use std::path::{Path, PathBuf};

use outrigger_cni_verify::profile::Kind;
use outrigger_cni_verify::{Target, cases};
use outrigger_verify_report::{Filter, Report, RunOptions, run};
use serde_json::json;

/// Flaw, whether the plugin is chained, and the case that must fail.
const FLAWS: &[(&str, bool, &str)] = &[
    ("talks-on-stdout", false, "ADD/prints-one-result"),
    ("error-on-stderr", false, "errors/on-stdout-only"),
    ("error-exits-zero", false, "errors/on-stdout-only"),
    ("error-without-code", false, "errors/on-stdout-only"),
    ("error-code-zero", false, "errors/on-stdout-only"),
    ("all-errors-are-999", false, "versions/unknown"),
    ("no-version", false, "VERSION/answers"),
    ("version-without-list", false, "VERSION/answers"),
    ("version-lists-unreleased", false, "VERSION/lists-released-versions-once"),
    ("any-version", false, "versions/unknown"),
    ("unknown-command-succeeds", false, "parameters/command-unknown"),
    ("parameters-unchecked", false, "parameters/containerid-missing"),
    ("any-container-id", false, "parameters/containerid-invalid"),
    ("junk-is-error-7", false, "execution/stdin-junk"),
    ("panics-on-junk", false, "execution/stdin-junk"),
    ("wrong-version-in-result", false, "versions/cycle-0.4.0"),
    ("result-in-wrong-form", false, "versions/cycle-0.4.0"),
    ("address-without-length", false, "ADD/prints-one-result"),
    ("interface-out-of-range", false, "ADD/prints-one-result"),
    ("refuses-unknown-keys", false, "ADD/unknown-keys"),
    ("refuses-kubernetes-args", false, "ADD/kubernetes-args"),
    ("second-add-takes-more", false, "ADD/second-fails-or-changes-nothing"),
    ("del-prints", false, "DEL/prints-nothing"),
    ("del-fails-twice", false, "DEL/twice"),
    ("del-fails-twice", false, "DEL/never-added"),
    ("del-wants-netns", false, "DEL/netns-empty"),
    ("del-wants-result", false, "DEL/without-result"),
    ("del-without-netns-leaks", false, "DEL/netns-gone"),
    ("del-removes-all", false, "DEL/other-container-stays"),
    ("leaks-address", false, "DEL/leaves-nothing"),
    ("check-changes", false, "CHECK/changes-nothing"),
    ("gc-does-nothing", false, "GC/removes-lost"),
    ("gc-removes-all", false, "GC/keeps-valid"),
    ("status-fails", false, "STATUS/ready"),
    ("status-prints", false, "STATUS/ready"),
    ("address-doubled", false, "concurrency/containers-at-once"),
    ("ignores-missing-result", true, "chain/without-result"),
    ("ignores-result", true, "chain/result-is-passed-on"),
    ("drops-dns", true, "chain/result-is-passed-on"),
    ("inserts-interface", true, "chain/result-is-passed-on"),
];

/// The example, built with the tests.
fn example() -> PathBuf {
    let tests = std::env::current_exe().expect("the test has an executable");
    let binary = tests.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>").join("examples/flawed");
    assert!(binary.is_file(), "{} is missing: cargo build -p outrigger-cni-verify --examples", binary.display());
    binary
}

fn verify(directory: &Path, flaw: &str, chained: bool, filter: &str) -> Report {
    let path = directory.join(flaw);
    if !path.exists() {
        fs_err::copy(example(), &path).expect("the scratch directory has room");
    }
    let config = if chained { json!({}) } else { json!({ "type": "main", "ipam": { "type": flaw } }) };
    let kind = Some(if chained { Kind::Meta } else { Kind::Ipam });
    let cases = cases(&Target { path, plugins: Vec::new(), config: Some(config), kind }).expect("the plugin is there");
    run(flaw, cases, &Filter::new([filter]), RunOptions::default(), |_| {})
}

#[expect(clippy::print_stderr, reason = "a test's words to whoever runs it")]
fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

#[test]
fn a_sound_plugin_passes() {
    if !root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for chained in [false, true] {
        let report = verify(directory.path(), "sound", chained, "");
        assert!(!report.failed(true), "{}", report.table());
        assert!(report.counts().passed > 60, "{}", report.table());
    }
}

#[test]
fn every_flaw_is_found_by_the_case_that_is_meant_for_it() {
    if !root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut missed = Vec::new();
    for (flaw, chained, case) in FLAWS {
        let report = verify(directory.path(), flaw, *chained, case);
        let record = report.records.iter().find(|record| record.id.ends_with(case));
        match record.map(outrigger_verify_report::Record::word) {
            Some("FAIL" | "fail") => {}
            other => missed.push(format!("{flaw}: {case} gave {other:?}: {}", report.table())),
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn a_plugin_that_hangs_is_stopped() {
    if !root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let report = verify(directory.path(), "hangs-on-add", false, "ADD/prints-one-result");
    assert_eq!(report.counts().failed, 1);
    assert!(report.records[0].reason().contains("did not end within"), "{}", report.table());
}

#[test]
fn what_cannot_be_verified_is_said() {
    let none = Target { path: "/none/such".into(), ..Target::default() };
    assert!(cases(&none).unwrap_err().to_string().starts_with("cannot look for plugins in /none/such"));
    let directory = tempfile::tempdir().unwrap();
    let target = Target { path: directory.path().to_owned(), ..Target::default() };
    assert!(cases(&target).unwrap_err().to_string().starts_with("there is no plugin to verify"));
    let target = Target { plugins: vec!["bridge".into()], ..target };
    assert!(cases(&target).unwrap_err().to_string().starts_with("there is no plugin \"bridge\""));
    let target = Target { config: Some(json!([])), plugins: Vec::new(), ..target };
    assert!(cases(&target).unwrap_err().to_string().starts_with("the configuration is no JSON object"));
}
