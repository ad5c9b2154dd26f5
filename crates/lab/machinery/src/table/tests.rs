use super::*;
use serde_json::json;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("stamp")
}

/// The cells of a built-in kind by heading, wide ones included.
fn cells(group: &str, kind: &str, object: &Value) -> Vec<(String, Value)> {
    let definition = builtin(group, kind);
    let cells = definition.cells(object, now());
    assert_eq!(cells.len(), definition.columns().len(), "{kind}");
    definition.columns().iter().map(|c| c.name.clone()).zip(cells).collect()
}

/// Only the values of the columns that are not wide.
fn narrow(group: &str, kind: &str, object: &Value) -> Value {
    let definition = builtin(group, kind);
    let shown = definition.columns().iter().zip(definition.cells(object, now()));
    shown.filter(|(c, _)| c.priority == 0).map(|(_, v)| v).collect()
}

fn headings(group: &str, kind: &str) -> String {
    builtin(group, kind)
        .columns()
        .iter()
        .map(|c| if c.priority == 0 { c.name.clone() } else { format!("[{}]", c.name) })
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn every_kind_fills_its_columns_from_an_empty_object() {
    for printer in kinds::PRINTERS.iter().chain(kinds::NAMELESS).chain([&kinds::FALLBACK]) {
        for object in [json!({}), json!({"metadata": {}, "spec": {}, "status": {}}), json!([])] {
            assert_eq!((printer.cells)(&object, now()).len(), printer.columns.len(), "{}", printer.kind);
        }
    }
}

#[test]
fn headings_are_the_field_s() {
    for (group, kind, expected) in [
        ("", "Pod", "Name Ready Status Restarts Age [IP] [Node] [Nominated Node] [Readiness Gates]"),
        ("apps", "Deployment", "Name Ready Up-to-date Available Age [Containers] [Images] [Selector]"),
        ("", "Service", "Name Type Cluster-IP External-IP Port(s) Age [Selector]"),
        ("", "Event", "Last Seen Type Reason Object [Subobject] [Source] Message [First Seen] [Count] [Name]"),
        (
            "",
            "PersistentVolume",
            "Name Capacity Access Modes Reclaim Policy Status Claim StorageClass VolumeAttributesClass Reason Age [VolumeMode]",
        ),
        ("storage.k8s.io", "StorageClass", "Name Provisioner ReclaimPolicy VolumeBindingMode AllowVolumeExpansion Age"),
        ("rbac.authorization.k8s.io", "ClusterRole", "Name Created At"),
        ("apiextensions.k8s.io", "CustomResourceDefinition", "Name Created At"),
    ] {
        assert_eq!(headings(group, kind), expected);
    }
}

#[test]
fn storage_kinds() {
    let created = "2026-01-01T00:59:50Z";
    assert_eq!(
        narrow(
            "storage.k8s.io",
            "StorageClass",
            &json!({
                "metadata": {"name": "standard", "creationTimestamp": created,
                    "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
                "provisioner": "hostpath.csi.k8s.io",
            })
        ),
        json!(["standard (default)", "hostpath.csi.k8s.io", "Delete", "Immediate", false, "10s"])
    );
    assert_eq!(
        narrow(
            "storage.k8s.io",
            "CSIDriver",
            &json!({
                "metadata": {"name": "hostpath.csi.k8s.io", "creationTimestamp": created},
                "spec": {"attachRequired": true, "podInfoOnMount": true, "storageCapacity": false,
                    "volumeLifecycleModes": ["Persistent", "Ephemeral"]},
            })
        ),
        json!(["hostpath.csi.k8s.io", true, true, false, "<unset>", false, "Persistent,Ephemeral", "10s"])
    );
    let pv = json!({
        "metadata": {"name": "pvc-1", "creationTimestamp": created},
        "spec": {"capacity": {"storage": "1024Mi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Delete", "claimRef": {"namespace": "default", "name": "pvc-test"},
            "storageClassName": "standard", "volumeMode": "Filesystem"},
        "status": {"phase": "Bound"},
    });
    assert_eq!(
        narrow("", "PersistentVolume", &pv),
        json!(["pvc-1", "1Gi", "RWO,RWX", "Delete", "Bound", "default/pvc-test", "standard", "<unset>", "", "10s"])
    );
    let mut pvc = json!({
        "metadata": {"name": "pvc-test", "creationTimestamp": created},
        "spec": {"volumeName": "pvc-1", "storageClassName": "standard"},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]},
    });
    assert_eq!(
        narrow("", "PersistentVolumeClaim", &pvc),
        json!(["pvc-test", "Bound", "pvc-1", "1Gi", "RWO", "standard", "<unset>", "10s"])
    );
    pvc["spec"]["volumeName"] = Value::Null;
    pvc["metadata"]["deletionTimestamp"] = json!(created);
    assert_eq!(
        narrow("", "PersistentVolumeClaim", &pvc),
        json!(["pvc-test", "Terminating", "", "", "", "standard", "<unset>", "10s"])
    );
    assert_eq!(
        narrow(
            "storage.k8s.io",
            "VolumeAttachment",
            &json!({
                "metadata": {"name": "csi-1", "creationTimestamp": created},
                "spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "pv"}},
                "status": {"attached": true},
            })
        ),
        json!(["csi-1", "d", "pv", "n", true, "10s"])
    );
}

fn pod_status(pod: &Value) -> Value {
    narrow("", "Pod", pod).as_array().map(|cells| cells[1..4].iter().cloned().collect()).expect("cells")
}

#[test]
fn pod_states() {
    let containers = json!([{"name": "a"}, {"name": "b"}]);
    let with = |status: Value| json!({"metadata": {"name": "p"}, "spec": {"containers": containers}, "status": status});
    let running = json!({"ready": true, "restartCount": 0, "state": {"running": {}}});
    assert_eq!(pod_status(&with(json!({"phase": "Pending"}))), json!(["0/2", "Pending", "0"]));
    assert_eq!(
        pod_status(&with(json!({"phase": "Running", "containerStatuses": [running, running]}))),
        json!(["2/2", "Running", "0"])
    );
    assert_eq!(
        pod_status(&with(json!({"phase": "Running", "containerStatuses": [
            {"ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
             "lastState": {"terminated": {"finishedAt": "2026-01-01T00:58:00Z"}}},
            running,
        ]}))),
        json!(["1/2", "CrashLoopBackOff", "3 (2m ago)"])
    );
    for (terminated, word) in [
        (json!({"reason": "Completed", "exitCode": 0}), "Completed"),
        (json!({"exitCode": 7}), "ExitCode:7"),
        (json!({"signal": 9, "exitCode": 137}), "Signal:9"),
    ] {
        let status = json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": terminated}}]});
        assert_eq!(pod_status(&with(status)), json!(["0/2", word, "0"]));
    }
    let done = json!({"state": {"terminated": {"reason": "Completed", "exitCode": 0}}});
    let half = |ready: &str| json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready}], "containerStatuses": [done, running]});
    assert_eq!(pod_status(&with(half("False"))), json!(["1/2", "NotReady", "0"]));
    assert_eq!(pod_status(&with(half("True"))), json!(["1/2", "Running", "0"]));
    let gated = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]});
    assert_eq!(pod_status(&with(gated)), json!(["0/2", "SchedulingGated", "0"]));
    let mut leaving = with(json!({"phase": "Running", "containerStatuses": [running, running]}));
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(pod_status(&leaving), json!(["2/2", "Terminating", "0"]));
    leaving["status"]["reason"] = json!("NodeLost");
    assert_eq!(pod_status(&leaving), json!(["2/2", "Unknown", "0"]));
}

