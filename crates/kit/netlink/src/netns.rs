//! Network namespaces: opened by path, entered on threads of their own, made and removed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use outrigger_sys::net as sys;
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::NamespaceProblem;
use crate::{Error, Result};

/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

impl NetNs {
    /// Opens the namespace at `path`: `/run/netns/NAME`, `/proc/PID/ns/net`, or wherever it is mounted.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let problem = |problem| Error::Namespace { path: path.to_owned(), problem };
        let file = File::open(path).map_err(|source| {
            problem(match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => NamespaceProblem::Missing,
                _ => NamespaceProblem::Io { operation: "open it", source },
            })
        })?;
        match sys::is_network_namespace(&file) {
            Ok(true) => Ok(Self { file, path: path.to_owned() }),
            Ok(false) => Err(problem(NamespaceProblem::OtherType)),
            // Directories and files of all kinds of file systems have various answers to an ioctl that is not theirs.
            Err(_) if file.metadata().is_ok_and(|metadata| metadata.is_dir()) => {
                Err(problem(NamespaceProblem::Directory))
            }
            Err(_) => Err(problem(NamespaceProblem::NotANamespace)),
        }
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        Self::open(OWN)
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are the same namespace.
    pub fn is_same(&self, other: &Self) -> Result<bool> {
        Ok(self.id()? == other.id()?)
    }

    /// What tells this namespace from all others that exist at the same time: device and inode of its file.
    pub fn id(&self) -> Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.file).map_err(|errno| self.problem("query it", errno.into()))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Runs `work` in the namespace, on a thread that ends with it, so that no thread is ever left in the wrong place.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            });
            let thread = thread.map_err(|source| self.problem("start a thread for it", source))?;
            match thread.join() {
                Ok(result) => result.map_err(|errno: Errno| self.problem("enter it", errno.into())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Makes a namespace and mounts it at `path`, as `ip netns add` does, so that it lives until [`NetNs::remove`].
    /// `path` must not exist; its directory is made if need be.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |operation| {
            move |source| Error::Namespace {
                path: path.to_owned(),
                problem: NamespaceProblem::Io { operation, source },
            }
        };
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).create(directory).map_err(failed("make its directory"))?;
        }
        OpenOptions::new().write(true).create_new(true).open(path).map_err(failed("make its file"))?;
        let made = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                sys::unshare_network()?;
                rustix::mount::mount_bind(OWN, path).map_err(io::Error::from)
            });
            match thread.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(result)) => result,
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(error) => Err(error),
            }
        });
        made.map_err(failed("make it")).and_then(|()| Self::open(path)).inspect_err(|_| {
            // The error that matters is the first one.
            let _ = Self::remove(path);
        })
    }

    /// Takes the namespace off `path` and removes the file. It goes when its last user has gone. Nothing at `path` is
    /// success.
    pub fn remove(path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let failed = |operation| {
            move |errno: Errno| Error::Namespace {
                path: path.to_owned(),
                problem: NamespaceProblem::Io { operation, source: errno.into() },
            }
        };
        match rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH) {
            // Not mounted, or not there.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(failed("unmount it")(errno)),
        }
        match rustix::fs::unlink(path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed("remove its file")(errno)),
        }
    }

    fn problem(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Namespace { path: self.path.clone(), problem: NamespaceProblem::Io { operation, source } }
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        File::create(&file).unwrap();
        for (path, gone, text) in [
            (directory.path().join("nothing"), true, "there is nothing at this path"),
            (file.join("below"), true, "there is nothing at this path"),
            (file, true, "this is a file, not a namespace"),
            (directory.path().to_owned(), true, "this is a directory, not a namespace"),
            ("/proc/self/ns/mnt".into(), false, "this is a namespace, but not one of type net"),
        ] {
            let error = NetNs::open(&path).unwrap_err();
            assert_eq!(error.is_namespace_gone(), gone);
            assert_eq!(error.to_string(), format!("network namespace {}: {text}", path.display()));
        }
    }

    #[test]
    fn made_entered_and_removed() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("netns/a");
        let netns = NetNs::create(&path).unwrap();
        assert!(NetNs::create(&path).unwrap_err().to_string().contains("file exists"));
        let outside = NetNs::current().unwrap();
        assert!(!netns.is_same(&outside).unwrap());
        assert!(netns.is_same(&NetNs::open(&path).unwrap()).unwrap());
        let inside = netns.run(|| NetNs::current().unwrap().id().unwrap()).unwrap();
        assert_eq!(inside, netns.id().unwrap());
        assert!(outside.is_same(&NetNs::current().unwrap()).unwrap());
        NetNs::remove(&path).unwrap();
        assert!(!path.exists());
        NetNs::remove(&path).unwrap();
        assert!(NetNs::open(&path).unwrap_err().is_namespace_gone());
    }
}
