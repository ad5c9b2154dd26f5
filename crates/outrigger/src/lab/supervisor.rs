//! Keeps the plugins' processes running while the lab does.
//!
//! Each child gets its own log file and a socket to say that it is ready (`NOTIFY_SOCKET`, the protocol of
//! sd_notify(3)). A child that ends by itself is started again after a pause that grows from 100 ms to 10 s; one that
//! must stop gets SIGTERM, and SIGKILL when it takes too long. Should the lab itself be killed, the kernel ends its
//! children: they ask for that at their start ([`follow_parent`]).

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::layout::ProcessId;

/// Names the process that started this one; see [`follow_parent`].
const PARENT: &str = "OUTRIGGER_PARENT";
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A child that ran this long was well; its next pause is the first one again.
const WELL: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Name for messages and the log file.
    pub name: &'static str,
    /// Arguments for this very executable.
    pub args: Vec<OsString>,
    /// Where its output goes, appended.
    pub log: PathBuf,
}

/// What is known of a supervised program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The process of now; none between a death and the next start.
    pub process: Option<ProcessId>,
    /// True once the process of now has said that it is ready.
    pub ready: bool,
    /// Starts after the first.
    pub restarts: u32,
    /// How the last process ended, as its wait status.
    pub last_exit: Option<i32>,
}

/// A program that is kept running.
#[derive(Debug)]
pub(crate) struct Supervised {
    name: &'static str,
    log: PathBuf,
    state: watch::Receiver<State>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Supervised {
    /// Starts the program and keeps it running until [`Supervised::stop`].
    pub(crate) fn start(program: Program, run_dir: &Path) -> Result<Self> {
        let notify = run_dir.join(format!(".{}.notify", program.name));
        let (sender, state) = watch::channel(State::default());
        let stop = CancellationToken::new();
        let supervised = Self {
            name: program.name,
            log: program.log.clone(),
            state,
            stop: stop.clone(),
            task: tokio::spawn(async {}),
        };
        let socket = bind_notify(&notify)?;
        let task = tokio::spawn(async move {
            keep_running(&program, &notify, &socket, &sender, &stop).await;
            let _ = fs_err::remove_file(&notify);
        });
        Ok(Self { task, ..supervised })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// What is known of it now.
    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Changes of the state.
    pub(crate) fn changes(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Returns when the program has said that it is ready; fails when it ends before.
    pub(crate) async fn ready(&self) -> Result<()> {
        let mut state = self.state.clone();
        let seen = state
            .wait_for(|state| state.ready || state.last_exit.is_some())
            .await
            .context("the supervisor has stopped")?;
        if seen.ready {
            return Ok(());
        }
        anyhow::bail!(
            "{} ended before it was ready; its log is {}:\n{}",
            self.name,
            self.log.display(),
            tail(&self.log, 12)
        )
    }

    /// Ends the program: SIGTERM, and SIGKILL after `patience`.
    pub(crate) async fn stop(self, patience: Duration) {
        self.stop.cancel();
        let deadline = Instant::now() + patience;
        let mut task = self.task;
        if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
            if let Some(process) = self.state.borrow().process {
                tracing::warn!(program = self.name, pid = process.pid, "did not stop in time: killing it");
                process.signal(Signal::KILL);
            }
            let _ = task.await;
        }
    }
}

fn bind_notify(path: &Path) -> Result<UnixDatagram> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    UnixDatagram::bind(path).with_context(|| format!("cannot bind {}", path.display()))
}

async fn keep_running(
    program: &Program,
    notify: &Path,
    socket: &UnixDatagram,
    state: &watch::Sender<State>,
    stop: &CancellationToken,
) {
    let mut pause = FIRST_PAUSE;
    while !stop.is_cancelled() {
        let started = Instant::now();
        let status = match spawn(program, notify) {
            Ok(child) => follow(program.name, child, socket, state, stop).await,
            Err(error) => {
                tracing::error!(program = program.name, "cannot start: {error:#}");
                None
            }
        };
        state.send_modify(|state| {
            state.process = None;
            state.ready = false;
            state.last_exit = Some(status.map_or(-1, std::os::unix::process::ExitStatusExt::into_raw));
        });
        if stop.is_cancelled() {
            return;
        }
        if started.elapsed() >= WELL {
            pause = FIRST_PAUSE;
        }
        let how = status.map_or_else(|| "did not start".to_owned(), |status| format!("ended with {status}"));
        tracing::warn!(program = program.name, log = %program.log.display(), "{how}; starting it again in {pause:?}");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        state.send_modify(|state| state.restarts += 1);
    }
}

fn spawn(program: &Program, notify: &Path) -> Result<Child> {
    let log = fs_err::OpenOptions::new().create(true).append(true).open(&program.log)?.into_parts().0;
    let executable = std::env::current_exe().context("cannot tell which executable this is")?;
    Command::new(executable)
        .args(&program.args)
        .env(PARENT, std::process::id().to_string())
        .env("NOTIFY_SOCKET", notify)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", program.name))
}

/// Waits for the child's end; meanwhile hears its readiness and passes on the order to stop.
async fn follow(
    name: &str,
    mut child: Child,
    socket: &UnixDatagram,
    state: &watch::Sender<State>,
    stop: &CancellationToken,
) -> Option<ExitStatus> {
    let process = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(|pid| ProcessId::of(pid).ok());
    state.send_modify(|state| {
        state.process = process;
        state.last_exit = None;
    });
    tracing::info!(program = name, pid = process.map(|process| process.pid), "started");
    let mut message = [0; 256];
    let mut told_to_stop = false;
    loop {
        tokio::select! {
            status = child.wait() => return status.ok(),
            () = stop.cancelled(), if !told_to_stop => {
                told_to_stop = true;
                if let Some(process) = process {
                    process.signal(Signal::TERM);
                }
            }
            Ok(length) = socket.recv(&mut message) => {
                if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                    tracing::info!(program = name, "ready");
                    state.send_modify(|state| state.ready = true);
                }
            }
        }
    }
}

/// Makes the kernel end this process together with the lab that supervises it. A no-op for a process that no lab started.
pub(crate) fn follow_parent() -> Result<()> {
    let Some(parent) = std::env::var_os(PARENT) else { return Ok(()) };
    let parent = parent
        .to_str()
        .and_then(|text| text.parse::<i32>().ok())
        .with_context(|| format!("{PARENT} is not a process id"))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .context("cannot ask to be ended with the lab")?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    anyhow::ensure!(now == Some(parent), "the lab that started this process is gone");
    Ok(())
}

/// The last lines of a log, for an error message.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = fs_err::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
