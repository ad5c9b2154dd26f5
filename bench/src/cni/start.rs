//! Start of a plugin, and sizes.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use anyhow::Result;

use super::Options;
use super::driver::{Target, call};
use super::table::{Series, Table, ms, time_ratio};

const PLUGINS: [&str; 6] = ["loopback", "host-local", "bridge", "portmap", "firewall", "dhcp"];

pub(crate) fn run(options: &Options, targets: &[Target]) -> Result<()> {
    let mut head = vec!["plugin".to_owned()];
    for target in targets {
        head.push(target.label.clone());
        head.push("size, bytes".to_owned());
    }
    head.extend(targets[1..].iter().map(|peer| format!("{}: CPU", peer.label)));
    let mut table = Table::new("Start (VERSION): CPU / p50 in ms; size of the file", head);
    for plugin in PLUGINS {
        let mut measured: Vec<Series> = targets.iter().map(|_| Series::default()).collect();
        for _ in 0..options.n {
            for (target, series) in targets.iter().zip(&mut measured) {
                let mut process = Command::new(target.plugin(plugin));
                process.env_clear().env("CNI_COMMAND", "VERSION");
                series.push(&call(&mut process, br#"{"cniVersion":"1.0.0"}"#)?.0);
            }
        }
        let mut cells = vec![plugin.to_owned()];
        for (target, series) in targets.iter().zip(&mut measured) {
            let (cpu, p50) = (series.cpu().unwrap_or_default(), series.quantile(0.5).unwrap_or_default());
            cells.push(format!("{} / {}", ms(cpu), ms(p50)));
            cells.push(fs_err::metadata(target.plugin(plugin))?.len().to_string());
        }
        cells.extend(measured[1..].iter().map(|series| time_ratio(measured[0].cpu(), series.cpu())));
        table.row(cells);
    }
    let mut cells = vec!["whole directory".to_owned()];
    for target in targets {
        cells.push(String::new());
        cells.push(size(target)?.to_string());
    }
    cells.extend(targets[1..].iter().map(|_| String::new()));
    table.row(cells);
    table.print();
    Ok(())
}

/// Bytes of all files; several names of one file count once.
fn size(target: &Target) -> Result<u64> {
    let mut seen = HashSet::new();
    let mut total = 0;
    for entry in fs_err::read_dir(&target.dir)? {
        let data = entry?.metadata()?;
        if data.is_file() && seen.insert((data.dev(), data.ino())) {
            total += data.len();
        }
    }
    Ok(total)
}
