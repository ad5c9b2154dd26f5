//! From a claim and its class to a plan: everything that one `CreateVolume` call and the volume object made of its answer need.
//!
//! A plan is self-contained. It is made once, recorded before the first call (see [`record`](super::record)), and replayed
//! as it stands until the outcome is definite, whatever happens to claim, class and nodes meanwhile: CSI demands that a
//! call whose outcome is unknown is repeated with the very same arguments. Only the secret's *contents* are read anew for
//! each call, because they must not be written down.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeSpec, SecretReference,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use outrigger_csi::proto;
use proto::volume_capability::access_mode::Mode;
use serde::{Deserialize, Serialize};

use super::names;
use super::objects::{Claim, Class};
use super::storage_class::{self, ParameterError, SecretPurpose, TemplateClaim};
use super::topology::Requirement;
use crate::quantity::{self, QuantityError};

/// The settings that shape plans; they mirror the flags of the same names.
#[derive(Debug, Clone)]
pub struct PlanSettings {
    /// Name of the driver.
    pub driver: String,
    /// `--volume-name-prefix`.
    pub volume_name_prefix: String,
    /// `--volume-name-uuid-length`; `None` keeps the whole UID.
    pub volume_name_uuid_length: Option<usize>,
    /// `--default-fstype`.
    pub default_fs_type: String,
    /// `--extra-create-metadata`.
    pub extra_create_metadata: bool,
    /// `--controller-publish-readonly`.
    pub controller_publish_readonly: bool,
    /// Whether the driver has `SINGLE_NODE_MULTI_WRITER`.
    pub single_node_multi_writer: bool,
}

/// Why a claim cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The class's parameters.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// The requested size.
    #[error("failed to read the requested storage: {0}")]
    Size(#[from] QuantityError),
    /// The claim wants an existing volume.
    #[error("claim Selector is not supported")]
    Selector,
    /// The claim has no UID: it does not come from an API server.
    #[error("corrupted PVC object, it is missing UID")]
    NoUid,
    /// The access modes contradict each other.
    #[error("PVC access modes {0:?} can not be combined")]
    AccessModes(Vec<String>),
    /// An access mode that does not exist.
    #[error("unsupported access mode {0:?}")]
    UnknownAccessMode(String),
}

/// How the volume is accessed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Access {
    /// As a raw block device.
    Block,
    /// As a mounted filesystem.
    #[serde(rename_all = "camelCase")]
    Mount {
        /// Filesystem type; empty = the driver's choice.
        fs_type: String,
        /// Mount options of the class.
        flags: Vec<String>,
    },
}

/// Where the content comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ContentSource {
    /// A clone of the volume with this CSI id.
    Volume(String),
    /// The snapshot with this CSI id.
    Snapshot(String),
}

/// One volume to be made. See the [module](self).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// CSI name of the volume, which is also the name of the volume object.
    pub name: String,
    /// Least size in bytes.
    pub required_bytes: i64,
    /// The claim's access modes as CSI numbers them, in the claim's order.
    pub access_modes: Vec<i32>,
    /// Block or mount.
    pub access: Access,
    /// Opaque parameters for the driver.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// Parameters of the volume attributes class.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mutable_parameters: BTreeMap<String, String>,
    /// First content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ContentSource>,
    /// Accessibility requirement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Requirement>,
    /// Secret whose contents accompany the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretReference>,
    /// The node for which the volume is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected_node: Option<String>,
    /// The volume object, complete but for what the driver answers.
    pub template: PersistentVolume,
}

/// The parts of a plan that come from other objects than claim and class.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// Accessibility requirement.
    pub topology: Option<Requirement>,
    /// First content.
    pub source: Option<ContentSource>,
    /// Parameters of the volume attributes class.
    pub mutable_parameters: BTreeMap<String, String>,
}

