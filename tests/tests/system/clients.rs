//! Stock clients must not be able to tell the lab from Kubernetes at the places they touch.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fs_err as fs;
use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event};
use outrigger_tests::{Kubectl, Lab, eprintln_skip, project, run};
use serde_json::json;

const CRD: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: widgets.example.com
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 1, maximum: 10, description: How large the widget is.}
              colour: {type: string, default: blue}
          status:
            type: object
            properties:
              phase: {type: string}
";

/// The verbs that a user types, with every minor at hand.
#[test]
fn kubectl_of_every_minor() -> Result<()> {
    let lab = Lab::bare()?;
    lab.kubectl().feed(&["apply", "-f", "-"], CRD)?;
    let mut failures = Vec::new();
    let minors = lab.kubectls()?;
    for (minor, kubectl) in &minors {
        if let Err(error) = conversation(kubectl, &format!("team-{}", minor.replace('.', "-"))) {
            failures.push(format!("kubectl {minor}: {error:#}"));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    if !minors.iter().any(|(minor, _)| minor == "1.35") {
        eprintln_skip("kubectl 1.35", "npm is not installed, so it could not be fetched");
    }
    Ok(())
}

fn conversation(kubectl: &Kubectl<'_>, namespace: &str) -> Result<()> {
    let n = |words: &[&str]| -> Vec<String> {
        words.iter().map(ToString::to_string).chain(["-n".to_owned(), namespace.to_owned()]).collect()
    };
    kubectl.ok(&["create", "namespace", namespace])?;
    let resources = kubectl.ok(&["api-resources"])?;
    for kind in ["ConfigMap", "PersistentVolumeClaim", "StorageClass", "CSIDriver", "Lease", "Widget"] {
        ensure!(
            resources.lines().any(|line| line.ends_with(kind) || line.contains(&format!(" {kind} "))),
            "{kind} in {resources}"
        );
    }
    kubectl.ok(&["api-versions"])?;
    ensure!(kubectl.ok(&["version"])?.contains("v1."), "the server's version");

    // create, get, describe, label, annotate, patch of three kinds.
    kubectl.ok(&n(&["create", "configmap", "settings", "--from-literal=colour=blue"]))?;
    ensure!(kubectl.ok(&n(&["get", "configmap", "settings"]))?.contains("settings   1"), "DATA counts one key");
    kubectl.ok(&n(&["label", "configmap", "settings", "tier=front"]))?;
    kubectl.ok(&n(&["annotate", "configmap", "settings", "note=hello"]))?;
    kubectl.ok(&n(&["patch", "configmap", "settings", "-p", r#"{"data":{"size":"10"}}"#]))?;
    kubectl.ok(&n(&["patch", "configmap", "settings", "--type=merge", "-p", r#"{"data":{"shape":"round"}}"#]))?;
    kubectl.ok(&n(&[
        "patch",
        "configmap",
        "settings",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/data/shape"}]"#,
    ]))?;
    let data = kubectl.ok(&n(&["get", "configmap", "settings", "-o", "jsonpath={.data}"]))?;
    ensure!(data == r#"{"colour":"blue","size":"10"}"# || data == "map[colour:blue size:10]", "{data}");
    ensure!(kubectl.ok(&n(&["describe", "configmap", "settings"]))?.contains("tier=front"), "describe shows labels");
    ensure!(
        kubectl.ok(&n(&["get", "configmap", "-l", "tier=front", "-o", "name"]))?.trim() == "configmap/settings",
        "label selector"
    );
    ensure!(
        kubectl.ok(&n(&["get", "configmap", "-l", "tier!=front", "-o", "name"]))?.trim() != "configmap/settings",
        "label selector"
    );
    kubectl.ok(&n(&["get", "configmap", "--field-selector=metadata.name=settings", "--show-labels"]))?;

    // Client-side apply: create, change, remove a field.
    let manifest = |data: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: applied\n  namespace: {namespace}\ndata:\n{data}")
    };
    ensure!(kubectl.feed(&["apply", "-f", "-"], &manifest("  a: '1'\n  b: '2'\n"))?.contains("created"), "created");
    ensure!(kubectl.feed(&["apply", "-f", "-"], &manifest("  a: '1'\n  b: '2'\n"))?.contains("unchanged"), "unchanged");
    ensure!(kubectl.feed(&["apply", "-f", "-"], &manifest("  a: '3'\n"))?.contains("configured"), "configured");
    let data = kubectl.ok(&n(&["get", "configmap", "applied", "-o", "jsonpath={.data.a}{.data.b}"]))?;
    ensure!(data == "3", "apply removes what it no longer says: {data}");

    // Server-side apply, and its conflict with another manager.
    let other = manifest("  a: '4'\n");
    let conflict = kubectl.feed_any(&["apply", "--server-side", "--field-manager=other", "-f", "-"], &other)?.err()?;
    ensure!(conflict.to_lowercase().contains("conflict"), "{conflict}");
    kubectl.feed(&["apply", "--server-side", "--force-conflicts", "--field-manager=other", "-f", "-"], &other)?;
    ensure!(kubectl.ok(&n(&["get", "configmap", "applied", "-o", "jsonpath={.data.a}"]))? == "4", "forced");

    // Strategic merge by container name, and the Deployment's defaults.
    let deployment = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\n  namespace: {namespace}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      containers:\n      - {{name: web, image: web:1}}\n      - {{name: side, image: side:1}}\n"
    );
    kubectl.feed(&["apply", "-f", "-"], &deployment)?;
    kubectl.ok(&n(&["set", "image", "deployment/web", "web=web:2"]))?;
    let images =
        kubectl.ok(&n(&["get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[*].image}"]))?;
    ensure!(images == "web:2 side:1", "{images}");
    kubectl.ok(&n(&["scale", "deployment/web", "--replicas=3"]))?;
    let spec = kubectl.ok(&n(&[
        "get",
        "deployment",
        "web",
        "-o",
        "jsonpath={.spec.replicas} {.spec.revisionHistoryLimit} {.metadata.generation}",
    ]))?;
    ensure!(spec == "3 10 3", "replicas, default history, generation: {spec}");

    // A claim waits in Pending; a custom resource is validated, defaulted and printed by its columns.
    ensure!(kubectl.ok(&["explain", "persistentvolumeclaim.spec"])?.contains("storageClassName"), "explain");
    ensure!(kubectl.ok(&["explain", "widget.spec"])?.contains("colour"), "explain of a custom resource");
    let widget = |size: i32| {
        format!(
            "apiVersion: example.com/v1\nkind: Widget\nmetadata: {{name: w, namespace: {namespace}}}\nspec: {{size: {size}}}\n"
        )
    };
    kubectl.feed(&["apply", "-f", "-"], &widget(3))?;
    let printed = kubectl.ok(&n(&["get", "wd"]))?;
    ensure!(
        printed.contains("SIZE")
            && printed.lines().nth(1).is_some_and(|row| row.split_whitespace().nth(1) == Some("3")),
        "{printed}"
    );
    ensure!(kubectl.ok(&n(&["get", "widget", "w", "-o", "jsonpath={.spec.colour}"]))? == "blue", "default");
    let refused = kubectl.feed_any(&["apply", "-f", "-"], &widget(11))?.err()?;
    ensure!(refused.contains("less than or equal to 10"), "{refused}");

    // wait, watch, delete with finalizers honoured.
    kubectl.ok(&n(&["get", "serviceaccount", "default"])).or_else(|_| kubectl.ok(&n(&["get", "serviceaccounts"])))?;
    kubectl.ok(&n(&["delete", "widget", "w"]))?;
    kubectl.ok(&n(&["delete", "configmap", "settings", "applied"]))?;
    let missing = kubectl.run(&n(&["get", "configmap", "settings"]))?.err()?;
    ensure!(missing.contains(r#"configmaps "settings" not found"#), "{missing}");
    kubectl.ok(&["delete", "namespace", namespace, "--timeout=30s"])?;
    ensure!(
        !kubectl.ok(&["get", "namespaces", "-o", "name"])?.contains(namespace),
        "the namespace and its content are gone"
    );
    Ok(())
}

/// `kubectl get --watch` sees changes as they happen, and `kubectl wait` returns.
#[test]
fn kubectl_watches_and_waits() -> Result<()> {
    use std::io::{BufRead as _, BufReader};
    let lab = Lab::bare()?;
    let kubectl = lab.kubectl();
    kubectl.ok(&["create", "configmap", "watched"])?;
    let mut watch = kubectl
        .command(&["get", "configmaps", "--watch", "-o", "name"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(watch.stdout.take().context("its output")?).lines();
    let mut seen = BTreeSet::new();
    while !seen.contains("configmap/watched") {
        seen.insert(lines.next().context("the watch ended")??);
    }
    kubectl.ok(&["create", "configmap", "second"])?;
    while !seen.contains("configmap/second") {
        seen.insert(lines.next().context("the watch ended")??);
    }
    watch.kill()?;
    watch.wait()?;

    kubectl.feed(&["apply", "-f", "-"], CRD)?;
    kubectl.ok(&["wait", "--for=condition=Established", "crd/widgets.example.com", "--timeout=10s"])?;
    let mut waiting = kubectl.command(&["wait", "--for=delete", "configmap/second", "--timeout=20s"]).spawn()?;
    kubectl.ok(&["delete", "configmap", "second"])?;
    ensure!(waiting.wait()?.success(), "wait --for=delete");
    Ok(())
}

/// The Python client, typed and dynamic, with a watch.
#[test]
fn the_python_client() -> Result<()> {
    let python = project().join(".cache/tools/python/bin/python");
    ensure!(python.exists(), "the test tools are missing; run: make tools-test");
    let lab = Lab::bare()?;
    let script = project().join("tests/tests/data/client.py");
    let ran = run(Command::new(python)
        .arg(script)
        .env("KUBECONFIG", lab.kubeconfig())
        // Its dynamic client keeps a cache there.
        .env("TMPDIR", lab.scratch()))?;
    let printed = ran.ok()?;
    ensure!(printed.trim_end().ends_with("all good"), "{printed}");
    Ok(())
}

/// kube-rs: create, patch, apply, watch with resume, delete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kube_rs() -> Result<()> {
    let lab = Lab::bare()?;
    let client = lab.client().await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");

    let mut events = Box::pin(watcher::watcher(maps.clone(), watcher::Config::default().labels("suite=kube-rs")));
    // The initial listing ends with InitDone.
    while !matches!(events.try_next().await?.context("the watch ended")?, Event::InitDone) {}

    let object: ConfigMap = serde_json::from_value(json!({
        "metadata": { "name": "settings", "labels": { "suite": "kube-rs" } }, "data": { "a": "1" },
    }))?;
    let created = maps.create(&PostParams::default(), &object).await?;
    ensure!(created.metadata.uid.is_some() && created.metadata.resource_version.is_some(), "{created:?}");
    ensure!(
        matches!(events.try_next().await?, Some(Event::Apply(map)) if map.metadata.uid == created.metadata.uid),
        "created"
    );

    let conflict = maps.create(&PostParams::default(), &object).await.err().context("the name is taken")?;
    ensure!(
        matches!(&conflict, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists"),
        "{conflict:?}"
    );

    maps.patch("settings", &PatchParams::default(), &Patch::Merge(json!({ "data": { "b": "2" } }))).await?;
    ensure!(
        matches!(events.try_next().await?, Some(Event::Apply(map)) if map.data.as_ref().is_some_and(|data| data.len() == 2)),
        "patched"
    );

    let apply =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings" }, "data": { "c": "3" } });
    let applied = maps.patch("settings", &PatchParams::apply("suite"), &Patch::Apply(apply.clone())).await?;
    let version = applied.metadata.resource_version.clone();
    let again = maps.patch("settings", &PatchParams::apply("suite"), &Patch::Apply(apply)).await?;
    ensure!(again.metadata.resource_version == version, "applying the same again changes nothing");

    let mut stale = created.clone();
    stale.data = None;
    let conflict = maps.replace("settings", &PostParams::default(), &stale).await.err().context("a stale write")?;
    ensure!(
        matches!(&conflict, kube::Error::Api(status) if status.code == 409 && status.reason == "Conflict"),
        "{conflict:?}"
    );

    ensure!(matches!(events.try_next().await?, Some(Event::Apply(_))), "applied");
    maps.delete("settings", &DeleteParams::default()).await?;
    ensure!(
        matches!(events.try_next().await?, Some(Event::Delete(map)) if map.metadata.name.as_deref() == Some("settings")),
        "deleted"
    );

    if !lab.is_lab() {
        eprintln_skip("kube_rs, the crash", "the server is not ours to kill");
        return Ok(());
    }
    // A watcher finds its way through a crash of the server.
    lab.kill_everything()?;
    let port = port_of(&lab)?;
    lab.up(&["--listen", &format!("127.0.0.1:{port}"), "--bare"]).context("start again on the same port")?;
    let client = lab.client().await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    maps.create(&PostParams::default(), &object).await?;
    let back = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            match events.try_next().await {
                Ok(Some(Event::Apply(map) | Event::InitApply(map)))
                    if map.metadata.name.as_deref() == Some("settings") =>
                {
                    return;
                }
                // Errors while the server was away are the watcher's to retry.
                _ => {}
            }
        }
    });
    back.await.context("the watcher did not come back after the server's crash")?;
    Ok(())
}

/// The port in the kubeconfig, which the killed server wrote.
fn port_of(lab: &Lab) -> Result<u16> {
    let text = fs::read_to_string(lab.kubeconfig())?;
    let server = text.lines().find_map(|line| line.trim().strip_prefix("server: ")).context("a server")?;
    Ok(server.trim_matches('"').rsplit(':').next().context("a port")?.parse()?)
}
