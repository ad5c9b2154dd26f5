//! What the whole-system suites share: a lab of their own, made by the real binary, and the stock clients to use it with.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

/// The `outrigger` command, built beside the tests.
pub fn outrigger_binary() -> PathBuf {
    let tests = std::env::current_exe().expect("the test has an executable");
    let directory = tests.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>");
    let binary = directory.join("outrigger");
    assert!(binary.exists(), "{} is missing; build it first: cargo build -p outrigger", binary.display());
    binary
}

/// The project's root.
pub fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the project").to_owned()
}

/// True if the tests may mount; says why not otherwise, so that a skipped test is seen.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln_skip(test, "it mounts volumes, which needs root");
    }
    root
}

/// Prints that a test, or a part of one, is skipped, and why; `make test` collects and counts these lines.
#[expect(clippy::print_stderr, reason = "a test's words to whoever runs it")]
pub fn eprintln_skip(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}");
    eprintln!("{line}");
    if let Some(list) = std::env::var_os("OUTRIGGER_SKIPS") {
        use std::io::Write as _;
        let written = fs_err::OpenOptions::new()
            .create(true)
            .append(true)
            .open(list)
            .and_then(|mut list| writeln!(list, "{line}"));
        if let Err(error) = written {
            eprintln!("cannot count it: {error}");
        }
    }
}

/// What a command printed, and whether it went well.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The standard output of a command that must have succeeded.
    pub fn ok(self) -> Result<String> {
        ensure!(self.code == Some(0), "exit code {:?}\n{}\n{}", self.code, self.stdout, self.stderr);
        Ok(self.stdout)
    }

    /// The standard error of a command that must have failed.
    pub fn err(self) -> Result<String> {
        ensure!(self.code != Some(0), "it should have failed:\n{}", self.stdout);
        Ok(self.stderr)
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Result<Ran> {
    command.output().map(Ran::of).with_context(|| format!("cannot run {}", command.get_program().display()))
}

/// A lab of one test's own. It is taken down, and its directory deleted, when this goes.
#[derive(Debug)]
pub struct Lab {
    scratch: TempDir,
    /// Another API server that takes the lab's place, to check the suite against the real thing.
    other: Option<PathBuf>,
}

/// Names the kubeconfig of an API server that takes the place of every [`Lab::bare`]: a suite is worth trusting once the
/// reference passes it.
pub const OTHER: &str = "OUTRIGGER_TESTS_KUBECONFIG";

impl Lab {
    /// A lab with its plugins.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// A lab without plugins: the API server and its controllers; or the server that [`OTHER`] names.
    pub fn bare() -> Result<Self> {
        match std::env::var_os(OTHER) {
            Some(other) => Ok(Self { scratch: TempDir::with_prefix("outrigger-lab-")?, other: Some(other.into()) }),
            None => Self::start_with(&["--bare"]),
        }
    }

    /// True if this is a lab, and not another server in its place.
    pub fn is_lab(&self) -> bool {
        self.other.is_none()
    }

    fn start_with(arguments: &[&str]) -> Result<Self> {
        let lab = Self { scratch: TempDir::with_prefix("outrigger-lab-")?, other: None };
        lab.up(arguments)?;
        Ok(lab)
    }

    /// `lab up`, again after a `down` or a kill.
    pub fn up(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["lab", "up"];
        if !arguments.contains(&"--listen") {
            all.extend(["--listen", "127.0.0.1:0"]);
        }
        all.extend(arguments);
        self.outrigger(&all)?.ok()
    }

    /// The lab's directory.
    pub fn dir(&self) -> PathBuf {
        self.scratch.path().join("lab")
    }

    /// A place for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The kubeconfig's path.
    pub fn kubeconfig(&self) -> PathBuf {
        self.other.clone().unwrap_or_else(|| self.dir().join("kubeconfig"))
    }

    /// Runs the command against this lab.
    pub fn outrigger<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Ran> {
        run(Command::new(outrigger_binary()).args(arguments).env("OUTRIGGER_LAB_DIR", self.dir()))
    }

    /// What `lab status --json` says; null when nothing runs.
    pub fn status(&self) -> Result<serde_json::Value> {
        let ran = self.outrigger(&["lab", "status", "--json"])?;
        serde_json::from_str(&ran.stdout).with_context(|| format!("not JSON: {ran:?}"))
    }

    /// Kills the lab and its children as a crash would: no process gets to say goodbye.
    pub fn kill_everything(&self) -> Result<()> {
        let status = self.status()?;
        let mut pids = vec![status["process"]["pid"].clone()];
        pids.extend(status["children"].as_array().into_iter().flatten().map(|child| child["process"]["pid"].clone()));
        let mut handles = Vec::new();
        for pid in pids {
            let raw = pid.as_i64().and_then(|pid| i32::try_from(pid).ok()).context("a pid")?;
            let pid = rustix::process::Pid::from_raw(raw).context("a pid")?;
            handles.push((pid, rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?));
        }
        for (pid, _) in &handles {
            let _ = rustix::process::kill_process(*pid, rustix::process::Signal::KILL);
        }
        for (_, handle) in &handles {
            let mut poll = [rustix::event::PollFd::new(handle, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut poll, Some(&rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 }))?;
        }
        Ok(())
    }

    /// Stock kubectl: the machine's own.
    pub fn kubectl(&self) -> Kubectl<'_> {
        Kubectl { lab: self, binary: PathBuf::from("kubectl") }
    }

    /// Stock kubectl of every minor that was installed for the tests, with the minor's name.
    pub fn kubectls(&self) -> Result<Vec<(String, Kubectl<'_>)>> {
        let directory = project().join(".cache/tools/kubectl");
        let mut found = Vec::new();
        for entry in fs_err::read_dir(&directory).context("the test tools are missing; run: make tools-test")? {
            let path = entry?.path();
            let name = path.file_name().and_then(OsStr::to_str).context("a minor's name")?.to_owned();
            found.push((name, Kubectl { lab: self, binary: path }));
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        if found.is_empty() {
            bail!("{} is empty; run: make tools-test", directory.display());
        }
        Ok(found)
    }

    /// A kube-rs client for this lab.
    pub async fn client(&self) -> Result<kube::Client> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = kube::config::Kubeconfig::read_from(self.kubeconfig())?;
        let config = kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.other.is_some() {
            return;
        }
        match self.outrigger(&["lab", "reset", "--yes"]).and_then(Ran::ok) {
            Ok(_) => {}
            Err(error) if std::thread::panicking() => eprintln_skip("the lab's clean-up", &format!("{error:#}")),
            Err(error) => panic_cleanup(&error),
        }
    }
}

