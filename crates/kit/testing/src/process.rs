//! A child process of a test.

use std::ffi::OsStr;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// How long to pause between two looks at an HTTP page.
const PAUSE: Duration = Duration::from_millis(20);
/// How much of the log an error shows.
const TAIL: usize = 4000;

/// A running child process. Its output is collected, and it is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
}

/// What the process wrote so far.
#[derive(Debug, Default)]
struct Output {
    text: Mutex<String>,
    more: Notify,
}

impl Process {
    /// Starts `program` with `args`; see [`Process::spawn`].
    pub fn start<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args);
        Self::spawn(command)
    }

    /// Starts a command with no input, and both output streams collected as one log. Must be called within a tokio
    /// runtime.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let output = Arc::new(Output::default());
        let mut readers = Vec::new();
        if let Some(stream) = child.stdout.take() {
            readers.push(tokio::spawn(collect(stream, output.clone())));
        }
        if let Some(stream) = child.stderr.take() {
            readers.push(tokio::spawn(collect(stream, output.clone())));
        }
        Ok(Self { name, child, output, readers })
    }

    /// The process id; none once its end was seen.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// What the process wrote so far on both streams.
    pub fn logs(&self) -> String {
        self.output.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a line of the log holds `text`, and gives that line. Fails when the process ends before, or after `limit`.
    pub async fn wait_for_line(&mut self, text: &str, limit: Duration) -> Result<String> {
        let output = self.output.clone();
        let found = async {
            loop {
                let more = output.more.notified();
                let mut more = std::pin::pin!(more);
                more.as_mut().enable();
                let line = {
                    let all = output.text.lock().unwrap_or_else(PoisonError::into_inner);
                    all.lines().find(|line| line.contains(text)).map(str::to_owned)
                };
                match line {
                    Some(line) => return line,
                    None => more.await,
                }
            }
        };
        tokio::select! {
            biased;
            line = found => Ok(line),
            status = self.child.wait() => {
                // What it wrote last may still be on its way.
                self.drain().await;
                match self.logs().lines().find(|line| line.contains(text)) {
                    Some(line) => Ok(line.to_owned()),
                    None => Err(self.failure(&format!("ended ({status:?}) before it wrote {text:?}"))),
                }
            }
            () = sleep(limit) => Err(self.failure(&format!("did not write {text:?} within {limit:?}"))),
        }
    }

    /// Waits until a GET of `path` at `address` (`127.0.0.1:9808`) is answered with 200. Fails when the process ends
    /// before, or after `limit`.
    pub async fn wait_for_http(&mut self, address: &str, path: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let status = timeout(limit, http_status(address, path)).await.map_err(Into::into).flatten();
            if matches!(status, Ok(200)) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(self.failure(&format!("ended ({status}) before http://{address}{path} answered")));
            }
            if Instant::now() >= deadline {
                return Err(
                    self.failure(&format!("http://{address}{path} did not answer 200 within {limit:?}: {status:?}"))
                );
            }
            sleep(PAUSE).await;
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| anyhow!("{} has ended", self.name))?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Kills the process as a crash would (SIGKILL) and waits for its end.
    pub async fn kill(&mut self) -> Result<ExitStatus> {
        if self.pid().is_some() {
            self.signal(Signal::KILL)?;
        }
        let status = self.child.wait().await.with_context(|| format!("cannot wait for {}", self.name))?;
        self.drain().await;
        Ok(status)
    }

    /// Asks the process to end (SIGTERM) and waits; fails if it takes longer than `limit`, and kills it then.
    pub async fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        if self.pid().is_some() {
            self.signal(Signal::TERM)?;
        }
        self.wait(limit).await
    }

    /// Waits for the end of the process; fails if it takes longer than `limit`, and kills it then.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Ok(status) = timeout(limit, self.child.wait()).await {
            let status = status.with_context(|| format!("cannot wait for {}", self.name))?;
            self.drain().await;
            return Ok(status);
        }
        self.kill().await?;
        Err(self.failure(&format!("did not end within {limit:?}")))
    }

    /// Waits until the log is complete. A grandchild may keep the streams open: it is not waited for long.
    async fn drain(&mut self) {
        for reader in self.readers.drain(..) {
            let abort = reader.abort_handle();
            if timeout(Duration::from_secs(1), reader).await.is_err() {
                abort.abort();
            }
        }
    }

    fn failure(&self, what: &str) -> anyhow::Error {
        let logs = self.logs();
        let start = logs.floor_char_boundary(logs.len().saturating_sub(TAIL));
        anyhow!("{} {what}; its log ends with:\n{}", self.name, &logs[start..])
    }
}

async fn collect(stream: impl AsyncRead + Unpin, output: Arc<Output>) {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    while matches!(lines.read_until(b'\n', &mut line).await, Ok(1..)) {
        let text = String::from_utf8_lossy(&line);
        output.text.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        output.more.notify_waiters();
        line.clear();
    }
}

/// The status code of a GET.
async fn http_status(address: &str, path: &str) -> Result<u16> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    let text = std::str::from_utf8(&head)?;
    match text.strip_prefix("HTTP/1.1 ") {
        Some(code) => Ok(code.parse()?),
        None => bail!("not an HTTP answer: {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Process {
        Process::start("sh", ["-c", script]).unwrap()
    }

    #[tokio::test]
    async fn lines_are_waited_for_on_both_streams() {
        let mut process = shell("echo one; echo two >&2; exec sleep 100");
        assert_eq!(process.wait_for_line("tw", LONG).await.unwrap(), "two");
        assert_eq!(process.wait_for_line("one", LONG).await.unwrap(), "one");
        let error = process.wait_for_line("three", Duration::from_millis(50)).await.unwrap_err().to_string();
        assert!(error.contains("did not write \"three\"") && error.contains("one\n"), "{error}");
        let status = process.stop(LONG).await.unwrap();
        assert_eq!(status.signal(), Some(15));
    }

    #[tokio::test]
    async fn an_early_end_is_told_with_the_log() {
        let mut process = shell("echo oops; exit 3");
        let error = process.wait_for_line("ready", LONG).await.unwrap_err().to_string();
        assert!(error.contains("ended") && error.contains("oops"), "{error}");
        assert_eq!(process.wait(LONG).await.unwrap().code(), Some(3));
    }

    #[tokio::test]
    async fn one_that_does_not_heed_is_killed() {
        let mut process = shell("trap '' TERM; echo up; while :; do sleep 0.1; done");
        process.wait_for_line("up", LONG).await.unwrap();
        let error = process.stop(Duration::from_millis(100)).await.unwrap_err().to_string();
        assert!(error.contains("did not end"), "{error}");
        assert_eq!(process.pid(), None);
    }

    #[tokio::test]
    async fn http_is_waited_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            for answer in ["HTTP/1.1 500 Not yet\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let mut process = shell("exec sleep 100");
        process.wait_for_http(&address, "/readyz", LONG).await.unwrap();
        assert_eq!(process.kill().await.unwrap().signal(), Some(9));
    }
}
