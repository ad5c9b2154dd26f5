//! Discovery: which groups, versions and resources there are, in the legacy and the aggregated form.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::kinds::{Group, KindInfo, Registry, Subresource};
use crate::negotiate::{accept, clauses};

/// `/api`
pub(crate) fn core_versions(registry: &Registry, server: &str) -> Value {
    let address = server.trim_start_matches("https://");
    let versions = registry.group("").map(|group| group.versions.clone()).unwrap_or_default();
    json!({
        "kind": "APIVersions",
        "versions": versions,
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `/apis`
pub(crate) fn groups(registry: &Registry) -> Value {
    let groups: Vec<Value> =
        registry.groups().iter().filter(|group| !group.name.is_empty()).map(|entry| group(entry, false)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`
pub(crate) fn group(group: &Group, with_type: bool) -> Value {
    let version = |version: &str| json!({"groupVersion": format!("{}/{version}", group.name), "version": version});
    let versions: Vec<Value> = group.versions.iter().map(|name| version(name)).collect();
    let mut value = json!({
        "name": group.name,
        "versions": versions,
        "preferredVersion": group.versions.first().map(|name| version(name)),
    });
    if with_type {
        value["kind"] = json!("APIGroup");
        value["apiVersion"] = json!("v1");
    }
    value
}

/// `/api/v1`, `/apis/<group>/<version>`
pub(crate) fn resources<'a>(group: &str, version: &str, kinds: impl Iterator<Item = &'a KindInfo>) -> Value {
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let mut list = Vec::new();
    for kind in kinds {
        let mut entry = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": kind.verbs.names(),
        });
        if !kind.short_names.is_empty() {
            entry["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            entry["categories"] = json!(kind.categories);
        }
        if !kind.rules.virtual_kind {
            entry["storageVersionHash"] = json!(storage_hash(kind));
        }
        list.push(entry);
        for sub in &kind.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", kind.plural, sub.name),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": kind.kind,
                "verbs": sub.verbs.names(),
            });
            if let Some((group, version, name)) = sub.foreign {
                entry["kind"] = json!(name);
                if (group, version) != (&*kind.group, &*kind.version) {
                    entry["group"] = json!(group);
                    entry["version"] = json!(version);
                }
            }
            list.push(entry);
        }
    }
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list})
}

/// Tells clients when the stored version of a kind changes.
fn storage_hash(kind: &KindInfo) -> String {
    let digest = Sha256::digest(format!("{}/{}", kind.storage_api_version, kind.kind));
    STANDARD.encode(&digest[..8])
}

/// The aggregated form if the client prefers it: its version (`v2` or `v2beta1`).
pub(crate) fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    for clause in clauses(&accept(headers)) {
        if clause.media != "application/json" && clause.media != "*/*" {
            continue;
        }
        // A plain alternative that comes first is what the client prefers.
        let form = clause.param("as")?;
        if form == "APIGroupDiscoveryList" && clause.param("g") == Some("apidiscovery.k8s.io") {
            match clause.param("v") {
                Some("v2") => return Some("v2"),
                Some("v2beta1") => return Some("v2beta1"),
                _ => {}
            }
        }
    }
    None
}

/// The Content-Type of the aggregated form.
pub(crate) fn aggregated_content_type(version: &str) -> &'static str {
    if version == "v2" {
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    } else {
        "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
    }
}

/// `/api` (core only) or `/apis` (all others) in the aggregated form.
pub(crate) fn aggregated(registry: &Registry, core: bool, version: &str) -> Value {
    let items: Vec<Value> = registry
        .groups()
        .iter()
        .filter(|group| group.name.is_empty() == core)
        .map(|group| {
            let versions: Vec<Value> = group
                .versions
                .iter()
                .map(|version| {
                    let kinds = registry.version(&group.name, version).into_iter().flat_map(|kinds| kinds.values());
                    let resources: Vec<Value> = kinds.map(|kind| aggregated_resource(kind)).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if core {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group.name, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(kind: &KindInfo) -> Value {
    let subresource = |sub: &Subresource| {
        let (group, version, name) = sub.foreign.unwrap_or((&kind.group, &kind.version, &kind.kind));
        json!({
            "subresource": sub.name,
            "responseKind": {"group": group, "version": version, "kind": name},
            "verbs": sub.verbs.names(),
        })
    };
    let mut entry = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs.names(),
    });
    if !kind.short_names.is_empty() {
        entry["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        entry["categories"] = json!(kind.categories);
    }
    if !kind.subresources.is_empty() {
        entry["subresources"] = kind.subresources.iter().map(subresource).collect();
    }
    entry
}

/// `/version`. Clients parse major and minor.
pub(crate) fn version(git_version: &str) -> Value {
    let mut numbers = git_version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
    json!({
        "major": major,
        "minor": minor,
        "emulationMajor": major,
        "emulationMinor": minor,
        "minCompatibilityMajor": major,
        "minCompatibilityMinor": minor,
        "gitVersion": git_version,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "2026-11-01T00:00:00Z",
        "goVersion": "go1.26",
        "compiler": "gc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}
