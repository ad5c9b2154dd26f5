//! The columns of the built-in kinds, and their cells.

use jiff::Timestamp;
use serde_json::Value;

use super::cells::{
    NONE, access_modes, age, condition, containers, first_three, flag, int, joined, label_selector, labels, len, list, name,
    quantity, scalar_or, since, text, text_or,
};
use super::{ColumnRow, KindPrinter, pods};
use crate::duration;

const UNSET: &str = "<unset>";
const UNKNOWN: &str = "<unknown>";

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

/// `spec.replicas` with its default.
fn desired(object: &Value) -> i64 {
    object["spec"]["replicas"].as_i64().unwrap_or(1)
}

fn replicas(o: &Value, now: Timestamp, selector: String) -> Vec<Value> {
    let [names, images] = containers(&o["spec"]["template"]);
    let status = &o["status"];
    vec![
        name(o),
        desired(o).into(),
        int(&status["replicas"]).into(),
        int(&status["readyReplicas"]).into(),
        age(o, now),
        names,
        images,
        selector.into(),
    ]
}

fn deployment(o: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(&o["spec"]["template"]);
    let status = &o["status"];
    vec![
        name(o),
        format!("{}/{}", int(&status["readyReplicas"]), desired(o)).into(),
        int(&status["updatedReplicas"]).into(),
        int(&status["availableReplicas"]).into(),
        age(o, now),
        names,
        images,
        label_selector(&o["spec"]["selector"]).into(),
    ]
}

fn daemon_set(o: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(&o["spec"]["template"]);
    let status = |field: &str| Value::from(int(&o["status"][field]));
    vec![
        name(o),
        status("desiredNumberScheduled"),
        status("currentNumberScheduled"),
        status("numberReady"),
        status("updatedNumberScheduled"),
        status("numberAvailable"),
        labels(&o["spec"]["template"]["spec"]["nodeSelector"]).into(),
        age(o, now),
        names,
        images,
        label_selector(&o["spec"]["selector"]).into(),
    ]
}

fn stateful_set(o: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(&o["spec"]["template"]);
    let ready = format!("{}/{}", int(&o["status"]["readyReplicas"]), desired(o));
    vec![name(o), ready.into(), age(o, now), names, images]
}

/// The controlling owner as `kind.group/name`.
fn controller(o: &Value) -> String {
    let Some(owner) = list(&o["metadata"]["ownerReferences"]).iter().find(|r| flag(&r["controller"])) else {
        return NONE.to_owned();
    };
    let group = text(&owner["apiVersion"]).split_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
    format!("{}{group}/{}", text(&owner["kind"]).to_lowercase(), text(&owner["name"]))
}

fn job(o: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let has = |ty| condition(o, ty) == Some("True");
    let state = if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if !o["metadata"]["deletionTimestamp"].is_null() {
        "Terminating"
    } else {
        ["Suspended", "FailureTarget", "SuccessCriteriaMet"].into_iter().find(|ty| has(ty)).unwrap_or("Running")
    };
    let succeeded = int(&status["succeeded"]);
    let completions = match (spec["completions"].as_i64(), spec["parallelism"].as_i64().unwrap_or(1)) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallel) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let failed_at = || {
        list(&status["conditions"])
            .iter()
            .find(|c| c["type"] == "Failed" && c["status"] == "True")
            .map(|c| &c["lastTransitionTime"])
    };
    let stamp = |v: &Value| v.as_str().and_then(crate::time::parse);
    let end = stamp(&status["completionTime"]).or_else(|| failed_at().and_then(stamp)).unwrap_or(now);
    let duration = stamp(&status["startTime"]).map(|start| duration::since(start, end)).unwrap_or_default();
    let [names, images] = containers(&spec["template"]);
    let selector = label_selector(&spec["selector"]);
    vec![name(o), state.into(), completions.into(), duration.into(), age(o, now), names, images, selector.into()]
}

fn cron_job(o: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &o["spec"];
    let template = &spec["jobTemplate"]["spec"];
    let last = &o["status"]["lastScheduleTime"];
    let [names, images] = containers(&template["template"]);
    vec![
        name(o),
        text(&spec["schedule"]).into(),
        text_or(&spec["timeZone"], NONE).into(),
        match spec["suspend"].as_bool() {
            None => UNSET,
            Some(true) => "True",
            Some(false) => "False",
        }
        .into(),
        len(&o["status"]["active"]).into(),
        if last.is_null() { NONE.into() } else { since(last, now) },
        age(o, now),
        names,
        images,
        label_selector(&template["selector"]).into(),
    ]
}

