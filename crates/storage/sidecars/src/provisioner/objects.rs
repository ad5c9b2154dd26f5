//! What the provisioner keeps of API objects: only the fields it decides by, so that a cache of ten thousand volumes costs
//! a few megabytes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::storage::v1 as storage;
use kube::ResourceExt;

use super::names;
use super::topology::AllowedTerm;

/// A claim that waits for a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Name of the class; the old annotation wins over the field.
    pub class: String,
    /// Name of the volume to which the claim is bound, or empty.
    pub volume_name: String,
    /// `spec.accessModes`.
    pub access_modes: Vec<String>,
    /// `spec.volumeMode`.
    pub volume_mode: Option<String>,
    /// Requested storage as it was written.
    pub requested: String,
    /// Whether the claim selects existing volumes by label.
    pub has_selector: bool,
    /// What the volume is to be filled with.
    pub source: Option<DataSource>,
    /// `spec.volumeAttributesClassName`, when not empty.
    pub attributes_class: Option<String>,
}

/// Where a volume's first content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSource {
    /// API group; empty for the core group.
    pub group: String,
    /// Kind, for instance `PersistentVolumeClaim`.
    pub kind: String,
    /// Name of the object.
    pub name: String,
    /// Namespace of the object when it is not the claim's.
    pub namespace: Option<String>,
}

impl Claim {
    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The driver that is asked for a volume, if any.
    pub fn provisioner(&self) -> Option<&str> {
        self.annotations
            .get(names::STORAGE_PROVISIONER)
            .or_else(|| self.annotations.get(names::STORAGE_PROVISIONER_BETA))
            .map(String::as_str)
    }

    /// Whether `driver` has to provide for this claim.
    pub fn is_for(&self, driver: &str) -> bool {
        self.provisioner() == Some(driver) || self.annotations.get(names::MIGRATED_TO).is_some_and(|to| to == driver)
    }

    /// The node that the scheduler chose, if any.
    pub fn selected_node(&self) -> Option<&str> {
        self.annotations.get(names::SELECTED_NODE).map(String::as_str).filter(|node| !node.is_empty())
    }

    /// Whether the volume is a raw block device.
    pub fn is_block(&self) -> bool {
        self.volume_mode.as_deref() == Some("Block")
    }
}

impl From<core::PersistentVolumeClaim> for Claim {
    fn from(object: core::PersistentVolumeClaim) -> Self {
        let spec = object.spec.unwrap_or_default();
        let annotations = object.metadata.annotations.unwrap_or_default();
        let source = match (spec.data_source_ref, spec.data_source) {
            (Some(source), _) => Some(DataSource {
                group: source.api_group.unwrap_or_default(),
                kind: source.kind,
                name: source.name,
                namespace: source.namespace.filter(|ns| Some(ns) != object.metadata.namespace.as_ref()),
            }),
            (None, Some(source)) => Some(DataSource {
                group: source.api_group.unwrap_or_default(),
                kind: source.kind,
                name: source.name,
                namespace: None,
            }),
            (None, None) => None,
        };
        Self {
            namespace: object.metadata.namespace.unwrap_or_default(),
            name: object.metadata.name.unwrap_or_default(),
            uid: object.metadata.uid.unwrap_or_default(),
            resource_version: object.metadata.resource_version.unwrap_or_default(),
            class: annotations.get(names::STORAGE_CLASS_BETA).cloned().or(spec.storage_class_name).unwrap_or_default(),
            annotations,
            volume_name: spec.volume_name.unwrap_or_default(),
            access_modes: spec.access_modes.unwrap_or_default(),
            volume_mode: spec.volume_mode,
            requested: spec
                .resources
                .and_then(|resources| resources.requests)
                .and_then(|mut requests| requests.remove("storage"))
                .map_or_else(|| "0".to_owned(), |quantity| quantity.0),
            has_selector: spec.selector.is_some(),
            source,
            attributes_class: spec.volume_attributes_class_name.filter(|name| !name.is_empty()),
        }
    }
}

/// A storage class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`; another one means that the class was made anew.
    pub uid: String,
    /// The driver.
    pub provisioner: String,
    /// `parameters`.
    pub parameters: BTreeMap<String, String>,
    /// `mountOptions`.
    pub mount_options: Vec<String>,
    /// `reclaimPolicy`; the API server fills in `Delete`.
    pub reclaim_policy: Option<String>,
    /// Whether volumes are made only when a pod is scheduled.
    pub waits_for_consumer: bool,
    /// `allowedTopologies`.
    pub allowed_topologies: Vec<AllowedTerm>,
}

impl From<storage::StorageClass> for Class {
    fn from(object: storage::StorageClass) -> Self {
        let allowed = object.allowed_topologies.unwrap_or_default().into_iter().map(|term| {
            let expressions = term.match_label_expressions.unwrap_or_default();
            expressions.into_iter().map(|e| (e.key, e.values)).collect()
        });
        Self {
            name: object.metadata.name.unwrap_or_default(),
            uid: object.metadata.uid.unwrap_or_default(),
            provisioner: object.provisioner,
            parameters: object.parameters.unwrap_or_default(),
            mount_options: object.mount_options.unwrap_or_default(),
            reclaim_policy: object.reclaim_policy,
            waits_for_consumer: object.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            allowed_topologies: allowed.collect(),
        }
    }
}

/// A persistent volume of this driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `status.phase`.
    pub phase: String,
    /// `spec.persistentVolumeReclaimPolicy`.
    pub reclaim_policy: String,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// Whether [`names::VOLUME_FINALIZER`] is there.
    pub has_finalizer: bool,
    /// Whether this driver's provisioner made it (rather than an administrator).
    pub dynamic: bool,
}

impl Volume {
    /// The volume, if it is one of `driver`.
    pub fn of_driver(object: &core::PersistentVolume, driver: &str) -> Option<Self> {
        let spec = object.spec.as_ref()?;
        // Volumes of built-in plugins that the driver took over have another source, which only their own code can translate.
        let ours = spec.csi.as_ref().is_some_and(|csi| csi.driver == driver);
        ours.then(|| Self {
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            phase: object.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default(),
            reclaim_policy: spec.persistent_volume_reclaim_policy.clone().unwrap_or_default(),
            deleting: object.metadata.deletion_timestamp.is_some(),
            has_finalizer: object.finalizers().iter().any(|name| name == names::VOLUME_FINALIZER),
            dynamic: object.annotations().get(names::PROVISIONED_BY).is_some_and(|by| by == driver),
        })
    }
}
