//! The command line of `outrigger cni`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use outrigger_cni_sdk::runtime::{CACHE_DIR, CONFIG_DIR};

use crate::cli::duration;

/// Where plugins are looked for when nobody says otherwise: upstream's place, then Debian's and Fedora's.
pub(super) const PLUGIN_DIRS: &str = "/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni";

/// Subcommands of `outrigger cni`.
#[derive(Debug, Subcommand)]
pub(crate) enum CniCommand {
    /// Attach a network namespace to a network: ADD by every plugin, in order.
    Add(AddArgs),
    /// Detach it: DEL by every plugin, in reverse. Succeeds for what is gone already.
    Del(DelArgs),
    /// Check that an attachment is as ADD left it.
    Check(CheckArgs),
    /// Delete attachments that are no longer valid, and have the plugins collect what nobody owns.
    Gc(GcArgs),
    /// Ask the plugins whether they can serve ADD. Exit code 4 when one says no.
    Status(StatusArgs),
    /// Say which versions of the specification plugins support.
    Version(VersionArgs),
    /// Show the networks of the configuration directory in the order in which runtimes see them, and what is wrong with
    /// broken files.
    List(ListArgs),
    /// Show the attachments in the cache, damaged files too.
    Cache(CacheArgs),
}

/// Where configurations, plugins and the cache are.
#[derive(Debug, Clone, Args)]
pub(crate) struct Places {
    /// Directory of the networks' configurations.
    #[arg(long, env = "NETCONFPATH", default_value = CONFIG_DIR, value_name = "DIR")]
    pub config_dir: PathBuf,
    /// Directories of the plugins, separated by `:`, in the order of search.
    #[arg(long, env = "CNI_PATH", default_value = PLUGIN_DIRS, value_name = "DIRS")]
    pub plugin_dirs: String,
    /// Directory under which attachments are remembered, in libcni's format.
    #[arg(long, env = "OUTRIGGER_CNI_CACHE", default_value = CACHE_DIR, value_name = "DIR")]
    pub cache_dir: PathBuf,
    /// How long one plugin may take before it is killed [default: no limit].
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// Form of the output [default: `table`; `add` prints JSON, as cnitool does, unless to a terminal].
    #[arg(short, long, value_enum, value_name = "FORM")]
    pub output: Option<Output>,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What to show of the calls.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Explain {
    /// Show each call of a plugin on standard error as it is made, as a command to run by hand.
    #[arg(long, conflicts_with = "dry_run")]
    pub explain: bool,
    /// Show the calls on standard output instead of making them. Results in between are not known then.
    #[arg(long)]
    pub dry_run: bool,
}

/// What identifies an attachment and is told to its plugins.
#[derive(Debug, Clone, Args)]
pub(crate) struct AttachmentArgs {
    /// Name of the interface in the container.
    #[arg(short, long, env = "CNI_IFNAME", default_value = "eth0", value_name = "NAME")]
    pub ifname: String,
    /// Id of the container [default: cnitool's, `cnitool-` and 20 digits made from the namespace's path].
    #[arg(long, value_name = "ID")]
    pub container_id: Option<String>,
    /// Arguments for the plugins: `KEY=VALUE;KEY=VALUE`.
    #[arg(long, env = "CNI_ARGS", value_name = "PAIRS")]
    pub args: Option<String>,
    /// Values of capabilities as a JSON object, for instance `{"portMappings":[{"hostPort":8080,"containerPort":80}]}`.
    #[arg(long, env = "CAP_ARGS", value_name = "JSON")]
    pub cap_args: Option<String>,
}

/// How `cni add` attaches.
#[derive(Debug, Args)]
// Written out, since what the environment gives would be shown as required.
#[command(override_usage = "outrigger cni add [OPTIONS] <NETWORK> <NETNS>")]
pub(crate) struct AddArgs {
    /// The network: its name in the configuration directory, or the path of a file.
    pub network: String,
    /// The network namespace: a name (`/run/netns/NAME`), or a path.
    pub netns: String,
    #[command(flatten)]
    pub attachment: AttachmentArgs,
    #[command(flatten)]
    pub places: Places,
    #[command(flatten)]
    pub explain: Explain,
    /// Make the namespace if it is missing, as `ip netns add` does.
    #[arg(long)]
    pub create_netns: bool,
    /// Leave what a failed ADD made, to look at it. Otherwise it is undone with DEL.
    #[arg(long)]
    pub keep_failed: bool,
}

/// How `cni del` detaches.
#[derive(Debug, Args)]
#[command(override_usage = "outrigger cni del [OPTIONS] <NETWORK> <NETNS|--container-id <ID>>")]
#[command(group = clap::ArgGroup::new("whose").required(true).multiple(true).args(["netns", "container_id"]))]
pub(crate) struct DelArgs {
    /// The network: its name in the configuration directory, or the path of a file. One that is not configured any more is
    /// taken from the cache.
    pub network: String,
    /// The network namespace: a name (`/run/netns/NAME`), or a path. It may be gone.
    pub netns: Option<String>,
    #[command(flatten)]
    pub attachment: AttachmentArgs,
    #[command(flatten)]
    pub places: Places,
    #[command(flatten)]
    pub explain: Explain,
    /// Remove the namespace afterwards, as `ip netns del` does.
    #[arg(long, requires = "netns")]
    pub remove_netns: bool,
}

/// How `cni check` checks.
#[derive(Debug, Args)]
#[command(override_usage = "outrigger cni check [OPTIONS] <NETWORK> <NETNS>")]
pub(crate) struct CheckArgs {
    /// The network: its name in the configuration directory, or the path of a file.
    pub network: String,
    /// The network namespace: a name (`/run/netns/NAME`), or a path.
    pub netns: String,
    #[command(flatten)]
    pub attachment: AttachmentArgs,
    #[command(flatten)]
    pub places: Places,
    #[command(flatten)]
    pub explain: Explain,
}

/// What `cni gc` takes for valid.
#[derive(Debug, Args)]
#[command(
    override_usage = "outrigger cni gc [OPTIONS] <--valid <ID[/IFNAME]>|--valid-from <FILE>|--live|--none> <NETWORK|--all>"
)]
#[command(after_help = "Examples:\n  \
    outrigger cni gc --all --live                      what a timer may run at any time\n  \
    outrigger cni gc --all --live --with-plugins       at boot, before the container runtime starts\n  \
    outrigger cni gc podnet --valid 1f9a --valid 77c0/net1\n  \
    crictl pods -q | outrigger cni gc podnet --valid-from -\n  \
    outrigger cni gc podnet --none                     everything of that network")]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["valid", "valid_from", "live", "none"]))]
