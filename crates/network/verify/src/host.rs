//! A private host for one case: network and mount namespaces that go with the thread.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use outrigger_verify_report::Unmet;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use serde_json::Value;

/// Where the suite keeps its own things on a private host.
pub const OWN: &str = "/run/verify";

/// A host of its own: what plugins do on it is seen by nobody else, and goes when the thread that entered it ends.
///
/// `/run` and `/var/lib` are empty, `/sys` is that of the new network namespace, and the only link is `lo`, up.
#[derive(Debug)]
pub struct Host {
    /// Where the plugins are found on this host.
    plugins: PathBuf,
}

/// A container's network namespace on a private host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The name of its file in `/run/netns`.
    pub name: String,
    /// The path of that file.
    pub path: PathBuf,
}

impl Host {
    /// Moves the calling thread to a private host. `plugins` stays reachable, also if it lies below a hidden directory.
    pub fn enter(plugins: &Path) -> Result<Self, Unmet> {
        let directory: OwnedFd =
            rustix::fs::open(plugins, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        outrigger_sys::namespace::unshare_network_and_mounts()
            .map_err(|error| Unmet::fail(format!("cannot make namespaces: {error}; run it as root")))?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None)?;
        for hidden in ["/run", "/var/lib"] {
            mount("tmpfs", hidden, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))?;
        }
        for made in ["/run/netns", OWN, "/run/verify/bin", "/var/lib/cni"] {
            fs_err::create_dir_all(made)?;
        }
        let mut host = Self { plugins: plugins.to_owned() };
        if plugins.starts_with("/run") || plugins.starts_with("/var/lib") {
            host.plugins = Path::new(OWN).join("plugins");
            fs_err::create_dir_all(&host.plugins)?;
            mount_bind(format!("/proc/self/fd/{}", directory.as_raw_fd()), &host.plugins)?;
        }
        host.sh("ip link set lo up")?;
        Ok(host)
    }

    /// The directory of the plugins as seen on this host.
    pub fn plugins(&self) -> &Path {
        &self.plugins
    }

    /// Makes a container.
    pub fn container(&self, name: &str) -> Result<Container, Unmet> {
        let path = Path::new("/run/netns").join(name);
        fs_err::File::create(&path)?;
        let target = path.clone();
        // The thread inherits the mount namespace, takes a new network namespace, and pins it to the file.
        let made = std::thread::spawn(move || -> std::io::Result<()> {
            outrigger_sys::net::unshare_network()?;
            Ok(mount_bind("/proc/thread-self/ns/net", &target)?)
        });
        made.join().map_err(|_| Unmet::fail("the thread that makes a namespace panicked"))??;
        Ok(Container { name: name.to_owned(), path })
    }

    /// Takes a container away, as a reboot or a runtime does that does not wait for DEL.
    pub fn remove_container(&self, container: &Container) -> Result<(), Unmet> {
        rustix::mount::unmount(&container.path, rustix::mount::UnmountFlags::DETACH)?;
        fs_err::remove_file(&container.path)?;
        Ok(())
    }

    /// Runs a shell line on the host; its standard output.
    pub fn sh(&self, line: &str) -> Result<String, Unmet> {
        shell(Command::new("sh").args(["-ec", line]), line)
    }

    /// What `ip -j` says on the host.
    pub fn ip(&self, arguments: &str) -> Result<Vec<Value>, Unmet> {
        list(&self.sh(&format!("ip -j -d {arguments}"))?)
    }

    /// A link of the host by name.
    pub fn link(&self, name: &str) -> Result<Option<Value>, Unmet> {
        Ok(self.ip("link show")?.into_iter().find(|link| link["ifname"] == name))
    }

    /// Everything that plugins may leave on the host.
    pub fn inventory(&self) -> Result<Inventory, Unmet> {
        let mut inventory = Inventory::default();
        network(&mut inventory, &|line| self.sh(line))?;
        let rules = self.sh("nft list ruleset 2>/dev/null || true")?;
        inventory.add("nft", rule_lines(&rules));
        let qdiscs = self.sh("tc qdisc show 2>/dev/null || true")?;
        // The host's end of a pair takes its queues along when it goes; what stays is what was made for them.
        let lasting = qdiscs.lines().filter(|line| !line.contains(" dev up")).map(str::to_owned);
        inventory.add("qdisc", lasting.collect());
        let files = "find /run /var/lib \\( -path /run/netns -o -path /run/verify/bin -o -path /run/verify/plugins \
                     -o -path /run/verify/log \\) -prune -o ! -type d ! -name 'last_reserved_ip.*' ! -name lock \
                     ! -name xtables.lock -print";
        inventory.add("file", self.sh(files)?.lines().map(str::to_owned).collect());
        Ok(inventory)
    }
}

