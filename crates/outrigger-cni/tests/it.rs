//! The multi-call binary as an operator meets it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say what they skip"
)]

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use outrigger_testing::{NetHost, ScratchDir};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_outrigger-cni");

fn outrigger(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).env_remove("CNI_COMMAND").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output of a command that must succeed.
fn ok(args: &[&str]) -> String {
    let output = outrigger(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Exit code and standard error of a command that must fail.
fn refused(args: &[&str]) -> (i32, String) {
    let output = outrigger(args);
    assert!(!output.status.success(), "{args:?}: {}", text(&output.stdout));
    (output.status.code().unwrap(), text(&output.stderr))
}

fn names() -> Vec<String> {
    ok(&["list"]).lines().map(str::to_owned).collect()
}

fn id(path: &Path) -> (u64, u64) {
    let metadata = fs_err::metadata(path).unwrap();
    (metadata.dev(), metadata.ino())
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Another plugin of a name.
fn foreign(dir: &Path, name: &str, says: &str) -> PathBuf {
    let path = dir.join(name);
    fs_err::write(&path, format!("#!/bin/sh\necho {says}\n")).unwrap();
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The answer of a plugin to VERSION.
fn version(plugin: &Path) -> Result<Value> {
    let output = Command::new(plugin).env("CNI_COMMAND", "VERSION").stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}: {}", output.status, text(&output.stdout));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn words() {
    assert!(ok(&["--help"]).contains("outrigger-cni install DIR"));
    assert_eq!(ok(&["--version"]), format!("outrigger-cni {}\n", env!("CARGO_PKG_VERSION")));
    let names = names();
    assert!(names.is_sorted() && names.iter().any(|name| name == "bridge"), "{names:?}");
    assert!(ok(&["help", "bridge"]).starts_with("# bridge\n"));
    for wrong in [
        &[][..],
        &["frobnicate"],
        &["--frobnicate"],
        &["help", "frobnicate"],
        &["list", "x"],
        &["install"],
        &["install", ""],
        &["install", "--only"],
        &["install", "/nowhere", "/nowhere"],
        &["install", "/nowhere", "--frobnicate"],
        &["install", "/nowhere", "--only"],
        &["install", "/nowhere", "--only", ""],
        &["install", "/nowhere", "--only=frobnicate"],
        &["install", "/nowhere", "--only", "bridge,,ptp"],
        &["install", "/dev/null"],
        &["uninstall"],
        &["uninstall", "/nowhere"],
        &["uninstall", "/dev/null"],
        &["uninstall", "--all"],
    ] {
        let (code, said) = refused(wrong);
        assert_eq!(code, 2, "{wrong:?}: {said}");
        assert!(said.starts_with("outrigger-cni: ") && said.contains("--help"), "{wrong:?}: {said}");
    }
    assert!(refused(&["install", "/nowhere", "--only", "x"]).1.contains("bridge, "));
    assert!(!Path::new("/nowhere").exists());
}

#[test]
fn it_is_the_plugin_it_is_called_as() {
    let dir = ScratchDir::new().unwrap();
    for name in names() {
        let link = dir.join(&name);
        std::os::unix::fs::symlink(BINARY, &link).unwrap();
        assert_eq!(version(&link).unwrap()["cniVersion"], "1.1.0", "{name}");
        let output = Command::new(&link).env_remove("CNI_COMMAND").output().unwrap();
        assert!(output.status.success() && output.stdout.is_empty(), "{name}");
        assert!(text(&output.stderr).contains("CNI protocol versions supported: "), "{name}");
        let output = Command::new(BINARY).arg(&name).env("CNI_COMMAND", "VERSION").output().unwrap();
        assert!(output.status.success() && output.stdout.starts_with(b"{"), "{name}");
    }
    // Under a name that is no plugin's it is itself; to a runtime it says so in the runtime's language.
    let other = dir.join("frobnicate");
    std::os::unix::fs::symlink(BINARY, &other).unwrap();
    assert!(Command::new(&other).arg("list").output().unwrap().status.success());
    let output = Command::new(&other).env("CNI_COMMAND", "ADD").output().unwrap();
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &error["code"]), (Some(1), &Value::from(7)));
}

#[test]
fn into_an_empty_directory() {
    let scratch = ScratchDir::new().unwrap();
    let dir = scratch.join("opt/cni/bin");
    let said = ok(&["install", dir.to_str().unwrap()]);
    let mut expected = names();
    assert!(said.contains(&format!("{0} plugins: {0} new, 0 updated, 0 in place of others", expected.len())), "{said}");
    let linked = |name: &&String| id(&dir.join(name)) == id(&dir.join("outrigger-cni"));
    assert_eq!(expected.iter().filter(linked).count(), expected.len() - 1, "all but flannel");
    assert_eq!(fs_err::metadata(dir.join("bridge")).unwrap().mode() & 0o7777, 0o755);
    expected.push("outrigger-cni".to_owned());
    expected.sort();
    assert_eq!(entries(&dir), expected);
    for name in ["bridge", "flannel"] {
        assert_eq!(version(&dir.join(name)).unwrap()["cniVersion"], "1.1.0");
    }
    let said = ok(&["uninstall", dir.to_str().unwrap()]);
    assert!(said.contains(&format!("{} removed, 0 put back", expected.len())), "{said}");
    assert!(entries(&dir).is_empty());
}

#[test]
fn other_plugins_are_kept_and_come_back() {
    let scratch = ScratchDir::new().unwrap();
    let dir = scratch.path();
    let path = dir.to_str().unwrap();
    foreign(dir, "bridge", "theirs");
    foreign(dir, "calico", "calico");
    std::os::unix::fs::symlink("/usr/lib/elsewhere/ptp", dir.join("ptp")).unwrap();
    let said = ok(&["install", path, "--only", "bridge,ptp,loopback"]);
    assert!(said.contains("3 plugins: 1 new, 0 updated, 2 in place of others"), "{said}");
    assert!(said.contains("replaced: bridge") && said.contains("replaced: ptp"), "{said}");
    assert_eq!(entries(dir), [".outrigger-replaced", "bridge", "calico", "loopback", "outrigger-cni", "ptp"]);
    // Again: what is kept stays what it was.
    let said = ok(&["install", path, "--only=ptp, bridge"]);
    assert!(said.contains("2 plugins: 0 new, 2 updated, 0 in place of others"), "{said}");
    // The operator put a newer one there since.
    fs_err::remove_file(dir.join("bridge")).unwrap();
    foreign(dir, "bridge", "newer");
    ok(&["install", path]);
    let said = ok(&["uninstall", path]);
    assert!(said.contains("2 put back") && said.contains("put back: bridge"), "{said}");
    assert_eq!(entries(dir), ["bridge", "calico", "ptp"]);
    assert!(fs_err::read_to_string(dir.join("bridge")).unwrap().contains("newer"));
    assert_eq!(fs_err::read_link(dir.join("ptp")).unwrap(), Path::new("/usr/lib/elsewhere/ptp"));
}

#[test]
fn another_version_of_ours_is_updated() {
    let scratch = ScratchDir::new().unwrap();
    let (dir, path) = (scratch.path(), scratch.path().to_str().unwrap());
    fs_err::copy(BINARY, dir.join("bridge")).unwrap();
    // What an interrupted run leaves.
    for junk in [".bridge.123.tmp", ".outrigger-cni.4.tmp"] {
        fs_err::write(dir.join(junk), "half").unwrap();
    }
    for kept in [".bridge.x.tmp", ".other.1.tmp", ".bridge.tmp"] {
        fs_err::write(dir.join(kept), "not ours").unwrap();
    }
    let said = ok(&["install", path, "--only", "bridge"]);
    assert!(said.contains("1 plugins: 0 new, 1 updated, 0 in place of others"), "{said}");
    assert_eq!(entries(dir), [".bridge.tmp", ".bridge.x.tmp", ".other.1.tmp", "bridge", "outrigger-cni"]);
    // From its own place too.
    let output = Command::new(dir.join("outrigger-cni")).args(["install", path]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(version(&dir.join("ptp")).unwrap()["cniVersion"], "1.1.0");
}

/// What the init containers of other projects do, and operators.
fn cp(from: &Path, to: &Path) {
    let output = Command::new("cp").arg("-f").arg(from).arg(to).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Whether a file is the one that [`foreign`] made.
fn says(path: &Path, word: &str) -> bool {
    fs_err::read(path).unwrap().ends_with(format!("echo {word}\n").as_bytes())
}

#[test]
fn flannel_is_written_over_alone() {
    let scratch = ScratchDir::new().unwrap();
    let dir = scratch.join("bin");
    let path = dir.to_str().unwrap();
    ok(&["install", path]);
    let theirs = foreign(scratch.path(), "flannel", "theirs");
    cp(&theirs, &dir.join("flannel"));
    assert!(says(&dir.join("flannel"), "theirs"));
    for name in ["bridge", "host-local", "outrigger-cni"] {
        assert_eq!(fs_err::read(dir.join(name)).unwrap(), fs_err::read(BINARY).unwrap(), "{name}");
    }
    let said = ok(&["install", path]);
    assert!(said.contains("1 in place of others") && said.contains("replaced: flannel"), "{said}");
    assert!(!said.contains("overwritten"), "{said}");
    assert!(version(&dir.join("flannel")).is_ok());
    ok(&["uninstall", path]);
    assert_eq!(entries(&dir), ["flannel"]);
    assert!(says(&dir.join("flannel"), "theirs"));
}

/// As in a container with nothing but the binary.
#[test]
fn without_a_shell_flannel_is_a_copy() {
    let scratch = ScratchDir::new().unwrap();
    let (dir, empty) = (scratch.join("bin"), scratch.join("empty"));
    fs_err::create_dir(&empty).unwrap();
    let shells = fs_err::canonicalize("/bin").unwrap();
    let hidden = Command::new("unshare")
        .args(["-m", "sh", "-c", r#"mount --bind "$1" "$2" && exec "$3" install "$4""#, "sh"])
        .args([&empty, &shells, Path::new(BINARY), &dir])
        .output()
        .unwrap();
    if !hidden.status.success() && !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED without_a_shell_flannel_is_a_copy: needs root");
        return;
    }
    assert!(hidden.status.success(), "{}", text(&hidden.stderr));
    assert_ne!(id(&dir.join("flannel")), id(&dir.join("outrigger-cni")));
    assert_eq!(fs_err::read(dir.join("flannel")).unwrap(), fs_err::read(BINARY).unwrap());
    assert!(version(&dir.join("flannel")).is_ok());
    // Now that there is one, a script takes its place.
    assert!(ok(&["install", dir.to_str().unwrap()]).contains("0 in place of others"));
    assert!(fs_err::metadata(dir.join("flannel")).unwrap().len() < 4096);
}

#[test]
fn what_was_copied_onto_one_name_is_not_taken_for_all() {
    for again in [true, false] {
        let scratch = ScratchDir::new().unwrap();
        let dir = scratch.join("bin");
        let path = dir.to_str().unwrap();
        fs_err::create_dir(&dir).unwrap();
        for name in ["bridge", "ptp"] {
            foreign(&dir, name, &format!("genuine {name}"));
        }
        ok(&["install", path]);
        cp(&foreign(scratch.path(), "new", "copied"), &dir.join("bridge"));
        assert!(says(&dir.join("host-local"), "copied") && says(&dir.join("outrigger-cni"), "copied"));
        if again {
            // Also the names that were not asked for.
            let said = ok(&["install", path, "--only", "host-local"]);
            assert!(said.contains("0 in place of others") && said.contains("overwritten: host-local, "), "{said}");
            assert!(!said.contains("flannel"), "{said}");
            assert!(names().iter().all(|name| version(&dir.join(name)).is_ok()));
            assert_eq!(entries(&dir.join(".outrigger-replaced")), ["bridge", "ptp"]);
            assert!(!ok(&["install", path]).contains("overwritten"), "it is good now");
        }
        let said = ok(&["uninstall", path]);
        assert_eq!(said.contains("overwritten: "), !again, "{said}");
        assert!(said.contains(&format!("{} removed, 2 put back", names().len() + 1 - 2)), "{said}");
        assert_eq!(entries(&dir), ["bridge", "ptp"]);
        assert!(["bridge", "ptp"].iter().all(|name| says(&dir.join(name), &format!("genuine {name}"))));
    }
}

#[test]
fn links_that_were_there_before_are_others() {
    let scratch = ScratchDir::new().unwrap();
    let (dir, path) = (scratch.path(), scratch.path().to_str().unwrap());
    fs_err::hard_link(foreign(dir, "bridge", "many"), dir.join("ptp")).unwrap();
    let said = ok(&["install", path]);
    assert!(said.contains("2 in place of others") && !said.contains("overwritten"), "{said}");
    assert!(ok(&["uninstall", path]).contains("2 put back"));
    assert!(says(&dir.join("bridge"), "many") && says(&dir.join("ptp"), "many"));
}

#[test]
fn a_directory_in_the_way_is_not_touched() {
    let scratch = ScratchDir::new().unwrap();
    let dir = scratch.path();
    fs_err::create_dir(dir.join("bridge")).unwrap();
    let (code, said) = refused(&["install", dir.to_str().unwrap()]);
    assert!(code == 1 && said.contains("bridge: is a directory"), "{said}");
    assert_eq!(entries(dir), ["bridge"]);
}

#[test]
fn plugins_run_while_they_are_replaced() {
    let scratch = ScratchDir::new().unwrap();
    let dir = scratch.path();
    ok(&["install", dir.to_str().unwrap()]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let user = scope.spawn(|| {
            let mut calls = 0;
            while !stop.load(Ordering::Relaxed) || calls == 0 {
                version(&dir.join("bridge")).unwrap();
                calls += 1;
            }
            calls
        });
        for _ in 0..10 {
            ok(&["install", dir.to_str().unwrap()]);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(user.join().unwrap() > 1);
    });
}

#[test]
fn it_links_nothing_heavy() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "-p", "outrigger-cni", "-e", "normal", "--prefix", "none", "-f", "{lib}"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let tree = text(&output.stdout);
    assert!(tree.contains("serde_json"), "{tree}");
    for banned in ["tokio", "tonic", "kube", "hyper", "clap", "regex", "tracing", "openssl", "chrono"] {
        assert!(!tree.lines().any(|line| line.trim() == banned), "{banned} is linked:\n{tree}");
    }
}

/// The binary as scripts/build-cni.sh builds it: `OUTRIGGER_CNI_SHIPPED`, else where the script puts it.
fn shipped() -> Option<PathBuf> {
    let built = || {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        target.join(format!("{}-unknown-linux-gnu/plugin/outrigger-cni", std::env::consts::ARCH))
    };
    let path = std::env::var_os("OUTRIGGER_CNI_SHIPPED").map_or_else(built, PathBuf::from);
    path.is_file().then_some(path)
}

#[test]
fn as_shipped_it_is_small() {
    let Some(binary) = shipped() else {
        eprintln!("SKIPPED as_shipped_it_is_small: scripts/build-cni.sh has not been run");
        return;
    };
    let scratch = ScratchDir::new().unwrap();
    let dir = scratch.path();
    assert!(Command::new(&binary).arg("install").arg(dir).status().unwrap().success());
    // What `du` says of the directory: each file once, however many names it has.
    let mut files: Vec<_> = entries(dir).iter().map(|name| fs_err::metadata(dir.join(name)).unwrap()).collect();
    files.sort_by_key(MetadataExt::ino);
    files.dedup_by_key(|file| file.ino());
    let size: u64 = files.iter().map(|file| file.blocks() * 512).sum();
    let mut process = Command::new(dir.join("bridge"));
    process.env("CNI_COMMAND", "VERSION");
    let (rss, answer) = peak_memory(process, "").unwrap();
    assert!(answer.contains("supportedVersions"), "{answer}");
    eprintln!("directory: {size} bytes; VERSION: {rss} KiB at most");
    assert!(size <= 4 << 20, "the directory has {size} bytes");
    assert!(rss <= MEMORY, "VERSION took {rss} KiB");
    // Static: no loader, no libraries that a host could lack.
    assert!(!fs_err::read(&binary).unwrap().windows(11).any(|window| window == b"/ld-linux-x"));
}

/// What a plugin may have in memory at most, in KiB.
const MEMORY: u64 = 3 << 10;

#[test]
fn as_shipped_it_needs_little_memory() {
    let Some(binary) = shipped() else {
        eprintln!("SKIPPED as_shipped_it_needs_little_memory: scripts/build-cni.sh has not been run");
        return;
    };
    if !NetHost::available() {
        eprintln!("SKIPPED as_shipped_it_needs_little_memory: it makes network namespaces, which needs root");
        return;
    }
    let scratch = ScratchDir::new().unwrap();
    let dir = scratch.path();
    assert!(Command::new(&binary).arg("install").arg(dir).status().unwrap().success());
    let ipam =
        json!({ "type": "host-local", "ranges": [[{ "subnet": "10.5.0.0/16" }], [{ "subnet": "fd00:5::/64" }]] });
    let bridge = json!({ "type": "bridge", "isDefaultGateway": true, "ipMasq": true, "ipam": ipam });
    let mappings = [80, 53].map(|port| json!({ "hostPort": 8000 + port, "containerPort": port, "protocol": "tcp" }));
    let limits =
        json!({ "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000 });
    let chain = json!({ "type": "outrigger", "capabilities": { "portMappings": true, "bandwidth": true },
        "runtimeConfig": { "portMappings": mappings, "bandwidth": limits },
        "plugins": [bridge, { "type": "portmap", "capabilities": { "portMappings": true } }, { "type": "firewall" },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } }, { "type": "tuning", "mtu": 1400 }] });
    let host_local = json!({ "type": "host-local", "ipam": ipam });
    // An address each in a file of its own, as host-local and the original keep them.
    let taken = "mkdir -p /var/lib/cni/networks/net; cd /var/lib/cni/networks/net; i=0; while [ $i -lt 10000 ]; do \
        printf 'other%s\\r\\neth0' $i > 10.5.$((i / 250)).$((i % 250 + 2)); i=$((i + 1)); done; \
        printf 10.5.39.251 > last_reserved_ip.0";
    for (what, setup, config) in [
        ("bridge", "true", bridge.clone()),
        ("the fast chain", "true", chain),
        ("host-local, 10,000 addresses", taken, host_local),
    ] {
        let host = NetHost::new().unwrap();
        let netns = host.container("c1").unwrap();
        host.sh(setup).unwrap();
        let mut config = config;
        config["cniVersion"] = "1.0.0".into();
        config["name"] = "net".into();
        let plugin = dir.join(config["type"].as_str().unwrap());
        // The first ADD, which makes what all share, or knows nothing of the addresses yet.
        let process = host.plugin(&plugin, "ADD", "c1", &netns, "eth0");
        let (added, answer) = peak_memory(process, &config.to_string()).unwrap();
        config["prevResult"] = serde_json::from_str(&answer).unwrap();
        assert!(config["prevResult"]["ips"][0]["address"].as_str().is_some(), "{answer}");
        eprintln!("{what}: {added} KiB at most");
        assert!(added <= MEMORY, "ADD of {what} took {added} KiB");
        NetHost::call(&mut host.plugin(&plugin, "DEL", "c1", &netns, "eth0"), &config).unwrap().ok().unwrap();
    }
}

/// The peak resident set in KiB of a plugin, as it is when it writes its answer, and that answer: it is its last act, and
/// it waits there because the pipe is full.
fn peak_memory(mut process: Command, input: &str) -> Result<(u64, String)> {
    let (mut reader, mut writer) = std::io::pipe()?;
    rustix::pipe::fcntl_setpipe_size(&writer, 4096)?;
    writer.write_all(&[b' '; 4096])?;
    let mut child = process.stdin(Stdio::piped()).stdout(writer).spawn()?;
    // Its copy of the pipe's end would keep the pipe open.
    drop(process);
    child.stdin.take().context("stdin")?.write_all(input.as_bytes())?;
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let deadline = Instant::now() + Duration::from_secs(10);
    // Its system call is write once it waits. The kernel gives no event for that.
    while !fs_err::read_to_string(proc.join("wchan")).is_ok_and(|wchan| wchan.contains("pipe_write")) {
        ensure!(Instant::now() < deadline, "the plugin did not come to write its answer");
        ensure!(child.try_wait()?.is_none(), "the plugin ended before its answer was read");
        std::thread::yield_now();
    }
    let status = fs_err::read_to_string(proc.join("status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let peak = peak.trim().trim_end_matches(" kB").parse()?;
    let mut answer = String::new();
    reader.read_to_string(&mut answer)?;
    ensure!(child.wait()?.success(), "{answer}");
    Ok((peak, answer))
}
