//! What the binary does when it is called by its own name.

use std::ffi::OsString;
use std::fmt;
use std::io::{Write as _, stderr, stdout};
use std::path::Path;
use std::process::ExitCode;

use outrigger_cni_plugins::Session;
use outrigger_cni_plugins::registry::{PLUGINS, plugin};
use outrigger_cni_sdk::{Code, Error, Version, docs};

use crate::install::{install, uninstall};

/// The name that is no plugin's.
pub(crate) const NAME: &str = "outrigger-cni";

const HELP: &str = "\
Every CNI plugin in one binary: the name it is called by says which.

usage:
  outrigger-cni list                     the plugins, one a line
  outrigger-cni help PLUGIN              the manual of a plugin
  outrigger-cni install DIR [--only A,B] put the plugins (or these) into DIR, which may be in use
  outrigger-cni uninstall DIR            take them out again, and put back what they replaced
  outrigger-cni dhcp daemon [OPTIONS]    keep the leases of the dhcp plugin
  outrigger-cni PLUGIN                   be that plugin, as if called by its name
  outrigger-cni --version

install copies the binary to DIR/outrigger-cni and makes a hard link to it for each plugin; flannel is a file of its own
that runs it, since others write over that name in place. Every file is replaced in one step, so a runtime that starts a
plugin meanwhile gets the old one or the new one. Other plugins of those names are kept in DIR/.outrigger-replaced; other
files are left alone.
";

/// Why a command was not done.
pub(crate) struct Failure {
    text: String,
    usage: bool,
}

impl Failure {
    /// It was called wrongly.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { text: text.into(), usage: true }
    }

    /// A step failed.
    pub(crate) fn step(what: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self { text: format!("{what}: {error}"), usage: false }
    }
}

/// Runs a command and gives its exit code: 2 if it was called wrongly.
pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    // A configuration whose type is the binary's own name: the runtime wants an answer that it can read.
    if args.is_empty() && std::env::var_os("CNI_COMMAND").is_some_and(|command| !command.is_empty()) {
        let error = Error::new(Code::InvalidConfig, "outrigger-cni is no plugin, but the binary that holds them")
            .details(
                "run: outrigger-cni install DIR, and use one of the names that `outrigger-cni list` prints as type",
            );
        let _ = writeln!(stdout(), "{:#}", error.to_value(Version::NEWEST));
        return ExitCode::FAILURE;
    }
    match dispatch(args) {
        Ok(code) => code,
        Err(failure) => {
            let hint = if failure.usage { "\ntry: outrigger-cni --help" } else { "" };
            let _ = writeln!(stderr(), "outrigger-cni: {}{hint}", failure.text);
            ExitCode::from(if failure.usage { 2 } else { 1 })
        }
    }
}

fn dispatch(args: Vec<OsString>) -> Result<ExitCode, Failure> {
    let words: Vec<String> = args.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let text = match words.as_slice() {
        [] => return Err(Failure::usage("a command is missing")),
        ["--help" | "-h" | "help"] => HELP.to_owned(),
        ["--version" | "-V" | "version"] => format!("{NAME} {}\n", env!("CARGO_PKG_VERSION")),
        ["list"] => names().flat_map(|name| [name, "\n"]).collect(),
        ["help", name] => manual(name)?,
        ["install", rest @ ..] => {
            let (dir, only) = install_arguments(rest)?;
            install(Path::new(dir), &only)?
        }
        ["uninstall", dir] if !dir.starts_with('-') => uninstall(Path::new(dir))?,
        ["uninstall", ..] => return Err(Failure::usage("uninstall takes one directory")),
        ["list", ..] => return Err(Failure::usage("list takes no argument")),
        [name, ..] if names().any(|known| known == *name) => {
            return Ok(crate::run_plugin(name, args.into_iter().skip(1)));
        }
        [other, ..] => return Err(Failure::usage(format!("{other:?} is neither a command nor a plugin"))),
    };
    // A reader that has seen enough is no failure.
    let _ = stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// Commands of single plugins. None if there is no argument: then it is the plugin that is wanted.
pub(crate) fn of_plugin(name: &str, mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let first = args.next()?;
    if name == "dhcp" && first == "daemon" {
        return Some(daemon(args.collect()));
    }
    // Plugins take no arguments, and ignore them as the originals do.
    None
}

fn daemon(args: Vec<OsString>) -> ExitCode {
    outrigger_cni_plugins::ipam::dhcp::settings::main(args, &|name| std::env::var(name).ok())
}

/// Every plugin's name.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    PLUGINS.iter().map(|(name, _)| *name)
}

fn manual(name: &str) -> Result<String, Failure> {
    let session = Session::default();
    let plugin = plugin(name, &session).ok_or_else(|| Failure::usage(format!("there is no plugin {name:?}")))?;
    Ok(docs::page(name, &*plugin))
}

/// The directory, and the names to install: all of them, or those of `--only`.
fn install_arguments<'a>(words: &[&'a str]) -> Result<(&'a str, Vec<&'static str>), Failure> {
    let (mut dir, mut only) = (None, None);
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        let list = match word.strip_prefix("--only") {
            Some("") => words.next(),
            Some(rest) => rest.strip_prefix('='),
            None if word.starts_with('-') => return Err(Failure::usage(format!("install: unknown option {word}"))),
            None if dir.replace(word).is_some() => return Err(Failure::usage("install takes one directory")),
            None => continue,
        };
        let list =
            list.ok_or_else(|| Failure::usage("install: --only takes the names of plugins, separated by commas"))?;
        only = Some(list);
    }
    let dir = dir.filter(|dir| !dir.is_empty()).ok_or_else(|| Failure::usage("install: the directory is missing"))?;
    let Some(only) = only else { return Ok((dir, names().collect())) };
    let find = |wanted: &str| {
        let wanted = wanted.trim();
        names().find(|name| *name == wanted).ok_or_else(|| {
            Failure::usage(format!(
                "install: {wanted:?} is no plugin; there are: {}",
                names().collect::<Vec<_>>().join(", ")
            ))
        })
    };
    let mut chosen = only.split(',').map(find).collect::<Result<Vec<_>, _>>()?;
    chosen.sort_unstable();
    chosen.dedup();
    Ok((dir, chosen))
}
