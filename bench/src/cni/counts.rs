//! What does not vary: programs started, system calls, peak memory. Counted with strace(1), in a pass of its own.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{Timespec, poll};
use serde_json::Value;

use super::driver::{Attachment, Host, Target, create_netns, remove_netns};
use super::rows::{ROWS, Row};
use super::table::{Table, ratio};
use super::{Options, fill};

/// Where strace writes; the directory is the run's own.
const TRACE: &str = "/run/bench.trace";
/// How long a plugin is held at its end, in microseconds, so that its peak memory can be read.
const HELD: &str = "exit_group:delay_enter=60000";

/// Of one command of a chain.
#[derive(Debug, Default, Clone, Copy)]
struct Counted {
    programs: u64,
    calls: u64,
    /// In KiB; the largest of the plugins' own processes.
    peak: u64,
}

pub(crate) fn run(options: &Options, targets: &[Target]) -> Result<()> {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        println!("(programs, system calls and memory are not counted: there is no strace)\n");
        return Ok(());
    }
    let mut head = vec!["chain".to_owned(), "command".to_owned()];
    head.extend(targets.iter().map(|target| target.label.clone()));
    head.extend(targets[1..].iter().map(|peer| format!("{}: calls", peer.label)));
    let mut table = Table::new(
        "Programs started / system calls / peak memory of a plugin in MB; peers' calls in multiples of ours",
        head,
    );
    for row in ROWS.iter().filter(|row| options.wants_row(row.key)) {
        let mut counted = Vec::new();
        for target in targets {
            counted.push(count(target, row).with_context(|| format!("{}: {}", row.key, target.label))?);
        }
        for (number, command) in ["ADD", "DEL"].iter().enumerate() {
            let title = if number == 0 { row.title } else { "" };
            let mut cells = vec![title.to_owned(), (*command).to_owned()];
            cells.extend(counted.iter().map(|both| cell(both.as_ref().map(|both| &both[number]))));
            let calls = |both: &Option<[Counted; 2]>| both.map(|both| float(both[number].calls));
            cells.extend(counted[1..].iter().map(|peer| ratio(calls(&counted[0]), calls(peer))));
            table.row(cells);
        }
    }
    table.print();
    if options.wants_row("host-local") {
        filled(targets)?;
    }
    Ok(())
}

/// Addresses that host-local has to look through.
const ADDRESSES: usize = 10_000;

/// What host-local needs where many addresses are taken: the first ADD knows nothing of them yet.
fn filled(targets: &[Target]) -> Result<()> {
    let mut head = vec!["command".to_owned()];
    head.extend(targets.iter().map(|target| target.label.clone()));
    let title = format!("Peak resident memory of host-local with {ADDRESSES} addresses, in MB");
    let mut table = Table::new(&title, head);
    let mut columns = Vec::new();
    for target in targets {
        let host = fill::filled(target, ADDRESSES, "weigh")?;
        let mut peaks = Vec::new();
        for index in 0..2 {
            let attachment = fill::alone(target, &host, index);
            let (result, added) = weigh(&attachment, "ADD", &Value::Null)?;
            ensure!(result["ips"].is_array(), "{}: no address: {result}", target.label);
            peaks.push(added);
            peaks.push(weigh(&attachment, "DEL", &result)?.1);
        }
        columns.push(peaks);
    }
    for (number, command) in ["first ADD", "first DEL", "second ADD", "second DEL"].iter().enumerate() {
        let mut cells = vec![(*command).to_owned()];
        cells.extend(columns.iter().map(|peaks| megabytes(peaks[number])));
        table.row(cells);
    }
    table.print();
    Ok(())
}

fn megabytes(kib: u64) -> String {
    format!("{:.1}", float(kib) * 1024.0 / 1e6)
}

fn cell(counted: Option<&Counted>) -> String {
    let Some(counted) = counted else { return "–".into() };
    format!("{} / {} / {}", counted.programs, counted.calls, megabytes(counted.peak))
}

fn float(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
    let count = count as f64;
    count
}