fn service(o: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &o["spec"];
    let cluster_ip = list(&spec["clusterIPs"]).first().map_or(text_or(&spec["clusterIP"], NONE), |ip| text_or(ip, NONE));
    let external = list(&spec["externalIPs"]).iter().map(text);
    let external_ip = match text(&spec["type"]) {
        "ClusterIP" | "NodePort" => joined(external),
        "LoadBalancer" => {
            let mut given: Vec<&str> = list(&o["status"]["loadBalancer"]["ingress"])
                .iter()
                .map(|i| text_or(&i["ip"], text(&i["hostname"])))
                .filter(|s| !s.is_empty())
                .collect();
            given.sort_unstable();
            given.dedup();
            let all = given.into_iter().chain(external).collect::<Vec<_>>().join(",");
            if all.is_empty() { "<pending>".to_owned() } else { all }
        }
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        _ => UNKNOWN.to_owned(),
    };
    let ports: Vec<String> = list(&spec["ports"])
        .iter()
        .map(|p| {
            let protocol = text_or(&p["protocol"], "TCP");
            match int(&p["nodePort"]) {
                0 => format!("{}/{protocol}", int(&p["port"])),
                node_port => format!("{}:{node_port}/{protocol}", int(&p["port"])),
            }
        })
        .collect();
    vec![
        name(o),
        text(&spec["type"]).into(),
        cluster_ip.into(),
        external_ip.into(),
        joined(ports.iter().map(String::as_str)).into(),
        age(o, now),
        labels(&spec["selector"]).into(),
    ]
}

/// An address with a port; IPv6 addresses in brackets.
fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

fn endpoints(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in list(&o["subsets"]) {
        let ips = || list(&subset["addresses"]).iter().map(|a| text(&a["ip"]));
        if list(&subset["ports"]).is_empty() {
            all.extend(ips().map(str::to_owned));
        }
        for port in list(&subset["ports"]) {
            all.extend(ips().map(|ip| host_port(ip, int(&port["port"]))));
        }
    }
    vec![name(o), first_three(&all, NONE).into(), age(o, now)]
}

fn endpoint_slice(o: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = list(&o["ports"])
        .iter()
        .map(|p| p["port"].as_i64().map_or_else(|| text_or(&p["name"], "*").to_owned(), |n| n.to_string()))
        .collect();
    let addresses: Vec<String> =
        list(&o["endpoints"]).iter().flat_map(|e| list(&e["addresses"])).map(|a| text(a).to_owned()).collect();
    let kind = text(&o["addressType"]);
    vec![name(o), kind.into(), first_three(&ports, UNSET).into(), first_three(&addresses, UNSET).into(), age(o, now)]
}

