//! The cache of attachments: what ADD answered, kept for CHECK, DEL and GC (specification, section 3).
//!
//! Files and format are libcni's: `<cache dir>/results/<network>-<container id>-<interface>`, mode 0600 in a directory of
//! mode 0700, so that this library, containerd, CRI-O and podman read each other's. Unlike libcni's, a file is there as a
//! whole or not at all, also after a loss of power; and one that is damaged, empty ones above all, is treated as absent.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::NetworkList;
use super::error::Error;
use super::{Attachment, names};

/// The format's name in every file.
const KIND: &str = "cniCacheV1";
/// Longest name of a file.
const LONGEST: usize = 255;
/// Beginning and end of the names of files that are being written.
const ASIDE: (&str, &str) = (".outrigger-cache-", ".tmp");
/// A file aside that is this old belongs to a process that was killed.
const ABANDONED: Duration = Duration::from_hours(1);

/// An attachment as the cache has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Cached {
    /// The network's name.
    pub network: String,
    /// The container, its namespace at the time of ADD, the interface, and what ADD was given.
    pub attachment: Attachment,
    /// Text of the configuration at the time of ADD. Empty in files of very old writers.
    pub config: Vec<u8>,
    /// What ADD answered.
    pub result: Option<Value>,
}

impl Cached {
    /// The network namespace: as it was given to ADD, or, where the writer did not note that (libcni before 1.2), as the
    /// result names it.
    pub fn netns(&self) -> Option<PathBuf> {
        let sandbox = || {
            let interfaces = self.result.as_ref()?.get("interfaces")?.as_array()?;
            let mut sandboxes = interfaces.iter().filter_map(|interface| interface.get("sandbox")?.as_str());
            sandboxes.find(|sandbox| !sandbox.is_empty()).map(PathBuf::from)
        };
        self.attachment.netns.clone().or_else(sandbox)
    }

    /// The network as it was configured at the time of ADD, without plugins that were in files of their own.
    pub fn network_list(&self) -> Result<NetworkList, Error> {
        NetworkList::parse_any(&self.config)
    }
}

/// What is in one file of the cache.
#[derive(Debug)]
pub struct CacheFile {
    /// The file.
    pub file: PathBuf,
    /// The attachment, or what is wrong with the file.
    pub content: Result<Cached, String>,
}

/// What a look into the cache found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Lookup {
    Absent,
    Damaged(String),
    /// Boxed: it is much larger than the others.
    Found(Box<Cached>),
}

/// A cache directory.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: PathBuf,
}

/// The file's form. Unknown keys are somebody's extension and no error.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Wire {
    kind: String,
    container_id: String,
    config: Option<String>,
    if_name: String,
    network_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cni_args: Option<Vec<(String, String)>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capability_args: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
}

impl Cache {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn results(&self) -> PathBuf {
        self.dir.join("results")
    }

    /// The file of an attachment. Names are checked here, since they make up a path.
    pub(crate) fn path(&self, network: &str, attachment: &Attachment) -> Result<PathBuf, Error> {
        names::check_network(network)?;
        names::check_container(&attachment.container_id)?;
        names::check_interface(&attachment.ifname)?;
        let name = format!("{network}-{}-{}", attachment.container_id, attachment.ifname);
        if name.len() > LONGEST {
            let problem = format!(
                "together with network and interface name it is longer than {LONGEST} bytes, so it cannot be a file of the cache"
            );
            return Err(Error::Argument { what: "container id", value: attachment.container_id.clone(), problem });
        }
        Ok(self.results().join(name))
    }

