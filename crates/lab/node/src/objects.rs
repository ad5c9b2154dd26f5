//! The node's objects: values in, values out.

use serde_json::{Map, Value, json};

/// The annotation that maps each driver to the node's id in it, as a JSON object.
pub const NODE_ID_ANNOTATION: &str = "csi.volume.kubernetes.io/nodeid";

/// What a driver told of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsiRegistration {
    /// The driver's name.
    pub driver: String,
    /// The node's id in that driver.
    pub node_id: String,
    /// Topology segments of the node: label to value.
    pub topology: Vec<(String, String)>,
    /// Volumes that fit on the node; none if there is no limit.
    pub max_volumes: Option<i64>,
}

/// The machine, as the node's status tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// The host's name.
    pub hostname: String,
    /// Processors.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// The kernel's release.
    pub kernel: String,
    /// /etc/machine-id.
    pub machine_id: String,
    /// The boot's id.
    pub boot_id: String,
    /// The distribution's name.
    pub os_image: String,
}

/// A machine's name as a node's: lower case, with what a DNS subdomain does not allow as `-`.
pub fn node_name(hostname: &str) -> String {
    let name: String = hostname
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '-' })
        .take(63)
        .collect();
    let name = name.trim_matches(|c| c == '-' || c == '.');
    if name.is_empty() { "lab".to_owned() } else { name.to_owned() }
}

/// The Node object. It takes no pods: plugins register with it, and volumes and claims refer to it.
pub fn node(name: &str, machine: &Machine) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": arch(),
            },
            "annotations": { "volumes.kubernetes.io/controller-managed-attach-detach": "true" },
        },
        "spec": { "unschedulable": true },
        "status": status(name, machine),
    })
}

/// The node's status.
pub fn status(name: &str, machine: &Machine) -> Value {
    let resources =
        json!({ "cpu": machine.cpus.to_string(), "memory": format!("{}Ki", machine.memory / 1024), "pods": "0" });
    json!({
        "capacity": resources,
        "allocatable": resources,
        "addresses": [
            { "type": "InternalIP", "address": "127.0.0.1" },
            { "type": "Hostname", "address": name },
        ],
        "nodeInfo": {
            "machineID": machine.machine_id,
            "systemUUID": machine.machine_id,
            "bootID": machine.boot_id,
            "kernelVersion": machine.kernel,
            "osImage": machine.os_image,
            "containerRuntimeVersion": "",
            "kubeletVersion": concat!("v", env!("CARGO_PKG_VERSION"), "-outrigger"),
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": arch(),
        },
    })
}

/// The condition that says that the node is well, as a strategic merge patch of its status.
pub fn ready(now: &str, changed: &str) -> Value {
    json!({ "status": { "conditions": [{
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "the lab's node registers plugins",
        "lastHeartbeatTime": now,
        "lastTransitionTime": changed,
    }] } })
}

/// The node's lease: renewed while the node is well.
pub fn lease(name: &str, renewed: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": name, "namespace": "kube-node-lease" },
        "spec": { "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": renewed },
    })
}

/// A merge patch that puts the driver into the Node's annotation, and its topology into the labels.
///
/// # Errors
/// A label that is there with another value: two drivers, or an administrator, disagree about the node's topology, and
/// pods would be scheduled by whoever wrote last.
pub fn node_patch(node: &Value, registration: &CsiRegistration) -> Result<Value, String> {
    let mut ids: Map<String, Value> = node["metadata"]["annotations"][NODE_ID_ANNOTATION]
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    ids.insert(registration.driver.clone(), registration.node_id.clone().into());
    let mut labels = Map::new();
    for (key, value) in &registration.topology {
        if let Some(present) = node["metadata"]["labels"][key.as_str()].as_str()
            && present != value
        {
            return Err(format!("label {key} is {present:?} already, {} says {value:?}", registration.driver));
        }
        labels.insert(key.clone(), value.clone().into());
    }
    Ok(json!({ "metadata": {
        "annotations": { NODE_ID_ANNOTATION: Value::Object(ids).to_string() },
        "labels": labels,
    } }))
}

