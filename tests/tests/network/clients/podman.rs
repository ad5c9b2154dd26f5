//! podman with its CNI backend.

use std::net::{SocketAddr, UdpSocket};

use super::*;

const PROGRAMS: &[&str] = &["podman", "conmon", "crun", "iptables", "busybox", "curl"];
const NETWORK: &str = "10.99.0";
/// In the host's own /run: podman takes no path of more than fifty characters.
const RUNROOT: &str = "/run/podman";

struct Podman(Machine);

impl Podman {
    fn new(plugins: Set) -> Result<Self> {
        let machine = Machine::new(plugins)?;
        // Without control groups, crun is content with any hierarchy; it refuses mixed ones.
        machine.host.sh("umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup")?;
        fs_err::create_dir(machine.path("home"))?;
        let dir = machine.scratch.path().display();
        machine.write(
            "containers.conf",
            &format!(
                "[containers]\ncgroups = \"disabled\"\n\
                 [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{}\"]\nnetwork_config_dir = \"/etc/cni/net.d\"\n\
                 [engine]\nruntime = \"crun\"\ncgroup_manager = \"cgroupfs\"\nevents_backend = \"file\"\n\
                 tmp_dir = \"{dir}/tmp\"\nstatic_dir = \"{dir}/static\"\nvolume_path = \"{dir}/volumes\"\n",
                machine.plugins.dir().display()
            ),
        )?;
        machine.write(
            "storage.conf",
            &format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{dir}/root\"\nrunroot = \"{RUNROOT}\"\n"),
        )?;
        Ok(Self(machine))
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.0.host.command("podman");
        command
            .args(["--root".as_ref(), self.0.path("root").as_os_str()])
            .args(["--runroot", RUNROOT])
            .args(arguments)
            .env("CONTAINERS_CONF", self.0.path("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.0.path("storage.conf"))
            .env("HOME", self.0.path("home"))
            .env("TMPDIR", self.0.scratch.path());
        run(command.stdin(Stdio::null()))?.ok().with_context(|| format!("podman {}", arguments.join(" ")))
    }

    /// Starts a web server.
    fn serve(&self, name: &str, port: &str) -> Result<String> {
        let rootfs = self.0.rootfs();
        let rootfs = rootfs.to_str().context("path")?;
        let publish = format!("{port}:80");
        let options = ["run", "-d", "--name", name, "--network", "blue", "-p", &publish, "--ulimit", "host"];
        let program = ["--rootfs", rootfs, "/bin/httpd", "-f", "-p", "80", "-h", "/www"];
        Ok(self.run(&[&options[..], &program].concat())?.trim().to_owned())
    }
}

fn lives_on(plugins: Set) -> Result<()> {
    let ours = plugins.is_ours();
    let podman = Podman::new(plugins)?;
    let machine = &podman.0;
    podman.run(&["network", "create", "--subnet", "10.99.0.0/24", "blue"])?;
    ensure!(podman.run(&["network", "ls"])?.contains("blue"));
    let listed = machine.json(&["list", "-o", "json"])?;
    ensure!(listed[0]["network"] == "blue" && listed[0]["problems"] == json!([]), "{listed}");

    let id = podman.serve("web", "18080")?;
    machine.wait_for_page("127.0.0.1:18080")?;
    machine.wait_for_page("10.99.0.1:18080")?;

    // What podman remembers, we know.
    let cached = machine.json(&["cache", "-o", "json"])?;
    ensure!(cached[0]["containerID"] == id.as_str() && cached[0]["live"] == true, "{cached}");
    ensure!(cached[0]["addresses"] == json!(["10.99.0.2/24"]), "{cached}");
    let netns = cached[0]["netns"].as_str().context("netns")?.to_owned();
    if ours {
        // The peers' portmap of Debian 12 fails CHECK for a container without IPv6.
        machine.outrigger(&["check", "blue", &netns, "--container-id", &id])?.ok()?;
    }
    machine.outrigger(&["gc", "--all", "--live"])?.ok()?;
    machine.wait_for_page("127.0.0.1:18080").context("a live container is no garbage")?;

    // A second container, which reaches the first by its address and by the host's port.
    let rootfs = machine.rootfs();
    let rootfs = rootfs.to_str().context("path")?;
    for server in ["10.99.0.2 80", "10.99.0.1 18080"] {
        // Static busybox' wget crashes where there is no C library.
        let fetch = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {server}");
        let options = ["run", "--rm", "--network", "blue", "--ulimit", "host", "--rootfs", rootfs];
        let page = podman.run(&[&options[..], &["/bin/sh", "-c", &fetch]].concat())?;
        ensure!(page.contains(PAGE), "{server}: {page:?}");
    }

    // We detach podman's container by what podman remembered, and attach it again. What we remember then, podman knows:
    // it finds and removes all of it.
    machine.outrigger(&["del", "blue", &netns, "--container-id", &id])?.ok()?;
    machine.assert_clean(NETWORK)?;
    let ports = r#"{"portMappings":[{"hostPort":18080,"containerPort":80,"protocol":"tcp"}]}"#;
    machine.outrigger(&["add", "blue", &netns, "--container-id", &id, "--cap-args", ports])?.ok()?;
    machine.wait_for_page("127.0.0.1:18080")?;
    ensure!(!machine.traces(NETWORK)?.is_empty());

    podman.run(&["restart", "-t", "0", "web"])?;
    machine.wait_for_page("127.0.0.1:18080").context("after a restart")?;
    podman.run(&["rm", "-f", "-t", "0", "web"])?;
    machine.assert_clean(NETWORK)?;
    podman.run(&["network", "rm", "blue"])?;
    ensure!(machine.json(&["list", "-o", "json"])? == json!([]));
    Ok(())
}

/// Notes each call, and lets the plugin answer it.
const NOTING: &str = r#"#!/bin/sh
dir=${0%/*}
call=$dir/calls/$(ls "$dir/calls" | wc -l)
mkdir "$call"
env | grep '^CNI_' | sort > "$call/env"
cat > "$call/stdin"
exec "$dir/real/${0##*/}" < "$call/stdin"
"#;

/// The calls that were noted, without what differs from one container to the next.
fn noted(dir: &Path) -> Result<Vec<(String, Value)>> {
    let mut calls = Vec::new();
    for number in 0.. {
        let call = dir.join("calls").join(number.to_string());
        if !call.exists() {
            break;
        }
        let environment = fs_err::read_to_string(call.join("env"))?;
        let mut stdin = serde_json::from_slice(&fs_err::read(call.join("stdin"))?)?;
        blur(&mut stdin);
        // podman asks every plugin for its versions first.
        if environment.contains("CNI_COMMAND=VERSION") {
            continue;
        }
        let environment = environment.lines().map(|line| match line.split_once('=') {
            Some(("CNI_NETNS", path)) if !path.is_empty() => "CNI_NETNS=(path)",
            _ => line,
        });
        calls.push((environment.collect::<Vec<_>>().join("\n"), stdin));
    }
    fs_err::remove_dir_all(dir.join("calls"))?;
    fs_err::create_dir(dir.join("calls"))?;
    Ok(calls)
}

fn blur(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(blur),
        Value::Object(object) => {
            for (key, value) in object {
                let text = value.as_str().unwrap_or_default();
                if matches!(key.as_str(), "mac" | "sandbox" | "address") || text.starts_with("veth") {
                    *value = json!(format!("({key})"));
                }
                blur(value);
            }
        }
        _ => {}
    }
}