fn node(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut status = match condition(o, "Ready") {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if flag(&o["spec"]["unschedulable"]) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = o["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None => (key == "kubernetes.io/role").then(|| text(value)),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let address = |ty: &str| {
        list(&o["status"]["addresses"]).iter().find(|a| a["type"] == ty).map_or(NONE, |a| text_or(&a["address"], NONE))
    };
    let info = &o["status"]["nodeInfo"];
    vec![
        name(o),
        status.into(),
        joined(roles).into(),
        age(o, now),
        text(&info["kubeletVersion"]).into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        text_or(&info["osImage"], UNKNOWN).into(),
        text_or(&info["kernelVersion"], UNKNOWN).into(),
        text_or(&info["containerRuntimeVersion"], UNKNOWN).into(),
    ]
}

/// An Event in either of its forms: core/v1, or events.k8s.io/v1 with its renamed fields.
fn event(o: &Value, now: Timestamp) -> Vec<Value> {
    let either = |a: &str, b: &str| if o[a].is_null() { &o[b] } else { &o[a] };
    let first = match either("firstTimestamp", "deprecatedFirstTimestamp") {
        Value::Null => &o["eventTime"],
        stamp => stamp,
    };
    let mut last = match either("lastTimestamp", "deprecatedLastTimestamp") {
        Value::Null => first,
        stamp => stamp,
    };
    let mut count = int(either("count", "deprecatedCount")).max(1);
    if o["series"].is_object() {
        last = &o["series"]["lastObservedTime"];
        count = int(&o["series"]["count"]);
    }
    let about = either("involvedObject", "regarding");
    let object = match text(&about["kind"]) {
        "" => text(&about["name"]).to_owned(),
        kind => format!("{}/{}", kind.to_lowercase(), text(&about["name"])),
    };
    let source = either("source", "deprecatedSource");
    let source: Vec<&str> = [
        text_or(&source["component"], text(either("reportingComponent", "reportingController"))),
        text_or(&source["host"], text(&o["reportingInstance"])),
    ]
    .into_iter()
    .filter(|s| !s.is_empty())
    .collect();
    vec![
        since(last, now),
        text(&o["type"]).into(),
        text(&o["reason"]).into(),
        object.into(),
        text(&about["fieldPath"]).into(),
        source.join(", ").into(),
        text(either("message", "note")).trim().into(),
        since(first, now),
        count.into(),
        name(o),
    ]
}

/// The phase, or Terminating once deletion was asked for.
fn phase(o: &Value) -> Value {
    let terminating = !o["metadata"]["deletionTimestamp"].is_null();
    if terminating { "Terminating" } else { text(&o["status"]["phase"]) }.into()
}

/// The class of a volume or claim; the old annotation wins.
fn class(o: &Value) -> Value {
    let annotated = &o["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    text(if annotated.is_string() { annotated } else { &o["spec"]["storageClassName"] }).into()
}

fn persistent_volume(o: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, claim) = (&o["spec"], &o["spec"]["claimRef"]);
    let claim =
        if claim.is_object() { format!("{}/{}", text(&claim["namespace"]), text(&claim["name"])) } else { String::new() };
    vec![
        name(o),
        quantity(&spec["capacity"]["storage"]).into(),
        access_modes(&spec["accessModes"]).into(),
        text(&spec["persistentVolumeReclaimPolicy"]).into(),
        phase(o),
        claim.into(),
        class(o),
        text_or(&spec["volumeAttributesClassName"], UNSET).into(),
        text(&o["status"]["reason"]).into(),
        age(o, now),
        text_or(&spec["volumeMode"], UNSET).into(),
    ]
}

fn persistent_volume_claim(o: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&o["spec"], &o["status"]);
    let bound = !text(&spec["volumeName"]).is_empty();
    let (capacity, modes) = if bound {
        (quantity(&status["capacity"]["storage"]), access_modes(&status["accessModes"]))
    } else {
        (String::new(), String::new())
    };
    // The original shows a bound volume's missing capacity as a zero quantity.
    let capacity = if bound && capacity.is_empty() { "0".to_owned() } else { capacity };
    vec![
        name(o),
        phase(o),
        text(&spec["volumeName"]).into(),
        capacity.into(),
        modes.into(),
        class(o),
        text_or(&spec["volumeAttributesClassName"], UNSET).into(),
        age(o, now),
        text_or(&spec["volumeMode"], UNSET).into(),
    ]
}

/// The name, marked where one of these annotations makes the class the default.
fn defaulted(o: &Value, annotations: &[&str]) -> Value {
    let default = annotations.iter().any(|a| o["metadata"]["annotations"][a] == "true");
    let name = text(&o["metadata"]["name"]);
    if default { format!("{name} (default)").into() } else { name.into() }
}

fn storage_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let default =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    vec![
        defaulted(o, &default),
        text(&o["provisioner"]).into(),
        text_or(&o["reclaimPolicy"], "Delete").into(),
        text_or(&o["volumeBindingMode"], "Immediate").into(),
        flag(&o["allowVolumeExpansion"]).into(),
        age(o, now),
    ]
}

fn csi_driver(o: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &o["spec"];
    let audiences: Vec<&str> = list(&spec["tokenRequests"]).iter().map(|t| text(&t["audience"])).collect();
    vec![
        name(o),
        spec["attachRequired"].as_bool().unwrap_or(true).into(),
        flag(&spec["podInfoOnMount"]).into(),
        flag(&spec["storageCapacity"]).into(),
        if audiences.is_empty() { UNSET.into() } else { audiences.join(",").into() },
        flag(&spec["requiresRepublish"]).into(),
        joined(list(&spec["volumeLifecycleModes"]).iter().map(text)).into(),
        age(o, now),
    ]
}

