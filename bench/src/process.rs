//! What a server's processes use, from /proc.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// Sum of the resident memory of the processes, in MB (10^6 bytes).
pub(crate) fn resident(pids: &[u32]) -> Result<f64> {
    let mut total = 0.0;
    for pid in pids {
        let status = fs_err::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
        let kib: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
        total += kib * 1024.0 / 1e6;
    }
    Ok(total)
}

/// Sum of user and system time of the processes, in seconds.
pub(crate) fn cpu(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0.0;
    for pid in pids {
        let stat = fs_err::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit_once(") ").context("a stat line")?.1.split(' ').collect();
        ticks += fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    }
    // USER_HZ is 100 on every Linux that Rust runs on.
    Ok(ticks / 100.0)
}

/// Runs `outrigger` and gives its output.
pub(crate) async fn outrigger(binary: &Path, directory: &Path, arguments: &[&str]) -> Result<String> {
    let output =
        tokio::process::Command::new(binary).args(arguments).env("OUTRIGGER_LAB_DIR", directory).output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// A daemon that was started for a measurement; it is killed when this goes.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: tokio::process::Child,
}

impl Daemon {
    /// Starts it and returns when it says READY=1 on a socket that only this knows.
    pub(crate) async fn start(command: &mut tokio::process::Command, scratch: &Path) -> Result<Self> {
        let path = scratch.join("notify");
        let socket = tokio::net::UnixDatagram::bind(&path)?;
        let mut child = command
            .env("NOTIFY_SOCKET", &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut log = BufReader::new(child.stderr.take().context("its log")?).lines();
        let mut message = [0; 64];
        tokio::select! {
            heard = socket.recv(&mut message) => { heard?; }
            status = child.wait() => {
                let mut text = String::new();
                while let Ok(Some(line)) = log.next_line().await {
                    text.push_str(&line);
                    text.push('\n');
                }
                anyhow::bail!("it ended with {}: {text}", status?);
            }
        }
        // Somebody has to read its log, or it will wait for us.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Ok(Self { child })
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        self.child.id().context("it has ended")
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }
}
