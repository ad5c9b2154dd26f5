//! The `outrigger` command: parses, wires, runs.

mod cli;
mod cni;
mod csi;
mod lab;
#[cfg(test)]
mod reference;
mod storage;
mod verify;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use outrigger_daemon::LogOptions;

use cli::{Cli, Command};

/// What a command that went well tells its caller by the exit code; the texts are in the help of [`Cli`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    NotRunning,
    NotReady,
    NotConforming,
}

fn main() -> ExitCode {
    // Before anything opens a connection: both rustls and kube ask the process for its one provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    outrigger_daemon::init_logs(&LogOptions { verbosity: cli.verbosity, format: cli.log_format });
    match run(cli.command, cli.verbosity) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::NotRunning) => ExitCode::from(3),
        Ok(Outcome::NotReady) => ExitCode::from(4),
        // What is wrong has been reported.
        Ok(Outcome::NotConforming) => ExitCode::FAILURE,
        Err(error) => {
            eprint_error(&error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "this is where the command speaks to its user")]
fn eprint_error(error: &anyhow::Error) {
    eprintln!("outrigger: {error:#}");
}

/// Writes an answer to the standard output. Whoever reads it may have seen enough and left (`| head`): that is no failure.
fn say(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write to standard output"))
        }
        _ => Ok(()),
    }
}

fn run(command: Command, verbosity: u8) -> anyhow::Result<Outcome> {
    match command {
        Command::Lab(command) => runtime()?.block_on(lab::run(command, verbosity)),
        Command::Storage(command) => runtime()?.block_on(storage::run(command)).map(|()| Outcome::Done),
        Command::Csi(args) => runtime()?.block_on(csi::run(args)).map(|()| Outcome::Done),
        Command::Cni(command) => cni::run(command),
        Command::Verify(command) => verify::run(command),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "outrigger", &mut std::io::stdout());
            Ok(Outcome::Done)
        }
        Command::Man { directory } => {
            fs_err::create_dir_all(&directory)?;
            clap_mangen::generate_to(Cli::command(), &directory)?;
            Ok(Outcome::Done)
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
