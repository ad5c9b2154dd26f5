//! A private "host" for network tests: own network and mount namespaces, and containers in it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;

/// What the private host sets up before it says that it is ready: its own `/sys` (so that `/sys/class/net` is that of
/// the namespace; control groups stay the machine's), and empty places where plugins and runtimes keep state.
const SETUP: &str = r"set -e
mount -t tmpfs tmpfs /run
mkdir /run/cgroup
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount --rbind /run/cgroup /sys/fs/cgroup
umount -R /run/cgroup
rmdir /run/cgroup
for dir in /var/lib/cni /etc/cni; do mkdir -p $dir; mount -t tmpfs tmpfs $dir; done
mkdir -p /run/netns
ip link set lo up
echo ready
exec cat >/dev/null";

/// A "host" of its own: network and mount namespaces that go with this value. Nothing that is done in it, by plugins or
/// by hand, is seen by the machine: links, rules, `/run`, `/var/lib/cni`, `/etc/cni`. Needs root.
#[derive(Debug)]
pub struct NetHost {
    holder: Child,
    /// The first process of the host, where it has processes of its own.
    init: Option<OwnedFd>,
}

/// What a plugin said.
#[derive(Debug, Clone)]
pub struct PluginOutput {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output as JSON; null if it was empty.
    pub stdout: Value,
    /// Standard error.
    pub stderr: String,
}

impl PluginOutput {
    /// The standard output if the plugin succeeded, else its error.
    pub fn ok(self) -> Result<Value> {
        ensure!(self.code == Some(0), "exit {:?}: {} {}", self.code, self.stdout, self.stderr);
        Ok(self.stdout)
    }

    /// Code of the CNI error; none if it succeeded.
    pub fn error_code(&self) -> Option<u64> {
        if self.code == Some(0) { None } else { self.stdout["code"].as_u64() }
    }
}

impl NetHost {
    /// Makes the namespaces. Use [`NetHost::available`] first where a test may run without root.
    pub fn new() -> Result<Self> {
        Self::start(&[], SETUP)
    }

    /// The same with a process namespace too: daemons and containers that are started in it end with this value.
    pub fn with_processes() -> Result<Self> {
        // The shell stays as the first process, since orphans are its to bury.
        let setup = format!("mount -t proc proc /proc\n{}; exit", SETUP.replace("exec cat", "cat"));
        let mut host = Self::start(&["--pid", "--fork", "--kill-child"], &setup)?;
        let holder = host.holder.id();
        let children = fs_err::read_to_string(format!("/proc/{holder}/task/{holder}/children"))?;
        let init = children.split_whitespace().next().and_then(|pid| Pid::from_raw(pid.parse().ok()?));
        host.init = Some(pidfd_open(init.context("the first process")?, PidfdFlags::empty())?);
        Ok(host)
    }

    fn start(namespaces: &[&str], setup: &str) -> Result<Self> {
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private"])
            .args(namespaces)
            .args(["sh", "-c", setup])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run unshare")?;
        let stdout = holder.stdout.take().context("stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let host = Self { holder, init: None };
        ensure!(line.trim() == "ready", "the private network host did not start: are you root?");
        Ok(host)
    }

    /// True if this process may make namespaces.
    pub fn available() -> bool {
        rustix::process::geteuid().is_root()
    }

    /// A command in the host's namespaces.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id()));
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        if self.init.is_some() {
            command.arg(format!("--pid=/proc/{}/ns/pid_for_children", self.holder.id()));
        }
        command.arg("--").arg(program.as_ref());
        command
    }

    /// A command in a container's network namespace (see [`NetHost::container`]).
    pub fn in_container(&self, name: &str, program: impl AsRef<Path>) -> Command {
        let mut command = self.command("nsenter");
        command.arg(format!("--net=/run/netns/{name}")).arg("--").arg(program.as_ref());
        command
    }

    /// Runs a shell line on the host and gives its standard output; an error if it fails.
    pub fn sh(&self, line: &str) -> Result<String> {
        run(self.command("sh").args(["-ec", line]), line)
    }

    /// Runs a shell line in a container and gives its standard output; an error if it fails.
    pub fn container_sh(&self, name: &str, line: &str) -> Result<String> {
        run(self.in_container(name, "sh").args(["-ec", line]), line)
    }

