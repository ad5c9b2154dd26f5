//! Many containers at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;

use super::Options;
use super::driver::{Attachment, Host, Sample, Target, create_netns, plain, remove_netns};
use super::rows::{Row, row};
use super::table::{Series, Table, ms, ratio};

const CHAINS: [&str; 4] = ["masq", "portmap", "full", "fast"];

pub(crate) fn run(options: &Options, targets: &[Target]) -> Result<()> {
    let head = ["chain", "plugins", "ADD/s", "", "ADD p50 / p99 ms", "CPU ms/ADD", "DEL/s", "", "CPU ms/DEL", "failed"];
    let title =
        format!("{} containers, {} at a time; multiples are ours over theirs", options.containers, options.workers);
    let mut table = Table::new(title, head.map(str::to_owned).into());
    for key in CHAINS.into_iter().filter(|key| options.wants_row(key)) {
        let row = row(key).context("a row")?;
        let mut ours = None;
        for target in targets {
            let mut run = all(options, target, row)?;
            let own = *ours.get_or_insert((run.add_rate, run.del_rate));
            let times = |own: f64, rate: f64| if target.ours { String::new() } else { ratio(Some(rate), Some(own)) };
            let quantiles = (run.add.quantile(0.5).unwrap_or_default(), run.add.quantile(0.99).unwrap_or_default());
            table.row(vec![
                if target.ours { row.title.to_owned() } else { String::new() },
                target.label.clone(),
                format!("{:.1}", run.add_rate),
                times(own.0, run.add_rate),
                format!("{} / {}", ms(quantiles.0), ms(quantiles.1)),
                ms(run.add.cpu().unwrap_or_default()),
                format!("{:.1}", run.del_rate),
                times(own.1, run.del_rate),
                ms(run.del.cpu().unwrap_or_default()),
                (run.add.failed + run.del.failed).to_string(),
            ]);
            if let Some(error) = run.add.error.or(run.del.error) {
                table.note(format!("{key}, {}: {error}", target.label));
            }
        }
    }
    table.print();
    Ok(())
}

struct Run {
    add: Series,
    add_rate: f64,
    del: Series,
    del_rate: f64,
}

fn all(options: &Options, target: &Target, row: &Row) -> Result<Run> {
    let host = Host::new(&format!("par-{}-{}", row.key, target.label))?;
    let attachments: Vec<Attachment<'_>> =
        (0..options.containers).map(|index| Attachment::new(target, &host, row, index)).collect();
    for attachment in &attachments {
        create_netns(&attachment.id)?;
    }
    let results: Vec<std::sync::Mutex<Value>> = attachments.iter().map(|_| std::sync::Mutex::default()).collect();
    let (add, add_rate) = spread(options.workers, &host, &attachments, |index, attachment| {
        let (sample, result) = attachment.add(&plain)?;
        *results[index].lock().map_err(|_| anyhow!("a worker failed"))? = result;
        Ok(sample)
    })?;
    let (del, del_rate) = spread(options.workers, &host, &attachments, |index, attachment| {
        let result = results[index].lock().map_err(|_| anyhow!("a worker failed"))?.clone();
        attachment.del(&plain, &result)
    })?;
    for attachment in &attachments {
        remove_netns(&attachment.id)?;
    }
    Ok(Run { add, add_rate, del, del_rate })
}

/// Does `work` for each attachment, by several threads; gives the times, and how many were done a second.
fn spread<'a>(
    workers: usize,
    host: &Host,
    attachments: &[Attachment<'a>],
    work: impl Fn(usize, &Attachment<'a>) -> Result<Sample> + Sync,
) -> Result<(Series, f64)> {
    let next = AtomicUsize::new(0);
    let begin = Instant::now();
    let series = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| -> Result<Series> {
                    host.enter()?;
                    let mut series = Series::default();
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(attachment) = attachments.get(index) else { return Ok(series) };
                        series.push(&work(index, attachment)?);
                    }
                })
            })
            .collect();
        let mut total = Series::default();
        for handle in handles {
            total.append(handle.join().map_err(|_| anyhow!("a worker failed"))??);
        }
        anyhow::Ok(total)
    })?;
    let rate = crate::figures::rate(series.count(), begin.elapsed());
    Ok((series, rate))
}
