//! Runs a plugin's process: standard input written, both outputs collected, never longer than allowed.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// An executable may be busy while an update writes it. libcni tries for five seconds, and so does this.
const BUSY_FOR: Duration = Duration::from_secs(5);
/// Pause between two attempts.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// The most that is read of one output; what comes after is thrown away, and the answer will not parse.
const MOST: usize = 16 << 20;

/// How much of a plugin's words an error repeats.
const TAIL: usize = 500;

/// What a process left.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Why there is no output.
#[derive(Debug)]
pub(crate) enum Failure {
    Io(&'static str, io::Error),
    Timeout(Vec<u8>),
}

/// Runs a command to its end. When `limit` passes, it is killed, together with the processes it started.
pub(crate) fn run(
    command: &mut std::process::Command,
    input: &[u8],
    limit: Option<Duration>,
) -> Result<Output, Failure> {
    // A group of its own: what the plugin started is killed with it, and a Ctrl-C does not tear it from its work.
    run_in_our_group(command.process_group(0), input, limit)
}

/// The same for a plugin that calls another: whoever kills the one, kills the other.
pub(crate) fn run_in_our_group(
    command: &mut std::process::Command,
    input: &[u8],
    limit: Option<Duration>,
) -> Result<Output, Failure> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawn(command, deadline)?;
    let mut running = Running { child, ended: false };
    let result = running.talk(input, deadline);
    if matches!(result, Err(Failure::Timeout(_))) {
        running.kill();
    }
    result
}

fn spawn(command: &mut std::process::Command, deadline: Option<Instant>) -> Result<Child, Failure> {
    let give_up = Instant::now() + BUSY_FOR;
    let give_up = deadline.map_or(give_up, |deadline| deadline.min(give_up));
    loop {
        match command.spawn() {
            Ok(child) => return Ok(child),
            Err(error) if error.raw_os_error() == Some(Errno::TXTBSY.raw_os_error()) && Instant::now() < give_up => {
                let _ = poll(&mut [], Some(&timespec(BUSY_PAUSE)));
            }
            Err(error) => return Err(Failure::Io("start", error)),
        }
    }
}

/// A child that does not outlive this value.
struct Running {
    child: Child,
    ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
        }
    }
}

impl Running {
    fn kill(&mut self) {
        if let Some(group) = pid(&self.child) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.ended = true;
    }

    /// Feeds and listens until the process ends. Outputs that a process left in the background keeps open are not
    /// waited for.
    fn talk(&mut self, input: &[u8], deadline: Option<Instant>) -> Result<Output, Failure> {
        let process = pid(&self.child).ok_or_else(|| Failure::Io("watch", io::Error::other("it has no id")))?;
        let process = pidfd_open(process, PidfdFlags::empty()).map_err(|errno| Failure::Io("watch", errno.into()))?;
        let mut input = Input { pipe: self.child.stdin.take(), rest: input };
        let mut stdout = Collected { pipe: self.child.stdout.take(), bytes: Vec::new() };
        let mut stderr = Collected { pipe: self.child.stderr.take(), bytes: Vec::new() };
        for pipe in [input.fd(), stdout.fd(), stderr.fd()].into_iter().flatten() {
            rustix::io::ioctl_fionbio(pipe, true).map_err(|errno| Failure::Io("talk to", errno.into()))?;
        }
        loop {
            input.write();
            stdout.read().map_err(|error| Failure::Io("read from", error))?;
            stderr.read().map_err(|error| Failure::Io("read from", error))?;
            let remaining = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let mut waited = vec![PollFd::new(&process, PollFlags::IN)];
            waited.extend(input.fd().map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::OUT)));
            waited.extend(stdout.fd().map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::IN)));
            waited.extend(stderr.fd().map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::IN)));
            match poll(&mut waited, remaining.map(timespec).as_ref()) {
                Ok(0) => return Err(Failure::Timeout(stderr.bytes)),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Failure::Io("wait for", errno.into())),
            }
            let ended = !waited[0].revents().is_empty();
            drop(waited);
            if ended {
                break;
            }
        }
        let status = self.child.wait().map_err(|error| Failure::Io("wait for", error))?;
        self.ended = true;
        // What it wrote last.
        stdout.read().map_err(|error| Failure::Io("read from", error))?;
        stderr.read().map_err(|error| Failure::Io("read from", error))?;
        Ok(Output { status, stdout: stdout.bytes, stderr: stderr.bytes })
    }
}

fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        // Rounded up by the kernel's clock; never zero by accident.
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

struct Input<'a> {
    pipe: Option<ChildStdin>,
    rest: &'a [u8],
}

impl Input<'_> {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Writes what fits. A plugin that does not read its configuration has the right to: its answer counts.
    fn write(&mut self) {
        while let Some(pipe) = &mut self.pipe {
            if self.rest.is_empty() {
                self.pipe = None;
                return;
            }
            match pipe.write(self.rest) {
                Ok(count) => self.rest = &self.rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.pipe = None,
            }
        }
    }
}

