//! What the interface was like before, kept for DEL. The files are those of the original plugin, so that each undoes what
//! the other did.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use outrigger_cni_sdk::{Attachment, Error, Errors, Step as _};
use outrigger_netlink::NetNs;
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

    /// What an earlier backup of the same interface says, and for attributes that it says nothing about, this one.
    fn after(self, earlier: Self) -> Self {
        Self {
            mac: if earlier.mac.is_empty() { self.mac } else { earlier.mac },
            promisc: earlier.promisc.or(self.promisc),
            mtu: earlier.mtu.or(self.mtu),
            allmulti: earlier.allmulti.or(self.allmulti),
            tx_queue_length: earlier.tx_queue_length.or(self.tx_queue_length),
        }
    }

    /// Sets the interface with this index back, as far as the kernel still takes the values.
    pub(super) fn restore(&self, container: &Container, index: u32) -> Result<(), Error> {
        let none = LinkChange::default;
        // A MAC address that nobody can read is none that can be set.
        let mac = self.mac.parse().ok();
        let mtu = self.mtu.filter(|mtu| *mtu != 0);
        let (promiscuous, all_multicast, tx_queue_len) = (self.promisc, self.allmulti, self.tx_queue_length);
        let all = LinkChange { mac, promiscuous, mtu, all_multicast, tx_queue_len, ..none() };
        let Err(error) = container.route.set_link(index, &all) else { return Ok(()) };
        if error.is_not_found() {
            return Ok(());
        }
        // One that is refused must not keep the others from being set back.
        let mut errors = Errors::new();
        for (wanted, change) in [
            (mac.is_some(), LinkChange { mac, ..none() }),
            (promiscuous.is_some(), LinkChange { promiscuous, ..none() }),
            (mtu.is_some(), LinkChange { mtu, ..none() }),
            (all_multicast.is_some(), LinkChange { all_multicast, ..none() }),
            (tx_queue_len.is_some(), LinkChange { tx_queue_len, ..none() }),
        ] {
            if !wanted {
                continue;
            }
            match container.route.set_link(index, &change) {
                Err(error) if error.is_not_found() || error.errno().is_some_and(is_refusal) => {}
                outcome => drop(errors.push(outcome.step("set the interface back"))),
            }
        }
        errors.finish()
    }
}

/// True if the kernel will refuse a value the next time too: the device below changed, say, or another has the address.
fn is_refusal(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::INVAL | Errno::ADDRNOTAVAIL | Errno::ADDRINUSE | Errno::OPNOTSUPP | Errno::BUSY | Errno::RANGE
    )
}

/// What tells an interface from all others that bear its name before or after it: numbers of namespaces and of interfaces
/// are given again, the time when a namespace was made known is not.
pub(super) fn identity(ns: &NetNs, index: u32) -> Result<String, Error> {
    let stat = rustix::fs::fstat(ns.as_fd()).step("look at the network namespace")?;
    Ok(format!("{}:{} {}.{:09} {index}", stat.st_dev, stat.st_ino, stat.st_ctime, stat.st_ctime_nsec))
}

/// Where the backup of one attachment is.
#[derive(Debug)]
pub(super) struct Store {
    file: PathBuf,
    /// A file whose place says which network the backup is of, since the backup's name does not, and whose content says
    /// which interface it is of.
    note: PathBuf,
}

/// The files of an attachment as they were.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Former {
    backup: Option<Vec<u8>>,
    note: Option<Vec<u8>>,
}

impl Store {
    pub(super) fn new(directory: &str, mark: Mark<'_>) -> Self {
        let directory = Path::new(directory);
        let name = format!("{}_{}", mark.container_id, mark.ifname);
        Self { file: directory.join(format!("{name}.json")), note: notes(directory, mark.network).join(name) }
    }

