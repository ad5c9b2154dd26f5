//! The plugin and the daemon with real servers, in network namespaces of their own.

mod dnsmasq;
mod server;
mod small;

use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use outrigger_netlink::NetNs;
use serde_json::{Value, json};

use super::Dhcp;
use super::daemon::{Daemon, boot_id, listen};
use super::settings::Settings;
use crate::ipam::testing::{Invocation, Outcome};

/// A server's namespace and a container's, with a veth pair between: `srv` there, `eth0` here.
struct Lan {
    dir: tempfile::TempDir,
    server: NetNs,
    container: NetNs,
}

impl Lan {
    /// None without root.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let server = NetNs::create(dir.path().join("server")).unwrap();
        let container = NetNs::create(dir.path().join("container")).unwrap();
        let lan = Self { dir, server, container };
        let peer = lan.container.path().display().to_string();
        Lan::ip(&lan.server, &format!("link add srv type veth peer name eth0 netns {peer}"));
        Lan::ip(&lan.server, "addr add 10.77.0.1/24 dev srv");
        Lan::ip(&lan.server, "link set srv up");
        Some(lan)
    }

    fn ip(netns: &NetNs, line: &str) -> String {
        netns.run(|| command("ip", line)).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("dhcp.sock")
    }

    fn settings(&self) -> Settings {
        Settings {
            socket: self.socket(),
            timeout: Duration::from_secs(2),
            resend_max: Duration::from_secs(4),
            ..Settings::default()
        }
    }

    fn call(&self, command: &'static str, id: &str, ipam: Value) -> Outcome {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "lan", "type": "macvlan",
            "ipam": {"type": "dhcp", "daemonSocketPath": self.socket()},
            "cni.dev/valid-attachments": [], "prevResult": {"cniVersion": "1.1.0"},
        });
        for (key, value) in ipam.as_object().unwrap() {
            config["ipam"][key] = value.clone();
        }
        let mut invocation = Invocation::new(command, id, config).args("K8S_POD_NAME=web-1;IgnoreUnknown=1");
        invocation.netns = self.container.path().display().to_string();
        invocation.ours(&Dhcp)
    }

    fn addresses(&self) -> String {
        Self::ip(&self.container, "-4 -br addr show dev eth0")
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for netns in [&self.server, &self.container] {
            let _ = NetNs::remove(netns.path());
        }
    }
}

fn command(program: &str, line: &str) -> String {
    let output = Command::new(program).args(line.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A daemon on a thread.
struct Running {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
}

impl Running {
    fn start(settings: Settings) -> Self {
        let socket = settings.socket_path();
        let listener = listen(&socket).unwrap();
        let (read, stop) = rustix::pipe::pipe().unwrap();
        let thread = std::thread::spawn(move || {
            let mut daemon = Daemon::start(settings, boot_id().unwrap()).unwrap();
            daemon.run(&listener, read.as_fd()).unwrap();
        });
        Self { stop: Some(stop), thread: Some(thread), socket }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The other end of the pipe becomes readable.
        self.stop.take();
        self.thread.take().unwrap().join().unwrap();
        fs_err::remove_file(&self.socket).unwrap();
    }
}

/// Asks until it is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let (_never, pause) = std::sync::mpsc::channel::<()>();
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not come about: {what}");
        let _ = pause.recv_timeout(Duration::from_millis(30));
    }
}

fn code(outcome: Outcome) -> (u64, String) {
    let error = outcome.unwrap_err();
    (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
}

fn lease_files(lan: &Lan) -> Vec<String> {
    let Ok(entries) = fs_err::read_dir(lan.dir.path().join("dhcp.leases")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path().extension().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn without_a_daemon() {
    let Some(lan) = Lan::new() else { return };
    for command in ["ADD", "STATUS"] {
        let (number, msg) = code(lan.call(command, "a", json!({})));
        assert_eq!(number, 50, "{msg}");
        assert!(msg.starts_with("dhcp: no daemon listens on ") && msg.ends_with("there is no such socket"), "{msg}");
    }
    lan.call("DEL", "a", json!({})).unwrap();
    lan.call("GC", "a", json!({})).unwrap();
    // A dead daemon's socket.
    drop(std::os::unix::net::UnixListener::bind(lan.socket()).unwrap());
    assert_eq!(code(lan.call("STATUS", "a", json!({}))).0, 50);
    let daemon = Running::start(lan.settings());
    lan.call("STATUS", "a", json!({})).unwrap();
    assert!(listen(&lan.socket()).unwrap_err().to_string().contains("another daemon"));
    drop(daemon);
}

#[test]
fn of_daemons_that_start_at_once_one_listens() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("dhcp.sock");
    for _ in 0..100 {
        // A dead daemon's socket.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let barrier = std::sync::Barrier::new(4);
        let start = || {
            barrier.wait();
            listen(&socket)
        };
        let listeners: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap().ok()).collect()
        });
        assert_eq!(listeners.len(), 1);
        std::os::unix::net::UnixStream::connect(&socket).unwrap();
        fs_err::remove_file(&socket).unwrap();
    }
}

