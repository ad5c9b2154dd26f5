//! The columns of the built-in kinds, and their cells.

use super::cells::{
    UNSET, age, flag, int, label_selector, labels, len, list, name, quantity, scalar_or, text, text_or,
};
use super::rows::{
    autoscaler, claim_state, controller, cron_job, csi_driver, daemon_set, defaulted, deployment, endpoint_slice,
    endpoints, event, ingress, ingress_class, job, node, param_kind, parent_ref, persistent_volume,
    persistent_volume_claim, policy_binding, replicas, resource_quota, role_binding, service, signing_request,
    stateful_set, storage_class,
};
use super::{ColumnRow, KindPrinter, pods};

pub(super) const NAME: &str = "The name, unique within the namespace.";
pub(super) const CREATED: &str = "The time since the object was created.";

const NAME_COLUMN: ColumnRow = ("Name", "string", 0, NAME);
const AGE: ColumnRow = ("Age", "string", 0, CREATED);
const CONTAINERS: ColumnRow = ("Containers", "string", 1, "Names of the containers in the template.");
const IMAGES: ColumnRow = ("Images", "string", 1, "Images of the containers in the template.");
const SELECTOR: ColumnRow = ("Selector", "string", 1, "The labels of the pods that belong to it.");

/// Name and the time of creation: kinds without columns of their own.
pub(super) const FALLBACK: KindPrinter = KindPrinter {
    group: "",
    kind: "",
    columns: &[NAME_COLUMN, ("Created At", "date", 0, "When the object was created.")],
    cells: |o, _| vec![name(o), o["metadata"]["creationTimestamp"].clone()],
};

macro_rules! printers {
    ($($group:literal $kind:literal [$($column:expr),* $(,)?] $cells:expr;)*) => {
        &[$(KindPrinter { group: $group, kind: $kind, columns: &[NAME_COLUMN, $($column),*], cells: $cells }),*]
    };
}

const EVENT_COLUMNS: &[ColumnRow] = &[
    ("Last Seen", "string", 0, "The time since it last happened."),
    ("Type", "string", 0, "Normal or Warning."),
    ("Reason", "string", 0, "Why it happened, in one word."),
    ("Object", "string", 0, "What it is about."),
    ("Subobject", "string", 1, "The part of the object it is about."),
    ("Source", "string", 1, "Who reported it."),
    ("Message", "string", 0, "What happened."),
    ("First Seen", "string", 1, "The time since it first happened."),
    ("Count", "string", 1, "How often it happened."),
    ("Name", "string", 1, NAME),
];

