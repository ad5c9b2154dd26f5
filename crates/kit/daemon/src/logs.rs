//! Logs on the standard error stream.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Libraries whose details say nothing about the daemon; they get less than the daemon's own code.
const LIBRARIES: [&str; 8] = ["h2", "hyper", "hyper_util", "kube_client", "kube_runtime", "rustls", "tonic", "tower"];

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// Text if the standard error stream is a terminal, JSON otherwise.
    #[default]
    Auto,
    /// One line of text an event.
    Text,
    /// One JSON object an event, with `timestamp`, `level`, `target`, `message` and the event's fields.
    Json,
}

/// The log flags of a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Args)]
pub struct LogOptions {
    /// Verbosity by the numbers of klog: 0-3 is information, 4-5 adds debugging, 6-9 tracing, 10 that of the libraries too.
    #[arg(short = 'v', long = "v", value_name = "LEVEL", default_value_t = 0, help_heading = "Logging")]
    pub verbosity: u8,
    /// Form of the log lines on the standard error stream.
    #[arg(long = "log-format", value_enum, default_value_t = LogFormat::Auto, env = "OUTRIGGER_LOG_FORMAT", help_heading = "Logging")]
    pub format: LogFormat,
}

/// Starts logging to the standard error stream. `RUST_LOG`, if set, overrides the verbosity.
///
/// Does nothing if the process logs already.
pub fn init_logs(options: &LogOptions) {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::builder().parse_lossy(directives),
        _ => EnvFilter::new(directives(options.verbosity)),
    };
    let terminal = io::stderr().is_terminal();
    let json = match options.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // An error means that a subscriber is there: a test's, or that of an earlier call.
    let _ = if json {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    } else {
        builder.with_ansi(terminal).try_init()
    };
}

/// The filter for a verbosity of klog.
fn directives(verbosity: u8) -> String {
    let (own, libraries) = match verbosity {
        0..=3 => ("info", "warn"),
        4..=5 => ("debug", "info"),
        6..=9 => ("trace", "debug"),
        _ => ("trace", "trace"),
    };
    let mut out = own.to_owned();
    for library in LIBRARIES {
        // Writing to a String cannot fail.
        let _ = write!(out, ",{library}={libraries}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        logs: LogOptions,
    }

    #[test]
    fn flags_are_those_of_klog() {
        for args in [["x", "-v=5"], ["x", "-v5"], ["x", "--v=5"]] {
            assert_eq!(Cli::parse_from(args).logs.verbosity, 5);
        }
        assert_eq!(Cli::parse_from(["x", "--log-format", "json"]).logs.format, LogFormat::Json);
    }

    #[test]
    fn every_verbosity_is_a_valid_filter() {
        for verbosity in 0..12 {
            EnvFilter::try_new(directives(verbosity)).unwrap();
        }
        assert!(directives(0).starts_with("info,h2=warn"));
    }
}
