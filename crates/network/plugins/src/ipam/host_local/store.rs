//! The directory of a network: one file for each address that is taken, as the original plugin makes and reads them.
//!
//! `<dataDir>/<network>/` holds `<address>` with the content `<container id>\r\n<interface>` (or, very old, the id
//! alone), `last_reserved_ip.<n>` with the address last given out of range set n, and `lock`. Every change is made under
//! an exclusive flock(2) on `lock`.
//!
//! Crash safety. An address file appears under its name with its content, by one link(2) of a nameless file, so that a
//! plugin killed at any moment leaves either nothing or a file that DEL finds; link fails if the name exists, so no
//! address is handed out twice even to a program that ignores the lock. Nothing is flushed: a file that a power failure
//! takes back belonged to a container that the power failure took as well, and one that it brings back (or leaves empty)
//! is taken until GC finds it without an owner. Flushing would cost more than all the rest of ADD.

use std::collections::HashSet;
use std::fs::DirBuilder;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::index::Index;
use super::owner::Owner;
use super::range::{Candidate, RangeSet};

/// Where the directories of all networks are unless the configuration says otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// So many addresses are tried one by one before the whole directory is listed.
const TRIES: usize = 64;
/// No address file is longer.
const LONGEST: usize = 64 * 1024;

/// The directory could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct StoreError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The locked directory of a network. The lock is held as long as the value lives.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    dir: OwnedFd,
    // Only to be dropped last: it holds the lock.
    _lock: OwnedFd,
    index: Index,
}

impl Store {
    /// Opens and locks the directory of a network; makes it if it is not there.
    pub fn create(data_dir: &Path, network: &str) -> Result<Self, StoreError> {
        let path = data_dir.join(network);
        let dir = match open_dir(&path) {
            Err(Errno::NOENT) => {
                DirBuilder::new().recursive(true).create(&path).map_err(|source| failed("create", &path, source))?;
                open_dir(&path)
            }
            result => result,
        };
        let dir = dir.map_err(|error| failed("open", &path, error))?;
        Self::lock(data_dir, network, path, dir)
    }