/// ADD and DEL; none if the target refuses the chain.
fn count(target: &Target, row: &Row) -> Result<Option<[Counted; 2]>> {
    let host = Host::new(&format!("counts-{}-{}", row.key, target.label))?;
    let mut counted = [Counted::default(); 2];
    // The first makes what all share, the second is counted, the third weighed.
    for index in 0..3 {
        let attachment = Attachment::new(target, &host, row, index);
        create_netns(&attachment.id)?;
        let added = if index == 2 {
            let (result, peak) = weigh(&attachment, "ADD", &Value::Null)?;
            counted[0].peak = peak;
            let (_, peak) = weigh(&attachment, "DEL", &result)?;
            counted[1].peak = peak;
            Some(())
        } else {
            let add = std::cell::Cell::new(Counted::default());
            let (sample, result) = attachment.add(&|binary| traced(binary, &add))?;
            if sample.error.is_none() {
                let programs = tally(&add)?;
                let del = std::cell::Cell::new(Counted::default());
                attachment.del(&|binary| traced(binary, &del), &result)?;
                let peak = (counted[0].peak, counted[1].peak);
                counted = [Counted { peak: peak.0, ..programs }, Counted { peak: peak.1, ..tally(&del)? }];
                Some(())
            } else {
                None
            }
        };
        remove_netns(&attachment.id)?;
        if added.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(counted))
}

/// The plugin under a strace that counts. What the plugin before it in the chain left is added up first.
fn traced(binary: &Path, total: &std::cell::Cell<Counted>) -> Command {
    // An unreadable trace shows in the end, when the last one is read.
    let _ = tally(total);
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-o", TRACE, "--"]).arg(binary);
    command
}

/// Adds what the last trace holds.
fn tally(total: &std::cell::Cell<Counted>) -> Result<Counted> {
    let mut sum = total.get();
    let Ok(text) = fs_err::read_to_string(TRACE) else {
        ensure!(sum.calls > 0, "strace wrote nothing");
        return Ok(sum);
    };
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        match fields.last() {
            Some(&"total") => sum.calls += number(3).unwrap_or_default(),
            // A failed attempt on the way along PATH starts nothing.
            Some(&"execve") => sum.programs += number(3).unwrap_or_default() - number(4).unwrap_or_default(),
            _ => {}
        }
    }
    fs_err::remove_file(TRACE)?;
    total.set(sum);
    Ok(sum)
}

/// Runs a command of the chain, each plugin held at its end until its peak memory was read from `/proc`. (What wait4(2)
/// says is at least the memory of the process that started it.)
fn weigh(attachment: &Attachment<'_>, command: &str, result: &Value) -> Result<(Value, u64)> {
    let peak = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let watcher = {
        let (peak, done) = (std::sync::Arc::clone(&peak), std::sync::Arc::clone(&done));
        let own = std::process::id();
        std::thread::spawn(move || {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for strace in children(own) {
                    for plugin in children(strace) {
                        peak.fetch_max(high_water(plugin), std::sync::atomic::Ordering::Relaxed);
                    }
                }
                wait_a_little();
            }
        })
    };
    let held = |binary: &Path| {
        let mut process = Command::new("strace");
        process.args(["-qq", "-e", "trace=exit_group", "-e", &format!("inject={HELD}"), "-o", "/dev/null", "--"]);
        process.arg(binary);
        process
    };
    let outcome = match command {
        "ADD" => attachment.add(&held).map(|(_, result)| result),
        _ => attachment.del(&held, result).map(|_| Value::Null),
    };
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    watcher.join().map_err(|_| anyhow::anyhow!("the watcher failed"))?;
    Ok((outcome?, peak.load(std::sync::atomic::Ordering::Relaxed)))
}

/// Children of all threads of a process.
fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return found };
    for task in tasks.flatten() {
        let text = fs_err::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    found
}

/// Peak resident memory in KiB of a process that runs a plugin; 0 if it is gone, or still strace itself.
fn high_water(pid: u32) -> u64 {
    let name = fs_err::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim() == "strace" {
        return 0;
    }
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// Between two looks; a fraction of the time that a plugin is held.
fn wait_a_little() {
    let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 5_000_000 }));
}
