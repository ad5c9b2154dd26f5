//! Admission of the core kinds that need code.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SecureRandom;
use serde_json::{Map, Value, json};

use crate::api::Api;
use crate::kinds::HookContext;
use crate::object::{at, fields, meta, metadata, section, text};
use crate::status::ApiError;
use crate::write::Target;

/// The first address of the service network: the API server's own service.
pub(crate) const API_ADDRESS: &str = "10.96.0.1";
/// Host part of the service network 10.96.0.0/12, in bits.
const SERVICE_BITS: u32 = 20;
const SERVICE_BASE: u32 = 0x0a60_0000;
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30000..=32767;

/// Namespaces: the finalizer that waits for their content, the label with their name, the phase.
pub(crate) fn namespace(new: &mut Value, old: Option<&Value>, context: &HookContext<'_>) {
    let name = meta(new, "name").to_owned();
    let labels = metadata(new).entry("labels").or_insert_with(|| json!({}));
    if !labels.is_object() {
        *labels = json!({});
    }
    fields(labels).insert("kubernetes.io/metadata.name".to_owned(), json!(name));
    match old {
        None => {
            let spec = section(new, "spec");
            let list = spec.entry("finalizers").or_insert_with(|| json!([]));
            if !list.is_array() {
                *list = json!([]);
            }
            if let Some(list) = list.as_array_mut()
                && !list.iter().any(|name| name == "kubernetes")
            {
                list.push(json!("kubernetes"));
            }
            fields(new).insert("status".to_owned(), json!({"phase": "Active"}));
        }
        // Only the finalize subresource writes these.
        Some(old) if context.subresource != "finalize" => {
            if let Some(list) = at(old, &["spec", "finalizers"]) {
                section(new, "spec").insert("finalizers".to_owned(), list.clone());
            } else {
                section(new, "spec").remove("finalizers");
            }
        }
        Some(_) => {}
    }
}

/// A new node is not ready for pods until somebody says so.
pub(crate) fn node(new: &mut Value, old: Option<&Value>, _: &HookContext<'_>) {
    if old.is_none() {
        let taints = section(new, "spec").entry("taints").or_insert_with(|| json!([]));
        if !taints.is_array() {
            *taints = json!([]);
        }
        if let Some(list) = taints.as_array_mut()
            && !list.iter().any(|taint| taint["key"] == "node.kubernetes.io/not-ready")
        {
            list.push(json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}));
        }
    }
}

/// `stringData` becomes `data`.
pub(crate) fn secret(new: &mut Value, _: Option<&Value>, _: &HookContext<'_>) {
    let Some(Value::Object(plain)) = fields(new).remove("stringData") else { return };
    let data = section(new, "data");
    for (key, value) in plain {
        if let Value::String(text) = value {
            data.insert(key, Value::String(STANDARD.encode(text)));
        }
    }
}

/// Pods: the phase at birth, the quality class, the account of old.
pub(crate) fn pod(new: &mut Value, old: Option<&Value>, _: &HookContext<'_>) {
    if old.is_some() {
        return;
    }
    let spec = section(new, "spec");
    let account = ["serviceAccountName", "serviceAccount"]
        .into_iter()
        .find_map(|field| spec.get(field).and_then(Value::as_str).filter(|name| !name.is_empty()))
        .unwrap_or("default")
        .to_owned();
    spec.insert("serviceAccountName".to_owned(), json!(account));
    spec.insert("serviceAccount".to_owned(), json!(account));
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    if let Some(list) = tolerations.as_array_mut() {
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            let tolerated = list.iter().any(|toleration| {
                let effect = text(toleration, &["effect"]);
                let named = text(toleration, &["key"]);
                (effect.is_empty() || effect == "NoExecute")
                    && (named == key || (named.is_empty() && text(toleration, &["operator"]) == "Exists"))
            });
            if !tolerated {
                list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
            }
        }
    }
    let class = quality(new);
    fields(new).insert("status".to_owned(), json!({"phase": "Pending", "qosClass": class}));
}

