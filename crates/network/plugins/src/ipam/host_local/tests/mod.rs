//! The directory of a network under our hands, the original plugin's, a killer's and a stranger's.

mod killed;
mod original;
mod plugin;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use fs_err as fs;
use proptest::prelude::*;

use super::store::{Store, check_writable, has_free};
use super::{Owner, RangeConf, RangeSet};

fn set(subnet: &str) -> RangeSet {
    RangeSet::new(&[RangeConf { subnet: Some(subnet.parse().unwrap()), ..RangeConf::default() }]).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn add(store: &mut Store, id: &str, set: &RangeSet) -> Option<IpAddr> {
    let owner = Owner::new(id, "eth0");
    assert_eq!(store.held(&owner).unwrap(), [] as [IpAddr; 0]);
    store.take_next(&owner, 0, set).unwrap().map(|candidate| candidate.net.addr())
}

/// The address files of a directory and their content.
fn files(dir: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let addresses = entries.filter(|entry| entry.file_name().to_str().unwrap().parse::<IpAddr>().is_ok());
    addresses
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
        .collect()
}

#[test]
fn files_are_the_originals() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::create(dir.path(), "net").unwrap();
    assert_eq!(add(&mut store, "abc", &set("10.1.0.0/29")), Some(ip("10.1.0.2")));
    drop(store);
    let net = dir.path().join("net");
    assert_eq!(fs::read(net.join("10.1.0.2")).unwrap(), b"abc\r\neth0");
    assert_eq!(fs::read(net.join("last_reserved_ip.0")).unwrap(), b"10.1.0.2");
    for name in ["10.1.0.2", "last_reserved_ip.0", "lock"] {
        assert_eq!(fs::metadata(net.join(name)).unwrap().permissions().mode(), 0o100_600, "{name}");
    }
    assert_eq!(fs::read_dir(&net).unwrap().count(), 3, "nothing else is in the original's directory");
}

#[test]
fn released_and_taken_round_robin() {
    let dir = tempfile::tempdir().unwrap();
    let set = set("10.1.0.0/29");
    let mut store = Store::create(dir.path(), "net").unwrap();
    assert_eq!(add(&mut store, "a", &set), Some(ip("10.1.0.2")));
    assert_eq!(store.release(&Owner::new("a", "eth0")).unwrap(), 1);
    assert_eq!(store.release(&Owner::new("a", "eth0")).unwrap(), 0);
    assert_eq!(add(&mut store, "a", &set), Some(ip("10.1.0.3")));
    drop(store);
    let mut store = Store::open(dir.path(), "net").unwrap().unwrap();
    assert!(store.index_is_complete(), "sealed");
    for expected in ["10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.2"] {
        assert_eq!(add(&mut store, expected, &set), Some(ip(expected)));
    }
    assert_eq!(add(&mut store, "x", &set), None, "full");
    assert!(!has_free(dir.path(), "net", 0, &set).unwrap());
    assert!(!store.take(&Owner::new("x", "eth0"), 0, ip("10.1.0.4")).unwrap());
    store.release(&Owner::new("10.1.0.5", "eth0")).unwrap();
    assert!(has_free(dir.path(), "net", 0, &set).unwrap());
    assert!(Store::open(dir.path(), "other").unwrap().is_none());
    assert!(has_free(dir.path(), "other", 0, &set).unwrap());
}

#[test]
fn a_long_run_of_taken_addresses_is_passed() {
    let dir = tempfile::tempdir().unwrap();
    let net = dir.path().join("net");
    fs::create_dir_all(&net).unwrap();
    for number in 2..=253 {
        fs::write(net.join(format!("10.1.0.{number}")), "x\r\neth0").unwrap();
    }
    let set = set("10.1.0.0/24");
    assert!(has_free(dir.path(), "net", 0, &set).unwrap());
    let mut store = Store::create(dir.path(), "net").unwrap();
    assert_eq!(add(&mut store, "a", &set), Some(ip("10.1.0.254")));
    assert_eq!(add(&mut store, "b", &set), None);
    drop(store);
    assert!(!has_free(dir.path(), "net", 0, &set).unwrap());
}