/// podman calls plugins by libcni. For the same container we must give them the same.
fn calls_compared(peers: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let noting = TempDir::with_prefix("outrigger-noting-")?;
    let dir = noting.path();
    fs_err::create_dir(dir.join("calls"))?;
    fs_err::os::unix::fs::symlink(peers, dir.join("real"))?;
    fs_err::os::unix::fs::symlink(peers.join("host-local"), dir.join("host-local"))?;
    for plugin in ["bridge", "portmap", "firewall", "tuning"] {
        fs_err::write(dir.join(plugin), NOTING)?;
        fs_err::set_permissions(dir.join(plugin), std::fs::Permissions::from_mode(0o755))?;
    }
    let podman = Podman::new(Set::Peers(dir.to_owned()))?;
    let machine = &podman.0;
    podman.run(&["network", "create", "--subnet", "10.99.0.0/24", "blue"])?;
    let id = podman.serve("web", "18080")?;
    let added = noted(dir)?;
    ensure!(added.len() == 4, "{added:?}");
    let remembered = machine.host.sh("cat /var/lib/cni/results/*")?;
    let remembered: Value = serde_json::from_str(&remembered)?;
    podman.run(&["rm", "-f", "-t", "0", "web"])?;
    let deleted = noted(dir)?;
    ensure!(deleted.len() == 4, "{deleted:?}");

    let pairs = remembered["cniArgs"].as_array().context("cniArgs")?.iter();
    let pairs: Vec<_> = pairs
        .map(|pair| format!("{}={}", pair[0].as_str().unwrap_or_default(), pair[1].as_str().unwrap_or_default()))
        .collect();
    let (pairs, capabilities) = (pairs.join(";"), remembered["capabilityArgs"].to_string());
    let told = ["--container-id", &id, "--args", &pairs, "--cap-args", &capabilities];
    machine.outrigger(&[&["add", "blue", "again", "--create-netns"], &told[..]].concat())?.ok()?;
    let ours = noted(dir)?;
    ensure!(ours == added, "ADD\nlibcni: {added:#?}\nours: {ours:#?}");
    let file = machine.host.sh("cat /var/lib/cni/results/*")?;
    let (mut file, mut remembered): (Value, Value) = (serde_json::from_str(&file)?, remembered);
    // Newer than podman's libcni.
    file.as_object_mut().context("cache")?.remove("netns");
    blur(&mut file);
    blur(&mut remembered);
    ensure!(file == remembered, "cache\nlibcni: {remembered:#}\nours: {file:#}");
    machine.outrigger(&["del", "blue", "again", "--container-id", &id])?.ok()?;
    let ours = noted(dir)?;
    ensure!(ours == deleted, "DEL\nlibcni: {deleted:#?}\nours: {ours:#?}");
    machine.assert_clean(NETWORK)
}