fn role_binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let role = format!("{}/{}", text(&o["roleRef"]["kind"]), text(&o["roleRef"]["name"]));
    let subjects = |kind: &str| {
        let names: Vec<String> = list(&o["subjects"])
            .iter()
            .filter(|s| s["kind"] == kind)
            .map(|s| match text(&s["namespace"]) {
                "" => text(&s["name"]).to_owned(),
                namespace => format!("{namespace}/{}", text(&s["name"])),
            })
            .collect();
        Value::from(names.join(", "))
    };
    vec![name(o), role.into(), age(o, now), subjects("User"), subjects("Group"), subjects("ServiceAccount")]
}

fn param_kind(spec: &Value) -> String {
    let kind = &spec["paramKind"];
    if kind.is_object() { format!("{}/{}", text(&kind["apiVersion"]), text(&kind["kind"])) } else { UNSET.to_owned() }
}

fn policy_binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let reference = &o["spec"]["paramRef"];
    let params = match (text(&reference["namespace"]), text(&reference["name"])) {
        _ if !reference.is_object() => UNSET.to_owned(),
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    vec![name(o), text(&o["spec"]["policyName"]).into(), params.into(), age(o, now)]
}

fn ingress(o: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &o["spec"];
    let hosts: Vec<&str> = list(&spec["rules"]).iter().map(|r| text(&r["host"])).filter(|h| !h.is_empty()).collect();
    let addresses: Vec<&str> = list(&o["status"]["loadBalancer"]["ingress"])
        .iter()
        .map(|i| text_or(&i["ip"], text(&i["hostname"])))
        .filter(|a| !a.is_empty())
        .collect();
    vec![
        name(o),
        text_or(&spec["ingressClassName"], NONE).into(),
        if hosts.is_empty() { "*".into() } else { hosts.join(",").into() },
        addresses.join(",").into(),
        if list(&spec["tls"]).is_empty() { "80" } else { "80, 443" }.into(),
        age(o, now),
    ]
}

fn ingress_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = &o["spec"]["parameters"];
    let parameters = if parameters.is_object() {
        let group = text(&parameters["apiGroup"]);
        let dot = if group.is_empty() { "" } else { "." };
        format!("{}{dot}{group}/{}", text(&parameters["kind"]), text(&parameters["name"]))
    } else {
        NONE.to_owned()
    };
    vec![name(o), text(&o["spec"]["controller"]).into(), parameters.into(), age(o, now)]
}

fn parent_ref(parent: &Value) -> String {
    let group = text(&parent["group"]);
    let resource = if group.is_empty() {
        text(&parent["resource"]).to_owned()
    } else {
        format!("{}.{group}", text(&parent["resource"]))
    };
    [resource.as_str(), text(&parent["namespace"]), text(&parent["name"])]
        .into_iter()
        .filter(|s| !s.is_empty())
        .collect::<Vec<_>>()
        .join("/")
}

fn resource_quota(o: &Value, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in o["status"]["hard"].as_object().into_iter().flatten() {
        let used = scalar_or(&o["status"]["used"][resource], "0");
        let entry = format!("{resource}: {used}/{}", scalar_or(hard, "0"));
        if resource.starts_with("limits") { limits.push(entry) } else { requests.push(entry) }
    }
    vec![name(o), requests.join(", ").into(), limits.join(", ").into(), age(o, now)]
}

fn signing_request(o: &Value, now: Timestamp) -> Vec<Value> {
    let types: Vec<&str> = list(&o["status"]["conditions"]).iter().map(|c| text(&c["type"])).collect();
    let mut state = ["Denied", "Approved"].into_iter().find(|t| types.contains(t)).unwrap_or("Pending").to_owned();
    if types.contains(&"Failed") {
        state.push_str(",Failed");
    }
    if !text(&o["status"]["certificate"]).is_empty() {
        state.push_str(",Issued");
    }
    let requested = o["spec"]["expirationSeconds"].as_i64().map_or_else(|| NONE.to_owned(), duration::human);
    vec![
        name(o),
        age(o, now),
        text_or(&o["spec"]["signerName"], NONE).into(),
        text(&o["spec"]["username"]).into(),
        requested.into(),
        state.into(),
    ]
}

fn claim_state(o: &Value) -> String {
    let deleted = !o["metadata"]["deletionTimestamp"].is_null();
    let allocated = o["status"]["allocation"].is_object();
    let reserved = len(&o["status"]["reservedFor"]) > 0;
    [
        (deleted, "deleted"),
        (!allocated && !deleted, "pending"),
        (allocated, "allocated"),
        (allocated && reserved, "reserved"),
    ]
    .into_iter()
    .filter_map(|(is, word)| is.then_some(word))
    .collect::<Vec<_>>()
    .join(",")
}
