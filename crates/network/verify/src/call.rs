//! One call of a plugin: environment and standard input in, exit code and output out.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use outrigger_verify_report::Unmet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde_json::Value;

/// How long a plugin may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(20);

/// A call to be made.
#[derive(Debug, Clone)]
pub struct Call {
    /// The plugin's file.
    pub binary: PathBuf,
    /// The CNI variables; the rest of the environment is what the suite itself has.
    pub environment: BTreeMap<String, String>,
    /// Standard input.
    pub stdin: Vec<u8>,
}

/// What came of a call.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// What was asked, for the evidence.
    pub asked: String,
}

/// An error as the specification wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// The code.
    pub code: u64,
    /// The short message.
    pub msg: String,
    /// The long one.
    pub details: String,
    /// The version, where the plugin gave one.
    pub version: Option<String>,
}

impl Call {
    /// A call with a command and nothing else.
    pub fn new(binary: &Path, command: &str) -> Self {
        let environment = BTreeMap::from([("CNI_COMMAND".to_owned(), command.to_owned())]);
        Self { binary: binary.to_owned(), environment, stdin: Vec::new() }
    }

    /// The same with a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    /// The same without a variable.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// The same with a configuration.
    #[must_use]
    pub fn config(self, config: &Value) -> Self {
        self.stdin(config.to_string())
    }

    /// The same with any bytes as standard input.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Makes the call. A plugin that takes longer than 20 seconds is killed, with its children, and has failed.
    pub fn run(&self) -> Result<Output, Unmet> {
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("CNI_")) {
                command.env_remove(name);
            }
        }
        command.envs(&self.environment).current_dir("/").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| Unmet::fail("no pid"))?;
        let handle = pidfd_open(group, PidfdFlags::empty())?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let bytes = self.stdin.clone();
        let writer = std::thread::spawn(move || {
            // A plugin need not read what it has no use for.
            let _ = stdin.map(|mut pipe| pipe.write_all(&bytes));
        });
        let reader = |pipe: Option<Box<dyn std::io::Read + Send>>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let stdout = reader(stdout.map(|pipe| Box::new(pipe) as _));
        let stderr = reader(stderr.map(|pipe| Box::new(pipe) as _));
        let limit = Timespec { tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap_or(20), tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit))? > 0;
        if !ended {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let status = child.wait()?;
        // Whatever it left running holds the pipes open, and has no business to.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = writer.join();
        let text = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
        let (stdout, stderr) = (text(stdout), text(stderr));
        let output = Output { code: status.code(), stdout, stderr, asked: self.to_string() };
        if !ended {
            return Err(output.failure(format!("the plugin did not end within {PATIENCE:?}")));
        }
        if let Some(signal) = status.signal() {
            return Err(output.failure(format!("the plugin was ended by signal {signal}")));
        }
        Ok(output)
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, value) in &self.environment {
            write!(f, "{name}='{value}' ")?;
        }
        let mut stdin = String::from_utf8_lossy(&self.stdin).into_owned();
        if stdin.len() > 4000 {
            stdin = format!("{} bytes", stdin.len());
        }
        write!(f, "{} <<<'{stdin}'", self.binary.display())
    }
}

impl Output {
    /// A failure with this output as evidence.
    pub fn failure(&self, reason: impl Into<String>) -> Unmet {
        let mut unmet = Unmet::fail(reason).with("call", &self.asked);
        unmet = unmet.with("exit code", self.code.map_or("none".to_owned(), |code| code.to_string()));
        unmet = unmet.with("stdout", &self.stdout);
        if self.stderr.is_empty() { unmet } else { unmet.with("stderr", &self.stderr) }
    }

    /// The one JSON object on the standard output of a call that must succeed.
    pub fn result(&self) -> Result<Value, Unmet> {
        self.success()?;
        match serde_json::from_str::<Value>(&self.stdout) {
            Ok(value) if value.is_object() => Ok(value),
            Ok(_) => Err(self.failure("standard output is JSON, but no object")),
            Err(error) => Err(self.failure(format!("standard output is not one JSON value: {error}"))),
        }
    }

    /// Fails unless the exit code is 0.
    pub fn success(&self) -> Result<(), Unmet> {
        if self.code == Some(0) {
            return Ok(());
        }
        let said = self.stdout_json().and_then(|error| error["msg"].as_str().map(str::to_owned)).unwrap_or_default();
        Err(self.failure(format!("it failed: {said}")))
    }

    fn stdout_json(&self) -> Option<Value> {
        serde_json::from_str(&self.stdout).ok()
    }

    /// The error of a call that must fail: exit code not 0, and one JSON object with a code and a message on standard
    /// output.
    pub fn error(&self) -> Result<CniError, Unmet> {
        if self.code == Some(0) {
            return Err(self.failure("it should have failed, but the exit code is 0"));
        }
        let value = match serde_json::from_str::<Value>(&self.stdout) {
            Ok(value) => value,
            Err(error) => {
                return Err(self.failure(format!("the error on standard output is not one JSON value: {error}")));
            }
        };
        let (Some(code), Some(msg)) = (value["code"].as_u64(), value["msg"].as_str()) else {
            return Err(self.failure("the error object lacks a number `code` or a text `msg`"));
        };
        if code == 0 || msg.is_empty() {
            return Err(self.failure("the error's code is 0 or its msg is empty"));
        }
        Ok(CniError {
            code,
            msg: msg.to_owned(),
            details: value["details"].as_str().unwrap_or_default().to_owned(),
            version: value["cniVersion"].as_str().map(str::to_owned),
        })
    }

    /// The error, with one of these codes.
    pub fn error_code(&self, codes: &[u64]) -> Result<CniError, Unmet> {
        let error = self.error()?;
        if codes.contains(&error.code) {
            return Ok(error);
        }
        let wanted: Vec<_> = codes.iter().map(u64::to_string).collect();
        Err(self.failure(format!("the code is {}, not {}: {}", error.code, wanted.join(" or "), error.msg)))
    }
}
