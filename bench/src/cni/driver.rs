//! Runs plugins as a runtime does, and measures.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{UnmountFlags, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::rows::{Row, Scope};

/// A directory of plugins.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) label: String,
    pub(crate) dir: PathBuf,
    pub(crate) ours: bool,
}

impl Target {
    pub(crate) fn plugin(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether it has nftables back ends at all. Plugins that do not know the key (before 1.6) take no notice of it and
    /// use iptables; the only trace of the back end is the name of its table.
    pub(crate) fn knows_nftables(&self) -> Result<bool> {
        let binary = fs_err::read(self.plugin("portmap"))?;
        let name = b"cni_hostport";
        Ok(binary.windows(name.len()).any(|bytes| bytes == name))
    }
}

/// What one operation of a chain needed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    /// What the plugin said if it refused.
    pub(crate) error: Option<String>,
}

/// A network namespace that plugins take for the host, and a place for their addresses. Both go with this value.
#[derive(Debug)]
pub(crate) struct Host {
    name: String,
    pub(crate) data_dir: String,
}

impl Host {
    /// Makes it, with an uplink `up0` (one end of a pair; the other is `up1`).
    pub(crate) fn new(name: &str) -> Result<Self> {
        create_netns(name)?;
        let data_dir = format!("/run/bench/{name}");
        fs_err::create_dir_all(&data_dir)?;
        let host = Self { name: name.to_owned(), data_dir };
        host.enter()?;
        shell("ip link set lo up; ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up")?;
        Ok(host)
    }

    /// Moves this thread, and with it all that it starts, into the namespace.
    pub(crate) fn enter(&self) -> Result<()> {
        enter(&netns_path(&self.name))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The program's namespaces end with it in any case; this only keeps them few.
        let _ = remove_netns(&self.name);
        let _ = fs_err::remove_dir_all(&self.data_dir);
    }
}

fn enter(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

pub(crate) fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Makes a network namespace with a name.
pub(crate) fn create_netns(name: &str) -> Result<PathBuf> {
    let path = netns_path(name);
    File::create(&path)?;
    let status = Command::new("unshare").arg(format!("--net={}", path.display())).arg("true").status()?;
    ensure!(status.success(), "unshare: {status}");
    Ok(path)
}

/// Removes one.
pub(crate) fn remove_netns(name: &str) -> Result<()> {
    let path = netns_path(name);
    unmount(&path, UnmountFlags::DETACH)?;
    Ok(fs_err::remove_file(path)?)
}

/// Runs a line where this thread is.
pub(crate) fn shell(line: &str) -> Result<()> {
    let output = Command::new("sh").args(["-ec", line]).output()?;
    ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// One container's attachment to the network `bench`.
#[derive(Debug)]
pub(crate) struct Attachment<'a> {
    pub(crate) target: &'a Target,
    pub(crate) chain: Vec<Value>,
    pub(crate) id: String,
    pub(crate) netns: PathBuf,
}

impl<'a> Attachment<'a> {
    /// Container number `index` of a row; its namespace has the same name as it and must be there.
    pub(crate) fn new(target: &'a Target, host: &Host, row: &Row, index: usize) -> Self {
        let scope = Scope { data_dir: &host.data_dir, index, ours: target.ours };
        let id = format!("{}-c{index}", host.name);
        Self { target, chain: row.chain(&scope), netns: netns_path(&id), id }
    }

    /// Runs the plugins in order; gives the last result.
    pub(crate) fn add(&self, start: &Starter<'_>) -> Result<(Sample, Value)> {
        let mut total = Sample::default();
        let mut previous = Value::Null;
        for plugin in &self.chain {
            let (sample, result) = self.call(start, "ADD", plugin, &previous)?;
            total.take(sample);
            if total.error.is_some() {
                break;
            }
            previous = result;
        }
        Ok((total, previous))
    }

    /// Runs the plugins in order, with the result of ADD.
    pub(crate) fn check(&self, start: &Starter<'_>, result: &Value) -> Result<Sample> {
        let mut total = Sample::default();
        for plugin in &self.chain {
            total.take(self.call(start, "CHECK", plugin, result)?.0);
        }
        Ok(total)
    }

    /// Runs the plugins in reverse order, with the result of ADD.
    pub(crate) fn del(&self, start: &Starter<'_>, result: &Value) -> Result<Sample> {
        let mut total = Sample::default();
        for plugin in self.chain.iter().rev() {
            total.take(self.call(start, "DEL", plugin, result)?.0);
        }
        Ok(total)
    }

    fn call(&self, start: &Starter<'_>, command: &str, plugin: &Value, previous: &Value) -> Result<(Sample, Value)> {
        let mut config = plugin.clone();
        config["cniVersion"] = "1.0.0".into();
        config["name"] = "bench".into();
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let binary = self.target.plugin(plugin["type"].as_str().context("type")?);
        if !binary.exists() {
            let error = Some(format!("there is no plugin {}", binary.display()));
            return Ok((Sample { error, ..Sample::default() }, Value::Null));
        }
        let mut process = start(&binary);
        process.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_COMMAND", command);
        process.env("CNI_CONTAINERID", &self.id).env("CNI_NETNS", &self.netns).env("CNI_IFNAME", "eth0");
        process.env("CNI_PATH", &self.target.dir).env("CNI_ARGS", "IgnoreUnknown=1");
        call(&mut process, config.to_string().as_bytes())
    }
}

impl Sample {
    fn take(&mut self, other: Self) {
        self.wall += other.wall;
        self.cpu += other.cpu;
        self.error = self.error.take().or(other.error);
    }
}

/// How a plugin is started: itself, or under something that watches it.
pub(crate) type Starter<'a> = dyn Fn(&Path) -> Command + 'a;

/// The plugin itself.
pub(crate) fn plain(binary: &Path) -> Command {
    Command::new(binary)
}

/// Runs a prepared process with this input; gives what it needed and what it said.
pub(crate) fn call(process: &mut Command, input: &[u8]) -> Result<(Sample, Value)> {
    let begin = Instant::now();
    let mut child = process
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", process.get_program().display()))?;
    // A plugin that does not read its input will say why.
    let _ = child.stdin.take().context("stdin")?.write_all(input);
    let mut output = Vec::new();
    child.stdout.take().context("stdout")?.read_to_end(&mut output)?;
    let (status, usage) = outrigger_sys::wait_with_usage(child)?;
    let wall = begin.elapsed();
    let said: Value = serde_json::from_slice(&output).unwrap_or_default();
    let error = (!status.success()).then(|| match said["msg"].as_str() {
        Some(text) => text.to_owned(),
        None => format!("{status}"),
    });
    Ok((Sample { wall, cpu: usage.cpu(), error }, said))
}