struct Collected<T> {
    pipe: Option<T>,
    bytes: Vec<u8>,
}

trait Pipe: Read + AsFd {}
impl Pipe for ChildStdout {}
impl Pipe for ChildStderr {}

impl<T: Pipe> Collected<T> {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Reads what is there.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16384];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    let room = MOST - self.bytes.len();
                    self.bytes.extend_from_slice(&buffer[..count.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The executable of a plugin: the first regular file of that name. Its name must have been checked.
pub(crate) fn search<P: AsRef<Path>>(plugin: &str, dirs: impl IntoIterator<Item = P>) -> Option<PathBuf> {
    dirs.into_iter().map(|dir| dir.as_ref().join(plugin)).find(|path| {
        rustix::fs::stat(path).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file())
    })
}

/// The error that a plugin printed, or what can be said of its failure in its place.
pub(crate) fn own_error(output: &Output) -> Result<crate::Error, String> {
    let ending = ending(output.status);
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Err(match tail(&output.stderr).as_str() {
            "" => format!("no error message ({ending})"),
            text => format!("{text} ({ending})"),
        });
    }
    let parsed = serde_json::from_slice(&output.stdout).ok().and_then(|value| crate::Error::from_value(&value));
    parsed.ok_or_else(|| format!("what it printed is no CNI error ({ending}): {}", tail(&output.stdout)))
}

/// The end of an output in one line.
pub(crate) fn tail(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let words: Vec<_> = text.split_whitespace().collect();
    let line = words.join(" ");
    let start = line.ceil_char_boundary(line.len().saturating_sub(TAIL));
    line[start..].to_owned()
}

/// How a process ended, in words.
pub(crate) fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt as _;
    use std::process::Command;

    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn much_goes_in_and_comes_out() {
        let input = vec![b'x'; 1 << 20];
        let output = run(&mut sh("cat; echo oops >&2; exit 3"), &input, None).unwrap();
        assert_eq!((output.stdout.len(), output.stderr.as_slice()), (1 << 20, b"oops\n".as_slice()));
        assert_eq!(ending(output.status), "exit code 3");
    }

    #[test]
    fn a_plugin_need_not_read() {
        let output = run(&mut sh("echo done"), &vec![b'x'; 1 << 20], None).unwrap();
        assert_eq!(output.stdout, b"done\n");
    }

    #[test]
    fn one_that_hangs_is_killed_with_its_children() {
        let start = Instant::now();
        let mut command = sh("echo $$ >&2; sleep 1000 & wait");
        let Err(Failure::Timeout(stderr)) = run(&mut command, b"{}", Some(Duration::from_millis(300))) else {
            panic!("it should have been killed");
        };
        assert!(start.elapsed() < Duration::from_secs(20));
        let group: i32 = String::from_utf8(stderr).unwrap().trim().parse().unwrap();
        let group = Pid::from_raw(group).unwrap();
        // The orphan was killed too; its new parent may need a moment to collect it.
        let deadline = Instant::now() + Duration::from_secs(10);
        while rustix::process::test_kill_process_group(group).is_ok() && alive(group) {
            assert!(Instant::now() < deadline, "the group still lives");
            let _ = poll(&mut [], Some(&timespec(Duration::from_millis(5))));
        }
    }

    /// True if a process of the group is more than a corpse.
    fn alive(group: Pid) -> bool {
        let stats = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let mut text = String::new();
            std::fs::File::open(entry.path().join("stat")).ok()?.read_to_string(&mut text).ok()?;
            Some(text)
        });
        stats.into_iter().any(|stat| {
            let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            fields.get(2) == Some(&group.to_string().as_str()) && fields.first() != Some(&"Z")
        })
    }

    #[test]
    fn a_background_process_that_keeps_the_output_open_is_not_waited_for() {
        let start = Instant::now();
        let output = run(&mut sh("sleep 30 & echo $!; exit 0"), b"", None).unwrap();
        assert!(start.elapsed() < Duration::from_secs(20));
        let pid: i32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn a_busy_executable_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugin");
        let mut writer = OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&path).unwrap();
        // Only a file that the kernel runs itself can be busy, so a script's interpreter will not do.
        let mut image = Vec::new();
        std::fs::File::open("/bin/true").unwrap().read_to_end(&mut image).unwrap();
        writer.write_all(&image).unwrap();
        let (sent, received) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let _ = received.recv_timeout(Duration::from_millis(300));
            drop(writer);
        });
        let output = run(&mut Command::new(&path), b"", None).unwrap();
        assert!(output.status.success());
        drop(sent);
        thread.join().unwrap();
    }

    #[test]
    fn what_cannot_be_started_says_so() {
        let Err(Failure::Io("start", error)) = run(&mut Command::new("/nowhere/plugin"), b"", None) else { panic!() };
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
