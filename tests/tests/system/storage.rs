//! From a claim to a mounted volume, and through crashes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fs_err as fs;
use outrigger_tests::{Kubectl, Lab, eventually, is_root, project};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
/// Claims that arrive while processes die.
const CLAIMS: usize = 30;

fn bound(kubectl: &Kubectl<'_>, claim: &str) -> Result<String> {
    eventually(PATIENCE, || {
        let claim: Value = serde_json::from_str(&kubectl.ok(&["get", "pvc", claim, "-o", "json"])?)?;
        ensure!(claim["status"]["phase"] == "Bound", "{}", claim["status"]);
        Ok(claim["spec"]["volumeName"].as_str().context("a bound claim has a volume")?.to_owned())
    })
}

fn volume_handle(kubectl: &Kubectl<'_>, volume: &str) -> Result<String> {
    kubectl.ok(&["get", "pv", volume, "-o", "jsonpath={.spec.csi.volumeHandle}"])
}

fn mount_capability() -> Value {
    json!({ "mount": {}, "access_mode": { "mode": "SINGLE_NODE_WRITER" } })
}

fn call(lab: &Lab, rpc: &str, request: &Value) -> Result<Value> {
    let answer =
        lab.outrigger(&["csi", rpc, &request.to_string()])?.ok().with_context(|| format!("{rpc} {request}"))?;
    Ok(serde_json::from_str(&answer)?)
}

/// The book's first storage listings.
#[test]
fn the_books_claims_become_volumes() -> Result<()> {
    if !is_root("the_books_claims_become_volumes") {
        return Ok(());
    }
    let lab = Lab::start()?;
    let kubectl = lab.kubectl();
    kubectl.ok(&["apply", "-f", project().join("examples/book").to_str().context("a path")?])?;
    let volume = bound(&kubectl, "pvc-test")?;
    bound(&kubectl, "example-pvc")?;

    let uid = kubectl.ok(&["get", "pvc", "pvc-test", "-o", "jsonpath={.metadata.uid}"])?;
    ensure!(volume == format!("pvc-{uid}"), "the volume is named after the claim: {volume}");

    let claims = kubectl.ok(&["get", "pvc"])?;
    let row = claims.lines().find(|line| line.starts_with("pvc-test")).context("a row for pvc-test")?;
    let cells: Vec<&str> = row.split_whitespace().collect();
    ensure!(cells[1..6] == ["Bound", volume.as_str(), "1Gi", "RWO", "standard"], "{claims}");
    let header: Vec<&str> =
        claims.lines().next().unwrap_or_default().split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    for column in ["NAME", "STATUS", "VOLUME", "CAPACITY", "ACCESS MODES", "STORAGECLASS", "AGE"] {
        ensure!(header.contains(&column), "column {column} in {header:?}");
    }

    let volumes = kubectl.ok(&["get", "pv"])?;
    ensure!(volumes.contains("default/pvc-test") && volumes.contains("default/example-pvc"), "{volumes}");
    ensure!(volumes.lines().skip(1).all(|row| row.contains(" Delete ") && row.contains(" Bound ")), "{volumes}");

    let drivers = kubectl.ok(&["get", "csidrivers"])?;
    let row: Vec<&str> = drivers.lines().nth(1).context("a driver")?.split_whitespace().collect();
    ensure!(row[..3] == ["hostpath.csi.k8s.io", "true", "true"], "{drivers}");
    ensure!(drivers.contains("Persistent,Ephemeral"), "{drivers}");

    let classes = kubectl.ok(&["get", "sc"])?;
    ensure!(classes.contains("standard (default)") && classes.contains("csi-hostpath-sc"), "{classes}");

    // The driver's log, in the form of the book's listing.
    let log = fs::read_to_string(lab.dir().join("logs/driver.log"))?;
    ensure!(log.contains("GRPC call: /csi.v1.Controller/CreateVolume"), "{log}");
    ensure!(
        log.contains(&format!("\"name\":\"{volume}\"")) || log.contains(&format!("\\\"name\\\":\\\"{volume}\\\"")),
        "{log}"
    );
    ensure!(log.contains("topology.hostpath.csi/node"), "{log}");

    // Deleting the claim deletes the volume, its object and its directory.
    let handle = volume_handle(&kubectl, &volume)?;
    kubectl.ok(&["delete", "pvc", "pvc-test", "--timeout=30s"])?;
    eventually(PATIENCE, || {
        let left = kubectl.ok(&["get", "pv", "-o", "name"])?;
        ensure!(!left.contains(&volume), "{left}");
        Ok(())
    })?;
    let listed = call(&lab, "list-volumes", &json!({}))?;
    ensure!(!listed.to_string().contains(&handle), "{listed}");
    ensure!(kubectl.ok(&["get", "events", "-A"])?.contains("ProvisioningSucceeded"), "events tell what happened");
    Ok(())
}

