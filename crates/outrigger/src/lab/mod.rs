//! `outrigger lab`: the embedded control plane, from start to clean end.

pub(crate) mod addons;
pub(crate) mod cleanup;
pub(crate) mod layout;
mod run;
pub(crate) mod supervisor;

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use outrigger_daemon::Shutdown;
use rustix::process::Signal;
use tokio::net::UnixDatagram;

use crate::Outcome;
use crate::cli::{LabCommand, LabDown, LabReset, LabStatus, LabUp};
use layout::{Layout, ProcessId, Record};

/// Tells a lab in the background that it has a terminal no more.
const DETACHED: &str = "OUTRIGGER_DETACHED";

/// `verbosity` is that of the lab's log, and of its plugins'.
pub(crate) async fn run(command: LabCommand, verbosity: u8) -> Result<Outcome> {
    match command {
        LabCommand::Up(up) => up_command(up, verbosity).await,
        LabCommand::Down(args) => {
            let layout = Layout::choose(&args.dir)?;
            say(if down(&layout, &args).await? { "the lab is down" } else { "no lab was running" })
        }
        LabCommand::Status(args) => status(&args),
        LabCommand::Reset(args) => reset(&args).await,
        LabCommand::Kubeconfig(dir) => {
            let layout = Layout::choose(&dir)?;
            let path = layout.kubeconfig();
            if !path.exists() {
                bail!("there is no kubeconfig in {}; start a lab with `outrigger lab up`", layout.root().display());
            }
            say(&path.display().to_string())
        }
    }
}

async fn up_command(up: LabUp, verbosity: u8) -> Result<Outcome> {
    let layout = Layout::choose(&up.dir)?;
    if let Some(record) = layout.running()? {
        if up.foreground {
            bail!("a lab runs in {} already (pid {})", layout.root().display(), record.process.pid);
        }
        return say(&summary(&layout, &record));
    }
    if !up.bare && !rustix::process::geteuid().is_root() {
        bail!(
            "the storage driver mounts volumes, which needs root; run this with sudo, or `lab up --bare` without plugins"
        );
    }
    if !up.listen.ip().is_loopback() {
        bail!("--listen {}: the lab serves on loopback addresses only, such as 127.0.0.1:7443", up.listen);
    }
    if up.foreground {
        if std::env::var_os(DETACHED).is_some() {
            rustix::process::setsid().context("cannot leave the terminal")?;
        }
        let shutdown = Shutdown::on_signals().context("cannot listen for signals")?;
        run::run(&up, verbosity, &layout, shutdown).await?;
        return Ok(Outcome::Done);
    }
    detach(&up, &layout).await?;
    let record = layout.running()?.context("the lab ended right after it was ready; see `outrigger lab status`")?;
    say(&summary(&layout, &record))
}

/// Starts this very command in the background and waits until it says that it is ready.
async fn detach(up: &LabUp, layout: &Layout) -> Result<()> {
    layout.create()?;
    let scratch = layout.root().join(format!(".up-{}.notify", std::process::id()));
    let socket = UnixDatagram::bind(&scratch).with_context(|| format!("cannot bind {}", scratch.display()))?;
    let outcome = detach_with(up, layout, &scratch, &socket).await;
    let _ = fs_err::remove_file(&scratch);
    outcome
}

async fn detach_with(up: &LabUp, layout: &Layout, scratch: &std::path::Path, socket: &UnixDatagram) -> Result<()> {
    let log_path = layout.log("lab");
    let log = fs_err::OpenOptions::new().create(true).append(true).open(&log_path)?.into_parts().0;
    let mut arguments: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    arguments.extend(["--foreground", "--log-format=text"].map(Into::into));
    let executable = std::env::current_exe().context("cannot tell which executable this is")?;
    let mut child = tokio::process::Command::new(executable)
        .args(arguments)
        .env(DETACHED, "1")
        .env("NOTIFY_SOCKET", scratch)
        .env("OUTRIGGER_LAB_DIR", layout.root())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the lab's process")?;
    let interrupted = Shutdown::on_signals().context("cannot listen for signals")?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let stop = async |child: &mut tokio::process::Child| {
        if let Some(process) = pid.and_then(|pid| ProcessId::of(pid).ok()) {
            process.signal(Signal::TERM);
        }
        let _ = tokio::time::timeout(Duration::from_secs(20), child.wait()).await;
    };
    let mut message = [0; 256];
    loop {
        tokio::select! {
            status = child.wait() => bail!(
                "the lab did not start ({}); the end of its log, {}:\n{}",
                status.map_or_else(|error| error.to_string(), |status| status.to_string()),
                log_path.display(),
                supervisor::tail(&log_path, 15),
            ),
            received = socket.recv(&mut message) => {
                let length = received.context("cannot hear from the lab")?;
                if message[..length].starts_with(b"READY=1") {
                    return Ok(());
                }
            }
            () = tokio::time::sleep(up.timeout) => {
                stop(&mut child).await;
                bail!("the lab was not ready within {:?}; the end of its log, {}:\n{}",
                    up.timeout, log_path.display(), supervisor::tail(&log_path, 15));
            }
            () = interrupted.cancelled() => {
                stop(&mut child).await;
                bail!("interrupted; the lab is stopped again");
            }
        }
    }
}

