//! Default values of built-in kinds that depend on other fields.
//!
//! Unconditional defaults are data: they stand in the schemas. What is here mirrors the defaulting of the Kubernetes API
//! server, by definition name. [`before`] runs before the unconditional ones, [`after`] after the object and all
//! that is in it have theirs.

use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

/// A definition's name without the prefixes that all of a family share.
fn short(definition: &str) -> &str {
    definition
        .strip_prefix("io.k8s.api.")
        .or_else(|| definition.strip_prefix("io.k8s.apiextensions-apiserver.pkg.apis."))
        .unwrap_or_default()
}

fn absent(object: &Object, name: &str) -> bool {
    object.get(name).is_none_or(|value| value.is_null() || value == "")
}

fn set(object: &mut Object, name: &str, value: impl Into<Value>) {
    if absent(object, name) {
        object.insert(name.to_owned(), value.into());
    }
}

/// Runs before the defaults of the schema.
pub(crate) fn before(definition: &str, object: &mut Object) {
    // An empty string counts as absent in Go's types, and defaults take its place.
    match short(definition) {
        "core.v1.Container" | "core.v1.EphemeralContainer" => {
            drop_empty(object, &["imagePullPolicy", "terminationMessagePath", "terminationMessagePolicy"]);
            image_pull_policy(object);
        }
        "core.v1.PodSpec" => {
            drop_empty(object, &["restartPolicy", "dnsPolicy", "schedulerName"]);
            if object.get("hostNetwork") == Some(&Value::Bool(true)) {
                host_ports(object);
            }
            match (absent(object, "serviceAccountName"), absent(object, "serviceAccount")) {
                (true, false) => copy(object, "serviceAccount", "serviceAccountName"),
                (false, _) => copy(object, "serviceAccountName", "serviceAccount"),
                (true, true) => {}
            }
        }
        "core.v1.Volume" if object.iter().all(|(name, value)| name == "name" || value.is_null()) => {
            object.insert("emptyDir".to_owned(), json!({}));
        }
        "core.v1.ServiceSpec" => service(object),
        "core.v1.ServicePort" => {
            let port = object.get("port").cloned();
            if let Some(port) = port
                && (absent(object, "targetPort") || object.get("targetPort") == Some(&json!(0)))
            {
                object.insert("targetPort".to_owned(), port);
            }
            drop_empty(object, &["protocol"]);
        }
        "core.v1.ContainerPort" => drop_empty(object, &["protocol"]),
        "core.v1.Secret" => {
            drop_empty(object, &["type"]);
            string_data(object);
        }
        "core.v1.PersistentVolumeSpec" => drop_empty(object, &["persistentVolumeReclaimPolicy"]),
        "core.v1.PersistentVolumeStatus" | "core.v1.PersistentVolumeClaimStatus" | "core.v1.NamespaceStatus" => {
            drop_empty(object, &["phase"]);
        }
        "networking.v1.NetworkPolicySpec" => policy_types(object),
        "discovery.v1.EndpointPort" => {
            set_null(object, "name", json!(""));
            set_null(object, "protocol", json!("TCP"));
        }
        "apiextensions.v1.CustomResourceDefinitionNames" => {
            if let Some(kind) = object.get("kind").and_then(Value::as_str).map(str::to_owned) {
                set(object, "singular", kind.to_lowercase());
                set(object, "listKind", format!("{kind}List"));
            }
        }
        "rbac.v1.Subject" => subject(object),
        "rbac.v1.RoleRef" => set(object, "apiGroup", "rbac.authorization.k8s.io"),
        "resource.v1.ExactDeviceRequest" | "resource.v1.DeviceSubRequest" => {
            drop_empty(object, &["allocationMode"]);
            set(object, "allocationMode", "ExactCount");
            if object["allocationMode"] == "ExactCount"
                && object.get("count").is_none_or(|count| *count == json!(0) || count.is_null())
            {
                object.insert("count".to_owned(), json!(1));
            }
        }
        _ => {}
    }
}

/// Runs after the defaults of the schema and of everything inside the object.
pub(crate) fn after(definition: &str, object: &mut Object) {
    match short(definition) {
        "core.v1.Pod" => pod_spec_requests(object.get_mut("spec")),
        "core.v1.Node" => allocatable(object),
        "apps.v1.DeploymentStrategy" => rolling(object, json!({"maxUnavailable": "25%", "maxSurge": "25%"})),
        "apps.v1.DaemonSetUpdateStrategy" => rolling(object, json!({"maxUnavailable": 1, "maxSurge": 0})),
        "apps.v1.StatefulSetUpdateStrategy" => rolling(object, json!({"partition": 0})),
        "apps.v1.ReplicaSet" | "core.v1.ReplicationController" => labels_from_template(object),
        "batch.v1.JobSpec" => job(object),
        "core.v1.PersistentVolume" => {
            if let Some(Value::Object(claim)) = object.get_mut("spec").and_then(|spec| spec.get_mut("claimRef")) {
                set(claim, "kind", "PersistentVolumeClaim");
                set(claim, "apiVersion", "v1");
            }
        }
        _ => {}
    }
}

