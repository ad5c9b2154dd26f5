//! Where the lab keeps things, and how one of its commands finds a lab that another one started.
//!
//! ```text
//! <dir>/lock                locked while a lab runs; its presence marks the directory as a lab's
//! <dir>/lab.json            who runs the lab: pid, its start time, address (removed on an orderly stop)
//! <dir>/kubeconfig          for kubectl: the API server's address, its CA and an administrator's certificate
//! <dir>/pki/, <dir>/store/  the API server's keys and objects
//! <dir>/plugins/csi-hostpath/csi.sock   the driver's socket
//! <dir>/csi-data/           the driver's volumes and records
//! <dir>/logs/               one log for each process
//! ```

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::cli::LabDir;

/// The lab's directory tree.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The tree at the place that the command line, the environment or the user's rights choose; an absolute path.
    pub(crate) fn choose(dir: &LabDir) -> Result<Self> {
        let root = match &dir.dir {
            Some(dir) if dir.as_os_str().is_empty() => bail!("--dir (or OUTRIGGER_LAB_DIR) is empty; name a directory"),
            Some(dir) => std::path::absolute(dir).with_context(|| format!("cannot resolve {}", dir.display()))?,
            None if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/outrigger/lab"),
            None => {
                let state = match (std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME")) {
                    (Some(state), _) if !state.is_empty() => PathBuf::from(state),
                    (_, Some(home)) if !home.is_empty() => PathBuf::from(home).join(".local/state"),
                    _ => bail!("neither XDG_STATE_HOME nor HOME is set; say where the lab shall live with --dir"),
                };
                state.join("outrigger/lab")
            }
        };
        if root.exists() && !root.is_dir() {
            bail!("{} is there and is not a directory; choose another with --dir", root.display());
        }
        Ok(Self { root })
    }

    /// The lab's directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The kubeconfig for the lab's users.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// The logs' directory.
    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The log of the process called `name`.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// The socket of the hostpath driver, at the place that the kubelet's convention gives it.
    pub(crate) fn driver_socket(&self) -> PathBuf {
        self.root.join("plugins/csi-hostpath/csi.sock")
    }

    /// The hostpath driver's state.
    pub(crate) fn driver_state(&self) -> PathBuf {
        self.root.join("csi-data")
    }

    fn record_path(&self) -> PathBuf {
        self.root.join("lab.json")
    }

    /// Makes the directories, readable by their owner alone: keys and volumes are inside.
    pub(crate) fn create(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        let private = |path: &Path| {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(path)
                .with_context(|| format!("cannot make the lab's directory {}", path.display()))
        };
        private(&self.root)?;
        private(&self.logs())?;
        private(&self.root.join("plugins/csi-hostpath"))
    }

    /// Takes the directory for this process; the lock goes with the file that is returned, also by a kill. Fails, and
    /// names the holder, when another lab has it.
    pub(crate) fn lock(&self) -> Result<std::fs::File> {
        use std::io::{Read as _, Write as _};
        let path = self.lock_path();
        let (mut file, _) =
            fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?.into_parts();
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder)?;
                bail!("a lab runs in {} already (pid {})", self.root.display(), holder.trim());
            }
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(file)
    }

    /// True if a lab ever ran here.
    pub(crate) fn is_a_labs(&self) -> bool {
        self.lock_path().exists()
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Leaves word of who runs the lab, so that other commands find it.
    pub(crate) fn write_record(&self, record: &Record) -> Result<()> {
        let path = self.record_path();
        let fresh = path.with_extension("json.new");
        fs::write(&fresh, serde_json::to_vec_pretty(record)?)?;
        fs::rename(&fresh, &path)?;
        Ok(())
    }

    /// Takes that word back.
    pub(crate) fn remove_record(&self) -> io::Result<()> {
        match fs::remove_file(self.record_path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// The lab that runs in this directory, if one does. The record of a lab that was killed counts for nothing.
    pub(crate) fn running(&self) -> Result<Option<Record>> {
        let path = self.record_path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let record: Record = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is damaged; delete it if no lab runs", path.display()))?;
        Ok(record.process.is_alive().then_some(record))
    }
}

/// Who runs the lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    /// The process of the API server, which also supervises the plugins.
    pub process: ProcessId,
    /// Where the API server listens.
    pub address: SocketAddr,
    /// When it started, as RFC 3339.
    pub started: String,
    /// Set once everything answered for the first time.
    pub ready: bool,
    /// The plugins' processes.
    pub children: Vec<Child>,
}

/// A supervised process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Child {
    /// Its name, which its log file bears too.
    pub name: String,
    /// The process; none between a death and the next start.
    pub process: Option<ProcessId>,
    /// How often it was started again after it had ended by itself.
    pub restarts: u32,
}

/// A process, told apart from a later one that got the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessId {
    /// The process id.
    pub pid: i32,
    /// Start time in clock ticks since boot: field 22 of /proc/PID/stat.
    pub start_ticks: u64,
}

impl ProcessId {
    /// This very process.
    pub(crate) fn current() -> Result<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// The process that has this number now.
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_ticks = start_ticks(&stat).with_context(|| format!("cannot read /proc/{pid}/stat"))?;
        Ok(Self { pid, start_ticks })
    }

    /// True while that process, not another of the same number, runs.
    pub(crate) fn is_alive(self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| start_ticks(&stat) == Some(self.start_ticks) && state(&stat) != Some('Z'))
    }

    /// Sends a signal if that process still runs; true if it did.
    pub(crate) fn signal(self, signal: rustix::process::Signal) -> bool {
        self.is_alive()
            && rustix::process::Pid::from_raw(self.pid)
                .is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
    }
}

/// The fields after the command's name, which is in parentheses and may itself contain some.
fn after_name(stat: &str) -> Option<&str> {
    stat.rsplit_once(") ").map(|(_, rest)| rest)
}

fn state(stat: &str) -> Option<char> {
    after_name(stat)?.chars().next()
}

fn start_ticks(stat: &str) -> Option<u64> {
    after_name(stat)?.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start() {
        let me = ProcessId::current().unwrap();
        assert!(me.is_alive());
        let earlier = ProcessId { start_ticks: me.start_ticks - 1, ..me };
        assert!(!earlier.is_alive(), "a number that was given again is another process");
        assert!(!earlier.signal(rustix::process::Signal::KILL));
    }

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = format!("7 (a) b) S {} 4242 rest", vec!["0"; 18].join(" "));
        assert_eq!((state(&stat), start_ticks(&stat)), (Some('S'), Some(4242)));
    }

    #[test]
    fn a_damaged_record_is_an_error_and_a_stale_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::choose(&LabDir { dir: Some(dir.path().into()) }).unwrap();
        assert!(layout.running().unwrap().is_none());
        let record = Record {
            process: ProcessId { pid: 1, start_ticks: u64::MAX },
            address: "127.0.0.1:1".parse().unwrap(),
            started: String::new(),
            ready: true,
            children: Vec::new(),
        };
        layout.write_record(&record).unwrap();
        assert!(layout.running().unwrap().is_none());
        fs::write(dir.path().join("lab.json"), "{").unwrap();
        assert!(layout.running().unwrap_err().to_string().contains("damaged"));
    }
}
