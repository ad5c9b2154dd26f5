//! The plugins' pages, docs/cni/*.md, made from the plugins' own definitions.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use outrigger_cni_plugins::Session;
use outrigger_cni_plugins::registry::{PLUGINS, plugin};
use outrigger_cni_sdk::{DynPlugin, docs};
use serde_json::Value;

/// Set by `make generate`: write the pages instead of comparing them.
const UPDATE: &str = "OUTRIGGER_UPDATE";

#[test]
fn the_committed_pages_are_what_the_plugins_say() {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cni"));
    let session = Session::default();
    let mut pages: BTreeMap<String, String> = PLUGINS
        .iter()
        .map(|(name, _)| (format!("{name}.md"), docs::page(name, &*plugin(name, &session).unwrap())))
        .collect();
    let all = PLUGINS.iter().map(|(name, make)| (*name, make(&session)));
    pages.insert("README.md".to_owned(), docs::index(all));
    if std::env::var_os(UPDATE).is_some() {
        fs_err::create_dir_all(dir).unwrap();
        for entry in fs_err::read_dir(dir).unwrap() {
            fs_err::remove_file(entry.unwrap().path()).unwrap();
        }
        for (name, page) in &pages {
            fs_err::write(dir.join(name), page).unwrap();
        }
        return;
    }
    let committed: BTreeMap<String, String> = fs_err::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs_err::read_to_string(path).unwrap()))
        .collect();
    for name in committed.keys().chain(pages.keys()) {
        assert!(
            committed.get(name) == pages.get(name),
            "docs/cni/{name} is not what the plugin says; run: make generate"
        );
    }
}

/// Keys that any plugin's object may have, whatever the plugin.
const COMMON: &[&str] = &["type", "capabilities", "ipam", "dns"];

#[test]
fn every_plugin_is_documented_and_its_example_uses_keys_that_it_has() {
    let session = Session::default();
    let faults: Vec<String> = PLUGINS.iter().flat_map(|(name, make)| faults(name, &*make(&session))).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What is wrong with a plugin's documentation.
fn faults(name: &str, plugin: &dyn DynPlugin) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |fine: bool, what: &dyn Fn() -> String| {
        if !fine {
            faults.push(format!("{name}: {}", what()));
        }
    };
    check(!plugin.summary().trim().is_empty(), &|| "no summary".to_owned());
    for key in plugin.keys() {
        check(!key.doc.trim().is_empty(), &|| format!("not a word about {}", key.name));
    }
    if name.starts_with("win-") {
        return faults;
    }
    let doc = plugin.documentation();
    for (command, said) in [("ADD", doc.add), ("CHECK", doc.check), ("DEL", doc.del)] {
        check(!said.trim().is_empty(), &|| format!("not a word about {command}"));
    }
    let example: Value = match serde_json::from_str(doc.example) {
        Ok(example) => example,
        Err(error) => {
            check(false, &|| format!("the example is not JSON: {error}"));
            return faults;
        }
    };
    for key in ["cniVersion", "name"] {
        check(example[key].is_string(), &|| format!("the example has no {key}"));
    }
    let plugins = example["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    let own = plugins.iter().find(|object| object["type"] == name);
    let as_ipam = plugins.iter().find(|object| object["ipam"]["type"] == name);
    check(own.or(as_ipam).is_some(), &|| "it is not in its example".to_owned());
    for key in own.into_iter().flat_map(|object| object.as_object().into_iter().flatten().map(|(key, _)| key)) {
        let known = COMMON.contains(&key.as_str()) || plugin.keys().iter().any(|known| known.name == key);
        check(known, &|| format!("the example's key {key} is not documented"));
    }
    // The fast chain's capabilities are those of the plugins in it.
    let capabilities = own.filter(|_| name != "outrigger").and_then(|object| object["capabilities"].as_object());
    for capability in capabilities.into_iter().flatten().map(|(key, _)| key) {
        let known = doc.capabilities.iter().any(|(known, _)| known == capability);
        check(known, &|| format!("the example's capability {capability} is not documented"));
    }
    faults
}