fn copy(object: &mut Object, from: &str, to: &str) {
    if let Some(value) = object.get(from).cloned() {
        object.insert(to.to_owned(), value);
    }
}

fn drop_empty(object: &mut Object, names: &[&str]) {
    for name in names {
        if object.get(*name).is_some_and(|value| value == "") {
            object.remove(*name);
        }
    }
}

/// For pointers: an empty string is a value.
fn set_null(object: &mut Object, name: &str, value: Value) {
    if object.get(name).is_none_or(Value::is_null) {
        object.insert(name.to_owned(), value);
    }
}

/// `Always` when the image has no tag or the tag `latest`, else `IfNotPresent`.
fn image_pull_policy(container: &mut Object) {
    if !absent(container, "imagePullPolicy") {
        return;
    }
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if pulls_always(image) { "Always" } else { "IfNotPresent" };
    container.insert("imagePullPolicy".to_owned(), policy.into());
}

fn pulls_always(image: &str) -> bool {
    if let Some((_, _digest)) = image.split_once('@') {
        return image.split('@').next().and_then(tag) == Some("latest");
    }
    matches!(tag(image), None | Some("latest"))
}

/// The tag: what stands after a colon behind the last slash (a colon before it belongs to a port).
fn tag(image: &str) -> Option<&str> {
    image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag)
}

/// With the host's network, a container's port is the host's port.
fn host_ports(spec: &mut Object) {
    for list in ["containers", "initContainers"] {
        for port in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .flat_map(|container| container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten())
        {
            if let Value::Object(port) = port
                && port.get("hostPort").is_none_or(|port| port.is_null() || *port == json!(0))
            {
                copy(port, "containerPort", "hostPort");
            }
        }
    }
}

/// A pod's containers request what they are limited to, where they do not say.
fn pod_spec_requests(spec: Option<&mut Value>) {
    let Some(Value::Object(spec)) = spec else { return };
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(Value::Object(resources)) = container.get_mut("resources") {
                merge_requests(resources);
            }
        }
    }
}

fn merge_requests(resources: &mut Object) {
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    if requests.is_null() {
        *requests = json!({});
    }
    if let Value::Object(requests) = requests {
        for (name, quantity) in limits {
            requests.entry(name).or_insert(quantity);
        }
    }
}