/// A CSINode without drivers, owned by its Node.
pub fn csi_node(name: &str, node_uid: &str) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSINode",
        "metadata": {
            "name": name,
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": name, "uid": node_uid }],
        },
        "spec": { "drivers": [] },
    })
}

/// The CSINode with the driver in it. A driver's entry cannot be edited, so a different one is replaced in two writes:
/// this gives the next write, or none when all is as it should be.
pub fn with_driver(csi_node: &Value, registration: &CsiRegistration) -> Option<Value> {
    let mut keys: Vec<&str> = registration.topology.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    let mut wanted = json!({ "name": registration.driver, "nodeID": registration.node_id, "topologyKeys": keys });
    if let Some(count) = registration.max_volumes {
        wanted["allocatable"] = json!({ "count": count });
    }
    let mut drivers = csi_node["spec"]["drivers"].as_array().cloned().unwrap_or_default();
    match drivers.iter().position(|driver| driver["name"] == wanted["name"]) {
        Some(place) if same(&drivers[place], &wanted) => return None,
        Some(place) => drop(drivers.remove(place)),
        None => drivers.push(wanted),
    }
    let mut next = csi_node.clone();
    next["spec"]["drivers"] = drivers.into();
    Some(next)
}

/// Equal but for the order of keys and for what is empty or not there.
fn same(present: &Value, wanted: &Value) -> bool {
    let keys = |driver: &Value| -> Vec<String> {
        let mut keys: Vec<String> = driver["topologyKeys"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|key| key.as_str().map(ToOwned::to_owned))
            .collect();
        keys.sort_unstable();
        keys
    };
    present["nodeID"] == wanted["nodeID"]
        && keys(present) == keys(wanted)
        && present["allocatable"]["count"] == wanted["allocatable"]["count"]
}

/// The processor architecture, in Go's words.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration() -> CsiRegistration {
        CsiRegistration {
            driver: "hostpath.csi.k8s.io".into(),
            node_id: "n1".into(),
            topology: vec![("topology.hostpath.csi/node".into(), "n1".into())],
            max_volumes: None,
        }
    }

    #[test]
    fn hostnames_become_node_names() {
        assert_eq!(node_name("Web_01.Example"), "web-01.example");
        assert_eq!(node_name("--"), "lab");
    }

    #[test]
    fn a_driver_is_added_to_the_others() {
        let node = json!({ "metadata": { "annotations": { NODE_ID_ANNOTATION: r#"{"other":"x"}"# } } });
        let patch = node_patch(&node, &registration()).unwrap();
        let ids: Value =
            serde_json::from_str(patch["metadata"]["annotations"][NODE_ID_ANNOTATION].as_str().unwrap()).unwrap();
        assert_eq!(ids, json!({ "other": "x", "hostpath.csi.k8s.io": "n1" }));
        assert_eq!(patch["metadata"]["labels"], json!({ "topology.hostpath.csi/node": "n1" }));
    }

    #[test]
    fn contradicting_topology_is_refused() {
        let node = json!({ "metadata": { "labels": { "topology.hostpath.csi/node": "n2" } } });
        let error = node_patch(&node, &registration()).unwrap_err();
        assert!(error.contains("\"n2\" already"), "{error}");
    }

    #[test]
    fn a_changed_driver_is_taken_out_and_put_back() {
        let empty = csi_node("n1", "uid");
        let first = with_driver(&empty, &registration()).unwrap();
        assert!(with_driver(&first, &registration()).is_none(), "registering again writes nothing");
        let limited = CsiRegistration { max_volumes: Some(3), ..registration() };
        let without = with_driver(&first, &limited).unwrap();
        assert_eq!(without["spec"]["drivers"], json!([]));
        let with = with_driver(&without, &limited).unwrap();
        assert_eq!(with["spec"]["drivers"][0]["allocatable"]["count"], 3);
    }
}
