//! CNI plugins side by side: what ADD, CHECK and DEL cost, ours and peers' in turn, in one run.
//!
//! Everything happens in network and mount namespaces of its own: the program starts itself again under `unshare(1)`, and
//! each plugin directory gets a fresh "host" for each chain. Nothing is left on the machine.
//!
//! CPU time is user plus system time of the plugin's process and all its children, by wait4(2). It is the figure that
//! other work on the machine disturbs least; compare ratios of it.

mod counts;
mod driver;
mod fill;
mod floor;
mod parallel;
mod rows;
mod serial;
mod start;
mod table;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

use driver::Target;

/// Tells the second start of the program that it has its namespaces.
const INSIDE: &str = "OUTRIGGER_BENCH_INSIDE";

/// A part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// ADD, CHECK and DEL of each chain, one after another.
    Serial,
    /// Programs started, system calls and peak memory of each chain.
    Counts,
    /// Start of a plugin (VERSION), and sizes.
    Start,
    /// Many ADDs and DELs at a time.
    Parallel,
    /// Many addresses taken, many ports mapped.
    Fill,
    /// The same work in one process that does not start anew.
    Floor,
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Directory of our plugins, as `scripts/build-cni.sh DIR` makes it.
    #[arg(long, default_value = "target/cni")]
    ours: PathBuf,
    /// A peer's directory, `NAME=DIR`; may be given several times. Without it Debian's, if it is installed.
    #[arg(long, value_parser = peer)]
    peer: Vec<(String, PathBuf)>,
    /// Operations of each kind that are measured.
    #[arg(short, long, default_value_t = 50)]
    n: usize,
    /// Only these chains (keys as in the tables); all without it.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Only these parts; all without it.
    #[arg(long, value_enum, value_delimiter = ',')]
    parts: Vec<Part>,
    /// ADDs of the parallel part.
    #[arg(long, default_value_t = 100)]
    containers: usize,
    /// How many of them at a time.
    #[arg(long, default_value_t = 8)]
    workers: usize,
}

fn peer(text: &str) -> Result<(String, PathBuf), String> {
    let (name, dir) = text.split_once('=').ok_or("NAME=DIR is wanted")?;
    Ok((name.to_owned(), dir.into()))
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    fn wants_row(&self, key: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|row| row == key)
    }

    /// Ours first, then the peers.
    fn targets(&self) -> Result<Vec<Target>> {
        let ours = fs_err::canonicalize(&self.ours).context("our plugins: build them, or say where they are")?;
        let mut targets = vec![Target { label: "ours".into(), dir: ours, ours: true }];
        let mut peers = self.peer.clone();
        let debian = PathBuf::from("/usr/lib/cni");
        if peers.is_empty() && debian.join("bridge").exists() {
            peers.push(("debian".into(), debian));
        }
        for (label, dir) in peers {
            ensure!(dir.join("bridge").exists(), "{label}: there is no plugin `bridge` in {}", dir.display());
            targets.push(Target { label, dir: fs_err::canonicalize(dir)?, ours: false });
        }
        Ok(targets)
    }
}

/// What the second start sets up: an own `/sys`, and empty places where plugins keep state.
const SETUP: &str = r"set -e
mount -t sysfs sysfs /sys
for dir in /run /var/lib/cni /etc/cni; do mkdir -p $dir; mount -t tmpfs tmpfs $dir; done
mkdir -p /run/netns
ip link set lo up";

pub(crate) fn run(options: &Options) -> Result<()> {
    if std::env::var_os(INSIDE).is_none() {
        return again();
    }
    let status = Command::new("sh").args(["-c", SETUP]).status()?;
    ensure!(status.success(), "cannot set the namespaces up: {status}");
    let targets = options.targets()?;
    if !options.rows.iter().all(|key| key == "host-local" || rows::row(key).is_some()) {
        bail!("--rows: there are {}", rows::ROWS.iter().map(|row| row.key).collect::<Vec<_>>().join(", "));
    }
    println!("{}", circumstances(&targets)?);
    if options.wants(Part::Serial) {
        serial::run(options, &targets)?;
    }
    if options.wants(Part::Counts) {
        counts::run(options, &targets)?;
    }
    if options.wants(Part::Start) {
        start::run(options, &targets)?;
    }
    if options.wants(Part::Parallel) {
        parallel::run(options, &targets)?;
    }
    if options.wants(Part::Fill) {
        fill::run(options, &targets)?;
    }
    if options.wants(Part::Floor) {
        floor::run(options, &targets)?;
    }
    println!("Load at the end: {}.", load()?);
    Ok(())
}

/// Starts the program again in namespaces of its own. `unshare(1)` does it before there is any thread.
fn again() -> Result<()> {
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .context("cannot run unshare")?;
    if !status.success() {
        bail!("the measurement ended with {status} (it needs root)");
    }
    Ok(())
}

/// What one has to know of the machine to read the figures.
fn circumstances(targets: &[Target]) -> Result<String> {
    let kernel = fs_err::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpus = std::thread::available_parallelism()?;
    let dirs: Vec<String> =
        targets.iter().map(|target| format!("{} = {}", target.label, target.dir.display())).collect();
    Ok(format!("Linux {}, {cpus} CPUs, load {}; {}.\n", kernel.trim(), load()?, dirs.join(", ")))
}

fn load() -> Result<String> {
    let text = fs_err::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}
