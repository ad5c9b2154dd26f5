//! A black-box conformance suite for CNI plugins: standard input and environment go in, and standard output, exit code
//! and the kernel's state are judged, by the specification and by what the reference plugins' documentation promises.
//!
//! Each case has a private host, network and mount namespaces that go with the case, so the machine's own network is
//! never touched and nothing is left. That needs root, and the commands `ip`, `nft`, `tc` and `nsenter`.
//!
//! The suite shares no code with the SDK or the plugins of this project: it is a judge of them too.

pub mod call;
mod cases;
pub mod host;
pub mod profile;
pub mod result;
pub mod scene;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_verify_report::{Case, Level, Unmet};
use serde_json::Value;

use profile::{Kind, Profile};
use scene::Subject;

/// What is to be verified.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// A plugin, or a directory of plugins.
    pub path: PathBuf,
    /// Of a directory, these only; of a single plugin, the name of the profile to use.
    pub plugins: Vec<String>,
    /// A plugin object that works, for a plugin without profile.
    pub config: Option<Value>,
    /// The part that a plugin without profile plays; guessed if left out.
    pub kind: Option<Kind>,
}

/// Why a suite could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the directory failed.
    #[error("cannot look for plugins in {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is nothing to verify.
    #[error("there is no plugin to verify in {}; give a directory of plugins, or a plugin with --config", path.display())]
    Nothing {
        /// Where plugins were looked for.
        path: PathBuf,
    },
    /// The configuration is no object.
    #[error("the configuration is no JSON object; give one plugin object, as in the list `plugins`")]
    Config,
    /// A wanted plugin is not there.
    #[error("there is no plugin {name:?} in {}", path.display())]
    Plugin {
        /// The plugin's name.
        name: String,
        /// The directory.
        path: PathBuf,
    },
}

/// All cases for a target.
pub fn cases(target: &Target) -> Result<Vec<Case>, Error> {
    if target.config.as_ref().is_some_and(|config| !config.is_object()) {
        return Err(Error::Config);
    }
    let path =
        fs_err::canonicalize(&target.path).map_err(|source| Error::Directory { path: target.path.clone(), source })?;
    if path.is_dir() { directory(target, &path) } else { single(target, &path) }
}

fn single(target: &Target, path: &Path) -> Result<Vec<Case>, Error> {
    // The name is the one that was given: with hard or symbolic links it is what makes the plugin.
    let name = target.path.file_name().and_then(|name| name.to_str()).unwrap_or("plugin").to_owned();
    let given = target.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = fs_err::canonicalize(given).map_err(|source| Error::Directory { path: path.to_owned(), source })?;
    let wanted = target.plugins.first().unwrap_or(&name);
    let profile = match (Profile::known(wanted), &target.config) {
        (Some(profile), None) => profile,
        (_, config) => Profile::generic(target.kind.unwrap_or_else(|| guess(&name, config.as_ref())), config.clone()),
    };
    Ok(cases::of(&subject(name, directory, profile)))
}

/// A plugin whose configuration names it as IPAM is one; otherwise it makes an interface.
fn guess(name: &str, config: Option<&Value>) -> Kind {
    let ipam = config.and_then(|config| config["ipam"]["type"].as_str());
    if ipam == Some(name) { Kind::Ipam } else { Kind::Main }
}

fn directory(target: &Target, path: &Path) -> Result<Vec<Case>, Error> {
    let failed = |source| Error::Directory { path: path.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs_err::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.extend(name.to_str().map(str::to_owned));
    }
    names.sort();
    if let Some(missing) = target.plugins.iter().find(|wanted| !names.contains(wanted)) {
        return Err(Error::Plugin { name: missing.clone(), path: path.to_owned() });
    }
    let mut all = Vec::new();
    for name in names {
        if !target.plugins.is_empty() && !target.plugins.contains(&name) {
            continue;
        }
        if let Some(profile) = Profile::known(&name) {
            all.extend(cases::of(&subject(name, path.to_owned(), profile)));
        } else if path.join(&name).is_file() {
            let title = "the suite knows how to call the plugin";
            let why = format!(
                "it does not know {name}; verify it alone: outrigger verify cni {} --config FILE",
                path.join(&name).display()
            );
            all.push(Case::new(format!("{name}/profile"), "", Level::Should, title, move || Err(Unmet::skip(why))));
        }
    }
    if all.is_empty() { Err(Error::Nothing { path: path.to_owned() }) } else { Ok(all) }
}

fn subject(name: String, directory: PathBuf, profile: Profile) -> Arc<Subject> {
    let versions = versions(&directory.join(&name));
    Arc::new(Subject { name, directory, profile: Arc::new(profile), versions })
}

/// What the plugin answers to VERSION, here and not on a private host: VERSION has no effects. Nothing, if it fails.
fn versions(binary: &Path) -> Vec<String> {
    let answer =
        call::Call::new(binary, "VERSION").stdin("{\"cniVersion\":\"1.0.0\"}").run().and_then(|output| output.result());
    let list = answer.map(|answer| answer["supportedVersions"].as_array().cloned().unwrap_or_default());
    list.unwrap_or_default().iter().filter_map(|version| version.as_str().map(str::to_owned)).collect()
}
