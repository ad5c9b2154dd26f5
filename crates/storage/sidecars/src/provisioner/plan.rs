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
            finalizers: (class.reclaim_policy.as_deref() != Some("Retain"))
                .then(|| vec![names::VOLUME_FINALIZER.to_owned()]),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> PlanSettings {
        PlanSettings {
            driver: "d.example".to_owned(),
            volume_name_prefix: "pvc".to_owned(),
            volume_name_uuid_length: None,
            default_fs_type: "ext4".to_owned(),
            extra_create_metadata: false,
            controller_publish_readonly: true,
            single_node_multi_writer: false,
        }
    }

    fn claim() -> Claim {
        Claim {
            namespace: "shop".to_owned(),
            name: "data".to_owned(),
            uid: "12345678-1234-1234-1234-123456789abc".to_owned(),
            resource_version: "7".to_owned(),
            annotations: BTreeMap::new(),
            class: "fast".to_owned(),
            volume_name: String::new(),
            access_modes: vec!["ReadWriteOnce".to_owned()],
            volume_mode: Some("Filesystem".to_owned()),
            requested: "1.5Gi".to_owned(),
            has_selector: false,
            source: None,
            attributes_class: None,
        }
    }

    fn class() -> Class {
        Class {
            name: "fast".to_owned(),
            uid: "c".to_owned(),
            provisioner: "d.example".to_owned(),
            parameters: BTreeMap::from([("kind".to_owned(), "ssd".to_owned())]),
            mount_options: vec!["noatime".to_owned()],
            reclaim_policy: Some("Delete".to_owned()),
            waits_for_consumer: false,
            allowed_topologies: Vec::new(),
        }
    }

    fn modes(modes: &[&str], many: bool) -> Result<Vec<i32>, PlanError> {
        let modes: Vec<_> = modes.iter().map(|mode| (*mode).to_owned()).collect();
        access_modes(&modes, many)
    }

    #[test]
    fn a_plan_holds_the_call_and_the_volume() {
        let plan = plan(&settings(), &claim(), &class(), Extras::default()).unwrap();
        assert_eq!(plan.name, "pvc-12345678-1234-1234-1234-123456789abc");
        assert_eq!((plan.claim_uid(), plan.class()), (claim().uid.as_str(), "fast"));
        let request = plan.request();
        assert_eq!(request.capacity_range.unwrap().required_bytes, 3 << 29);
        assert_eq!(request.parameters, [("kind".to_owned(), "ssd".to_owned())].into());
        let capability = &request.volume_capabilities[0];
        assert_eq!(capability.access_mode.as_ref().unwrap().mode(), Mode::SingleNodeWriter);
        let Some(proto::volume_capability::AccessType::Mount(mount)) = &capability.access_type else {
            unreachable!("a filesystem is mounted")
        };
        assert_eq!((mount.fs_type.as_str(), mount.mount_flags.as_slice()), ("ext4", &["noatime".to_owned()][..]));
        let annotations = plan.template.metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations[names::DELETION_SECRET_NAME], "");
        assert!(plan.template.metadata.finalizers.is_some());
        // What is written down is what is read back.
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }

    #[test]
    fn block_volumes_have_no_filesystem() {
        let claim = Claim { volume_mode: Some("Block".to_owned()), ..claim() };
        let plan = plan(&settings(), &claim, &class(), Extras::default()).unwrap();
        assert_eq!(plan.access, Access::Block);
        assert_eq!(plan.template.spec.unwrap().csi.unwrap().fs_type, None);
    }

    #[test]
    fn retained_volumes_are_not_guarded() {
        let class = Class { reclaim_policy: Some("Retain".to_owned()), ..class() };
        let plan = plan(&settings(), &claim(), &class, Extras::default()).unwrap();
        assert_eq!(plan.template.metadata.finalizers, None);
    }

    #[test]
    fn volumes_that_are_only_read_may_be_marked_so() {
        let read_only = |modes: &[&str], enabled| {
            let claim = Claim { access_modes: modes.iter().map(|mode| (*mode).to_owned()).collect(), ..claim() };
            let settings = PlanSettings { controller_publish_readonly: enabled, ..settings() };
            let plan = plan(&settings, &claim, &class(), Extras::default()).unwrap();
            plan.template.spec.unwrap().csi.unwrap().read_only
        };
        assert_eq!(read_only(&["ReadOnlyMany"], true), Some(true));
        assert_eq!(read_only(&["ReadOnlyMany"], false), None);
        assert_eq!(read_only(&["ReadOnlyMany", "ReadWriteMany"], true), None);
    }

    #[test]
    fn metadata_on_request() {
        let settings = PlanSettings { extra_create_metadata: true, ..settings() };
        let plan = plan(&settings, &claim(), &class(), Extras::default()).unwrap();
        assert_eq!(plan.parameters["csi.storage.k8s.io/pvc/name"], "data");
        assert_eq!(plan.parameters["csi.storage.k8s.io/pvc/namespace"], "shop");
        assert_eq!(plan.parameters["csi.storage.k8s.io/pv/name"], plan.name);
    }

    #[test]
    fn names_may_be_shortened() {
        let short = PlanSettings { volume_name_uuid_length: Some(10), ..settings() };
        assert_eq!(volume_name(&short, &claim().uid), "pvc-1234567812");
    }

    #[test]
    fn access_modes_by_what_the_driver_can_tell_apart() {
        assert_eq!(modes(&["ReadWriteMany", "ReadOnlyMany"], false), Ok(vec![5, 3]));
        assert_eq!(modes(&["ReadWriteOnce"], false), Ok(vec![Mode::SingleNodeWriter as i32]));
        assert_eq!(modes(&["ReadWriteOnce"], true), Ok(vec![Mode::SingleNodeMultiWriter as i32]));
        assert_eq!(modes(&["ReadWriteOncePod"], false), Ok(vec![Mode::SingleNodeWriter as i32]));
        assert_eq!(modes(&["ReadWriteOncePod"], true), Ok(vec![Mode::SingleNodeSingleWriter as i32]));
        assert!(matches!(modes(&["ReadWriteOncePod", "ReadOnlyMany"], true), Err(PlanError::AccessModes(_))));
        assert!(matches!(modes(&["ReadWriteTwice"], true), Err(PlanError::UnknownAccessMode(_))));
    }

    #[test]
    fn claims_that_cannot_be_planned() {
        let fails = |claim: Claim| plan(&settings(), &claim, &class(), Extras::default()).unwrap_err().to_string();
        let selects = Claim { has_selector: true, ..claim() };
        assert_eq!(fails(selects), "claim Selector is not supported");
        let size = Claim { requested: "many".to_owned(), ..claim() };
        assert!(fails(size).starts_with("failed to read the requested storage: \"many\" is not a quantity"));
        let unborn = Claim { uid: String::new(), ..claim() };
        assert_eq!(fails(unborn), "corrupted PVC object, it is missing UID");
    }
}
