//! Bad input gets a clear error and loses nothing: what was wrong, where, what to do.
//!
//! Each row is an input and the exact error that a user sees. The rows about CSI requests are sent to the driver through
//! `outrigger csi`; more of them, for every RPC, are in the SDK's own tests.

use anyhow::{Context as _, Result, bail, ensure};
use http_body_util::BodyExt as _;
use outrigger_tests::{Lab, is_root};
use serde_json::{Value, json};

/// A command line, its exit code, and what its error says.
struct Line(&'static [&'static str], i32, &'static str);

const LINES: &[Line] = &[
    Line(&[], 2, "Usage: outrigger"),
    Line(&["fly"], 2, "unrecognized subcommand 'fly'"),
    Line(&["lab"], 2, "Usage: outrigger lab"),
    Line(&["lab", "up", "--listen", "nowhere"], 2, "invalid value 'nowhere' for '--listen <ADDRESS>'"),
    Line(
        &["lab", "up", "--bare", "--listen", "192.0.2.1:1"],
        1,
        "--listen 192.0.2.1:1: the lab serves on loopback addresses only, such as 127.0.0.1:7443",
    ),
    Line(&["lab", "up", "--durability", "hope"], 2, "[possible values: memory, process, power]"),
    Line(&["lab", "up", "--timeout", "5"], 2, "\"5\" is not a duration; write it like 30s, 500ms or 1m30s"),
    Line(
        &["lab", "up", "--dir", "/dev/null", "--bare"],
        1,
        "/dev/null is there and is not a directory; choose another with --dir",
    ),
    Line(
        &["lab", "kubeconfig", "--dir", "/nowhere/lab"],
        1,
        "there is no kubeconfig in /nowhere/lab; start a lab with `outrigger lab up`",
    ),
    Line(&["lab", "status", "--dir", ""], 2, "a value is required for '--dir <DIR>'"),
    Line(&["lab", "reset", "--dir", "/etc", "--yes"], 1, "/etc holds things that are not the lab's"),
    Line(&["csi", "fly"], 1, "fly"),
    Line(&["csi", "probe", "--endpoint", "tcp://127.0.0.1:1"], 1, "tcp://127.0.0.1:1"),
    Line(&["csi", "probe", "--endpoint", "unix:///nowhere/csi.sock", "--timeout", "200ms"], 1, "/nowhere/csi.sock"),
    Line(&["csi", "probe", "{}", "--file", "x.json"], 2, "cannot be used with"),
    Line(&["csi", "probe", "--file", "/nowhere/x.json"], 1, "/nowhere/x.json"),
    Line(&["storage", "driver"], 2, "--nodeid"),
    Line(&["storage", "driver", "--nodeid", "n", "--capacity", "fast=lots"], 2, "lots"),
    Line(
        &["storage", "controllers", "--csi-address", "/nowhere/csi.sock", "--kubeconfig", "/nowhere/config"],
        1,
        "/nowhere/config",
    ),
    Line(&["completions", "tcsh"], 2, "invalid value 'tcsh'"),
];

