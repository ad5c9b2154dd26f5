//! Eight processes take and give back addresses of one network, and are killed at any moment.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use fs_err as fs;

use super::super::store::Store;
use super::super::{Owner, RangeSet};
use super::{files, set};

/// Tells a child which directory to work in, under which name and from which step on.
const CHILD: &str = "OUTRIGGER_TEST_HOST_LOCAL_CHILD";
const WORKERS: usize = 8;
const STEPS: usize = 1_000;

fn sets() -> [RangeSet; 2] {
    // Fewer addresses than can be wanted at a time, so that full ranges happen as well.
    [set("10.1.0.0/26"), set("fd00::/64")]
}

/// xorshift; reproducible and no dependency.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Not a test by itself: the body of a child.
#[test]
fn child() {
    let Ok(job) = std::env::var(CHILD) else { return };
    let [dir, worker, first] = job.split('|').collect::<Vec<_>>()[..] else { panic!("{job}") };
    let (worker, first): (usize, usize) = (worker.parse().unwrap(), first.parse().unwrap());
    for step in first..STEPS {
        let owner = Owner::new(&format!("w{worker}-{}", step % 16), "eth0");
        println!("begin {step}");
        let mut store = Store::create(Path::new(dir), "net").unwrap();
        if store.held(&owner).unwrap().is_empty() {
            let mut given = Vec::new();
            for (index, set) in sets().iter().enumerate() {
                given.extend(store.take_next(&owner, index, set).unwrap().map(|candidate| candidate.net.addr()));
            }
            if given.len() < 2 {
                store.release(&owner).unwrap();
                given.clear();
            }
            let given: Vec<String> = given.iter().map(ToString::to_string).collect();
            drop(store);
            println!("added {step} {}", given.join(","));
        } else {
            store.release(&owner).unwrap();
            drop(store);
            println!("deleted {step}");
        }
    }
    println!("done");
}

fn start(dir: &Path, worker: usize, first: usize) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ipam::host_local::tests::killed::child", "--nocapture"])
        .env(CHILD, format!("{}|{worker}|{first}", dir.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    (child, stdout)
}

/// Runs one worker to its end, killing and starting it again; gives what it holds in the end.
fn supervise(dir: &Path, worker: usize) -> (HashMap<String, Vec<IpAddr>>, usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (worker as u64 + 1);
    let mut held: HashMap<String, Vec<IpAddr>> = HashMap::new();
    let mut kills = 0;
    let mut next = 0;
    'process: loop {
        let (mut child, stdout) = start(dir, worker, next);
        // So many lines are read, then it is killed while it goes on.
        let mut patience = random(&mut state) % 60 + 2;
        let mut begun = next;
        for line in stdout.lines() {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            let id = |step: usize| format!("w{worker}-{}", step % 16);
            match words[..] {
                // The harness of the tests writes the name of the test in front of the first line.
                [.., "begin", step] => begun = step.parse().unwrap(),
                ["added", step, given] => {
                    let step: usize = step.parse().unwrap();
                    let given: Vec<IpAddr> = given.split(',').filter_map(|a| a.parse().ok()).collect();
                    if !given.is_empty() {
                        held.insert(id(step), given);
                    }
                    next = step + 1;
                }
                ["deleted", step] => {
                    let step: usize = step.parse().unwrap();
                    held.remove(&id(step));
                    next = step + 1;
                }
                ["done"] => {
                    child.wait().unwrap();
                    break 'process;
                }
                _ => {}
            }
            patience = patience.saturating_sub(1);
            if patience == 0 && next < STEPS {
                child.kill().unwrap();
                kills += 1;
                // The rest of what it wrote is read: it did what it said.
                patience = u64::MAX;
            }
        }
        assert!(!child.wait().unwrap().success() || next == STEPS, "worker {worker} failed at {begun}");
        if begun == next && next < STEPS {
            // It was killed in this step: as a runtime does, DEL, whatever was done.
            let id = format!("w{worker}-{}", next % 16);
            Store::create(dir, "net").unwrap().release(&Owner::new(&id, "eth0")).unwrap();
            held.remove(&id);
            next += 1;
        }
    }
    (held, kills)
}

#[test]
fn never_doubled_never_leaked() {
    let dir = tempfile::tempdir().unwrap();
    let results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                scope.spawn({
                    let dir = dir.path();
                    move || supervise(dir, worker)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let kills: usize = results.iter().map(|(_, kills)| kills).sum();
    eprintln!("{kills} processes were killed");
    assert!(kills > WORKERS, "the test killed nobody");
    let mut expected = std::collections::BTreeMap::new();
    for (id, addresses) in results.iter().flat_map(|(held, _)| held) {
        for address in addresses {
            let doubled = expected.insert(address.to_string(), format!("{id}\r\neth0"));
            assert_eq!(doubled, None, "{address} of {id} is another's too");
        }
    }
    let net = dir.path().join("net");
    assert_eq!(files(&net), expected, "what is on disk is what was given and not given back");
    for (id, _) in results.iter().flat_map(|(held, _)| held) {
        Store::create(dir.path(), "net").unwrap().release(&Owner::new(id, "eth0")).unwrap();
    }
    assert_eq!(files(&net).len(), 0);
    assert_eq!(fs::read_dir(dir.path().join(".outrigger/net")).unwrap().count(), 0);
}