#[test]
fn what_another_program_did_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let net = dir.path().join("net");
    let set = set("10.1.0.0/24");
    let mut store = Store::create(dir.path(), "net").unwrap();
    add(&mut store, "a", &set);
    drop(store);
    // Added behind our back, at once after the seal.
    fs::write(net.join("10.1.0.77"), "b\r\neth0").unwrap();
    let mut store = Store::create(dir.path(), "net").unwrap();
    assert!(!store.index_is_complete());
    assert_eq!(store.held(&Owner::new("b", "eth0")).unwrap(), [ip("10.1.0.77")]);
    assert!(store.index_is_complete());
    drop(store);
    // Replaced: the same name, another owner.
    fs::remove_file(net.join("10.1.0.77")).unwrap();
    fs::write(net.join("10.1.0.77"), "c\r\neth0").unwrap();
    let mut store = Store::create(dir.path(), "net").unwrap();
    assert_eq!(store.release(&Owner::new("b", "eth0")).unwrap(), 0);
    assert_eq!(store.release(&Owner::new("c", "eth0")).unwrap(), 1);
    drop(store);
    // Rewritten in place, which no time of a directory shows: the index is not believed, the file is.
    fs::write(net.join("10.1.0.2"), "d\r\neth0").unwrap();
    let mut store = Store::create(dir.path(), "net").unwrap();
    assert!(store.index_is_complete());
    assert_eq!(store.release(&Owner::new("a", "eth0")).unwrap(), 0);
    assert_eq!(store.release(&Owner::new("d", "eth0")).unwrap(), 1);
    drop(store);
    // An index that somebody damaged.
    let mut store = Store::create(dir.path(), "net").unwrap();
    add(&mut store, "e", &set);
    drop(store);
    fs::remove_file(dir.path().join(".outrigger/net/e:eth0")).unwrap();
    let mut store = Store::create(dir.path(), "net").unwrap();
    assert_eq!(store.release(&Owner::new("e", "eth0")).unwrap(), 1);
    drop(store);
    fs::remove_dir_all(dir.path().join(".outrigger")).unwrap();
    fs::write(dir.path().join(".outrigger"), "in the way").unwrap();
    let mut store = Store::create(dir.path(), "net").unwrap();
    add(&mut store, "f", &set).unwrap();
    assert_eq!(store.release(&Owner::new("f", "eth0")).unwrap(), 1);
    assert_eq!(files(&net).len(), 0);
}

#[test]
fn old_files_name_the_container_only() {
    let dir = tempfile::tempdir().unwrap();
    let net = dir.path().join("net");
    fs::create_dir_all(&net).unwrap();
    fs::write(net.join("10.1.0.9"), "old\n").unwrap();
    fs::write(net.join("10.1.0.8"), "old\r\neth0").unwrap();
    let mut store = Store::create(dir.path(), "net").unwrap();
    let owner = Owner::new("old", "eth0");
    assert_eq!(store.held(&owner).unwrap(), [ip("10.1.0.8")]);
    store.release(&owner).unwrap();
    assert_eq!(store.held(&owner).unwrap(), [ip("10.1.0.9")]);
    assert_eq!(store.release(&owner).unwrap(), 1);
    assert_eq!(store.held(&owner).unwrap(), [] as [IpAddr; 0]);
}

#[test]
fn collection_takes_what_nobody_owns() {
    let dir = tempfile::tempdir().unwrap();
    let net = dir.path().join("net");
    let mut store = Store::create(dir.path(), "net").unwrap();
    for id in ["a", "b", "c"] {
        add(&mut store, id, &set("10.1.0.0/24"));
    }
    drop(store);
    fs::write(net.join("10.1.0.50"), "").unwrap();
    fs::write(net.join("10.1.0.51"), "\0\0\0").unwrap();
    fs::write(net.join("10.1.0.52"), "b").unwrap();
    fs::write(net.join("010.1.0.53"), "").unwrap();
    fs::write(net.join("notes"), "b\r\neth0").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", net.join("10.1.0.54")).unwrap();
    let mut store = Store::create(dir.path(), "net").unwrap();
    assert!(!store.take(&Owner::new("d", "eth0"), 0, ip("10.1.0.50")).unwrap(), "an empty file is taken");
    assert_eq!(store.retain(|owner| owner.id() == "b").unwrap(), 5);
    assert!(store.index_is_complete());
    assert_eq!(store.held(&Owner::new("b", "eth0")).unwrap(), [ip("10.1.0.3")]);
    assert_eq!(files(&net).keys().collect::<Vec<_>>(), ["10.1.0.3", "10.1.0.52"]);
    assert!(net.join("notes").exists() && net.join("010.1.0.53").exists() && Path::new("/etc/passwd").exists());
}