#[test]
fn init_containers() {
    let pod = |init: Value| {
        json!({
            "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]},
            "status": {"phase": "Pending", "initContainerStatuses": init,
                "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]},
        })
    };
    let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
    for (init, shown) in [
        (json!([{"name": "i", "state": {"running": {}}}]), json!(["0/2", "Init:0/2", "0"])),
        (
            json!([{"name": "i", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]),
            json!(["0/2", "Init:CrashLoopBackOff", "1"]),
        ),
        (
            json!([{"name": "i", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]),
            json!(["0/2", "Init:Error", "0"]),
        ),
        (
            json!([done, {"name": "s", "state": {"waiting": {"reason": "PodInitializing"}}}]),
            json!(["0/2", "Init:1/2", "0"]),
        ),
        (
            json!([done, {"name": "s", "ready": true, "started": true, "restartCount": 2, "state": {"running": {}}}]),
            json!(["1/2", "PodInitializing", "2"]),
        ),
    ] {
        assert_eq!(pod_status(&pod(init.clone())), shown, "{init}");
    }
}

#[test]
fn nodes_and_services() {
    let node = json!({
        "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.37.0"},
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
    });
    let cells = cells("", "Node", &node);
    assert_eq!(cells[1].1, "Ready,SchedulingDisabled");
    assert_eq!(cells[2].1, "control-plane,worker");
    assert_eq!(cells[5], ("Internal-IP".to_owned(), json!("10.0.0.1")));
    assert_eq!(cells[6].1, "<none>");
    let service = json!({
        "metadata": {"name": "s"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]},
    });
    assert_eq!(
        narrow("", "Service", &service),
        json!(["s", "NodePort", "10.96.0.7", "<none>", "80:30080/TCP,53/UDP", "<unknown>"])
    );
    let lb = json!({"spec": {"type": "LoadBalancer", "clusterIP": "None"}});
    assert_eq!(narrow("", "Service", &lb)[3], "<pending>");
}

#[test]
fn autoscalers() {
    let hpa = json!({
        "metadata": {"name": "h"},
        "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 5, "metrics": [
            {"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}},
            {"type": "Resource", "resource": {"name": "memory", "target": {"averageValue": "1Gi"}}},
            {"type": "Pods"},
        ]},
        "status": {"currentReplicas": 2, "currentMetrics": [{"resource": {"name": "cpu", "current": {"averageUtilization": 7}}}]},
    });
    assert_eq!(
        narrow("autoscaling", "HorizontalPodAutoscaler", &hpa),
        json!(["h", "Deployment/d", "cpu: 7%/80%, memory: <unknown>/1Gi + 1 more...", "<unset>", 5, 2, "<unknown>"])
    );
}

