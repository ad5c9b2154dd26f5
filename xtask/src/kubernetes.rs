//! Generates the data of `outrigger-lab-schema`: what the lab knows of Kubernetes' own types.
//!
//! Sources are the texts of two dependencies, found through `cargo metadata`: `k8s-openapi` (schemas, kinds) and `k8s-pb`
//! (protobuf fields, list types, patch keys). Overlay tables beside this file add what neither says: default values,
//! allowed values and the scalars whose zero value means something. The output is two compressed tables with deterministic bytes.

mod emit;
mod openapi;
mod prost;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::Output;

/// The release of Kubernetes that the schemas are taken from: a module of `k8s-openapi`.
const RELEASE: &str = "v1_37";

/// The API groups that the lab serves, as directories of both sources, each with its versions.
const GROUPS: &[(&str, &[&str])] = &[
    ("core", &["v1"]),
    ("apps", &["v1"]),
    ("batch", &["v1"]),
    ("coordination", &["v1"]),
    ("events", &["v1"]),
    ("discovery", &["v1"]),
    ("networking", &["v1"]),
    ("node", &["v1"]),
    ("policy", &["v1"]),
    ("rbac", &["v1"]),
    ("scheduling", &["v1"]),
    ("storage", &["v1"]),
    ("admissionregistration", &["v1"]),
    ("authentication", &["v1"]),
    ("authorization", &["v1"]),
    ("autoscaling", &["v1", "v2"]),
    ("certificates", &["v1"]),
    ("resource", &["v1"]),
];

/// Modules below the sources' roots that hold what the lab needs.
fn modules() -> Vec<String> {
    let mut modules: Vec<String> = GROUPS
        .iter()
        .flat_map(|(group, versions)| versions.iter().map(move |version| format!("api/{group}/{version}")))
        .collect();
    modules.extend(
        [
            "apiextensions_apiserver/pkg/apis/apiextensions/v1",
            "apimachinery/pkg/apis/meta/v1",
            "apimachinery/pkg/runtime",
            "apimachinery/pkg/util/intstr",
            "apimachinery/pkg/api/resource",
            "apimachinery/pkg/version",
        ]
        .map(str::to_owned),
    );
    modules
}

/// The generated tables, uncompressed.
pub(crate) struct Tables {
    /// Kinds and definitions.
    pub(crate) schema: String,
    /// Protobuf messages.
    pub(crate) protobuf: String,
    /// Facts that one source has and the other lacks. Tests read them: disagreements about merging are errors.
    #[cfg_attr(not(test), expect(dead_code, reason = "read by tests"))]
    pub(crate) notes: Vec<String>,
}

/// Makes the committed data.
pub(crate) fn outputs() -> Result<Vec<Output>> {
    let tables = generate()?;
    let directory = Path::new("crates/lab/schema/data");
    [("schema.tsv.gz", &tables.schema), ("protobuf.tsv.gz", &tables.protobuf)]
        .into_iter()
        .map(|(name, text)| Ok(Output { path: directory.join(name), content: compress(text)? }))
        .collect()
}

/// Reads the sources and makes the tables.
fn generate() -> Result<Tables> {
    let metadata = metadata()?;
    let mut schemas = openapi::Schemas::default();
    let open_api = package(&metadata, "k8s-openapi")?.join("src").join(RELEASE);
    let pb = package(&metadata, "k8s-pb")?.join("src");
    let mut messages = BTreeMap::new();
    for module in modules() {
        if open_api.join(&module).is_dir() {
            schemas.read_directory(&open_api, &module)?;
        }
        let file = pb.join(&module).join("mod.rs");
        if file.is_file() {
            prost::read(&fs_err::read_to_string(&file)?, &module, &mut messages)
                .with_context(|| format!("{}", file.display()))?;
        }
    }
    let overlays = Overlays::parse(
        include_str!("kubernetes/defaults.txt"),
        include_str!("kubernetes/presence.txt"),
        include_str!("kubernetes/rules.txt"),
        include_str!("kubernetes/fields.txt"),
    )?;
    emit::tables(&schemas, &messages, &overlays)
}

fn metadata() -> Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--all-features", "--offline", "--manifest-path"])
        .arg(manifest)
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("read the output of cargo metadata")
}

fn package(metadata: &Value, name: &str) -> Result<PathBuf> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let manifest = packages
        .iter()
        .find(|package| package["name"] == name)
        .and_then(|package| package["manifest_path"].as_str())
        .with_context(|| format!("package {name} is not among the workspace's dependencies"))?;
    Ok(Path::new(manifest).parent().context("a manifest has a directory")?.to_owned())
}

fn compress(text: &str) -> Result<Vec<u8>> {
    // No file name and no time in the header: the bytes depend on the text alone.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes())?;
    Ok(encoder.finish()?)
}

/// The hand-written tables.
#[derive(Default)]
pub(crate) struct Overlays {
    /// Definition and property to default value.
    defaults: BTreeMap<(String, String), Value>,
    /// Definition and property of scalars whose zero is a value.
    presence: BTreeSet<(String, String)>,
    /// Definition to the message fields (JSON name, number, form) that the protobuf source does not have yet.
    fields: BTreeMap<String, Vec<[String; 3]>>,
    /// Definition and property to allowed values or a range, as attribute of the table.
    rules: BTreeMap<(String, String), String>,
}

impl Overlays {
    fn parse(defaults: &str, presence: &str, rules: &str, fields: &str) -> Result<Self> {
        let mut overlays = Self::default();
        for line in lines(defaults) {
            let mut words = line.splitn(3, ' ');
            let (Some(definition), Some(property), Some(json)) = (words.next(), words.next(), words.next()) else {
                bail!("defaults.txt: a line needs definition, property and value: {line}");
            };
            let value = serde_json::from_str(json.trim()).with_context(|| format!("defaults.txt: {line}"))?;
            if overlays.defaults.insert((definition.to_owned(), property.to_owned()), value).is_some() {
                bail!("defaults.txt: twice: {line}");
            }
        }
        for line in lines(presence) {
            let mut words = line.split(' ');
            let definition = words.next().context("a line starts with a word")?;
            overlays.presence.extend(words.map(|property| (definition.to_owned(), property.to_owned())));
        }
        for line in lines(fields) {
            let words: Vec<&str> = line.split(' ').collect();
            let [definition, name, tag, wire] = words[..] else {
                bail!("fields.txt: a line needs definition, name, number and form: {line}");
            };
            let field = [name, tag, wire].map(str::to_owned);
            overlays.fields.entry(definition.to_owned()).or_default().push(field);
        }
        for line in lines(rules) {
            let mut words = line.splitn(3, ' ');
            let (Some(definition), Some(property), Some(rule)) = (words.next(), words.next(), words.next()) else {
                bail!("rules.txt: a line needs definition, property and rule: {line}");
            };
            let attribute =
                if rule.contains("..") { format!("n:{rule}") } else { format!("e:{}", rule.replace(' ', "|")) };
            if overlays.rules.insert((definition.to_owned(), property.to_owned()), attribute).is_some() {
                bail!("rules.txt: twice: {line}");
            }
        }
        Ok(overlays)
    }
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_sources_agree_on_merge_keys() {
        // k8s-openapi derives its list merging from the published merge keys; k8s-pb quotes them. Both must say the same.
        let tables = generate().unwrap();
        let disagreements: Vec<_> = tables.notes.iter().filter(|note| note.starts_with("merge key")).collect();
        assert!(disagreements.is_empty(), "{disagreements:#?}");
    }
}
