//! What flannel keeps from ADD to DEL: the delegate's configuration, in a file named after the container.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use outrigger_cni_sdk::Map;

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
        // The dot keeps it apart from containers' files: no container's name starts with one.
        let aside = self.0.join(format!(".{container_id}.tmp"));
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

    /// Removes a container's file. It is no error if there is none.
    pub(super) fn remove(&self, container_id: &str) -> io::Result<()> {
        match rustix::fs::unlink(self.path(container_id)) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The containers that have a file whose configuration names this network.
    pub(super) fn containers(&self, network: &str) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let config = self.load(&name).ok().flatten().and_then(|bytes| parse(&bytes));
            if config.is_some_and(|config| config.get("name").and_then(|name| name.as_str()) == Some(network)) {
                found.push(name);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn path(&self, container_id: &str) -> PathBuf {
        // Container ids hold no slash; the environment was checked.
        self.0.join(Path::new(container_id))
    }
}

/// The object in a file. None for what a crash or a full disk left of one.
pub(super) fn parse(bytes: &[u8]) -> Option<Map> {
    serde_json::from_slice(bytes).ok()
}