/// The name of the volume for a claim: the prefix and the claim's UID, shortened if so configured.
pub fn volume_name(settings: &PlanSettings, uid: &str) -> String {
    match settings.volume_name_uuid_length {
        None => format!("{}-{uid}", settings.volume_name_prefix),
        Some(length) => {
            let short: String = uid.chars().filter(|c| *c != '-').take(length).collect();
            format!("{}-{short}", settings.volume_name_prefix)
        }
    }
}

/// Makes the plan for one claim.
pub fn plan(settings: &PlanSettings, claim: &Claim, class: &Class, extras: Extras) -> Result<Plan, PlanError> {
    if claim.uid.is_empty() {
        return Err(PlanError::NoUid);
    }
    if claim.has_selector {
        return Err(PlanError::Selector);
    }
    let name = volume_name(settings, &claim.uid);
    let fs_type = storage_class::fs_type(&class.parameters, &settings.default_fs_type)?;
    let required_bytes = quantity::bytes(&claim.requested)?;
    let access_modes = access_modes(&claim.access_modes, settings.single_node_multi_writer)?;
    let template_claim =
        TemplateClaim { namespace: &claim.namespace, name: &claim.name, annotations: &claim.annotations };
    let secret = |purpose| storage_class::secret_reference(purpose, &class.parameters, &name, Some(template_claim));
    let provisioner_secret = secret(SecretPurpose::Provisioner)?;
    let modify_secret = secret(SecretPurpose::ControllerModify)?;
    let source = CSIPersistentVolumeSource {
        driver: settings.driver.clone(),
        fs_type: (!claim.is_block() && !fs_type.is_empty()).then(|| fs_type.clone()),
        read_only: (settings.controller_publish_readonly && access_modes == [Mode::MultiNodeReaderOnly as i32])
            .then_some(true),
        controller_publish_secret_ref: secret(SecretPurpose::ControllerPublish)?,
        node_stage_secret_ref: secret(SecretPurpose::NodeStage)?,
        node_publish_secret_ref: secret(SecretPurpose::NodePublish)?,
        controller_expand_secret_ref: secret(SecretPurpose::ControllerExpand)?,
        node_expand_secret_ref: secret(SecretPurpose::NodeExpand)?,
        ..CSIPersistentVolumeSource::default()
    };
    let mut parameters = storage_class::driver_parameters(&class.parameters)?;
    if settings.extra_create_metadata {
        parameters.insert(names::METADATA_CLAIM_NAME.to_owned(), claim.name.clone());
        parameters.insert(names::METADATA_CLAIM_NAMESPACE.to_owned(), claim.namespace.clone());
        parameters.insert(names::METADATA_VOLUME_NAME.to_owned(), name.clone());
    }
    let access =
        if claim.is_block() { Access::Block } else { Access::Mount { fs_type, flags: class.mount_options.clone() } };
    let template = PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some(annotations(class, provisioner_secret.as_ref(), modify_secret)),
            // A volume that is kept by its policy needs no guard.
            finalizers: Some(vec![names::VOLUME_FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(claim.access_modes.clone()),
            claim_ref: Some(claim_reference(claim)),
            csi: Some(source),
            mount_options: (!class.mount_options.is_empty()).then(|| class.mount_options.clone()),
            persistent_volume_reclaim_policy: class.reclaim_policy.clone(),
            storage_class_name: Some(claim.class.clone()),
            volume_attributes_class_name: claim.attributes_class.clone(),
            volume_mode: claim.volume_mode.clone(),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    };
    Ok(Plan {
        name,
        required_bytes,
        access_modes,
        access,
        parameters,
        mutable_parameters: extras.mutable_parameters,
        source: extras.source,
        topology: extras.topology,
        secret: provisioner_secret,
        selected_node: claim.selected_node().map(str::to_owned),
        template,
    })
}

fn annotations(
    class: &Class,
    provisioner_secret: Option<&SecretReference>,
    modify_secret: Option<SecretReference>,
) -> BTreeMap<String, String> {
    let part = |value: Option<&String>| value.cloned().unwrap_or_default();
    let mut annotations = BTreeMap::from([
        (names::PROVISIONED_BY.to_owned(), class.provisioner.clone()),
        // Written even when empty: that says "no secret", where their absence says "ask the class".
        (names::DELETION_SECRET_NAME.to_owned(), part(provisioner_secret.and_then(|secret| secret.name.as_ref()))),
        (
            names::DELETION_SECRET_NAMESPACE.to_owned(),
            part(provisioner_secret.and_then(|secret| secret.namespace.as_ref())),
        ),
    ]);
    if let Some(secret) = modify_secret {
        annotations.insert(names::MODIFY_SECRET_NAME.to_owned(), secret.name.unwrap_or_default());
        annotations.insert(names::MODIFY_SECRET_NAMESPACE.to_owned(), secret.namespace.unwrap_or_default());
    }
    annotations
}

fn claim_reference(claim: &Claim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: Some(claim.namespace.clone()),
        name: Some(claim.name.clone()),
        uid: Some(claim.uid.clone()),
        resource_version: Some(claim.resource_version.clone()).filter(|version| !version.is_empty()),
        field_path: None,
    }
}

