//! What flannel keeps from ADD to DEL: the delegate's configuration, in a file named after the container.

use std::fs::{DirBuilder, DirEntry, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use outrigger_cni_sdk::Map;
use rustix::io::Errno;

/// How names of half-written files end.
const ASIDE: &str = ".tmp";

/// The directory of these files.
#[derive(Debug, Clone)]
pub(super) struct State(PathBuf);

impl State {
    pub(super) fn new(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// Writes a container's file: aside, flushed, renamed.
    pub(super) fn save(&self, container_id: &str, config: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let aside = self.aside(container_id);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(config).and_then(|()| file.sync_all())?;
        drop(file);
        std::fs::rename(&aside, self.path(container_id))?;
        File::open(&self.0)?.sync_all()
    }

    /// Reads a container's file. None if there is none; `Err` holds what is wrong with one that cannot be read.
    pub(super) fn load(&self, container_id: &str) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        match File::open(self.path(container_id)) {
            Ok(mut file) => file.read_to_end(&mut bytes).map(|_| Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a container's file, and what an interrupted [`State::save`] left. It is no error if there is none.
    pub(super) fn remove(&self, container_id: &str) -> io::Result<()> {
        for path in [self.aside(container_id), self.path(container_id)] {
            match rustix::fs::unlink(path) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Removes what interrupted writes left of containers that are not kept: files that name this network, and those that
    /// say nothing and that nobody has written to for a minute before `now`.
    pub(super) fn sweep(&self, network: &str, is_kept: impl Fn(&str) -> bool, now: SystemTime) -> io::Result<()> {
        const LONG: Duration = Duration::from_mins(1);
        for entry in self.entries()? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Some(id) = name.strip_prefix('.').and_then(|name| name.strip_suffix(ASIDE)) else { continue };
            if is_kept(id) {
                continue;
            }
            let config = self.load(&name)?.and_then(|bytes| parse(&bytes));
            let doomed = if let Some(config) = config {
                network_of(&config) == Some(network)
            } else {
                let written = entry.metadata().and_then(|metadata| metadata.modified());
                written.is_ok_and(|written| now.duration_since(written).is_ok_and(|age| age > LONG))
            };
            if doomed {
                match rustix::fs::unlink(entry.path()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// What is in the directory, if it is there.
    fn entries(&self) -> io::Result<impl Iterator<Item = io::Result<DirEntry>>> {
        match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None.into_iter().flatten()),
            entries => Ok(Some(entries?).into_iter().flatten()),
        }
    }

    /// The containers that have a file whose configuration names this network.
    pub(super) fn containers(&self, network: &str) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in self.entries()? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let config = self.load(&name).ok().flatten().and_then(|bytes| parse(&bytes));
            if config.is_some_and(|config| network_of(&config) == Some(network)) {
                found.push(name);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Where a container's file is written. The dot keeps it apart from containers' files: no container's name starts with
    /// one.
    fn aside(&self, container_id: &str) -> PathBuf {
        self.0.join(format!(".{container_id}{ASIDE}"))
    }

    fn path(&self, container_id: &str) -> PathBuf {
        // Container ids hold no slash; the environment was checked.
        self.0.join(Path::new(container_id))
    }
}

/// The network that a configuration names.
fn network_of(config: &Map) -> Option<&str> {
    config.get("name").and_then(|name| name.as_str())
}

/// The object in a file. None for what a crash or a full disk left of one.
pub(super) fn parse(bytes: &[u8]) -> Option<Map> {
    serde_json::from_slice(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_interrupted_writes_left_goes() {
        let scratch = tempfile::tempdir().unwrap();
        let state = State::new(scratch.path());
        let write = |name: &str, text: &str| fs_err::write(scratch.path().join(name), text).unwrap();
        let left = || {
            let entries = fs_err::read_dir(scratch.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let (now, later) = (SystemTime::now(), SystemTime::now() + Duration::from_secs(90));
        write(".mine.tmp", r#"{"name":"net"}"#);
        write(".kept.tmp", r#"{"name":"net"}"#);
        write(".other.tmp", r#"{"name":"other"}"#);
        write(".torn.tmp", "{");
        state.save("full", br#"{"name":"net"}"#).unwrap();
        assert_eq!(state.containers("net").unwrap(), ["full"]);
        let kept = |id: &str| id == "kept";
        state.sweep("net", kept, now).unwrap();
        assert_eq!(left(), [".kept.tmp", ".other.tmp", ".torn.tmp", "full"]);
        state.sweep("net", kept, later).unwrap();
        assert_eq!(left(), [".kept.tmp", ".other.tmp", "full"]);
        state.remove("kept").unwrap();
        state.remove("other").unwrap();
        assert_eq!(left(), ["full"]);
        State::new(scratch.path().join("none")).sweep("net", kept, now).unwrap();
    }
}