/// Guaranteed if every container's requests equal its limits for cpu and memory, BestEffort if none has any.
fn quality(pod: &Value) -> &'static str {
    let containers = ["containers", "initContainers"]
        .into_iter()
        .filter_map(|list| at(pod, &["spec", list]).and_then(Value::as_array))
        .flatten();
    let (mut any, mut all) = (false, true);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let request = text(container, &["resources", "requests", resource]);
            let limit = text(container, &["resources", "limits", resource]);
            any |= !request.is_empty() || !limit.is_empty();
            all &= !limit.is_empty() && (request.is_empty() || request == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// A pod's priority from its class.
pub(crate) fn priority(api: &Api, target: &Target, pod: &mut Value) -> Result<(), ApiError> {
    let class = text(pod, &["spec", "priorityClassName"]).to_owned();
    let (value, policy) = match class.as_str() {
        "" => (0, None),
        "system-cluster-critical" => (2_000_000_000, None),
        "system-node-critical" => (2_000_001_000, None),
        name => {
            let found = api
                .store()
                .get(&format!("/registry/scheduling.k8s.io/priorityclasses//{name}"))
                .and_then(|version| serde_json::from_slice::<Value>(&version.value).ok())
                .ok_or_else(|| {
                    ApiError::forbidden(
                        "",
                        "pods",
                        &target.name,
                        format!("no PriorityClass with name {name} was found"),
                    )
                })?;
            (found["value"].as_i64().unwrap_or(0), found.get("preemptionPolicy").cloned())
        }
    };
    let spec = section(pod, "spec");
    spec.insert("priority".to_owned(), json!(value));
    spec.entry("preemptionPolicy").or_insert_with(|| policy.unwrap_or_else(|| json!("PreemptLowerPriority")));
    Ok(())
}

/// Jobs: a selector of their own, unless the user wants to bring one.
pub(crate) fn job(new: &mut Value, old: Option<&Value>, _: &HookContext<'_>) {
    if old.is_some() || at(new, &["spec", "manualSelector"]) == Some(&Value::Bool(true)) {
        return;
    }
    let (uid, name) = (meta(new, "uid").to_owned(), meta(new, "name").to_owned());
    let spec = section(new, "spec");
    spec.insert("selector".to_owned(), json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
    let template = spec.entry("template").or_insert_with(|| json!({}));
    let labels = metadata(template).entry("labels").or_insert_with(|| json!({}));
    for (key, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        fields(labels).insert(key.to_owned(), json!(value));
    }
}

/// Signing requests carry who made them; nobody can say otherwise.
pub(crate) fn signing_request(new: &mut Value, old: Option<&Value>, context: &HookContext<'_>) {
    if old.is_none() {
        let spec = section(new, "spec");
        spec.insert("username".to_owned(), json!(context.user));
        spec.insert("groups".to_owned(), json!(context.groups));
        spec.remove("extra");
        if context.user_uid.is_empty() {
            spec.remove("uid");
        } else {
            spec.insert("uid".to_owned(), json!(context.user_uid));
        }
    }
}

/// Services keep the address they have, and lose what only means something to the type that they had.
pub(crate) fn service(new: &mut Value, old: Option<&Value>, _: &HookContext<'_>) {
    let Some(old) = old else { return };
    let kind = text(new, &["spec", "type"]).to_owned();
    for (field, types) in [
        ("externalTrafficPolicy", &["NodePort", "LoadBalancer"][..]),
        ("healthCheckNodePort", &["LoadBalancer"]),
        ("allocateLoadBalancerNodePorts", &["LoadBalancer"]),
        ("loadBalancerClass", &["LoadBalancer"]),
    ] {
        // What the request itself sets is left to validation.
        if !types.contains(&kind.as_str()) && at(old, &["spec", field]) == at(new, &["spec", field]) {
            section(new, "spec").remove(field);
        }
    }
    if text(new, &["spec", "type"]) == "ExternalName" || text(old, &["spec", "type"]) == "ExternalName" {
        return;
    }
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if let Some(value) = at(old, &["spec", field])
            && at(new, &["spec", field]).is_none_or(|value| value.is_null() || value == "")
        {
            section(new, "spec").insert(field.to_owned(), value.clone());
        }
    }
}

/// Addresses and node ports of a service. To be called under [`Api::lock_allocation`].
pub(crate) fn allocate(api: &Api, target: &Target, service: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
    let kind = text(service, &["spec", "type"]).to_owned();
    if kind == "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            section(service, "spec").remove(field);
        }
        return Ok(());
    }
    let range = api.store().range("/registry/core/services/", None, usize::MAX, None)?;
    let own = target.key();
    let others: Vec<Value> = range
        .versions
        .iter()
        .filter(|version| *version.key != *own)
        .filter_map(|version| serde_json::from_slice(&version.value).ok())
        .collect();
    cluster_address(api, target, service, &others)?;
    node_ports(target, service, &kind, old, &others)
}