    /// Opens and locks the directory of a network; none if there is no such directory, hence no address.
    pub fn open(data_dir: &Path, network: &str) -> Result<Option<Self>, StoreError> {
        let path = data_dir.join(network);
        match open_dir(&path) {
            Ok(dir) => Self::lock(data_dir, network, path, dir).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("open", &path, error)),
        }
    }

    fn lock(data_dir: &Path, network: &str, path: PathBuf, dir: OwnedFd) -> Result<Self, StoreError> {
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = fs::openat(&dir, "lock", flags, Mode::from_raw_mode(0o600));
        let lock = lock.map_err(|error| failed("open", path.join("lock"), error))?;
        loop {
            match fs::flock(&lock, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                result => break result.map_err(|error| failed("lock", path.join("lock"), error))?,
            }
        }
        let index = Index::open(data_dir, network, dir.as_fd());
        Ok(Self { path, dir, _lock: lock, index })
    }

    /// The addresses that an attachment holds, or failing that those that an old file says its container holds.
    pub fn held(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, StoreError> {
        let addresses = self.held_exactly(owner)?;
        if addresses.is_empty() { self.held_exactly(&owner.without_ifname()) } else { Ok(addresses) }
    }

    fn held_exactly(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, StoreError> {
        if let Some(addresses) = self.index.get(owner)
            && addresses.iter().all(|address| self.owner(*address).as_ref() == Some(owner))
        {
            return Ok(addresses);
        }
        self.correct_index(Some(owner))
    }

    /// Takes an address that was asked for by name; false if it is taken already.
    pub fn take(&mut self, owner: &Owner, set: usize, address: IpAddr) -> Result<bool, StoreError> {
        let file = self.prepare(owner)?;
        if !self.publish(file.as_ref(), owner, address)? {
            return Ok(false);
        }
        self.taken(owner, set, address).map(|()| true)
    }

    /// Takes the next free address of a set; none if the set is full.
    pub fn take_next(&mut self, owner: &Owner, index: usize, set: &RangeSet) -> Result<Option<Candidate>, StoreError> {
        let mut candidates = set.round_robin(last_reserved(&self.dir, index));
        let file = self.prepare(owner)?;
        let mut found = None;
        for candidate in candidates.by_ref().take(TRIES) {
            if self.publish(file.as_ref(), owner, candidate.net.addr())? {
                found = Some(candidate);
                break;
            }
        }
        if found.is_none() {
            let taken: HashSet<IpAddr> = self.addresses()?.collect();
            while let Some(candidate) = candidates.next_free(&taken) {
                if self.publish(file.as_ref(), owner, candidate.net.addr())? {
                    found = Some(candidate);
                    break;
                }
            }
        }
        if let Some(candidate) = found {
            self.taken(owner, index, candidate.net.addr())?;
        }
        Ok(found)
    }

    /// Gives back all addresses of an attachment; how many there were.
    pub fn release(&mut self, owner: &Owner) -> Result<usize, StoreError> {
        let mut addresses = self.held_exactly(owner)?;
        let mut owner = owner.clone();
        if addresses.is_empty() {
            owner = owner.without_ifname();
            addresses = self.held_exactly(&owner)?;
        }
        for address in &addresses {
            self.unlink(*address)?;
        }
        if !addresses.is_empty() {
            self.index.set(&owner, &[]);
        }
        Ok(addresses.len())
    }

    /// Gives back one address of an attachment that holds others too.
    pub fn release_one(&mut self, owner: &Owner, address: IpAddr) -> Result<(), StoreError> {
        let mut addresses = self.held_exactly(owner)?;
        addresses.retain(|held| *held != address);
        self.unlink(address)?;
        self.index.set(owner, &addresses);
        Ok(())
    }

    /// Gives back every address for whose owner `valid` is false, and every one whose file names nobody: under the lock
    /// no plugin is about to write that name. How many addresses these were.
    pub fn retain(&mut self, valid: impl Fn(&Owner) -> bool) -> Result<usize, StoreError> {
        let addresses: Vec<IpAddr> = self.addresses()?.collect();
        let mut count = 0;
        let mut first_error = None;
        for address in addresses {
            if self.owner(address).is_some_and(|owner| valid(&owner)) {
                continue;
            }
            match self.unlink(address) {
                Ok(()) => count += 1,
                // A directory of such a name, say: the others are still to be done.
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        let corrected = self.correct_index(None);
        first_error.or(corrected.err()).map_or(Ok(count), Err)
    }

    /// Gives back what was taken before the machine was started, if that has not been done since. `boot` is the id of
    /// this boot, `since` the time of its start in seconds since 1970. How many addresses these were.
    pub fn reclaim_before_boot(&mut self, boot: &str, since: i64) -> Result<usize, StoreError> {
        let mut count = 0;
        match self.index.boot() {
            Some(noted) if noted == boot => return Ok(0),
            // Never noted: the addresses may be of this boot.
            None => {}
            Some(_) => {
                let addresses: Vec<IpAddr> = self.addresses()?.collect();
                for address in addresses {
                    let stat = fs::statat(&self.dir, address.to_string(), AtFlags::SYMLINK_NOFOLLOW);
                    if stat.is_ok_and(|stat| stat.st_mtime < since) {
                        self.unlink(address)?;
                        count += 1;
                    }
                }
                self.correct_index(None)?;
            }
        }
        self.index.set_boot(boot).map_err(|error| failed("note the boot id in the index of", &self.path, error))?;
        Ok(count)
    }

    fn taken(&mut self, owner: &Owner, set: usize, address: IpAddr) -> Result<(), StoreError> {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let name = last_reserved_name(set);
        let written = fs::openat(&self.dir, &name, flags, Mode::from_raw_mode(0o600))
            .and_then(|file| rustix::io::write(&file, address.to_string().as_bytes()));
        if let Err(error) = written {
            // The caller does not know that it has this address.
            let _ = self.unlink(address);
            return Err(failed("write", self.path.join(name), error));
        }
        let mut addresses = self.index.get(owner).unwrap_or_default();
        addresses.push(address);
        self.index.set(owner, &addresses);
        Ok(())
    }

    /// A nameless file with the owner's content; none if the file system has no such files.
    fn prepare(&self, owner: &Owner) -> Result<Option<OwnedFd>, StoreError> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        match fs::openat(&self.dir, ".", flags, Mode::from_raw_mode(0o600)) {
            Ok(file) => {
                let content = owner.content();
                match rustix::io::write(&file, content.as_bytes()) {
                    Ok(count) if count == content.len() => Ok(Some(file)),
                    Ok(_) => Err(failed("write to", &self.path, Errno::NOSPC)),
                    Err(error) => Err(failed("write to", &self.path, error)),
                }
            }
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("create a file in", &self.path, error)),
        }
    }

    /// Gives the prepared file the name of an address; false if that is taken.
    fn publish(&self, file: Option<&OwnedFd>, owner: &Owner, address: IpAddr) -> Result<bool, StoreError> {
        let name = address.to_string();
        let result = match file {
            Some(file) => self.link(file, &name),
            None => Err(Errno::NOENT),
        };
        let result = match result {
            // No /proc and no capability to do without, or no nameless files: as the original does.
            Err(Errno::NOENT) => self.create_exclusive(&name, owner),
            result => result,
        };
        match result {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(failed("create", self.path.join(name), error)),
        }
    }

    fn link(&self, file: &OwnedFd, name: &str) -> Result<(), Errno> {
        match fs::linkat(file, "", &self.dir, name, AtFlags::EMPTY_PATH) {
            Err(Errno::NOENT) => {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                fs::linkat(fs::CWD, path, &self.dir, name, AtFlags::SYMLINK_FOLLOW)
            }
            result => result,
        }
    }

    fn create_exclusive(&self, name: &str, owner: &Owner) -> Result<(), Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = fs::openat(&self.dir, name, flags, Mode::from_raw_mode(0o600))?;
        let content = owner.content();
        let result = match rustix::io::write(&file, content.as_bytes()) {
            Ok(count) if count == content.len() => Ok(()),
            Ok(_) => Err(Errno::NOSPC),
            Err(error) => Err(error),
        };
        if result.is_err() {
            let _ = fs::unlinkat(&self.dir, name, AtFlags::empty());
        }
        result
    }

    fn unlink(&self, address: IpAddr) -> Result<(), StoreError> {
        let name = address.to_string();
        match fs::unlinkat(&self.dir, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed("remove", self.path.join(name), error)),
        }
    }

    /// Who holds an address; none if nobody does or its file does not say.
    fn owner(&self, address: IpAddr) -> Option<Owner> {
        owner(&self.dir, address)
    }

    /// Every address that has a file.
    fn addresses(&self) -> Result<impl Iterator<Item = IpAddr> + use<>, StoreError> {
        addresses(&self.dir).map_err(|error| failed("list", &self.path, error))
    }

    /// Reads all address files, corrects the index, and says what this owner holds.
    fn correct_index(&mut self, wanted: Option<&Owner>) -> Result<Vec<IpAddr>, StoreError> {
        let mut taken: Vec<IpAddr> = self.addresses()?.collect();
        taken.sort_unstable();
        let mut held = Vec::new();
        let dir = &self.dir;
        let mut owner = |address: IpAddr| {
            let owner = owner(dir, address);
            if owner.is_some() && owner.as_ref() == wanted && !held.contains(&address) {
                held.push(address);
            }
            owner
        };
        if !self.index.correct(&taken, &mut owner) {
            for address in &taken {
                owner(*address);
            }
        }
        Ok(held)
    }

    #[cfg(test)]
    pub(super) fn index_is_complete(&self) -> bool {
        self.index.is_complete()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.index.seal(self.dir.as_fd());
    }
}

