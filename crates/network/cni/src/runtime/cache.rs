//! The cache of attachments: what ADD answered, kept for CHECK, DEL and GC (specification, section 3).
//!
//! Files and format are libcni's: `<cache dir>/results/<network>-<container id>-<interface>`, mode 0600 in a directory of
//! mode 0700, so that this library, containerd, CRI-O and podman read each other's. Unlike libcni's, a file is there as a
//! whole or not at all, also after a loss of power; and one that is damaged, empty ones above all, is treated as absent.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Attachment;
use super::config::NetworkList;
use super::error::Error;
use crate::names;

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
        self.attachment.netns.clone().or_else(|| sandbox(self.result.as_ref()?))
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
    /// When it was last written.
    pub modified: Option<SystemTime>,
    /// The attachment, or what is wrong with the file.
    pub content: Result<Cached, Damage>,
}

/// Why a file of the cache does not tell of an attachment.
#[derive(Debug, Clone, PartialEq)]
pub enum Damage {
    /// It cannot be read, which says nothing of what it holds.
    Unreadable(String),
    /// It is in a format that this library does not know.
    Kind(String),
    /// A result alone, as very old writers left it: it does not say whose it is.
    Bare(Value),
    /// Its content is lost.
    Lost(String),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) | Self::Kind(why) | Self::Lost(why) => f.write_str(why),
            Self::Bare(_) => f.write_str("a result in the old format, which does not say whose it is"),
        }
    }
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
        names::identifier(network).map_err(|why| Error::Argument {
            what: "network name",
            value: network.to_owned(),
            problem: format!("it {why}"),
        })?;
        attachment.id().check()?;
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
            // The content is lost, and nobody will ever read it. Anything else may be better the next time.
            Err(error) if [Errno::IO, Errno::ISDIR].iter().any(|lost| is(&error, *lost)) => {
                return Ok(Lookup::Damaged(error.to_string()));
            }
            Err(error) => return Err(Error::file("read", path)(error)),
        };
        Ok(match decode(&bytes) {
            Ok(cached) => Lookup::Found(Box::new(cached)),
            Err(Damage::Bare(result)) => Lookup::Found(Box::new(Cached {
                network: network.to_owned(),
                attachment: Attachment::new(&attachment.container_id, &attachment.ifname),
                config: Vec::new(),
                result: Some(result),
            })),
            Err(damage) => Lookup::Damaged(damage.to_string()),
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
                Err(error) => Err(Damage::Unreadable(error.to_string())),
                Ok(bytes) => decode(&bytes),
            };
            let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok();
            found.push(CacheFile { file, modified, content });
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

/// Makes out container id and interface from the name of a file of that network: none if it is another network's, and
/// what else it may be if it can be read in several ways, since all three parts may hold a `-`.
pub(crate) fn guess(file: &Path, network: &str, networks: &[&str]) -> Option<Result<Attachment, String>> {
    let name = file.file_name()?.to_str()?;
    let own = name.strip_prefix(network)?.strip_prefix('-')?;
    let readings = |rest: &str| -> Vec<Attachment> {
        let splits = rest.match_indices('-').map(|(at, _)| Attachment::new(&rest[..at], &rest[at + 1..]));
        splits.filter(|found| found.id().check().is_ok()).collect()
    };
    let mut found = readings(own);
    let other = |known: &&&str| {
        let rest = name.strip_prefix(**known).and_then(|rest| rest.strip_prefix('-'));
        **known != network && rest.is_some_and(|rest| !readings(rest).is_empty())
    };
    if found.is_empty() {
        return None;
    }
    if let Some(other) = networks.iter().find(other) {
        return Some(Err(format!("its name may be that of network {other:?} too")));
    }
    if found.len() > 1 {
        return Some(Err("where in its name the container's id ends is not clear".to_owned()));
    }
    found.pop().map(Ok)
}

/// The network namespace that a result names.
pub(crate) fn sandbox(result: &Value) -> Option<PathBuf> {
    let interfaces = result.get("interfaces")?.as_array()?;
    let mut sandboxes = interfaces.iter().filter_map(|interface| interface.get("sandbox")?.as_str());
    sandboxes.find(|sandbox| !sandbox.is_empty()).map(PathBuf::from)
}

fn decode(bytes: &[u8]) -> Result<Cached, Damage> {
    let lost = |why: String| Err(Damage::Lost(why));
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return lost("empty".to_owned());
    }
    let value: Value = match serde_json::from_slice(bytes) {
        Ok(value) => value,
        Err(error) => return lost(format!("not JSON: {error}")),
    };
    let Value::Object(object) = &value else { return lost("not a JSON object".to_owned()) };
    match object.get("kind") {
        None => return Err(Damage::Bare(value)),
        Some(kind) if kind != KIND => return Err(Damage::Kind(format!("kind {kind} instead of {KIND:?}"))),
        Some(_) => {}
    }
    let wire = Wire::deserialize(&value).map_err(|error| Damage::Lost(error.to_string()))?;
    if wire.container_id.is_empty() || wire.if_name.is_empty() || wire.network_name.is_empty() {
        return lost("network, container or interface is missing".to_owned());
    }
    let config = BASE64.decode(wire.config.unwrap_or_default());
    let config = config.map_err(|error| Damage::Lost(format!("config: {error}")))?;
    let attachment = Attachment {
        container_id: wire.container_id,
        netns: wire.netns.filter(|netns| !netns.is_empty()).map(PathBuf::from),
        ifname: wire.if_name,
        args: wire.cni_args.unwrap_or_default(),
        capabilities: wire.capability_args.unwrap_or_default().into_iter().collect(),
    };
    Ok(Cached { network: wire.network_name, attachment, config, result: wire.result })
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

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Removes a file that may be gone already.
fn remove(path: &Path) -> io::Result<()> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
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
            ("{\"kind\":7}", "kind 7 instead"),
            ("{\"kind\":\"cniCacheV1\",\"containerId\":7}", "invalid type"),
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
        assert!(matches!(cache.files().unwrap()[0].content, Err(Damage::Bare(_))), "it does not say whose it is");
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
    fn owners_of_damaged_files_are_guessed_if_there_is_one_reading() {
        let guess = |file: &str, network: &str| guess(Path::new(file), network, &["net", "net-b", "x-net"]);
        let found = guess("/x/net-c1-eth0", "net").unwrap().unwrap();
        assert_eq!((found.container_id.as_str(), found.ifname.as_str()), ("c1", "eth0"));
        let found = guess("/x/n-a-c1-eth0", "n-a").unwrap().unwrap();
        assert_eq!((found.container_id.as_str(), found.ifname.as_str()), ("c1", "eth0"));
        for (file, network) in
            [("/x/other-c1-eth0", "net"), ("/x/net-eth0", "net"), ("/x/net--eth0", "net"), ("/x/net-b-eth0", "net-b")]
        {
            assert_eq!(guess(file, network), None, "{file}");
        }
        for (file, network, why) in [
            ("/x/net-b-c1-eth0", "net", "network \"net-b\""),
            ("/x/net-b-c1-eth0", "net-b", "network \"net\""),
            ("/x/net-c1-e-0", "net", "not clear"),
            ("/x/other-cnitool-12-eth0", "other", "not clear"),
        ] {
            let told = guess(file, network).unwrap().unwrap_err();
            assert!(told.contains(why), "{file} of {network}: {told}");
        }
    }
}
