//! ADD, CHECK and DEL, one after another, the targets in turn.

use anyhow::Result;

use super::Options;
use super::driver::{Attachment, Host, Target, create_netns, plain, remove_netns};
use super::rows::{ROWS, Row};
use super::table::{Series, Table, time_ratio};

const COMMANDS: [&str; 3] = ["ADD", "CHECK", "DEL"];
/// The targets alternate after this many operations, so that what happens on the machine meanwhile hits all of them.
const BLOCK: usize = 10;

pub(crate) fn run(options: &Options, targets: &[Target]) -> Result<()> {
    let mut head = vec!["chain".to_owned(), "command".to_owned()];
    head.extend(targets.iter().map(|target| target.label.clone()));
    for peer in &targets[1..] {
        head.push(format!("{}: CPU", peer.label));
        head.push("p50".to_owned());
    }
    let title =
        format!("One at a time, N = {}: CPU / p50 / p99 in ms; peers' CPU and p50 in multiples of ours", options.n);
    let mut table = Table::new(title, head);
    for row in ROWS.iter().filter(|row| options.wants_row(row.key)) {
        let mut measured = measure(options, targets, row)?;
        for (number, command) in COMMANDS.iter().enumerate() {
            let title = if number == 0 { row.title } else { "" };
            let mut cells = vec![title.to_owned(), (*command).to_owned()];
            for series in &mut measured {
                cells.push(series[number].cell());
            }
            let ours = (measured[0][number].cpu(), measured[0][number].quantile(0.5));
            for series in &mut measured[1..] {
                cells.push(time_ratio(ours.0, series[number].cpu()));
                cells.push(time_ratio(ours.1, series[number].quantile(0.5)));
            }
            table.row(cells);
            if row.key.ends_with("-nft") {
                for target in targets {
                    if !target.knows_nftables()? {
                        table.note(format!("{}: {} has no nftables back end and uses iptables", row.key, target.label));
                    }
                }
            }
            for (target, series) in targets.iter().zip(&measured) {
                if let Some(error) = &series[number].error {
                    let (failed, count) = (series[number].failed, series[number].count());
                    table
                        .note(format!("{}, {}, {command}: {failed} of {count} failed: {error}", row.key, target.label));
                }
            }
        }
    }
    table.print();
    Ok(())
}

/// For each target the series of the three commands.
fn measure(options: &Options, targets: &[Target], row: &Row) -> Result<Vec<[Series; 3]>> {
    let mut hosts = Vec::new();
    for target in targets {
        hosts.push(Host::new(&format!("{}-{}", row.key, target.label))?);
    }
    let mut measured: Vec<[Series; 3]> = targets.iter().map(|_| Default::default()).collect();
    let mut done = 0;
    // The first operation makes what all share, and is not counted.
    for (target, host) in targets.iter().zip(&hosts) {
        host.enter()?;
        once(target, host, row, 0, &mut Default::default())?;
    }
    while done < options.n {
        let block = BLOCK.min(options.n - done);
        for ((target, host), series) in targets.iter().zip(&hosts).zip(&mut measured) {
            host.enter()?;
            for index in done..done + block {
                once(target, host, row, index + 1, series)?;
            }
        }
        done += block;
    }
    Ok(measured)
}

fn once(target: &Target, host: &Host, row: &Row, index: usize, series: &mut [Series; 3]) -> Result<()> {
    let attachment = Attachment::new(target, host, row, index);
    create_netns(&attachment.id)?;
    let (added, result) = attachment.add(&plain)?;
    let refused = added.error.is_some();
    series[0].push(&added);
    if !refused {
        series[1].push(&attachment.check(&plain, &result)?);
        series[2].push(&attachment.del(&plain, &result)?);
    }
    remove_netns(&attachment.id)
}
