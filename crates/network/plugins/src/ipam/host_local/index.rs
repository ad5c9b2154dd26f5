//! A side index, so that an attachment's addresses are found without reading every address file.
//!
//! The directory of a network belongs to several programs: the original plugin reads, and on DEL removes, any file in it
//! whose content is the attachment. The index is therefore kept beside it, in `<dataDir>/.outrigger/<network>/`: no
//! network can have a name that starts with a dot. It holds one symbolic link for an attachment, named
//! `<id>:<ifname>`, whose target is the list of its addresses: one system call to read, one to write, nothing to parse
//! half-written.
//!
//! The index is a hint. What it says of an attachment is compared with the address files, and that it says nothing is
//! believed only while nobody else has changed the network's directory. That is seen by a seal: after each of our
//! changes both directories get the same modification time, some seconds in the past. The kernel gives any later change
//! the present time, so a change by another program, or by us before a crash, breaks the seal, however fast it follows
//! (the clock of modification times is too coarse to tell two changes apart by itself). With a broken seal all address
//! files are read once and the index is corrected.

use std::ffi::CString;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::owner::Owner;

/// Name of the directory of all indices, beside the directories of the networks.
const ROOT: &str = ".outrigger";
/// Holds the boot id of the last change, for [`Index::boot`].
const BOOT: &str = ".boot";
/// How far in the past a seal is.
const SEAL_AGE: i64 = 10;

/// The index of one network's directory. It is used under the lock of that directory.
#[derive(Debug)]
pub(super) struct Index {
    dir: Option<OwnedFd>,
    complete: bool,
}

impl Index {
    /// Opens the index of a network, and makes it if need be. One that cannot be used is none: then all files are read.
    pub(super) fn open(data_dir: &Path, network: &str, sealed: BorrowedFd<'_>) -> Self {
        let path = data_dir.join(ROOT).join(network);
        let open = || fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let mut dir = open();
        if dir.as_ref().is_err_and(|error| *error == Errno::NOENT) {
            // Failures show when it is opened.
            let _ = fs::mkdir(data_dir.join(ROOT), Mode::RWXU);
            let _ = fs::mkdir(&path, Mode::RWXU);
            dir = open();
        }
        let dir = dir.ok();
        let complete = dir.as_ref().is_some_and(|dir| is_sealed(sealed, dir.as_fd()));
        Self { dir, complete }
    }

    /// Whether every attachment that holds an address is in the index.
    #[cfg(test)]
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The addresses that an attachment had when the index was last written; empty if it is not in there. None if the
    /// index cannot tell.
    pub(super) fn get(&self, owner: &Owner) -> Option<Vec<IpAddr>> {
        let dir = self.dir.as_ref().filter(|_| self.complete)?;
        match read(dir, &name(owner)) {
            Ok(target) => target.split(',').map(|address| address.parse().ok()).collect(),
            Err(Errno::NOENT) => Some(Vec::new()),
            Err(_) => None,
        }
    }

    /// Notes the addresses of an attachment.
    pub(super) fn set(&mut self, owner: &Owner, addresses: &[IpAddr]) {
        let Some(dir) = self.dir.as_ref().filter(|_| self.complete) else { return };
        // A target that is too long, a full disk: then the index is not complete, and the seal stays broken.
        self.complete = write(dir, &name(owner), &target(addresses)).is_ok();
    }

    /// Corrects the whole index by the address files: `taken` are those that there are, sorted, and `owner` reads one.
    /// Nothing that is read is kept: a host may have many thousands. False if there is no index, or none that can be
    /// written; then not all files were read.
    pub(super) fn correct(&mut self, taken: &[IpAddr], owner: impl FnMut(IpAddr) -> Option<Owner>) -> bool {
        let Some(dir) = &self.dir else { return false };
        self.complete = correct(dir, taken, owner).is_ok();
        self.complete
    }