#[command(group = clap::ArgGroup::new("what").required(true).args(["network", "all"]))]
pub(crate) struct GcArgs {
    /// The network: its name in the configuration directory, or the path of a file.
    pub network: Option<String>,
    /// Accepted for cnitool's sake and not looked at.
    #[arg(hide = true, requires = "network")]
    pub netns: Option<String>,
    /// All networks of the configuration directory, and those that only the cache knows.
    #[arg(long)]
    pub all: bool,
    /// A valid attachment; the interface is that of `--ifname` if it is left out.
    #[arg(long, value_name = "ID[/IFNAME]")]
    pub valid: Vec<String>,
    /// A file with valid attachments, one a line in the form of `--valid`; `-` reads standard input. One without any is
    /// refused: `--none` says that nothing is valid.
    #[arg(long, value_name = "FILE")]
    pub valid_from: Option<PathBuf>,
    /// Attachments of the cache whose network namespace is still there are valid, and so is one whose file is damaged and
    /// was written since the host was booted. The plugins' own collection is left out: it would take an attachment that is
    /// being made for garbage.
    #[arg(long, conflicts_with = "none")]
    pub live: bool,
    /// With `--live`: have the plugins collect as well. Only while no container is being started. Refused when there is a
    /// namespace that the cache does not know, or a file of the cache of which nobody can tell whose it is.
    #[arg(long, requires = "live")]
    pub with_plugins: bool,
    /// Nothing is valid: delete every attachment of the network.
    #[arg(long, conflicts_with_all = ["valid", "valid_from"])]
    pub none: bool,
    /// Interface of `--valid` entries without one.
    #[arg(short, long, env = "CNI_IFNAME", default_value = "eth0", value_name = "NAME")]
    pub ifname: String,
    #[command(flatten)]
    pub places: Places,
    #[command(flatten)]
    pub explain: Explain,
}

/// What `cni status` asks.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The network: its name in the configuration directory, or the path of a file [default: all of the directory].
    pub network: Option<String>,
    /// Accepted for cnitool's sake and not looked at.
    #[arg(hide = true)]
    pub netns: Option<String>,
    #[command(flatten)]
    pub places: Places,
    #[command(flatten)]
    pub explain: Explain,
}

/// Whom `cni version` asks.
#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// The plugins [default: all of the plugin directories].
    pub plugins: Vec<String>,
    #[command(flatten)]
    pub places: Places,
}

/// How `cni list` lists.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub places: Places,
}

/// What `cni cache` shows.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// Attachments of this network only.
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// Attachments of this container only.
    #[arg(long, value_name = "ID")]
    pub container_id: Option<String>,
    #[command(flatten)]
    pub places: Places,
}