/// Finds out, without the lock and mostly without listing the directory, whether a set has an address left.
pub fn has_free(data_dir: &Path, network: &str, index: usize, set: &RangeSet) -> Result<bool, StoreError> {
    let path = data_dir.join(network);
    let dir = match open_dir(&path) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(set.capacity() > 0),
        Err(error) => return Err(failed("open", &path, error)),
    };
    let mut candidates = set.round_robin(last_reserved(&dir, index));
    let is_free = |candidate: Candidate| {
        let stat = fs::statat(&dir, candidate.net.addr().to_string(), AtFlags::SYMLINK_NOFOLLOW);
        matches!(stat, Err(Errno::NOENT))
    };
    if candidates.by_ref().take(TRIES).any(is_free) {
        return Ok(true);
    }
    let taken: HashSet<IpAddr> = addresses(&dir).map_err(|error| failed("list", &path, error))?.collect();
    Ok(candidates.next_free(&taken).is_some())
}

/// Finds out whether address files could be made: the nearest directory that exists is writable and has room.
pub fn check_writable(data_dir: &Path, network: &str) -> Result<(), StoreError> {
    let path = data_dir.join(network);
    let mut nearest = path.as_path();
    loop {
        match fs::accessat(fs::CWD, nearest, fs::Access::WRITE_OK | fs::Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) => break,
            Err(Errno::NOENT) => match nearest.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => nearest = parent,
                _ => return Err(failed("create", &path, Errno::NOENT)),
            },
            Err(error) => return Err(failed("write to", nearest, error)),
        }
    }
    let open = open_dir(nearest).map_err(|error| failed("open", nearest, error))?;
    let room = fs::fstatvfs(&open).map_err(|error| failed("query the file system of", nearest, error))?;
    if room.f_bavail == 0 || (room.f_files > 0 && room.f_favail == 0) {
        return Err(failed("write to", nearest, Errno::NOSPC));
    }
    Ok(())
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The content of a regular file in the directory. Whatever else has the name is not followed nor waited for.
fn read(dir: &OwnedFd, name: &str) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = fs::openat(dir, name, flags, Mode::empty()).ok()?;
    let mut content = vec![0; 256];
    let mut length = 0;
    loop {
        match rustix::io::read(&file, &mut content[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
        if length < content.len() {
            break;
        }
        if length >= LONGEST {
            return None;
        }
        content.resize(content.len() * 4, 0);
    }
    content.truncate(length);
    Some(content)
}

fn owner(dir: &OwnedFd, address: IpAddr) -> Option<Owner> {
    Owner::parse(&read(dir, &address.to_string())?)
}

fn addresses(dir: &OwnedFd) -> Result<impl Iterator<Item = IpAddr> + use<>, Errno> {
    let mut found = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        let name = entry?;
        let Ok(name) = name.file_name().to_str() else { continue };
        // Only a name that we would write ourselves: `unlink` must hit the very file.
        if let Ok(address) = name.parse::<IpAddr>()
            && address.to_string() == name
        {
            found.push(address);
        }
    }
    Ok(found.into_iter())
}

