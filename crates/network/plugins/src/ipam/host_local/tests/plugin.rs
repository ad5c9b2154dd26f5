//! The plugin as runtimes call it.

use std::path::Path;

use fs_err as fs;
use serde_json::{Value, json};

use super::files;
use crate::ipam::host_local::HostLocal;
use crate::ipam::testing::{Invocation, Outcome, original, same};

fn config(dir: &Path, ipam: Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": { "type": "host-local", "dataDir": dir }
    });
    for (key, value) in ipam.as_object().unwrap() {
        config["ipam"][key] = value.clone();
    }
    config
}

fn ours(command: &'static str, id: &str, config: &Value) -> Outcome {
    Invocation::new(command, id, config.clone()).ours(&HostLocal)
}

fn code(outcome: Outcome) -> (u64, String) {
    let error = outcome.unwrap_err();
    (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
}

#[test]
fn life_of_an_attachment() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(
        dir.path(),
        json!({"ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00::/64"}]], "routes": [{"dst": "0.0.0.0/0"}]}),
    );
    let result = ours("ADD", "a", &config).unwrap();
    let expected = json!({
        "cniVersion": "1.0.0",
        "ips": [
            {"address": "10.1.0.2/29", "gateway": "10.1.0.1"},
            {"address": "fd00::2/64", "gateway": "fd00::1"}
        ],
        "routes": [{"dst": "0.0.0.0/0"}]
    });
    assert_eq!(result, expected);
    let (number, msg) = code(ours("ADD", "a", &config));
    assert_eq!(number, 999);
    assert!(msg.contains("10.1.0.2 has been allocated to a (eth0) already, duplicate allocation"), "{msg}");
    assert_eq!(files(&dir.path().join("net")).len(), 2, "the first ADD's addresses are still held");
    config["prevResult"] = result;
    ours("CHECK", "a", &config).unwrap();
    assert!(ours("CHECK", "b", &config).is_err());
    ours("DEL", "a", &config).unwrap();
    ours("DEL", "a", &config).unwrap();
    assert!(ours("CHECK", "a", &config).is_err());
}

#[test]
fn del_and_gc_work_with_a_configuration_that_became_wrong() {
    let dir = tempfile::tempdir().unwrap();
    ours("ADD", "a", &config(dir.path(), json!({"subnet": "10.1.0.0/29"}))).unwrap();
    ours("ADD", "b", &config(dir.path(), json!({"subnet": "10.1.0.0/29"}))).unwrap();
    let wrong = json!({"subnet": 7, "ranges": {}, "rangeStart": "x", "routes": "y", "resolvConf": "/nonexistent"});
    let mut wrong = config(dir.path(), wrong);
    ours("DEL", "a", &wrong).unwrap();
    wrong["cniVersion"] = json!("1.1.0");
    wrong["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth1"}]);
    ours("GC", "", &wrong).unwrap();
    assert_eq!(files(&dir.path().join("net")).len(), 0);
    assert!(ours("STATUS", "", &wrong).is_err());
}

#[test]
fn status_is_honest() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), json!({"ranges": [[{"subnet": "fd00::/64"}], [{"subnet": "10.1.0.0/30"}]]}));
    config["cniVersion"] = json!("1.1.0");
    ours("STATUS", "", &config).unwrap();
    assert!(!dir.path().join("net").exists(), "asking makes nothing");
    ours("ADD", "a", &config).unwrap();
    let (number, msg) = code(ours("STATUS", "", &config));
    assert_eq!(number, 50);
    let text = "host-local: range set 1: no IP addresses available in range set: 10.1.0.1-10.1.0.2: all 1 are taken";
    assert_eq!(msg, text);
    let (number, msg) = code(ours("ADD", "b", &config));
    assert_eq!(number, 11);
    assert!(msg.contains("failed to allocate for range set 1: no IP addresses available in range set: "), "{msg}");
    assert_eq!(files(&dir.path().join("net")).len(), 2, "what b had got of the first set is given back");
    let mut broken = config.clone();
    fs::write(dir.path().join("file"), "").unwrap();
    broken["ipam"]["dataDir"] = json!(dir.path().join("file"));
    let (number, msg) = code(ours("STATUS", "", &broken));
    assert_eq!(number, 50);
    assert!(msg.contains(dir.path().join("file").to_str().unwrap()), "{msg}");
    assert_eq!(code(ours("ADD", "b", &broken)).0, 5);
}