    /// Writes it, whole or not at all; gives what was there. What an earlier backup of the same interface says stays: an
    /// ADD that comes again finds attributes that are changed already.
    pub(super) fn save(&self, backup: &Backup, identity: &str) -> Result<Former, Error> {
        let what = format!("keep the attributes in {}", self.file.display());
        for path in [&self.note, &self.file] {
            if let Some(directory) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(directory).step(&what)?;
            }
        }
        let former = Former { backup: read(&self.file)?, note: read(&self.note)? };
        match self.write(backup, identity, &former) {
            Ok(()) => Ok(former),
            Err(error) => {
                let _ = self.put_back(former);
                Err(error)
            }
        }
    }

    fn write(&self, backup: &Backup, identity: &str, former: &Former) -> Result<(), Error> {
        let what = format!("keep the attributes in {}", self.file.display());
        let mut backup = backup.clone();
        if former.note.as_deref() == Some(identity.as_bytes()) {
            if let Some(earlier) = former.backup.as_deref().and_then(|text| serde_json::from_slice(text).ok()) {
                backup = backup.after(earlier);
            }
        } else {
            // The note must never vouch for a backup of another interface; without a backup it does no harm.
            remove(&self.file)?;
            write_private(&self.note, identity.as_bytes()).step(&what)?;
        }
        self.replace(&backup.to_text().step(&what)?).step(&what)
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let aside = self.file.with_extension("json.new");
        write_private(&aside, text).and_then(|()| std::fs::rename(&aside, &self.file))
    }

    /// Undoes [`Store::save`].
    pub(super) fn put_back(&self, former: Former) -> Result<(), Error> {
        let Some(backup) = former.backup else { return self.remove() };
        let what = format!("put {} back", self.file.display());
        remove(&self.note)?;
        self.replace(&backup).step(&what)?;
        former.note.map_or(Ok(()), |note| write_private(&self.note, &note).step(&what))
    }

    /// Reads it; none if there is none, or if it is torn.
    pub(super) fn load(&self) -> Result<Option<Backup>, Error> {
        // A crash of the node can leave an empty file; its interfaces are gone as well.
        Ok(read(&self.file)?.and_then(|text| serde_json::from_slice(&text).ok()))
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

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error).step(format_args!("read {}", path.display())),
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
        assert_eq!(store.save(&full(), "1:2 3").unwrap(), Former::default());
        assert!(directory.join("id_eth0.json").is_file());
        assert_eq!(store.load().unwrap(), Some(full()));
        fs_err::write(directory.join("id_eth0.json"), "").unwrap();
        assert_eq!(store.load().unwrap(), None);
        store.remove().unwrap();
        assert!(!directory.join("id_eth0.json").exists());
        assert_eq!(fs_err::read_dir(directory.join(".networks/net")).unwrap().count(), 0);
    }

    #[test]
    fn the_first_backup_of_an_interface_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::new(scratch.path().to_str().unwrap(), MARK);
        let with = |mtu| Backup { mtu: Some(mtu), ..Backup::default() };
        store.save(&with(1500), "first").unwrap();
        let again = Backup { allmulti: Some(false), ..with(1300) };
        let former = store.save(&again, "first").unwrap();
        assert_eq!(store.load().unwrap(), Some(Backup { allmulti: Some(false), ..with(1500) }));
        // A second ADD that fails takes away what it added, no more.
        store.put_back(former).unwrap();
        assert_eq!(store.load().unwrap(), Some(with(1500)));
        // Another interface of the same name.
        let former = store.save(&with(1400), "second").unwrap();
        assert_eq!(store.load().unwrap(), Some(with(1400)));
        store.put_back(former).unwrap();
        store.save(&with(1300), "first").unwrap();
        assert_eq!(store.load().unwrap(), Some(with(1500)));
        // The original's, of which nobody can say whether it is of this interface.
        fs_err::remove_file(scratch.path().join(".networks/net/id_eth0")).unwrap();
        let former = store.save(&with(1200), "first").unwrap();
        assert_eq!(store.load().unwrap(), Some(with(1200)));
        store.put_back(former).unwrap();
        assert_eq!(store.load().unwrap(), Some(with(1500)));
        assert_eq!(fs_err::read_dir(scratch.path().join(".networks/net")).unwrap().count(), 0);
    }

    #[test]
    fn collected_by_network_and_validity() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().to_str().unwrap();
        for (network, container_id) in [("net", "a_b"), ("net", "gone"), ("other", "c")] {
            let store = Store::new(directory, Mark { network, container_id, ..MARK });
            store.save(&full(), "1:2 3").unwrap();
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
