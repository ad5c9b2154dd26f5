//! Every CNI plugin in one multi-call binary: the name it is called by says which.
//!
//! Called as `bridge`, it is the bridge plugin. Called as `outrigger-cni`, it installs itself under every name, or is the
//! plugin that its first argument names.

mod command;
mod install;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use outrigger_cni_plugins::Session;
use outrigger_cni_plugins::registry::plugin;
use outrigger_cni_sdk::main_with;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name == command::NAME { command::run(args.collect()) } else { run_plugin(name, args) }
}

/// Runs the plugin of a name; a name that is no plugin's is taken for a renamed copy of the whole.
fn run_plugin(name: &str, args: impl Iterator<Item = OsString>) -> ExitCode {
    let session = Session::default();
    let Some(plugin) = plugin(name, &session) else { return command::run(args.collect()) };
    if let Some(code) = command::of_plugin(name, args) {
        return code;
    }
    main_with(&*plugin, &session)
}
