//! The daemon's command line, with the original's flags, and its start and end.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::daemon::{Daemon, boot_id, listen, prefixed};
use super::wire::DEFAULT_SOCKET;

const HELP: &str = "\
dhcp daemon: gets leases for the dhcp plugin and keeps them

  -pidfile PATH        write the process id to this file (absolute)
  -hostprefix PATH     where the host's file system is seen, in a container
  -socketpath PATH     socket for the plugin (default /run/cni/dhcp.sock)
  -broadcast           ask servers to broadcast their answers
  -timeout TIME        how long a server may take to answer (default 10s); ADD gives up after six times that
  -resendmax TIME      longest pause between two tries (default 62s)
  -resendtimeout TIME  give up after this if that is earlier (default 3m28s)

Leases are kept in a directory beside the socket (/run/cni/dhcp.leases), so that the daemon can be restarted. A socket
that systemd hands over (LISTEN_FDS) is used instead of making one.
";

/// How the daemon works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where to write the process id.
    pub pidfile: Option<PathBuf>,
    /// Put in front of paths of the host.
    pub hostprefix: PathBuf,
    /// The socket, as the host sees it.
    pub socket: PathBuf,
    /// Ask for broadcast replies.
    pub broadcast: bool,
    /// How long a server may take to answer a request.
    pub timeout: Duration,
    /// Longest pause between two tries.
    pub resend_max: Duration,
    /// Bound for an acquisition.
    pub resend_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pidfile: None,
            hostprefix: PathBuf::new(),
            socket: PathBuf::from(DEFAULT_SOCKET),
            broadcast: false,
            timeout: Duration::from_secs(10),
            resend_max: Duration::from_secs(62),
            resend_timeout: Duration::from_secs(208),
        }
    }
}

impl Settings {
    /// How long ADD tries. The original goes on for `resend_timeout`, longer than most runtimes wait.
    pub fn limit(&self) -> Duration {
        self.resend_timeout.min(self.timeout * 6)
    }

    /// The socket, as the daemon sees it.
    pub fn socket_path(&self) -> PathBuf {
        prefixed(&self.hostprefix, &self.socket)
    }

    /// A network namespace, as the daemon sees it.
    pub fn netns_path(&self, path: &Path) -> PathBuf {
        prefixed(&self.hostprefix, path)
    }

    /// Reads the command line. None if help is asked for.
    fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, String> {
        let mut settings = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let text = arg.to_str().ok_or_else(|| format!("argument {} is not UTF-8", arg.display()))?;
            let Some(flag) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else {
                return Err(format!("unexpected argument {text:?}"));
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if matches!(name, "h" | "help") {
                return Ok(None);
            }
            if name == "broadcast" {
                settings.broadcast = match inline.as_deref() {
                    None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => true,
                    Some("false" | "0" | "f" | "F" | "FALSE" | "False") => false,
                    Some(other) => return Err(format!("-broadcast: {other:?} is neither true nor false")),
                };
                continue;
            }
            let mut value = || match &inline {
                Some(value) => Ok(OsString::from(value)),
                None => args.next().ok_or_else(|| format!("-{name} needs a value")),
            };
            match name {
                "pidfile" => {
                    settings.pidfile = Some(PathBuf::from(value()?)).filter(|path| !path.as_os_str().is_empty());
                }
                "hostprefix" => settings.hostprefix = value()?.into(),
                "socketpath" => {
                    let path = PathBuf::from(value()?);
                    settings.socket = if path.as_os_str().is_empty() { DEFAULT_SOCKET.into() } else { path };
                }
                "timeout" => settings.timeout = duration(name, &value()?)?,
                "resendmax" => settings.resend_max = duration(name, &value()?)?,
                "resendtimeout" => settings.resend_timeout = duration(name, &value()?)?,
                _ => return Err(format!("unknown flag -{name}")),
            }
        }
        if let Some(path) = settings.pidfile.as_ref().filter(|path| !path.is_absolute()) {
            return Err(format!("-pidfile {}: the path is not absolute", path.display()));
        }
        Ok(Some(settings))
    }
}