    pub(crate) fn get(&self, network: &str, attachment: &Attachment) -> Result<Lookup, Error> {
        let path = self.path(network, attachment)?;
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Lookup::Absent),
            Err(error) => return Ok(Lookup::Damaged(error.to_string())),
        };
        Ok(match decode(&bytes) {
            Ok(Decoded::Current(cached)) => Lookup::Found(cached),
            // Older than this format: the result alone.
            Ok(Decoded::Bare(result)) => Lookup::Found(Box::new(Cached {
                network: network.to_owned(),
                attachment: Attachment::new(&attachment.container_id, &attachment.ifname),
                config: Vec::new(),
                result: Some(result),
            })),
            Err(damage) => Lookup::Damaged(damage),
        })
    }

    /// Writes an attachment so that it is there after a loss of power too.
    pub(crate) fn put(&self, cached: &Cached) -> Result<(), Error> {
        let path = self.path(&cached.network, &cached.attachment)?;
        let results = self.results();
        DirBuilder::new().recursive(true).mode(0o700).create(&results).map_err(Error::file("make", &results))?;
        // Beside the directory of the results: whatever is in there is taken for an attachment by other readers.
        let aside = self.dir.join(aside_name());
        let written = write_synced(&aside, &encode(cached)).map_err(Error::file("write", &aside)).and_then(|()| {
            fs::rename(&aside, &path).map_err(Error::file("write", &path))?;
            File::open(&results).and_then(|dir| dir.sync_all()).map_err(Error::file("flush", &results))
        });
        if written.is_err() {
            let _ = remove(&aside);
        }
        written
    }

    pub(crate) fn remove(&self, network: &str, attachment: &Attachment) -> Result<(), Error> {
        let path = self.path(network, attachment)?;
        remove(&path).map_err(Error::file("remove", &path))
    }

    /// All files, sorted by name.
    pub(crate) fn files(&self) -> Result<Vec<CacheFile>, Error> {
        let results = self.results();
        let entries = match fs::read_dir(&results) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::file("read", results)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::file("read", &results))?;
            let file = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let content = match read(&file) {
                // Deleted meanwhile: by a DEL that runs beside this.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Err(error.to_string()),
                Ok(bytes) => match decode(&bytes) {
                    Ok(Decoded::Current(cached)) => Ok(*cached),
                    Ok(Decoded::Bare(_)) => {
                        Err("a result in the old format, which does not say whose it is".to_owned())
                    }
                    Err(damage) => Err(damage),
                },
            };
            found.push(CacheFile { file, content });
        }
        found.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(found)
    }

    /// Removes what killed processes left half written.
    pub(crate) fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let ours = name.to_str().is_some_and(|name| name.starts_with(ASIDE.0) && name.ends_with(ASIDE.1));
            let age = entry.metadata().and_then(|meta| meta.modified()).ok();
            let old = age.and_then(|age| SystemTime::now().duration_since(age).ok()).is_some_and(|age| age > ABANDONED);
            if ours && old {
                let _ = remove(&entry.path());
            }
        }
    }
}

/// Removes a file of the cache, which may be gone already.
pub(crate) fn remove_file(file: &Path) -> Result<(), Error> {
    remove(file).map_err(Error::file("remove", file))
}

/// Guesses container id and interface from the name of a damaged file of that network. Both may hold a `-`, so the guess
/// may be wrong; deleting an attachment that never was is no harm.
pub(crate) fn guess(file: &Path, network: &str) -> Option<Attachment> {
    let rest = file.file_name()?.to_str()?.strip_prefix(network)?.strip_prefix('-')?;
    let (id, ifname) = rest.rsplit_once('-')?;
    let attachment = Attachment::new(id, ifname);
    (names::check_container(id).is_ok() && names::check_interface(ifname).is_ok()).then_some(attachment)
}

enum Decoded {
    Current(Box<Cached>),
    Bare(Value),
}

fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err("empty".to_owned());
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(object) = &value else { return Err("not a JSON object".to_owned()) };
    if object.get("kind").is_none() {
        return Ok(Decoded::Bare(value));
    }
    let wire = Wire::deserialize(&value).map_err(|error| error.to_string())?;
    if wire.kind != KIND {
        return Err(format!("kind {:?} instead of {KIND:?}", wire.kind));
    }
    if wire.container_id.is_empty() || wire.if_name.is_empty() || wire.network_name.is_empty() {
        return Err("network, container or interface is missing".to_owned());
    }
    let config = BASE64.decode(wire.config.unwrap_or_default()).map_err(|error| format!("config: {error}"))?;
    let attachment = Attachment {
        container_id: wire.container_id,
        netns: wire.netns.filter(|netns| !netns.is_empty()).map(PathBuf::from),
        ifname: wire.if_name,
        args: wire.cni_args.unwrap_or_default(),
        capabilities: wire.capability_args.unwrap_or_default().into_iter().collect(),
    };
    Ok(Decoded::Current(Box::new(Cached { network: wire.network_name, attachment, config, result: wire.result })))
}

fn encode(cached: &Cached) -> Vec<u8> {
    let attachment = &cached.attachment;
    let capabilities: BTreeMap<_, _> = attachment.capabilities.iter().collect();
    let wire = Wire {
        kind: KIND.to_owned(),
        container_id: attachment.container_id.clone(),
        config: Some(BASE64.encode(&cached.config)),
        if_name: attachment.ifname.clone(),
        network_name: cached.network.clone(),
        netns: attachment.netns.as_ref().map(|netns| netns.display().to_string()),
        cni_args: Some(attachment.args.clone()).filter(|args| !args.is_empty()),
        capability_args: Some(capabilities.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect())
            .filter(|capabilities: &Map<_, _>| !capabilities.is_empty()),
        result: cached.result.clone(),
    };
    serde_json::to_vec(&wire).expect("strings and JSON values become JSON")
}

