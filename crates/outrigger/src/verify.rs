//! `outrigger verify`: conformance suites for other people's plugins, and for ours.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand, ValueEnum};
use outrigger_cni_verify::Target;
use outrigger_cni_verify::profile::Kind;
use outrigger_verify_report::{Case, Filter, Format, Record, Report, RunOptions};

use crate::{Outcome, say};

/// Subcommands of `outrigger verify`.
#[derive(Debug, Subcommand)]
pub(crate) enum VerifyCommand {
    /// Verify CNI plugins: a directory of the plugins that everybody knows, or one plugin of any kind.
    ///
    /// Every case runs on a private host, network and mount namespaces of its own: the machine's network is not touched.
    /// Needs root, and the commands ip, nft, tc and nsenter. Exit code 1 when a requirement is not met.
    Cni(VerifyCni),
}

/// What `verify cni` verifies, and how.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    outrigger verify cni /opt/cni/bin\n  \
    outrigger verify cni /opt/cni/bin --plugin bridge --filter DEL,GC\n  \
    outrigger verify cni ./my-plugin --config object.json -o junit > report.xml\n  \
    outrigger verify cni /opt/cni/bin --list")]
pub(crate) struct VerifyCni {
    /// A directory of plugins, or one plugin.
    pub target: PathBuf,
    /// Of a directory, this plugin only (may be given several times); for one plugin of another name, whose place it takes.
    #[arg(long = "plugin", value_name = "NAME")]
    pub plugins: Vec<String>,
    /// A plugin object (as in the list `plugins` of a network) with which the plugin works, for a plugin that the suite
    /// does not know.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The part that a plugin plays which the suite does not know [default: ipam if the configuration names it so,
    /// otherwise main].
    #[arg(long, value_enum)]
    pub kind: Option<PluginKind>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// The part that a plugin plays.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum PluginKind {
    /// Makes an interface.
    Main,
    /// Hands out addresses.
    Ipam,
    /// Changes what an earlier plugin made.
    Meta,
}

/// How a suite is run and reported.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Only cases whose path has these names one after the other (`DEL`, `bridge/DEL`, `DEL/twice`), or matches a glob
    /// (`*/GC/*`); with `!` in front, all but those. A list separated by commas, or several times.
    #[arg(long = "filter", value_name = "PATTERN")]
    pub filters: Vec<String>,
    /// Print the cases instead of running them.
    #[arg(long)]
    pub list: bool,
    /// Form of the report.
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = ReportForm::Table)]
    pub output: ReportForm,
    /// Let requirements that are no more than SHOULD decide about the exit code too.
    #[arg(long)]
    pub strict: bool,
    /// How many cases at a time [default: one for each processor].
    #[arg(long, value_name = "COUNT")]
    pub jobs: Option<usize>,
}

/// Form of a report.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ReportForm {
    /// Aligned text.
    Table,
    /// One JSON object.
    Json,
    /// JUnit XML.
    Junit,
}

/// Runs a suite.
pub(crate) fn run(command: VerifyCommand) -> anyhow::Result<Outcome> {
    match command {
        VerifyCommand::Cni(args) => cni(args),
    }
}

fn cni(args: VerifyCni) -> anyhow::Result<Outcome> {
    ensure!(
        args.run.list || rustix::process::geteuid().is_root(),
        "verifying CNI plugins makes network namespaces; run it as root"
    );
    let config = args
        .config
        .map(|path| -> anyhow::Result<_> {
            let text = fs_err::read(&path)?;
            serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))
        })
        .transpose()?;
    let kind = args.kind.map(|kind| match kind {
        PluginKind::Main => Kind::Main,
        PluginKind::Ipam => Kind::Ipam,
        PluginKind::Meta => Kind::Meta,
    });
    let name = format!("cni {}", args.target.display());
    let cases = outrigger_cni_verify::cases(&Target { path: args.target, plugins: args.plugins, config, kind })?;
    suite(&name, cases, &args.run)
}

fn suite(name: &str, cases: Vec<Case>, args: &RunArgs) -> anyhow::Result<Outcome> {
    let filter = Filter::new(&args.filters);
    let format = match args.output {
        ReportForm::Table => Format::Table,
        ReportForm::Json => Format::Json,
        ReportForm::Junit => Format::Junit,
    };
    if args.list {
        say(Report::list(cases.iter().filter(|case| filter.lets_through(&case.id)), format).trim_end())?;
        return Ok(Outcome::Done);
    }
    let jobs = args.jobs.unwrap_or(RunOptions::default().jobs);
    let total = cases.iter().filter(|case| filter.lets_through(&case.id)).count();
    ensure!(total > 0, "no case matches the filter; --list shows them all");
    let mut seen = 0;
    let terminal = std::io::stderr().is_terminal();
    let report = outrigger_verify_report::run(name, cases, &filter, RunOptions { jobs }, |record| {
        seen += 1;
        if terminal {
            progress(seen, total, record);
        }
    });
    if terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    say(report.print(format).trim_end())?;
    Ok(if report.failed(args.strict) { Outcome::NotConforming } else { Outcome::Done })
}

/// One line on a terminal that is written over and over.
fn progress(seen: usize, total: usize, record: &Record) {
    let _ = write!(std::io::stderr(), "\r\x1b[K{seen}/{total} {} {}", record.word(), record.id);
}