/// Reads a time as Go writes it: `1h2m3.5s`, `200ms`.
fn duration(flag: &str, value: &OsString) -> Result<Duration, String> {
    let wrong = || format!("-{flag}: {:?} is no time such as 10s, 1m30s or 500ms", value.to_string_lossy());
    let mut rest = value.to_str().filter(|text| !text.is_empty()).ok_or_else(wrong)?;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit_end =
            rest[digits..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |at| digits + at);
        seconds += number
            * match &rest[digits..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(wrong()),
            };
        rest = &rest[unit_end..];
    }
    // A day is more than any of them is good for, and far from what a clock cannot add.
    Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= Duration::from_hours(24)).ok_or_else(wrong)
}

/// Runs the daemon as this program, until SIGTERM or SIGINT. `variable` reads the environment.
pub fn main(args: impl IntoIterator<Item = OsString>, variable: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let settings = match Settings::parse(args) {
        Ok(Some(settings)) => settings,
        Ok(None) => {
            super::log(HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            super::log(format_args!("dhcp daemon: {error}; -help shows the flags"));
            return ExitCode::from(2);
        }
    };
    match run(settings, variable) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::log(format_args!("dhcp daemon: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(settings: Settings, variable: &dyn Fn(&str) -> Option<String>) -> Result<(), String> {
    let step = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("{what}: {error}")
    };
    allow_descriptors();
    let (pid, fds) = (variable("LISTEN_PID"), variable("LISTEN_FDS"));
    let inherited = outrigger_sys::service::inherited_socket(pid.as_deref(), fds.as_deref());
    let inherited = inherited.map_err(step("taking the socket of the service manager"))?;
    let stop = outrigger_sys::service::termination_signals().map_err(step("waiting for signals"))?;
    let socket = settings.socket_path();
    let own_socket = inherited.is_none();
    let listener = match inherited {
        Some(fd) => UnixListener::from(fd),
        None => listen(&socket).map_err(step(&format!("listening on {}", socket.display())))?,
    };
    let pidfile = settings.pidfile.clone();
    let result = (|| {
        if let Some(path) = &pidfile {
            use std::io::Write as _;
            std::fs::File::create(path)
                .and_then(|mut file| write!(file, "{}", std::process::id()))
                .map_err(step(&format!("writing {}", path.display())))?;
        }
        let boot = boot_id().map_err(step("reading the boot id"))?;
        let mut daemon = Daemon::start(settings, boot).map_err(step("reading the leases of an earlier daemon"))?;
        daemon.run(&listener, stop.as_fd()).map_err(step("waiting"))
    })();
    // Leases stay: the next daemon goes on with them.
    if own_socket {
        let _ = rustix::fs::unlink(&socket);
    }
    if let Some(path) = &pidfile {
        let _ = rustix::fs::unlink(path);
    }
    result
}

/// Takes as many descriptors as the service manager lets it: each plugin that waits and each server that is talked to
/// needs one, and the usual limit is for programs that use `select`.
fn allow_descriptors() {
    let limits = getrlimit(Resource::Nofile);
    // If that fails, plugins wait longer when there are many.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Settings>, String> {
        Settings::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn flags_of_the_original() {
        assert_eq!(parse("").unwrap(), Some(Settings::default()));
        let settings = parse(
            "-pidfile /run/x.pid --hostprefix=/host -socketpath /run/s -broadcast -timeout 1m2.5s -resendmax=500ms \
             -resendtimeout 1h",
        );
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.pidfile, Some(PathBuf::from("/run/x.pid")));
        assert_eq!(settings.socket_path(), PathBuf::from("/host/run/s"));
        assert_eq!(settings.netns_path(Path::new("/proc/1/ns/net")), PathBuf::from("/host/proc/1/ns/net"));
        assert!(settings.broadcast);
        assert_eq!(settings.timeout, Duration::from_millis(62_500));
        assert_eq!(settings.resend_max, Duration::from_millis(500));
        assert_eq!(settings.limit(), Duration::from_secs(375));
        assert_eq!(parse("-help").unwrap(), None);
        assert!(!parse("-broadcast=false").unwrap().unwrap().broadcast);
        assert_eq!(Settings::default().limit(), Duration::from_mins(1));
    }

    #[test]
    fn wrong_flags() {
        for line in [
            "x",
            "-x",
            "-pidfile",
            "-pidfile rel",
            "-timeout",
            "-timeout 5",
            "-timeout s",
            "-timeout -5s",
            "-timeout 5x",
            "-timeout 99999h",
            "-timeout 1.2.3s",
            "-broadcast=maybe",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
