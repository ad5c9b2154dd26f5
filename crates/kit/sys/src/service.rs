//! What a daemon without an async runtime gets from those who started it and who end it. One system call a function.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// The first descriptor that a service manager hands over (`SD_LISTEN_FDS_START`).
const FIRST_INHERITED: RawFd = 3;

/// Takes the first socket that a service manager opened for this process (sd_listen_fds(3)).
///
/// None if `listen_pid` and `listen_fds`, the variables of that name, do not say that there is one for this process.
/// It is to be called once, before any other descriptor is opened.
pub fn inherited_socket(listen_pid: Option<&str>, listen_fds: Option<&str>) -> io::Result<Option<OwnedFd>> {
    let is_for_us = listen_pid.and_then(|pid| pid.parse().ok()) == Some(std::process::id());
    let count: u32 = listen_fds.filter(|_| is_for_us).and_then(|count| count.parse().ok()).unwrap_or(0);
    match count {
        0 => Ok(None),
        1 => {
            // SAFETY: fcntl with F_SETFD takes numbers only; it fails if the descriptor is not open.
            if unsafe { libc::fcntl(FIRST_INHERITED, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the descriptor is open, and the variables say that the service manager gave it to this process to
            // own.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(FIRST_INHERITED) }))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "more than one socket was handed over (LISTEN_FDS)")),
    }
}

/// Makes SIGTERM and SIGINT readable on a descriptor instead of ending the process. To be called before other threads
/// are started: they inherit it.
pub fn termination_signals() -> io::Result<OwnedFd> {
    let set = termination_set();
    // SAFETY: `set` is initialised and lives across the call; no old set is asked for.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: `set` is initialised and lives across the call.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn termination_set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the set is initialised, and the signals are valid.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: sigemptyset has initialised it.
    unsafe { set.assume_init() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_for_others_are_not_taken() {
        assert!(inherited_socket(None, None).unwrap().is_none());
        assert!(inherited_socket(Some("1"), Some("1")).unwrap().is_none());
        let own = std::process::id().to_string();
        assert!(inherited_socket(Some(&own), Some("0")).unwrap().is_none());
        assert!(inherited_socket(Some(&own), Some("2")).is_err());
    }

    #[test]
    fn signals_are_readable() {
        // On a thread of its own: the others of the test process keep theirs. A signal to this thread stays pending there.
        std::thread::spawn(|| {
            let fd = termination_signals().unwrap();
            // SAFETY: raise sends the signal to the calling thread, where it is blocked.
            assert_eq!(unsafe { libc::raise(libc::SIGTERM) }, 0);
            let mut buffer = [0; 128];
            assert_eq!(rustix::io::read(&fd, &mut buffer).unwrap(), 128);
            assert_eq!(i32::from(buffer[0]), libc::SIGTERM);
        })
        .join()
        .unwrap();
    }
}