#[test]
fn gc_keeps_what_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), json!({"subnet": "10.1.0.0/24"}));
    config["cniVersion"] = json!("1.1.0");
    for id in ["a", "b", "c"] {
        ours("ADD", id, &config).unwrap();
    }
    let (number, _) = code(ours("GC", "", &config));
    assert_eq!(number, 7, "a missing list is no empty list");
    config["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    ours("GC", "", &config).unwrap();
    assert_eq!(files(&dir.path().join("net")).into_keys().collect::<Vec<_>>(), ["10.1.0.3"]);
    config["ipam"]["dataDir"] = json!(dir.path().join("nothing"));
    ours("GC", "", &config).unwrap();
}

#[test]
fn after_a_reboot() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), json!({"subnet": "10.1.0.0/24", "reclaimAfterReboot": true}));
    ours("ADD", "a", &config).unwrap();
    ours("ADD", "b", &config).unwrap();
    // As if it had all been in an earlier life of the machine.
    let noted = dir.path().join(".outrigger/net/.boot");
    fs::remove_file(&noted).unwrap();
    std::os::unix::fs::symlink("another", &noted).unwrap();
    let old = dir.path().join("net/10.1.0.2");
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(&old).unwrap().file().set_modified(long_ago).unwrap();
    ours("ADD", "c", &config).unwrap();
    assert_eq!(files(&dir.path().join("net")).into_keys().collect::<Vec<_>>(), ["10.1.0.3", "10.1.0.4"]);
}