    /// Seals what was written, unless something could not be.
    pub(super) fn seal(&self, sealed: BorrowedFd<'_>) {
        let Some(dir) = self.dir.as_ref().filter(|_| self.complete) else { return };
        let now = fs_now();
        let past = Timespec { tv_sec: now.tv_sec - SEAL_AGE, tv_nsec: now.tv_nsec };
        let omit = Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT };
        let times = Timestamps { last_access: omit, last_modification: past };
        // If the second fails the times differ, which is a broken seal.
        let _ = fs::futimens(dir, &times).and_then(|()| fs::futimens(sealed, &times));
    }

    /// The boot id that was noted last.
    pub(super) fn boot(&self) -> Option<String> {
        read(self.dir.as_ref()?, BOOT).ok()
    }

    /// Notes the boot id.
    pub(super) fn set_boot(&self, id: &str) -> Result<(), Errno> {
        write(self.dir.as_ref().ok_or(Errno::NOENT)?, BOOT, id)
    }
}

/// Both have the same modification time, and no kernel gave it: it is older than the change of the time itself.
fn is_sealed(dir: BorrowedFd<'_>, index: BorrowedFd<'_>) -> bool {
    let (Ok(dir), Ok(index)) = (fs::fstat(dir), fs::fstat(index)) else { return false };
    (dir.st_mtime, dir.st_mtime_nsec) == (index.st_mtime, index.st_mtime_nsec)
        && dir.st_ctime.saturating_sub(dir.st_mtime) >= SEAL_AGE / 2
        && index.st_ctime.saturating_sub(index.st_mtime) >= SEAL_AGE / 2
}

fn fs_now() -> Timespec {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timespec { tv_sec: i64::try_from(now.as_secs()).unwrap_or(i64::MAX), tv_nsec: now.subsec_nanos().into() }
}

/// Name of an attachment's link. Ids and interface names hold neither `:` nor `#`.
fn name(owner: &Owner) -> String {
    // The longest file name has 255 bytes.
    const LONGEST: usize = 200;
    let content = owner.content();
    if content.len() <= LONGEST {
        return content.replace("\r\n", ":");
    }
    Sha256::digest(content.as_bytes()).iter().fold("#".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

fn target(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn read(dir: &OwnedFd, name: &str) -> Result<String, Errno> {
    let target = fs::readlinkat(dir, name, Vec::with_capacity(64))?;
    CString::into_string(target).map_err(|_| Errno::INVAL)
}

fn write(dir: &OwnedFd, name: &str, target: &str) -> Result<(), Errno> {
    if target.is_empty() {
        return remove(dir, name);
    }
    match fs::symlinkat(target, dir, name) {
        Err(Errno::EXIST) => {
            remove(dir, name)?;
            fs::symlinkat(target, dir, name)
        }
        result => result,
    }
}

fn remove(dir: &OwnedFd, name: &str) -> Result<(), Errno> {
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

fn correct(dir: &OwnedFd, taken: &[IpAddr], mut owner: impl FnMut(IpAddr) -> Option<Owner>) -> Result<(), Errno> {
    let mut found = vec![false; taken.len()];
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let Ok(link) = entry.file_name().to_str() else { continue };
        if link.starts_with('.') {
            continue;
        }
        // What is right is left alone, and its addresses need not be looked at again.
        let mut places = Vec::new();
        let is_right = read(dir, link).is_ok_and(|target| {
            target.split(',').all(|address| {
                let Ok(address) = address.parse::<IpAddr>() else { return false };
                let Ok(place) = taken.binary_search(&address) else { return false };
                let is_new = !places.contains(&place);
                places.push(place);
                is_new && owner(address).is_some_and(|owner| name(&owner) == link)
            })
        });
        if is_right {
            for place in places {
                found[place] = true;
            }
        } else {
            remove(dir, link)?;
        }
    }
    for (address, _) in taken.iter().zip(&found).filter(|(_, found)| !**found) {
        let Some(owner) = owner(*address) else { continue };
        let link = name(&owner);
        let target = match read(dir, &link) {
            Ok(target) => format!("{target},{address}"),
            Err(Errno::NOENT) => address.to_string(),
            Err(error) => return Err(error),
        };
        write(dir, &link, &target)?;
    }
    Ok(())
}
