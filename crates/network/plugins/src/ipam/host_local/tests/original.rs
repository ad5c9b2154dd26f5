//! The same directory under the original plugin and ours, in turn.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::super::store::Store;
use super::super::{Owner, RangeSet};
use super::{files, set};

/// The original plugin, if it is installed.
fn original() -> Option<PathBuf> {
    let path = PathBuf::from("/usr/lib/cni/host-local");
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: no {} (install containernetworking-plugins)", path.display());
    None
}

fn call(plugin: &Path, dir: &Path, command: &str, id: &str) -> Result<Vec<IpAddr>, Value> {
    let config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "bridge",
        "ipam": { "type": "host-local", "dataDir": dir, "ranges": [[{ "subnet": "10.1.0.0/28" }], [{ "subnet": "fd00::/64" }]] },
    });
    let mut child = Command::new(plugin)
        .env_clear()
        .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0")])
        .envs([("CNI_NETNS", "/proc/self/ns/net"), ("CNI_PATH", "/usr/lib/cni")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if !output.status.success() {
        return Err(value);
    }
    let ips = value["ips"].as_array().cloned().unwrap_or_default();
    Ok(ips.iter().map(|ip| ip["address"].as_str().unwrap().parse::<ipnet::IpNet>().unwrap().addr()).collect())
}

fn ours(dir: &Path, command: &str, id: &str) -> Result<Vec<IpAddr>, ()> {
    let sets: [RangeSet; 2] = [set("10.1.0.0/28"), set("fd00::/64")];
    let owner = Owner::new(id, "eth0");
    let mut store = Store::create(dir, "net").unwrap();
    if command == "DEL" {
        store.release(&owner).unwrap();
        return Ok(Vec::new());
    }
    if !store.held(&owner).unwrap().is_empty() {
        return Err(());
    }
    let mut given = Vec::new();
    for (index, set) in sets.iter().enumerate() {
        if let Some(candidate) = store.take_next(&owner, index, set).unwrap() {
            given.push(candidate.net.addr());
        } else {
            store.release(&owner).unwrap();
            return Err(());
        }
    }
    Ok(given)
}

#[test]
fn same_sequences_as_the_original() {
    let Some(plugin) = original() else { return };
    let (theirs_dir, ours_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut state = 7u64;
    for _ in 0..120 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let id = format!("c{}", (state >> 33) % 18);
        let command = if (state >> 60) < 6 { "DEL" } else { "ADD" };
        let theirs = call(&plugin, theirs_dir.path(), command, &id);
        let ours = ours(ours_dir.path(), command, &id);
        assert_eq!(theirs.clone().ok(), ours.ok(), "{command} {id}: {theirs:?}");
        assert_eq!(files(&theirs_dir.path().join("net")), files(&ours_dir.path().join("net")), "after {command} {id}");
    }
}

#[test]
fn each_deletes_what_the_other_added() {
    let Some(plugin) = original() else { return };
    let dir = tempfile::tempdir().unwrap();
    let net = dir.path().join("net");
    for round in 0..10 {
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let first = call(&plugin, dir.path(), "ADD", &a).unwrap();
        let second = ours(dir.path(), "ADD", &b).unwrap();
        assert!(first.iter().all(|address| !second.contains(address)));
        // Each sees the other's as a second ADD of the same attachment.
        assert!(ours(dir.path(), "ADD", &a).is_err());
        assert!(call(&plugin, dir.path(), "ADD", &b).is_err());
        call(&plugin, dir.path(), "CHECK", &b).unwrap();
        assert_eq!(files(&net).len(), 4);
        ours(dir.path(), "DEL", &a).unwrap();
        call(&plugin, dir.path(), "DEL", &b).unwrap();
        assert_eq!(files(&net).len(), 0, "{:?}", files(&net));
    }
}
