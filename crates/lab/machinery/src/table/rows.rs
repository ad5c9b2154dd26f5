//! The cells of the built-in kinds that take more than picking fields.

use jiff::Timestamp;
use serde_json::Value;

use super::cells::{
    NONE, UNKNOWN, UNSET, access_modes, age, condition, containers, first_three, flag, int, joined, label_selector,
    labels, len, list, name, quantity, scalar_or, since, text, text_or,
};
use crate::duration;

/// `spec.replicas` with its default.
fn desired(object: &Value) -> i64 {
    object["spec"]["replicas"].as_i64().unwrap_or(1)
}

pub(super) fn replicas(o: &Value, now: Timestamp, selector: String) -> Vec<Value> {
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

pub(super) fn deployment(o: &Value, now: Timestamp) -> Vec<Value> {
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

pub(super) fn daemon_set(o: &Value, now: Timestamp) -> Vec<Value> {
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

pub(super) fn stateful_set(o: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(&o["spec"]["template"]);
    let ready = format!("{}/{}", int(&o["status"]["readyReplicas"]), desired(o));
    vec![name(o), ready.into(), age(o, now), names, images]
}

/// The controlling owner as `kind.group/name`.
pub(super) fn controller(o: &Value) -> String {
    let Some(owner) = list(&o["metadata"]["ownerReferences"]).iter().find(|r| flag(&r["controller"])) else {
        return NONE.to_owned();
    };
    let group = text(&owner["apiVersion"]).split_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
    format!("{}{group}/{}", text(&owner["kind"]).to_lowercase(), text(&owner["name"]))
}

pub(super) fn job(o: &Value, now: Timestamp) -> Vec<Value> {
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

pub(super) fn cron_job(o: &Value, now: Timestamp) -> Vec<Value> {
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

pub(super) fn service(o: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &o["spec"];
    let cluster_ip =
        list(&spec["clusterIPs"]).first().map_or(text_or(&spec["clusterIP"], NONE), |ip| text_or(ip, NONE));
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

pub(super) fn endpoints(o: &Value, now: Timestamp) -> Vec<Value> {
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

pub(super) fn endpoint_slice(o: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = list(&o["ports"])
        .iter()
        .map(|p| p["port"].as_i64().map_or_else(|| text_or(&p["name"], "*").to_owned(), |n| n.to_string()))
        .collect();
    let addresses: Vec<String> =
        list(&o["endpoints"]).iter().flat_map(|e| list(&e["addresses"])).map(|a| text(a).to_owned()).collect();
    let kind = text(&o["addressType"]);
    vec![name(o), kind.into(), first_three(&ports, UNSET).into(), first_three(&addresses, UNSET).into(), age(o, now)]
}

pub(super) fn node(o: &Value, now: Timestamp) -> Vec<Value> {
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
pub(super) fn event(o: &Value, now: Timestamp) -> Vec<Value> {
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

pub(super) fn persistent_volume(o: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, claim) = (&o["spec"], &o["spec"]["claimRef"]);
    let claim = if claim.is_object() {
        format!("{}/{}", text(&claim["namespace"]), text(&claim["name"]))
    } else {
        String::new()
    };
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

pub(super) fn persistent_volume_claim(o: &Value, now: Timestamp) -> Vec<Value> {
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
pub(super) fn defaulted(o: &Value, annotations: &[&str]) -> Value {
    let default = annotations.iter().any(|a| o["metadata"]["annotations"][a] == "true");
    let name = text(&o["metadata"]["name"]);
    if default { format!("{name} (default)").into() } else { name.into() }
}

pub(super) fn storage_class(o: &Value, now: Timestamp) -> Vec<Value> {
    let default = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    vec![
        defaulted(o, &default),
        text(&o["provisioner"]).into(),
        text_or(&o["reclaimPolicy"], "Delete").into(),
        text_or(&o["volumeBindingMode"], "Immediate").into(),
        flag(&o["allowVolumeExpansion"]).into(),
        age(o, now),
    ]
}

pub(super) fn csi_driver(o: &Value, now: Timestamp) -> Vec<Value> {
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

pub(super) fn role_binding(o: &Value, now: Timestamp) -> Vec<Value> {
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

pub(super) fn param_kind(spec: &Value) -> String {
    let kind = &spec["paramKind"];
    if kind.is_object() { format!("{}/{}", text(&kind["apiVersion"]), text(&kind["kind"])) } else { UNSET.to_owned() }
}

pub(super) fn policy_binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let reference = &o["spec"]["paramRef"];
    let params = match (text(&reference["namespace"]), text(&reference["name"])) {
        _ if !reference.is_object() => UNSET.to_owned(),
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    };
    vec![name(o), text(&o["spec"]["policyName"]).into(), params.into(), age(o, now)]
}

pub(super) fn ingress(o: &Value, now: Timestamp) -> Vec<Value> {
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

pub(super) fn ingress_class(o: &Value, now: Timestamp) -> Vec<Value> {
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

pub(super) fn parent_ref(parent: &Value) -> String {
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

pub(super) fn resource_quota(o: &Value, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in o["status"]["hard"].as_object().into_iter().flatten() {
        let used = scalar_or(&o["status"]["used"][resource], "0");
        let entry = format!("{resource}: {used}/{}", scalar_or(hard, "0"));
        if resource.starts_with("limits") { limits.push(entry) } else { requests.push(entry) }
    }
    vec![name(o), requests.join(", ").into(), limits.join(", ").into(), age(o, now)]
}

pub(super) fn signing_request(o: &Value, now: Timestamp) -> Vec<Value> {
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

pub(super) fn claim_state(o: &Value) -> String {
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

/// A HorizontalPodAutoscaler; metrics other than those of resources show by their name only.
pub(super) fn autoscaler(o: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, target) = (&o["spec"], &o["spec"]["scaleTargetRef"]);
    let current = |resource: &str| {
        list(&o["status"]["currentMetrics"])
            .iter()
            .map(|m| &m["resource"])
            .find(|r| r["name"] == resource)
            .map_or(&Value::Null, |r| &r["current"])
    };
    let targets: Vec<String> = list(&spec["metrics"])
        .iter()
        .map(|metric| {
            let resource = &metric["resource"];
            let name = text(&resource["name"]);
            let (aim, now) = (&resource["target"], current(name));
            match (text(&metric["type"]), aim["averageUtilization"].as_i64()) {
                ("Resource", Some(aim)) => match now["averageUtilization"].as_i64() {
                    Some(now) => format!("{name}: {now}%/{aim}%"),
                    None => format!("{name}: {UNKNOWN}/{aim}%"),
                },
                ("Resource", None) => {
                    let now = scalar_or(&now["averageValue"], UNKNOWN);
                    format!("{name}: {now}/{}", scalar_or(&aim["averageValue"], UNSET))
                }
                (other, _) => format!("{other}: {UNKNOWN}"),
            }
        })
        .collect();
    let more = if targets.len() > 2 { format!(" + {} more...", targets.len() - 2) } else { String::new() };
    vec![
        name(o),
        format!("{}/{}", text(&target["kind"]), text(&target["name"])).into(),
        if targets.is_empty() {
            NONE.into()
        } else {
            format!("{}{more}", targets[..targets.len().min(2)].join(", ")).into()
        },
        scalar_or(&spec["minReplicas"], UNSET).into(),
        int(&spec["maxReplicas"]).into(),
        int(&o["status"]["currentReplicas"]).into(),
        age(o, now),
    ]
}