#[test]
fn events_of_both_groups() {
    let core = json!({
        "metadata": {"name": "p.1"}, "type": "Warning", "reason": "Failed", "message": "no\n", "count": 4,
        "involvedObject": {"kind": "Pod", "name": "p"}, "source": {"component": "kubelet", "host": "n"},
        "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:59:00Z",
    });
    let new = json!({
        "metadata": {"name": "p.1"}, "type": "Warning", "reason": "Failed", "note": "no", "deprecatedCount": 4,
        "regarding": {"kind": "Pod", "name": "p"}, "deprecatedSource": {"component": "kubelet", "host": "n"},
        "deprecatedFirstTimestamp": "2026-01-01T00:00:00Z", "deprecatedLastTimestamp": "2026-01-01T00:59:00Z",
    });
    let expected = json!(["60s", "Warning", "Failed", "pod/p", "", "kubelet, n", "no", "60m", 4, "p.1"]);
    let all = |group, event| cells(group, "Event", event).into_iter().map(|(_, v)| v).collect::<Value>();
    assert_eq!(all("", &core), expected);
    assert_eq!(all("events.k8s.io", &new), expected);
}

#[test]
fn custom_columns() {
    let definition = Definition::custom(Some(&json!([
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
        {"name": "Since", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        {"name": "Paused", "type": "boolean", "jsonPath": ".spec.paused", "priority": 1},
        {"name": "Map", "type": "string", "jsonPath": ".spec.map"},
        {"name": "Types", "type": "string", "jsonPath": ".status.conditions[*].type"},
        {"name": "Wrong", "type": "integer", "jsonPath": ".metadata.name"},
    ])))
    .expect("valid");
    let object = json!({
        "metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"replicas": 3, "paused": true, "map": {"a": 1}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other"}]},
    });
    assert_eq!(
        Value::from(definition.cells(&object, now())),
        json!(["x", "True", 3, "60m", true, "{\"a\":1}", "Ready", null])
    );
    assert_eq!(definition.columns()[4].priority, 1);
    let empty = json!({"metadata": {"name": "x"}});
    assert_eq!(Value::from(definition.cells(&empty, now())), json!(["x", null, null, null, null, null, null, null]));
    let age = Definition::custom(None).expect("valid");
    assert_eq!(Value::from(age.cells(&object, now())), json!(["x", "60m"]));
    assert!(Definition::custom(Some(&json!([{"name": "x", "type": "string", "jsonPath": "spec"}]))).is_err());
}

#[test]
fn assembled() {
    let definition = builtin("", "ConfigMap");
    let item = json!({"kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": "c", "creationTimestamp": "2026-01-01T00:59:55Z"}, "data": {"a": "1"}});
    let options = TableOptions { version: "v1", include: IncludeObject::Metadata, definitions: true, now: now() };
    let table = to_table(&definition, [&item], &json!({"resourceVersion": "7"}), &options);
    assert_eq!(table["metadata"], json!({"resourceVersion": "7"}));
    assert_eq!(table["apiVersion"], "meta.k8s.io/v1");
    assert_eq!(
        table["columnDefinitions"][0],
        json!({"name": "Name", "type": "string", "format": "name", "description": kinds::NAME, "priority": 0})
    );
    assert_eq!(
        table["rows"],
        json!([{"cells": ["c", 1, "5s"], "object": {
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}}])
    );
    let later = TableOptions { definitions: false, include: IncludeObject::None, ..options.clone() };
    let table = to_table(&definition, [&item], &json!({}), &later);
    assert_eq!(table["columnDefinitions"], Value::Null);
    assert_eq!(table["rows"][0]["object"], Value::Null);
    let bookmark = to_table(&definition, [], &json!({"resourceVersion": "9"}), &options);
    assert_eq!(bookmark["rows"], json!([]));
    let status = of_status(&json!({"status": "Failure", "reason": "NotFound", "message": "gone"}), &options);
    assert_eq!(status["rows"][0]["cells"], json!(["Failure", "NotFound", "gone"]));
    let done = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {}, "status": {"phase": "Succeeded"}});
    let table = to_table(&builtin("", "Pod"), [&done], &json!({}), &options);
    assert_eq!(table["rows"][0]["conditions"][0]["reason"], "Succeeded");
}
