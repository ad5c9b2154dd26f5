//! The suite can fail: a sound plugin passes every case, and each of many flawed ones fails the case that is meant for
//! its flaw.

use std::path::{Path, PathBuf};

use outrigger_cni_verify::profile::Kind::{self, Ipam, Main, Meta};
use outrigger_cni_verify::{Target, cases};
use outrigger_verify_report::{Filter, Report, RunOptions, run};
use serde_json::json;

/// Flaw, the part that the plugin plays, and the case that must fail.
const FLAWS: &[(&str, Kind, &str)] = &[
    ("talks-on-stdout", Ipam, "ADD/prints-one-result"),
    ("error-on-stderr", Ipam, "errors/on-stdout-only"),
    ("error-exits-zero", Ipam, "errors/on-stdout-only"),
    ("error-without-code", Ipam, "errors/on-stdout-only"),
    ("error-code-zero", Ipam, "errors/on-stdout-only"),
    ("all-errors-are-999", Ipam, "versions/unknown"),
    ("no-version", Ipam, "VERSION/answers"),
    ("version-without-list", Ipam, "VERSION/answers"),
    ("version-lists-unreleased", Ipam, "VERSION/lists-released-versions-once"),
    ("any-version", Ipam, "versions/unknown"),
    ("unknown-command-succeeds", Ipam, "parameters/command-unknown"),
    ("parameters-unchecked", Ipam, "parameters/containerid-missing"),
    ("any-container-id", Ipam, "parameters/containerid-invalid"),
    ("junk-is-error-7", Ipam, "execution/stdin-junk"),
    ("panics-on-junk", Ipam, "execution/stdin-junk"),
    ("wrong-version-in-result", Ipam, "versions/cycle-0.4.0"),
    ("result-in-wrong-form", Ipam, "versions/cycle-0.4.0"),
    ("address-without-length", Ipam, "ADD/prints-one-result"),
    ("interface-out-of-range", Ipam, "ADD/prints-one-result"),
    ("refuses-unknown-keys", Ipam, "ADD/unknown-keys"),
    ("refuses-kubernetes-args", Ipam, "ADD/kubernetes-args"),
    ("leaks-with-bad-args", Ipam, "parameters/args-malformed"),
    ("blames-others-for-bad-args", Ipam, "parameters/args-malformed"),
    ("second-add-takes-more", Ipam, "ADD/second-fails-or-changes-nothing"),
    ("del-prints", Ipam, "DEL/prints-nothing"),
    ("del-fails-twice", Ipam, "DEL/twice"),
    ("del-fails-twice", Ipam, "DEL/never-added"),
    ("del-litters", Ipam, "DEL/never-added"),
    ("del-ignores-null-result", Ipam, "DEL/null-result"),
    ("del-wants-netns", Ipam, "DEL/netns-empty"),
    ("del-wants-result", Ipam, "DEL/without-result"),
    ("del-without-netns-leaks", Ipam, "DEL/netns-gone"),
    ("del-removes-all", Ipam, "DEL/other-container-stays"),
    ("leaks-address", Ipam, "DEL/leaves-nothing"),
    ("check-always-succeeds", Ipam, "CHECK/after-del"),
    ("check-always-succeeds", Main, "CHECK/after-del"),
    ("check-always-succeeds", Main, "CHECK/interface-gone"),
    ("check-always-succeeds", Main, "CHECK/address-gone"),
    ("check-changes", Ipam, "CHECK/changes-nothing"),
    ("gc-does-nothing", Ipam, "GC/removes-lost"),
    ("gc-removes-all", Ipam, "GC/keeps-valid"),
    ("status-fails", Ipam, "STATUS/ready"),
    ("status-prints", Ipam, "STATUS/ready"),
    ("address-doubled", Ipam, "concurrency/containers-at-once"),
    ("ignores-missing-result", Meta, "chain/without-result"),
    ("ignores-result", Meta, "chain/result-is-passed-on"),
    ("drops-dns", Meta, "chain/result-is-passed-on"),
    ("inserts-interface", Meta, "chain/result-is-passed-on"),
    ("changes-mac", Meta, "chain/result-is-passed-on"),
    ("changes-sandbox", Meta, "chain/result-is-passed-on"),
];

/// The example, built with the tests.
fn example() -> PathBuf {
    let tests = std::env::current_exe().expect("the test has an executable");
    let binary = tests.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>").join("examples/flawed");
    assert!(binary.is_file(), "{} is missing: cargo build -p outrigger-cni-verify --examples", binary.display());
    binary
}

fn verify(directory: &Path, flaw: &str, kind: Kind, filter: &str) -> Report {
    let path = directory.join(flaw);
    if !path.exists() {
        fs_err::copy(example(), &path).expect("the scratch directory has room");
    }
    let config = match kind {
        Ipam => json!({ "type": "main", "ipam": { "type": flaw } }),
        Main => json!({ "peer": "peer0" }),
        _ => json!({}),
    };
    let target = Target { path, plugins: Vec::new(), config: Some(config), kind: Some(kind) };
    let cases = cases(&target).expect("the plugin is there");
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
    for kind in [Ipam, Meta] {
        let report = verify(directory.path(), "sound", kind, "");
        assert!(!report.failed(true), "{}", report.table());
        assert!(report.counts().passed > 60, "{}", report.table());
    }
    // What makes an interface is sound as far as CHECK goes.
    let report = verify(directory.path(), "sound", Main, "CHECK");
    assert!(!report.failed(true) && report.counts().passed >= 8, "{}", report.table());
}

#[test]
fn every_flaw_is_found_by_the_case_that_is_meant_for_it() {
    if !root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut missed = Vec::new();
    for (flaw, kind, case) in FLAWS {
        let report = verify(directory.path(), flaw, *kind, case);
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
    let report = verify(directory.path(), "hangs-on-add", Ipam, "ADD/prints-one-result");
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
