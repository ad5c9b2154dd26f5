//! The objects that a lab is born with: the same files that a user applies to a real cluster.

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
pub(crate) const STORAGE: &[Manifest] = &[manifest!("storage/csidriver.yaml"), manifest!("storage/storageclasses.yaml")];

/// The documents of a manifest, as objects.
pub(crate) fn documents(manifest: Manifest) -> anyhow::Result<Vec<serde_json::Value>> {
    use anyhow::Context as _;
    manifest
        .text
        .split("\n---\n")
        .map(|document| {
            serde_saphyr::from_str(document).with_context(|| format!("deploy/{} is not valid YAML", manifest.path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_manifests_are_objects() {
        for manifest in STORAGE {
            for object in documents(*manifest).unwrap() {
                assert!(object["kind"].is_string() && object["metadata"]["name"].is_string(), "{}: {object}", manifest.path);
            }
        }
    }
}