/// Files in a published volume outlive a crash of every process.
#[test]
fn a_file_survives_kill_9_of_everything() -> Result<()> {
    if !is_root("a_file_survives_kill_9_of_everything") {
        return Ok(());
    }
    let lab = Lab::start()?;
    let kubectl = lab.kubectl();
    kubectl.ok(&["apply", "-f", project().join("examples/book/example-pvc.yaml").to_str().context("a path")?])?;
    let volume = bound(&kubectl, "example-pvc")?;
    let handle = volume_handle(&kubectl, &volume)?;

    let staging = lab.scratch().join("staging");
    let target = lab.scratch().join("target");
    fs::create_dir(&staging)?;
    let publish = |lab: &Lab| -> Result<()> {
        let attach = json!({ "volume_id": handle, "node_id": node_id(lab)?, "volume_capability": mount_capability() });
        call(lab, "controller-publish-volume", &attach)?;
        let stage =
            json!({ "volume_id": handle, "staging_target_path": staging, "volume_capability": mount_capability() });
        call(lab, "node-stage-volume", &stage)?;
        let publish = json!({ "volume_id": handle, "staging_target_path": staging, "target_path": target, "volume_capability": mount_capability() });
        call(lab, "node-publish-volume", &publish)?;
        Ok(())
    };
    publish(&lab)?;
    fs::write(target.join("greeting"), "still here")?;

    lab.kill_everything()?;
    lab.up(&[])?;
    ensure!(bound(&kubectl, "example-pvc")? == volume, "the lab remembers its objects");
    publish(&lab)?;
    ensure!(fs::read_to_string(target.join("greeting"))? == "still here", "the file is there after the restart");

    // An orderly stop releases the mounts and keeps the data.
    lab.outrigger(&["lab", "down"])?.ok()?;
    ensure!(!target.join("greeting").exists(), "nothing is mounted after `lab down`");
    lab.up(&[])?;
    publish(&lab)?;
    ensure!(fs::read_to_string(target.join("greeting"))? == "still here", "the file is there after an orderly restart");

    for (rpc, request) in [
        ("node-unpublish-volume", json!({ "volume_id": handle, "target_path": target })),
        ("node-unstage-volume", json!({ "volume_id": handle, "staging_target_path": staging })),
        ("controller-unpublish-volume", json!({ "volume_id": handle, "node_id": node_id(&lab)? })),
    ] {
        call(&lab, rpc, &request)?;
    }
    ensure!(!target.exists(), "unpublishing removes the target");
    Ok(())
}

fn node_id(lab: &Lab) -> Result<String> {
    let info = call(lab, "node-get-info", &json!({}))?;
    Ok(info["node_id"].as_str().or(info["nodeId"].as_str()).context("a node id")?.to_owned())
}

/// The provisioner or the driver dies while claims arrive: every claim gets one volume, and none is left over.
#[test]
fn claims_are_provisioned_through_crashes() -> Result<()> {
    if !is_root("claims_are_provisioned_through_crashes") {
        return Ok(());
    }
    let lab = Lab::start()?;
    let kubectl = lab.kubectl();
    let template = fs::read_to_string(project().join("examples/book/example-pvc.yaml"))?;
    let documents: Vec<String> =
        (0..CLAIMS).map(|n| template.replace("name: example-pvc", &format!("name: claim-{n}"))).collect();
    kubectl.feed(&["apply", "-f", "-"], &documents.join("\n---\n"))?;
    for victim in ["controllers", "driver", "controllers"] {
        // It may be between a death and its next start; a test that kills nobody proves nothing.
        let pid = eventually(PATIENCE, || {
            let status = lab.status()?;
            let child = status["children"].as_array().into_iter().flatten().find(|child| child["name"] == victim);
            let pid =
                child.and_then(|child| child["process"]["pid"].as_i64()).with_context(|| format!("{victim} runs"))?;
            rustix::process::Pid::from_raw(pid.try_into()?).context("a process id")
        })?;
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    for n in 0..CLAIMS {
        bound(&kubectl, &format!("claim-{n}"))?;
    }
    eventually(PATIENCE, || {
        let status = lab.status()?;
        let children: Vec<&Value> = status["children"].as_array().into_iter().flatten().collect();
        let restarted = children.len() == 2 && children.iter().all(|child| child["restarts"].as_i64() >= Some(1));
        ensure!(restarted, "not all were killed and started again: {status}");
        Ok(())
    })?;
    let volumes = eventually(PATIENCE, || call(&lab, "list-volumes", &json!({})))?;
    ensure!(volumes["entries"].as_array().map(Vec::len) == Some(CLAIMS), "one volume for each claim: {volumes}");
    kubectl.ok(&["delete", "pvc", "--all", "--timeout=60s"])?;
    eventually(PATIENCE, || {
        let volumes = call(&lab, "list-volumes", &json!({}))?;
        ensure!(volumes["entries"].as_array().is_none_or(Vec::is_empty), "{volumes}");
        ensure!(kubectl.ok(&["get", "pv", "-o", "name"])?.trim().is_empty(), "volumes are left");
        Ok(())
    })
}