#[test]
fn without_a_server() {
    let Some(lan) = Lan::new() else { return };
    let settings = Settings { timeout: Duration::from_millis(500), ..lan.settings() };
    let _daemon = Running::start(settings);
    let begin = Instant::now();
    let (number, msg) = code(lan.call("ADD", "a", json!({})));
    assert_eq!(number, 11);
    assert_eq!(msg, "dhcp: no dhcp server gave a lease within 3 s");
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(Lan::ip(&lan.container, "-br link show dev eth0").contains("UP"), "the link was set up");
    let (number, msg) = code(lan.call("ADD", "a", json!({"request": [{"option": "bad"}]})));
    assert_eq!(number, 7, "{msg}");
    assert!(code(lan.call("CHECK", "a", json!({}))).1.contains("has no lease"));
    lan.call("DEL", "a", json!({})).unwrap();
    lan.call("DEL", "a", json!({})).unwrap();
    Lan::ip(&lan.server, "link del srv");
    let (_, msg) = code(lan.call("ADD", "a", json!({})));
    assert!(msg.contains("eth0"), "{msg}");
}

#[test]
fn the_original_plugin_at_our_daemon() {
    let Some(plugin) = crate::ipam::testing::original("dhcp") else { return };
    let Some(lan) = Lan::new() else { return };
    let _daemon = Running::start(lan.settings());
    let config = json!({
        "cniVersion": "1.0.0", "name": "lan", "type": "macvlan",
        "ipam": {"type": "dhcp", "daemonSocketPath": lan.socket()},
    });
    let error = Invocation::new("ADD", "a", config).theirs(&plugin).unwrap_err();
    assert!(error["msg"].as_str().unwrap().contains("use the plugin of the same package"), "{error}");
}

#[test]
fn our_plugin_at_the_original_daemon() {
    let Some(plugin) = crate::ipam::testing::original("dhcp") else { return };
    let Some(lan) = Lan::new() else { return };
    let mut daemon = Command::new(plugin).args(["daemon", "-socketpath"]).arg(lan.socket()).spawn().unwrap();
    eventually("the original's daemon listens", || lan.socket().exists());
    let (_, msg) = code(lan.call("ADD", "a", json!({})));
    let status = code(lan.call("STATUS", "a", json!({})));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(msg.contains("is the original's, which speaks another protocol"), "{msg}");
    assert_eq!(status.0, 50);
}

#[test]
fn strange_clients() {
    let Some(lan) = Lan::new() else { return };
    let _daemon = Running::start(lan.settings());
    for (line, answer) in [
        (&b"nonsense\n"[..], "the request cannot be read"),
        (b"{\"protocol\":9,\"command\":\"status\"}\n", "speaks protocol 1, not 9"),
        (b"{\"protocol\":1,\"command\":\"add\",\"netns\":\"/etc/passwd\",\"ifname\":\"eth0\"}\n", "/etc/passwd"),
        (b"{\"protocol\":1,\"command\":\"add\",\"netns\":\"/nonexistent\",\"ifname\":\"eth0\"}\n", "/nonexistent"),
        (b"\xff\xfe\n", "the request cannot be read"),
    ] {
        let mut stream = std::os::unix::net::UnixStream::connect(lan.socket()).unwrap();
        stream.write_all(line).unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
        assert!(text.contains(answer), "{text}");
    }
    // Endless, and silent: neither stops the daemon.
    let mut endless = std::os::unix::net::UnixStream::connect(lan.socket()).unwrap();
    endless.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let chunk = vec![b'x'; 64 * 1024];
    while endless.write_all(&chunk).is_ok() {}
    let _silent = std::os::unix::net::UnixStream::connect(lan.socket()).unwrap();
    lan.call("STATUS", "a", json!({})).unwrap();
}

fn no_threads_in(netns: &Path) -> bool {
    let wanted = fs_err::metadata(netns).unwrap();
    let tasks = fs_err::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| fs_err::metadata(task.unwrap().path().join("ns/net")).ok()).all(|found| {
        use std::os::unix::fs::MetadataExt as _;
        (found.dev(), found.ino()) != (wanted.dev(), wanted.ino())
    })
}