#[test]
fn what_is_no_file_blocks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let net = dir.path().join("net");
    fs::create_dir_all(net.join("10.1.0.2")).unwrap();
    let fifo = net.join("10.1.0.3");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    std::os::unix::fs::symlink(&fifo, net.join("10.1.0.4")).unwrap();
    std::os::unix::fs::symlink(&fifo, net.join("last_reserved_ip.1")).unwrap();
    let set = set("10.1.0.0/29");
    let mut store = Store::create(dir.path(), "net").unwrap();
    assert_eq!(add(&mut store, "a", &set), Some(ip("10.1.0.5")));
    let error = store.take(&Owner::new("b", "eth0"), 1, ip("10.1.0.6")).unwrap_err();
    assert!(error.to_string().ends_with("net/last_reserved_ip.1"), "{error}");
    assert!(!net.join("10.1.0.6").exists(), "given back");
    assert!(store.retain(|_| false).is_err(), "a directory is not removed");
    assert_eq!(store.held(&Owner::new("a", "eth0")).unwrap(), [] as [IpAddr; 0]);
}

#[test]
fn addresses_from_before_the_boot() {
    let dir = tempfile::tempdir().unwrap();
    let set = set("10.1.0.0/24");
    let mut store = Store::create(dir.path(), "net").unwrap();
    add(&mut store, "a", &set);
    let far = i64::MAX;
    assert_eq!(store.reclaim_before_boot("one", far).unwrap(), 0, "never noted");
    assert_eq!(store.reclaim_before_boot("one", far).unwrap(), 0, "the same boot");
    assert_eq!(store.reclaim_before_boot("two", 1_000).unwrap(), 0, "the file is younger than the boot");
    assert_eq!(store.reclaim_before_boot("three", far).unwrap(), 1);
    assert_eq!(store.held(&Owner::new("a", "eth0")).unwrap(), [] as [IpAddr; 0]);
    add(&mut store, "b", &set);
    drop(store);
    let mut store = Store::create(dir.path(), "net").unwrap();
    assert!(store.index_is_complete());
    assert_eq!(store.reclaim_before_boot("three", far).unwrap(), 0);
}

#[test]
fn long_ids_and_many_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let owner = Owner::new(&"x".repeat(5_000), "eth0");
    let mut store = Store::create(dir.path(), "net").unwrap();
    assert!(store.held(&owner).unwrap().is_empty());
    for index in 0..600 {
        let range = set(&format!("fd00:0:0:{index:x}::/64"));
        store.take_next(&owner, index, &range).unwrap().unwrap();
    }
    drop(store);
    let mut store = Store::create(dir.path(), "net").unwrap();
    assert_eq!(store.held(&owner).unwrap().len(), 600);
    assert_eq!(store.release(&owner).unwrap(), 600);
    assert_eq!(files(&dir.path().join("net")).len(), 0);
}