fn cluster_address(api: &Api, target: &Target, service: &mut Value, others: &[Value]) -> Result<(), ApiError> {
    let taken = |address: &str| others.iter().any(|other| text(other, &["spec", "clusterIP"]) == address);
    let wanted = text(service, &["spec", "clusterIP"]).to_owned();
    let address = match wanted.as_str() {
        "" => {
            let size = 1_u32 << SERVICE_BITS;
            let mut bytes = [0_u8; 4];
            api.random().fill(&mut bytes).map_err(|_| ApiError::internal("the system gave no random bytes"))?;
            // Random first, then the next free one; the first few are for well-known services.
            let start = u32::from_le_bytes(bytes) % size;
            (0..size)
                .map(|step| (start + step) % size)
                .filter(|host| (256..size - 1).contains(host))
                .map(|host| std::net::Ipv4Addr::from(SERVICE_BASE + host).to_string())
                .find(|address| !taken(address))
                .ok_or_else(|| ApiError::internal("no service address is free"))?
        }
        "None" => wanted,
        other => {
            let inside = other
                .parse::<std::net::Ipv4Addr>()
                .is_ok_and(|address| u32::from(address) >> SERVICE_BITS == SERVICE_BASE >> SERVICE_BITS);
            if !inside || taken(other) {
                let why = if inside {
                    "provided IP is already allocated"
                } else {
                    "provided IP is not in the valid range. The range of valid IPs is 10.96.0.0/12"
                };
                return Err(ApiError::invalid_field(
                    "",
                    "Service",
                    &target.name,
                    "FieldValueInvalid",
                    "spec.clusterIPs",
                    format!("Invalid value: [{other:?}]: failed to allocate IP {other}: {why}"),
                ));
            }
            wanted
        }
    };
    let spec = section(service, "spec");
    spec.insert("clusterIPs".to_owned(), json!([address]));
    spec.insert("clusterIP".to_owned(), Value::String(address));
    for (field, value) in [
        ("ipFamilies", json!(["IPv4"])),
        ("ipFamilyPolicy", json!("SingleStack")),
        ("internalTrafficPolicy", json!("Cluster")),
    ] {
        if spec.get(field).is_none_or(Value::is_null) {
            spec.insert(field.to_owned(), value);
        }
    }
    Ok(())
}

fn node_ports(
    target: &Target,
    service: &mut Value,
    kind: &str,
    old: Option<&Value>,
    others: &[Value],
) -> Result<(), ApiError> {
    let ports_of = |service: &Value| -> Vec<Map<String, Value>> {
        at(service, &["spec", "ports"])
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(Value::as_object).cloned().collect())
            .unwrap_or_default()
    };
    let number = |port: &Map<String, Value>| port.get("nodePort").and_then(Value::as_i64).filter(|port| *port != 0);
    let wants = matches!(kind, "NodePort" | "LoadBalancer");
    let mut used: Vec<i64> =
        others.iter().flat_map(|other| ports_of(other).iter().filter_map(number).collect::<Vec<_>>()).collect();
    let before = old.map(ports_of).unwrap_or_default();
    let mut ports = ports_of(service);
    for (index, port) in ports.iter_mut().enumerate() {
        match number(port) {
            Some(_) if !wants => {
                port.remove("nodePort");
            }
            Some(wanted) => {
                if !NODE_PORTS.contains(&wanted) || used.contains(&wanted) {
                    let why = if NODE_PORTS.contains(&wanted) {
                        "provided port is already allocated"
                    } else {
                        "provided port is not in the valid range. The range of valid ports is 30000-32767"
                    };
                    return Err(ApiError::invalid_field(
                        "",
                        "Service",
                        &target.name,
                        "FieldValueInvalid",
                        &format!("spec.ports[{index}].nodePort"),
                        format!("Invalid value: {wanted}: {why}"),
                    ));
                }
                used.push(wanted);
            }
            None if wants => {
                let same = |other: &&Map<String, Value>| {
                    other.get("port") == port.get("port") && other.get("protocol") == port.get("protocol")
                };
                let kept = before.iter().find(same).and_then(number).filter(|kept| !used.contains(kept));
                let free = kept.or_else(|| NODE_PORTS.into_iter().find(|candidate| !used.contains(candidate)));
                let free = free.ok_or_else(|| ApiError::internal("no node port is free"))?;
                used.push(free);
                port.insert("nodePort".to_owned(), json!(free));
            }
            None => {}
        }
    }
    if at(service, &["spec", "ports"]).is_some() {
        section(service, "spec")
            .insert("ports".to_owned(), Value::Array(ports.into_iter().map(Value::Object).collect()));
    }
    Ok(())
}
