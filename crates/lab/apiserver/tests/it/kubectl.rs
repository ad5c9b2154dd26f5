//! What people do with the machine's own `kubectl`.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::lab::{Lab, Output};

/// Runs kubectl and expects success.
macro_rules! ok {
    ($lab:expr, $stdin:expr, $($argument:expr),+) => {
        match $lab.kubectl(&[$($argument),+], $stdin).await {
            None => return,
            Some(output) => succeeded(output),
        }
    };
}

#[track_caller]
fn succeeded(output: Output) -> String {
    assert!(output.success, "{}{}", output.out, output.err);
    output.out
}

const OBJECTS: &str = r#"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: hostpath.csi.k8s.io
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: hostpath.csi.k8s.io}
spec: {podInfoOnMount: true, volumeLifecycleModes: [Persistent, Ephemeral]}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: volume}
spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], csi: {driver: d, volumeHandle: h}}
"#;

#[tokio::test]
async fn config_maps_through_their_life() {
    let lab = Lab::start().await;
    assert_eq!(ok!(lab, "", "create", "configmap", "a", "--from-literal=k=v"), "configmap/a created\n");
    let table = ok!(lab, "", "get", "cm");
    assert!(table.lines().next().expect("a header").split_whitespace().eq(["NAME", "DATA", "AGE"]), "{table}");
    assert!(table.lines().nth(1).expect("a row").starts_with("a      1      "), "{table}");
    assert_eq!(ok!(lab, "", "label", "cm", "a", "x=y"), "configmap/a labeled\n");
    assert_eq!(ok!(lab, "", "annotate", "cm", "a", "n=m"), "configmap/a annotated\n");
    assert_eq!(ok!(lab, "", "patch", "cm", "a", "-p", r#"{"data":{"q":"1"}}"#), "configmap/a patched\n");
    ok!(lab, "", "patch", "cm", "a", "--type", "json", "-p", r#"[{"op":"add","path":"/data/z","value":"2"}]"#);
    assert_eq!(
        ok!(lab, "", "get", "cm", "a", "-o", "jsonpath={.data}{.metadata.labels}"),
        r#"{"k":"v","q":"1","z":"2"}{"x":"y"}"#
    );
    assert_eq!(
        ok!(lab, "", "wait", "--for=jsonpath={.data.z}=2", "cm/a", "--timeout=5s"),
        "configmap/a condition met\n"
    );
    assert!(ok!(lab, "", "describe", "cm", "a").contains("z:\n----\n2\n"));
    assert!(ok!(lab, "", "get", "cm", "-A", "--show-labels").contains("x=y"));
    assert_eq!(ok!(lab, "", "delete", "cm", "a"), "configmap \"a\" deleted\n");
    let Some(gone) = lab.kubectl(&["get", "cm", "a"], "").await else { return };
    assert!(gone.err.contains("Error from server (NotFound): configmaps \"a\" not found"), "{}", gone.err);
}

#[tokio::test]
async fn apply_creates_changes_and_removes_in_both_ways() {
    let lab = Lab::start().await;
    let with = |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {data}\n");
    assert_eq!(ok!(lab, &with("{k: v, gone: soon}"), "apply", "-f", "-"), "configmap/a created\n");
    assert_eq!(ok!(lab, &with("{k: v, gone: soon}"), "apply", "-f", "-"), "configmap/a unchanged\n");
    assert_eq!(ok!(lab, &with("{k: w}"), "apply", "-f", "-"), "configmap/a configured\n");
    assert_eq!(ok!(lab, "", "get", "cm", "a", "-o", "jsonpath={.data}"), r#"{"k":"w"}"#);
    // The same manager takes over on the server's side, and other managers are told of conflicts.
    assert_eq!(
        ok!(lab, &with("{k: w, m: '1'}"), "apply", "--server-side", "-f", "-"),
        "configmap/a serverside-applied\n"
    );
    let Some(conflict) =
        lab.kubectl(&["apply", "--server-side", "--field-manager=other", "-f", "-"], &with("{k: x}")).await
    else {
        return;
    };
    assert!(!conflict.success && conflict.err.contains("conflict"), "{}{}", conflict.out, conflict.err);
    ok!(lab, &with("{k: x}"), "apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-");
    assert_eq!(ok!(lab, "", "get", "cm", "a", "-o", "jsonpath={.data}"), r#"{"k":"x","m":"1"}"#);
    let Some(bad) =
        lab.kubectl(&["apply", "-f", "-"], "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\nbogus: 1\n").await
    else {
        return;
    };
    assert!(!bad.success && bad.err.contains("unknown field \"bogus\""), "{}{}", bad.out, bad.err);
}

#[tokio::test]
async fn storage_objects_show_the_columns_people_know() {
    let lab = Lab::start().await;
    ok!(lab, OBJECTS, "apply", "-f", "-");
    let classes = ok!(lab, "", "get", "sc");
    assert!(
        classes.contains("standard (default)   hostpath.csi.k8s.io   Delete          Immediate           false"),
        "{classes}"
    );
    let claims = ok!(lab, "", "get", "pvc");
    assert!(
        claims.lines().nth(1).expect("a row").split_whitespace().take(3).eq(["claim", "Pending", "standard"]),
        "{claims}"
    );
    let drivers = ok!(lab, "", "get", "csidrivers");
    assert!(drivers.contains("true             true             false             <unset>         false               Persistent,Ephemeral"), "{drivers}");
    let volumes = ok!(lab, "", "get", "pv", "-o", "wide");
    assert!(volumes.contains("1Gi        RWO            Retain"), "{volumes}");
    for arguments in
        [["describe", "pvc"], ["describe", "pv"], ["describe", "sc"], ["describe", "csidriver"], ["describe", "ns"]]
    {
        ok!(lab, "", arguments[0], arguments[1]);
    }
    ok!(lab, "", "get", "all", "-A");
    assert!(ok!(lab, "", "api-resources").contains("persistentvolumeclaims"));
    assert!(ok!(lab, "", "api-versions").contains("storage.k8s.io/v1"));
    assert!(ok!(lab, "", "explain", "pod.spec.containers").contains("imagePullPolicy"));
    ok!(lab, "", "delete", "pvc", "claim", "--wait=false");
    assert!(ok!(lab, "", "get", "pvc", "claim").contains("Terminating"));
}

#[tokio::test]
async fn custom_kinds_are_like_built_in_ones() {
    let lab = Lab::start().await;
    ok!(lab, &crate::crd::definition().to_string(), "apply", "-f", "-");
    ok!(lab, "", "wait", "--for=condition=Established", "crd/widgets.example.com", "--timeout=5s");
    let widget = "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: a}\nspec: {replicas: 3}\n";
    assert_eq!(ok!(lab, widget, "apply", "-f", "-"), "widget.example.com/a created\n");
    assert_eq!(ok!(lab, widget, "apply", "--server-side", "-f", "-"), "widget.example.com/a serverside-applied\n");
    assert!(ok!(lab, "", "get", "wd").lines().nth(1).expect("a row").split_whitespace().eq(["a", "3"]));
    ok!(lab, "", "scale", "widget/a", "--replicas=5");
    assert_eq!(ok!(lab, "", "get", "widget", "a", "-o", "jsonpath={.spec.replicas}"), "5");
    assert!(ok!(lab, "", "explain", "widget.spec").contains("replicas"));
    let Some(bad) = lab.kubectl(&["apply", "-f", "-"], &widget.replace('3', "30")).await else { return };
    assert!(bad.err.contains("spec.replicas: Invalid value: 30"), "{}", bad.err);
    ok!(lab, "", "delete", "crd", "widgets.example.com");
}

#[tokio::test]
async fn get_w_prints_changes_as_they_come() {
    let lab = Lab::start().await;
    lab.config_map("a", "1").await;
    let Ok(mut child) = lab.kubectl_command(&["get", "cm", "-w"]).spawn() else {
        eprintln!("skipped: kubectl cannot be run");
        return;
    };
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = async || {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line())
            .await
            .expect("a line in time")
            .expect("output");
        line.expect("a line").split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(next().await, "NAME DATA");
    assert_eq!(next().await, "a 1");
    lab.config_map("b", "1").await;
    assert_eq!(next().await, "b 1");
    lab.delete("/api/v1/namespaces/default/configmaps/b").await.expect(200);
    assert_eq!(next().await, "b 1");
    child.kill().await.expect("it stops");
}

#[tokio::test]
async fn tokens_rights_and_edits() {
    let lab = Lab::start().await;
    ok!(lab, "", "create", "serviceaccount", "robot");
    assert_eq!(ok!(lab, "", "create", "token", "robot").trim().split('.').count(), 3);
    assert!(ok!(lab, "", "auth", "whoami").contains("kubernetes-admin"));
    assert_eq!(ok!(lab, "", "auth", "can-i", "delete", "pods"), "yes\n");
    ok!(lab, "", "create", "deployment", "web", "--image=nginx");
    ok!(lab, "", "set", "image", "deployment/web", "nginx=nginx:2");
    ok!(lab, "", "scale", "deployment/web", "--replicas=2");
    ok!(lab, "", "rollout", "restart", "deployment/web");
    assert!(ok!(lab, "", "get", "deployment", "web").contains("0/2"));
    ok!(lab, "", "run", "p", "--image=nginx");
    assert!(ok!(lab, "", "get", "pods").contains("Pending"));
    ok!(lab, "", "expose", "pod", "p", "--port=80");
    ok!(lab, "", "create", "namespace", "team");
    ok!(lab, "", "create", "secret", "generic", "s", "--from-literal=a=b", "-n", "team");
    ok!(lab, "", "delete", "pod", "p");
}
