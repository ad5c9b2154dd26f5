//! Real clients, each with the peers' plugins and with ours: podman with its CNI backend, containerd's `ctr run --cni`, and
//! `outrigger cni`, which reads what they remember and is read by them.
//!
//! Every test has a host of its own, with processes of its own: nothing of a client survives it.

mod podman;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use outrigger_testing::NetHost;
use outrigger_tests::{Ran, eprintln_skip, eventually, outrigger_binary, run};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Plugins, can_run, peers_or_skip};

const PATIENCE: Duration = Duration::from_secs(30);
/// What a container needs to serve and fetch a page.
const APPLETS: &[&str] = &["httpd", "ip", "nc", "printf", "sh"];
const PAGE: &str = "hello from the container";

/// The plugins under a client.
enum Set {
    Peers(PathBuf),
    Ours(Plugins),
}

impl Set {
    fn peers(test: &str) -> Option<Self> {
        peers_or_skip(test).map(Self::Peers)
    }

    fn ours() -> Self {
        Self::Ours(Plugins::install().expect("our plugins can be installed"))
    }

    fn dir(&self) -> &Path {
        match self {
            Self::Peers(dir) => dir,
            Self::Ours(plugins) => plugins.dir(),
        }
    }

    fn is_ours(&self) -> bool {
        matches!(self, Self::Ours(_))
    }
}

/// Whether the test has all that it needs; says what is missing otherwise.
fn ready(test: &str, programs: &[&str]) -> bool {
    if !can_run(test) {
        return false;
    }
    let there = |program: &&&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
        !std::env::split_paths(&path).chain(sbin).any(|dir| dir.join(program).is_file())
    };
    let missing: Vec<_> = programs.iter().filter(there).copied().collect();
    if !missing.is_empty() {
        eprintln_skip(test, &format!("not installed: {}", missing.join(", ")));
    }
    missing.is_empty()
}

/// A host with plugins, a file system for containers, and a place for a client's files.
struct Machine {
    host: NetHost,
    plugins: Set,
    /// After the host: its processes have files open in it.
    scratch: TempDir,
}

impl Machine {
    fn new(plugins: Set) -> Result<Self> {
        let machine =
            Self { host: NetHost::with_processes()?, plugins, scratch: TempDir::with_prefix("outrigger-clients-")? };
        let rootfs = machine.rootfs();
        for dir in ["bin", "dev", "etc", "proc", "sys", "tmp", "www"] {
            fs_err::create_dir_all(rootfs.join(dir))?;
        }
        fs_err::copy("/bin/busybox", rootfs.join("bin/busybox"))?;
        for applet in APPLETS {
            fs_err::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet))?;
        }
        fs_err::write(rootfs.join("www/index.html"), PAGE)?;
        machine.host.sh("mkdir -p /etc/cni/net.d")?;
        Ok(machine)
    }

    fn rootfs(&self) -> PathBuf {
        self.path("rootfs")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs_err::write(&path, text)?;
        Ok(path)
    }

    /// A network in the host's `/etc/cni/net.d`.
    fn configure(&self, file: &str, config: &Value) -> Result<()> {
        let path = self.write(file, &config.to_string())?;
        self.host.sh(&format!("cp {} /etc/cni/net.d/", path.display())).map(drop)
    }

    fn outrigger(&self, arguments: &[&str]) -> Result<Ran> {
        let mut command = self.host.command(outrigger_binary());
        command.arg("cni").args(arguments).env("CNI_PATH", self.plugins.dir());
        for variable in ["NETCONFPATH", "CNI_ARGS", "CAP_ARGS", "CNI_IFNAME", "OUTRIGGER_CNI_CACHE"] {
            command.env_remove(variable);
        }
        run(command.stdin(Stdio::null()))
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.outrigger(arguments)?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// The page at an address, as seen by the host.
    fn fetch(&self, address: &str) -> Result<String> {
        run(self.host.command("curl").args(["-sS", "-m", "5", &format!("http://{address}/")]))?.ok()
    }

    fn wait_for_page(&self, address: &str) -> Result<()> {
        let page = eventually(PATIENCE, || self.fetch(address))?;
        ensure!(page == PAGE, "{address} serves {page:?}");
        Ok(())
    }

    /// Everything that speaks of attachments: addresses taken, results remembered, interfaces of pods, rules with addresses.
    fn traces(&self, subnet: &str) -> Result<String> {
        self.host.sh(&format!(
            "find /var/lib/cni -type f ! -name lock ! -name 'last_reserved_ip*'; \
             ip -o link | grep -E 'veth|ifb|bwp' || true; \
             for table in filter nat; do iptables -t $table -S | grep -F {subnet} || true; done"
        ))
    }

    fn assert_clean(&self, subnet: &str) -> Result<()> {
        // A client may report the end of a container before it has called the plugins for the last time.
        eventually(PATIENCE, || {
            let traces = self.traces(subnet)?;
            ensure!(traces.is_empty(), "left behind:\n{traces}");
            Ok(())
        })
    }
}