#[test]
fn on_the_command_line() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut wrong = Vec::new();
    for Line(arguments, code, text) in LINES {
        let ran = outrigger_tests::run(
            std::process::Command::new(outrigger_tests::outrigger_binary())
                .args(*arguments)
                .env("OUTRIGGER_LAB_DIR", scratch.path().join("lab"))
                .env("HOME", scratch.path())
                .env_remove("KUBECONFIG")
                .env_remove("CSI_ENDPOINT"),
        )?;
        if ran.code != Some(*code) || !ran.stderr.contains(text) {
            wrong.push(format!("{arguments:?}: wanted {code} and {text:?}, got {:?} and {}", ran.code, ran.stderr));
        }
        if ran.stderr.contains("panicked") {
            wrong.push(format!("{arguments:?} panicked: {}", ran.stderr));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

/// A request to the API server, and the answer: code, reason, and a part of the message.
///
/// Kubernetes 1.20 passes the same table but for two rows that came later: it answers 500 to a resource version that is no
/// number, and knows no field validation.
struct Call(&'static str, &'static str, &'static str, Value, u16, &'static str, &'static str);

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

fn calls() -> Vec<Call> {
    let maps = "/api/v1/namespaces/default/configmaps";
    let first = "/api/v1/namespaces/default/configmaps/first";
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let classes = "/apis/storage.k8s.io/v1/storageclasses";
    let map = |metadata: Value| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata });
    let claim = |spec: Value| json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "c" }, "spec": spec });
    vec![
        Call("GET", "/apis/nowhere.example.com/v1/things", JSON, Value::Null, 404, "", "404 page not found"),
        Call(
            "GET",
            "/api/v1/things",
            JSON,
            Value::Null,
            404,
            "NotFound",
            "the server could not find the requested resource",
        ),
        Call(
            "GET",
            "/api/v1/namespaces/default/configmaps/missing",
            JSON,
            Value::Null,
            404,
            "NotFound",
            "configmaps \"missing\" not found",
        ),
        Call(
            "GET",
            "/apis/apps/v1/namespaces/default/deployments/missing",
            JSON,
            Value::Null,
            404,
            "NotFound",
            "deployments.apps \"missing\" not found",
        ),
        Call(
            "GET",
            "/api/v1/configmaps?labelSelector=a%20b%20c",
            JSON,
            Value::Null,
            400,
            "BadRequest",
            "unable to parse requirement",
        ),
        Call("GET", "/api/v1/configmaps?fieldSelector=data.x%3D1", JSON, Value::Null, 400, "BadRequest", "data.x"),
        Call("GET", "/api/v1/configmaps?resourceVersion=abc", JSON, Value::Null, 400, "BadRequest", "abc"),
        Call("GET", "/api/v1/configmaps?continue=garbage", JSON, Value::Null, 400, "BadRequest", "continue"),
        Call(
            "GET",
            "/api/v1/configmaps?resourceVersionMatch=Exact",
            JSON,
            Value::Null,
            422,
            "Invalid",
            "resourceVersionMatch",
        ),
        Call("POST", maps, JSON, json!("text"), 400, "BadRequest", ""),
        Call("POST", maps, JSON, map(json!({})), 422, "Invalid", "name or generateName is required"),
        Call(
            "POST",
            maps,
            JSON,
            map(json!({ "name": "Not_A_Name" })),
            422,
            "Invalid",
            "a lowercase RFC 1123 subdomain",
        ),
        Call(
            "POST",
            maps,
            JSON,
            map(json!({ "name": "x", "namespace": "other" })),
            400,
            "BadRequest",
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        Call(
            "POST",
            maps,
            JSON,
            map(json!({ "name": "first" })),
            409,
            "AlreadyExists",
            "configmaps \"first\" already exists",
        ),
        Call(
            "POST",
            maps,
            JSON,
            map(json!({ "name": "x", "labels": { "a b": "c" } })),
            422,
            "Invalid",
            "metadata.labels",
        ),
        Call(
            "POST",
            maps,
            JSON,
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "x" } }),
            400,
            "BadRequest",
            "Secret",
        ),
        Call(
            "POST",
            maps,
            JSON,
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "x" }, "data": ["a"] }),
            400,
            "BadRequest",
            "data",
        ),
        Call(
            "POST",
            "/api/v1/namespaces/default/configmaps?fieldValidation=Strict",
            JSON,
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "x" }, "dato": {} }),
            400,
            "BadRequest",
            "unknown field \"dato\"",
        ),
        Call(
            "POST",
            "/api/v1/namespaces/default/configmaps?dryRun=Some",
            JSON,
            map(json!({ "name": "x" })),
            422,
            "Invalid",
            "dryRun",
        ),
        Call(
            "POST",
            "/api/v1/namespaces/missing/configmaps",
            JSON,
            map(json!({ "name": "x" })),
            404,
            "NotFound",
            "namespaces \"missing\" not found",
        ),
        Call(
            "POST",
            maps,
            "text/plain",
            map(json!({ "name": "x" })),
            415,
            "UnsupportedMediaType",
            "accepted media types include: application/json",
        ),
        Call(
            "PUT",
            "/api/v1/namespaces/default/configmaps/missing",
            JSON,
            map(json!({ "name": "missing" })),
            404,
            "NotFound",
            "configmaps \"missing\" not found",
        ),
        Call(
            "PUT",
            first,
            JSON,
            map(json!({ "name": "other" })),
            400,
            "BadRequest",
            "the name of the object (other) does not match the name on the URL (first)",
        ),
        Call(
            "PUT",
            first,
            JSON,
            map(json!({ "name": "first", "resourceVersion": "1" })),
            409,
            "Conflict",
            "Operation cannot be fulfilled on configmaps \"first\"",
        ),
        Call(
            "PUT",
            first,
            JSON,
            map(json!({ "name": "first", "uid": "11111111-1111-1111-1111-111111111111" })),
            409,
            "Conflict",
            "UID",
        ),
        Call(
            "PATCH",
            first,
            MERGE,
            json!({ "metadata": { "resourceVersion": "1" } }),
            409,
            "Conflict",
            "Operation cannot be fulfilled",
        ),
        Call(
            "PATCH",
            first,
            JSON_PATCH,
            json!([{ "op": "test", "path": "/data/a", "value": "2" }]),
            422,
            "Invalid",
            "",
        ),
        Call("PATCH", first, JSON_PATCH, json!({ "op": "test" }), 400, "BadRequest", ""),
        Call(
            "PATCH",
            first,
            STRATEGIC,
            json!({ "metadata": { "finalizers": "no" } }),
            422,
            "Invalid",
            "patch: Invalid value",
        ),
        Call("PATCH", first, APPLY, map(json!({ "name": "first" })), 422, "Invalid", "fieldManager"),
        Call("PATCH", first, JSON, json!({}), 415, "UnsupportedMediaType", ""),
        Call(
            "DELETE",
            "/api/v1/namespaces/default/configmaps/missing",
            JSON,
            Value::Null,
            404,
            "NotFound",
            "configmaps \"missing\" not found",
        ),
        Call(
            "DELETE",
            first,
            JSON,
            json!({ "preconditions": { "uid": "11111111-1111-1111-1111-111111111111" } }),
            409,
            "Conflict",
            "UID in ",
        ),
        Call("DELETE", first, JSON, json!({ "propagationPolicy": "Sideways" }), 422, "Invalid", "propagationPolicy"),
        Call(
            "DELETE",
            "/api/v1/namespaces/kube-system",
            JSON,
            Value::Null,
            403,
            "Forbidden",
            "this namespace may not be deleted",
        ),
        Call(
            "POST",
            claims,
            JSON,
            claim(json!({ "resources": { "requests": { "storage": "1Gi" } } })),
            422,
            "Invalid",
            "spec.accessModes",
        ),
        Call(
            "POST",
            claims,
            JSON,
            claim(json!({ "accessModes": ["ReadWriteOnce"] })),
            422,
            "Invalid",
            "spec.resources",
        ),
        Call(
            "POST",
            claims,
            JSON,
            claim(json!({ "accessModes": ["Sometimes"], "resources": { "requests": { "storage": "1Gi" } } })),
            422,
            "Invalid",
            "supported values",
        ),
        Call(
            "POST",
            claims,
            JSON,
            claim(json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "much" } } })),
            400,
            "BadRequest",
            "quantities",
        ),
        Call(
            "POST",
            classes,
            JSON,
            json!({ "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": "x" } }),
            422,
            "Invalid",
            "provisioner",
        ),
        Call(
            "PATCH",
            "/apis/storage.k8s.io/v1/storageclasses/fixed",
            MERGE,
            json!({ "provisioner": "other" }),
            422,
            "Invalid",
            "provisioner",
        ),
        Call(
            "POST",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            JSON,
            json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": { "name": "wrong" }, "spec": { "group": "example.com", "scope": "Namespaced", "names": { "plural": "things", "kind": "Thing" }, "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": { "type": "object" } } }] } }),
            422,
            "Invalid",
            "must be spec.names.plural+\".\"+spec.group",
        ),
    ]
}