    /// Makes a network namespace and gives its path in the host's mount namespace, `/run/netns/<name>`.
    pub fn container(&self, name: &str) -> Result<PathBuf> {
        self.sh(&format!("touch /run/netns/{name}; unshare --net=/run/netns/{name} true"))?;
        Ok(PathBuf::from(format!("/run/netns/{name}")))
    }

    /// Does `work` on a thread that is in the host's network namespace, or in a container's. Sockets that it makes stay
    /// there for ever, so it can hand them back. Its mount namespace stays the machine's.
    pub fn within<T: Send>(&self, container: Option<&str>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let holder = self.holder.id();
        let path = match container {
            Some(name) => format!("/proc/{holder}/root/run/netns/{name}"),
            None => format!("/proc/{holder}/ns/net"),
        };
        let file = fs_err::File::open(path)?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(file.file()), Some(kind))?;
                work()
            });
            thread.join().unwrap_or_else(|_| bail!("the work in the namespace panicked"))
        })
    }

    /// Removes a network namespace.
    pub fn remove_container(&self, name: &str) -> Result<()> {
        self.sh(&format!("umount /run/netns/{name}; rm /run/netns/{name}")).map(drop)
    }

    /// A plugin's process with the CNI environment, ready to be given its configuration; further variables can be set.
    pub fn plugin(&self, binary: &Path, command: &str, id: &str, netns: &Path, ifname: &str) -> Command {
        let mut process = self.command(binary);
        let dir = binary.parent().unwrap_or(Path::new("/"));
        process.env("CNI_COMMAND", command).env("CNI_CONTAINERID", id).env("CNI_NETNS", netns);
        process.env("CNI_IFNAME", ifname).env("CNI_PATH", dir).env_remove("CNI_ARGS");
        process
    }

    /// Runs a plugin's process with a configuration on its standard input.
    pub fn call(process: &mut Command, config: &Value) -> Result<PluginOutput> {
        let mut child = process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        // A plugin that fails early does not read; that is its right.
        let _ = child.stdin.take().context("stdin")?.write_all(config.to_string().as_bytes());
        let output = child.wait_with_output()?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let stdout = if output.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&output.stdout)
                .with_context(|| format!("not JSON: {:?} {stderr}", String::from_utf8_lossy(&output.stdout)))?
        };
        Ok(PluginOutput { code: output.status.code(), stdout, stderr })
    }
}

impl Drop for NetHost {
    fn drop(&mut self) {
        // Its standard input closes, so it ends by itself; killing it makes sure.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if let Some(init) = &self.init {
            // The first process is gone when all the others are.
            let mut poll = [PollFd::new(init, PollFlags::IN)];
            let _ = rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 10, tv_nsec: 0 }));
        }
    }
}

fn run(command: &mut Command, line: &str) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {line:?}"))?;
    if !output.status.success() {
        bail!("{line:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_its_own_with_a_container() {
        if !NetHost::available() {
            eprintln!("skipped: needs root");
            return;
        }
        let host = NetHost::new().unwrap();
        host.container("a").unwrap();
        host.sh("ip link add v0 type veth peer name v1 netns /run/netns/a").unwrap();
        assert!(host.container_sh("a", "ip -br link").unwrap().contains("v1"));
        assert!(host.sh("ls /sys/class/net").unwrap().contains("v0"));
        assert!(!Path::new("/sys/class/net/v0").exists());
        assert!(host.sh("ip link show v1").is_err());
        host.remove_container("a").unwrap();
        let config = serde_json::json!({ "cniVersion": "1.0.0" });
        let output = NetHost::call(
            host.plugin(Path::new("/bin/cat"), "VERSION", "id", Path::new("/x"), "eth0").arg("-"),
            &config,
        );
        assert_eq!(output.unwrap().ok().unwrap(), config);
    }

    #[test]
    fn processes_end_with_their_host() {
        if !NetHost::available() {
            eprintln!("skipped: needs root");
            return;
        }
        let host = NetHost::with_processes().unwrap();
        host.sh("sleep 1000 </dev/null >/dev/null 2>&1 &").unwrap();
        assert_eq!(host.sh("cat /proc/1/comm").unwrap().trim(), "sh");
        assert!(host.sh("cat /proc/[0-9]*/comm").unwrap().contains("sleep"));
        let init = host.init.as_ref().unwrap().try_clone().unwrap();
        drop(host);
        let mut poll = [PollFd::new(&init, PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1));
    }
}