#[test]
fn places_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    check_writable(dir.path(), "net").unwrap();
    check_writable(&dir.path().join("a/b/c"), "net").unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for broken in [file.as_path(), Path::new("/proc/nowhere")] {
        let text = check_writable(broken, "net").unwrap_err().to_string();
        assert!(text.contains("cannot"), "{text}");
        assert!(Store::create(broken, "net").is_err());
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add(u8),
    Wanted(u8, u8),
    Delete(u8),
    Collect(u8),
    Reopen,
    ForeignAdd(u8, u8),
    ForeignDelete(u8),
    LoseIndex,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..8u8).prop_map(Step::Add),
        2 => (0..8u8, 2..15u8).prop_map(|(id, address)| Step::Wanted(id, address)),
        4 => (0..8u8).prop_map(Step::Delete),
        1 => any::<u8>().prop_map(Step::Collect),
        2 => Just(Step::Reopen),
        2 => (0..8u8, 2..15u8).prop_map(|(id, address)| Step::ForeignAdd(id, address)),
        2 => (2..15u8).prop_map(Step::ForeignDelete),
        1 => Just(Step::LoseIndex),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The directory is always what a naive model says, whatever others do between our calls.
    #[test]
    fn the_directory_is_the_truth(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let net = dir.path().join("net");
        let set = set("10.1.0.0/28");
        let owner = |id: u8| Owner::new(&format!("c{id}"), "eth0");
        let mut model: BTreeMap<u8, u8> = BTreeMap::new();
        let mut last = 1;
        let mut store = Some(Store::create(dir.path(), "net").unwrap());
        for step in steps {
            let open = store.as_mut().unwrap();
            match step {
                Step::Add(id) => {
                    let held: BTreeSet<IpAddr> = open.held(&owner(id)).unwrap().into_iter().collect();
                    let expected: BTreeSet<IpAddr> =
                        model.iter().filter(|(_, o)| **o == id).map(|(a, _)| IpAddr::from([10, 1, 0, *a])).collect();
                    prop_assert_eq!(&held, &expected);
                    if held.is_empty() {
                        let free = (1..=14).map(|n| (last + n - 1) % 14 + 1).find(|a| *a != 1 && !model.contains_key(a));
                        let given = open.take_next(&owner(id), 0, &set).unwrap();
                        prop_assert_eq!(given.map(|c| c.net.addr()), free.map(|a| IpAddr::from([10, 1, 0, a])));
                        if let Some(free) = free {
                            model.insert(free, id);
                            last = free;
                        }
                    }
                }
                Step::Wanted(id, address) => {
                    open.held(&owner(id)).unwrap();
                    let given = open.take(&owner(id), 0, IpAddr::from([10, 1, 0, address])).unwrap();
                    prop_assert_eq!(given, !model.contains_key(&address));
                    if given {
                        model.insert(address, id);
                        last = address;
                    }
                }
                Step::Delete(id) => {
                    let count = model.values().filter(|o| **o == id).count();
                    prop_assert_eq!(open.release(&owner(id)).unwrap(), count);
                    model.retain(|_, o| *o != id);
                }
                Step::Collect(valid) => {
                    open.retain(|o| (0..8).any(|id| valid & (1 << id) != 0 && *o == owner(id))).unwrap();
                    model.retain(|_, o| valid & (1 << *o) != 0);
                }
                Step::Reopen => {
                    drop(store.take());
                    store = Some(Store::create(dir.path(), "net").unwrap());
                }
                Step::ForeignAdd(id, address) => {
                    drop(store.take());
                    let path = net.join(format!("10.1.0.{address}"));
                    if !path.exists() {
                        fs::write(path, owner(id).content()).unwrap();
                        fs::write(net.join("last_reserved_ip.0"), format!("10.1.0.{address}")).unwrap();
                        model.insert(address, id);
                        last = address;
                    }
                    store = Some(Store::create(dir.path(), "net").unwrap());
                }
                Step::ForeignDelete(address) => {
                    drop(store.take());
                    let _ = fs::remove_file(net.join(format!("10.1.0.{address}")));
                    model.remove(&address);
                    store = Some(Store::create(dir.path(), "net").unwrap());
                }
                Step::LoseIndex => {
                    drop(store.take());
                    fs::remove_dir_all(dir.path().join(".outrigger")).unwrap();
                    store = Some(Store::create(dir.path(), "net").unwrap());
                }
            }
            let real: BTreeMap<String, String> = files(&net);
            let expected: BTreeMap<String, String> =
                model.iter().map(|(a, o)| (format!("10.1.0.{a}"), owner(*o).content())).collect();
            prop_assert_eq!(real, expected);
        }
    }
}
