//! The dhcp daemon as a process.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use outrigger_testing::NetHost;
use serde_json::json;

use crate::common::{Plugins, can_run};

/// Processor time of a process so far, in ticks of 10 ms.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// Waits until it is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let (_never, pause) = std::sync::mpsc::channel::<()>();
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come about: {what}");
        let _ = pause.recv_timeout(Duration::from_millis(30));
    }
}

/// A daemon that ends with the value.
struct Daemon(std::process::Child);

impl Daemon {
    /// Started by a shell with a limit.
    fn start(host: &NetHost, limit: &str, binary: &Path, socket: &Path) -> Result<Self> {
        let line = format!("{limit}; exec {} daemon -socketpath {}", binary.display(), socket.display());
        let child = host.command("sh").args(["-ec", &line]).stderr(std::process::Stdio::null()).spawn()?;
        let daemon = Self(child);
        eventually("the daemon listens", || socket.exists());
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn without_descriptors_plugins_wait_and_the_daemon_does_not_spin() {
    if !can_run("without_descriptors_plugins_wait_and_the_daemon_does_not_spin") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let host = NetHost::new().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("dhcp.sock");
    let daemon = Daemon::start(&host, "ulimit -n 24", &plugins.path("dhcp"), &socket).unwrap();
    let silent: Vec<_> = (0..40).map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap()).collect();
    let pid = daemon.0.id();
    // Number 23 is the last that it may have.
    eventually("there is no descriptor left", || fs_err::symlink_metadata(format!("/proc/{pid}/fd/23")).is_ok());
    let before = ticks(pid).unwrap();
    // As long as it takes to see what the daemon uses meanwhile.
    let (_never, pause) = std::sync::mpsc::channel::<()>();
    let _ = pause.recv_timeout(Duration::from_secs(2));
    let used = ticks(pid).unwrap() - before;
    assert!(used < 50, "the daemon used {used} ticks of the processor within 2 s");
    drop(silent);
    let config = json!({ "cniVersion": "1.1.0", "name": "lan", "type": "macvlan",
        "ipam": { "type": "dhcp", "daemonSocketPath": socket } });
    let mut process = host.plugin(&plugins.path("dhcp"), "STATUS", "", Path::new(""), "");
    NetHost::call(&mut process, &config).unwrap().ok().unwrap();
}

#[test]
fn the_daemon_takes_the_descriptors_that_it_may_have() {
    if !can_run("the_daemon_takes_the_descriptors_that_it_may_have") {
        return;
    }
    let plugins = Plugins::install().unwrap();
    let host = NetHost::new().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("dhcp.sock");
    let limit = "ulimit -Sn 100; ulimit -Hn 2000";
    let daemon = Daemon::start(&host, limit, &plugins.path("dhcp"), &socket).unwrap();
    let limits = fs_err::read_to_string(format!("/proc/{}/limits", daemon.0.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>()[3..5], ["2000", "2000"], "{line}");
}
