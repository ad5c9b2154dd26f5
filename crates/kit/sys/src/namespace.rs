//! Namespaces of a thread.

use std::io;

use rustix::thread::UnshareFlags;

/// Gives the calling thread, and the threads and processes that it starts from now on, a network namespace and a mount
/// namespace of their own. The other threads keep theirs. Mounts still propagate until they are made private.
pub fn unshare_network_and_mounts() -> io::Result<()> {
    // SAFETY: the file table stays shared, so no descriptor becomes invalid for another thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::FS)? };
    Ok(())
}