fn aside_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{}{}-{count}{}", ASIDE.0, std::process::id(), ASIDE.1)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes a file that may be gone already.
fn remove(path: &Path) -> io::Result<()> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn attachment() -> Attachment {
        Attachment::new("c1", "eth0").netns("/run/netns/x").arg("K", "v").capability("mac", json!("02:00:00:00:00:01"))
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("cni"));
        (dir, cache)
    }

    fn cached() -> Cached {
        let config = br#"{"name":"net","plugins":[{"type":"bridge"}]}"#.to_vec();
        let result = Some(json!({ "cniVersion": "1.0.0", "ips": [] }));
        Cached { network: "net".into(), attachment: attachment(), config, result }
    }

    #[test]
    fn what_is_put_is_found_and_removed_twice() {
        let (_dir, cache) = cache();
        assert_eq!(cache.get("net", &attachment()).unwrap(), Lookup::Absent);
        assert!(cache.files().unwrap().is_empty());
        cache.put(&cached()).unwrap();
        cache.put(&cached()).unwrap();
        assert_eq!(cache.get("net", &attachment()).unwrap(), Lookup::Found(Box::new(cached())));
        let files = cache.files().unwrap();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].content, Ok(cached()));
        assert_eq!(fs::read_dir(&cache.dir).unwrap().count(), 1, "nothing is left aside");
        cache.remove("net", &attachment()).unwrap();
        cache.remove("net", &attachment()).unwrap();
        assert_eq!(cache.get("net", &attachment()).unwrap(), Lookup::Absent);
    }

    #[test]
    fn the_file_is_as_libcni_writes_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_dir, cache) = cache();
        cache.put(&cached()).unwrap();
        let path = cache.dir.join("results/net-c1-eth0");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        let value: Value = serde_json::from_slice(&read(&path).unwrap()).unwrap();
        let expected = json!({
            "kind": "cniCacheV1",
            "containerId": "c1",
            "config": "eyJuYW1lIjoibmV0IiwicGx1Z2lucyI6W3sidHlwZSI6ImJyaWRnZSJ9XX0=",
            "ifName": "eth0",
            "networkName": "net",
            "netns": "/run/netns/x",
            "cniArgs": [["K", "v"]],
            "capabilityArgs": { "mac": "02:00:00:00:00:01" },
            "result": { "cniVersion": "1.0.0", "ips": [] },
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn the_namespace_is_that_of_the_result_if_nobody_noted_it() {
        let mut cached = cached();
        assert_eq!(cached.netns(), Some("/run/netns/x".into()));
        cached.attachment.netns = None;
        assert_eq!(cached.netns(), None);
        let interfaces = json!([{ "name": "br0" }, { "name": "v", "sandbox": "" }, { "name": "e", "sandbox": "/y" }]);
        cached.result = Some(json!({ "interfaces": interfaces }));
        assert_eq!(cached.netns(), Some("/y".into()));
    }

    #[test]
    fn damage_is_told_and_no_error() {
        let (_dir, cache) = cache();
        cache.put(&cached()).unwrap();
        let path = cache.path("net", &attachment()).unwrap();
        for (text, damage) in [
            ("", "empty"),
            ("\n", "empty"),
            ("{\"kind\":\"cniCa", "not JSON"),
            ("[]", "not a JSON object"),
            ("{\"kind\":\"cniCacheV9\"}", "kind \"cniCacheV9\""),
            ("{\"kind\":\"cniCacheV1\"}", "is missing"),
            ("{\"kind\":7}", "invalid type"),
            (r#"{"kind":"cniCacheV1","containerId":"c","ifName":"e","networkName":"n","config":"%"}"#, "config"),
        ] {
            File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
            let Lookup::Damaged(found) = cache.get("net", &attachment()).unwrap() else { panic!("{text:?}") };
            assert!(found.contains(damage), "{text:?}: {found}");
            assert!(cache.files().unwrap()[0].content.is_err());
        }
    }

    #[test]
    fn a_bare_result_is_the_old_format() {
        let (_dir, cache) = cache();
        cache.put(&cached()).unwrap();
        let path = cache.path("net", &attachment()).unwrap();
        File::create(&path).unwrap().write_all(br#"{"cniVersion":"0.4.0","ips":[]}"#).unwrap();
        let Lookup::Found(found) = cache.get("net", &attachment()).unwrap() else { panic!() };
        assert_eq!(found.result.unwrap()["cniVersion"], "0.4.0");
        assert!(cache.files().unwrap()[0].content.is_err(), "it does not say whose it is");
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        let cache = Cache::new("/nowhere".into());
        for (network, id, ifname) in
            [("../n", "c", "e"), ("n", "../c", "e"), ("n", "c", "a/b"), ("", "c", "e"), ("n", "", "e"), ("n", "c", "")]
        {
            let error = cache.path(network, &Attachment::new(id, ifname)).unwrap_err();
            assert!(matches!(error, Error::Argument { .. }), "{error}");
        }
        let error = cache.path("n", &Attachment::new("c".repeat(252), "e")).unwrap_err();
        assert!(error.to_string().contains("longer than 255"), "{error}");
    }

    #[test]
    fn owners_of_damaged_files_are_guessed() {
        let found = guess(Path::new("/x/net-a-c1-eth0"), "net-a").unwrap();
        assert_eq!((found.container_id.as_str(), found.ifname.as_str()), ("c1", "eth0"));
        assert!(guess(Path::new("/x/other-c1-eth0"), "net").is_none());
        assert!(guess(Path::new("/x/net-eth0"), "net").is_none());
    }
}
