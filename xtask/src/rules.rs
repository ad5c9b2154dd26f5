//! The rules for dependencies: which room may use which, which licences and crates are let in.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// Rooms, and the rooms whose crates they may use besides their own. A room is the path below `crates/`.
const ROOMS: &[(&str, &[&str])] = &[
    ("kit", &[]),
    ("storage/csi", &["kit"]),
    ("storage/hostpath", &["kit", "storage/csi"]),
    ("storage/sidecars", &["kit", "storage/csi"]),
    ("network/cni", &["kit"]),
    ("network/plugins", &["kit", "network/cni"]),
    ("network/verify", &["kit", "network/cni"]),
    ("outrigger-cni", &["network/cni", "network/plugins"]),
    ("lab/store", &[]),
    ("lab/schema", &[]),
    ("lab/machinery", &["lab/schema"]),
    ("lab/apiserver", &["lab/store", "lab/schema", "lab/machinery"]),
    ("lab/controllers", &["lab/apiserver", "lab/machinery", "lab/store", "kit"]),
    ("lab/node", &["lab/apiserver", "kit", "storage/csi"]),
    (
        "outrigger",
        &[
            "kit",
            "storage/csi",
            "storage/hostpath",
            "storage/sidecars",
            "network/cni",
            "network/plugins",
            "network/verify",
            "lab/store",
            "lab/apiserver",
            "lab/controllers",
            "lab/node",
        ],
    ),
];

/// The only crate that may hold unsafe code.
const UNSAFE: &str = "outrigger-sys";

/// Crates that must not come in, and why.
const BANNED: &[(&str, &str)] = &[
    ("aws-lc-rs", "rustls panics at first use when a second provider besides ring is compiled in"),
    ("openssl", "one TLS implementation: rustls"),
    ("native-tls", "one TLS implementation: rustls"),
    ("chrono", "one clock type: jiff"),
    ("serde_yaml", "unmaintained"),
];

/// Licences that are compatible with Apache-2.0 distribution.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unicode-3.0",
    "Zlib",
    "CDLA-Permissive-2.0",
    "0BSD",
    "Unlicense",
    "MIT-0",
    "CC0-1.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSL-1.0",
];

/// Checks all rules against `cargo metadata`; the error lists every offence.
pub(crate) fn check() -> Result<()> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(crate::root())
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let offences = offences(&serde_json::from_slice(&output.stdout)?)?;
    if offences.is_empty() { Ok(()) } else { bail!("the rules for dependencies are broken:\n{}", offences.join("\n")) }
}

fn offences(metadata: &Value) -> Result<Vec<String>> {
    let members: BTreeSet<&str> = strings(&metadata["workspace_members"]).collect();
    let mut rooms = BTreeMap::new();
    for package in metadata["packages"].as_array().context("packages")? {
        if members.contains(text(&package["id"])) {
            rooms.insert(text(&package["name"]), room(text(&package["manifest_path"])));
        }
    }
    // Without `resolve` the graph of what is really built is unknown, so only reachable packages are judged.
    let built: BTreeSet<&str> =
        metadata["resolve"]["nodes"].as_array().context("resolve")?.iter().map(|node| text(&node["id"])).collect();
    let mut offences = Vec::new();
    for package in metadata["packages"].as_array().context("packages")? {
        let (id, name) = (text(&package["id"]), text(&package["name"]));
        if members.contains(id) {
            offences.extend(member(package, &rooms)?);
            continue;
        }
        if !built.contains(id) {
            continue;
        }
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            offences.push(format!("{name} is banned: {why}"));
        }
        let licence = text(&package["license"]);
        if !licence_fits(licence) {
            offences.push(format!("{name}: licence {licence:?} is not on the list"));
        }
    }
    Ok(offences)
}

fn member(package: &Value, rooms: &BTreeMap<&str, Option<String>>) -> Result<Vec<String>> {
    let name = text(&package["name"]);
    let mut offences = Vec::new();
    let manifest = fs_err::read_to_string(text(&package["manifest_path"]))?;
    if name != UNSAFE && !manifest.contains("[lints]\nworkspace = true") {
        offences.push(format!("{name} does not take the workspace's lints"));
    }
    let Some(Some(own)) = rooms.get(name) else { return Ok(offences) };
    let Some((_, allowed)) = ROOMS.iter().find(|(room, _)| room == own) else {
        offences.push(format!("{name}: the room {own} has no rule; add it to ROOMS"));
        return Ok(offences);
    };
    for dependency in package["dependencies"].as_array().into_iter().flatten() {
        // Tests may use anything.
        if dependency["kind"] == "dev" {
            continue;
        }
        let used = text(&dependency["name"]);
        if let Some(Some(other)) = rooms.get(used)
            && other != own
            && !allowed.contains(&other.as_str())
        {
            offences.push(format!("{name} ({own}) must not use {used} ({other})"));
        }
    }
    Ok(offences)
}

/// `/x/crates/kit/rpc/Cargo.toml` is of room `kit`, `/x/crates/lab/store/Cargo.toml` of `lab/store`; other places have none.
fn room(manifest: &str) -> Option<String> {
    let (_, below) = manifest.rsplit_once("/crates/")?;
    let path = below.strip_suffix("/Cargo.toml")?;
    Some(if path.starts_with("kit/") { "kit".to_owned() } else { path.to_owned() })
}

/// True if one of the alternatives of an SPDX expression is made of allowed licences only.
fn licence_fits(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
    expression
        .split(" OR ")
        .any(|alternative| alternative.split(" AND ").all(|licence| LICENCES.contains(&licence.trim())))
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_workspace_keeps_the_rules() {
        check().unwrap();
    }

    #[test]
    fn licences_are_read_as_alternatives() {
        assert!(licence_fits("MIT OR GPL-3.0"));
        assert!(licence_fits("MIT/Apache-2.0"));
        assert!(licence_fits("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!licence_fits("GPL-3.0-or-later"));
        assert!(!licence_fits("MIT AND GPL-2.0"));
        assert!(!licence_fits(""));
    }

    #[test]
    fn a_wing_that_uses_the_lab_is_found() {
        let rooms = BTreeMap::from([("a", Some("storage/csi".to_owned())), ("b", Some("lab/store".to_owned()))]);
        let package = serde_json::json!({
            "name": "a", "manifest_path": concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
            "dependencies": [{ "name": "b", "kind": null }, { "name": "b", "kind": "dev" }],
        });
        assert_eq!(member(&package, &rooms).unwrap(), ["a (storage/csi) must not use b (lab/store)"]);
    }
}