fn service(spec: &mut Object) {
    drop_empty(spec, &["type", "sessionAffinity"]);
    set(spec, "type", "ClusterIP");
    set(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        let config = spec.entry("sessionAffinityConfig").or_insert_with(|| json!({}));
        if config.is_null() || config.get("clientIP").is_none_or(Value::is_null) {
            *config = json!({"clientIP": {"timeoutSeconds": 10800}});
        } else if let Value::Object(client) = &mut config["clientIP"] {
            set_null(client, "timeoutSeconds", json!(10800));
        }
    } else {
        spec.remove("sessionAffinityConfig");
    }
    let ty = spec["type"].clone();
    let exposed = ty == "NodePort" || ty == "LoadBalancer";
    if exposed || spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty()) {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if ty != "ExternalName" {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if ty == "LoadBalancer" {
        set_null(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
}

/// `stringData` is write-only: its entries go to `data`, encoded.
fn string_data(secret: &mut Object) {
    use base64::Engine as _;
    let Some(Value::Object(plain)) = secret.remove("stringData") else { return };
    let data = secret.entry("data").or_insert_with(|| json!({}));
    if data.is_null() {
        *data = json!({});
    }
    if let Value::Object(data) = data {
        for (key, value) in plain {
            if let Some(text) = value.as_str() {
                data.insert(key, base64::engine::general_purpose::STANDARD.encode(text).into());
            }
        }
    }
}

fn subject(object: &mut Object) {
    if !absent(object, "apiGroup") {
        return;
    }
    match object.get("kind").and_then(Value::as_str) {
        Some("User" | "Group") => set(object, "apiGroup", "rbac.authorization.k8s.io"),
        Some("ServiceAccount") => {
            object.remove("apiGroup");
        }
        _ => {}
    }
}

/// Capacity is allocatable unless the node says otherwise.
fn allocatable(node: &mut Object) {
    if let Some(Value::Object(status)) = node.get_mut("status")
        && status.get("allocatable").is_none_or(Value::is_null)
    {
        copy(status, "capacity", "allocatable");
    }
}

/// A network policy concerns ingress, and egress if it has rules for it.
fn policy_types(spec: &mut Object) {
    if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
        let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        spec.insert("policyTypes".to_owned(), types);
    }
}

/// Fills in `rollingUpdate` when that is the strategy's type.
fn rolling(strategy: &mut Object, defaults: Value) {
    if strategy.get("type").is_none_or(|ty| ty != "RollingUpdate") {
        return;
    }
    let update = strategy.entry("rollingUpdate").or_insert_with(|| json!({}));
    if update.is_null() {
        *update = json!({});
    }
    if let (Value::Object(update), Value::Object(defaults)) = (update, defaults) {
        for (name, value) in defaults {
            set_null(update, &name, value);
        }
    }
}

/// A set without labels or selector takes the labels of its template.
fn labels_from_template(set: &mut Object) {
    let Some(labels) = set.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned() else {
        return;
    };
    if labels.as_object().is_none_or(Map::is_empty) {
        return;
    }
    let metadata = set.entry("metadata").or_insert_with(|| json!({}));
    if metadata.get("labels").is_none_or(Value::is_null)
        && let Value::Object(metadata) = metadata
    {
        metadata.insert("labels".to_owned(), labels);
    }
}

fn job(spec: &mut Object) {
    let given = |spec: &Object, name: &str| spec.get(name).is_some_and(|value| !value.is_null());
    // A job without either runs one pod; with parallelism alone it is a work queue and has no number of completions.
    if !given(spec, "completions") && !given(spec, "parallelism") {
        spec.insert("completions".to_owned(), json!(1));
        spec.insert("parallelism".to_owned(), json!(1));
    }
    set_null(spec, "parallelism", json!(1));
    if !given(spec, "backoffLimit") {
        let limit = if given(spec, "backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 };
        spec.insert("backoffLimit".to_owned(), limit.into());
    }
    let policy = if given(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    set_null(spec, "podReplacementPolicy", json!(policy));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{apply_defaults, builtin};

    fn defaulted(group: &str, kind: &str, mut value: Value) -> Value {
        let schema = &builtin().kind(group, "v1", kind).unwrap().schema;
        apply_defaults(schema, &builtin().definitions, &mut value);
        let once = value.clone();
        apply_defaults(schema, &builtin().definitions, &mut value);
        assert_eq!(once, value, "defaulting twice must change nothing");
        value
    }

    #[test]
    fn a_minimal_pod_is_what_the_real_server_makes_of_it() {
        let pod = defaulted(
            "",
            "Pod",
            json!({"metadata": {"name": "p"}, "spec": {
                "containers": [{"name": "c", "image": "localhost:5000/busybox", "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": "1"}}, "livenessProbe": {"httpGet": {"port": 80}}}],
                "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}],
            }}),
        );
        assert_eq!(
            pod,
            json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "c", "image": "localhost:5000/busybox", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                    "successThreshold": 1, "failureThreshold": 3}}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
            "schedulerName": "default-scheduler", "securityContext": {}, "enableServiceLinks": true,
        }, "status": {"phase": "Pending"}})
        );
    }

    #[test]
    fn pull_policy_goes_by_the_tag() {
        for (image, always) in [
            ("a", true),
            ("a:latest", true),
            ("a:1", false),
            ("host:1/a", true),
            ("host:1/a:2", false),
            ("a@sha256:0", false),
            ("a:latest@sha256:0", true),
        ] {
            assert_eq!(pulls_always(image), always, "{image}");
        }
    }

    #[test]
    fn a_deployment_rolls_by_quarters() {
        let deployment = defaulted(
            "apps",
            "Deployment",
            json!({"spec": {"selector": {}, "template": {"spec": {"containers": []}}}}),
        );
        assert_eq!(
            deployment["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(deployment["spec"]["replicas"], 1);
        assert_eq!(deployment["spec"]["template"]["spec"]["restartPolicy"], "Always");
        let recreate =
            defaulted("apps", "Deployment", json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}}));
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
        assert_eq!(recreate["spec"]["replicas"], 0);
    }

    #[test]
    fn services_jobs_and_secrets() {
        let service = defaulted("", "Service", json!({"spec": {"ports": [{"port": 80}]}}));
        assert_eq!(
            service["spec"],
            json!({"ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}], "type": "ClusterIP", "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster"})
        );
        assert_eq!(service["status"], json!({"loadBalancer": {}}));
        let job = defaulted("batch", "Job", json!({"spec": {"parallelism": 3, "template": {}}}));
        assert_eq!(job["spec"]["completions"], Value::Null);
        assert_eq!(job["spec"]["backoffLimit"], 6);
        let secret = defaulted("", "Secret", json!({"stringData": {"a": "b"}}));
        assert_eq!(secret, json!({"data": {"a": "Yg=="}, "type": "Opaque"}));
        let driver = defaulted("storage.k8s.io", "CSIDriver", json!({"spec": {"attachRequired": false}}));
        assert_eq!(driver["spec"]["attachRequired"], false);
        assert_eq!(driver["spec"]["volumeLifecycleModes"], json!(["Persistent"]));
        let names = defaulted(
            "apiextensions.k8s.io",
            "CustomResourceDefinition",
            json!({"spec": {"names": {"kind": "Foo", "plural": "foos"}}}),
        );
        assert_eq!(
            names["spec"]["names"],
            json!({"kind": "Foo", "plural": "foos", "singular": "foo", "listKind": "FooList"})
        );
    }
}