/// Each of the claim's access modes as CSI knows it. Drivers with `SINGLE_NODE_MULTI_WRITER` tell one writer from many on a node.
fn access_modes(modes: &[String], single_node_multi_writer: bool) -> Result<Vec<i32>, PlanError> {
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        return Err(PlanError::AccessModes(modes.to_vec()));
    }
    modes
        .iter()
        .map(|mode| {
            Ok(match (mode.as_str(), single_node_multi_writer) {
                ("ReadWriteMany", _) => Mode::MultiNodeMultiWriter,
                ("ReadOnlyMany", _) => Mode::MultiNodeReaderOnly,
                ("ReadWriteOnce" | "ReadWriteOncePod", false) => Mode::SingleNodeWriter,
                ("ReadWriteOnce", true) => Mode::SingleNodeMultiWriter,
                ("ReadWriteOncePod", true) => Mode::SingleNodeSingleWriter,
                _ => return Err(PlanError::UnknownAccessMode(mode.clone())),
            } as i32)
        })
        .collect()
}

impl Plan {
    /// UID of the claim.
    pub fn claim_uid(&self) -> &str {
        self.claim_ref().and_then(|claim| claim.uid.as_deref()).unwrap_or_default()
    }

    /// The claim.
    pub fn claim_ref(&self) -> Option<&ObjectReference> {
        self.template.spec.as_ref()?.claim_ref.as_ref()
    }

    /// Name of the class.
    pub fn class(&self) -> &str {
        self.template.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default()
    }

    /// The call, without its secrets.
    pub fn request(&self) -> proto::CreateVolumeRequest {
        use proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
        use proto::volume_content_source::{SnapshotSource, Type, VolumeSource};

        let access_type = match &self.access {
            Access::Block => AccessType::Block(BlockVolume {}),
            Access::Mount { fs_type, flags } => AccessType::Mount(MountVolume {
                fs_type: fs_type.clone(),
                mount_flags: flags.clone(),
                ..MountVolume::default()
            }),
        };
        let source = self.source.as_ref().map(|source| match source {
            ContentSource::Volume(id) => Type::Volume(VolumeSource { volume_id: id.clone() }),
            ContentSource::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.clone() }),
        });
        proto::CreateVolumeRequest {
            name: self.name.clone(),
            capacity_range: Some(proto::CapacityRange { required_bytes: self.required_bytes, limit_bytes: 0 }),
            volume_capabilities: self
                .access_modes
                .iter()
                .map(|mode| proto::VolumeCapability {
                    access_type: Some(access_type.clone()),
                    access_mode: Some(AccessMode { mode: *mode }),
                })
                .collect(),
            parameters: self.parameters.clone().into_iter().collect(),
            mutable_parameters: self.mutable_parameters.clone().into_iter().collect(),
            volume_content_source: source.map(|source| proto::VolumeContentSource { r#type: Some(source) }),
            accessibility_requirements: self.topology.as_ref().map(Requirement::to_proto),
            ..proto::CreateVolumeRequest::default()
        }
    }
}