/// The address last given out of a range set.
fn last_reserved(dir: &OwnedFd, set: usize) -> Option<IpAddr> {
    str::from_utf8(&read(dir, &last_reserved_name(set))?).ok()?.parse().ok()
}

fn last_reserved_name(set: usize) -> String {
    format!("last_reserved_ip.{set}")
}

fn failed(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> StoreError {
    StoreError { operation, path: path.into(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_index_is_corrected() {
        let dir = tempfile::tempdir().unwrap();
        let net = dir.path().join("net");
        let index = dir.path().join(".outrigger/net");
        for path in [&net, &index] {
            DirBuilder::new().recursive(true).create(path).unwrap();
        }
        for (address, id) in [("10.0.0.2", "a"), ("10.0.0.3", "a"), ("10.0.0.4", "b"), ("10.0.0.5", "right")] {
            fs_err::write(net.join(address), Owner::new(id, "eth0").content()).unwrap();
        }
        fs_err::write(net.join("10.0.0.6"), "").unwrap();
        for (link, target) in [
            ("a:eth0", "10.0.0.2"),
            ("b:eth0", "10.0.0.4,10.0.0.9"),
            ("other:eth0", "10.0.0.4"),
            ("junk:eth0", "junk"),
            ("nobody:eth0", "10.0.0.6"),
            ("right:eth0", "10.0.0.5"),
        ] {
            std::os::unix::fs::symlink(target, index.join(link)).unwrap();
        }
        fs_err::write(index.join("file:eth0"), "").unwrap();
        for _ in 0..2 {
            let mut store = Store::open(dir.path(), "net").unwrap().unwrap();
            let mut held = |id| store.held(&Owner::new(id, "eth0")).unwrap();
            assert_eq!(held("b"), [IpAddr::from([10, 0, 0, 4])]);
            assert_eq!(held("a"), [IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3])]);
            assert_eq!(held("other"), Vec::<IpAddr>::new());
            assert!(store.index_is_complete());
            drop(store);
            let mut links: Vec<_> = fs_err::read_dir(&index)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| {
                    format!("{} {}", path.file_name().unwrap().display(), fs_err::read_link(&path).unwrap().display())
                })
                .collect();
            links.sort();
            assert_eq!(links, ["a:eth0 10.0.0.2,10.0.0.3", "b:eth0 10.0.0.4", "right:eth0 10.0.0.5"]);
        }
        // Without an index that could be written, the files alone tell.
        fs_err::remove_dir_all(dir.path().join(".outrigger")).unwrap();
        fs_err::write(dir.path().join(".outrigger"), "").unwrap();
        let mut store = Store::open(dir.path(), "net").unwrap().unwrap();
        assert_eq!(store.held(&Owner::new("a", "eth0")).unwrap().len(), 2);
    }

    #[test]
    fn file_systems_without_nameless_files() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path(), "net").unwrap();
        let owner = Owner::new("a", "eth0");
        let address = IpAddr::from([10, 0, 0, 2]);
        assert!(store.publish(None, &owner, address).unwrap());
        assert_eq!(store.owner(address), Some(owner.clone()));
        assert!(!store.publish(None, &owner, address).unwrap());
        // By way of /proc, where the capability for the short way is missing.
        let file = store.prepare(&owner).unwrap().unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::linkat(fs::CWD, path, &store.dir, "10.0.0.3", AtFlags::SYMLINK_FOLLOW).unwrap();
        assert_eq!(store.owner(IpAddr::from([10, 0, 0, 3])), Some(owner));
    }
}
