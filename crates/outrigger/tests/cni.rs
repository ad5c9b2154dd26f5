//! `outrigger cni` as an operator meets it, with plugins that do nothing but note their calls.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say what they skip"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use outrigger_testing::NetHost;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Notes each call, and fails where a file `fail.COMMAND` says how.
const PLUGIN: &str = r#"#!/bin/sh
dir=${0%/bin/*}
printf '%s %s %s/%s\n' "$CNI_COMMAND" "${0##*/}" "$CNI_CONTAINERID" "$CNI_IFNAME" >> "$dir/calls"
cat > /dev/null
if [ -e "$dir/fail.$CNI_COMMAND" ]; then cat "$dir/fail.$CNI_COMMAND"; exit 1; fi
if [ "$CNI_COMMAND" = VERSION ]; then echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}'; fi
if [ "$CNI_COMMAND" = ADD ]; then echo '{"cniVersion":"1.0.0"}'; fi
"#;

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        for name in ["bin", "net.d", "cni/results"] {
            fs_err::create_dir_all(bench.path(name)).unwrap();
        }
        bench.plugin("fake");
        bench
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs_err::write(self.path(name), text).unwrap();
    }

    fn plugin(&self, name: &str) {
        let path = self.path("bin").join(name);
        fs_err::write(&path, PLUGIN).unwrap();
        fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn network(&self, file: &str, name: &str, version: &str, plugin: &str) {
        let list = json!({ "cniVersion": version, "name": name, "plugins": [{ "type": plugin }] });
        self.put(&format!("net.d/{file}"), &list.to_string());
    }

    /// An attachment in the cache.
    fn cached(&self, network: &str, id: &str, netns: &str) {
        let content = json!({
            "kind": "cniCacheV1", "containerId": id, "ifName": "eth0", "networkName": network, "netns": netns, "config": "",
        });
        self.put(&format!("cni/results/{network}-{id}-eth0"), &content.to_string());
    }

    fn prepared<'a>(&self, command: &'a mut Command, args: &[&str]) -> &'a mut Command {
        command
            .arg("cni")
            .args(args)
            .env("NETCONFPATH", self.path("net.d"))
            .env("CNI_PATH", self.path("bin"))
            .env("OUTRIGGER_CNI_CACHE", self.path("cni"))
    }

    fn run(&self, args: &[&str]) -> Output {
        self.fed(args, "")
    }

    fn fed(&self, args: &[&str], stdin: &str) -> Output {
        self.put("stdin", stdin);
        let stdin = Stdio::from(fs_err::File::open(self.path("stdin")).unwrap().into_file());
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        self.prepared(&mut command, args).stdin(stdin).output().unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let said = said(&self.run(&[args, &["-o", "json"]].concat()));
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    }

    /// The calls since the last look.
    fn calls(&self) -> Vec<String> {
        let calls = fs_err::read_to_string(self.path("calls")).unwrap_or_default();
        let _ = fs_err::remove_file(self.path("calls"));
        calls.lines().map(str::to_owned).collect()
    }

    fn cache(&self) -> Vec<String> {
        let entries = fs_err::read_dir(self.path("cni/results")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Both outputs.
fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

/// A namespace that is there as long as this test runs.
fn live() -> String {
    format!("/proc/{}/ns/net", std::process::id())
}

#[test]
fn collecting_what_is_not_live_spares_what_cannot_be_judged() {
    let bench = Bench::new();
    bench.network("10-net.conflist", "net", "1.0.0", "fake");
    bench.network("20-net-b.conflist", "net-b", "1.0.0", "fake");
    let bare = |netns: &str| json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "sandbox": netns }] });
    bench.put("cni/results/net-bare-eth0", &bare(&live()).to_string());
    bench.put("cni/results/net-baregone-eth0", &bare("/run/netns/of-nobody").to_string());
    bench.put("cni/results/net-b-bare-eth0", &bare("/run/netns/of-nobody").to_string());
    bench.put("cni/results/net-new-eth0", r#"{"kind":"cniCacheV2"}"#);
    // libcni empties the file before it writes it: this pod may be starting now.
    bench.put("cni/results/net-starting-eth0", "");
    bench.put("cni/results/net-crashed-eth0", "");
    let before_boot = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let crashed = fs_err::OpenOptions::new().write(true).open(bench.path("cni/results/net-crashed-eth0")).unwrap();
    crashed.into_file().set_modified(before_boot).unwrap();
    bench.cached("net", "lives", &live());
    bench.cached("net", "gone", "/run/netns/of-nobody");

    let dry = bench.json(&["gc", "--all", "--live", "--dry-run"]);
    let ids: Vec<_> = dry[0]["calls"].as_array().unwrap().iter().map(|call| &call["env"]["CNI_CONTAINERID"]).collect();
    assert_eq!(ids, ["baregone", "crashed", "gone"]);
    let left: Vec<_> = dry[0]["left"].as_array().unwrap().iter().map(|left| left["why"].as_str().unwrap()).collect();
    assert!(left[0].contains("network \"net-b\" too") && left[1].contains("cniCacheV2"), "{left:?}");
    let text = said(&bench.run(&["gc", "--all", "--live", "--dry-run"]));
    assert!(text.contains("# net-b: left alone: ") && text.contains("may be that of network \"net\" too"), "{text}");
    assert_eq!((bench.calls(), bench.cache().len()), (vec![], 8));

    let text = said(&bench.run(&["gc", "--all", "--live"]));
    assert!(text.contains("net: deleted baregone/eth0, crashed/eth0, gone/eth0"), "{text}");
    assert!(text.contains("  left alone: ") && text.contains("net-b-bare-eth0"), "{text}");
    assert_eq!(bench.calls(), ["DEL fake baregone/eth0", "DEL fake crashed/eth0", "DEL fake gone/eth0"]);
    let left = ["net-b-bare-eth0", "net-bare-eth0", "net-lives-eth0", "net-new-eth0", "net-starting-eth0"];
    assert_eq!(bench.cache(), left);
    // The plugins would take for garbage what belongs to a file that nobody understands.
    let refused = bench.run(&["gc", "--all", "--live", "--with-plugins"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("net-new-eth0 cannot be judged"), "{}", said(&refused));
}

#[test]
fn a_list_of_valid_attachments_that_names_none_deletes_none() {
    let bench = Bench::new();
    bench.network("10-net.conflist", "net", "1.0.0", "fake");
    bench.cached("net", "c1", "/run/netns/of-nobody");
    bench.cached("net", "c2", "/run/netns/of-nobody");
    for (stdin, told) in [
        ("", "--none"),
        ("\n# none\n", "--none"),
        ("crictl: cannot connect\n", "valid attachment \"crictl: cannot connect\"; nothing was deleted: container id"),
        ("c1/eth 0\n", "interface name"),
    ] {
        let output = bench.fed(&["gc", "net", "--valid-from", "-"], stdin);
        assert_eq!(output.status.code(), Some(1), "{stdin:?}");
        assert!(said(&output).contains(told), "{stdin:?}: {}", said(&output));
    }
    assert_eq!(bench.calls(), [""; 0]);
    assert!(bench.fed(&["gc", "net", "--valid-from", "-"], "c1\n").status.success());
    assert_eq!(bench.calls(), ["DEL fake c2/eth0"]);
    assert!(bench.run(&["gc", "net", "--none"]).status.success());
    assert_eq!(bench.cache(), [""; 0]);
}

#[test]
fn an_add_by_mistake_leaves_the_pod_its_interface() {
    const NAME: &str = "an_add_by_mistake_leaves_the_pod_its_interface";
    if !NetHost::available() {
        eprintln!("SKIPPED {NAME}: needs root");
        return;
    }
    let (bench, host) = (Bench::new(), NetHost::new().unwrap());
    bench.network("10-net.conflist", "net", "1.0.0", "fake");
    bench.plugin("loopback");
    bench.network("20-lo.conflist", "lo", "1.0.0", "loopback");
    let netns = host.container("pod1").unwrap();
    let netns = netns.to_str().unwrap();
    host.container_sh("pod1", "ip link add eth0 type veth peer name eth1").unwrap();
    let run = |args: &[&str]| {
        let mut command = host.command(env!("CARGO_BIN_EXE_outrigger"));
        let output = bench.prepared(&mut command, args).output().unwrap();
        (output.status.success(), said(&output))
    };
    for ifname in ["eth0", "lo"] {
        let (done, text) = run(&["add", "net", netns, "-i", ifname]);
        assert!(!done && text.contains(&format!("{ifname} is in {netns} already")), "{text}");
    }
    assert_eq!(bench.calls(), [""; 0]);
    host.container_sh("pod1", "ip link show eth0").unwrap();
    let (done, text) = run(&["add", "lo", netns, "-i", "lo"]);
    assert!(done, "{text}");
    let (done, text) = run(&["add", "net", netns, "-i", "net1"]);
    assert!(done, "{text}");
    assert_eq!(bench.calls().len(), 2);

    // What cannot work is refused before a namespace is made.
    bench.network("30-absent.conflist", "absent", "1.0.0", "absent");
    for args in [&["add", "absent", "new"][..], &["add", "net", "new", "--args", "K=a=b"]] {
        let (done, text) = run(&[args, &["--create-netns"]].concat());
        assert!(!done && (text.contains("in none of the plugin") || text.contains("CNI argument")), "{text}");
    }
    assert!(!host.sh("ls /run/netns").unwrap().contains("new"));
    assert_eq!(bench.calls(), [""; 0]);

    // The cause comes first, and is not told twice.
    for (del, told) in [
        ("busy", "failed to ADD: busy\n"),
        ("worse", "failed to ADD: busy; undoing it failed too: plugin \"fake\" failed to DEL: worse"),
    ] {
        bench.put("fail.ADD", r#"{"code":11,"msg":"busy"}"#);
        bench.put("fail.DEL", &json!({ "code": 11, "msg": del }).to_string());
        let (_, text) = run(&["add", "net", "new", "--create-netns"]);
        assert!(text.starts_with("outrigger: plugin \"fake\"") && text.contains(told), "{text}");
        assert_eq!(bench.calls().len(), 2);
    }
    let (_, text) = run(&["add", "net", "new", "--create-netns", "--keep-failed"]);
    assert!(text.contains("busy; what was made stays") && text.contains("--ifname eth0"), "{text}");
}

#[test]
fn the_list_says_what_runtimes_make_of_broken_files() {
    let bench = Bench::new();
    let used = |listed: &Value| listed.as_array().unwrap().iter().map(|row| row["usedBy"].clone()).collect::<Vec<_>>();
    bench.network("20-absent.conflist", "absent", "1.0.0", "absent");
    bench.network("30-good.conflist", "good", "1.0.0", "fake");
    assert_eq!(used(&bench.json(&["list"])), [json!(["containerd"]), json!(["CRI-O"])]);
    bench.put("net.d/10-broken.conflist", "{");
    assert_eq!(used(&bench.json(&["list"])), [json!([]), json!([]), json!(["CRI-O"])]);
    let text = said(&bench.run(&["list"]));
    assert!(text.contains("containerd stops here"), "{text}");
    bench.network("05-good.conf.conflist", "first", "1.0.0", "fake");
    assert_eq!(used(&bench.json(&["list"]))[0], json!(["containerd", "CRI-O"]));
    assert!(!said(&bench.run(&["list"])).contains("containerd stops here"));

    // STATUS has a word for each of them.
    let status = bench.run(&["status"]);
    assert_eq!(status.status.code(), Some(4), "{}", said(&status));
    let told = bench.json(&["status"]);
    let row = |name: &str| told.as_array().unwrap().iter().find(|row| row["network"] == name).unwrap();
    assert!(row("absent")["ready"] == false && row("absent")["why"].as_str().unwrap().contains("in none"), "{told}");
    assert!(row("?")["ready"] == false && row("?")["why"].as_str().unwrap().contains("10-broken"), "{told}");
    assert!(row("good")["ready"] == true && row("good")["why"].as_str().unwrap().contains("no STATUS"), "{told}");
    assert_eq!(bench.calls(), [""; 0]);
    bench.network("05-good.conf.conflist", "first", "1.1.0", "fake");
    let told = bench.run(&["status", "first"]);
    assert!(told.status.success() && bench.calls() == ["STATUS fake /"], "{}", said(&told));
}

#[test]
fn tables_hold_no_nonsense() {
    let bench = Bench::new();
    bench.plugin("outrigger-cni");
    bench.plugin(".fake.1.tmp");
    let told = bench.json(&["version"]);
    assert_eq!((told.as_array().unwrap().len(), &told[0]["plugin"]), (1, &json!("fake")), "{told}");
    bench.cached("net", "known", &live());
    bench.cached("net", "lost", "/run/netns/of-nobody");
    bench.cached("net", "unsaid", "");
    let told = bench.json(&["cache"]);
    let states: Vec<_> = told.as_array().unwrap().iter().map(|row| row["live"].clone()).collect();
    assert_eq!(states, [json!(true), json!(false), Value::Null]);
    let text = said(&bench.run(&["cache"]));
    assert!(text.contains("live") && text.contains("namespace gone") && text.contains("unknown"), "{text}");
}

#[test]
fn who_is_meant_must_be_said() {
    let bench = Bench::new();
    bench.network("10-net.conflist", "net", "1.0.0", "fake");
    let output = bench.run(&["del", "net"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--container-id <ID>") && text.contains("NETNS"), "{text}");
    for args in [&["del", "net"][..], &["add", "net"], &["check"], &["gc", "net"]] {
        let text = said(&bench.run(args));
        assert!(
            text.contains("Usage: ") && !text.contains("--config-dir") && !text.contains("--plugin-dirs"),
            "{text}"
        );
    }
    assert!(bench.run(&["del", "net", "--container-id", "c1"]).status.success());
    assert_eq!(bench.calls(), ["DEL fake c1/eth0"]);
}
