use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const WORKERS: u64 = 8;
const OPERATIONS: usize = 1_000;
/// So many containers has each worker; all together more than there are addresses.
const CONTAINERS: u64 = 6;

struct Network {
    dir: tempfile::TempDir,
    ours: PathBuf,
    original: Option<PathBuf>,
    /// Who holds what, as far as runtimes know.
    held: Mutex<HashMap<IpAddr, String>>,
}

/// What came of a call.
enum Outcome {
    Done(Vec<IpAddr>),
    Failed(Value),
    Killed,
}

impl Network {
    fn config(&self, version: &str, valid: &[&str]) -> String {
        let valid: Vec<Value> = valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
        let ipam = json!({
            "type": "host-local", "dataDir": self.dir.path(),
            "ranges": [[{"subnet": "10.1.0.0/27"}], [{"subnet": "fd00::/64"}]],
        });
        json!({"cniVersion": version, "name": "net", "type": "x", "ipam": ipam, "cni.dev/valid-attachments": valid})
            .to_string()
    }

    /// Calls a plugin, and kills it after a while if it is told to.
    fn call(plugin: &Path, command: &str, id: &str, config: &str, kill: Option<Duration>) -> Outcome {
        let mut child = Command::new(plugin)
            .env_clear()
            .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", id), ("CNI_IFNAME", "eth0")])
            .envs([("CNI_NETNS", "/run/netns/none"), ("CNI_PATH", "/usr/lib/cni")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
        if let Some(patience) = kill {
            let end = Instant::now() + patience;
            while Instant::now() < end && child.try_wait().unwrap().is_none() {}
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        match output.status.code() {
            None => Outcome::Killed,
            Some(0) => {
                let ips = value["ips"].as_array().cloned().unwrap_or_default();
                let address = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
                Outcome::Done(ips.iter().map(address).collect())
            }
            Some(_) => Outcome::Failed(value),
        }
    }

    fn work(&self, worker: u64) -> (BTreeMap<String, Vec<IpAddr>>, usize) {
        let mut random = 0x9e37_79b9_7f4a_7c15 ^ (worker + 1);
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut own: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        let mut kills = 0;
        let config = self.config("1.0.0", &[]);
        for _ in 0..OPERATIONS {
            let id = format!("w{worker}-{}", next() % CONTAINERS);
            // The original is not killed: it may leave an empty file, which only GC finds.
            let original = self.original.as_ref().filter(|_| next() % 16 == 0);
            let kill = (original.is_none() && next() % 4 == 0).then(|| Duration::from_micros(next() % 4_000));
            let plugin = original.unwrap_or(&self.ours);
            let outcome = if let Some(addresses) = own.remove(&id) {
                for address in addresses {
                    self.held.lock().unwrap().remove(&address);
                }
                Self::call(plugin, "DEL", &id, &config, kill)
            } else {
                Self::call(plugin, "ADD", &id, &config, kill)
            };
            match outcome {
                Outcome::Done(addresses) => {
                    for address in &addresses {
                        let other = self.held.lock().unwrap().insert(*address, id.clone());
                        assert_eq!(other, None, "{address} was given to {id} as well");
                    }
                    if !addresses.is_empty() {
                        own.insert(id, addresses);
                    }
                }
                Outcome::Failed(error) => {
                    let msg = error["msg"].as_str().unwrap();
                    assert!(msg.contains("no IP addresses available in range set: "), "{error}");
                }
                Outcome::Killed => {
                    kills += 1;
                    // As a runtime does that does not know what became of it.
                    let Outcome::Done(_) = Self::call(&self.ours, "DEL", &id, &config, None) else {
                        panic!("DEL failed")
                    };
                }
            }
        }
        (own, kills)
    }

    fn files(&self) -> BTreeMap<String, String> {
        let entries = fs_err::read_dir(self.dir.path().join("net")).unwrap().map(|entry| entry.unwrap().path());
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        entries
            .filter(|path| name(path).parse::<IpAddr>().is_ok())
            .map(|path| (name(&path), fs_err::read_to_string(path).unwrap()))
            .collect()
    }
}

/// Eight runtimes add, delete and kill, a thousand times each, with one call in sixteen by the original plugin.
#[test]
fn addresses_are_never_doubled_and_never_leak() {
    let original = PathBuf::from("/usr/lib/cni/host-local");
    let network = Network {
        dir: tempfile::tempdir().unwrap(),
        ours: super::ours("host-local"),
        original: original.exists().then_some(original),
        held: Mutex::default(),
    };
    if network.original.is_none() {
        eprintln!("SKIPPED in part: the original plugin is not installed (containernetworking-plugins)");
    }
    let results: Vec<_> = std::thread::scope(|scope| {
        let network = &network;
        let workers: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || network.work(worker))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let kills: usize = results.iter().map(|(_, kills)| kills).sum();
    eprintln!("{kills} plugins were killed");
    assert!(kills > 500, "{kills}");
    let expected: BTreeMap<String, String> = results
        .iter()
        .flat_map(|(own, _)| own)
        .flat_map(|(id, addresses)| addresses.iter().map(move |address| (address.to_string(), format!("{id}\r\neth0"))))
        .collect();
    assert_eq!(network.files(), expected, "what is on disk is what was given and not given back");
    // GC keeps the valid ones, and takes the rest.
    let valid: Vec<&str> = results.iter().flat_map(|(own, _)| own.keys()).map(String::as_str).step_by(2).collect();
    let Outcome::Done(_) = Network::call(&network.ours, "GC", "", &network.config("1.1.0", &valid), None) else {
        panic!("GC")
    };
    let kept = expected.iter().filter(|(_, owner)| valid.contains(&owner.trim_end_matches("\r\neth0")));
    assert_eq!(network.files(), kept.map(|(a, b)| (a.clone(), b.clone())).collect());
    let Outcome::Done(_) = Network::call(&network.ours, "GC", "", &network.config("1.1.0", &[]), None) else {
        panic!("GC")
    };
    assert_eq!(network.files().len(), 0);
    let index = network.dir.path().join(".outrigger/net");
    assert_eq!(fs_err::read_dir(index).unwrap().count(), 0);
}