/// Every configuration has the same outcome with the original; where ours refuses more, it is said why.
#[test]
fn same_outcomes_as_the_original() {
    let Some(plugin) = original("host-local") else { return };
    let resolv = tempfile::NamedTempFile::new().unwrap();
    fs::write(resolv.path(), "nameserver 192.0.2.1\nsearch a b\noptions x\n").unwrap();
    let ipams = [
        json!({"subnet": "10.1.0.0/24"}),
        json!({"subnet": "10.1.0.0/30"}),
        json!({"subnet": "10.1.0.0/31"}),
        json!({"subnet": "10.1.0.0/32"}),
        json!({"subnet": "10.1.0.1/24"}),
        json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.7", "rangeEnd": "10.1.0.9"}),
        json!({"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"}),
        json!({"subnet": "10.1.0.0/24", "rangeEnd": "10.2.0.1"}),
        json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.3"}),
        json!({"subnet": "10.1.0.0/24", "gateway": "10.9.0.1"}),
        json!({"subnet": "10.1.0.0/24", "gateway": "fd00::1"}),
        json!({"subnet": "10.1.0.0/24", "gateway": "10.1.0.2"}),
        json!({"subnet": "10.1.0.0/24", "rangeStart": ""}),
        json!({"subnet": "10.1.0.0/24", "rangeStart": "foo"}),
        json!({"subnet": "10.1.0.0/24", "rangeStart": "::ffff:10.1.0.4"}),
        json!({"subnet": "::ffff:10.1.0.0/120"}),
        json!({"subnet": "x"}),
        json!({"subnet": "10.1.0.0"}),
        json!({"subnet": "fd00::/64", "rangeStart": "fd00::ff"}),
        json!({"subnet": "fd00::/127"}),
        json!({"subnet": "10.0.0.0/8", "rangeStart": "10.0.0.0", "rangeEnd": "10.255.255.255"}),
        json!({"rangeStart": "10.1.0.3"}),
        json!({"ranges": []}),
        json!({"ranges": [[]]}),
        json!({"ranges": {}}),
        json!({"ranges": [{}]}),
        json!({"ranges": [[{"rangeStart": "10.1.0.3"}]]}),
        json!({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]}),
        json!({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/25"}]]}),
        json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/25"}]]}),
        json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00::/64"}]]}),
        json!({"RANGES": [[{"Subnet": "10.1.0.0/24", "RANGESTART": "10.1.0.9"}]]}),
        json!({"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "10.2.0.0/24"}]]}),
        json!({"subnet": "10.1.0.0/24", "resolvConf": resolv.path()}),
        json!({"subnet": "10.1.0.0/24", "resolvConf": "/nonexistent"}),
        json!({"subnet": "10.1.0.0/24", "resolvConf": ""}),
        json!({"subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.7"}, {"dst": "10.0.0.0/8"}]}),
        json!({"subnet": "10.1.0.0/24", "routes": [{"dst": "bad"}]}),
        json!({"subnet": "10.1.0.0/24", "routes": null, "unknown": 1}),
    ];
    let extras = [
        json!({}),
        json!({"runtimeConfig": {"ips": ["10.1.0.9/24"]}}),
        json!({"runtimeConfig": {"ips": ["10.1.0.9", "10.1.0.10"]}}),
        json!({"args": {"cni": {"ips": ["10.1.0.8"]}}}),
        json!({"args": {"cni": {"ips": ["10.1.0.8"]}}, "runtimeConfig": {"ips": ["10.1.0.8"]}}),
        json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.8.0.0/24"}]]}}),
        json!({"runtimeConfig": {"ips": ["bad"]}}),
    ];
    let mut compared = 0;
    for ipam in &ipams {
        for (extra, args, version) in extras
            .iter()
            .map(|extra| (extra, "", "1.0.0"))
            .chain(
                ["IP=10.1.0.5", "IP=10.1.0.1/24", "IP=x", "A=b", "IgnoreUnknown=1;A=b", "IP"]
                    .map(|a| (&extras[0], a, "0.4.0")),
            )
            .chain(["0.2.0", "0.1.0", "0.3.1", "0.4.0"].map(|version| (&extras[0], "", version)))
        {
            let (theirs_dir, ours_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let mut invocation = Invocation::new("ADD", "a", config(theirs_dir.path(), ipam.clone())).args(args);
            invocation.config["cniVersion"] = json!(version);
            for (key, value) in extra.as_object().unwrap() {
                invocation.config[key] = value.clone();
            }
            let theirs = invocation.theirs(&plugin);
            invocation.config["ipam"]["dataDir"] = json!(ours_dir.path());
            let ours = invocation.ours(&HostLocal);
            same(&ours, &theirs, &invocation);
            compared += 1;
        }
    }
    assert_eq!(compared, 39 * 17);
}

#[test]
fn names_lead_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), json!({"subnet": "10.1.0.0/24"}));
    for name in ["../x", "/etc", ".outrigger", "a/b", ".", ""] {
        config["name"] = json!(name);
        assert_eq!(code(ours("ADD", "a", &config)).0, 7, "{name:?}");
    }
    config["name"] = json!("net");
    for id in ["../x", "a/b", ".a", "a\nb"] {
        assert_eq!(code(ours("ADD", id, &config)).0, 4, "{id:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn ten_thousand_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let ranges: Vec<Value> =
        (0..10_000).map(|i| json!({"subnet": format!("10.{}.{}.0/24", i >> 8, i & 255)})).collect();
    let sets: Vec<Value> = ranges.iter().take(300).map(|range| json!([range])).collect();
    let one = config(dir.path(), json!({"ranges": [ranges]}));
    let begin = std::time::Instant::now();
    ours("ADD", "a", &one).unwrap();
    let many = config(dir.path(), json!({"ranges": sets}));
    assert_eq!(ours("ADD", "b", &many).unwrap()["ips"].as_array().unwrap().len(), 300);
    ours("DEL", "b", &many).unwrap();
    assert!(begin.elapsed().as_secs() < 10, "{:?}", begin.elapsed());
    assert_eq!(files(&dir.path().join("net")).len(), 1);
}
