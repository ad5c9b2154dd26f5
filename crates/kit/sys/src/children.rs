//! What a child process used: wait4(2), which `std` does not offer.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::time::Duration;

/// What a process used, with all the children that it waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResourceUsage {
    /// Processor time in user mode.
    pub user: Duration,
    /// Processor time in the kernel on behalf of it.
    pub system: Duration,
}

impl ResourceUsage {
    /// User and system time.
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

/// Waits for a child's end and says what it used. It takes the child, since nobody can wait for it again; its standard
/// streams are closed first, so read what it has to say before.
pub fn wait_with_usage(child: Child) -> io::Result<(ExitStatus, ResourceUsage)> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    drop(child);
    let mut status = 0;
    // SAFETY: `rusage` is plain integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live variables of the right type.
        let found = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if found == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let usage = ResourceUsage { user: time(usage.ru_utime), system: time(usage.ru_stime) };
    Ok((ExitStatus::from_raw(status), usage))
}

fn time(value: libc::timeval) -> Duration {
    let seconds = u64::try_from(value.tv_sec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(value.tv_usec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn grandchildren_count() {
        let loops = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        let child = Command::new("sh").args(["-c", &format!("sh -c '{loops}'; exit 3")]).spawn().unwrap();
        let (status, usage) = wait_with_usage(child).unwrap();
        assert_eq!(status.code(), Some(3));
        assert!(usage.cpu() > Duration::from_millis(5), "{usage:?}");
    }
}
