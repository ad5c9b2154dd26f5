//! What the interface was like before, kept for DEL. The files are those of the original plugin, so that each undoes what
//! the other did.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use outrigger_cni_sdk::{Attachment, Error, Errors, Step as _};
use outrigger_netlink::route::LinkChange;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::attach::Mark;
use crate::session::Container;

/// Attributes of an interface; those that were not changed are left out. The order is that of the file.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Backup {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) promisc: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) allmulti: Option<bool>,
    #[serde(default, rename = "txQLen", skip_serializing_if = "Option::is_none")]
    pub(super) tx_queue_length: Option<u32>,
}

impl Backup {
    /// Indented by one space, as the original writes it.
    fn to_text(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut text = Vec::with_capacity(128);
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
        self.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
        Ok(text)
    }

    /// Sets the interface with this index back.
    pub(super) fn restore(&self, container: &Container, index: u32) -> Result<(), Error> {
        let change = LinkChange {
            // A MAC address that nobody can read is none that can be set.
            mac: self.mac.parse().ok(),
            promiscuous: self.promisc,
            mtu: self.mtu.filter(|mtu| *mtu != 0),
            all_multicast: self.allmulti,
            tx_queue_len: self.tx_queue_length,
            ..LinkChange::default()
        };
        match container.route.set_link(index, &change) {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.step("set the interface back"),
        }
    }
}

/// Where the backup of one attachment is.
#[derive(Debug)]
pub(super) struct Store {
    file: PathBuf,
    /// An empty file whose place says which network the backup is of: the backup's name does not.
    note: PathBuf,
}

impl Store {
    pub(super) fn new(directory: &str, mark: Mark<'_>) -> Self {
        let directory = Path::new(directory);
        let name = format!("{}_{}", mark.container_id, mark.ifname);
        Self { file: directory.join(format!("{name}.json")), note: notes(directory, mark.network).join(name) }
    }

    /// Writes it, whole or not at all. The note comes first: without a backup it does no harm.
    pub(super) fn save(&self, backup: &Backup) -> Result<(), Error> {
        let what = format!("keep the attributes in {}", self.file.display());
        for path in [&self.note, &self.file] {
            if let Some(directory) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(directory).step(&what)?;
            }
        }
        write_private(&self.note, b"").step(&what)?;
        let text = backup.to_text().step(&what)?;
        let aside = self.file.with_extension("json.new");
        let written = write_private(&aside, &text).and_then(|()| std::fs::rename(&aside, &self.file));
        if written.is_err() {
            let _ = self.remove();
        }
        written.step(&what)
    }

    /// Reads it; none if there is none, or if it is torn.
    pub(super) fn load(&self) -> Result<Option<Backup>, Error> {
        let mut text = Vec::new();
        match File::open(&self.file).and_then(|mut file| file.read_to_end(&mut text)) {
            // A crash of the node can leave an empty file; its interfaces are gone as well.
            Ok(_) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error).step(format_args!("read {}", self.file.display())),
        }
    }

    /// Removes the file, what an interrupted write left, and the note.
    pub(super) fn remove(&self) -> Result<(), Error> {
        let mut errors = Errors::new();
        for path in [&self.file.with_extension("json.new"), &self.file, &self.note] {
            errors.push(remove(path));
        }
        errors.finish()
    }
}

/// Removes the backups of a network's attachments that are not valid any more.
pub(super) fn collect(directory: &str, network: &str, valid: &[Attachment]) -> Result<(), Error> {
    let directory = Path::new(directory);
    let notes = notes(directory, network);
    let what = format!("look for kept attributes in {}", notes.display());
    let entries = match std::fs::read_dir(&notes) {
        Err(error) if is_absent(&error) => return Ok(()),
        entries => entries.step(&what)?,
    };
    let mut errors = Errors::new();
    for entry in entries {
        let Some(entry) = errors.push(entry.step(&what)) else { continue };
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        // Both may hold an underscore; so the valid ones are spelt out, not the name taken apart.
        if valid.iter().any(|valid| format!("{}_{}", valid.container_id, valid.ifname) == name) {
            continue;
        }
        let store = Store { file: directory.join(format!("{name}.json")), note: notes.join(name) };
        errors.push(store.remove());
    }
    errors.finish()
}

fn notes(directory: &Path, network: &str) -> PathBuf {
    directory.join(".networks").join(network)
}

fn remove(path: &Path) -> Result<(), Error> {
    match rustix::fs::unlink(path) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        outcome => outcome.step(format_args!("remove {}", path.display())),
    }
}

/// A parent that is a file holds no backup either.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Writes a file that only root reads.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark<'static> = Mark { network: "net", container_id: "id", ifname: "eth0" };

    fn full() -> Backup {
        Backup {
            mac: "4e:bb:43:0e:0f:d9".into(),
            promisc: Some(false),
            mtu: Some(1500),
            allmulti: Some(false),
            tx_queue_length: Some(1000),
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_original() {
        let expected = "{\n \"mac\": \"4e:bb:43:0e:0f:d9\",\n \"promisc\": false,\n \"mtu\": 1500,\n \"allmulti\": false,\n \
                        \"txQLen\": 1000\n}";
        assert_eq!(String::from_utf8(full().to_text().unwrap()).unwrap(), expected);
        let little = Backup { mtu: Some(1500), ..Backup::default() };
        assert_eq!(String::from_utf8(little.to_text().unwrap()).unwrap(), "{\n \"mtu\": 1500\n}");
    }

    #[test]
    fn kept_read_and_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("a/b");
        let store = Store::new(directory.to_str().unwrap(), MARK);
        assert_eq!(store.load().unwrap(), None);
        store.remove().unwrap();
        store.save(&full()).unwrap();
        assert!(directory.join("id_eth0.json").is_file());
        assert_eq!(store.load().unwrap(), Some(full()));
        fs_err::write(directory.join("id_eth0.json"), "").unwrap();
        assert_eq!(store.load().unwrap(), None);
        store.remove().unwrap();
        assert!(!directory.join("id_eth0.json").exists());
        assert_eq!(fs_err::read_dir(directory.join(".networks/net")).unwrap().count(), 0);
    }

    #[test]
    fn collected_by_network_and_validity() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().to_str().unwrap();
        for (network, container_id) in [("net", "a_b"), ("net", "gone"), ("other", "c")] {
            Store::new(directory, Mark { network, container_id, ..MARK }).save(&full()).unwrap();
        }
        fs_err::write(scratch.path().join("foreign_eth0.json"), "{}").unwrap();
        collect(directory, "net", &[Attachment::new("a_b", "eth0")]).unwrap();
        let mut left: Vec<String> = fs_err::read_dir(scratch.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [".networks", "a_b_eth0.json", "c_eth0.json", "foreign_eth0.json"]);
        collect(directory, "unknown", &[]).unwrap();
    }
}
