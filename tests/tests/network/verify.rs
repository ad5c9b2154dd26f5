//! `outrigger verify cni` on our plugins, which is what keeps them as they are, and on the originals, whose known failures
//! keep the suite as it is.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use outrigger_tests::{outrigger_binary, project, run};
use serde_json::Value;

use crate::common::{Plugins, can_run, peers_or_skip};

/// What the suite found out about the plugins of a directory.
struct Findings {
    passed: u64,
    /// `MUST id` and `SHOULD id` of each case that failed, with its reason.
    failed: Vec<(String, String)>,
    /// Exit code of the command.
    code: Option<i32>,
}

impl Findings {
    fn of(plugins: &Path) -> Result<Self> {
        let mut command = std::process::Command::new(outrigger_binary());
        command.args(["verify", "cni", "-o", "json"]).arg(plugins);
        let ran = run(&mut command)?;
        let report: Value = serde_json::from_str(&ran.stdout).with_context(|| ran.stderr.clone())?;
        let failed = report["cases"].as_array().context("cases")?.iter().filter(|case| case["outcome"] == "fail");
        let failed = failed.map(|case| {
            let text = |key: &str| case[key].as_str().unwrap_or_default().to_owned();
            (format!("{} {}", text("level"), text("id")), text("reason"))
        });
        Ok(Self {
            passed: report["counts"]["passed"].as_u64().context("counts")?,
            failed: failed.collect(),
            code: ran.code,
        })
    }

    /// The cases that failed and are not in the file, and those that are in it and did not fail.
    fn compared_with(&self, file: &str) -> Result<(Vec<String>, Vec<String>)> {
        let known = fs_err::read_to_string(project().join("tests/data").join(file))?;
        let known: BTreeSet<&str> = known.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        let failed: BTreeSet<&str> = self.failed.iter().map(|(case, _)| case.as_str()).collect();
        let new = self.failed.iter().filter(|(case, _)| !known.contains(case.as_str()));
        let new = new.map(|(case, reason)| format!("{case}: {reason}")).collect();
        Ok((new, known.difference(&failed).map(|&case| case.to_owned()).collect()))
    }
}

#[test]
fn our_plugins_do_what_the_suite_asks() {
    if !can_run("our_plugins_do_what_the_suite_asks") {
        return;
    }
    check_ours().unwrap();
}

fn check_ours() -> Result<()> {
    let plugins = Plugins::install()?;
    let findings = Findings::of(plugins.dir())?;
    let (new, cured) = findings.compared_with("verify-cni-outrigger.txt")?;
    ensure!(new.is_empty(), "new failures:\n{}", new.join("\n"));
    ensure!(cured.is_empty(), "cured; take them off the list:\n{}", cured.join("\n"));
    ensure!(findings.code == Some(0), "exit code {:?}", findings.code);
    ensure!(findings.passed > 1_800, "only {} cases passed", findings.passed);
    Ok(())
}

#[test]
fn the_originals_fail_where_it_is_known() {
    if !can_run("the_originals_fail_where_it_is_known") {
        return;
    }
    let Some(peers) = peers_or_skip("the_originals_fail_where_it_is_known") else { return };
    check_originals(&peers).unwrap();
}

fn check_originals(peers: &Path) -> Result<()> {
    let findings = Findings::of(peers)?;
    let (new, cured) = findings.compared_with("verify-cni-debian.txt")?;
    ensure!(new.is_empty(), "the suite finds what it did not find before:\n{}", new.join("\n"));
    ensure!(cured.is_empty(), "the suite does not find any more:\n{}", cured.join("\n"));
    ensure!(findings.code == Some(1), "exit code {:?}", findings.code);
    ensure!(findings.passed > 1_200, "only {} cases passed", findings.passed);
    Ok(())
}
