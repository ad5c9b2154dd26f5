//! The reference of the command line, docs/cli.md, made from the command line's own definition.

use std::fmt::Write as _;

use clap::{Arg, Command};

/// The whole reference as Markdown.
pub(crate) fn markdown(command: &Command) -> String {
    let mut command = command.clone();
    command.build();
    let mut text = String::from(
        "# The command line\n\nMade by `make generate` from the command itself; `outrigger help` prints the same.\n",
    );
    section(&command, 0, &mut text);
    text
}

fn section(command: &Command, depth: usize, text: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let _ = write!(text, "\n## `{name}`\n\n{about}\n");
    let arguments: Vec<&Arg> =
        command.get_arguments().filter(|argument| !argument.is_hide_set() && !is_common(argument, depth)).collect();
    if !arguments.is_empty() {
        text.push_str("\n| argument | default | environment | meaning |\n|---|---|---|---|\n");
    }
    for argument in arguments {
        let default: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let environment = argument.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} |",
            spelling(argument),
            code(&default.join(",")),
            code(&environment),
            help.replace('\n', " ").replace('|', "\\|"),
        );
    }
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        section(sub, depth + 1, text);
    }
}

/// Arguments that every command has; they are listed once, with the command itself.
fn is_common(argument: &Arg, depth: usize) -> bool {
    matches!(argument.get_id().as_str(), "help" | "version") || (argument.is_global_set() && depth > 0)
}

fn spelling(argument: &Arg) -> String {
    let value = argument
        .get_action()
        .takes_values()
        .then(|| argument.get_value_names().map(|names| names.join(" ")))
        .flatten()
        .unwrap_or_default();
    match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long} {value}").trim_end().to_owned(),
        (None, Some(long)) => format!("--{long} {value}").trim_end().to_owned(),
        (Some(short), None) => format!("-{short} {value}").trim_end().to_owned(),
        (None, None) => format!("[{value}]"),
    }
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    /// Set by `make generate`: write the reference instead of comparing it.
    const UPDATE: &str = "OUTRIGGER_UPDATE";

    #[test]
    fn the_committed_reference_is_what_the_command_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
        let made = super::markdown(&crate::cli::Cli::command());
        if std::env::var_os(UPDATE).is_some() {
            fs_err::write(path, made).unwrap();
            return;
        }
        let committed = fs_err::read_to_string(path).unwrap();
        assert!(committed == made, "docs/cli.md is not what the command says; run: make generate");
    }
}