#[test]
fn our_calls_are_those_of_libcni() {
    const NAME: &str = "our_calls_are_those_of_libcni";
    if !ready(NAME, PROGRAMS) {
        return;
    }
    if let Some(peers) = peers_or_skip(NAME) {
        calls_compared(&peers).unwrap();
    }
}

/// A network of both families, ports of both protocols, and a second network that comes and goes while the container runs.
fn goes_from_network_to_network(plugins: Set) -> Result<()> {
    let podman = Podman::new(plugins)?;
    let machine = &podman.0;
    podman.run(&["network", "create", "--ipv6", "--subnet", "10.99.0.0/24", "--subnet", "fd99::/64", "blue"])?;
    podman.run(&["network", "create", "--subnet", "10.98.0.0/24", "red"])?;
    let rootfs = machine.rootfs();
    let rootfs = rootfs.to_str().context("path")?;
    let options = ["run", "-d", "--name", "web", "--network", "blue", "-p", "18080:80", "-p", "18053:53/udp"];
    let program = ["--ulimit", "host", "--rootfs", rootfs, "/bin/httpd", "-f", "-p", "80", "-h", "/www"];
    podman.run(&[&options[..], &program].concat())?;
    for address in ["127.0.0.1:18080", "10.99.0.1:18080", "[fd99::1]:18080", "[fd99::2]"] {
        machine.wait_for_page(address).with_context(|| address.to_owned())?;
    }
    let cached = machine.json(&["cache", "-o", "json"])?;
    ensure!(cached[0]["addresses"] == json!(["10.99.0.2/24", "fd99::2/64"]), "{cached}");
    let netns = cached[0]["netns"].as_str().and_then(|path| path.strip_prefix("/run/netns/")).context("netns")?;
    for server in ["10.99.0.1:18053", "127.0.0.1:18053", "[fd99::1]:18053"] {
        let to: SocketAddr = server.parse()?;
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
        let inside = machine.host.within(Some(netns), || Ok(UdpSocket::bind((any.ip(), 53))?))?;
        let outside = machine.host.within(None, || Ok(UdpSocket::bind(any)?))?;
        let mut bytes = [0; 8];
        for socket in [&inside, &outside] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        outside.send_to(b"question", to)?;
        let (_, from) = inside.recv_from(&mut bytes).with_context(|| format!("nothing comes by {server}"))?;
        inside.send_to(b"answer", from)?;
        let (length, from) = outside.recv_from(&mut bytes).with_context(|| format!("no answer from {server}"))?;
        ensure!(&bytes[..length] == b"answer" && from == to, "{from} answers for {to}");
    }

    podman.run(&["network", "connect", "red", "web"])?;
    machine.wait_for_page("10.98.0.2").context("the second network")?;
    machine.wait_for_page("127.0.0.1:18080").context("with a second network")?;
    ensure!(machine.json(&["cache", "-o", "json"])?.as_array().is_some_and(|cached| cached.len() == 2));
    podman.run(&["network", "disconnect", "red", "web"])?;
    let left = machine.host.sh("ls /var/lib/cni/networks/red; iptables-save; cat /var/lib/cni/results/*")?;
    ensure!(!left.contains("10.98.0.2\n") && !left.contains("10.98.0.2/"), "left behind:\n{left}");
    machine.wait_for_page("127.0.0.1:18080").context("the first network lives on")?;

    podman.run(&["rm", "-f", "-t", "0", "web"])?;
    machine.assert_clean(NETWORK)?;
    let left = machine.host.sh("ip6tables-save")?;
    ensure!(!left.contains("fd99::2"), "left behind:\n{left}");
    Ok(())
}

#[test]
fn podman_with_two_families_and_two_networks() {
    const NAME: &str = "podman_with_two_families_and_two_networks";
    if !ready(NAME, PROGRAMS) {
        return;
    }
    for plugins in [Set::peers(NAME), Some(Set::ours())].into_iter().flatten() {
        let whose = if plugins.is_ours() { "ours" } else { "the peers'" };
        goes_from_network_to_network(plugins).context(whose).unwrap();
    }
}

#[test]
fn podman_lives_on_the_peers_plugins() {
    const NAME: &str = "podman_lives_on_the_peers_plugins";
    if !ready(NAME, PROGRAMS) {
        return;
    }
    let Some(peers) = Set::peers(NAME) else { return };
    lives_on(peers).unwrap();
}

#[test]
fn podman_lives_on_our_plugins() {
    if ready("podman_lives_on_our_plugins", PROGRAMS) {
        lives_on(Set::ours()).unwrap();
    }
}