/// Stops the lab if it runs, and releases whatever it, or one that was killed, left mounted or attached.
async fn down(layout: &Layout, args: &LabDown) -> Result<bool> {
    let running = layout.running()?;
    if let Some(record) = &running {
        record.process.signal(Signal::TERM);
        if !gone(record.process, args.timeout).await {
            record.process.signal(Signal::KILL);
            gone(record.process, Duration::from_secs(5)).await;
        }
        // Children end with the lab even when it is killed; make sure before their mounts are taken away.
        for process in record.children.iter().filter_map(|child| child.process) {
            if !gone(process, Duration::from_secs(5)).await {
                process.signal(Signal::KILL);
                gone(process, Duration::from_secs(5)).await;
            }
        }
    }
    if layout.is_a_labs() {
        // Without a record of it a lab may still run; then the lock is held and its mounts are not ours to take.
        let _lock = layout.lock().context("it left no record of itself; end that process first")?;
        for lingering in cleanup::release(layout)? {
            say(&lingering.to_string())?;
        }
        layout.remove_record()?;
    }
    Ok(running.is_some())
}

/// Waits for the end of a process that need not be a child of this one; false if `patience` ran out.
async fn gone(process: ProcessId, patience: Duration) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(process.pid) else { return true };
    // A pidfd becomes readable at the process's end; it is opened before the check, so the number cannot change hands.
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return true };
    if !process.is_alive() {
        return true;
    }
    let wait = move || {
        let limit = rustix::event::Timespec::try_from(patience).ok();
        let mut end = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut end, limit.as_ref()).is_ok_and(|ready| ready > 0)
    };
    tokio::task::spawn_blocking(wait).await.unwrap_or(false)
}

fn status(args: &LabStatus) -> Result<Outcome> {
    let layout = Layout::choose(&args.dir)?;
    let Some(record) = layout.running()? else {
        if args.json {
            say("null")?;
        } else {
            say(&format!("no lab runs in {}", layout.root().display()))?;
        }
        return Ok(Outcome::NotRunning);
    };
    if args.json { say(&serde_json::to_string_pretty(&record)?) } else { say(&summary(&layout, &record)) }
}

async fn reset(args: &LabReset) -> Result<Outcome> {
    let layout = Layout::choose(&args.down.dir)?;
    let root = layout.root();
    if !root.exists() {
        return say(&format!("there is nothing in {}", root.display()));
    }
    // A wrong --dir must not cost anybody their files: only a directory that looks like a lab's is deleted.
    let known = ["lock", "lab.json", "lab.json.new", "kubeconfig", "pki", "store", "plugins", "csi-data", "logs"];
    let foreign: Vec<String> = fs_err::read_dir(root)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !(known.contains(&name.as_str()) || name.starts_with('.') && name.ends_with(".notify")))
        .collect();
    if !foreign.is_empty() || !layout.is_a_labs() {
        let foreign = if foreign.is_empty() { vec!["no lab ever ran there".to_owned()] } else { foreign };
        bail!("{} holds things that are not the lab's ({}); nothing was deleted", root.display(), foreign.join(", "));
    }
    if !args.yes {
        bail!("this deletes the lab in {} with all its objects and volumes; say --yes to do it", root.display());
    }
    down(&layout, &args.down).await?;
    fs_err::remove_dir_all(root)?;
    say(&format!("{} is deleted", root.display()))
}

fn summary(layout: &Layout, record: &Record) -> String {
    let mut lines = vec![
        format!(
            "the lab {} at https://{} since {} (pid {})",
            if record.ready { "runs" } else { "is starting" },
            record.address,
            record.started,
            record.process.pid,
        ),
        format!("  directory   {}", layout.root().display()),
        format!("  kubeconfig  {}", layout.kubeconfig().display()),
    ];
    for child in &record.children {
        let state = match child.process.filter(|process| process.is_alive()) {
            Some(process) => format!("runs (pid {})", process.pid),
            None => "is down".to_owned(),
        };
        let restarts =
            if child.restarts == 0 { String::new() } else { format!(", restarted {} times", child.restarts) };
        let log = layout.log(&child.name);
        lines.push(format!("  {:<11} {state}{restarts}, log {}", child.name, log.display()));
    }
    lines.join("\n")
}

fn say(text: &str) -> Result<Outcome> {
    crate::say(text)?;
    Ok(Outcome::Done)
}
