//! Development tasks.
//!
//! `xtask generate [name]` rewrites committed generated files, all of them or those of one generator;
//! `xtask check [name]` fails if a committed file differs from what its generator makes. The same check is a test.
//! `xtask rules` checks who may depend on whom, licences and bans; a test as well.

mod csi;
mod kubernetes;
mod rules;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use fs_err as fs;

/// A generated file: its place in the workspace and what has to be in it.
struct Output {
    path: PathBuf,
    content: Vec<u8>,
}

/// A generator makes its files anew, from sources in the workspace only.
type Generator = fn() -> Result<Vec<Output>>;

/// Every generator by the name that the command line knows.
const GENERATORS: &[(&str, Generator)] = &[("csi", csi::outputs), ("kubernetes", kubernetes::outputs)];

const USAGE: &str = "usage: xtask generate|check [name] (without a name, all generators), or xtask rules";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (act, name): (fn(&Output) -> Result<()>, _) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..]
    {
        ["rules"] => return rules::check(),
        ["generate"] => (write, None),
        ["generate", name] => (write, Some(name)),
        ["check"] => (compare, None),
        ["check", name] => (compare, Some(name)),
        _ => bail!(USAGE),
    };
    let chosen: Vec<_> = GENERATORS.iter().filter(|(known, _)| name.is_none_or(|name| name == *known)).collect();
    if chosen.is_empty() {
        let known: Vec<_> = GENERATORS.iter().map(|(name, _)| *name).collect();
        bail!("no generator {:?}; there are: {}", name.unwrap_or_default(), known.join(", "));
    }
    for (name, generator) in chosen {
        for output in generator().with_context(|| format!("generator {name}"))? {
            act(&output)?;
        }
    }
    Ok(())
}

/// The root of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Writes an output, unless it is there already (so that builds do not restart for nothing).
fn write(output: &Output) -> Result<()> {
    if compare(output).is_ok() {
        return Ok(());
    }
    let path = root().join(&output.path);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    Ok(fs::write(path, &output.content)?)
}

/// Fails if the committed file is not the output.
fn compare(output: &Output) -> Result<()> {
    let committed = fs::read(root().join(&output.path))?;
    if committed != output.content {
        bail!("{} is not what its generator makes: run `cargo run -p xtask -- generate`", output.path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_files_are_what_the_generators_make() {
        for (name, generator) in GENERATORS {
            for output in generator().unwrap() {
                compare(&output).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            }
        }
    }
}
