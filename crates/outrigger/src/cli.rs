//! The command line: what can be said, and the help that explains it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use outrigger_daemon::LogFormat;

use crate::cni::CniCommand;
use crate::verify::VerifyCommand;

/// Kubernetes' infrastructure extension points in one binary: plugins, their Kubernetes side, and a lab to run them in.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done; 1 it failed, and the error says why; 2 the command line is wrong; \
                        3 the lab is not running; 4 a network is not ready (`cni status`); 130 and 143 stopped by SIGINT or SIGTERM a second time.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// How much to log: up to 3 what operators need, 4 and 5 for debugging, 6 and above every step. RUST_LOG overrides it.
    #[arg(short = 'v', long = "v", global = true, default_value_t = 2, value_name = "LEVEL", env = "OUTRIGGER_V")]
    pub verbosity: u8,

    /// Form of the log: text on a terminal and JSON otherwise, unless said here.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Auto, value_name = "FORM", env = "OUTRIGGER_LOG_FORMAT")]
    pub log_format: LogFormat,
}

/// What the command does.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the embedded control plane: an API server that stock clients take for Kubernetes, with the plugins beside it.
    #[command(subcommand)]
    Lab(LabCommand),
    /// Run the storage wing: the CSI driver, and the controllers that drive any CSI plugin.
    #[command(subcommand)]
    Storage(StorageCommand),
    /// Call a CSI plugin by hand: every RPC, JSON in and out.
    Csi(CsiArgs),
    /// Attach network namespaces to networks by hand, as cnitool does, and look after what runtimes left.
    #[command(subcommand)]
    Cni(CniCommand),
    /// Find out whether somebody's plugins keep to their specification.
    #[command(subcommand)]
    Verify(VerifyCommand),
    /// Print the completions of a shell.
    Completions {
        /// The shell to complete for.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory.
    Man {
        /// Where to write them; made if it is missing.
        directory: PathBuf,
    },
}

/// Where the lab lives; shared by all its subcommands.
#[derive(Debug, Clone, Args)]
pub(crate) struct LabDir {
    /// The lab's directory: its state, keys, kubeconfig, logs and volumes
    /// [default: /var/lib/outrigger/lab for root, ~/.local/state/outrigger/lab otherwise].
    #[arg(long = "dir", env = "OUTRIGGER_LAB_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Subcommands of `outrigger lab`.
#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Start the lab and return when it is ready; does nothing when it runs already.
    Up(LabUp),
    /// Stop the lab. Nothing of it keeps running, mounted or attached; what it stored stays.
    Down(LabDown),
    /// Say what runs, since when, and where. Exit code 3 when nothing does.
    Status(LabStatus),
    /// Stop the lab and delete all that it stored, volumes included.
    Reset(LabReset),
    /// Print the path of the kubeconfig: `export KUBECONFIG=$(outrigger lab kubeconfig)`.
    Kubeconfig(LabDir),
}

/// How `lab up` starts.
#[derive(Debug, Clone, Args)]
pub(crate) struct LabUp {
    #[command(flatten)]
    pub dir: LabDir,
    /// Address of the API server: loopback, and a port; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7443", value_name = "ADDRESS")]
    pub listen: std::net::SocketAddr,
    /// What a crash may lose: `memory` everything, `process` nothing that was acknowledged unless the power fails,
    /// `power` nothing at all, at the cost of a disk flush for each group of writes.
    #[arg(long, value_enum, default_value_t = Durability::Process)]
    pub durability: Durability,
    /// Start the API server and its control loops only, without plugins.
    #[arg(long)]
    pub bare: bool,
    /// Stay in the foreground until Ctrl-C instead of returning when the lab is ready.
    #[arg(long)]
    pub foreground: bool,
    /// How long to wait for readiness.
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
}

/// What the lab's store promises to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Durability {
    /// Nothing survives the process.
    Memory,
    /// Acknowledged writes survive the process.
    Process,
    /// Acknowledged writes survive a power failure.
    Power,
}

/// How `lab down` stops.
#[derive(Debug, Args)]
pub(crate) struct LabDown {
    #[command(flatten)]
    pub dir: LabDir,
    /// How long to wait for an orderly stop before killing what is left.
    #[arg(long, default_value = "20s", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
}

/// How `lab status` prints.
#[derive(Debug, Args)]
pub(crate) struct LabStatus {
    #[command(flatten)]
    pub dir: LabDir,
    /// Print JSON for programs instead of text.
    #[arg(long)]
    pub json: bool,
}

/// How `lab reset` confirms.
#[derive(Debug, Args)]
pub(crate) struct LabReset {
    #[command(flatten)]
    pub down: LabDown,
    /// Do it: without this, only say what would be deleted.
    #[arg(long)]
    pub yes: bool,
}

/// Subcommands of `outrigger storage`.
#[derive(Debug, Subcommand)]
pub(crate) enum StorageCommand {
    /// Run the hostpath CSI driver, in place of `hostpathplugin`.
    Driver(Box<outrigger_hostpath::Options>),
    /// Run the controllers of a CSI plugin, in place of its sidecars: the provisioner.
    Controllers(Box<outrigger_sidecars::Options>),
}

/// A call to a CSI plugin.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    outrigger csi                                   list every RPC\n  \
    outrigger csi create-volume --template          print a request to fill in\n  \
    outrigger csi get-plugin-info\n  \
    outrigger csi create-volume '{\"name\":\"v1\",\"volume_capabilities\":[{\"mount\":{},\"access_mode\":{\"mode\":\"SINGLE_NODE_WRITER\"}}]}'\n  \
    outrigger csi node-publish-volume -f request.json\n\n\
    The names of fields are those of the specification, or their camelCase form.")]
pub(crate) struct CsiArgs {
    /// The RPC: `create-volume`, `CreateVolume` or `csi.v1.Controller/CreateVolume`. Without it, all are listed.
    pub rpc: Option<String>,
    /// The request as JSON; `-` reads it from standard input; an empty request when left out.
    #[arg(conflicts_with = "file")]
    pub request: Option<String>,
    /// Read the request from a file.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The plugin's socket [default: that of the running lab's driver].
    #[arg(short, long, env = "CSI_ENDPOINT", value_name = "ENDPOINT")]
    pub endpoint: Option<String>,
    /// How long the plugin may take.
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
    /// Print a request with every field of the RPC instead of calling it.
    #[arg(long, conflicts_with_all = ["request", "file"])]
    pub template: bool,
    #[command(flatten)]
    pub lab: LabDir,
}

/// Parses `30s`, `1m30s`, `500ms`, `2h`, as Kubernetes' flags do.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration; write it like 30s, 500ms or 1m30s");
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let count: u64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += match &rest[..unit] {
            "ms" => Duration::from_millis(count),
            "s" => Duration::from_secs(count),
            "m" => Duration::from_secs(count.checked_mul(60).ok_or_else(bad)?),
            "h" => Duration::from_secs(count.checked_mul(3600).ok_or_else(bad)?),
            _ => return Err(bad()),
        };
        rest = &rest[unit..];
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_read_like_kubernetes_flags() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "5", "s", "5x", "1m30", "-1s", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad:?} must be refused");
        }
    }
}
