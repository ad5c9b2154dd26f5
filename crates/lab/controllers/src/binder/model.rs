//! What the binder needs to know of volumes, claims and classes.

use std::collections::BTreeMap;

use outrigger_lab_machinery::quantity::Quantity;
use outrigger_lab_machinery::selector;
use serde_json::Value;

use crate::object::{annotation, at, is_terminating, list, text};

/// Set to "yes" on a claim once all steps of its binding are done.
pub(crate) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Set to "yes" on whichever side of a binding the controller chose, as opposed to the user.
pub(crate) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Names the driver on volumes that a provisioner made.
pub(crate) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Asks a provisioner for a volume for this claim.
pub(crate) const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The same, as provisioners before 1.23 read it.
pub(crate) const STORAGE_PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// The node that the scheduler chose for the claim's first consumer.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_CLASS_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";
/// The provisioner of classes whose volumes are made by hand.
pub(crate) const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Namespace and name of a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ClaimKey {
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for ClaimKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A volume's reference to its claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClaimRef {
    pub key: ClaimKey,
    /// Empty as long as the claim is only named.
    pub uid: String,
}

/// A PersistentVolume.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Volume {
    pub name: String,
    pub revision: u64,
    pub class: String,
    pub attributes_class: String,
    pub capacity: Option<Quantity>,
    pub access_modes: Vec<String>,
    pub block: bool,
    pub labels: BTreeMap<String, String>,
    pub claim: Option<ClaimRef>,
    pub bound_by_controller: bool,
    pub provisioned: bool,
    pub reclaim_delete: bool,
    pub phase: String,
    pub deleting: bool,
}

impl Volume {
    pub(crate) fn new(value: &Value, revision: u64) -> Self {
        let claim = at(value, &["spec", "claimRef"]).map(|claim| ClaimRef {
            key: ClaimKey {
                namespace: text(claim, &["namespace"]).to_owned(),
                name: text(claim, &["name"]).to_owned(),
            },
            uid: text(claim, &["uid"]).to_owned(),
        });
        let class = match annotation(value, CLASS_BETA) {
            "" => text(value, &["spec", "storageClassName"]),
            class => class,
        };
        let labels = at(value, &["metadata", "labels"]).and_then(Value::as_object);
        let labels =
            labels.into_iter().flatten().filter_map(|(name, label)| Some((name.clone(), label.as_str()?.to_owned())));
        Self {
            name: text(value, &["metadata", "name"]).to_owned(),
            revision,
            class: class.to_owned(),
            attributes_class: text(value, &["spec", "volumeAttributesClassName"]).to_owned(),
            capacity: text(value, &["spec", "capacity", "storage"]).parse().ok(),
            access_modes: texts(value, &["spec", "accessModes"]),
            block: text(value, &["spec", "volumeMode"]) == "Block",
            labels: labels.collect(),
            claim,
            bound_by_controller: !annotation(value, BOUND_BY_CONTROLLER).is_empty(),
            provisioned: !annotation(value, PROVISIONED_BY).is_empty(),
            reclaim_delete: text(value, &["spec", "persistentVolumeReclaimPolicy"]) == "Delete",
            phase: text(value, &["status", "phase"]).to_owned(),
            deleting: is_terminating(value),
        }
    }

    /// Whether the volume is, or is meant to be, this claim's.
    pub(crate) fn is_for(&self, claim: &Claim) -> bool {
        self.claim.as_ref().is_some_and(|of| of.key == claim.key && (of.uid.is_empty() || of.uid == claim.uid))
    }
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub key: ClaimKey,
    pub uid: String,
    pub revision: u64,
    /// None if the claim leaves it to the default class.
    pub class: Option<String>,
    pub attributes_class: String,
    pub request: Option<Quantity>,
    pub access_modes: Vec<String>,
    pub block: bool,
    /// None if the selector cannot be parsed: then nothing matches.
    pub selector: Option<selector::Label>,
    /// Empty as long as no volume is chosen.
    pub volume: String,
    pub bind_completed: bool,
    pub provisioner: String,
    pub provisioner_beta: String,
    pub selected_node: bool,
    pub phase: String,
    pub deleting: bool,
    /// `status.capacity.storage` and `status.accessModes`.
    pub shown: (String, Vec<String>),
}

impl Claim {
    pub(crate) fn new(value: &Value, revision: u64) -> Self {
        let class = match annotation(value, CLASS_BETA) {
            "" => at(value, &["spec", "storageClassName"]).and_then(Value::as_str),
            class => Some(class),
        };
        let selector = match at(value, &["spec", "selector"]) {
            Some(selector) => selector::Label::from_object(selector).ok(),
            None => Some(selector::Label::everything()),
        };
        Self {
            key: ClaimKey {
                namespace: text(value, &["metadata", "namespace"]).to_owned(),
                name: text(value, &["metadata", "name"]).to_owned(),
            },
            uid: text(value, &["metadata", "uid"]).to_owned(),
            revision,
            class: class.map(str::to_owned),
            attributes_class: text(value, &["spec", "volumeAttributesClassName"]).to_owned(),
            request: text(value, &["spec", "resources", "requests", "storage"]).parse().ok(),
            access_modes: texts(value, &["spec", "accessModes"]),
            block: text(value, &["spec", "volumeMode"]) == "Block",
            selector,
            volume: text(value, &["spec", "volumeName"]).to_owned(),
            bind_completed: !annotation(value, BIND_COMPLETED).is_empty(),
            provisioner: annotation(value, STORAGE_PROVISIONER).to_owned(),
            provisioner_beta: annotation(value, STORAGE_PROVISIONER_BETA).to_owned(),
            selected_node: !annotation(value, SELECTED_NODE).is_empty(),
            phase: text(value, &["status", "phase"]).to_owned(),
            deleting: is_terminating(value),
            shown: (
                text(value, &["status", "capacity", "storage"]).to_owned(),
                texts(value, &["status", "accessModes"]),
            ),
        }
    }
}

/// A StorageClass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    pub name: String,
    pub provisioner: String,
    pub wait_for_consumer: bool,
    /// Set if the class is a default one: when it was made.
    pub default_since: Option<String>,
}

impl Class {
    pub(crate) fn new(value: &Value) -> Self {
        let default = [DEFAULT_CLASS, DEFAULT_CLASS_BETA].iter().any(|name| annotation(value, name) == "true");
        Self {
            name: text(value, &["metadata", "name"]).to_owned(),
            provisioner: text(value, &["provisioner"]).to_owned(),
            wait_for_consumer: text(value, &["volumeBindingMode"]) == "WaitForFirstConsumer",
            default_since: default.then(|| text(value, &["metadata", "creationTimestamp"]).to_owned()),
        }
    }
}

fn texts(value: &Value, path: &[&str]) -> Vec<String> {
    list(value, path).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}