#[expect(clippy::panic, reason = "a lab that cannot be cleaned up is a failure of the test")]
fn panic_cleanup(error: &anyhow::Error) -> ! {
    panic!("the lab could not be cleaned up: {error:#}")
}

/// Stock kubectl, pointed at one lab, with caches of its own.
#[derive(Debug, Clone)]
pub struct Kubectl<'a> {
    lab: &'a Lab,
    binary: PathBuf,
}

impl Kubectl<'_> {
    /// The command, to be changed further.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env("KUBECONFIG", self.lab.kubeconfig())
            .env("HOME", self.lab.scratch())
            .env("KUBECACHEDIR", self.lab.scratch().join("kube-cache"));
        command
    }

    /// Runs it.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Ran> {
        run(&mut self.command(arguments))
    }

    /// Its output, when it must succeed.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        self.run(arguments)?.ok().with_context(|| {
            let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
            format!("{} {}", self.binary.display(), words.join(" "))
        })
    }

    /// Runs it with text on its standard input; it must succeed.
    pub fn feed<S: AsRef<OsStr>>(&self, arguments: &[S], input: &str) -> Result<String> {
        self.feed_any(arguments, input)?.ok()
    }

    /// Runs it with text on its standard input.
    pub fn feed_any<S: AsRef<OsStr>>(&self, arguments: &[S], input: &str) -> Result<Ran> {
        use std::io::Write as _;
        use std::process::Stdio;
        let mut child =
            self.command(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("standard input")?.write_all(input.as_bytes())?;
        Ok(Ran::of(child.wait_with_output()?))
    }
}

/// Runs `check` again and again until it is content; the last complaint is the error when `patience` runs out.
pub fn eventually<T>(patience: std::time::Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = std::time::Instant::now() + patience;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if std::time::Instant::now() >= deadline => {
                return Err(error.context(format!("still so after {patience:?}")));
            }
            Err(_) => pause(),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the black box outside offers nothing to await; the deadline bounds this"
)]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(20));
}
