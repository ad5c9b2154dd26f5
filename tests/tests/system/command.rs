//! The command by itself: its help, its errors, its start and stop.

use std::process::Command;

use anyhow::{Result, ensure};
use outrigger_tests::{Lab, is_root, outrigger_binary, run};

#[test]
fn up_down_status_reset() -> Result<()> {
    if !is_root("up_down_status_reset") {
        return Ok(());
    }
    let lab = Lab::start()?;
    let status = lab.status()?;
    ensure!(status["ready"] == true, "{status}");
    ensure!(status["children"].as_array().map(Vec::len) == Some(2), "driver and controllers run: {status}");
    let text = lab.outrigger(&["lab", "status"])?.ok()?;
    ensure!(text.contains("the lab runs at https://127.0.0.1:") && text.contains("driver"), "{text}");
    ensure!(lab.up(&[])?.contains("the lab runs"), "a second `up` says what runs");
    let path = lab.outrigger(&["lab", "kubeconfig"])?.ok()?;
    ensure!(path.trim() == lab.kubeconfig().to_string_lossy(), "{path}");

    let refused = lab.outrigger(&["lab", "reset"])?.err()?;
    ensure!(refused.contains("--yes"), "reset asks: {refused}");
    ensure!(lab.outrigger(&["lab", "down"])?.ok()?.contains("the lab is down"), "down");
    ensure!(lab.outrigger(&["lab", "status"])?.code == Some(3), "exit code 3 when nothing runs");
    ensure!(lab.outrigger(&["lab", "down"])?.ok()?.contains("no lab was running"), "down is idempotent");
    let mounts = outrigger_sys::mountinfo::read()?;
    ensure!(!mounts.iter().any(|mount| mount.target.starts_with(lab.scratch())), "nothing is mounted");
    Ok(())
}

/// Every CSI call can be made from the command line; lists, templates and answers are JSON.
#[test]
fn csi_by_hand() -> Result<()> {
    if !is_root("csi_by_hand") {
        return Ok(());
    }
    let lab = Lab::start()?;
    let rpcs = lab.outrigger(&["csi"])?.ok()?;
    for rpc in ["create-volume", "node-publish-volume", "probe", "get-metadata-delta", "create-volume-group-snapshot"] {
        ensure!(rpcs.lines().any(|line| line.trim() == rpc), "{rpc} in {rpcs}");
    }
    let template = lab.outrigger(&["csi", "create-volume", "--template"])?.ok()?;
    ensure!(template.contains("volume_capabilities") && template.contains("capacity_range"), "{template}");
    let info: serde_json::Value = serde_json::from_str(&lab.outrigger(&["csi", "get-plugin-info"])?.ok()?)?;
    ensure!(info["name"] == "hostpath.csi.k8s.io", "{info}");
    for spelling in ["GetPluginInfo", "csi.v1.Identity/GetPluginInfo"] {
        lab.outrigger(&["csi", spelling])?.ok()?;
    }
    Ok(())
}

#[test]
fn completions_and_manual() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let text = run(Command::new(outrigger_binary()).args(["completions", shell]))?.ok()?;
        ensure!(text.contains("outrigger"), "{shell}");
    }
    let directory = tempfile::tempdir()?;
    run(Command::new(outrigger_binary()).arg("man").arg(directory.path()))?.ok()?;
    let page = fs_err::read_to_string(directory.path().join("outrigger-lab-up.1"))?;
    ensure!(page.contains("outrigger") && page.contains("durability"), "{page}");
    Ok(())
}