#[tokio::test]
async fn to_the_api_server() -> Result<()> {
    let lab = Lab::bare()?;
    lab.kubectl().ok(&["create", "configmap", "first", "--from-literal=a=1"])?;
    lab.kubectl().feed(
        &["apply", "-f", "-"],
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: fixed}\nprovisioner: example.com/p\n",
    )?;
    let before = lab.kubectl().ok(&["get", "configmap", "first", "-o", "yaml"])?;
    let client = lab.client().await?;
    let mut wrong = Vec::new();
    for Call(method, path, kind, body, code, reason, text) in calls() {
        let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(&body)? };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(kube::client::Body::from(bytes))?;
        let answer = client.send(request).await.with_context(|| format!("{method} {path}"))?;
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await?.to_bytes();
        let parsed: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let message =
            parsed["message"].as_str().map_or_else(|| String::from_utf8_lossy(&bytes).into_owned(), ToOwned::to_owned);
        let named =
            reason.is_empty() || parsed["reason"] == reason && parsed["code"] == code && parsed["kind"] == "Status";
        if status != code || !named || !message.contains(text) {
            wrong.push(format!(
                "{method} {path} {body}\n  wanted {code} {reason} {text:?}\n  got {status} {} {message:?}",
                parsed["reason"]
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let after = lab.kubectl().ok(&["get", "configmap", "first", "-o", "yaml"])?;
    ensure!(before == after, "no refused request changed anything:\n{before}\n{after}");
    Ok(())
}

/// A CSI request, the gRPC code's name, and what the message says.
struct Rpc(&'static str, Value, &'static str, &'static str);

fn rpcs() -> Vec<Rpc> {
    let capability = json!({ "mount": {}, "access_mode": { "mode": "SINGLE_NODE_WRITER" } });
    let capabilities = json!([capability]);
    let long = "n".repeat(129);
    vec![
        Rpc("create-volume", json!({}), "InvalidArgument", "name"),
        Rpc("create-volume", json!({ "name": "v" }), "InvalidArgument", "volume_capabilities"),
        Rpc("create-volume", json!({ "name": long, "volume_capabilities": capabilities }), "InvalidArgument", "128"),
        Rpc(
            "create-volume",
            json!({ "name": "a\u{1}b", "volume_capabilities": capabilities }),
            "InvalidArgument",
            "control",
        ),
        Rpc(
            "create-volume",
            json!({ "name": "v", "volume_capabilities": [{ "mount": {} }] }),
            "InvalidArgument",
            "access_mode",
        ),
        Rpc(
            "create-volume",
            json!({ "name": "v", "volume_capabilities": [{ "access_mode": { "mode": "SINGLE_NODE_WRITER" } }] }),
            "InvalidArgument",
            "an access type, block or mount, is required",
        ),
        Rpc(
            "create-volume",
            json!({ "name": "v", "volume_capabilities": capabilities, "capacity_range": { "required_bytes": 2, "limit_bytes": 1 } }),
            "InvalidArgument",
            "limit_bytes",
        ),
        Rpc(
            "create-volume",
            json!({ "name": "v", "volume_capabilities": capabilities, "capacity_range": { "required_bytes": -1 } }),
            "InvalidArgument",
            "negative",
        ),
        Rpc(
            "create-volume",
            json!({ "name": "v", "volume_capabilities": capabilities, "capacity_range": { "required_bytes": 1_i64 << 60 } }),
            "OutOfRange",
            "",
        ),
        Rpc(
            "create-volume",
            json!({ "name": "v", "volume_capabilities": capabilities, "colour": "blue" }),
            "",
            "colour",
        ),
        Rpc("delete-volume", json!({}), "InvalidArgument", "volume_id"),
        Rpc("delete-volume", json!({ "volume_id": 7 }), "", "volume_id"),
        Rpc(
            "controller-publish-volume",
            json!({ "volume_id": "missing", "node_id": "nobody", "volume_capability": capability }),
            "NotFound",
            "",
        ),
        Rpc(
            "validate-volume-capabilities",
            json!({ "volume_id": "missing", "volume_capabilities": capabilities }),
            "NotFound",
            "missing",
        ),
        Rpc("list-volumes", json!({ "max_entries": -1 }), "InvalidArgument", "max_entries"),
        Rpc("list-volumes", json!({ "starting_token": "garbage" }), "Aborted", "token"),
        Rpc(
            "controller-expand-volume",
            json!({ "volume_id": "v", "capacity_range": { "required_bytes": 1 } }),
            "Unimplemented",
            "",
        ),
        Rpc("node-stage-volume", json!({ "volume_id": "v" }), "InvalidArgument", "staging_target_path"),
        Rpc(
            "node-publish-volume",
            json!({ "volume_id": "../../etc", "target_path": "/nowhere/t", "staging_target_path": "/nowhere/s", "volume_capability": capability }),
            "NotFound",
            "",
        ),
        Rpc(
            "node-publish-volume",
            json!({ "volume_id": "missing", "target_path": "relative", "staging_target_path": "/nowhere/s", "volume_capability": capability }),
            "InvalidArgument",
            "target_path",
        ),
        Rpc("node-unpublish-volume", json!({ "volume_id": "v" }), "InvalidArgument", "target_path"),
        Rpc("node-get-volume-stats", json!({ "volume_id": "missing", "volume_path": "/nowhere" }), "NotFound", ""),
    ]
}

#[test]
fn to_the_driver() -> Result<()> {
    if !is_root("to_the_driver") {
        return Ok(());
    }
    let lab = Lab::start()?;
    let mut wrong = Vec::new();
    for Rpc(rpc, request, code, text) in rpcs() {
        let error = lab.outrigger(&["csi", rpc, &request.to_string()])?;
        if error.code != Some(1) || !error.stderr.contains(code) || !error.stderr.contains(text) {
            wrong.push(format!(
                "{rpc} {request}\n  wanted {code} {text:?}\n  got {:?} {}{}",
                error.code, error.stderr, error.stdout
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let left = lab.outrigger(&["csi", "list-volumes"])?.ok()?;
    if serde_json::from_str::<Value>(&left)?["entries"].as_array().is_some_and(|entries| !entries.is_empty()) {
        bail!("a refused request left a volume behind: {left}");
    }
    Ok(())
}

/// The table is as long as was promised.
#[test]
fn there_are_enough_rows() {
    assert!(LINES.len() + calls().len() + rpcs().len() >= 60);
}