impl Container {
    /// Runs a shell line in the container; its standard output.
    pub fn sh(&self, line: &str) -> Result<String, Unmet> {
        let mut command = Command::new("nsenter");
        shell(command.arg(format!("--net={}", self.path.display())).args(["--", "sh", "-ec", line]), line)
    }

    /// What `ip -j` says in the container.
    pub fn ip(&self, arguments: &str) -> Result<Vec<Value>, Unmet> {
        let line = format!("ip -n {} -j -d {arguments}", self.name);
        list(&shell(Command::new("sh").args(["-ec", &line]), &line)?)
    }

    /// A link of the container by name.
    pub fn link(&self, name: &str) -> Result<Option<Value>, Unmet> {
        Ok(self.ip("link show")?.into_iter().find(|link| link["ifname"] == name))
    }

    /// The addresses of a link, `ip/len`, without link-local ones, sorted.
    pub fn addresses(&self, link: &str) -> Result<Vec<String>, Unmet> {
        let mut found = Vec::new();
        for item in self.ip("addr show")?.into_iter().filter(|item| item["ifname"] == link) {
            for info in item["addr_info"].as_array().into_iter().flatten() {
                if info["scope"] != "link" {
                    found.push(format!("{}/{}", info["local"].as_str().unwrap_or("?"), info["prefixlen"]));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// The routes of all tables but `local`, both families, without link-local and multicast ones.
    pub fn routes(&self) -> Result<Vec<Value>, Unmet> {
        let mut routes = self.ip("-4 route show table all")?;
        routes.extend(self.ip("-6 route show table all")?);
        routes.retain(|route| route["table"] != "local" && !boring(route["dst"].as_str().unwrap_or_default()));
        Ok(routes)
    }

    /// Everything that plugins may leave in a container.
    pub fn inventory(&self) -> Result<Inventory, Unmet> {
        let mut inventory = Inventory::default();
        network(&mut inventory, &|line| self.sh(line))?;
        Ok(inventory)
    }
}

/// What is on a host or in a container, as sorted lines by kind, to be compared before and after.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory(BTreeMap<&'static str, Vec<String>>);

impl Inventory {
    fn add(&mut self, kind: &'static str, mut lines: Vec<String>) {
        lines.sort();
        self.0.insert(kind, lines);
    }

    /// The lines of all kinds, each with its kind.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().flat_map(|(kind, lines)| lines.iter().map(move |line| format!("{kind} {line}")))
    }

    /// What `after` has more (`+`) and less (`-`).
    pub fn difference(&self, after: &Self) -> Vec<String> {
        let mut counts: BTreeMap<String, i32> = BTreeMap::new();
        for line in after.lines() {
            *counts.entry(line).or_default() += 1;
        }
        for line in self.lines() {
            *counts.entry(line).or_default() -= 1;
        }
        let differing = counts.into_iter().filter(|(_, count)| *count != 0);
        differing.map(|(line, count)| format!("{} {line}", if count > 0 { '+' } else { '-' })).collect()
    }
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Asks again until the answer is yes or the time is up; kernel work (links that go with a namespace) ends by itself.
pub fn eventually<T>(limit: Duration, mut check: impl FnMut() -> Result<T, Unmet>) -> Result<T, Unmet> {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Err(Unmet::Failed { .. }) if Instant::now() < deadline => pause(),
            answer => return answer,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the kernel's deferred work offers nothing to await; a deadline bounds it"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

fn network(inventory: &mut Inventory, sh: &dyn Fn(&str) -> Result<String, Unmet>) -> Result<(), Unmet> {
    let mut lines = Vec::new();
    let mut addresses = Vec::new();
    for link in list(&sh("ip -j -d addr show")?)? {
        let name = link["ifname"].as_str().unwrap_or("?").to_owned();
        let kind = link["linkinfo"]["info_kind"].as_str().unwrap_or("-");
        let up = link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
        let master = link["master"].as_str().unwrap_or("-");
        lines.push(format!(
            "{name} {kind} mtu {} master {master} {} promiscuity {} allmulti {} qlen {}",
            link["mtu"],
            if up { "up" } else { "down" },
            link["promiscuity"],
            link["allmulti"],
            link["txqlen"],
        ));
        for info in link["addr_info"].as_array().into_iter().flatten() {
            if info["scope"] != "link" {
                addresses.push(format!("{name} {}/{}", info["local"].as_str().unwrap_or("?"), info["prefixlen"]));
            }
        }
    }
    inventory.add("link", lines);
    inventory.add("address", addresses);
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        for route in list(&sh(&format!("ip -j {family} route show table all"))?)? {
            let destination = route["dst"].as_str().unwrap_or("?");
            // The kernel's own table follows the addresses, some of it only once a link has a carrier.
            if !boring(destination) && route["table"] != "local" {
                let word = |key: &str| route[key].as_str().unwrap_or("-").to_owned();
                let (table, device, via) = (word("table"), word("dev"), word("gateway"));
                routes.push(format!("{family} {destination} table {table} dev {device} via {via}"));
            }
        }
    }
    inventory.add("route", routes);
    let rules = format!("{}{}", sh("ip -4 rule show")?, sh("ip -6 rule show")?);
    inventory.add("rule", rules.lines().map(|line| line.replace('\t', " ")).collect());
    Ok(())
}

/// Destinations that the kernel makes and drops on its own time.
fn boring(destination: &str) -> bool {
    destination.starts_with("fe80:") || destination.starts_with("ff00:") || destination == "multicast"
}

/// The rules of a listing with the table and chain they are in, without counters.
fn rule_lines(listing: &str) -> Vec<String> {
    let (mut table, mut chain) = ("", "");
    let mut lines = Vec::new();
    for line in listing.lines() {
        let words = line.trim();
        match line.chars().take_while(|character| *character == '\t').count() {
            0 if words.ends_with('{') => table = words.trim_end_matches('{').trim(),
            1 if words.ends_with('{') => {
                chain = words.trim_end_matches('{').trim();
                lines.push(format!("{table} {chain}"));
            }
            2.. => lines.push(format!("{table} {chain}: {}", without_counters(words))),
            _ => {}
        }
    }
    lines
}

fn without_counters(rule: &str) -> String {
    let mut words = rule.split_whitespace().peekable();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        kept.push(word);
        if (word == "packets" || word == "bytes") && words.peek().is_some_and(|next| next.parse::<u64>().is_ok()) {
            words.next();
        }
    }
    kept.join(" ")
}

fn list(json: &str) -> Result<Vec<Value>, Unmet> {
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    let items: Vec<Value> = serde_json::from_str(json)?;
    // `ip -j` prints empty objects for what a filter left out.
    Ok(items.into_iter().filter(|item| item.as_object().is_some_and(|item| !item.is_empty())).collect())
}

fn shell(command: &mut Command, line: &str) -> Result<String, Unmet> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Unmet::fail(format!("the suite's command {line:?} failed: {}: {}", output.status, stderr.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_with_their_chain_and_without_counters() {
        let listing = "table ip nat {\n\tchain A {\n\t\ttype nat hook x;\n\t\tip saddr 1.2.3.4 counter packets 4 bytes 72 jump B\n\t}\n\n\tchain B {\n\t}\n}\n";
        let expected = [
            "table ip nat chain A",
            "table ip nat chain A: type nat hook x;",
            "table ip nat chain A: ip saddr 1.2.3.4 counter packets bytes jump B",
            "table ip nat chain B",
        ];
        assert_eq!(rule_lines(listing), expected);
    }

    #[test]
    fn inventories_differ_by_lines() {
        let (mut before, mut after) = (Inventory::default(), Inventory::default());
        before.add("link", vec!["lo".into(), "eth0".into()]);
        after.add("link", vec!["lo".into(), "veth1".into(), "veth1".into()]);
        assert_eq!(before.difference(&after), ["- link eth0", "+ link veth1"]);
        assert!(before.difference(&before).is_empty());
    }
}
