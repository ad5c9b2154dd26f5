//! Leases on disk, so that a daemon that is started again keeps renewing them.
//!
//! They are beside the socket, `/run/cni/dhcp.leases/`: a file for each attachment, written aside and renamed. That is
//! where they belong, since network namespaces do not survive a reboot either; a record of another boot is dropped
//! anyway. A plugin that has to give back a lease while no daemon runs marks its record, and the next daemon does it.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::lease::Lease;
use super::options::Options;

/// The version of this form.
const VERSION: u32 = 1;
const LEASE: &str = "json";
/// Of a lease that is to be given back.
const RELEASE: &str = "release";

/// An attachment and its lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Which boot it is of.
    pub boot: String,
    /// The container.
    pub container: String,
    /// The network.
    pub network: String,
    /// The interface in the container.
    pub ifname: String,
    /// Path of the network namespace, as the runtime sees it.
    pub netns: PathBuf,
    /// Device and inode of the namespace.
    pub identity: (u64, u64),
    /// Hardware address of the interface.
    pub hardware: [u8; 6],
    /// What servers are told.
    pub options: Options,
    /// Metric of routes.
    pub priority: Option<u32>,
    /// Whether option 26 counts.
    pub mtu: bool,
    /// The lease.
    pub lease: Option<Lease>,
    /// When it was given, in milliseconds since the machine was started.
    pub given: u64,
}

/// What a daemon finds at its start.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// A lease to keep.
    Keep(Record),
    /// A lease to give back.
    Release(Record),
}

/// The directory.
#[derive(Debug, Clone)]
pub struct Records(PathBuf);

impl Record {
    /// A record without lease.
    pub fn new(boot: &str, container: &str, network: &str, ifname: &str) -> Self {
        Self {
            version: VERSION,
            boot: boot.to_owned(),
            container: container.to_owned(),
            network: network.to_owned(),
            ifname: ifname.to_owned(),
            netns: PathBuf::new(),
            identity: (0, 0),
            hardware: [0; 6],
            options: Options::new(),
            priority: None,
            mtu: false,
            lease: None,
            given: 0,
        }
    }
}

impl Records {
    /// The directory that goes with a socket.
    pub fn beside(socket: &Path) -> Self {
        Self(socket.with_extension("leases"))
    }

    /// Keeps other daemons from starting until what it gives is dropped. The lock is the directory's own.
    pub fn lock(&self) -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let directory = File::open(&self.0)?;
        rustix::fs::flock(&directory, FlockOperation::LockExclusive)?;
        Ok(directory)
    }

    /// Keeps a record, in the place of the attachment's last.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let path = self.path(&record.container, &record.network, &record.ifname, LEASE);
        let aside = path.with_extension("new");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()?;
        fs::rename(&aside, &path)?;
        // The rename itself.
        File::open(&self.0)?.sync_all()
    }

    /// Forgets an attachment. One that is not there is success.
    pub fn remove(&self, container: &str, network: &str, ifname: &str) -> io::Result<()> {
        for extension in [LEASE, RELEASE] {
            match rustix::fs::unlink(self.path(container, network, ifname, extension)) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Asks the next daemon to give a lease back. None to give back is success.
    pub fn mark(&self, container: &str, network: &str, ifname: &str) -> io::Result<()> {
        let from = self.path(container, network, ifname, LEASE);
        match rustix::fs::rename(&from, from.with_extension(RELEASE)) {
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks the next daemon to give back the leases of a network but those of these attachments (container id, interface).
    pub fn mark_others(&self, network: &str, valid: &[(String, String)]) -> io::Result<()> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            entries => entries?,
        };
        let mut outcome = Ok(());
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != LEASE) {
                continue;
            }
            let Some(record) = read(&path).filter(|record| record.network == network) else { continue };
            if !valid.iter().any(|(container, ifname)| *container == record.container && *ifname == record.ifname) {
                let marked = self.mark(&record.container, &record.network, &record.ifname);
                outcome = outcome.and(marked);
            }
        }
        outcome
    }

    /// Everything that is of this boot. What cannot be read, or is of another boot, is removed.
    pub fn load(&self, boot: &str) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let record = read(&path).filter(|record| record.version == VERSION && record.boot == boot);
            match (record, path.extension().and_then(|extension| extension.to_str())) {
                (Some(record), Some(LEASE)) => found.push(Found::Keep(record)),
                (Some(record), Some(RELEASE)) => found.push(Found::Release(record)),
                _ => {
                    // Half-written, or of containers that cannot exist any more. If it stays it is met again.
                    let _ = rustix::fs::unlink(&path);
                }
            }
        }
        Ok(found)
    }

    fn path(&self, container: &str, network: &str, ifname: &str, extension: &str) -> PathBuf {
        // Names of files are shorter than ids may be.
        let digest = Sha256::digest(format!("{container}/{network}/{ifname}"));
        let mut name = String::with_capacity(80);
        for byte in digest {
            let _ = write!(name, "{byte:02x}");
        }
        self.0.join(name).with_extension(extension)
    }
}

fn read(path: &Path) -> Option<Record> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(1 << 20).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_marked_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::beside(&dir.path().join("dhcp.sock"));
        assert_eq!(records.load("boot").unwrap(), []);
        records.mark("c", "n", "eth0").unwrap();
        records.mark_others("n", &[]).unwrap();
        let mut record = Record::new("boot", "c", "n", "eth0");
        record.options.insert(61, vec![0, 1, 255]);
        record.given = 77;
        records.save(&record).unwrap();
        let valid = [("c".to_owned(), "eth0".to_owned())];
        records.mark_others("n", &valid).unwrap();
        records.mark_others("other", &[]).unwrap();
        assert_eq!(records.load("boot").unwrap(), [Found::Keep(record.clone())]);
        records.mark_others("n", &[("c".to_owned(), "eth1".to_owned())]).unwrap();
        assert_eq!(records.load("boot").unwrap(), [Found::Release(record.clone())]);
        records.save(&record).unwrap();
        records.mark("c", "n", "eth0").unwrap();
        assert_eq!(records.load("boot").unwrap(), [Found::Release(record.clone())]);
        records.remove("c", "n", "eth0").unwrap();
        records.remove("c", "n", "eth0").unwrap();
        records.save(&record).unwrap();
        fs_err::write(dir.path().join("dhcp.leases/half.json"), "{\"version\":1").unwrap();
        assert_eq!(records.load("another boot").unwrap(), []);
        assert_eq!(fs_err::read_dir(dir.path().join("dhcp.leases")).unwrap().count(), 0);
    }
}
