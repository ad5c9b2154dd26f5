//! The plugins' pages, docs/cni/*.md, made from the plugins' own definitions.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use outrigger_cni_plugins::Session;
use outrigger_cni_plugins::registry::{PLUGINS, plugin};
use outrigger_cni_sdk::docs;
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
    for (name, make) in PLUGINS {
        let plugin = make(&session);
        assert!(!plugin.summary().trim().is_empty(), "{name} has no summary");
        assert!(plugin.keys().iter().all(|key| !key.doc.trim().is_empty()), "{name} has keys without a word");
        if name.starts_with("win-") {
            continue;
        }
        let doc = plugin.documentation();
        for (command, said) in [("ADD", doc.add), ("CHECK", doc.check), ("DEL", doc.del)] {
            assert!(!said.trim().is_empty(), "{name} does not say what {command} does");
        }
        let example: Value = serde_json::from_str(doc.example)
            .unwrap_or_else(|error| panic!("{name}: its example is not JSON: {error}\n{}", doc.example));
        for key in ["cniVersion", "name"] {
            assert!(example[key].is_string(), "{name}: its example has no {key}");
        }
        let plugins = example["plugins"].as_array().unwrap_or_else(|| panic!("{name}: its example is no list"));
        let own = plugins.iter().find(|object| object["type"] == *name);
        let as_ipam = plugins.iter().find(|object| object["ipam"]["type"] == *name);
        let object = own.or(as_ipam).unwrap_or_else(|| panic!("{name} is not in its example"));
        for key in own.into_iter().flat_map(|object| object.as_object().unwrap().keys()) {
            let known = COMMON.contains(&key.as_str()) || plugin.keys().iter().any(|known| known.name == key);
            assert!(known, "{name}: the key {key} of its example is not documented");
        }
        let capabilities = object["capabilities"].as_object().into_iter().flatten().map(|(key, _)| key);
        // The fast chain's are those of the plugins in it.
        for capability in capabilities.filter(|_| own.is_some() && *name != "outrigger") {
            let known = doc.capabilities.iter().any(|(known, _)| known == capability);
            assert!(known, "{name}: the capability {capability} of its example is not documented");
        }
    }
}