/// Every kind with columns of its own. Two kinds whose first column is not the name stand apart.
pub(super) const PRINTERS: &[KindPrinter] = const {
    printers! {
        "" "Pod" [
            ("Ready", "string", 0, "How many of the containers are ready."),
            ("Status", "string", 0, "The state of the pod and its containers in one word."),
            ("Restarts", "string", 0, "How often containers were restarted, and when last."),
            AGE,
            ("IP", "string", 1, "The address of the pod."),
            ("Node", "string", 1, "The node it is bound to."),
            ("Nominated Node", "string", 1, "The node on which others are evicted for it."),
            ("Readiness Gates", "string", 1, "How many of the extra readiness conditions are met."),
        ] pods::pod;
        "" "PodTemplate" [
            ("Containers", "string", 0, "Names of the containers in the template."),
            ("Images", "string", 0, "Images of the containers in the template."),
            ("Pod Labels", "string", 0, "The labels of pods made from it."),
        ] pods::pod_template;
        "" "ReplicationController" [
            ("Desired", "integer", 0, "How many pods there shall be."),
            ("Current", "integer", 0, "How many pods there are."),
            ("Ready", "integer", 0, "How many pods are ready."),
            AGE, CONTAINERS, IMAGES, SELECTOR,
        ] |o, now| replicas(o, now, labels(&o["spec"]["selector"]));
        "apps" "ReplicaSet" [
            ("Desired", "integer", 0, "How many pods there shall be."),
            ("Current", "integer", 0, "How many pods there are."),
            ("Ready", "integer", 0, "How many pods are ready."),
            AGE, CONTAINERS, IMAGES, SELECTOR,
        ] |o, now| replicas(o, now, label_selector(&o["spec"]["selector"]));
        "apps" "Deployment" [
            ("Ready", "string", 0, "How many of the desired pods are ready."),
            ("Up-to-date", "string", 0, "How many pods are of the newest template."),
            ("Available", "string", 0, "How many pods have been ready for long enough."),
            AGE, CONTAINERS, IMAGES, SELECTOR,
        ] deployment;
        "apps" "DaemonSet" [
            ("Desired", "integer", 0, "How many nodes shall run the pod."),
            ("Current", "integer", 0, "How many nodes run the pod."),
            ("Ready", "integer", 0, "How many of these pods are ready."),
            ("Up-to-date", "integer", 0, "How many pods are of the newest template."),
            ("Available", "integer", 0, "How many pods have been ready for long enough."),
            ("Node Selector", "string", 0, "The labels of the nodes that run it."),
            AGE, CONTAINERS, IMAGES, SELECTOR,
        ] daemon_set;
        "apps" "StatefulSet" [
            ("Ready", "string", 0, "How many of the desired pods are ready."), AGE, CONTAINERS, IMAGES,
        ] stateful_set;
        "apps" "ControllerRevision" [
            ("Controller", "string", 0, "Whose history it is part of."),
            ("Revision", "string", 0, "Its number in the history."),
            AGE,
        ] |o, now| vec![name(o), controller(o).into(), o["revision"].clone(), age(o, now)];
        "batch" "Job" [
            ("Status", "string", 0, "How far it is."),
            ("Completions", "string", 0, "How many of the wanted pods have succeeded."),
            ("Duration", "string", 0, "How long it has run."),
            AGE, CONTAINERS, IMAGES, SELECTOR,
        ] job;
        "batch" "CronJob" [
            ("Schedule", "string", 0, "When it runs."),
            ("Timezone", "string", 0, "The time zone of the schedule."),
            ("Suspend", "boolean", 0, "Whether new runs are held back."),
            ("Active", "integer", 0, "How many runs are going on."),
            ("Last Schedule", "string", 0, "The time since the last run was started."),
            AGE, CONTAINERS, IMAGES, SELECTOR,
        ] cron_job;
        "" "Service" [
            ("Type", "string", 0, "How it is exposed."),
            ("Cluster-IP", "string", 0, "Its address within the cluster."),
            ("External-IP", "string", 0, "Its addresses from outside."),
            ("Port(s)", "string", 0, "The ports it listens on."),
            AGE, SELECTOR,
        ] service;
        "" "Endpoints" [("Endpoints", "string", 0, "Addresses with ports."), AGE] endpoints;
        "discovery.k8s.io" "EndpointSlice" [
            ("AddressType", "string", 0, "The family of the addresses."),
            ("Ports", "string", 0, "The ports of every endpoint."),
            ("Endpoints", "string", 0, "The addresses."),
            AGE,
        ] endpoint_slice;
        "" "Node" [
            ("Status", "string", 0, "Whether the node is ready and takes pods."),
            ("Roles", "string", 0, "What the node is for."),
            AGE,
            ("Version", "string", 0, "The version of its agent."),
            ("Internal-IP", "string", 1, "Its address within the cluster."),
            ("External-IP", "string", 1, "Its address from outside."),
            ("OS-Image", "string", 1, "Its operating system."),
            ("Kernel-Version", "string", 1, "Its kernel."),
            ("Container-Runtime", "string", 1, "What runs its containers."),
        ] node;
        "" "Namespace" [("Status", "string", 0, "Active or Terminating.")
            , AGE] |o, now| vec![name(o), text(&o["status"]["phase"]).into(), age(o, now)];
        "" "Secret" [
            ("Type", "string", 0, "What kind of data it holds."), ("Data", "string", 0, "How many keys it has."), AGE,
        ] |o, now| vec![name(o), text(&o["type"]).into(), len(&o["data"]).into(), age(o, now)];
        "" "ConfigMap" [("Data", "string", 0, "How many keys it has."), AGE]
            |o, now| vec![name(o), (len(&o["data"]) + len(&o["binaryData"])).into(), age(o, now)];
        "" "ServiceAccount" [("Secrets", "string", 0, "How many secrets it may use."), AGE]
            |o, now| vec![name(o), len(&o["secrets"]).into(), age(o, now)];
        "" "PersistentVolume" [
            ("Capacity", "string", 0, "How large it is."),
            ("Access Modes", "string", 0, "How it can be mounted."),
            ("Reclaim Policy", "string", 0, "What happens to it when its claim is deleted."),
            ("Status", "string", 0, "Whether a claim is bound to it."),
            ("Claim", "string", 0, "The claim it belongs to."),
            ("StorageClass", "string", 0, "The class it is of."),
            ("VolumeAttributesClass", "string", 0, "The class of its mutable attributes."),
            ("Reason", "string", 0, "Why it is in this state."),
            AGE,
            ("VolumeMode", "string", 1, "Filesystem or Block."),
        ] persistent_volume;
        "" "PersistentVolumeClaim" [
            ("Status", "string", 0, "Whether a volume is bound to it."),
            ("Volume", "string", 0, "The volume bound to it."),
            ("Capacity", "string", 0, "How large that volume is."),
            ("Access Modes", "string", 0, "How that volume can be mounted."),
            ("StorageClass", "string", 0, "The class it asks for."),
            ("VolumeAttributesClass", "string", 0, "The class of mutable attributes it asks for."),
            AGE,
            ("VolumeMode", "string", 1, "Filesystem or Block."),
        ] persistent_volume_claim;
        "storage.k8s.io" "StorageClass" [
            ("Provisioner", "string", 0, "Who makes its volumes."),
            ("ReclaimPolicy", "string", 0, "What happens to a volume when its claim is deleted."),
            ("VolumeBindingMode", "string", 0, "When volumes are made and bound."),
            ("AllowVolumeExpansion", "string", 0, "Whether volumes can grow."),
            AGE,
        ] storage_class;
        "storage.k8s.io" "VolumeAttributesClass" [("DriverName", "string", 0, "The driver that understands it."), AGE]
            |o, now| vec![defaulted(o, &["volumeattributesclass.kubernetes.io/is-default-class"]),
                text(&o["driverName"]).into(), age(o, now)];
        "storage.k8s.io" "VolumeAttachment" [
            ("Attacher", "string", 0, "The driver that attaches it."),
            ("PV", "string", 0, "The volume."),
            ("Node", "string", 0, "The node it is attached to."),
            ("Attached", "boolean", 0, "Whether it is attached."),
            AGE,
        ] |o, now| vec![name(o), text(&o["spec"]["attacher"]).into(),
            text(&o["spec"]["source"]["persistentVolumeName"]).into(), text(&o["spec"]["nodeName"]).into(),
            flag(&o["status"]["attached"]).into(), age(o, now)];
        "storage.k8s.io" "CSINode" [("Drivers", "integer", 0, "How many drivers are registered on the node."), AGE]
            |o, now| vec![name(o), len(&o["spec"]["drivers"]).into(), age(o, now)];
        "storage.k8s.io" "CSIDriver" [
            ("AttachRequired", "boolean", 0, "Whether volumes are attached before they are mounted."),
            ("PodInfoOnMount", "boolean", 0, "Whether the driver is told of the pod."),
            ("StorageCapacity", "boolean", 0, "Whether capacity guides the scheduler."),
            ("TokenRequests", "string", 0, "The audiences of the tokens it wants."),
            ("RequiresRepublish", "boolean", 0, "Whether mounts are refreshed periodically."),
            ("Modes", "string", 0, "The life cycles of its volumes."),
            AGE,
        ] csi_driver;
        "storage.k8s.io" "CSIStorageCapacity" [
            ("StorageClassName", "string", 0, "The class it is about."), ("Capacity", "string", 0, "What is left."),
        ] |o, _| vec![name(o), text(&o["storageClassName"]).into(),
            if o["capacity"].is_null() { UNSET.into() } else { quantity(&o["capacity"]).into() }];
        "coordination.k8s.io" "Lease" [("Holder", "string", 0, "Who holds it."), AGE]
            |o, now| vec![name(o), text(&o["spec"]["holderIdentity"]).into(), age(o, now)];
        "rbac.authorization.k8s.io" "RoleBinding" [
            ("Role", "string", 0, "What is granted."), AGE,
            ("Users", "string", 1, "The users it is granted to."),
            ("Groups", "string", 1, "The groups it is granted to."),
            ("ServiceAccounts", "string", 1, "The service accounts it is granted to."),
        ] role_binding;
        "rbac.authorization.k8s.io" "ClusterRoleBinding" [
            ("Role", "string", 0, "What is granted."), AGE,
            ("Users", "string", 1, "The users it is granted to."),
            ("Groups", "string", 1, "The groups it is granted to."),
            ("ServiceAccounts", "string", 1, "The service accounts it is granted to."),
        ] role_binding;
        "admissionregistration.k8s.io" "MutatingWebhookConfiguration" [
            ("Webhooks", "integer", 0, "How many webhooks it registers."), AGE,
        ] |o, now| vec![name(o), len(&o["webhooks"]).into(), age(o, now)];
        "admissionregistration.k8s.io" "ValidatingWebhookConfiguration" [
            ("Webhooks", "integer", 0, "How many webhooks it registers."), AGE,
        ] |o, now| vec![name(o), len(&o["webhooks"]).into(), age(o, now)];
        "admissionregistration.k8s.io" "ValidatingAdmissionPolicy" [
            ("Validations", "integer", 0, "How many rules it has."),
            ("ParamKind", "string", 0, "The kind of its parameters."), AGE,
        ] |o, now| vec![name(o), len(&o["spec"]["validations"]).into(), param_kind(&o["spec"]).into(), age(o, now)];
        "admissionregistration.k8s.io" "ValidatingAdmissionPolicyBinding" [
            ("PolicyName", "string", 0, "The policy it puts in force."),
            ("ParamRef", "string", 0, "The parameters it uses."), AGE,
        ] policy_binding;
        "admissionregistration.k8s.io" "MutatingAdmissionPolicy" [
            ("Mutations", "integer", 0, "How many mutations it makes."),
            ("ParamKind", "string", 0, "The kind of its parameters."), AGE,
        ] |o, now| vec![name(o), len(&o["spec"]["mutations"]).into(), param_kind(&o["spec"]).into(), age(o, now)];
        "admissionregistration.k8s.io" "MutatingAdmissionPolicyBinding" [
            ("PolicyName", "string", 0, "The policy it puts in force."),
            ("ParamRef", "string", 0, "The parameters it uses."), AGE,
        ] policy_binding;
        "networking.k8s.io" "NetworkPolicy" [("Pod-Selector", "string", 0, "The pods it applies to."), AGE]
            |o, now| vec![name(o), label_selector(&o["spec"]["podSelector"]).into(), age(o, now)];
        "networking.k8s.io" "Ingress" [
            ("Class", "string", 0, "Who serves it."),
            ("Hosts", "string", 0, "The hosts it matches."),
            ("Address", "string", 0, "Where it can be reached."),
            ("Ports", "string", 0, "The ports it opens."),
            AGE,
        ] ingress;
        "networking.k8s.io" "IngressClass" [
            ("Controller", "string", 0, "Who serves it."), ("Parameters", "string", 0, "Where its parameters are."), AGE,
        ] ingress_class;
        "networking.k8s.io" "ServiceCIDR" [("CIDRs", "string", 0, "The ranges of service addresses."), AGE]
            |o, now| vec![name(o), list(&o["spec"]["cidrs"]).iter().map(text).collect::<Vec<_>>().join(",").into(), age(o, now)];
        "networking.k8s.io" "IPAddress" [("ParentRef", "string", 0, "What the address belongs to.")]
            |o, _| vec![name(o), parent_ref(&o["spec"]["parentRef"]).into()];
        "policy" "PodDisruptionBudget" [
            ("Min Available", "string", 0, "How many pods must stay."),
            ("Max Unavailable", "string", 0, "How many pods may go."),
            ("Allowed Disruptions", "integer", 0, "How many pods may go right now."),
            AGE,
        ] |o, now| vec![name(o), scalar_or(&o["spec"]["minAvailable"], "N/A").into(),
            scalar_or(&o["spec"]["maxUnavailable"], "N/A").into(), int(&o["status"]["disruptionsAllowed"]).into(), age(o, now)];
        "autoscaling" "HorizontalPodAutoscaler" [
            ("Reference", "string", 0, "What it scales."),
            ("Targets", "string", 0, "What it measures, and what it aims at."),
            ("MinPods", "string", 0, "The least number of pods."),
            ("MaxPods", "string", 0, "The greatest number of pods."),
            ("Replicas", "string", 0, "How many pods there are."),
            AGE,
        ] autoscaler;
        "scheduling.k8s.io" "PriorityClass" [
            ("Value", "integer", 0, "The priority; higher goes first."),
            ("Global-Default", "boolean", 0, "Whether pods without class get it."),
            AGE,
            ("PreemptionPolicy", "string", 0, "Whether it may displace others."),
        ] |o, now| vec![name(o), int(&o["value"]).into(), flag(&o["globalDefault"]).into(), age(o, now),
            text_or(&o["preemptionPolicy"], "PreemptLowerPriority").into()];
        "node.k8s.io" "RuntimeClass" [("Handler", "string", 0, "The runtime's own name for it."), AGE]
            |o, now| vec![name(o), text(&o["handler"]).into(), age(o, now)];
        "" "ResourceQuota" [
            ("Request", "string", 0, "Used and allowed requests."), ("Limit", "string", 0, "Used and allowed limits."), AGE,
        ] resource_quota;
        "certificates.k8s.io" "CertificateSigningRequest" [
            AGE,
            ("SignerName", "string", 0, "Who shall sign."),
            ("Requestor", "string", 0, "Who asks."),
            ("RequestedDuration", "string", 0, "How long it shall be valid."),
            ("Condition", "string", 0, "What became of it."),
        ] signing_request;
        "resource.k8s.io" "DeviceClass" [AGE] |o, now| vec![name(o), age(o, now)];
        "resource.k8s.io" "ResourceClaim" [("State", "string", 0, "Whether devices are allocated and reserved."), AGE]
            |o, now| vec![name(o), claim_state(o).into(), age(o, now)];
        "resource.k8s.io" "ResourceClaimTemplate" [AGE] |o, now| vec![name(o), age(o, now)];
        "resource.k8s.io" "ResourceSlice" [
            ("Node", "string", 0, "The node that has the devices."),
            ("Driver", "string", 0, "The driver that offers them."),
            ("Pool", "string", 0, "The pool they belong to."),
            AGE,
        ] |o, now| vec![name(o), text(&o["spec"]["nodeName"]).into(), text(&o["spec"]["driver"]).into(),
            text(&o["spec"]["pool"]["name"]).into(), age(o, now)];
        "autoscaling" "Scale" [
            ("Desired", "integer", 0, "How many replicas there shall be."),
            ("Available", "integer", 0, "How many replicas there are."),
            AGE,
        ] |o, now| vec![name(o), int(&o["spec"]["replicas"]).into(), int(&o["status"]["replicas"]).into(), age(o, now)];
    }
};

/// Kinds whose first column is not the name.
pub(super) const NAMELESS: &[KindPrinter] = &[
    KindPrinter { group: "", kind: "Event", columns: EVENT_COLUMNS, cells: event },
    KindPrinter { group: "events.k8s.io", kind: "Event", columns: EVENT_COLUMNS, cells: event },
    KindPrinter {
        group: "",
        kind: "Status",
        columns: &[
            ("Status", "string", 0, "Success or Failure."),
            ("Reason", "string", 0, "Why, in one word."),
            ("Message", "string", 0, "What happened."),
        ],
        cells: |o, _| vec![text(&o["status"]).into(), text(&o["reason"]).into(), text(&o["message"]).into()],
    },
];
