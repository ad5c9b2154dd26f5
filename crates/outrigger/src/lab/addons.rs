//! The objects that a lab is born with: the same files that a user applies to a real cluster.

use anyhow::{Context as _, Result, bail};
use outrigger_lab_apiserver::{Client, Patch, Resource, WriteOptions};
use serde_json::Value;

/// Owner of the fields that the lab sets in these objects.
pub(crate) const FIELD_MANAGER: &str = "outrigger-lab";

/// A manifest of `deploy/`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manifest {
    /// Its path in the project.
    pub path: &'static str,
    /// Its text: one or more YAML documents.
    pub text: &'static str,
}

macro_rules! manifest {
    ($path:literal) => {
        Manifest { path: $path, text: include_str!(concat!("../../../../deploy/", $path)) }
    };
}

/// What the storage wing needs in a cluster.
pub(crate) const STORAGE: &[Manifest] =
    &[manifest!("storage/csidriver.yaml"), manifest!("storage/storageclasses.yaml")];

/// The documents of a manifest, as objects.
pub(crate) fn documents(manifest: Manifest) -> Result<Vec<Value>> {
    manifest
        .text
        .split("\n---\n")
        .map(|document| {
            serde_saphyr::from_str(document).with_context(|| format!("deploy/{} is not valid YAML", manifest.path))
        })
        .collect()
}

/// Creates a cluster-scoped object, or brings it up to date, by server-side apply.
pub(crate) async fn apply(client: &Client, object: Value) -> Result<()> {
    let resource = match (object["apiVersion"].as_str(), object["kind"].as_str()) {
        (Some("storage.k8s.io/v1"), Some("CSIDriver")) => Resource::new("storage.k8s.io", "v1", "csidrivers"),
        (Some("storage.k8s.io/v1"), Some("StorageClass")) => Resource::new("storage.k8s.io", "v1", "storageclasses"),
        (version, kind) => bail!("nothing is known of {version:?} {kind:?}"),
    };
    let name = object["metadata"]["name"].as_str().context("an object without a name")?.to_owned();
    let options =
        WriteOptions { field_manager: Some(FIELD_MANAGER.to_owned()), force: true, ..WriteOptions::default() };
    match client.patch(&resource, "", &name, &Patch::Apply(object), &options).await {
        Ok(_) => Ok(()),
        Err(error) => bail!("{name}: {}", error.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_manifests_are_objects() {
        for manifest in STORAGE {
            for object in documents(*manifest).unwrap() {
                assert!(
                    object["kind"].is_string() && object["metadata"]["name"].is_string(),
                    "{}: {object}",
                    manifest.path
                );
            }
        }
    }
}
