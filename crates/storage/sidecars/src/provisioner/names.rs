//! The names that the provisioner shares with the rest of Kubernetes: annotations, finalizers, reserved parameter keys.
//!
//! They are the original's, so that claims and volumes written by either program are understood by the other.

/// Claim annotation by which the volume controller asks for a volume; the value is the driver's name.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// Older spelling of [`STORAGE_PROVISIONER`]; read when the newer one is absent.
pub const STORAGE_PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// Names the driver that took over from a built-in volume plugin.
pub const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";
/// Claim annotation with the scheduler's choice for classes that wait for the first consumer.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Older way to name the class of a claim; it wins over `spec.storageClassName`.
pub const STORAGE_CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";
/// Volume annotation that names the provisioner which made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Volume annotation: name of the secret for `DeleteVolume`, empty when there is none.
pub const DELETION_SECRET_NAME: &str = "volume.kubernetes.io/provisioner-deletion-secret-name";
/// Volume annotation: namespace of the secret for `DeleteVolume`, empty when there is none.
pub const DELETION_SECRET_NAMESPACE: &str = "volume.kubernetes.io/provisioner-deletion-secret-namespace";
/// Volume annotation: name of the secret for `ControllerModifyVolume`.
pub const MODIFY_SECRET_NAME: &str = "volume.kubernetes.io/controller-modify-secret-name";
/// Volume annotation: namespace of the secret for `ControllerModifyVolume`.
pub const MODIFY_SECRET_NAMESPACE: &str = "volume.kubernetes.io/controller-modify-secret-namespace";
/// Keeps a volume object until its storage is gone.
pub const VOLUME_FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// Keeps the source claim of a clone while the clone is being made.
pub const CLONING_FINALIZER: &str = "provisioner.storage.kubernetes.io/cloning-protection";
/// Volume attribute with the identity of the process that made the volume.
pub const PROVISIONER_IDENTITY: &str = "storage.kubernetes.io/csiProvisionerIdentity";

/// Class parameters with this prefix are for the provisioner, never for the driver.
pub const PARAMETER_PREFIX: &str = "csi.storage.k8s.io/";
/// Class parameter with the filesystem type.
pub const FS_TYPE: &str = "csi.storage.k8s.io/fstype";
/// Parameter added on request: the claim's name.
pub const METADATA_CLAIM_NAME: &str = "csi.storage.k8s.io/pvc/name";
/// Parameter added on request: the claim's namespace.
pub const METADATA_CLAIM_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
/// Parameter added on request: the volume's name.
pub const METADATA_VOLUME_NAME: &str = "csi.storage.k8s.io/pv/name";