/// What a usual network of pods consists of.
fn pod_network(name: &str, version: &str, subnet: &str) -> Value {
    json!({ "cniVersion": version, "name": name, "plugins": [
        { "type": "bridge", "bridge": "cni7", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": {
            "type": "host-local", "ranges": [[{ "subnet": subnet }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
        { "type": "portmap", "capabilities": { "portMappings": true } },
        { "type": "firewall" },
    ]})
}

/// The same network as one plugin of ours that holds the list.
fn fast_chain(list: &Value) -> Value {
    let capabilities = json!({ "portMappings": true });
    let chain = json!({ "type": "outrigger", "capabilities": capabilities, "plugins": list["plugins"] });
    json!({ "cniVersion": list["cniVersion"], "name": list["name"], "plugins": [chain] })
}

mod containerd {
    use super::*;

    const PROGRAMS: &[&str] = &["containerd", "ctr", "runc", "iptables", "busybox", "curl"];
    const NETWORK: &str = "10.98.0";

    struct Containerd {
        machine: Machine,
        /// After the machine, with whose processes it becomes empty.
        group: Group,
    }

    /// Control group of the containers, in the machine's hierarchies.
    struct Group(String);

    impl Containerd {
        fn new(plugins: Set, network: &Value) -> Result<Self> {
            let machine = Machine::new(plugins)?;
            machine.configure("10-pods.conflist", network)?;
            // `ctr` knows one place for plugins only.
            machine.host.sh(&format!(
                "mkdir /run/plugins; mount --bind {} /run/plugins; mount -t tmpfs tmpfs /opt; mkdir -p /opt/cni/bin; \
                 mount --bind /run/plugins /opt/cni/bin; umount /run/plugins",
                machine.plugins.dir().display()
            ))?;
            let config = machine.write(
                "config.toml",
                &format!(
                    "version = 2\nroot = \"{}\"\nstate = \"/run/containerd\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                     [grpc]\naddress = \"/run/containerd.sock\"\n",
                    machine.path("containerd").display()
                ),
            )?;
            machine.host.sh(&format!(
                "containerd -c {} >{} 2>&1 </dev/null &",
                config.display(),
                machine.path("log").display()
            ))?;
            let containerd = Self { machine, group: Group(format!("outrigger-test-{}", std::process::id())) };
            eventually(PATIENCE, || containerd.ctr(&["version"]))
                .with_context(|| fs_err::read_to_string(containerd.machine.path("log")).unwrap_or_default())?;
            Ok(containerd)
        }

        fn ctr(&self, arguments: &[&str]) -> Result<String> {
            let mut command = self.machine.host.command("ctr");
            command.args(["-a", "/run/containerd.sock"]).args(arguments).stdin(Stdio::null());
            run(&mut command)?.ok().with_context(|| format!("ctr {}", arguments.join(" ")))
        }

        fn run(&self, id: &str, options: &[&str], program: &[&str]) -> Result<String> {
            let rootfs = self.machine.rootfs();
            let rootfs = rootfs.to_str().context("path")?;
            let fixed = ["--cni", "--cgroup", &self.group.0, "--rootfs", rootfs, id];
            self.ctr(&[&["run"], options, &fixed, program].concat())
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            let root = Path::new("/sys/fs/cgroup");
            let hierarchies = fs_err::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
            for hierarchy in hierarchies.chain([root.to_owned()]) {
                // Mostly containerd has removed it.
                let _ = fs_err::remove_dir(hierarchy.join(&self.0));
            }
        }
    }

    fn lives_on(plugins: Set, network: &Value) -> Result<()> {
        // `ctr` calls DEL when the process has ended, and its namespace with it. The peers then leave the masquerade rules.
        let scope = if plugins.is_ours() { NETWORK } else { "no rules" };
        let containerd = Containerd::new(plugins, network)?;
        let machine = &containerd.machine;

        // One that ends by itself is attached and detached by containerd.
        let said = containerd.run("short", &["--rm"], &["/bin/ip", "-4", "-o", "addr", "show", "eth0"])?;
        ensure!(said.contains("inet 10.98.0.2/24"), "{said}");
        machine.assert_clean(scope)?;

        // `ctr run -d` never detaches. This is the leak that the collection is for.
        containerd.run("web", &["-d"], &["/bin/httpd", "-f", "-p", "80", "-h", "/www"])?;
        let cached = machine.json(&["cache", "-o", "json"])?;
        ensure!(cached[0]["containerID"] == "default-web" && cached[0]["live"] == true, "{cached}");
        let address =
            cached[0]["addresses"][0].as_str().and_then(|address| address.split('/').next()).context("address")?;
        machine.wait_for_page(address)?;
        machine.outrigger(&["gc", "--all", "--live"])?.ok()?;
        machine.wait_for_page(address).context("a live container is no garbage")?;

        containerd.ctr(&["tasks", "kill", "-s", "KILL", "web"])?;
        eventually(PATIENCE, || containerd.ctr(&["tasks", "rm", "web"]).or_else(gone))?;
        containerd.ctr(&["containers", "rm", "web"])?;
        let collected = eventually(PATIENCE, || {
            let collected = machine.json(&["gc", "--all", "--live", "-o", "json"])?;
            ensure!(collected[0]["deleted"] == json!(["default-web/eth0"]), "{collected}");
            Ok(collected)
        })?;
        ensure!(collected[0]["errors"] == json!([]), "{collected}");
        machine.assert_clean(scope)
    }

    /// Removing a task that was killed reports its exit code as an error.
    fn gone(error: anyhow::Error) -> Result<String> {
        let text = format!("{error:#}");
        if text.contains("exit with non-zero") || text.contains("not found") { Ok(text) } else { Err(error) }
    }

    fn pods() -> Value {
        pod_network("pods", "1.0.0", "10.98.0.0/24")
    }

    #[test]
    fn containerd_lives_on_our_fast_chain() {
        if ready("containerd_lives_on_our_fast_chain", PROGRAMS) {
            lives_on(Set::ours(), &fast_chain(&pods())).unwrap();
        }
    }

    #[test]
    fn containerd_lives_on_the_peers_plugins() {
        const NAME: &str = "containerd_lives_on_the_peers_plugins";
        if !ready(NAME, PROGRAMS) {
            return;
        }
        let Some(peers) = Set::peers(NAME) else { return };
        lives_on(peers, &pods()).unwrap();
    }

    #[test]
    fn containerd_lives_on_our_plugins() {
        if ready("containerd_lives_on_our_plugins", PROGRAMS) {
            lives_on(Set::ours(), &pods()).unwrap();
        }
    }
}

mod by_hand {
    use super::*;

    const PROGRAMS: &[&str] = &["iptables", "ping", "busybox", "curl"];
    const NETWORK: &str = "10.97.0";

    fn drives(plugins: Set) -> Result<()> {
        let ours = plugins.is_ours();
        let machine = Machine::new(plugins)?;
        machine.configure("10-pods.conflist", &pod_network("pods", "1.0.0", "10.97.0.0/24"))?;
        machine.configure("05-broken.conflist", &json!({ "name": "broken", "plugins": [{ "type": "a/b" }] }))?;

        let listed = machine.json(&["list", "-o", "json"])?;
        ensure!(listed[0]["problems"][0].as_str().is_some_and(|problem| problem.contains("is a path")), "{listed}");
        ensure!(listed[1]["usedBy"] == json!(["CRI-O"]) && listed[1]["problems"] == json!([]), "{listed}");
        let versions = machine.json(&["version", "bridge", "portmap", "-o", "json"])?;
        ensure!(
            versions[1]["supportedVersions"].as_array().is_some_and(|all| all.contains(&json!("1.0.0"))),
            "{versions}"
        );

        let refused = machine.outrigger(&["add", "pods", "blue"])?.err()?;
        ensure!(refused.contains("--create-netns makes one"), "{refused}");
        let ports = r#"{"portMappings":[{"hostPort":18081,"containerPort":80,"protocol":"tcp"}]}"#;
        let added = machine.json(&["add", "pods", "blue", "--create-netns", "--cap-args", ports])?;
        ensure!(added["cniVersion"] == "1.0.0" && added["ips"][0]["address"] == "10.97.0.2/24", "{added}");
        ensure!(added["interfaces"][2]["sandbox"] == "/run/netns/blue", "{added}");
        let again = machine.outrigger(&["add", "pods", "blue"])?.err()?;
        ensure!(again.contains("already"), "{again}");
        machine.host.container_sh("blue", "ping -c 1 -W 5 10.97.0.1")?;
        let rootfs = machine.rootfs();
        machine.host.container_sh(
            "blue",
            &format!("busybox httpd -p 80 -h {}/www </dev/null >/dev/null 2>&1", rootfs.display()),
        )?;
        machine.wait_for_page("127.0.0.1:18081")?;
        if ours {
            machine.outrigger(&["check", "pods", "blue"])?.ok()?;
        }

        // The dry run is a program that does the same: the plugins' VERSION shows that it can be run.
        let dry = machine.outrigger(&["del", "pods", "blue", "--dry-run"])?.ok()?;
        ensure!(dry.contains("CNI_COMMAND=DEL") && dry.contains("\"hostPort\": 18081"), "{dry}");
        machine.wait_for_page("127.0.0.1:18081")?;
        machine.host.sh(&dry).context("the commands of the dry run")?;
        ensure!(machine.fetch("127.0.0.1:18081").is_err(), "the commands of the dry run detach");
        machine.outrigger(&["del", "pods", "blue", "--remove-netns"])?.ok()?;
        machine.outrigger(&["del", "pods", "blue", "--remove-netns"])?.ok()?;
        machine.assert_clean(NETWORK)?;
        ensure!(machine.host.sh("ls /run/netns")?.is_empty());

        // A failed ADD is undone: no address is taken, and no namespace stays that it made.
        let broken = json!({ "cniVersion": "1.0.0", "name": "bad", "plugins": [
            pod_network("bad", "1.0.0", "10.97.0.0/24")["plugins"][0],
            { "type": "tuning", "sysctl": { "kernel.hostname": "no" } },
        ]});
        machine.configure("20-bad.conflist", &broken)?;
        let error = machine.outrigger(&["add", "bad", "red", "--create-netns"])?.err()?;
        ensure!(error.contains("plugin \"tuning\" failed to ADD"), "{error}");
        machine.assert_clean(NETWORK)?;
        ensure!(machine.host.sh("ls /run/netns")?.is_empty(), "the namespace goes too");

        // A reboot: the namespaces are gone, files of them and the cache are not.
        machine.outrigger(&["add", "pods", "one", "--create-netns"])?.ok()?;
        machine.outrigger(&["add", "pods", "two", "--create-netns", "--container-id", "two"])?.ok()?;
        machine
            .host
            .sh("umount /run/netns/two; cd /var/lib/cni/results; : > pods-four-eth0; touch -d @1 pods-three-eth0")?;
        let collected = machine.json(&["gc", "pods", "--live", "-o", "json"])?;
        ensure!(collected[0]["deleted"] == json!(["three/eth0", "two/eth0"]), "{collected}");
        machine.host.container_sh("one", "ping -c 1 -W 5 10.97.0.1")?;
        machine.outrigger(&["gc", "pods", "--none"])?.ok()?;
        // Without the namespace the peers leave the masquerade rules.
        machine.assert_clean(if ours { NETWORK } else { "no rules" })?;
        let usage = machine.outrigger(&["gc", "pods"])?;
        ensure!(usage.code == Some(2), "what is valid must be said: {usage:?}");
        Ok(())
    }

    /// A list may become a fast chain, and the reverse, while containers are attached.
    #[test]
    fn a_list_is_changed_under_containers() {
        if !ready("a_list_is_changed_under_containers", PROGRAMS) {
            return;
        }
        let machine = Machine::new(Set::ours()).unwrap();
        let list = pod_network("pods", "1.1.0", "10.97.0.0/24");
        let chain = fast_chain(&list);
        let ports = r#"{"portMappings":[{"hostPort":18082,"containerPort":80,"protocol":"tcp"}]}"#;
        for (before, after) in [(&list, &chain), (&chain, &list)] {
            machine.configure("10-pods.conflist", before).unwrap();
            machine.json(&["add", "pods", "blue", "--create-netns", "--cap-args", ports]).unwrap();
            machine.configure("10-pods.conflist", after).unwrap();
            machine.outrigger(&["check", "pods", "blue"]).unwrap().ok().unwrap();
            machine.outrigger(&["status", "pods"]).unwrap().ok().unwrap();
            machine.outrigger(&["del", "pods", "blue", "--remove-netns"]).unwrap().ok().unwrap();
            machine.assert_clean(NETWORK).unwrap();
        }
        // The plugins' own collection needs no cache: nothing here knows of the attachment any more.
        for network in [&list, &chain] {
            machine.configure("10-pods.conflist", network).unwrap();
            machine.json(&["add", "pods", "blue", "--create-netns", "--cap-args", ports]).unwrap();
            machine.host.sh("rm /var/lib/cni/results/*").unwrap();
            let refused = machine.outrigger(&["gc", "pods", "--live", "--with-plugins"]).unwrap().err().unwrap();
            assert!(refused.contains("/run/netns/blue may be in the making"), "{refused}");
            machine.host.remove_container("blue").unwrap();
            machine.outrigger(&["gc", "pods", "--live", "--with-plugins"]).unwrap().ok().unwrap();
            machine.assert_clean(NETWORK).unwrap();
        }
    }

    #[test]
    fn the_command_drives_the_peers_plugins() {
        const NAME: &str = "the_command_drives_the_peers_plugins";
        if !ready(NAME, PROGRAMS) {
            return;
        }
        let Some(peers) = Set::peers(NAME) else { return };
        drives(peers).unwrap();
    }

    #[test]
    fn the_command_drives_our_plugins() {
        if ready("the_command_drives_our_plugins", PROGRAMS) {
            drives(Set::ours()).unwrap();
        }
    }
}
